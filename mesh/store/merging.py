"""Calls that are asked for in one turn of the event loop travel as one function call.

Each of them costs the store a command of its own otherwise: parsing it, the time, what it reads that all of them
read, an entry in each sorted set. Owns how they are packed into one, and who of them gets which part of the answer.
Knows neither the connection nor what the calls mean; the function must take each by itself, refused and broken ones
included.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from mesh.store.connection import Asker, StoreReply, fresh, pack_bytes

MERGED_MAX: Final = 64
"""Calls in one: it is one turn of the store's only thread."""
MERGED_BYTES_MAX: Final = 16_384
"""Arguments of a call that may travel with others; a larger one goes alone."""

Parts = Sequence[bytes]
"""Arguments, behind the keys."""


Asked: TypeAlias = tuple[asyncio.Future[Any], str, Parts]
"""A call: who gets the reply, the verb, its arguments."""

_FAULTS: Final = (b"refused", b"broken")


class Merging:
    """The calls that travel together, in the order in which they are asked for.

    `many`: the function that takes several; `together`: its arguments, made of those of all calls.
    `asked`: this turn's, until the link packs them.
    """

    __slots__ = ("_many", "_root", "_together", "asked")

    def __init__(self, root: bytes, many: str, together: Callable[[Sequence[Asked]], Parts]) -> None:
        self._root = root
        self._many = many.encode()
        self._together = together
        self.asked: list[Asked] = []

    def packed(self) -> tuple[Asker, bytes]:
        """What was asked for in this turn, as one call; the next turn begins anew."""
        asked, self.asked = self.asked, []
        if len(asked) == 1:
            future, verb, parts = asked[0]
            return future, pack_bytes((b"FCALL", verb.encode(), b"1", self._root, *parts))
        arguments = (b"FCALL", self._many, b"1", self._root, *self._together(asked))
        return Shared([future for future, _, _ in asked]), pack_bytes(arguments)


class Shared:
    """Stands for the futures of several calls: it gets a list of as many replies, or one error for all."""

    __slots__ = ("_ended", "_futures")

    def __init__(self, futures: list[asyncio.Future[Any]]) -> None:
        self._futures = futures
        self._ended = False

    def done(self) -> bool:
        return self._ended

    def set_result(self, replies: Sequence[Any]) -> None:
        self._ended = True
        for future, reply in zip(self._futures, of_all(replies), strict=True):
            if future.done():  # its caller left
                continue
            if reply[0] in _FAULTS:
                future.set_exception(fault_of(reply))
            else:
                future.set_result(reply)

    def set_exception(self, error: BaseException) -> None:
        self._ended = True
        for future in self._futures:
            if not future.done():
                future.set_exception(fresh(error))


def of_all(replies: Sequence[Any]) -> list[list[Any]]:
    """The reply to each of several calls: where it is one that another has too, the function names that one's place."""
    return [replies[reply - 1] if type(reply) is int else reply for reply in replies]


def fault_of(reply: list[Any]) -> StoreReply:
    """What the function says of one of several calls that it could not do."""
    return StoreReply(reply[1].decode() if reply[0] == b"refused" else f"ERR {reply[1].decode()}")


def of_one(reply: list[Any]) -> list[Any]:
    """The reply to one of several calls. Raises StoreReply where the function could not do it."""
    if reply[0] in _FAULTS:
        raise fault_of(reply)
    return reply
