"""What happened, as JSON lines: one `Line` per thing that a caller, an agent, a receiver or the harness saw.

Owns the vocabulary, writing that survives kill -9 of the writer, and reading back. Judges nothing: that is checker.py.

A call is an `invoke` line and at most one outcome line with the same `call`: `ok` (a 2xx, or a 424, which is an
outcome of the operation), `fail` (surely not applied) or `unknown` (timeout, reset, 5xx after sending). `unknown` is
never folded into `fail`; an `invoke` without an outcome is unknown too. All times are one host's monotonic clock.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from mesh.clock import monotonic_s


class Kind(StrEnum):
    """`info` is for what has no outcome: a callback that came, a handler that ran, a fault that fired."""

    INVOKE = "invoke"
    OK = "ok"
    FAIL = "fail"
    UNKNOWN = "unknown"
    INFO = "info"


class What(StrEnum):
    """What the line is about."""

    START = "start"
    READ = "read"
    """The record, `GET /v1/operations/{id}`."""
    RESULT = "result"
    CANCEL = "cancel"
    RECEIVED = "callback-received"
    INVOKED = "handler-invoked"
    EXECUTED = "handler-executed"
    COMPLETED = "completion-sent"
    FAULT = "fault"
    PHASE = "phase"


class Line(msgspec.Struct, omit_defaults=True):
    """One line. Fields that do not apply stay empty.

    process     who saw it; a restarted process has a new name (`worker-a.2`)
    call        pairs an invoke with its outcome
    key         idempotency key of a start, as the caller wrote it
    content     digest of what a start asks for (endpoint, service, operation, input, callback)
    op          operation id
    input       digest of the input's bytes, as sent or as the handler got them
    digest      digest of a result's (or failure's) own bytes
    mark        the value that only one execution of a handler puts into its result
    state       operation state as shown; `terminal` says whether it can still change
    seq         number of events that a record showed
    status      HTTP status seen or answered
    code        stable word of a refusal
    detail      what only one kind of line has
    """

    process: str
    kind: Kind
    what: What
    at_ns: int
    call: str = ""
    key: str = ""
    content: str = ""
    op: str = ""
    input: str = ""
    digest: str = ""
    mark: str = ""
    state: str = ""
    run: int = 0
    attempt: int = 0
    seq: int = 0
    status: int = 0
    code: str = ""
    request_id: str = ""
    gateway: str = ""
    detail: dict[str, Any] = {}

    @property
    def terminal(self) -> bool:
        return self.state in TERMINAL

    def __str__(self) -> str:
        return _encode(self).decode()


TERMINAL = frozenset({"succeeded", "failed", "canceled", "timed_out"})

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode


def digest(*parts: bytes) -> str:
    """64 bits over length-prefixed parts: enough to tell contents apart, short enough to read in a report."""
    joined = b"".join([b"%d:%b" % (len(part), part) for part in parts])
    return blake2b(joined, digest_size=8).hexdigest()


def monotonic_ns() -> int:
    """The clock of every line."""
    return int(monotonic_s() * 1e9)


class Recorder:
    """Appends lines to a file, one write each: what was recorded before a kill -9 is there after it."""

    def __init__(self, path: Path, process: str) -> None:
        self.process = process
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __call__(self, kind: Kind, what: What, *, process: str = "", **fields: Any) -> Line:
        line = Line(process or self.process, kind, what, monotonic_ns(), **fields)
        os.write(self._file, _encode(line) + b"\n")
        return line

    def close(self) -> None:
        os.close(self._file)


def read(paths: Iterable[Path]) -> list[Line]:
    """All lines in order of time. The last line of a killed process may be cut; only that one is left out."""
    lines: list[Line] = []
    for path in paths:
        whole, _, _ = path.read_bytes().rpartition(b"\n")
        lines += [_decode(raw) for raw in whole.split(b"\n") if raw]
    return sorted(lines, key=lambda line: line.at_ns)
