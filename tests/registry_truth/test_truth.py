"""The registry tells the truth while processes die, hang, come and go: one gateway, agents without the SDK, real time.

Each test prints the states that the registry showed, with the seconds at which they came (`pytest -rA`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from mesh.clock import monotonic_s, pause
from tests.agents.test_real_gateway import Dev
from tests.agents.test_registration import ROOT

TTL_MS = 1_500
PROBE = {"every_ms": 500, "timeout_ms": 300, "failures": 2}
QUIET = {"every_ms": 0}
FOR_EVER = {"request_timeout_ms": 1_000, "retry": {"initial_ms": 100, "max_ms": 200}}


class Stub:
    """One agent process."""

    def __init__(self, directory: Path, dev: Dev, endpoint: str, instance: str, version: str = "") -> None:
        self.directory = directory / f"{endpoint}-{instance}"
        self.directory.mkdir()
        self.instance = instance
        config = {
            "directory": str(self.directory), "gateway": dev.url, "endpoint": endpoint, "instance": instance,
            "version": version, "port": 0, "ttl_ms": TTL_MS,
        }  # fmt: skip
        self.config = self.directory / "config.json"
        self.config.write_text(json.dumps(config))
        self.mode("ok")
        self.process: subprocess.Popen[bytes] | None = None

    def mode(self, mode: str) -> None:
        fresh = self.directory / "mode.new"
        fresh.write_text(mode)
        fresh.replace(self.directory / "mode")

    def start(self) -> None:
        (self.directory / "ready").unlink(missing_ok=True)
        env = os.environ | {"PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1"}
        command = [sys.executable, "-m", "tests.registry_truth.stub", str(self.config)]
        self.process = subprocess.Popen(command, cwd=ROOT, env=env)
        within((self.directory / "ready").exists, 15)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def calls(self) -> list[dict[str, Any]]:
        path = self.directory / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def within(check: Any, seconds: float = 30.0) -> Any:
    end_s = monotonic_s() + seconds
    while not (found := check()):
        assert monotonic_s() < end_s, f"never came true: {check}"
        pause(0.02)
    return found


class Registry:
    """The registry of one endpoint as its owner sees it. `seen`: (seconds, instance, health, why), each change once."""

    def __init__(self, dev: Dev, name: str, directory: Path) -> None:
        self.name = name
        self.http = httpx.Client(base_url=dev.url, trust_env=False, timeout=10)
        self.seen: list[tuple[float, str, str, str]] = []
        self._began_s = monotonic_s()
        self._dev, self._directory = dev, directory
        self._stubs = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for at_s, instance, health, why in self.seen:
            sys.stdout.write(f"{self.name}: {at_s:6.2f} s  {instance:7} {health:8} {why}\n")
        self._stubs.close()
        self.http.close()

    def put(self, **policy: Any) -> None:
        reply = self.http.put(f"/v1/endpoints/{self.name}", json={"policy": FOR_EVER | {"probe": QUIET} | policy})
        assert reply.status_code in (200, 201), reply.text

    def stub(self, instance: str, version: str = "") -> Stub:
        stub = Stub(self._directory, self._dev, self.name, instance, version)
        stub.start()
        self._stubs.callback(stub.kill)
        return stub

    def look(self) -> dict[str, dict[str, Any]]:
        record = self.http.get(f"/v1/endpoints/{self.name}").json()
        instances = {one["id"]: one for one in record["instances"]}
        for name, one in instances.items():
            last = next((row for row in reversed(self.seen) if row[1] == name), None)
            if last is None or last[2:] != (one["health"], one["health_why"]):
                self.seen.append((monotonic_s() - self._began_s, name, one["health"], one["health_why"]))
        return instances

    def until(self, instance: str, health: str, seconds: float = 30.0) -> dict[str, Any]:
        return within(lambda: (one := self.look().get(instance)) and one["health"] == health and one, seconds)

    def healths(self, instance: str) -> list[str]:
        """Without repeats in a row."""
        found = [health for _, name, health, _ in self.seen if name == instance]
        return [health for at, health in enumerate(found) if not at or found[at - 1] != health]

    def start(self, wait_s: int = 5, **body: Any) -> dict[str, Any]:
        order = {"endpoint": self.name, "service": "s", "operation": "run", "input": 1} | body
        prefer = f"wait={wait_s}" if wait_s else "respond-async"
        reply = self.http.post("/v1/operations", json=order, headers={"prefer": prefer})
        assert reply.status_code in (200, 202), reply.text
        return reply.json()

    def get(self, operation: str) -> dict[str, Any]:
        return self.http.get(f"/v1/operations/{operation}").json()

    def versions(self) -> dict[str, dict[str, Any]]:
        return {one["version"]: one for one in self.http.get(f"/v1/endpoints/{self.name}/versions").json()["items"]}


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    dev = Dev(tmp_path_factory.mktemp("truth") / "data")
    dev.start()
    yield dev
    dev.stop()


@contextmanager
def registry(dev: Dev, name: str, directory: Path, **policy: Any) -> Iterator[Registry]:
    with Registry(dev, name, directory) as found:
        found.put(**policy)
        yield found


def test_one_that_hangs_is_suspect_while_its_heartbeats_go_on(dev: Dev, tmp_path: Path) -> None:
    """P302, P304: it takes connections and says nothing; work goes to the other one until it answers again."""
    with registry(dev, "hanging", tmp_path, probe=PROBE) as found:
        sound, hangs = found.stub("sound"), found.stub("hangs")
        hangs.mode("hang")
        suspect = found.until("hangs", "suspect")
        assert suspect["health_why"].startswith("its probe fails: ")
        assert suspect["checks"]["probe"]["state"] == "failing"
        assert suspect["lease_until"] > suspect["health_since"]
        before = len(hangs.calls())
        assert {found.start()["result"] for _ in range(5)} == {"sound"}
        assert (len(hangs.calls()), len(sound.calls()) >= 5) == (before, True)
        hangs.mode("ok")
        assert found.until("hangs", "healthy")["health_why"] == "its lease is kept up"
        assert found.healths("hangs") == ["healthy", "suspect", "healthy"]
        assert set(found.healths("sound")) == {"healthy"}


def test_one_that_answers_health_and_fails_its_canary(dev: Dev, tmp_path: Path) -> None:
    """P306, P307: only a real operation tells; canaries are marked, and in nobody's list unless they are asked for."""
    canary = {"service": "s", "operation": "run", "input": "tweet", "every_ms": 500, "timeout_ms": 1_000}
    with registry(dev, "canary", tmp_path, probe=PROBE, canaries=[canary]) as found:
        spec = {"services": [{"name": "other"}], "policy": {"canaries": [canary]}}
        refused = found.http.put("/v1/endpoints/canary", json=spec)
        assert (refused.status_code, "s/run, which is not listed" in refused.text) == (422, True)
        found.stub("sound")
        sick = found.stub("sick")
        within(lambda: any(call["canary"] for call in sick.calls()))
        assert next(call for call in sick.calls() if call["canary"]) | {"id": ""} == {
            "id": "", "canary": "1", "input": '"tweet"',
        }  # fmt: skip
        sick.mode("sick")
        suspect = found.until("sick", "suspect")
        assert "its canary of s fails: s/run failed: the disk is full (operation " in suspect["health_why"]
        probe = suspect["checks"].get("probe")
        assert probe is None or probe["state"] == "passing"
        assert {found.start()["result"] for _ in range(5)} == {"sound"}
        listed = found.http.get("/v1/operations", params={"endpoint": "canary"}).json()["items"]
        assert (len(listed), any("canary" in one for one in listed)) == (5, False)
        tested = found.http.get("/v1/operations", params={"endpoint": "canary", "canary": "true"}).json()["items"]
        assert {"sound", "sick"} == {one["canary"]["instance"] for one in tested}
        sick.mode("ok")
        found.until("sick", "healthy")
        assert found.healths("sick") == ["healthy", "suspect", "healthy"]


