"""A small run in which everything is right, to be broken in one place at a time by the checker's own tests.

One operation with a callback, started at gateway `a`, dispatched once, answered 201, completed by token, read by its
caller, told to the receiver; one fault phase with a fault in it. Times: a line every 10 ms.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from mesh.events import EventKind
from mesh.machine import Delivery, State
from mesh.store.layout import Entry, Head, Outcome, Request
from tests.chaos.history import Kind, Line, What, digest
from tests.chaos.snapshot import Snapshot, Stored
from tests.chaos.view import content_of

OP: Final = "00-00000000000000000001"
KEY: Final = "key-1"
INPUT: Final = digest(b'{"n":1}')
URL: Final = "http://127.0.0.1:1/cb"
RESULT: Final = b'{"mark":"m1"}'
RETENTION_MS: Final = 604_800_000
CREATED_MS: Final = 1_000_000
STEP_NS: Final = 10_000_000


def head(**fields: Any) -> Head:
    """The head of an operation that succeeded and whose callback was delivered."""
    sound: dict[str, Any] = dict.fromkeys(Head.__struct_fields__, 0) | {
        "state": State.SUCCEEDED, "run": 1, "attempt": 1, "seq": 5, "stamp": 50, "created_at": CREATED_MS,
        "closed_at": CREATED_MS + 40, "events": msgspec.Raw(b"\xa0"), "owner": "", "start": Delivery.DELIVERED,
        "wants_callback": 1, "callback": Delivery.DELIVERED, "callback_tries": 1, "lease_ms": 8_000, "attempts_max": 20,
        "retention_ms": RETENTION_MS, "blocked": "", "endpoint": "e-1", "namespace": "default",
    }  # fmt: skip
    return Head(**(sound | fields))


def events(*codes: EventKind) -> list[Entry]:
    """A history of the first attempt, one event every 10 ms."""
    return [Entry(code, 10 * at, 0 if code is EventKind.ACCEPTED else 1) for at, code in enumerate(codes)]


class World:
    """`lines` and `snapshot` of a sound run; `operation`, `line(...)` and `add(...)` are for whoever breaks it."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.operation = Stored(
            OP,
            head(),
            Request("work", "work", "slow", "application/json", callback_url=URL, idempotency_key=KEY),
            Outcome("result", "", "application/json", RESULT),
            events(
                EventKind.ACCEPTED,
                EventKind.DISPATCHED,
                EventKind.STARTED,
                EventKind.SUCCEEDED,
                EventKind.CALLBACK_DELIVERED,
            ),
            INPUT,
            "k1",
        )
        self.snapshot = Snapshot(
            operations={OP: self.operation},
            at_ms=CREATED_MS + 1_000,
            due={OP: CREATED_MS + 40 + RETENTION_MS},
            sessions={"a.s-1": CREATED_MS},
            index={"default": [OP]},
            keys={"k1": OP},
            running={"e-1": 0},
        )
        self.call(What.START, "ok", key=KEY, content=CONTENT, input=INPUT, op=OP, status=202, state="scheduled", seq=2)
        self.info(What.INVOKED, "worker-a.1", op=OP, run=1, attempt=1, input=INPUT, request_id=f"{OP}.1")
        self.info(What.EXECUTED, "worker-a.1", op=OP, run=1, attempt=1, mark="m1", digest=digest(RESULT))
        self.call(What.COMPLETED, "ok", "worker-a.1", op=OP, mark="m1", state="succeeded", status=200, attempt=1)
        self.call(What.READ, "ok", op=OP, state="succeeded", seq=4, status=200)
        self.call(What.RESULT, "ok", op=OP, state="succeeded", digest=digest(RESULT), status=200)
        self.received()
        self.info(What.FAULT, "harness", detail={"name": "kill gateway a #1", "fired": True})
        phase = {"name": "one", "faults": ["kill gateway a #1"], "begun_ns": 0, "ended_ns": 1 << 60}
        self.info(What.PHASE, "harness", detail=phase)

    @property
    def now_ns(self) -> int:
        return (len(self.lines) + 1) * STEP_NS

    def line(self, what: What, kind: Kind = Kind.OK) -> Line:
        """The first line about `what` of this kind."""
        return next(line for line in self.lines if line.what is what and line.kind is kind)

    def add(self, kind: Kind, what: What, process: str, **fields: Any) -> Line:
        self.lines.append(Line(process, kind, what, self.now_ns, **fields))
        return self.lines[-1]

    def call(self, what: What, kind: str | None, process: str = "caller-1", **fields: Any) -> None:
        """An invoke and its outcome; `kind` None: it never came back."""
        asked = {name: fields[name] for name in ("key", "content", "input", "mark", "attempt") if name in fields}
        if what is not What.START:
            asked["op"] = fields["op"]
        if what is What.COMPLETED:
            asked["state"] = fields["state"]
        call = f"c{len(self.lines)}"
        self.add(Kind.INVOKE, what, process, call=call, **asked)
        if kind is not None:
            self.add(Kind(kind), what, process, call=call, **fields)

    def info(self, what: What, process: str, **fields: Any) -> None:
        self.add(Kind.INFO, what, process, **fields)

    def received(self, **fields: Any) -> None:
        """The callback reaches the receiver."""
        sound: dict[str, Any] = {
            "op": OP, "request_id": f"{OP}.1", "state": "succeeded", "digest": digest(RESULT), "status": 200,
            "detail": {"signature": True, "age_s": 0},
        }  # fmt: skip
        self.info(What.RECEIVED, "receiver", **(sound | fields))

    def start(self, kind: str | None = "ok", **fields: Any) -> None:
        """One more start with the key of the operation."""
        sound: dict[str, Any] = {"key": KEY, "content": CONTENT, "input": INPUT, "op": OP, "status": 202}
        self.call(What.START, kind, **(sound | fields))

    def twin(self, op: str, **fields: Any) -> Stored:
        """A second, sound operation in the store that no caller and no agent knows."""
        twin = msgspec.structs.replace(self.operation, id=op, head=head(**fields), key="k2")
        self.snapshot.operations[op] = twin
        self.snapshot.due[op] = twin.head.closed_at + RETENTION_MS
        self.snapshot.index["default"].append(op)
        self.snapshot.keys["k2"] = op
        return twin


CONTENT: Final = content_of("work", "work", "slow", INPUT, URL)
