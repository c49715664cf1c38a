"""What a caller asks for, and what an accepted operation looks like before the store is asked again. Pure.

Owns the digests of P15. Knows no route and sends nothing.
"""

from __future__ import annotations

from binascii import b2a_base64
from functools import lru_cache
from hashlib import blake2b, sha256
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, cast

import msgspec

from gateway.callbacks import NEXUS
from gateway.payloads import DIGESTS, transfer_ms
from mesh.clock import now_ms
from mesh.errors import Malformed
from mesh.ids import operation_id
from mesh.machine import STATES, Delivery, State
from mesh.store.layout import DataRef, Head, Line, Outcome, Request
from mesh.store.verbs import Accepted, ChildStart, Start
from mesh.wire import is_json_type
from registry.choice import CANARY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.waiters import FirstRequest
    from mesh.blobs.spool import Spooled
    from mesh.store.verbs import Work
    from mesh.tokens import Claim
    from registry.catalog import Endpoint
    from registry.routing import Admitted

CANARY_RETENTION_MS: Final = 600_000
"""Canaries are many and of interest for a short while."""
LEASE_GRACE_MS: Final = 5_000
"""A start request's lease outlives its timeout by this much, so that the sender books its own timeout first."""
DIGESTED_BYTES: Final = 64 << 10
"""An input above this stands in digests as its SHA-256: the least that can be kept outside a record."""
_blank: Final = blake2b(digest_size=16)


class Parent(NamedTuple):
    """The running attempt that starts a child: its task token, and what its journal calls the child.

    `close`: the child is canceled when the parent ends first.
    """

    token: str
    key: str
    close: bool = True


class Later(NamedTuple):
    """When an operation is to begin: `delay_ms` after its acceptance, or at `at_ms` where that is given."""

    delay_ms: int = 0
    at_ms: int = 0

    def left_ms(self) -> int:
        """About how long from now, by this machine's clock."""
        return max(self.at_ms - now_ms(), 0) if self.at_ms else self.delay_ms

    def begins_ms(self, accepted_ms: int) -> int:
        """By the store's clock."""
        return max(self.at_ms, accepted_ms) if self.at_ms else accepted_ms + self.delay_ms


class Order(msgspec.Struct, frozen=True, gc=False):
    """What a caller asks for, checked by its route. Timeouts in ms, 0 = the endpoint's policy decides."""

    namespace: str
    endpoint: str
    service: str
    operation: str
    content_type: str | None
    body: bytes
    key: str
    headers: list[tuple[bytes, bytes]]
    input_at: str = ""
    """JSON Pointer of the input in the caller's request, for errors."""
    callback_url: str = ""
    callback_format: str = NEXUS
    callback_headers: list[tuple[bytes, bytes]] = []
    close_ms: int = 0
    start_ms: int = 0
    run_ms: int = 0
    request_ms: int = 0
    labels: dict[str, str] = {}
    links: list[str] = []
    parent: Parent | None = None
    priority: int = 0
    later: Later | None = None
    large: Spooled | None = None
    """The input where it came in a file; `body` is empty then."""
    data: DataRef | None = None
    """The input where it is kept for the operation `id`."""
    id: str = ""
    pin: str = ""
    """As in mesh/store/layout.py: `v` and the version that must run it, or `c` and the instance that a canary tests."""


Attempt: TypeAlias = "tuple[Work, Endpoint, Admitted]"


class Placed(msgspec.Struct, frozen=True, gc=False):
    """An accepted (or replayed) operation. `first` is open when this request may still carry the outcome."""

    id: str
    replayed: bool
    head: Head
    request: Request
    first: FirstRequest | None
    journal: int = 0
    links: Sequence[str] = ()
    """Of a repeat: as in `Known`."""
    quota: Sequence[tuple[bytes, bytes]] = ()
    """Headers that say what the caller may still have waiting."""
    attempt: Attempt | None = None
    """The first one, leased, which its request makes itself (carrying.py)."""

    @property
    def agent_links(self) -> Sequence[str]:
        """What the agent's 201 linked to, as far as it is known here."""
        return self.links if self.first is None else self.first.links

    @property
    def told(self) -> list[tuple[bytes, bytes]]:
        """Headers of an answer that say how it was accepted."""
        return [(b"idempotency-replayed", b"true"), *self.quota] if self.replayed else [*self.quota]


