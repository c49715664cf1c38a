"""What the journal says, found by name and occurrence. Pure: pages of entries in, recorded answers out.

Code may change between attempts: what was removed is never asked for, what is new is not found, and the order in which
names are asked for does not matter. What disagrees in kind or arguments is a JournalMismatch that shows both sides.
Entries are forgotten as soon as they are taken, so a long replay in its usual order holds little more than a page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import Final, NamedTuple

from mesh.agent.durable.entries import Entry, head_of, read
from mesh.agent.durable.errors import JournalMismatch

RESIDENT_BYTES_MAX: Final = 16 << 20
"""Entries that nobody has asked for yet; beyond it only their places are kept, and they are read again when asked."""
LEFT_SHOWN_MAX: Final = 20

FAMILIES: Final[dict[str, str]] = {
    **dict.fromkeys(("step", "try"), "step"),
    **dict.fromkeys(("call", "child"), "call"),
    **dict.fromkeys(("timer", "fired"), "sleep"),
    "value": "value",
    **dict.fromkeys(("gathering", "gather"), "gather"),
    "progress": "progress",
}
"""Kind -> the family of the question it answers. A key belongs to one family."""
_FINAL: Final = frozenset({"step", "child", "fired", "value", "gather", "progress"})
"""Kinds after which nothing more comes under their key."""
_WORK: Final = frozenset({"step", "try", "call"})
_SCOPED: Final = re.compile(r"#\d+/")
"""In the names of what a gather's sources did."""


class Place(NamedTuple):
    """An entry in the journal; `raw` None when it was too much to keep."""

    at: int
    kind: str
    raw: bytes | None


class Replay:
    """The recorded part of one run, as far as it was read, less what was taken."""

    __slots__ = ("_counts", "_resident_bytes", "_slots", "chunks", "emitted", "read")

    def __init__(self) -> None:
        self.read = 0
        """Entries fed so far."""
        self.emitted = self.chunks = 0
        """Of the handler's own chunks: how many were stored, and how long the stream was then."""
        self._slots: dict[str, list[Place]] = {}
        self._counts: dict[str, int] = {}
        self._resident_bytes = 0

    # -- occurrences

    def number(self, name: str) -> int:
        """The next occurrence of `name` in this run of the code, from 1."""
        n = self._counts[name] = self._counts.get(name, 0) + 1
        return n

    # -- the journal, page by page

    def feed(self, entries: Sequence[bytes]) -> list[tuple[str, str]]:
        """The next entries of the journal, in order; gives the kind and key of each."""
        heads = [head_of(raw) for raw in entries]
        for raw, (kind, key) in zip(entries, heads, strict=True):
            at, self.read = self.read, self.read + 1
            if kind == "emitted":
                entry = read(raw)
                self.emitted, self.chunks = entry.n, entry.length
            elif kind in FAMILIES:
                kept = self._resident_bytes + len(raw) <= RESIDENT_BYTES_MAX
                self._resident_bytes += len(raw) if kept else 0
                self._slots.setdefault(key, []).append(Place(at, kind, raw if kept else None))
        return heads

    def skip(self, count: int) -> None:
        """The next `count` entries are our own: nobody asks for them again in this attempt."""
        self.read += count

    # -- questions

    def settled(self, key: str) -> bool:
        """Whether nothing that may still be unread could say more about `key`."""
        return any(place.kind in _FINAL for place in self._slots.get(key, ()))

    def drop(self, key: str, kind: str) -> None:
        """Somebody got this entry by another way."""
        places = [place for place in self._slots.pop(key, ()) if place.kind != kind]
        if places:
            self._slots[key] = places

    def take(self, key: str, family: str, asked: str, args: str | None = None, *, strict: bool = True) -> list[Place]:
        """All places under `key`, which are forgotten here; empty without any. `asked` says what the code wants.

        Raises JournalMismatch for another family, or `strict` and other arguments.
        """
        places = self._slots.get(key)
        if places is None:
            return []
        for place in places:
            if FAMILIES[place.kind] != family:
                raise self._mismatch(key, place, asked)
            if strict and place.raw is not None:
                check_args(key, read(place.raw), asked, args)
        del self._slots[key]
        self._resident_bytes -= sum(len(place.raw) for place in places if place.raw is not None)
        return places

    def left(self) -> list[str]:
        """Steps and calls that the code never asked for, the first few: it has changed since they were recorded.

        Sources of a gather are left out: on a replay only those are asked that had answered.
        """
        names = (key.rpartition("#") for key, places in self._slots.items() if places[0].kind in _WORK)
        left = (
            f"{name}#{n}"
            for name, _, n in names
            if n.isdecimal() and int(n) > self._counts.get(name, 0) and not _SCOPED.search(name)
        )
        return list(islice(left, LEFT_SHOWN_MAX))

    def _mismatch(self, key: str, place: Place, asked: str) -> JournalMismatch:
        recorded = f"a {place.kind}" if place.raw is None else describe(read(place.raw))
        return JournalMismatch(key, recorded, asked, f"Give the new code another name than {key.rpartition('#')[0]!r}.")


def check_args(key: str, entry: Entry, asked: str, args: str | None) -> None:
    """Raises JournalMismatch when a step or call was recorded with other arguments than the code has now."""
    if entry.kind not in ("step", "call", "try"):
        return
    if entry.args == args and (entry.kind != "call" or asked == _call(entry)):
        return
    mend = (
        "The result of other arguments would be taken for this one's. Give the changed code another name, or pass"
        " match='name' if the recorded result is right whatever the arguments are. If an argument comes from chance or"
        " a clock, put chance and clocks in a step, or use ctx.random()/ctx.now()."
    )
    raise JournalMismatch(key, describe(entry), f"{asked}({shown(args)})", mend)


def describe(entry: Entry) -> str:
    """An entry as an error message shows it."""
    if entry.kind == "call":
        return f"{_call(entry)}({shown(entry.args)})"
    if entry.kind in ("step", "try"):
        return f"a {entry.kind}({shown(entry.args)})"
    return f"a {entry.kind}"


def _call(entry: Entry) -> str:
    return f"a call of {entry.endpoint}/{entry.service}/{entry.operation}"


def shown(args: str | None) -> str:
    """Recorded arguments without their brackets."""
    return "" if args is None else args.removeprefix("[").removesuffix("]")
