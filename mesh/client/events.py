"""The event stream of an operation as a client reads it: server-sent events to `Event`s. Pure, no I/O.

The WHATWG rules as far as the gateway uses them: `id`, `event`, `data`, `retry`, comments, LF or CRLF.
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple, cast

from mesh.errors import ReplyInvalid

EVENT_BYTES_MAX: Final = 4 << 20
RETRY_MS_MAX: Final = 10_000


class Event(NamedTuple):
    """One step in an operation's history. `seq` counts 1, 2, ... without gaps; `type` is such as `attempt_failed`."""

    seq: int
    type: str
    data: dict[str, Any]


class Chunk(NamedTuple):
    """One chunk of an operation's stream.

    seq      1, 2, ... without gaps: where a reader resumes
    data     what the handler emitted
    source   "" for the handler itself, else the step that emitted it, `generate#1`
    n        counts per source. A step that a crash repeats begins at 1 again, and so may a few chunks of the handler:
             a chunk replaces what its source sent from `n` on
    attempt  of the operation
    """

    seq: int
    data: Any
    source: str
    n: int
    attempt: int


def chunk_of(event: Event) -> Chunk:
    """An event of the stream; what somebody emitted without this SDK is its own data."""
    chunk, attempt = event.data.get("chunk"), event.data.get("attempt", 0)
    if isinstance(chunk, dict):
        fields = cast("dict[str, Any]", chunk)
        if fields.keys() == {"data", "source", "n"}:
            return Chunk(event.seq, fields["data"], fields["source"], fields["n"], attempt)
    return Chunk(event.seq, chunk, "", event.seq, attempt)


class EventReader:
    """Bytes in, Events out. `last_seq` is where a new connection resumes; `ended` is set by the final `end` event."""

    def __init__(self, last_seq: int = 0) -> None:
        self.last_seq = last_seq
        self.ended = False
        self.retry_ms = 1000
        self._rest = b""
        self._fields: dict[bytes, bytes] = {}

    def begin(self) -> None:
        """A new connection: what the last one left unfinished comes again."""
        self._rest = b""
        self._fields = {}

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes, those seen before left out. Raises ReplyInvalid."""
        # Lines are cut as bytes: text methods would also cut at U+2028 inside the JSON.
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > EVENT_BYTES_MAX:
            message = f"an event is larger than {EVENT_BYTES_MAX} bytes"
            raise ReplyInvalid(message)
        found: list[Event] = []
        for line in lines:
            event = self._line(line.removesuffix(b"\r"))
            if event is not None and event.seq > self.last_seq:
                self.last_seq = event.seq
                found.append(event)
        return found

    def _line(self, line: bytes) -> Event | None:
        if line:
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data" and name in self._fields:
                value = self._fields[name] + b"\n" + value
            if name:
                self._fields[name] = value
            return None
        fields, self._fields = self._fields, {}
        retry = fields.get(b"retry", b"")
        if retry.isdigit():
            self.retry_ms = min(int(retry), RETRY_MS_MAX)
        if fields.get(b"event") == b"end":
            self.ended = True
        elif b"data" in fields and fields.get(b"id", b"").isdigit():
            try:
                data = json.loads(fields[b"data"])
            except ValueError:
                message = "an event is not JSON"
                raise ReplyInvalid(message) from None
            return Event(int(fields[b"id"]), fields.get(b"event", b"message").decode("utf-8", "replace"), data)
        return None
