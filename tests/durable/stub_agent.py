"""The stub agent of the kill tests, a process of its own: `python -m tests.durable.stub_agent CONFIG.json`.

Forks the agent proper, so that one that was killed is back in a moment. Every real effect is a line in a file, the
referee: `{"key", "step", "pid", "tokens", "tag", "at_ms"}`. Where SIGKILL falls say the operations that
it is to hit: each stands at a point of its own (`Job.stops`) when the last one comes to its point; then it falls.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mesh
from mesh.agent import Agent
from mesh.clock import now_ms, pause, sleep
from tests.ports import lasting_port

TOKENS = 1000
WHEN = ("before", "middle", "after")


@dataclass
class Job:
    """One operation. `stops[r]` is where kill number `r` is to find it: (step, WHEN, "agent" or "gateway").

    `phase` names the kills, `crowd` is how many operations are to be hit by each.
    """

    steps: int
    number: int = 0
    phase: str = ""
    crowd: int = 1
    stops: list[tuple[int, str, str]] = field(default_factory=list)


class Stub:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.directory = Path(config["directory"])
        self.tag = config.get("tag", "")

    async def stop(self, job: Job, step: int, when: str) -> None:
        """If a kill is to find this operation here: wait until the others stand at their points, then do it."""
        found = [(kill, stop[2]) for kill, stop in enumerate(job.stops) if (stop[0], stop[1]) == (step, when)]
        if not found:
            return
        ((kill, whom),) = found
        here = self.directory / f"{job.phase}-{kill}"
        here.mkdir(exist_ok=True)
        (here / str(job.number)).touch()
        killed = here.with_suffix(".killed")
        while not killed.exists():
            if len(list(here.iterdir())) == job.crowd:
                try:
                    killed.touch(exist_ok=False)
                except FileExistsError:
                    return
                victim = os.getpid() if whom == "agent" else int((self.directory / "gateway.pid").read_text())
                os.kill(victim, signal.SIGKILL)
            await sleep(0.01)

    def effect(self, step: str, key: str) -> None:
        """Something real, that nothing takes back."""
        done = {"key": key, "step": step, "pid": os.getpid(), "tokens": TOKENS, "tag": self.tag, "at_ms": now_ms()}
        line = json.dumps(done)
        with (self.directory / "effects").open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    async def part(self, job: Job, number: int, key: str) -> dict[str, int]:
        await self.stop(job, number, "before")
        self.effect(f"part-{number}", key)
        await self.stop(job, number, "middle")
        await sleep(self.config.get("step_s", 0.02))
        return {"number": number, "tokens": TOKENS}

    async def build(self, ctx: mesh.Context, job: Job) -> dict[str, Any]:
        """The background coding agent of features.md 2.1: so many steps of a thousand tokens each."""
        tokens = 0
        for number in range(1, job.steps + 1):
            tokens += (await ctx.step(f"part-{number}", self.part, job, number))["tokens"]
            await ctx.progress(f"{number} of {job.steps}", percent=100 * number / job.steps)
            await self.stop(job, number, "after")
        await sleep(self.config.get("end_s", 0))
        return {"tokens": tokens, "attempt": ctx.attempt}

    def slow_part(self, number: int, key: str) -> int:
        """As `part`, in a thread."""
        self.effect(f"part-{number}", key)
        pause(self.config.get("step_s", 0.02))
        return number

    async def fan(self, ctx: mesh.Context, job: Job) -> int:
        """All steps at once, of which as many run as there are threads."""
        parts = {f"{n}": ctx.step(f"part-{n}", self.slow_part, n) for n in range(1, job.steps + 1)}
        return len((await ctx.gather(parts)).require())


def serve(config: dict[str, Any]) -> None:
    stub = Stub(config)

    async def build(ctx: mesh.Context, job: Job) -> dict[str, Any]:
        return await stub.build(ctx, job)

    async def fan(ctx: mesh.Context, job: Job) -> int:
        return await stub.fan(ctx, job)

    timeout_ms = config.get("request_timeout_ms", 5000)
    agent = Agent(
        config.get("endpoint", "coder"),
        [mesh.durable(build), mesh.durable(fan)],
        gateway=config["gateway"],
        lease_ms=1000,
        policy={"retry": {"initial_ms": 50, "max_attempts": 500}, "request_timeout_ms": timeout_ms},
        mode=config.get("mode", "push"),
        threads=config.get("threads", 16),
    )
    agent.run(port=config["port"])


def main() -> None:
    config = json.loads(Path(sys.argv[1]).read_text())
    if config["port"] == 0:
        config["port"] = lasting_port()
    stopping: list[int] = []
    child = 0

    def stop(number: int, frame: Any) -> None:
        stopping.append(number)
        if child:
            os.kill(child, signal.SIGTERM)

    while not stopping:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            serve(config)
            os._exit(0)
        signal.signal(signal.SIGTERM, stop)
        Path(config["directory"], f"agent{config.get('tag', '')}.pid").write_text(str(child))
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
