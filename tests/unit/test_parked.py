"""Requests that wait without a task (gateway/carrying.py): who wakes one first has it answered, once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from gateway.carrying import Parked
from gateway.waiters import FirstRequest
from mesh.edge import Answer, Request
from mesh.edge.bodies import Caller
from mesh.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Answer(200, [], b"here")
LATER = Answer(201, [], b"later")


async def never() -> Any:
    raise AssertionError("nothing is read of the caller")


def parked(at_once: Callable[[], Answer | None], conclude: Any) -> tuple[Caller, Parked]:
    caller = Caller(never)
    request = Request("POST", b"/", b"", [], {}, caller, render=lambda error: Answer(503, [], str(error).encode()))
    return caller, Parked((request, at_once, conclude))


async def later() -> Answer:
    return LATER


async def refused() -> Answer:
    raise Unavailable("no")


async def test_what_is_recorded_is_answered_in_the_same_step() -> None:
    """P10: whoever settles the first request has answered it; an alarm that comes after finds it done."""
    first = FirstRequest()
    caller, waits = parked(lambda: HERE, later)
    first.wake(waits)
    assert not waits.done()
    first.close()
    assert caller.answered.result() is HERE
    assert waits.done()
    waits.set_result(None)  # would answer a second time


async def test_what_is_not_here_is_left_to_a_task() -> None:
    """P10, P12: an alarm, or an outcome that has to be looked up."""
    caller, waits = parked(lambda: None, later)
    waits.set_result(None)
    async with asyncio.timeout(10):
        assert await caller.answered is LATER


async def test_trouble_with_an_answer_is_the_caller_s_and_not_that_of_who_recorded_it() -> None:
    def broken() -> Answer:
        raise ValueError("cannot be said")

    caller, waits = parked(broken, refused)
    waits.set_result(None)
    async with asyncio.timeout(10):
        assert (await caller.answered).status == 503
