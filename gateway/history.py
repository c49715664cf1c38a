"""The history of an operation as readers see it: what happened to it, merged with what its handler did.

Transitions are packed in the record, what the handler did is its journal; neither is copied. A transition says how
long the journal was at its moment, so transition k (from 1) has the number k + that length, and entry i (from 0) the
number i + 1 + how many transitions came while the journal had at most i entries: 1..n without gaps, and a number never
changes. Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import msgspec

from gateway.outcomes import encode_json, result_fields
from gateway.payloads import blob_url
from mesh.events import entry_json, to_json
from mesh.machine import State
from mesh.store.layout import decode_outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.store.layout import Entry, Line, Outcome

Events: TypeAlias = "list[tuple[int, dict[str, Any]]]"
"""Events ready to be sent, each with its number."""

PREVIEW_BYTES: Final = 1_024
"""Longer values of an entry are cut for readers of the history."""


class Span(NamedTuple):
    """What stands between two numbers of a history: transitions [first, last) and entries [from_, to)."""

    first: int
    last: int
    from_: int
    to: int


def span(transitions: Sequence[Entry], journal: int, after: int, limit: int) -> Span:
    """Where to look for the events after number `after`, at most `limit` of them."""
    numbers = [position + entry.journal for position, entry in enumerate(transitions, start=1)]
    first, last = bisect_right(numbers, after), bisect_right(numbers, after + limit)
    return Span(first, last, min(max(after - first, 0), journal), min(after + limit - last, journal))


def merged(
    operation_id: str, created_at_ms: int, transitions: Sequence[Entry], part: Span, lines: Sequence[Line]
) -> Events:
    """The events of `part` in order, each with its number; `lines` are its entries, or the first of them."""
    events: Events = []
    position, entry = part.first, part.from_
    while True:
        seq = position + entry + 1
        if position < part.last and transitions[position].journal <= entry:
            events.append((seq, to_json(operation_id, seq, created_at_ms, transitions[position])))
            position += 1
        elif entry < part.to and entry - part.from_ < len(lines):
            events.append((seq, _entry(operation_id, seq, created_at_ms, lines[entry - part.from_])))
            entry += 1
        else:
            return events


def _entry(operation_id: str, seq: int, created_at_ms: int, line: Line) -> dict[str, Any]:
    if line.child is None:
        body = line.body
    else:
        body = child_entry(line.child, decode_outcome(line.body) if line.body else None)
    kind, fields = preview(body)
    return entry_json(operation_id, seq, created_at_ms + line.after_ms, line.attempt, kind, fields)


def child_entry(child: tuple[int, str, str], outcome: Outcome | None) -> bytes:
    """The entry about a child that ended; without `outcome` when only the child has it, or nobody any more.

    What it refers to is at the URL where the parent's agent may read it, too (P441).
    """
    state, operation_id, key = State(child[0]), child[1], child[2]
    fields: dict[str, Any] = {"kind": "child", "key": key, "id": operation_id, "state": state.word}
    if outcome is not None:
        fields |= result_fields(operation_id, state, outcome)
        if outcome.data is not None and "result_dataref" in fields:
            fields["result_dataref"]["url"] = blob_url(operation_id, outcome.data.sha256)
    return encode_json(fields)


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_RESERVED: Final = frozenset({"seq", "at", "type", "operation_id", "attempt", "kind"})


def preview(entry: bytes) -> tuple[str, dict[str, Any]]:
    """The kind of an entry, and its fields; of a long one `{name}_preview`, part of its text, and `{name}_bytes`.

    A name that is taken, by the event itself or by another field, is followed by `_`.
    """
    fields = _fields(entry)
    shown: dict[str, Any] = {}
    kind = ""
    taken = _RESERVED | fields.keys()
    for name, value in fields.items():
        text = bytes(value)
        if name == "kind":
            kind = text[1:-1].decode()
            continue
        own = _free(name, taken) if name in _RESERVED else name
        if len(text) <= PREVIEW_BYTES:
            shown[own] = value
        else:
            shown[_free(f"{name}_preview", taken)] = text[:PREVIEW_BYTES].decode("utf-8", "ignore")
            shown[_free(f"{name}_bytes", taken)] = len(text)
    return kind, shown


def _free(name: str, taken: frozenset[str]) -> str:
    while name in taken:
        name += "_"
    return name
