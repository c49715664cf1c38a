"""P415: large results of steps through a real gateway and real agents: killed, frozen, and with the bytes gone."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from glob import glob
from pathlib import Path
from typing import Any

import httpx
import pytest

import mesh
from tests.agents.serving import until
from tests.agents.test_registration import ROOT
from tests.durable.large_agent import FILE_BYTES, TABLE_BYTES
from tests.surface.gateways import KEYLESS, Gateway

MODES = ("push", "pull")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path_factory.mktemp("gateway"), KEYLESS | {"blobs": {"sweep_ms": 100}})
    gateway.start()
    yield gateway
    gateway.kill()


class Ground:
    """A gateway, agents in processes of their own, and the file that knows what they did."""

    def __init__(self, gateway: Gateway, directory: Path, stack: ExitStack) -> None:
        self.gateway = gateway
        self.directory = directory
        self._stack = stack

    def agent(self, name: str, mode: str, attempts: int = 2) -> subprocess.Popen[bytes]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
        log = self._stack.enter_context((self.directory / "log").open("ab"))
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.durable.large_agent", name, mode, str(self.directory), str(attempts)],
            cwd=ROOT, env=env | {"MESH_URL": self.gateway.url(), "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log,
        )  # fmt: skip
        self._stack.callback(end, child)
        return child

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def effects(self, operation: str) -> Counter[str]:
        return Counter(key.partition("/")[2] for key, _ in self.done(operation))

    def done(self, operation: str) -> list[tuple[str, int]]:
        path = self.directory / "effects"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [(one["key"], one["pid"]) for one in found if one["key"].startswith(f"{operation}.1/")]

    def children(self) -> int:
        """How often any child ran."""
        return (self.directory / "effects").read_text().count('"child"')

    def open(self, gate: str) -> None:
        (self.directory / gate).touch()

    def kept(self, operation: str) -> list[Path]:
        # Not pathlib's: that one fails when the sweep removes what it walks through.
        blobs = self.gateway.directory / "data" / "blobs"
        return [Path(path) for path in glob(f"{blobs}/**/{operation}/*", recursive=True)]  # noqa: PTH207

    def start(self, client: mesh.SyncClient, name: str, what: str = "build", **gates: str) -> Any:
        def started() -> Any:
            try:
                return client.start(name, name, what, gates)
            except mesh.Refusal:
                return None  # its agent is not registered yet

        return until(started, 20)


def end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGCONT)
        child.kill()
    child.wait()


@pytest.fixture
def ground(gateway: Gateway, tmp_path: Path) -> Iterator[Ground]:
    with ExitStack() as stack:
        yield Ground(gateway, tmp_path, stack)


def get(ground: Ground, path: str) -> httpx.Response:
    return httpx.get(ground.gateway.url(path), trust_env=False)


def expected(pid: int) -> dict[str, str]:
    text = str(pid).zfill(16) * (TABLE_BYTES // 16)
    data = pid.to_bytes(8, "big") * (FILE_BYTES // 8)
    found = (hashlib.sha256(text.encode()).hexdigest(), hashlib.sha256(data).hexdigest())
    return {"table": found[0], "file": found[1], "type": "application/x-file"}


@pytest.mark.timeout(120)
def test_killed_with_its_bytes_gone_and_back(ground: Ground) -> None:
    """Neither step is computed again: not after SIGKILL, and not while what it gave is not to be had."""
    with mesh.SyncClient(ground.gateway.url()) as client:
        # The second attempt is the last one that counts.
        agents = {mode: ground.agent(f"large-{mode}", mode) for mode in MODES}
        handles = {mode: ground.start(client, f"large-{mode}", end="end") for mode in MODES}
        pids: dict[str, int] = {}
        for mode, handle in handles.items():
            until(lambda one=handle: ground.effects(one.id)["wait#1"], 20)
            agents[mode].kill()
            agents[mode].wait()
            assert ground.effects(handle.id) == {"table#1": 1, "file#1": 1, "wait#1": 1}
            pids[mode] = ground.done(handle.id)[0][1]
            recorded = history(ground, handle.id)
            shown = {one["name"]: one["result_dataref"] for one in recorded if "result_dataref" in one}
            assert {name: one["bytes"] for name, one in shown.items()} == {"table": TABLE_BYTES + 2, "file": FILE_BYTES}
            raw = get(ground, shown["file"]["url"]).content
            assert hashlib.sha256(raw).hexdigest() == expected(pids[mode])["file"]
        hidden: list[tuple[Path, Path]] = []
        for handle in handles.values():
            (room,) = {path.parent for path in ground.kept(handle.id)}
            hidden.append((room, room.rename(ground.directory / handle.id)))
        for mode in MODES:
            ground.agent(f"large-{mode}", mode)
        for handle in handles.values():
            until(lambda one=handle: failure(one) == "BLOB_MISSING", 20)
            assert handle.get()["state"] == "backing_off"
            assert "table#1" in handle.get()["last_failure"]["message"]
        ground.open("end")
        for room, elsewhere in hidden:
            elsewhere.rename(room)
        for mode, handle in handles.items():
            assert handle.result(timeout_s=60) == expected(pids[mode])
            assert ground.effects(handle.id) == {"table#1": 1, "file#1": 1, "wait#1": 2}
    # They go with their operation.
    for room, _ in hidden:
        os.utime(room, (1, 1))
        ground.gateway.tell_store(f"DEL m:{{00}}:o:{room.name}")
    until(lambda: not any(ground.kept(handle.id) for handle in handles.values()), 20)


@pytest.mark.timeout(120)
def test_children_of_a_killed_parent(ground: Ground) -> None:
    """P440, P442: they are not run again, past their retention neither, and not while what they gave is missing."""
    with mesh.SyncClient(ground.gateway.url()) as client:
        agents = {mode: ground.agent(f"family-{mode}", mode, 10) for mode in MODES}
        handles = {mode: ground.start(client, f"family-{mode}", "family", end="end") for mode in MODES}
        for mode, handle in handles.items():
            until(lambda one=handle: ground.effects(one.id)["wait#1"], 20)
            agents[mode].kill()
            agents[mode].wait()
        hidden: list[tuple[Path, Path]] = []
        for handle in handles.values():
            ended = {one["key"]: one for one in history(ground, handle.id) if one["type"] == "child"}
            sizes = {key.rpartition("/")[2]: one["result_dataref"]["bytes"] for key, one in ended.items()}
            assert sizes == {"table#1": TABLE_BYTES + 2, "file#1": FILE_BYTES}
            assert ground.kept(handle.id) == [], "they stay where the children have them"
            for one in ended.values():
                ground.gateway.tell_store(f"ZADD m:{{00}}:due 1 {one['id']}")  # its retention is over
                (path,) = ground.kept(one["id"])
                hidden.append((path.parent, path.parent.rename(ground.directory / one["id"])))
        before = ground.children()
        for mode in MODES:
            ground.agent(f"family-{mode}", mode, 10)
        for handle in handles.values():
            until(lambda one=handle: failure(one) == "BLOB_MISSING", 20)
            assert "cannot be had" in handle.get()["last_failure"]["message"]
        ground.open("end")
        for room, elsewhere in hidden:
            elsewhere.rename(room)
        for mode, handle in handles.items():
            assert handle.result(timeout_s=60) == expected(agents[mode].pid)
            assert ground.effects(handle.id)["wait#1"] > 1
    assert ground.children() == before


def failure(handle: Any) -> str:
    return handle.get().get("last_failure", {}).get("type", "")


def history(ground: Ground, operation: str) -> list[dict[str, Any]]:
    return get(ground, f"/v1/operations/{operation}/events").json()["items"]


@pytest.mark.timeout(120)
def test_a_zombies_bytes_are_refused(ground: Ground) -> None:
    """P410: who was frozen in its step for longer than its lease keeps nothing; the other's result counts."""
    with mesh.SyncClient(ground.gateway.url()) as client:
        zombie = ground.agent("frozen", "pull", 10)
        handle = ground.start(client, "frozen", table="table", end="end")
        until(lambda: ground.effects(handle.id)["table#1"] == 1, 20)
        zombie.send_signal(signal.SIGSTOP)
        other = ground.agent("frozen", "pull", 10)
        until(lambda: ground.effects(handle.id)["table#1"] == 2, 30)
        ground.open("table")
        until(lambda: ground.effects(handle.id)["wait#1"] == 1, 20)
        zombie.send_signal(signal.SIGCONT)
        until(lambda: "does not count" in ground.log(), 20)
        ground.open("end")
        assert handle.result(timeout_s=30) == expected(other.pid)
        assert {pid for _, pid in ground.done(handle.id)} == {zombie.pid, other.pid}
        assert ground.effects(handle.id) == {"table#1": 2, "file#1": 1, "wait#1": 1}
        late = hashlib.sha256(f'"{str(zombie.pid).zfill(16) * (TABLE_BYTES // 16)}"'.encode()).hexdigest()
        assert late not in {path.name for path in ground.kept(handle.id)}
        assert len(ground.kept(handle.id)) == 2