class Begun(NamedTuple):
    """One of many that were accepted together. `starts_at_ms` 0: at once."""

    id: str
    state: State
    replayed: bool = False
    blocked: str = ""
    starts_at_ms: int = 0


class Known(msgspec.Struct, frozen=True, gc=False):
    """What is known of an operation: `outcome` is None while it runs."""

    id: str
    head: Head
    request: Request
    outcome: Outcome | None
    journal: int = 0
    """Entries in its journal."""
    beat: Line | None = None
    """The last heartbeat that had details."""
    links: Sequence[str] = ()
    """What the agent's 201 linked to."""

    @property
    def state(self) -> State:
        return STATES[self.head.state]


def _digest(*parts: bytes) -> str:
    """128 bits in 22 characters over length-prefixed parts, so that no two different lists look alike."""
    digest = _blank.copy()
    digest.update(b"".join(parts))
    return b2a_base64(digest.digest(), newline=False)[:22].decode()


@lru_cache(maxsize=4096)
def _address(*names: str) -> bytes:
    """What is called, as the digests begin; the same few come again and again."""
    return b"".join([b"%d:%b" % (len(part), part) for part in map(str.encode, names)])


@lru_cache(maxsize=64)
def _type(content_type: str | None) -> bytes:
    """The content type in digests, where none is not the empty one; nearly all have one of a few."""
    raw = b"" if content_type is None else b"=" + content_type.encode("latin-1")
    return b"%d:%b" % (len(raw), raw)


def _content(order: Order) -> tuple[int, bytes]:
    """Size of the input and what stands for it in the digest of P15: the same wherever it is kept."""
    if order.data is not None:
        return order.data.size, bytes.fromhex(order.data.sha256)
    size = len(order.body)
    return size, order.body if size <= DIGESTED_BYTES else sha256(order.body).digest()


def check_json_type(order: Order) -> None:
    """For an operation with a schema: what is labelled as something else is not what the schema is about.

    Raises Malformed `type_invalid`.
    """
    if (order.body or order.large is not None) and not is_json_type((order.content_type or "").encode("latin-1")):
        shown = (order.content_type or "")[:100]
        raise Malformed(f"the operation has a JSON Schema and takes JSON, not {shown!r}", code="type_invalid")


def stored_request(order: Order, endpoint: Endpoint) -> Request:
    """What is kept of an order beside its input."""
    return Request(
        endpoint.name,
        order.service,
        order.operation,
        order.content_type,
        # With a large input the gateway says its digest by itself.
        order.headers if order.data is None else [one for one in order.headers if one[0] not in DIGESTS],
        order.callback_url,
        order.callback_format,
        order.callback_headers,
        order.request_ms,
        order.labels,
        order.key,
        order.links,
        order.data,
    )


def start_arguments(
    order: Order, endpoint: Endpoint, *, session: str, blocked: str, retention_ms: int, claim: Claim | None = None
) -> Start:
    """The store call that accepts `order`; `blocked`: why this gateway cannot send it now, or ""."""
    bounds = endpoint.bounds
    # The name also where the caller gave the id: a repeat by the other is a repeat.
    called = _address(endpoint.name, order.service, order.operation)
    key, callback = order.key.encode(), order.callback_url.encode()
    size, content = _content(order)
    start = Start(
        id=order.id or operation_id(),
        ns=order.namespace,
        endpoint=endpoint.id,
        key=_digest(_address(order.namespace), called, b"%d:%b" % (len(key), key)) if key else "",
        digest=_digest(
            called,
            b"%d:" % size,
            content,
            _type(order.content_type),
            b"%d:%b" % (len(callback), callback) if callback else b"0:",
            # Nothing for most, so that their digests are what they were.
            b"pin:" + order.pin.encode() if order.pin else b"",
        ),
        session=session,
        close_ms=order.close_ms or bounds.close_ms,
        start_ms=order.start_ms or bounds.start_ms,
        run_ms=order.run_ms or bounds.run_ms,
        lease_ms=(order.request_ms or bounds.request_ms) + LEASE_GRACE_MS + transfer_ms(order.data),
        attempts_max=bounds.attempts_max,
        retention_ms=retention_ms,
        callback=_owed(order) if order.callback_url else 0,
        blocked=blocked,
        pin=order.pin,
    )
    if order.pin[:1] == CANARY:
        start.attempts_max, start.retention_ms = 1, CANARY_RETENTION_MS
    if order.later is not None:
        if order.later.at_ms:
            start.starts_at = order.later.at_ms
        else:
            start.delay_ms = order.later.delay_ms
    if order.priority:
        start.priority = order.priority
    if claim is None or order.parent is None:
        return start
    return ChildStart(
        **msgspec.structs.asdict(start),
        parent=claim.operation_id,
        parent_run=claim.run,
        parent_attempt=claim.attempt,
        parent_key=order.parent.key,
        parent_close=int(order.parent.close),
    )


