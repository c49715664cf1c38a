"""What a finished operation takes of the store's memory, in the embedded store and in one that is given."""

from __future__ import annotations

from asyncio import gather
from collections.abc import Callable

import pytest

from mesh.machine import Event
from mesh.store.functions import load_library
from mesh.store.layout import Outcome
from mesh.store.link import Link
from mesh.store.store import pack
from mesh.store.verbs import Accepted
from tests.model.fixtures import G1, Room
from tests.servers import RawServer, connected

COUNT = 2_000
TURN = 50
"""Operations that travel together: few enough that the buffers of the line are no part of the figure."""
INPUT = b'{"id":"%032d","text":"' + b"x" * 139 + b'","tags":[]}'
RESULT = pack(Outcome("result", "", "application/json", b'{"id":"%032d","ok":true,"tokens":42}' % 0))


async def used_bytes(link: Link) -> int:
    lines = (await link.call("INFO", "memory")).decode().splitlines()
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(told["used_memory"]) - int(told["mem_clients_normal"]) - int(told["mem_aof_buffer"])


async def finish(room: Room) -> None:
    """Calls with a key of 32 characters, 200 bytes in and a small JSON out, each to its end."""
    assert len(INPUT % 0) == 200

    async def one(number: int) -> None:
        order = room.order(f"{number:032d}", content=f"{number:032x}", retention_ms=604_800_000)
        assert isinstance(await room.start(order, INPUT % number), Accepted)
        await room.store.complete(order.id, 1, 1, Event.SUCCEED, RESULT, session=G1)

    for first in range(0, COUNT, TURN):
        await gather(*[one(number) for number in range(first, first + TURN)])


@pytest.mark.parametrize(
    ("listpack", "most_bytes"),
    [(1024, 1_100), (64, 1_300)],
    ids=["embedded", "a server that keeps its own limit"],
)
async def test_what_a_finished_operation_takes(
    start_server: Callable[..., RawServer], listpack: int, most_bytes: int
) -> None:
    """About 1 KB, with its input, result, events and idempotency entry; 1.3 KB where records become hash tables."""
    async with connected(start_server(hash_max_listpack_value=str(listpack)).address) as link:
        await load_library(link.call)
        room = Room(link)
        await room.open()
        before = await used_bytes(link)
        await finish(room)
        each_bytes = (await used_bytes(link) - before) / COUNT
    assert 400 < each_bytes < most_bytes
