"""The bodies of `/v1/tasks/...`, and what an entry or a chunk may be. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from mesh.errors import TooLarge, Unprocessable
from mesh.events import EventKind

ENTRIES_MAX: Final = 1_000
ENTRY_BYTES_MAX: Final = 1 << 20
CHUNK_BYTES_MAX: Final = 64 << 10
DETAILS_BYTES_MAX: Final = 16 << 10
CHILD: Final = "child"

_kind = re.compile(r"[a-z][a-z0-9_]{0,31}").fullmatch
_TAKEN: Final = frozenset(kind.word for kind in EventKind) | {CHILD, "end"}

# No list is as long, and a store's script counts in doubles: more would not mean what it says there.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
UnixMs = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_999)]
"""To the end of the year 9999: records show it as RFC 3339, which knows no later time."""


class HeartbeatTask(msgspec.Struct, forbid_unknown_fields=True):
    """`token`: the attempt's task token; `lease_ms`: from now, absent = as before; `details`: any JSON, shown."""

    token: str = ""
    lease_ms: int = 0
    details: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class HeartbeatBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of the heartbeat."""

    tasks: list[HeartbeatTask]


class JournalTask(msgspec.Struct, forbid_unknown_fields=True):
    """`at`: how many entries the agent knows of; `entries`: JSON objects with a `kind`."""

    at: Count
    token: str = ""
    entries: list[msgspec.Raw] = []


class JournalBody(msgspec.Struct, forbid_unknown_fields=True):
    """Entries for the journals of many attempts."""

    tasks: list[JournalTask]


class EmitTask(msgspec.Struct, forbid_unknown_fields=True):
    """`at`: how many chunks the agent knows of; `chunks`: any JSON."""

    at: Count
    token: str = ""
    chunks: list[msgspec.Raw] = []


class EmitBody(msgspec.Struct, forbid_unknown_fields=True):
    """Chunks for the streams of many attempts."""

    tasks: list[EmitTask]


class SuspendTask(msgspec.Struct, forbid_unknown_fields=True):
    """`at`: how many entries the agent knows of. `cancel`: it knows that its end is wanted.

    `wake_at_ms` (Unix time, by the store's clock) or `wake_in_ms`; neither: only a child's end or a cancel wakes it.
    """

    at: Count
    token: str = ""
    wake_in_ms: int | None = None
    wake_at_ms: UnixMs | None = None
    cancel: bool = False


class SuspendBody(msgspec.Struct, forbid_unknown_fields=True):
    """Attempts that are over because their handlers wait."""

    tasks: list[SuspendTask]


class ReadTask(msgspec.Struct, forbid_unknown_fields=True):
    """The journal after the first `after` entries; `wait_ms`, when it is asked for alone, as in `ReadBody`."""

    token: str = ""
    after: Count = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 1_000
    wait_ms: int = 0


class ReadBody(msgspec.Struct, forbid_unknown_fields=True):
    """Journals of many attempts; `wait_ms`: for how long to wait for news of one of them."""

    tasks: list[ReadTask]
    wait_ms: int = 0


class _Kind(msgspec.Struct):
    kind: str


_kind_of = msgspec.json.Decoder(_Kind).decode


def breach(pointer: str, detail: str) -> Unprocessable:
    """A refusal of what `pointer` points to in the body."""
    return Unprocessable(detail, code="body_invalid", errors=[{"pointer": pointer, "detail": detail}])


def check_entries(entries: Sequence[msgspec.Raw], where: str) -> list[bytes]:
    """The entries' bytes; `where` is the task in the body. Raises Unprocessable, TooLarge `entry_too_large`."""
    bodies = _bounded(entries, f"{where}/entries", ENTRY_BYTES_MAX)
    for number, body in enumerate(bodies):
        try:
            kind = _kind_of(body).kind
        except msgspec.ValidationError:
            detail = "an entry is a JSON object with a `kind`"
            raise breach(f"{where}/entries/{number}", detail) from None
        if not _kind(kind) or kind in _TAKEN:
            detail = f"the kind {kind[:40]!r} is taken, or no lower-case word of up to 32 letters, digits and _"
            raise breach(f"{where}/entries/{number}/kind", detail)
    return bodies


def check_chunks(chunks: Sequence[msgspec.Raw], where: str) -> list[bytes]:
    """The chunks' bytes; `where` is the task in the body. Raises Unprocessable, TooLarge `entry_too_large`."""
    return _bounded(chunks, f"{where}/chunks", CHUNK_BYTES_MAX)


def _bounded(items: Sequence[msgspec.Raw], where: str, most: int) -> list[bytes]:
    if len(items) > ENTRIES_MAX:
        raise breach(where, f"one request brings at most {ENTRIES_MAX} of them for a task")
    bodies = [bytes(item) for item in items]
    for number, body in enumerate(bodies):
        if len(body) > most:
            detail = f"{where}/{number} has {len(body)} bytes; at most {most} are kept"
            raise TooLarge(detail, code="entry_too_large")
    return bodies
