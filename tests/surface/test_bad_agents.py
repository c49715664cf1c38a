"""Agents that hang, drip, talk nonsense or too much."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from mesh.clock import sleep
from tests.surface.actors import Actor, Call, Reply, as_json, handler_error, started
from tests.surface.gateways import ASYNC, Caller

QUICK = {"retry": {"initial_ms": 10, "jitter": 0}, "breaker": {"failures": 0}}


async def _silence(call: Call, writer: asyncio.StreamWriter) -> None:
    with suppress(asyncio.CancelledError, OSError):
        await asyncio.get_running_loop().create_future()


async def _drip(call: Call, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    with suppress(OSError):
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await sleep(0.05)


async def _endless(call: Call, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 424 Failed\r\ntransfer-encoding: chunked\r\n\r\n")
    with suppress(OSError):
        while not writer.is_closing():
            writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            await writer.drain()


class TestBadAgents:
    @pytest.mark.parametrize("behaviour", [_silence, _drip], ids=["hangs", "drips"])
    async def test_out_of_time(self, caller: Caller, agent: Actor, behaviour: Callable[..., Any]) -> None:
        """P99: one request has `request_timeout_ms`, to the last byte; then the next attempt."""
        agent.script = behaviour
        name = await caller.register(agent.url, policy=QUICK | {"request_timeout_ms": 300})
        operation = await caller.begin(name)
        call = await agent.until(1)
        assert call["request-timeout"] == "300ms"
        second = await agent.until(2)
        assert 0.25 <= second.at_s - call.at_s <= 9
        agent.replies(as_json("at last"))
        await caller.until(operation, state="succeeded")
        assert (
            "UPSTREAM_TIMEOUT"
            in next(e for e in await caller.events(operation) if e["type"] == "attempt_failed")["error"]
        )

    async def test_a_policy_that_became_more_patient(self, caller: Caller, agent: Actor) -> None:
        """P99: work accepted before keeps the time its lease was made for."""
        name = await caller.register(None, policy=QUICK | {"request_timeout_ms": 200})
        await caller.begin(name)
        spec = {"target": {"kind": "http", "url": agent.url}, "policy": QUICK | {"request_timeout_ms": 60_000}}
        assert (await caller.ask("PUT", f"/v1/endpoints/{name}", (), spec)).status == 200
        assert (await agent.until(1))["request-timeout"] == "200ms"
        await caller.begin(name)
        assert (await agent.until(2))["request-timeout"] == "60000ms"

    async def test_v1_may_name_the_time_of_a_request(self, caller: Caller, agent: Actor) -> None:
        """P99."""
        agent.script = _silence
        name = await caller.register(agent.url, policy=QUICK)
        await caller.v1(name, [ASYNC], timeouts={"request_timeout_ms": 200})
        first, second = await agent.until(1), await agent.until(2)
        assert first["request-timeout"] == "200ms"
        assert 0.15 <= second.at_s - first.at_s <= 9

    @pytest.mark.parametrize(
        "reply",
        [
            b"garbage\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01",
            b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort",
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nab",
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\nab",
            b"HTTP/1.1 101 Up\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            b"",
        ],
        ids=["garbage", "tls", "short", "two-lengths", "both-framings", "bad-chunk", "encoded", "upgrade", "closes"],
    )
    async def test_no_http(self, caller: Caller, agent: Actor, reply: bytes) -> None:
        """P98: the attempt failed, the next one may be better."""
        agent.replies(reply, as_json("well"))
        answer = await caller.nexus(await caller.register(agent.url, policy=QUICK))
        assert (answer.status, answer.json) == (200, "well")
        assert agent.calls[-1].attempt == 2

    async def test_a_body_that_ends_with_the_connection(self, caller: Caller, agent: Actor) -> None:
        """P98: legal HTTP; what came counts."""
        agent.replies(Reply(200, b'"all"', {"content-type": "application/json"}, length=False))
        assert (await caller.nexus(await caller.register(agent.url, policy=QUICK))).json == "all"

    @pytest.mark.parametrize("how", ["declared", "endless", "header"])
    async def test_too_large(self, caller: Caller, agent: Actor, how: str) -> None:
        """P98: an answer over the limit fails the operation, for it would be as large the next time."""
        if how == "declared":
            agent.replies(Reply(424, b"x" * (2 * 1024 * 1024 + 1)))
        elif how == "endless":
            agent.script = _endless
        else:
            agent.replies(Reply(200, b"x", {"x": "x" * 70_000}))
        answer = await caller.nexus(await caller.register(agent.url, policy=QUICK), headers={"prefer": "wait=10"})
        assert (answer.status, answer["mesh-failure-source"]) == (424, "gateway")
        assert answer.json["metadata"]["reason"] == "result_too_large"
        assert len(agent.calls) == 1

    async def test_the_largest_result(self, caller: Caller, agent: Actor) -> None:
        """P2: 2 MiB pass."""
        agent.replies(Reply(200, b"x" * (2 * 1024 * 1024)))
        assert len((await caller.nexus(await caller.register(agent.url))).body) == 2 * 1024 * 1024

    async def test_a_token_that_fits_no_header(self, caller: Caller, agent: Actor) -> None:
        """P98: over 4096 bytes the operation fails (case 86)."""
        agent.replies(started("t" * 4097))
        answer = await caller.nexus(await caller.register(agent.url))
        assert (answer.status, answer.json["metadata"]["reason"]) == (424, "token_too_long")
        agent.replies(started("t" * 4096))
        assert (await caller.nexus(await caller.register(agent.url), headers=[ASYNC])).status == 201

    async def test_a_mislabelled_body_is_passed_as_it_is(self, caller: Caller, agent: Actor) -> None:
        """P10: the mesh reads no results."""
        agent.replies(Reply(200, b"{no json", {"content-type": "application/json"}))
        answer = await caller.nexus(await caller.register(agent.url))
        assert (answer.status, answer.body, answer["content-type"]) == (200, b"{no json", "application/json")

    async def test_a_redirect_is_not_followed(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        """P43."""
        agent.replies(Reply(307, headers={"location": receiver.url + "/x"}), as_json(1))
        await caller.nexus(await caller.register(agent.url, policy=QUICK))
        assert receiver.calls == []

    async def test_headers_of_the_connection_stay_here(self, caller: Caller, agent: Actor) -> None:
        """P13: hop-by-hop and cookies are no part of an error that passes."""
        reply = handler_error(404, "NOT_FOUND")
        reply.headers += [("set-cookie", "a=b"), ("server", "x"), ("connection", "close"), ("x-kept", "1")]
        agent.replies(reply)
        answer = await caller.nexus(await caller.register(agent.url))
        names = {name for name, _ in answer.headers}
        assert (answer.status, answer["x-kept"]) == (404, "1")
        assert not names & {"set-cookie", "server"}
