"""Arguments and replies of the store's verbs. Times are milliseconds of the store's clock.

What every operation makes one of is a msgspec struct: a NamedTuple takes four times as long to make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec

from mesh.machine import Delivery, Kind, State
from mesh.store.layout import Entry, Head, Line, Outcome, Request


class Start(msgspec.Struct):
    """An operation to accept.

    `key` and `digest` are digests as text, for the store knows no msgpack bytes (`key` empty: no idempotency key).
    `*_ms` 0 means none. `blocked` is a reason that the accepting gateway already knows, or ''.
    `callback`: 0 none, 1 owed unless the first request is answered with the outcome (P80), 2 always owed.
    `delay_ms` or `starts_at`: it becomes due then and is leased to nobody before, also where that is at once; all
    timeouts count from then.
    `pin`: as in layout.HEAD.
    """

    id: str
    ns: str
    endpoint: str
    key: str
    digest: str
    session: str
    close_ms: int = 0
    start_ms: int = 0
    run_ms: int = 0
    lease_ms: int = 35_000
    attempts_max: int = 20
    retention_ms: int = 604_800_000
    callback: int = 0
    blocked: str = ""
    delay_ms: int | msgspec.UnsetType = msgspec.UNSET
    starts_at: int | msgspec.UnsetType = msgspec.UNSET
    pin: str = ""
    priority: int | msgspec.UnsetType = msgspec.UNSET


class ChildStart(Start):
    """A start by the handler of another operation, in the journal of which it is called `parent_key`.

    `parent_close` 1: it is canceled when the parent ends before it.
    """

    parent: str = ""
    parent_run: int = 0
    parent_attempt: int = 0
    parent_key: str = ""
    parent_close: int = 1


class Accepted(msgspec.Struct, frozen=True, gc=False):
    """`attempt` 1: leased to the accepting session, which sends it now; 0: it waits, `blocked` says why."""

    at_ms: int
    attempt: int
    blocked: str
    fetched: bool = False
    """The attempt is the poller's that was named; its lease has begun."""
    close_by_ms: int = 0
    room: int | None = None
    """How many more of its namespace may wait here; None where that has no limit."""


class Replayed(NamedTuple):
    """The key is known, with equal content."""

    id: str
    state: State


class KeyReused(NamedTuple):
    """The key is known, with other content; nothing changed."""

    id: str


class Work(msgspec.Struct, frozen=True, gc=False):
    """One delivery leased to this session.

    `extra`: the input of a start, the packed outcome of a callback, the agent's own token of a cancel. `journal`: how
    many entries its journal has. `links`: what the agent's 201 linked to.
    """

    id: str
    kind: Kind
    head: Head
    request: Request
    extra: bytes
    journal: int = 0
    links: Sequence[str] = ()


class Completion(StrEnum):
    """What became of a reported outcome."""

    DONE = "done"
    SAME = "same"
    """An equal outcome was recorded before."""
    DROPPED = "dropped"
    """A failure of a superseded attempt."""
    OTHER = "other"
    """Another outcome was recorded before; the first stands."""
    LEASE_LOST = "lease_lost"
    STALE_RUN = "stale_run"
    UNKNOWN = "unknown"


class Completed(msgspec.Struct, frozen=True, gc=False):
    """`line` is an endpoint with waiting operations, LOOK or ''. `callback` is leased to this session."""

    verdict: Completion
    at_ms: int = 0
    seq: int = 0
    line: str = ""
    callback: Work | None = None
    journal: bool = False
    """It has a journal, which this reply says nothing of."""


LOOK: Final = "*"
"""In place of an endpoint's line: something that belongs to no line became due, so claim at once."""


class Moved(msgspec.Struct, frozen=True, gc=False):
    """Reply of retry, release, started, cancel: the verdict's word, a waiting line, LOOK or '', and leased work."""

    verdict: str
    line: str = ""
    work: Work | None = None


class Claimed(NamedTuple):
    """`next_at_ms` is the earliest timer left, or None."""

    at_ms: int
    works: list[Work]
    ended: list[str]
    lines: list[str]
    next_at_ms: int | None


class Beat(NamedTuple):
    """`left`: operations that dead sessions still hold, to be taken over by beating again at once."""

    alive: bool
    at_ms: int
    sessions: int
    registry_version: int
    left: int = 0


