"""What a caller may still use: `RateLimit` and `RateLimit-Policy` (httpapi draft 11). Pure."""

from __future__ import annotations

from binascii import b2a_base64
from typing import Final, NamedTuple

WAITING: Final = "waiting"
"""The quota of operations of one namespace that wait for one endpoint."""


class Quota(NamedTuple):
    """`limit` of something for `partition`, `remaining` of it; `reset_s`: about then there is room, 0 unknown."""

    name: str
    limit: int
    remaining: int
    partition: str
    reset_s: int = 0


def quota_headers(quota: Quota) -> list[tuple[bytes, bytes]]:
    """The two headers; the unit is operations at once."""
    name = quota.name.encode()
    key = b2a_base64(quota.partition.encode(), newline=False)
    reset = b";t=%d" % quota.reset_s if quota.reset_s else b""
    return [
        (b"ratelimit-policy", b'"%b";q=%d;qu="concurrent-requests";pk=:%b:' % (name, quota.limit, key)),
        (b"ratelimit", b'"%b";r=%d%b;pk=:%b:' % (name, max(quota.remaining, 0), reset, key)),
    ]
