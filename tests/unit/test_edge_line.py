"""Whether a connection still has its other end: the system is asked, not the event loop."""

from __future__ import annotations

import asyncio
import socket

import pytest

from mesh.clock import sleep
from mesh.edge.line import is_over


@pytest.mark.parametrize("how", ["close", "reset", "own"])
async def test_it_is_known_before_the_loop_hears_of_it(how: str) -> None:
    """P292: between the look and the answer nothing else runs, so that what is written then would reach nobody."""
    ours, theirs = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    try:
        assert not is_over(transport)
        if how == "own":
            transport.close()
        else:
            if how == "reset":
                transport.write(b"unread")
            theirs.close()
        assert is_over(transport)
    finally:
        theirs.close()
        transport.abort()
        await sleep(0)
