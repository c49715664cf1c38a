"""The desk (gateway/pull): its work that a stopping gateway cancels before its first step, and what it remembers."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from inspect import CORO_CLOSED, getcoroutinestate
from pathlib import Path

import pytest

from gateway.orders import fetched_head, fresh_head
from gateway.pull import desk as desks
from gateway.pull.window import Poll, Window
from mesh.clock import now_ms
from mesh.ids import operation_id
from mesh.machine import Kind
from mesh.store.embedded import EmbeddedStore
from mesh.store.layout import Request
from mesh.store.link import Link
from mesh.store.verbs import Accepted, Start, Work
from mesh.tokens import Claim
from tests.fundamentals.registering import Start as StartOne
from tests.fundamentals.registering import gateways


@pytest.fixture
async def start(link: Link, embedded: EmbeddedStore, tmp_path: Path) -> AsyncIterator[StartOne]:
    async with gateways(embedded, tmp_path) as start_one:
        yield start_one


async def nothing() -> None: ...


async def test_what_never_began_is_closed(start: StartOne) -> None:
    desk = (await start()).mesh.desk
    work, before = nothing(), set(desk._tasks)
    desk._spawn(work)
    (task,) = desk._tasks - before
    task.cancel()
    await asyncio.wait({task})
    assert getcoroutinestate(work) == CORO_CLOSED
    del work, task
    gc.collect()  # warnings are errors


async def test_one_that_fails_stops_nobody_and_is_told(start: StartOne, caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> None:
        raise LookupError("as meant")

    desk = (await start()).mesh.desk
    before = set(desk._tasks)
    desk._spawn(broken())
    await asyncio.wait(desk._tasks - before)
    assert "the desk failed" in caplog.text
    assert "as meant" in caplog.text


def work() -> Work:
    one, at_ms = operation_id(), now_ms()
    head = fresh_head(Start(one, "team", "e-1", "", "", "g1.s-1"), Accepted(at_ms, 1, "", fetched=True))
    return Work(one, Kind.START, fetched_head(head, "i-1", 60_000), Request("s", "", "o", "application/json"), b"1", 0)


async def test_the_tokens_it_remembers_have_a_limit(start: StartOne, monkeypatch: pytest.MonkeyPatch) -> None:
    """P288: with more they are forgotten, and as good: their MAC says the same."""
    most, count = 8, 20
    monkeypatch.setattr(desks, "HANDED_MAX", most)
    desk = (await start()).mesh.desk
    window = Window("e-1")
    poll = Poll(window, "i-1", count, 60_000, frozenset(), "", booked=True)
    window.add(poll)
    poll.promise(count)
    handed: dict[str, Claim] = {}
    for _ in range(count):
        desk.hand(poll, work(), now_ms())
        handed |= desk.handed
        assert len(desk.handed) <= most
    desk.close(poll, gone=False)
    assert len(handed) == len(poll.tasks) == count
    assert {token: desk._tokens.check(token, now_ms() / 1000) for token in handed} == handed
