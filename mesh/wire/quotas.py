"""What a caller may still use: `RateLimit` and `RateLimit-Policy` (httpapi draft 11). Pure."""

from __future__ import annotations

from binascii import b2a_base64
from functools import lru_cache
from typing import Final, NamedTuple

WAITING: Final = "waiting"
"""The quota of operations of one namespace that wait for one endpoint."""

DELAYED: Final = "delayed"
"""The quota of those that are accepted for later."""


class Quota(NamedTuple):
    """`limit` of something for `partition`, `remaining` of it; `reset_s`: about then there is room, 0 unknown."""

    name: str
    limit: int
    remaining: int
    partition: str
    reset_s: int = 0


def quota_headers(quota: Quota) -> list[tuple[bytes, bytes]]:
    """The two headers; the unit is operations at once."""
    reset = b";t=%d" % quota.reset_s if quota.reset_s else b""
    policy, name, key = _policy(quota.name, quota.limit, quota.partition)
    return [policy, (b"ratelimit", b"%b;r=%d%b;%b" % (name, max(quota.remaining, 0), reset, key))]


@lru_cache(maxsize=4096)
def _policy(name: str, limit: int, partition: str) -> tuple[tuple[bytes, bytes], bytes, bytes]:
    """What is the same in every answer: the policy's header, the quoted name, the partition key."""
    quoted, key = b'"%b"' % name.encode(), b"pk=:%b:" % b2a_base64(partition.encode(), newline=False)
    return (b"ratelimit-policy", b'%b;q=%d;qu="concurrent-requests";%b' % (quoted, limit, key)), quoted, key