class Task(NamedTuple):
    """One running attempt that an agent reports on; `lease_ms` 0 keeps the length of the lease.

    `details`: JSON to show beside the operation until the next that has some.
    """

    id: str
    run: int
    attempt: int
    lease_ms: int
    details: bytes = b""


class Append(NamedTuple):
    """Elements for a journal or stream, of which the agent knows the first `at`."""

    id: str
    run: int
    attempt: int
    at: int
    bodies: Sequence[bytes]


class Suspend(NamedTuple):
    """An attempt that ends because its handler waits; see suspend.lua."""

    id: str
    run: int
    attempt: int
    at: int
    wake_in_ms: int = 0
    wake_at_ms: int = 0
    cancel: int = 0


class Step(NamedTuple):
    """What became of an Append or Suspend.

    `status`: `ok`, `grown` (there is news that the agent does not know), `full`, `lost`, `ended`, `unknown`. `length`
    is the number of elements, after its own when it is ok. `line`: an endpoint whose line may move, LOOK, or "".
    """

    status: str
    length: int = 0
    cancel: bool = False
    line: str = ""


class Wanted(NamedTuple):
    """Elements of a journal or stream after the first `after`; `run` 0: for anybody, not for an attempt alone."""

    id: str
    run: int
    attempt: int
    after: int
    limit: int


class Page(NamedTuple):
    """Elements of a journal or stream, and how long both are. `status`: `ok`, `lost`, `ended`, `unknown`."""

    status: str
    cancel: bool = False
    journal: int = 0
    stream: int = 0
    created_at_ms: int = 0
    lines: Sequence[Line] = ()


class Seat(msgspec.Struct):
    """Room for `count` attempts at a poller; `lease_ms`: within that it must be heard of; `version` "" for none."""

    instance: str
    count: int
    lease_ms: int
    version: str = ""


class Pulled(NamedTuple):
    """Attempts handed out, each with the instance that has it. `more`: the line goes on behind the first `skip`."""

    at_ms: int
    works: list[tuple[Work, str]]
    stopped: str
    skip: int
    more: bool


class Record(NamedTuple):
    """An operation as read. `events` is empty when they were not asked for.

    `journal` is the number of entries, `beat` the last heartbeat that had details, `links` those of the agent's 201.
    """

    id: str
    head: Head
    request: Request
    outcome: Outcome | None
    events: list[Entry]
    journal: int = 0
    beat: Line | None = None
    links: Sequence[str] = ()

    @property
    def state(self) -> State:
        return State(self.head.state)


class Due(NamedTuple):
    """A delivery of a record, for lists."""

    id: str
    operation_id: str
    kind: Kind
    state: Delivery
    tries: int
    at_ms: int


class EndpointRow(NamedTuple):
    """An endpoint as stored. `document` is the registry's JSON."""

    id: str
    name: str
    owner: str
    version: int
    paused: bool
    running: int
    waiting: int
    created_at_ms: int
    updated_at_ms: int
    document: bytes
    versions: bytes = b""
    """What is said of its versions, packed (`Share` by version)."""
    contract: int = 0
    """The version at which its contract changed last, 0 unknown."""


class Share(NamedTuple):
    """How one version shares in the work: `weight` and `percent` -1 for what its instances weigh.

    `draining_since_ms` 0: it does not drain.
    """

    weight: int = -1
    percent: float = -1
    draining_since_ms: int = 0


class Check(NamedTuple):
    """What is known of one check of an instance; times ms of the store's clock.

    `row`: results in a row that say the opposite of `failing`. `why`: of the last failure, "" while it passes.
    """

    failing: bool
    row: int
    since_ms: int
    at_ms: int
    why: str


class InstanceRow(NamedTuple):
    """An instance as stored; `expires_at_ms` is the end of its lease."""

    id: str
    document: bytes
    expires_at_ms: int
    since_ms: int
    draining: int
    """1: it left by itself; 2: it was told to; 0: it serves."""
    arrivals_ms: Sequence[int] = ()
    """When it came last: new, back, or as a new process; oldest first."""
    checks: Mapping[str, Check] = MappingProxyType({})
    """By kind: `probe`, `canary:` and the service."""
    contract: int = 0
    """The `contract` of its endpoint when its process registered, 0 unknown."""
