"""The one HTTP/1.1 client of the project: courier, callbacks and the agent side of the SDK send through it.

It knows connections, not meaning: no store, no operations, no egress policy. Where a name may lead is decided
before (gateway/egress.py) and arrives here as the pinned addresses of a `Target`.

    target.py      Target: a strictly parsed URL, with the addresses it may be sent to
    head.py        the bytes of a request head; refuses injected lines
    reply.py       what comes back
    connection.py  one connection: one request at a time, reply parsed and capped while it streams
    dial.py        opening a connection: look-up, addresses in turn, TLS
    lane.py        one origin: its connections, who waits
    pool.py        Pool: requests, limits, deadlines

Never followed: redirects. Never read: proxy settings of the environment. Never decoded: content encodings.
"""

from __future__ import annotations

from mesh.pool.head import Lines, header_lines
from mesh.pool.pool import POOL_CLOSED, Pool, PoolStats
from mesh.pool.reply import Large, Reply
from mesh.pool.target import URL_BYTES_MAX, Target

__all__ = ["POOL_CLOSED", "URL_BYTES_MAX", "Large", "Lines", "Pool", "PoolStats", "Reply", "Target", "header_lines"]
