"""What several verbs pack and unpack alike: leased work, and what became of an outcome."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

import msgspec

from mesh.events import EventKind
from mesh.machine import Event, Kind
from mesh.store.functions import Refused
from mesh.store.layout import decode_content, decode_head, decode_links, encode
from mesh.store.merging import Parts
from mesh.store.verbs import Completed, Completion, Moved, Work

CALLBACK_LEASE_MS: Final = 35_000
CANCEL_LEASE_MS: Final = 35_000

_COMPLETIONS: Final = {
    "OTHER_OUTCOME": Completion.OTHER,
    "LEASE_LOST": Completion.LEASE_LOST,
    "STALE_RUN": Completion.STALE_RUN,
    "UNKNOWN": Completion.UNKNOWN,
}
# Looked up once: CPython 3.11 is slow to find the member of an enum, and msgspec to write one.
_REPORTED: Final = {
    event: (event.value, int(code))
    for event, code in (
        (Event.SUCCEED, EventKind.SUCCEEDED), (Event.FAIL, EventKind.FAILED), (Event.CANCEL, EventKind.CANCELED)
    )
}  # fmt: skip
_VERDICTS: Final = {verdict.encode(): verdict for verdict in Completion}
_KINDS: Final = {kind.encode(): kind for kind in Kind}
_DONE: Final = Completion.DONE
_SAME: Final = Completion.SAME


_COMPLETE: Final = ord("c")
_COMPLETE_AS_BEFORE: Final = ord("C")
_LETTERS: Final = {
    "mesh1_complete": _COMPLETE, "mesh1_retry": ord("r"), "mesh1_release": ord("b"), "mesh1_started": ord("s"),
    "mesh1_delivered": ord("d"),
}  # fmt: skip
"""What mesh1_answers calls its verbs."""


def answers_parts(asked: Iterable[tuple[object, str, Parts]]) -> Parts:
    """The arguments of mesh1_answers for verbs with theirs; what a completion has like the last one goes once."""
    letters, arguments, before = bytearray(), [b""], b""
    for _, verb, parts in asked:
        letter = _LETTERS[verb]
        if letter == _COMPLETE and parts[0] == before:
            letters.append(_COMPLETE_AS_BEFORE)
            arguments += parts[1:]
            continue
        if letter == _COMPLETE:
            before = parts[0]
        letters.append(letter)
        arguments += parts
    arguments[0] = bytes(letters)
    return arguments


def read_work(packed: list[Any]) -> Work:
    """One piece of work as the Lua function `work` gives it."""
    operation_id, kind, head, content, extra, *more = packed
    journal, links = (more[0], decode_links(more[1])) if len(more) > 1 else (more[0] if more else 0, ())
    found, what = decode_content(content), _KINDS[kind]
    extra = extra or (found.input if what is Kind.START else b"")
    return Work(operation_id.decode(), what, decode_head(head), found.request, extra, journal, links)


def read_optional_work(packed: Any) -> Work | None:
    return read_work(packed) if packed else None


def read_begun(reply: list[Any]) -> Moved:
    """A reply of mesh1_started."""
    return Moved(reply[0].decode(), "", read_optional_work(reply[3]))


def unread(_: object) -> None:
    """A reply, or refusal, that says nothing."""


def refused_move(_: Refused) -> Moved:
    """A refusal of what moves an operation: it is not there, or not any more."""
    return Moved("unknown")


class Report(msgspec.Struct, gc=False):
    """The first argument of mesh1_complete. A struct, for a dict takes eight times as long to make."""

    run: int
    attempt: int
    event: str
    code: int
    session: str
    answered: int
    alone: int
    instance: str
    callback_lease_ms: int = CALLBACK_LEASE_MS


@lru_cache(maxsize=1024)
def complete_arguments(
    run: int, attempt: int, event: Event, session: str, instance: str, *, answered: bool, alone: bool
) -> bytes:
    """What reports `event` of an attempt; nearly all say the same, and the store remembers it too."""
    word, code = _REPORTED[event]
    return encode(Report(run, attempt, word, code, session, int(answered), int(alone), instance))


def read_completed(reply: list[Any]) -> Completed:
    """A reply of mesh1_complete."""
    verdict = _VERDICTS[reply[0]]
    if verdict is _SAME:
        return Completed(verdict, reply[1], reply[2])
    if verdict is not _DONE:
        return Completed(verdict)
    work, journal = read_optional_work(reply[4]), len(reply) > 5  # noqa: PLR2004
    return Completed(verdict, reply[1], reply[2], reply[3].decode(), work, journal)


def refused_completion(refused: Refused) -> Completed:
    """A refusal of mesh1_complete."""
    return Completed(_COMPLETIONS[refused.word])
