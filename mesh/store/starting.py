"""What a start asks, and is answered: accepted, known already, or why it was refused. And how several travel in one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias

import msgspec

from mesh.machine import State
from mesh.store.functions import Refused
from mesh.store.layout import INSIDE_BYTES_MAX, Request, encode
from mesh.store.merging import Asked, Parts
from mesh.store.verbs import Accepted, ChildStart, KeyReused, Replayed, Start


class NoEndpoint(Exception):
    """The endpoint was deleted between the catalog's answer and the start."""


class NoSession(Exception):
    """The session was taken for dead; join anew."""


class ParentLost(Exception):
    """The attempt that starts a child was given up, or its operation ended."""


class OtherParent(Exception):
    """The key names an operation that this call of the parent did not start; its id."""


class BacklogFull(Exception):
    """As many of a namespace wait there (`later`: for their time) as may; `drain_ms`: then there may be room; or 0."""

    def __init__(self, about: str) -> None:
        super().__init__(about)
        self.depth, self.cap, self.drain_ms, self.later, *_ = (*map(int, about.split()), 0)


Reply: TypeAlias = Accepted | Replayed | KeyReused
"""Of a start."""

_REFUSALS: dict[str, type[Exception]] = {
    "BACKLOG": BacklogFull,
    "NO_ENDPOINT": NoEndpoint,
    "NO_SESSION": NoSession,
    "PARENT_LOST": ParentLost,
    "OTHER_PARENT": OtherParent,
}


def read_started(reply: list[Any]) -> Accepted | Replayed:
    if reply[0] == b"accepted":
        at_ms, attempt, blocked, *more = reply[1:]
        return Accepted(at_ms, attempt, blocked.decode(), *([more[0] == 1, *more[1:]] if more else []))
    return Replayed(reply[2].decode(), State(reply[3]))


def refusal_of(refused: Refused) -> KeyReused | Exception:
    """What a refused start stands for."""
    return KeyReused(refused.about) if refused.word == "KEY_REUSED" else _REFUSALS[refused.word](refused.about)


def read_refused(refused: Refused) -> KeyReused:
    """The reply that a refused start has, if it has one. Raises what else it stands for."""
    refusal = refusal_of(refused)
    if isinstance(refusal, KeyReused):
        return refusal
    raise refusal from None


class How(msgspec.Struct, gc=False):
    """The first argument of mesh1_start: of a Start what many have alike."""

    ns: str
    endpoint: str
    session: str
    close_ms: int
    start_ms: int
    run_ms: int
    lease_ms: int
    attempts_max: int
    retention_ms: int
    callback: int
    blocked: str
    pin: str
    delay_ms: int | msgspec.UnsetType
    starts_at: int | msgspec.UnsetType
    priority: int | msgspec.UnsetType


class ChildHow(How):
    """The same of a ChildStart."""

    parent: str
    parent_run: int
    parent_attempt: int
    parent_key: str
    parent_close: int


@lru_cache(maxsize=1024)
def _how(*alike: Any) -> bytes:
    """What a start has alike with others, packed; nearly all say the same, and the store remembers it too."""
    return encode(How(*alike))


def start_parts(start: Start, request: Request, body: bytes, seat: Parts = ()) -> Parts:
    """The arguments of mesh1_start; `seat` as in PullStore.seat."""
    alike = (
        start.ns, start.endpoint, start.session, start.close_ms, start.start_ms, start.run_ms, start.lease_ms,
        start.attempts_max, start.retention_ms, start.callback, start.blocked, start.pin,
        start.delay_ms, start.starts_at, start.priority,
    )  # fmt: skip
    if type(start) is ChildStart:
        of_parent = (start.parent, start.parent_run, start.parent_attempt, start.parent_key, start.parent_close)
        how = encode(ChildHow(*alike, *of_parent))
    else:
        how = _how(*alike)
    content = (start.key, start.digest, request)
    if 0 < len(body) <= INSIDE_BYTES_MAX:
        content, body = (*content, body), b""
    parts = how, start.id.encode(), start.key.encode(), encode(content)
    return (*parts, body, *seat) if body or seat else parts


_OWN: Final = b"0"[0] - 1
_AS_BEFORE: Final = b"P"[0] - 1
"""A start's letter less the number of all its arguments, in lua/start_many.lua."""


def many_parts(starts: Iterable[Parts], *, leased: bool) -> Parts:
    """The arguments of mesh1_start_many. `leased`: some of them may be, to their session or who polls.

    What a start has alike with the one before it, which is all but id, key and content mostly, is sent once.
    """
    letters, arguments, before = bytearray(), [b"", b"" if leased else b"1"], b""
    for parts in starts:
        if parts[0] == before:
            letters.append(_AS_BEFORE + len(parts))
            arguments += parts[1:]
        else:
            letters.append(_OWN + len(parts))
            arguments += parts
            before = parts[0]
    arguments[0] = bytes(letters)
    return arguments


def together(asked: Sequence[Asked]) -> Parts:
    """The arguments of mesh1_start_many for starts that travel in one call."""
    return many_parts([parts for _, _, parts in asked], leased=True)