def test_one_that_comes_and_goes_is_suspect_until_it_stays(dev: Dev, tmp_path: Path) -> None:
    """P305: each start looks like a healthy instance; the third within the window does not."""
    with registry(dev, "flapping", tmp_path, flapping={"arrivals": 3, "within_ms": 6_000}) as found:
        found.stub("steady")
        flaps = found.stub("flaps")
        assert found.until("flaps", "healthy")
        for _ in range(2):
            flaps.kill()
            flaps.start()
            found.look()
        suspect = found.until("flaps", "suspect")
        assert suspect["health_why"] == "it came and went 3 times or more within 6000 ms"
        assert {found.start()["result"] for _ in range(5)} == {"steady"}
        found.until("flaps", "healthy")
        assert found.healths("flaps") == ["healthy", "suspect", "healthy"]


def test_one_that_dies_while_it_drains(dev: Dev, tmp_path: Path) -> None:
    """P309, P311, P313: what it had goes to another version; who still runs on the old one is shown till the end."""
    with registry(dev, "draining", tmp_path) as found:
        old = found.stub("old", "3")
        old.mode("long")
        kept = found.start(wait_s=0)["id"]
        found.until("old", "healthy")
        within(lambda: found.versions()["3"]["running"] == 1)
        found.stub("new", "4")
        reply = found.http.post("/v1/endpoints/draining/versions/3/drain")
        assert reply.status_code == 200, reply.text
        draining = found.until("old", "draining")
        assert draining["health_why"] == "version '3' drains"
        three = found.versions()["3"]
        assert (three["running"], three["share_percent"], three["draining_since"]) == (1, 0.0, draining["health_since"])
        assert {found.start()["result"] for _ in range(5)} == {"new"}
        old.kill()
        offline = found.until("old", "offline")
        assert "and it was draining since" in offline["health_why"]
        within(lambda: found.get(kept)["state"] == "succeeded")
        assert (found.get(kept)["result"], found.versions()["3"]["running"]) == ("new", 0)
        assert found.healths("old") == ["healthy", "draining", "offline"]


