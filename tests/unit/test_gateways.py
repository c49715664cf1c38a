"""Several gateways of one mesh: how they are named, and that clients and commands go on with the next (P219)."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import mesh
from mesh.agent import Agent
from mesh.clock import monotonic_s
from mesh.errors import ConfigError
from mesh.gateways import GATEWAYS_MAX, gateways_of
from tests.agents.greeter import greet
from tests.agents.serving import Request, Response, Scripted, answer, serving

ID = "00-0123456789abcdef0123"
RECORD = {"id": ID, "state": "succeeded", "result": 1}


@pytest.fixture(scope="module")
def gone() -> str:
    """A URL at which nobody listens."""
    with serving(Scripted()) as url:
        pass
    return url


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESH_URL", raising=False)


class Gateway(Scripted):
    """Answers what `replies` say, the last one for ever."""

    def __init__(self, *replies: Response) -> None:
        super().__init__(self._reply)
        self.replies = list(replies)

    def _reply(self, _request: Request) -> Response:
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


@pytest.fixture
def draining() -> Iterator[tuple[str, Gateway]]:
    problem = {"detail": "this gateway is ending", "code": "draining", "retryable": True}
    gateway = Gateway(answer(problem, 503, **{"content-type": "application/problem+json", "retry-after": "0"}))
    with serving(gateway) as url:
        yield url, gateway


@pytest.fixture
def good() -> Iterator[tuple[str, Gateway]]:
    with serving(gateway := Gateway(answer(RECORD))) as url:
        yield url, gateway


class TestNames:
    def test_one_and_several(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert gateways_of(None) == ["http://127.0.0.1:7411"]
        assert gateways_of(" http://a/ , http://b,,http://a") == ["http://a", "http://b"]
        assert gateways_of(["http://a,https://b/", "http://c"]) == ["http://a", "https://b", "http://c"]
        monkeypatch.setenv("MESH_URL", "http://a,http://b")
        assert gateways_of(None) == gateways_of("") == ["http://a", "http://b"]
        assert [target.origin for target in Agent("greeter", [greet]).gateways] == ["http://a:80", "http://b:80"]

    @pytest.mark.parametrize("given", ["a", "http://a,b:7411", ",", [","], [f"http://a{n}" for n in range(17)]])
    def test_what_is_no_mesh(self, given: Any) -> None:
        assert GATEWAYS_MAX == 16
        for make in (gateways_of, mesh.SyncClient, lambda url: Agent("greeter", [greet], gateway=url)):
            with pytest.raises(ConfigError):
                make(given)


class TestClients:
    @pytest.mark.parametrize("kind", [mesh.Client, mesh.SyncClient])
    def test_the_next_one_when_one_is_gone_or_not_ready(
        self, kind: Any, gone: str, draining: tuple[str, Gateway], good: tuple[str, Gateway]
    ) -> None:
        url = ",".join([gone, draining[0], good[0]])

        async def ask() -> None:
            async with mesh.Client(url) as client:
                assert await client.call("e", "s", "o") == await client.call("e", "s", "o") == 1

        if kind is mesh.Client:
            asyncio.run(ask())
        else:
            with mesh.SyncClient(url) as client:
                assert client.call("e", "s", "o") == client.call("e", "s", "o") == 1
        assert (len(draining[1].requests), len(good[1].requests)) == (1, 2)
        first, again = draining[1].requests[0], good[1].requests[0]
        assert first.headers["idempotency-key"] == again.headers["idempotency-key"]

    def test_many_at_once_leave_a_dead_gateway_together(self, gone: str, good: tuple[str, Gateway]) -> None:
        """Each of an even number of failures is no step of its own, back to the dead one."""

        async def ask() -> None:
            async with mesh.Client([gone, good[0]], retry_for_s=5) as client:
                await asyncio.gather(*(client.get(ID) for _ in range(20)))
                assert client.at == 1

        asyncio.run(ask())
        assert len(good[1].requests) == 20

    def test_a_stream_goes_on_elsewhere(self, draining: tuple[str, Gateway]) -> None:
        chunks = [b'retry: 10\n\nevent: end\ndata: {"state":"succeeded"}\n\n']
        stream = Gateway(Response(chunks=chunks, headers={"content-type": "text/event-stream"}))
        with serving(stream) as url, mesh.SyncClient(f"{draining[0]},{url}") as client:
            assert list(client.watch(ID)) == []
        assert len(draining[1].requests) == 1


class TestCommands:
    def run(self, url: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gateway.cli.main", *words]
        env = {**os.environ, "MESH_URL": url}
        return subprocess.run(command, env=env, check=False, capture_output=True, text=True, timeout=60)

    def test_the_next_one_when_one_is_gone_or_not_ready(
        self, gone: str, draining: tuple[str, Gateway], good: tuple[str, Gateway]
    ) -> None:
        good[1].replies = [answer({**RECORD, "attempt": 1, "created_at": "2026-01-01T00:00:00Z", "closed_at": None})]
        url = ",".join([gone, draining[0], good[0]])
        done = self.run(url, "operation", "cancel", ID, "--json")
        assert (done.returncode, json.loads(done.stdout)["id"]) == (0, ID), done.stderr
        assert (len(draining[1].requests), len(good[1].requests)) == (1, 1)

    def test_all_of_them_away(self, gone: str, draining: tuple[str, Gateway]) -> None:
        done = self.run(f"{draining[0]},{gone}", "operation", "cancel", ID)
        assert done.returncode == 5
        assert gone in done.stderr
        done = self.run(f"{gone},{draining[0]}", "operation", "cancel", ID)
        assert (done.returncode, "this gateway is ending" in done.stderr) == (5, True)

    def test_a_doctor_looks_at_each(self, gone: str, draining: tuple[str, Gateway]) -> None:
        found = json.loads(self.run(f"{gone},{draining[0]}", "doctor", "--json").stdout)["findings"]
        said = [each["detail"] for each in found if each["check"] == "gateway"]
        assert len(said) == 2
        assert gone in said[0]
        assert draining[0] in said[1]

    def test_waiting_for_an_agent(self, gone: str) -> None:
        offline = {"health": "offline", "health_why": "no instances", "name": "shop"}
        gateway = Gateway(
            answer({"detail": "unknown"}, 404),
            answer({}, 503),
            answer(offline),
            answer({**offline, "health": "healthy"}),
        )
        with serving(gateway) as url:
            done = self.run(url, "endpoint", "wait", "shop")
            assert (done.returncode, "shop is healthy after" in done.stderr) == (0, True)
            assert [each.path for each in gateway.requests] == ["/v1/endpoints/shop"] * 4
            gateway.replies = [answer(offline)]
            done = self.run(url, "endpoint", "wait", "shop", "--timeout", "0.3")
        assert (done.returncode, "shop is offline: no instances" in done.stderr) == (5, True)
        began_s = monotonic_s()
        done = self.run(gone, "endpoint", "wait", "shop", "--timeout", "0.3")
        assert (done.returncode, "connection refused" in done.stderr) == (5, True)
        assert monotonic_s() - began_s < 10
