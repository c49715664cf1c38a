"""The stub agent of the kill tests, a process of its own: `python -m tests.durable.stub_agent CONFIG.json`.

Forks the agent proper, so that one that was killed is back in a moment. Every real effect is a line in a file, the
referee: `{"key", "step", "pid", "tokens"}`. `kills` in the configuration say where SIGKILL falls, each once:
`{"step": 7, "when": "before" | "middle" | "after", "whom": "agent" | "gateway"}`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import mesh
from mesh.agent import Agent
from mesh.agent.server import bind
from mesh.clock import sleep

TOKENS = 1000


class Stub:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.directory = Path(config["directory"])
        self.tag = config.get("tag", "")

    def kill(self, step: int, when: str) -> None:
        """Die, or kill the gateway, if it is this point's turn."""
        for number, kill in enumerate(self.config.get("kills", [])):
            if (kill["step"], kill["when"]) != (step, when):
                continue
            try:
                (self.directory / f"killed-{number}").touch(exist_ok=False)
            except FileExistsError:
                continue
            if kill["whom"] == "agent":
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                os.kill(int((self.directory / "gateway.pid").read_text()), signal.SIGKILL)

    def effect(self, step: str, key: str) -> None:
        """Something real, that nothing takes back."""
        line = json.dumps({"key": key, "step": step, "pid": os.getpid(), "tokens": TOKENS, "tag": self.tag})
        with (self.directory / "effects").open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    async def part(self, number: int, key: str) -> dict[str, int]:
        self.kill(number, "before")
        self.effect(f"part-{number}", key)
        self.kill(number, "middle")
        await sleep(self.config.get("step_s", 0.02))
        return {"number": number, "tokens": TOKENS}

    async def build(self, ctx: mesh.Context, steps: int) -> dict[str, Any]:
        """The background coding agent of features.md 2.1: so many steps of a thousand tokens each."""
        tokens = 0
        for number in range(1, steps + 1):
            tokens += (await ctx.step(f"part-{number}", self.part, number))["tokens"]
            await ctx.progress(f"{number} of {steps}", percent=100 * number / steps)
            self.kill(number, "after")
        return {"tokens": tokens, "attempt": ctx.attempt}


def serve(config: dict[str, Any]) -> None:
    stub = Stub(config)

    async def build(ctx: mesh.Context, steps: int) -> dict[str, Any]:
        return await stub.build(ctx, steps)

    agent = Agent(
        "coder",
        [mesh.durable(build)],
        gateway=config["gateway"],
        lease_ms=1000,
        policy={"retry": {"initial_ms": 50, "max_attempts": 500}, "request_timeout_ms": 5000},
        mode=config.get("mode", "push"),
    )
    agent.run(port=config["port"])


def main() -> None:
    config = json.loads(Path(sys.argv[1]).read_text())
    if config["port"] == 0:
        with bind("127.0.0.1", 0) as listener:
            config["port"] = listener.getsockname()[1]
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
