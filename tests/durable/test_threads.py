"""Coroutines that were made and that nobody will await, in threads above all: closed, whoever comes first (P265)."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from inspect import CORO_CLOSED, CORO_SUSPENDED, getcoroutinestate
from typing import Any

import pytest

import mesh
from mesh import testing
from mesh.agent.durable.functions import in_thread
from mesh.clock import sleep

WAIT_S = 30


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


class Source:
    """A plain function that gives `value` when it is let go."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.go = threading.Event()

    def __call__(self) -> Any:
        assert self.go.wait(WAIT_S)
        return self.value


async def answer() -> int:
    await sleep(0)
    return 7


async def left_before_its_end(threads: ThreadPoolExecutor, source: Source) -> None:
    """Cancelled first, then the thread gives its value."""
    task = asyncio.create_task(in_thread(threads, source))
    await sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    source.go.set()
    threads.shutdown(wait=True)


async def left_before_the_loop_knows(threads: ThreadPoolExecutor, source: Source) -> None:
    """The thread has ended, the loop has not looked yet."""
    task = asyncio.create_task(in_thread(threads, source))
    await sleep(0)
    source.go.set()
    threads.shutdown(wait=True)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def left_before_it_is_awaited(threads: ThreadPoolExecutor, source: Source) -> None:
    """The loop has the value, the task gets its turn next."""
    task = asyncio.create_task(in_thread(threads, source))
    await sleep(0)
    source.go.set()
    threads.shutdown(wait=True)
    asyncio.get_running_loop().call_soon(task.cancel)  # the result's callback stands before it
    with pytest.raises(asyncio.CancelledError):
        await task


orders = pytest.mark.parametrize(
    "leave", [left_before_its_end, left_before_the_loop_knows, left_before_it_is_awaited], ids=lambda it: it.__name__
)


@orders
async def test_a_coroutine_that_nobody_awaits_is_closed(leave: Callable[..., Any], threads: ThreadPoolExecutor) -> None:
    source = Source(answer())
    await leave(threads, source)
    assert getcoroutinestate(source.value) == CORO_CLOSED
    del source
    gc.collect()  # warnings are errors


@orders
async def test_what_belongs_to_others_is_left_alone(leave: Callable[..., Any], threads: ThreadPoolExecutor) -> None:
    begun = answer()
    begun.send(None)
    await leave(threads, Source(begun))
    assert getcoroutinestate(begun) == CORO_SUSPENDED
    begun.close()


@orders
async def test_a_future_is_left_alone(leave: Callable[..., Any], threads: ThreadPoolExecutor) -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    await leave(threads, Source(future))
    assert not future.done()


async def test_what_a_thread_gives_is_awaited(threads: ThreadPoolExecutor) -> None:
    assert await in_thread(threads, answer) == 7
    assert await in_thread(threads, lambda: 8) == 8


async def note(what: str) -> str:
    return what


def test_a_late_source_owes_nothing(threads: ThreadPoolExecutor) -> None:
    """Its thread asks for a step while the handler ends: neither this nor that step is a fault of the handler."""
    go, asked = threading.Event(), threading.Event()

    @mesh.durable
    async def handler(ctx: mesh.Context) -> dict[str, Any]:
        def slow() -> Any:
            assert go.wait(WAIT_S)
            made = ctx.step("slow", note, "slow")
            asked.set()
            return made

        async def torn() -> None:
            after = ctx.step("after", note, "after")
            await ctx.step("never", sleep, 3600)
            await after

        gathered = await ctx.gather({"quick": ctx.step("quick", note, "quick"), "slow": slow, "torn": torn}, quorum=1)
        go.set()
        assert asked.wait(WAIT_S)
        return gathered.results

    assert testing.run(handler).result == {"quick": "quick"}
    gc.collect()


def test_a_kept_source_owes_nothing() -> None:
    @mesh.durable
    async def handler(ctx: mesh.Context) -> dict[str, Any]:
        async def slow() -> None:
            after = ctx.step("after", note, "after")
            await ctx.step("never", sleep, 3600)
            await after

        gathered = await ctx.gather({"quick": ctx.step("quick", note, "q"), "slow": slow}, quorum=1, late="keep")
        return gathered.results

    assert testing.run(handler).result == {"quick": "q"}
    gc.collect()


def test_an_attempt_that_ends_leaves_no_step_unawaited() -> None:
    """Suspended between the making of a step and its turn; canceled there."""

    @mesh.durable
    async def handler(ctx: mesh.Context) -> str:
        later = ctx.step("later", note, "later")
        await ctx.sleep(3600)
        return await later

    for run in testing.interrupted(handler):
        assert run.result == "later"
    assert testing.run(handler, cancel_after_s=60).state == "canceled"
    gc.collect()


def test_a_forgotten_step_is_still_told() -> None:
    @mesh.durable
    async def handler(ctx: mesh.Context) -> None:
        async def source() -> None:
            ctx.step("forgotten", note, "x")  # pyright: ignore[reportUnusedCoroutine]

        await ctx.gather({"source": source})

    with pytest.raises(Exception, match="without awaiting step gather#1/source/forgotten#1"):
        testing.run(handler)


def test_a_thread_that_outlives_its_loop_is_told() -> None:
    go, told = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    @mesh.durable
    def handler(ctx: mesh.SyncContext) -> dict[str, Any]:
        def slow() -> None:
            assert go.wait(WAIT_S)
            try:
                ctx.step("slow", note, "slow")
            except BaseException as error:
                errors.append(error)
                raise
            finally:
                told.set()

        return ctx.gather({"quick": lambda: ctx.step("quick", note, "q"), "slow": slow}, quorum=1).results

    assert testing.run(handler).result == {"quick": "q"}
    go.set()
    assert told.wait(WAIT_S)
    assert "closed" in str(errors[0])
    errors.clear()
    gc.collect()
