"""How often a gateway asks its store for an operation: twice when it is answered, four times with 201 and callback."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from mesh.clock import monotonic_s
from tests.servers import RawServer
from tests.surface.actors import Actor, started
from tests.surface.gateways import KEYLESS, Caller, Gateway

COUNT = 40
BEATS_PER_S = 8
"""More than the gateway's own clockwork asks in a second: a beat, and looks at what is due."""


class Meter:
    """Calls of the store's functions since it was made."""

    def __init__(self, server: RawServer) -> None:
        self._server = server
        self._before, self._began_s = self._calls(), monotonic_s()

    def _calls(self) -> int:
        told = self._server.ask("INFO commandstats").decode()
        return sum(map(int, re.findall(r"cmdstat_fcall(?:_ro)?:calls=(\d+)", told)))

    def per_operation(self) -> float:
        calls = self._calls() - self._before
        assert calls >= COUNT, "they are counted"
        return (calls - BEATS_PER_S * (monotonic_s() - self._began_s + 1)) / COUNT


async def test_calls_of_the_store(
    start_server: Callable[..., RawServer], own_gateway: Callable[..., Gateway], agent: Actor, receiver: Actor
) -> None:
    """One after the other, so that none shares a call with another."""
    server = await asyncio.to_thread(start_server)
    settings = KEYLESS | {"store": {"url": f"unix://{server.address.path}"}}
    caller = Caller(await asyncio.to_thread(own_gateway, settings))
    name = await caller.register(agent.url)
    assert (await caller.nexus(name)).status == 200  # what is asked once only is asked
    meter = Meter(server)
    for number in range(COUNT):
        assert (await caller.nexus(name, headers={"nexus-request-id": f"k{number}"})).status == 200
    assert meter.per_operation() <= 2

    agent.replies(started())
    begun = len(agent.starts)
    meter = Meter(server)
    for number in range(COUNT):
        await caller.begin(name, {"nexus-request-id": f"a{number}"}, callback=receiver.url)
        call = await agent.until(begun + number + 1)
        await call.answered.wait()
        assert (await call.complete()).status == 200
        await receiver.until(number + 1)
    assert meter.per_operation() <= 4
