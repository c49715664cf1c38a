"""How an operation lies in the store: the one place that knows the record's fields and their packing.

Hash fields: `h` head (msgpack array in the order of HEAD, rewritten by transitions), `q` what was sent (`Content`,
written once; Lua reads no further than the service), `i` input bytes (small ones lie in `q`), `r` outcome (msgpack
array), `t` the agent's own token, `l` links of its 201 (msgpack array of texts), `b` the last heartbeat's details
(`Line`), `p` of a child whose outcome its parent's journal only names.
A field is absent when it is empty. Journal and stream are lists of their own, whose elements are `Line`s.
"""

from __future__ import annotations

from struct import Struct
from typing import Any, Final, NamedTuple

import msgspec

HEAD: Final = (
    "created_at",
    "events",  # msgpack arrays (`Entry`) one after the other, as one text
    "state",
    "run",
    "attempt",
    "seq",  # number of events, the last per-operation sequence number
    "stamp",  # `after_ms` of the last event, so that stamps never run backwards when the clock does
    "closed_at",
    "owner",  # session that holds a lease of any delivery, or ""
    "start",  # delivery states and their times: due time when due, end of lease when leased, of death when dead
    "start_at",
    "cancel",
    "cancel_at",
    "cancel_tries",
    "wants_callback",  # 0 no callback; 1 owed unless the first request was answered with the outcome; 2 always owed
    "callback",
    "callback_at",
    "callback_tries",
    "close_by",  # schedule-to-close, store clock, 0 = none
    "start_by",  # schedule-to-start
    "run_ms",  # start-to-close, armed at the 201
    "finish_by",
    "beat_ms",  # heartbeat lease length; 0 until the attempt is leased
    "beat_by",
    "lease_ms",  # how long one start request may be out
    "attempts_max",
    "retention_ms",
    "cancel_asked",  # 1 once the caller asked
    "slot",  # 1 while it counts against max_concurrency
    "blocked",
    "endpoint",
    "namespace",
    "instance",  # who fetched the present or the last attempt of an endpoint of kind pull, or ""
    "resumes",  # attempts that do not count against attempts_max
    "journal",  # 1 once it keeps a journal (the list may be empty): only its handler ends it when it is canceled
    "suspended",  # since when no attempt is out because the handler waits, or 0
    "refused",  # the highest superseded attempt whose late step was refused and shown
    "parent",  # `{operation id}.{run}` whose handler started it, or ""
    "parent_key",  # what the parent's journal calls it
    "children",  # 0 none, 1 it started some, 2 it ended and the unfinished ones are yet to be canceled
    "delay_ms",  # from acceptance to when it may begin; 0 for one that begins at once
    "pin",  # "" any instance, else `v` and the version that must run it, or `c` and the instance that a canary tests
    "counted",  # the instance with a version at which the present attempt is out (it answered 201), or ""
    "priority",  # 0 to 9, 9 goes first
)
"""Times in milliseconds of the store's clock. Order is stored; append only, with a default in Head, and raise
keys.SCHEMA on any other change."""

TIMES: Final = (
    "closed_at", "start_at", "cancel_at", "callback_at", "close_by", "start_by", "finish_by", "beat_by", "suspended",
)  # fmt: skip
"""Packed as what follows the acceptance: 0 none, 1 the same millisecond, 2 the next, and -1 the one before it (a clock
may step back). So heads that went the same way differ in `created_at` alone, which lies in front, and what became of
one is known of the next (lua/alike.lua)."""


class Head(msgspec.Struct, array_like=True):
    """Decoded `h`; field meanings stand in HEAD.

    Nothing in it is an operation's own: those that were accepted and went on together have one head, byte for byte.
    """

    created_at: int
    events: msgspec.Raw
    """Packed; for decode_events."""
    state: int
    run: int
    attempt: int
    seq: int
    stamp: int
    closed_at: int
    owner: str
    start: int
    start_at: int
    cancel: int
    cancel_at: int
    cancel_tries: int
    wants_callback: int
    callback: int
    callback_at: int
    callback_tries: int
    close_by: int
    start_by: int
    run_ms: int
    finish_by: int
    beat_ms: int
    beat_by: int
    lease_ms: int
    attempts_max: int
    retention_ms: int
    cancel_asked: int
    slot: int
    blocked: str
    endpoint: str
    namespace: str
    instance: str = ""
    resumes: int = 0
    journal: int = 0
    suspended: int = 0
    refused: int = 0
    parent: str = ""
    parent_key: str = ""
    children: int = 0
    delay_ms: int = 0
    pin: str = ""
    counted: str = ""
    priority: int = 0


_FIELDS: Final = msgspec.structs.fields(Head)
HEAD_TYPES: Final = tuple(field.type for field in _FIELDS)
HEAD_DEFAULTS: Final[tuple[str | int, ...]] = tuple(field.default for field in _FIELDS if not field.required)
"""Of the last fields. A head in which all of them have these ends before them; fewer, as before there were so many, may
be missing too."""


