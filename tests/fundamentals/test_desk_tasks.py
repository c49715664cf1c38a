"""Work of the desk (gateway/pull) that a stopping gateway cancels before its first step."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from inspect import CORO_CLOSED, getcoroutinestate
from pathlib import Path

import pytest

from mesh.store.embedded import EmbeddedStore
from mesh.store.link import Link
from tests.fundamentals.registering import Start, gateways


@pytest.fixture
async def start(link: Link, embedded: EmbeddedStore, tmp_path: Path) -> AsyncIterator[Start]:
    async with gateways(embedded, tmp_path) as start_one:
        yield start_one


async def nothing() -> None: ...


async def test_what_never_began_is_closed(start: Start) -> None:
    desk = (await start()).mesh.desk
    work, before = nothing(), set(desk._tasks)
    desk._spawn(work)
    (task,) = desk._tasks - before
    task.cancel()
    await asyncio.wait({task})
    assert getcoroutinestate(work) == CORO_CLOSED
    del work, task
    gc.collect()  # warnings are errors


async def test_one_that_fails_stops_nobody_and_is_told(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> None:
        raise LookupError("as meant")

    desk = (await start()).mesh.desk
    before = set(desk._tasks)
    desk._spawn(broken())
    await asyncio.wait(desk._tasks - before)
    assert "the desk failed" in caplog.text
    assert "as meant" in caplog.text
