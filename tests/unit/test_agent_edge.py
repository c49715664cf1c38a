"""The agent behind its own server (mesh/edge): starts that have no task but the handler's own."""

from __future__ import annotations

import asyncio
import socket
from contextvars import ContextVar
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
from nexusrpc.handler import StartOperationContext

from mesh import Agent
from mesh.agent.context import Cancellation, start_context
from mesh.agent.inbound import read_start
from mesh.clock import sleep
from mesh.edge import Answer, HotRoute, Request
from mesh.edge.protocol import Edge
from tests.agents.serving import serving

SEEN: ContextVar[str] = ContextVar("seen", default="nothing")


async def mark(name: str) -> str:
    """What the context had; leaves something in it."""
    found = SEEN.get()
    SEEN.set(name)
    await sleep(0)
    return found


async def refuse(name: str) -> str:
    raise ValueError(name)


def _post(path: str, body: bytes, *more: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", f"content-length: {len(body)}", *more]
    return "\r\n".join([*head, "", ""]).encode() + body


def _exchange(url: str, sent: bytes) -> list[tuple[int, bytes]]:
    """Write all at once and read until the other end closes: status and body of every answer, in order."""
    host, _, port = url.removeprefix("http://").partition(":")
    got = b""
    with socket.create_connection((host, int(port)), timeout=20) as line:
        line.sendall(sent)
        while piece := line.recv(65536):
            got += piece
    parts = [part.partition(b"\r\n\r\n") for part in got.split(b"HTTP/1.1 ")[1:]]
    return [(int(head[:3]), body) for head, _, body in parts]


class TestOneConnection:
    def test_pipelined_starts_keep_their_order_and_their_contexts(self) -> None:
        """P2: what one handler leaves in its context is nothing that the next request begins in."""
        sent = [_post("/shop/mark", b'"%d"' % n) for n in range(8)]
        sent.append(_post("/shop/mark", b'"last"', "connection: close"))
        with serving(Agent("shop", [mark], register=False), http=Edge) as url:
            assert _exchange(url, b"".join(sent)) == [(200, b'"nothing"')] * 9

    def test_what_is_known_at_once_waits_for_its_turn(self) -> None:
        """P43: answers without a handler, an error among them, are no quicker than those before them."""
        paths = ["/shop/mark", "/shop/nobody", "/shop", "/shop/mark", "/shop/refuse"]
        sent = [_post(path, b'"a"') for path in paths] + [_post("/shop/mark", b"{", "connection: close")]
        with serving(Agent("shop", [mark, refuse], register=False), http=Edge) as url:
            assert [status for status, _ in _exchange(url, b"".join(sent))] == [200, 404, 404, 200, 500, 400]


class _Caller:
    """exchange.Sink: keeps the answer."""

    def __init__(self) -> None:
        self.disconnected = False
        self.answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    @property
    def task(self) -> asyncio.Task[Any]:
        raise AssertionError

    def answer(self, answer: Answer) -> None:
        self.answered.set_result(answer)

    async def gone(self) -> None:
        raise AssertionError

    def left(self) -> bool:
        return False

    def let_go(self) -> None:
        raise AssertionError


def _begin(agent: Agent, body: bytes = b'"a"', query: bytes = b"", **headers: str) -> asyncio.Future[Answer]:
    """One start, as the server hands it over."""
    route = agent.hot.find("POST", b"/shop/mark")
    assert isinstance(route, HotRoute)
    assert route.begin is not None
    lines = [(b"content-type", b"application/json")]
    lines += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    caller = _Caller()
    request = Request("POST", b"/shop/mark", query, lines, dict(reversed(lines)), caller)
    request.body = body
    request.render = route.render
    route.begin(request)
    return caller.answered


class TestHandlersTask:
    @pytest.mark.parametrize("mesh", [False, True])
    async def test_cancelled_before_its_first_step(self, *, mesh: bool) -> None:
        """P46: a request is answered also when its handler never ran, and the agent keeps nothing of it."""
        ran: list[str] = []

        async def mark(name: str) -> None:
            ran.append(name)

        agent, before = Agent("shop", [mark], register=False), asyncio.all_tasks()
        query = b"callback=http%3A%2F%2F127.0.0.1%3A9%2Fnexus%2Fcallback" if mesh else b""
        answered = _begin(agent, query=query, nexus_request_id="one", nexus_callback_token="t")
        for task in asyncio.all_tasks() - before:
            task.cancel()
        async with asyncio.timeout(20):
            assert (await answered).status == 503
            # The same id is new work: the error was worth repeating.
            assert (await _begin(agent, query=query, nexus_request_id="one", nexus_callback_token="t")).status == 200
            assert ran == ["a"]
            await agent.end()

    async def test_two_that_wait_for_one_run(self) -> None:
        """P41: both get the one answer; a wait that is over does not hear of it again."""
        agent = Agent("shop", [mark], register=False)
        first, second = (_begin(agent, nexus_request_id="one") for _ in range(2))
        short = _begin(agent, b'"b"', nexus_request_id="two", request_timeout="60s")
        async with asyncio.timeout(20):
            assert {(await first).body, (await second).body, (await short).body} == {b'"nothing"'}
            await agent.end()

    async def test_patience_ends_in_the_order_of_the_starts(self) -> None:
        """P45: 201 for all that still run, whoever came first; the quick one among them has its 200."""
        over = asyncio.Event()

        async def mark(name: str) -> str:
            if name == "slow":
                await over.wait()
            return name

        agent, before = Agent("shop", [mark], register=False, answer_within_ms=50), asyncio.all_tasks()
        query = b"callback=http%3A%2F%2F127.0.0.1%3A9%2Fcallback"
        answers = [_begin(agent, body, query) for body in (b'"slow"', b'"quick"', b'"slow"', b'"slow"')]
        async with asyncio.timeout(20):
            statuses = [(await answer).status for answer in answers]
            assert statuses == [201, 200, 201, 201]
            over.set()
            while left := asyncio.all_tasks() - before:  # their completions: nobody is there to take them
                for task in left:
                    task.cancel()
                await asyncio.wait(left, timeout=0.01)
            await agent.end()


def test_a_context_is_what_its_class_makes_of_the_same() -> None:
    """What nexusrpc makes, field for field, those that are read late too: middleware may replace some of them."""
    raw = [(b"a", b"b"), (b"content-type", b"application/json"), (b"nexus-callback-token", b"t")]
    head = read_start(raw, dict(raw), b"callback=http%3A%2F%2Fh%2Fc")
    given: dict[str, Any] = {
        "service": "s", "operation": "o", "task_cancellation": Cancellation(), "request_deadline": None,
        "request_id": "r", "callback_url": "http://h/c", "inbound_links": [], "outbound_links": [],
    }  # fmt: skip
    late: dict[str, Any] = {"headers": {"a": "b"}, "callback_headers": {"token": "t"}}
    names = {field.name for field in fields(StartOperationContext)}
    assert {*given, *late} == names
    made = start_context(head, dict(given))
    assert {name: getattr(made, name) for name in names} == given | late
    assert made.headers is made.headers
    with pytest.raises(FrozenInstanceError):
        made.headers = {}  # type: ignore[misc]
    other: dict[str, Any] = {"headers": {"c": "d"}, "request_id": "other"}
    changed = replace(made, **other)
    assert {name: getattr(changed, name) for name in names} == given | late | other
