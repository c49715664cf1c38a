"""Coroutines that plain functions give in threads, and whose attempt ends meanwhile: closed, whoever comes first."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from inspect import CORO_CLOSED, CORO_SUSPENDED, getcoroutinestate
from typing import Any

import pytest

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
