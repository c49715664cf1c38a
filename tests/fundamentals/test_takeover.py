"""What a dead gateway held moves again soon, however much it was."""

from __future__ import annotations

from asyncio import gather
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.clock import monotonic_s
from mesh.store.embedded import EmbeddedStore
from mesh.store.link import Link
from mesh.store.store import SESSION_DEAD_AFTER_MS
from tests.fundamentals.registering import Start, gateways
from tests.model.fixtures import ENDPOINT, Room, eventually

HELD = 1_500
LATE_S = 5.0
"""P114: from the death of a gateway until all it held moves again."""


@pytest.fixture
async def start(link: Link, embedded: EmbeddedStore, tmp_path: Path) -> AsyncIterator[Start]:
    async with gateways(embedded, tmp_path) as start_one:
        yield start_one


async def test_a_dead_gateways_work_is_taken_over_in_one_go(start: Start, link: Link) -> None:
    """P114: 1,500 starts under way at its death; whoever finds it dead goes on until nothing of it is left."""
    await start()
    room = Room(link)
    await room.endpoint()
    await room.store.beat("gone.s-1", join=True)
    await gather(*[room.accepted(session="gone.s-1") for _ in range(HELD)])
    assert len(await room.store.held("gone.s-1", HELD)) == HELD

    found_dead_s = monotonic_s()
    await room.died("gone.s-1")

    async def all_moved() -> bool:
        return await link.call("ZCARD", room.store.keys.waiting(ENDPOINT)) == HELD

    await eventually(all_moved, within_s=10)
    # It is found dead after SESSION_DEAD_AFTER_MS, which the test spared itself.
    assert monotonic_s() - found_dead_s + SESSION_DEAD_AFTER_MS / 1000 < LATE_S
