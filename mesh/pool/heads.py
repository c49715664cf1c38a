"""Heads of replies by their bytes: equal bytes mean what the parser made of them the first time.

A server's replies of one second differ in their bodies alone, and to parse a head costs as much as to send a request.
Only the head of a reply that came alone, in one piece, with a length (or as a 204, which has no body) and on a
connection that goes on is remembered.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from mesh.pool.reply import Reply

HEADS_MAX: Final = 16
HEAD_BYTES_MAX: Final = 512
"""Longer ones are parsed each time."""
MISSES_MAX: Final = 64
REST: Final = 10_000
"""So many replies are parsed unseen after so many misses in a row: where all heads differ, looking only costs."""
_END: Final = b"\r\n\r\n"
_NO_CONTENT: Final = 204
_NOT_MODIFIED: Final = 304
"""Its length is that of a body which does not come."""


Head: TypeAlias = tuple[int, list[tuple[bytes, bytes]], int]
"""Status, headers, length of the body."""


class Heads:
    """Those of one origin."""

    __slots__ = ("_known", "_last", "_misses", "_rest")

    def __init__(self) -> None:
        self._misses = self._rest = 0
        self._known: dict[bytes, Head] = {}
        self._last: tuple[bytes, Head | None] = (b"", None)
        """The head that came last: to compare bytes takes a fraction of hashing them."""

    def reply(self, data: bytes, body_bytes_max: int) -> Reply | None:
        """What `data` says, if it is a whole reply whose head was seen before."""
        if self._rest:
            self._rest -= 1
            return None
        head, known = self._last
        if known is None or not data.startswith(head):
            head = data[: data.find(_END, 0, HEAD_BYTES_MAX) + len(_END)]
            known = self._known.get(head)
            if known is None:
                self._misses += 1
                return None
            self._last = (head, known)
        self._misses = 0
        status, headers, length = known
        end = len(head)
        # More than the body belongs to nobody, less is yet to come: both are for the parser.
        return Reply(status, headers.copy(), data[end:]) if len(data) - end == length <= body_bytes_max else None

    def remember(self, data: bytes, status: int, headers: list[tuple[bytes, bytes]], length: int | None) -> None:
        """`data` was a whole reply, and the next one may follow it."""
        if self._misses > MISSES_MAX:
            self._misses, self._rest = 0, REST
            self._known.clear()
        if self._rest:
            return
        if status == _NO_CONTENT and length is None:
            length = 0
        end = data.find(_END, 0, HEAD_BYTES_MAX) + len(_END)
        # By the lengths a 1xx in front is told, whose head ends first, and a head that is too long.
        if length is not None and len(data) - end == length and status != _NOT_MODIFIED and data[:end].endswith(_END):
            if len(self._known) >= HEADS_MAX:
                self._known.clear()
            self._known[data[:end]] = (status, headers.copy(), length)
