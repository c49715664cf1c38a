"""One timer for many short waits (P10): each is woken in its time, and none keeps what is over."""

from __future__ import annotations

import asyncio

from gateway.waiters import Alarms, FirstRequest


async def test_waits_of_equal_length_share_a_timer_and_shorter_ones_do_not() -> None:
    loop, alarms = asyncio.get_running_loop(), Alarms()
    for _ in range(2):  # once more when all are over
        first, over, second, shorter = (loop.create_future() for _ in range(4))
        begun_s = loop.time()
        assert alarms.set(loop, 0.05, first) is None
        assert alarms.set(loop, 0.06, over) is None
        over.cancel()
        assert alarms.set(loop, 0.07, second) is None
        own = alarms.set(loop, 0.0, shorter)
        assert own is not None
        async with asyncio.timeout(10):
            await second
        assert loop.time() - begun_s > 0.06
        assert first.done()
        assert shorter.done()


async def test_a_first_request_waits_no_longer_than_told_and_may_wait_again() -> None:
    first = FirstRequest()
    async with asyncio.timeout(10):
        assert await first.wait(0.02) is None
        assert await first.wait(0.01) is None
        first.close()
        assert await first.wait(60) is None
    assert first.settled