def _owed(order: Order) -> int:
    """Of one with a callback URL: a Nexus caller is owed none when answered with the outcome, an event always (P80)."""
    return 1 if order.callback_format == NEXUS else 2


_STARTED: Final = State.STARTED
_LEASED: Final = Delivery.LEASED
_DELIVERED: Final = Delivery.DELIVERED
_FRESH: Final = Head(
    created_at=0, events=msgspec.Raw(b"\xa0"),
    state=State.SCHEDULED, run=1, attempt=0, seq=2, stamp=0, closed_at=0, owner="", start=Delivery.DUE,
    start_at=0, cancel=0, cancel_at=0, cancel_tries=0, wants_callback=0, callback=0, callback_at=0, callback_tries=0,
    close_by=0, start_by=0, run_ms=0, finish_by=0, beat_ms=0, beat_by=0, lease_ms=0, attempts_max=0, retention_ms=0,
    cancel_asked=0, slot=1, blocked="", endpoint="", namespace="",
)  # fmt: skip
"""Copied, because so many names cost msgspec six times as long as all the rest."""
_fresh: Final = cast("Callable[[], Head]", _FRESH.__copy__)  # pyright: ignore - `copy.copy` looks for it each time


def fresh_head(start: Start, accepted: Accepted) -> Head:
    """The head that `start.lua` wrote."""
    at_ms = accepted.at_ms
    head = _fresh()
    if accepted.attempt:
        head.attempt, head.owner, head.start = accepted.attempt, start.session, _LEASED
    head.created_at = at_ms
    head.start_at = at_ms + start.lease_ms
    head.wants_callback = start.callback
    head.close_by = accepted.close_by_ms or (at_ms + start.close_ms if start.close_ms else 0)
    if start.start_ms:
        head.start_by = at_ms + start.start_ms
    head.run_ms = start.run_ms
    head.lease_ms = start.lease_ms
    head.attempts_max = start.attempts_max
    head.retention_ms = start.retention_ms
    head.blocked = accepted.blocked
    head.endpoint, head.namespace = start.endpoint, start.ns
    if start.pin:
        head.pin = start.pin
    if start.priority:
        head.priority = start.priority
    if type(start) is ChildStart:
        head.parent, head.parent_key = f"{start.parent}.{start.parent_run}", start.parent_key
    return head


def later_head(head: Head, start: Start) -> Head:
    """The head of an operation that begins later: nobody has leased it."""
    later = Later(start.delay_ms or 0, start.starts_at or 0)
    begins = later.begins_ms(head.created_at)
    delay_ms = begins - head.created_at
    if not delay_ms:
        return msgspec.structs.replace(head, seq=2 if head.blocked else 1, slot=0, start_at=begins)
    # A child's bound is its parent's and was counted by the store.
    own = bool(start.close_ms) and head.close_by == head.created_at + start.close_ms
    return msgspec.structs.replace(
        head, seq=1, slot=0, start_at=begins, delay_ms=delay_ms,
        close_by=begins + start.close_ms if own else head.close_by,
        start_by=begins + start.start_ms if start.start_ms else 0,
    )  # fmt: skip


def fetched_head(head: Head, instance: str, lease_ms: int) -> Head:
    """`head`, changed: the attempt went to a poller in the same step (mesh/store/lua/pulling.lua)."""
    head.state, head.owner, head.start, head.start_at, head.start_by = _STARTED, "", _DELIVERED, 0, 0
    head.instance, head.beat_ms, head.beat_by = instance, lease_ms, head.created_at + lease_ms
    if head.run_ms:
        head.finish_by = head.created_at + head.run_ms
    return head
