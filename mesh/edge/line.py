"""Whether a connection still has its other end, asked of the system itself. Knows no HTTP."""

from __future__ import annotations

import asyncio
import select
from typing import Final

_HUNG_UP: Final[int] = getattr(select, "POLLRDHUP", 0)  # where there is none, a reset is told all the same


def is_over(transport: asyncio.Transport) -> bool:
    """Whether the peer has closed or broken it. An event loop hears of that only when it comes to read."""
    if transport.is_closing():
        return True
    line = select.poll()
    try:
        line.register(transport.get_extra_info("socket").fileno(), _HUNG_UP)
        return bool(line.poll(0))
    except (OSError, ValueError):  # closed meanwhile
        return True
