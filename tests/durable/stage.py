"""Real processes for the kill tests: a gateway that comes back, stub agents, the referee's file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import mesh
from mesh.clock import pause
from tests.agents.serving import until
from tests.agents.test_real_gateway import Dev
from tests.agents.test_registration import ROOT
from tests.durable.conftest import known
from tests.durable.stub_agent import Job


class Phoenix(Dev):
    """`mesh dev` that is started again whenever it was killed, as a supervisor would."""

    def __init__(self, directory: Path, pid_file: Path) -> None:
        super().__init__(directory)
        self._pid_file = pid_file
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self.deaths = 0

    def __enter__(self) -> Self:
        self.start()
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.join(30)
        self.stop()

    def start(self) -> None:
        super().start()
        assert self.child is not None
        self._pid_file.write_text(str(self.child.pid))

    def _watch(self) -> None:
        while not self._over.is_set():
            assert self.child is not None
            if self.child.poll() is not None:
                self.deaths += 1
                self.start()
            pause(0.02)


class Stage:
    """A directory with a gateway, stub agents and the referee's file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.gateway = Phoenix(directory / "data", directory / "gateway.pid")
        self._agents: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self.gateway.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for agent in self._agents:
            agent.terminate()
        for agent in self._agents:
            try:
                agent.wait(20)
            except subprocess.TimeoutExpired:
                agent.kill()
        self.gateway.__exit__()

    def agent(self, *, tag: str = "", **config: Any) -> None:
        """Start a stub agent; it is registered when this returns."""
        config |= {"directory": str(self.directory), "gateway": self.gateway.url, "tag": tag}
        config.setdefault("port", 0)
        path = self.directory / f"agent{tag}.json"
        path.write_text(json.dumps(config))
        env = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
        with (self.directory / f"agent{tag}.log").open("wb") as log:
            self._agents.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.durable.stub_agent", str(path)],
                    cwd=ROOT,
                    env=env | {"PYTHONPATH": str(ROOT)},
                    stdout=log,
                    stderr=log,
                )
            )
        until(lambda: "is registered" in self.log(tag) or known(self.gateway, config.get("endpoint", "coder")), 20)

    def log(self, tag: str = "") -> str:
        path = self.directory / f"agent{tag}.log"
        return path.read_text() if path.exists() else ""

    def signal_agent(self, number: signal.Signals, tag: str = "") -> None:
        os.kill(int((self.directory / f"agent{tag}.pid").read_text()), number)

    def effects(self) -> list[dict[str, Any]]:
        path = self.directory / "effects"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def kills(self) -> int:
        """How many SIGKILLs have fallen."""
        return len(list(self.directory.glob("*.killed")))


def ledger(effects: list[dict[str, Any]]) -> tuple[int, int, Counter[str]]:
    """Useful tokens (the first effect under each key), wasted ones, and how often each step took effect."""
    counts = Counter[str](effect["step"] for effect in effects)
    keys = {effect["key"] for effect in effects}
    useful = 1000 * len(keys)
    return useful, sum(effect["tokens"] for effect in effects) - useful, counts


def start(
    client: mesh.SyncClient, job: Job, endpoint: str = "coder", operation: str = "build"
) -> mesh.client.SyncOperationHandle[Any]:
    return client.start(endpoint, endpoint, operation, asdict(job))
