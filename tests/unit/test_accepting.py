"""The listener of checks and tests: nothing that it accepted outlives it."""

from __future__ import annotations

import asyncio
import gc

from mesh.check.accepting import Accepting
from mesh.clock import sleep


async def _reads(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def test_what_came_as_it_closed_is_cut_too() -> None:
    """Some are served, some have a task that took no step yet, some are still being accepted."""
    for turns in range(8):
        door = Accepting(_reads)
        await door.open()
        clients = [await asyncio.open_connection(door.host, door.port) for _ in range(4)]
        for _ in range(turns):
            await sleep(0)
        await door.close()
        for reader, writer in clients:
            async with asyncio.timeout(10):
                await asyncio.gather(reader.read(), return_exceptions=True)  # ends, by FIN or RST
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        gc.collect()  # a socket left open would fail the test here