def test_pinned_work_waits_for_its_version(dev: Dev, tmp_path: Path) -> None:
    """P310, P312: the record says why; shares divide what is not pinned."""
    with registry(dev, "pinned", tmp_path) as found:
        found.stub("a", "1")
        waits = found.start(wait_s=0, version="2")
        assert (waits["version"], waits["blocked"]) == ("2", "no_version")
        assert "no live instance of version '2'" in waits["blocked_why"]
        assert found.versions()["2"]["waiting"] == 1
        assert found.start()["result"] == "a"
        share = {"percent": 0}
        assert found.http.put("/v1/endpoints/pinned/versions/2", json=share).status_code == 200
        found.stub("b", "2")
        within(lambda: found.get(waits["id"])["state"] == "succeeded")
        assert found.get(waits["id"])["result"] == "b"
        assert {found.start()["result"] for _ in range(8)} == {"a"}
        headers = {"mesh-version": "2", "prefer": "wait=5"}
        nexus = found.http.post("/nexus/endpoints/pinned/services/s/run", headers=headers)
        assert nexus.json() == "b"
        found.http.put("/v1/endpoints/pinned/versions/2", json={"percent": 25})
        assert {name: one["share_percent"] for name, one in found.versions().items()} == {"1": 75.0, "2": 25.0}


def test_a_registry_that_was_away_takes_nobody_for_dead(dev: Dev, tmp_path: Path) -> None:
    """P300: killed for longer than a lease, it shows who was alive as alive, and only then looks who still is."""
    with registry(dev, "restart", tmp_path) as found:
        alive, mute, dead = found.stub("alive"), found.stub("mute"), found.stub("dead")
        since = found.until("alive", "healthy")["health_since"]
        dead.kill()
        found.until("dead", "offline")
        pause(1)  # when the outage begins is known to half a second, the gateway's beat
        dev.kill()
        mute.mode("mute")
        pause(TTL_MS / 1000 + 1)
        dev.start()
        first = found.look()
        assert {name: one["health"] for name, one in first.items()} == {
            "alive": "healthy", "mute": "healthy", "dead": "offline",
        }  # fmt: skip
        assert first["mute"]["health_why"].startswith("alive when the registry was away from ")
        assert found.until("mute", "offline", 10)["health_why"] == f"no heartbeat for its ttl of {TTL_MS} ms"
        assert found.look()["alive"]["health_since"] == since, "it never left"
        assert found.healths("alive") == ["healthy"]
        assert alive.process is not None
        assert alive.process.poll() is None


def test_one_that_polls_is_judged_by_its_polls(dev: Dev, tmp_path: Path) -> None:
    """P314, P309: told to drain, it is told so with its next poll; resumed, it gets work again."""
    with Registry(dev, "polling", tmp_path) as found:
        spec = {"target": {"kind": "pull"}, "policy": {"probe": PROBE}}
        assert found.http.put("/v1/endpoints/polling", json=spec).status_code == 201

        def poll() -> dict[str, Any]:
            body = {"instance": "laptop", "version": "7", "wait_ms": 50}
            return found.http.post("/v1/endpoints/polling/poll", json=body).json()

        poll()
        assert found.look()["laptop"]["health_why"] == "it asks for work"
        assert found.http.post("/v1/endpoints/polling/instances/laptop/drain").status_code == 204
        assert poll()["draining"] is True
        assert found.until("laptop", "draining")["health_why"] == "it was told to drain"
        assert found.http.post("/v1/endpoints/polling/instances/laptop/resume").status_code == 204
        found.start(wait_s=0)
        assert within(lambda: poll()["tasks"])[0]["operation"] == "run"
