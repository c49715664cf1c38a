"""The demo's stage: its processes and where they are, waiting for what has to happen, killing and starting again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from gateway.demo.caller import Caller
from gateway.demo.fleet import Fleet, Process, free_ports
from gateway.demo.receiver import SECRETS
from gateway.demo.story import Story
from gateway.demo.timeline import DOWN, WORKING, Row
from mesh.clock import monotonic_s, now_ms, sleep
from mesh.ids import secret_bytes

PATIENCE_S: Final = 60.0
"""For any one thing to happen, on a machine that is busy with other things too."""
LOOK_S: Final = 0.03
TEAMS: Final = ("quality", "research")
OWNERS: Final = {"checks": "quality", "retrieval": "research", "reviewer": "research", "coder": "research"}
"""Agent -> the team that runs it."""

_T = TypeVar("_T")


class Trouble(Exception):
    """Something that should have happened did not."""


class Stage:
    """`directory` holds the store's data, the journals, the ledger and the logs."""

    def __init__(self, directory: Path, story: Story, fleet: Fleet) -> None:
        self.state = directory / "journals"
        self.ledger = directory / "callbacks.jsonl"
        self._data = directory / "data"
        self._story = story
        self._fleet = fleet
        gateway_port, receiver_port, *agent_ports = free_ports(2 + len(OWNERS))
        self._ports = dict(zip(OWNERS, agent_ports, strict=True))
        self._gateway_port, self._receiver_port = gateway_port, receiver_port
        self.url = f"http://127.0.0.1:{gateway_port}"
        self.receiver_url = f"http://127.0.0.1:{receiver_port}/done"
        self.keys = {team: secret_bytes(16).hex() for team in TEAMS}
        self.rows = {"gateway": Row("gateway"), "checks": Row("checks agent"), "coder": Row("coder agent")}
        self.processes: dict[str, Process] = {}
        self.killed_ms: dict[str, int] = {}

    # -- processes

    def open(self) -> None:
        """Start the gateway and the agents, all at once: agents find the gateway when it is there."""
        teams = [word for team, key in self.keys.items() for word in ("--namespace", f"{team}={key}")]
        dev = ["-m", "gateway.cli.main", "dev", "--data", str(self._data), "--port", str(self._gateway_port), *teams]
        self.processes["gateway"] = self._fleet.start("gateway", dev)
        for agent, port in self._ports.items():
            arguments = ["-m", "gateway.demo.agents", agent, "--port", str(port), "--state", str(self.state)]
            env = {"MESH_URL": self.url, "MESH_KEY": self.keys[OWNERS[agent]]}
            self.processes[agent] = self._fleet.start(agent, arguments, env)

    async def ready(self, callers: list[Caller]) -> dict[str, Any]:
        """Wait for all of them, start the receiver; what the store promises."""
        store = await self.until("the gateway is ready", callers[0].is_ready)
        self.mark("gateway", WORKING)
        secrets = [await caller.secret() for caller in callers]
        arguments = ["-m", "gateway.demo.receiver", "--port", str(self._receiver_port), "--ledger", str(self.ledger)]
        env = {SECRETS: ",".join(secrets)}
        self.processes["receiver"] = self._fleet.start("receiver", [*arguments, "--lose-first"], env)
        for agent in OWNERS:
            await self.until(f"agent {agent} is registered", lambda agent=agent: callers[0].is_healthy(agent))
        for agent in ("checks", "coder"):
            self.mark(agent, WORKING)
        return store

    def kill(self, name: str, story: str) -> None:
        """SIGKILL."""
        pid = self.processes[name].kill()
        self.killed_ms[name] = self._story.step("KILL -9", f"{story} (process {pid})")
        self.rows[name].from_(self.killed_ms[name], DOWN)

    def start_again(self, name: str) -> None:
        """The same command once more."""
        self.processes[name].start()

    def mark(self, name: str, what: str) -> None:
        """For the timeline."""
        self.rows[name].from_(now_ms(), what)

    # -- waiting

    async def until(self, what: str, look: Callable[[], Awaitable[_T | None]]) -> _T:
        """The first true answer of `look`. Raises Trouble when it takes too long, or a process ended by itself."""
        until_s = monotonic_s() + PATIENCE_S
        while True:
            found = await look()
            if found:
                return found
            for process in self._fleet.fallen():
                raise Trouble(f"while waiting until {what}: {process.name} ended by itself\n{process.tail()}")
            if monotonic_s() > until_s:
                raise Trouble(f"it took more than {PATIENCE_S:.0f} s until {what}")
            await sleep(LOOK_S)
