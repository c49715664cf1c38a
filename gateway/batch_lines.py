"""A batch as text: the body cut into lines with their bounds, a line read as a start, its outcome written as a line.

NDJSON both ways; outcome n belongs to line n of the body. Knows no store and no HTTP. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from gateway.body_fields import body_invalid, read_fields
from gateway.outcomes import encode_json
from gateway.problems import problem
from gateway.start_body import StartBody, read_order
from mesh.clock import to_rfc3339
from mesh.errors import Malformed, MeshError, TooLarge
from mesh.wire import check_key

if TYPE_CHECKING:
    from gateway.orders import Begun, Order
    from mesh.wire import CallerHeaders

LINES_MAX: Final = 10_000
BLANKS_MAX: Final = 10_000
"""They start nothing, and still cost."""
BATCH_BYTES_MAX: Final = 64 << 20
ACCEPTED: Final = 202


class LineBody(StartBody, forbid_unknown_fields=True):
    """A line: the body of a start, with its key."""

    idempotency_key: str | None = None


_decoder = msgspec.json.Decoder(LineBody)


class Line(NamedTuple):
    """A line of the body, or why it is none."""

    number: int
    text: bytes = b""
    fault: MeshError | None = None


class Splitter:
    """Cuts what arrives into lines, blank ones left out; holds no more than one line.

    A line above `line_bytes_max` is passed over and becomes a fault. The first one beyond the bounds of the batch is
    the last that is told of: `over`.
    """

    def __init__(self, line_bytes_max: int) -> None:
        self._line_bytes_max = line_bytes_max
        self._rest = bytearray()
        self._size = 0
        """Of the line that is not complete; above the bound nothing of it is kept."""
        self._number: int = 1
        self._lines = self._blanks = 0
        self._bytes = 0
        self.over = False

    def feed(self, chunk: bytes) -> Iterator[Line]:
        """The lines that `chunk` completes."""
        self._bytes += len(chunk)
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            self._take(end)
            yield from self._line()
            if self.over:
                return
        self._take(rest)
        if self._bytes > BATCH_BYTES_MAX:
            yield self._beyond(f"the batch is larger than {BATCH_BYTES_MAX} bytes", "batch_too_large")

    def end(self) -> Iterator[Line]:
        """What the body ended with, without a line end."""
        if not self.over:
            yield from self._line()

    def _take(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= self._line_bytes_max:
            self._rest += part
        else:
            self._rest.clear()

    def _line(self) -> Iterator[Line]:
        text, size, number = bytes(self._rest), self._size, self._number
        self._rest.clear()
        self._size, self._number = 0, number + 1
        large = size > self._line_bytes_max
        if not large and not text.strip():
            self._blanks += 1
            if self._blanks > BLANKS_MAX:
                self._number = number
                yield self._beyond(f"a batch has at most {BLANKS_MAX} blank lines", "batch_too_long")
            return
        if self._lines == LINES_MAX:
            self._number = number
            yield self._beyond(f"a batch has at most {LINES_MAX} lines", "batch_too_long")
            return
        self._lines += 1
        if large:
            detail = f"the line is larger than {self._line_bytes_max} bytes, the limit of a body"
            yield Line(number, fault=TooLarge(detail))
        else:
            yield Line(number, text)

    def _beyond(self, why: str, code: str) -> Line:
        self.over = True
        detail = f"{why}; nothing of this and all later lines was started, send them in another batch"
        return Line(self._number, fault=TooLarge(detail, code=code))


def read_line(line: Line, namespace: str, headers: CallerHeaders) -> Order:
    """What a line of strict JSON asks for; without a key of its own it has the request's, with its number.

    Raises Refusal.
    """
    if line.fault is not None:
        raise line.fault
    body = read_fields(line.text, _decoder)
    if body.parent is not None:
        raise body_invalid("/parent", "a batch starts no children")
    key = headers.key and f"{headers.key}.{line.number}"
    if body.idempotency_key is not None:
        try:
            key = check_key(body.idempotency_key)
        except Malformed as error:
            raise body_invalid("/idempotency_key", error.detail) from None
    return read_order(body, namespace, replace(headers, key=key))


def outcome_line(number: int, order: Order | None, outcome: Begun | Exception) -> bytes:
    """One line of the answer, with its end."""
    told: dict[str, Any] = {"line": number}
    if isinstance(outcome, Exception):
        answer = problem(outcome)
        told |= {"status": answer.status, "problem": msgspec.Raw(answer.body)}
    else:
        told |= {"status": ACCEPTED, "id": outcome.id, "state": outcome.state.word}
        if outcome.replayed:
            told["replayed"] = True
        if outcome.starts_at_ms:
            told["starts_at"] = to_rfc3339(outcome.starts_at_ms)
        if outcome.blocked:
            told["blocked"] = outcome.blocked
    if order is not None and order.key:
        told["idempotency_key"] = order.key
    return encode_json(told) + b"\n"