class DataRef(msgspec.Struct, array_like=True, frozen=True):
    """Bytes that are kept outside the record, under their operation's id and their SHA-256 (hex), in a blob store.

    `place` is the kind of that store, so that a gateway with another one can say what is wrong.
    """

    place: str
    sha256: str
    size: int


class Request(msgspec.Struct, array_like=True, omit_defaults=True):
    """Decoded `q`: what the caller asked for, written once. Header names are lower case."""

    endpoint: str
    service: str
    operation: str
    content_type: str | None
    headers: list[tuple[bytes, bytes]] = []
    callback_url: str = ""
    callback_format: str = "nexus"
    callback_headers: list[tuple[bytes, bytes]] = []
    request_timeout_ms: int = 0
    labels: dict[str, str] = {}
    idempotency_key: str = ""
    links: list[str] = []
    data: DataRef | None = None
    """The input, where it is too large for the record."""


class Content(msgspec.Struct, array_like=True):
    """Decoded `q`. `key`: digest of the scoped idempotency key, or ""; `digest` of the content."""

    key: str
    digest: str
    request: Request
    input: bytes = b""
    """Where it is no longer than INSIDE_BYTES_MAX."""


INSIDE_BYTES_MAX: Final = 512
"""Each value more of a record costs the store as much as some hundred bytes of it."""


class Outcome(msgspec.Struct, array_like=True, omit_defaults=True):
    """Decoded `r`.

    `kind`: `result` (body and type as the handler sent them), `failure` (OperationError JSON of a failed or canceled
    operation), `handler_error` (a refusal of the handler: HandlerError JSON in `body`, and `status`, `headers`,
    `original` body to answer the first request with), or `mesh` (ended by the mesh: `reason` says why, `body` is the
    last failure as JSON or empty).
    """

    kind: str
    reason: str = ""
    content_type: str | None = None
    body: bytes = b""
    status: int = 0
    headers: list[tuple[bytes, bytes]] = []
    links: list[str] = []
    original: bytes = b""
    data: DataRef | None = None
    """The result, where it is too large for the record; `body` is empty then."""


class Entry(msgspec.Struct, array_like=True):
    """One packed event: code of mesh.events.EventKind, milliseconds since acceptance, attempt, optional detail.

    `journal` is the length of the journal at that moment, which gives the event its place between the entries. Lua
    writes False for a detail that only stands in front of it.
    `instance`: the one whose answer it was, or "".
    """

    code: int
    after_ms: int
    attempt: int
    detail: Any = None
    journal: int = 0
    instance: str = ""


class Line(NamedTuple):
    """One element of a journal or stream: a fixed head, written by the store (prelude.lua), and a body.

    `total` counts the bytes of all bodies up to this one. `child` is (state, operation id, key): the store's own
    entry about a child that ended, whose body is its packed `Outcome`, or nothing where that would be too large; else
    the body is the agent's own JSON, byte for byte.
    """

    after_ms: int
    attempt: int
    total: int
    child: tuple[int, str, str] | None
    body: bytes


_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
_decode_head = msgspec.msgpack.Decoder(Head, strict=False).decode
decode_content = msgspec.msgpack.Decoder(Content).decode
decode_outcome = msgspec.msgpack.Decoder(Outcome).decode
decode_links = msgspec.msgpack.Decoder(list[str]).decode
_decode_entries = msgspec.msgpack.Decoder(list[Entry]).decode
_TEXT_FRAME: Final = {0xD9: 2, 0xDA: 3, 0xDB: 5}
"""Bytes in front of a msgpack text that has 32 or more, by the first of them."""
_LINE: Final = Struct(">BQII")  # 1: about a child; after_ms, attempt, total
_CHILD: Final = Struct(">BBH")  # state, bytes of the id, bytes of the key
_line, _line_bytes = _LINE.unpack_from, _LINE.size
_child, _child_bytes = _CHILD.unpack_from, _CHILD.size


def decode_head(packed: bytes) -> Head:
    """Decode `h`. Raises msgspec.MsgspecError."""
    head = _decode_head(packed)
    created = head.created_at
    for name in TIMES:
        if after := getattr(head, name):
            setattr(head, name, created + after - (after > 0))
    return head


def decode_events(head: Head) -> list[Entry]:
    """A text of `seq` msgpack arrays: in place of its own frame, which is that of a text, it gets that of an array."""
    packed = bytes(head.events)
    return _decode_entries(b"\xdd" + head.seq.to_bytes(4, "big") + packed[_TEXT_FRAME.get(packed[0], 1) :])


def decode_line(element: bytes) -> Line:
    """One element of a journal or stream."""
    child, after_ms, attempt, total = _line(element)
    if not child:
        return Line(after_ms, attempt, total, None, element[_line_bytes:])
    state, id_bytes, key_bytes = _child(element, _line_bytes)
    key_at = _line_bytes + _child_bytes + id_bytes
    body_at = key_at + key_bytes
    known = (state, element[key_at - id_bytes : key_at].decode(), element[key_at:body_at].decode())
    return Line(after_ms, attempt, total, known, element[body_at:])
