"""What a request is answered with, and where a large answer goes. Knows no connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.streams import Intake


class Reply(msgspec.Struct, gc=False):
    """A complete answer. `headers` in order, names lower-cased; trailers are dropped.

    `until_close`: the peer gave no length and ended the body by closing, so that a cut looks like the end.
    `intake` has the body, and `body` nothing, where a `Large` took it; whoever gets the reply finishes or abandons it.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    until_close: bool = False
    intake: Intake | None = None

    def header(self, name: bytes) -> bytes | None:
        """The first value of `name` (lower case)."""
        for known, value in self.headers:
            if known == name:
                return value
        return None


class Large(msgspec.Struct, frozen=True):
    """Where a reply's body over `inline_bytes` goes: `take(status, headers)` opens it; None: it stays in memory.

    In memory it may be `bytes_max` long.
    """

    inline_bytes: int
    bytes_max: int
    take: Callable[[int, list[tuple[bytes, bytes]]], Intake | None]


class StaleConnection(Exception):
    """A reused connection closed before any byte of the reply: the peer most likely closed it while idle."""
