"""What the store's tests share: a joined gateway, an endpoint, short words for long calls, and the key-leak checker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import pytest

from mesh.clock import monotonic_s, sleep
from mesh.ids import operation_id
from mesh.machine import Event, State
from mesh.store.catalog import CatalogStore
from mesh.store.functions import load_library
from mesh.store.layout import Outcome, Request
from mesh.store.link import Link
from mesh.store.pulls import PullStore
from mesh.store.store import Store, pack
from mesh.store.verbs import Accepted, Claimed, Completed, KeyReused, Moved, Replayed, Start, Work
from tests.model.snapshot import Kept, Snapshot, faults, take

G1: Final = "g1.s-1"
"""The session of the gateway under test."""
G2: Final = "g2.s-1"
"""The session of another gateway."""
ENDPOINT: Final = "e-1"
NS: Final = "default"
WITHIN_S: Final = 30.0

RESULT: Final = pack(Outcome("result", "", "application/json", b'{"ok":true}'))
OTHER_RESULT: Final = pack(Outcome("result", "", "application/json", b'{"ok":false}'))
FAILURE: Final = pack(Outcome("failure", body=b'{"message":"no"}'))
CANCELED: Final = pack(Outcome("failure", body=b'{"message":"stopped"}'))
GIVEN_UP: Final = pack(Outcome("mesh", "attempts_exhausted"))

Found = TypeVar("Found")


class Room:
    """One store, seen through the verbs of two gateways; `g1` calls when nothing else is said."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.store = Store(link)
        self.pulls = PullStore(link)
        self.catalog = CatalogStore(link)

    async def open(self) -> None:
        """Both gateways join; one endpoint without limits."""
        await self.store.beat(G1, join=True)
        await self.store.beat(G2, join=True)
        await self.endpoint()

    async def endpoint(
        self,
        *,
        max_concurrency: int = 0,
        rate_per_s: float = 0,
        name: str = "work",
        pull: bool = False,
        retry: str = "1000 2 60000 0",
        limits: dict[str, str] | None = None,
    ) -> str:
        """Create the endpoint or change its limits; the document differs with them, as the registry's does.

        `limits`: namespace or `*` to its `rate concurrency weight cap`.
        """
        shares = [text for pair in (limits or {}).items() for text in pair]
        said = f'{{"max":{max_concurrency},"rate":{rate_per_s},"pull":{pull},"retry":{retry!r},"of":{shares}}}'
        document = said.encode()
        candidate = ENDPOINT if name == "work" else f"e-{name}"
        put = await self.catalog.endpoint_put(
            name,
            NS,
            candidate,
            document,
            if_match="",
            max_concurrency=max_concurrency,
            rate_per_s=rate_per_s,
            pull=pull,
            retry=retry,
            limits=shares,
        )
        return put[1]

    # Callers

    def order(self, key: str = "", content: str = "c1", **fields: Any) -> Start:
        """Arguments of a start; `content` stands for the digest of what is asked."""
        given: dict[str, Any] = {"id": operation_id(), "ns": NS, "endpoint": ENDPOINT, "session": G1}
        return Start(key=key, digest=content, **(given | fields))

    async def start(
        self, order: Start, body: bytes = b'{"n":1}', *, seat: tuple[bytes, ...] = (), service: str = "Svc"
    ) -> Accepted | Replayed | KeyReused:
        """Send `order` as it is."""
        request = Request("work", service, "op", "application/json", [(b"x-team", b"a")], idempotency_key=order.key)
        if order.callback:
            request.callback_url = "http://receiver.test/done"
        return await self.store.start(order, request, body, seat)

    async def many(self, orders: Sequence[Start]) -> list[Any]:
        """Send `orders` in one call."""
        request = Request("work", "Svc", "op", "application/json")
        return [*await self.store.start_many([(order, request, b"1") for order in orders])]

    async def accepted(self, key: str = "", **fields: Any) -> str:
        """Start one operation and return its id."""
        order = self.order(key, **fields)
        reply = await self.start(order)
        assert isinstance(reply, Accepted)
        return order.id

    async def cancel(self, one: str, session: str = G1) -> Moved:
        moved = await self.store.cancel(one, NS, session)
        assert moved is not None
        return moved

    # Agents

    async def started(self, one: str, attempt: int = 1, *, session: str = G1, beat_ms: int = 0) -> Moved:
        """The agent answered 201."""
        return await self.store.started(one, 1, attempt, session, f"token-{attempt}", beat_ms)

    async def succeed(
        self, one: str, attempt: int = 1, outcome: bytes = RESULT, *, session: str = G1, answered: bool = False
    ) -> Completed:
        return await self.store.complete(one, 1, attempt, Event.SUCCEED, outcome, session=session, answered=answered)

    async def fail(self, one: str, attempt: int = 1, outcome: bytes = FAILURE) -> Completed:
        return await self.store.complete(one, 1, attempt, Event.FAIL, outcome, session=G1)

    async def report_canceled(self, one: str, attempt: int = 1) -> Completed:
        return await self.store.complete(one, 1, attempt, Event.CANCEL, CANCELED, session=G1)

    async def retry(self, one: str, attempt: int = 1, delay_ms: int = 60_000) -> Moved:
        """The attempt failed in a way worth repeating."""
        return await self.store.retry(one, 1, attempt, delay_ms=delay_ms, detail="503", outcome=GIVEN_UP)

    # Couriers

    async def claim(self, session: str = G1, count: int = 64) -> Claimed:
        return await self.store.claim(session, count)

    async def claimed(self, *, session: str = G1, count: int = 1) -> list[Work]:
        """Claim until `count` works came, bounded."""
        works: list[Work] = []

        async def look() -> bool:
            works.extend((await self.claim(session)).works)
            return len(works) >= count

        await eventually(look)
        return works

    async def ended_by_timer(self, one: str, session: str = G1) -> Kept:
        """Claim until a timer ended the operation, bounded."""

        async def look() -> bool:
            return one in (await self.claim(session)).ended

        await eventually(look)
        return await self.kept(one)

    # What is there

    async def snapshot(self) -> Snapshot:
        """Everything, after checking that it fits together."""
        snapshot = await take(self.link)
        assert faults(snapshot) == []
        return snapshot

    async def kept(self, one: str) -> Kept:
        return (await self.snapshot()).operations[one]

    async def state(self, one: str) -> State:
        return (await self.kept(one)).state

    async def passed(self, at_ms: int) -> None:
        """Wait until the store's clock says so."""

        async def look() -> bool:
            seconds, micros = await self.link.call("TIME")
            return int(seconds) * 1000 + int(micros) // 1000 >= at_ms

        await eventually(look)

    async def died(self, session: str) -> None:
        """Make a session look as if it had been silent for an hour."""
        await self.link.call("ZADD", self.store.keys.sessions, 1, session)


async def eventually(look: Callable[[], Awaitable[Found]], within_s: float = WITHIN_S) -> Found:
    """What `look` finds, as soon as it is true."""
    end_s = monotonic_s() + within_s
    while not (found := await look()):
        assert monotonic_s() < end_s, f"never came true: {look}"
        await sleep(0.002)
    return found


@pytest.fixture
async def room(link: Link) -> AsyncIterator[Room]:
    """An empty store with two gateways and one endpoint. A test that leaves a key without an owner fails."""
    await load_library(link.call)
    room = Room(link)
    await room.open()
    yield room
    await room.snapshot()
