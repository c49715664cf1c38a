"""Reading operations and waiting for them: the first request's own wait, long-polls, the history.

State never changes here, and no transition begins with a read from here. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import msgspec
from msgspec.structs import replace

from gateway.history import Events, merged, span
from gateway.orders import Known, Placed
from gateway.waiters import wait_for
from mesh.clock import monotonic_s
from mesh.errors import ConfigError, NotFound, StoreUnsafe, Unavailable
from mesh.ids import is_operation_id
from mesh.store.durable import JOURNAL, STREAM

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Sequence

    from gateway.waiters import Ending, FirstRequest, Waiters
    from mesh.store.layout import Line
    from mesh.store.store import Store
    from mesh.store.verbs import Record

Gone: TypeAlias = "Callable[[], Awaitable[None]]"
"""Returns when the caller hangs up."""

LAST_LOOK_S: Final = 0.05
"""What a look at the store may take when the wait is as good as over."""
BOOKING_S: Final = 6.0
"""How long an answer may wait for the store call that already claimed it; above the link's own deadline."""


class History(NamedTuple):
    """Some events of an operation, each with its number, and how many there are in all."""

    record: Record
    events: Events
    total: int


class Stream(NamedTuple):
    """Some chunks of an operation, and how many there are in all."""

    known: Known
    lines: Sequence[Line]
    total: int


class Reading:
    """Operations as anybody may see them who knows their namespace."""

    def __init__(self, store: Store, waiters: Waiters) -> None:
        self._store = store
        self._waiters = waiters

    def ending_here(self, placed: Placed) -> Ending | None:
        """As `first_outcome`, where all of it came already; `ended` says what is known."""
        first = placed.first
        ending = None if first is None else first.ending
        if first is None or ending is None or ending.journal or ending.outcome.data is not None:
            return None
        self._waiters.close(placed.id, first)
        return ending

    async def first_outcome(self, placed: Placed, wait_s: float, gone: Gone) -> Known | None:
        """The outcome within `wait_s`, for the request that started the operation; None when it is not there yet.

        Afterwards the request is no longer open: what ends later owes the callback.
        """
        first = placed.first
        if first is None:
            return await self.outcome(placed, wait_s, gone) if placed.replayed else None
        deadline_s = monotonic_s() + wait_s
        try:
            if first.ending is not None:
                return await self._known(placed, first.ending)
            if wait_s > 0 and not first.settled:
                found = await self._watch_first(placed, first, deadline_s, gone)
                if found is not None:
                    return found
            # An outcome on its way into the store counts on this request to carry it: no 201 before that is over.
            first.close()
            ending = await first.wait(BOOKING_S)
            if ending is not None:
                return await self._known(placed, ending)
            return await self.outcome(placed, 0) if first.unsure or not first.settled else None
        finally:
            self._waiters.close(placed.id, first)

    async def _known(self, placed: Placed, ending: Ending) -> Known:
        if not ending.journal:
            return ended(placed, ending)
        return await self._try_read(placed.id, monotonic_s()) or ended(placed, ending)

    async def _watch_first(
        self, placed: Placed, first: FirstRequest, deadline_s: float, gone: Gone
    ) -> Known | None:
        """Wait on all ways an operation can end: here, at another gateway, by its timers. None: over, or claimed."""
        with self._waiters.watching(placed.id) as moved, _told_of(gone, moved) as hung_up:
            first.moved = moved
            while not first.settled and not hung_up.done():
                if not first.claimed:
                    known = await self._try_read(placed.id, deadline_s)
                    if known is not None and known.state.terminal and not first.claimed:
                        return known
                left_s = deadline_s - monotonic_s()
                if left_s <= 0 or self._waiters.ended:
                    break
                await wait_for(moved, left_s)
        return None

    async def _try_read(self, operation: str, deadline_s: float) -> Known | None:
        # The operation is durable: a store that went away since does not turn its acceptance into an error, and does
        # not hold up the caller either.
        try:
            async with asyncio.timeout(max(deadline_s - monotonic_s(), LAST_LOOK_S)):
                return await self.read(operation)
        except (TimeoutError, Unavailable, StoreUnsafe, ConfigError):
            return None

    async def at_last(self, placed: Placed) -> tuple[Placed, Known | None]:
        """What an answer after a wait without outcome should say: the operation at this moment, and it if it ended."""
        known = await self._try_read(placed.id, monotonic_s())
        if known is None:
            return placed, None
        return replace(placed, head=known.head), known if known.state.terminal else None

    async def outcome(self, placed: Placed, wait_s: float, gone: Gone | None = None) -> Known | None:
        """The outcome within `wait_s`, for anybody; None while it runs."""
        known = await self.result(placed.id, placed.head.namespace, wait_s, gone)
        return known if known.state.terminal else None

    async def read(self, operation: str) -> Known | None:
        """The present record whatever its namespace; routes use `get`."""
        record = await self._store.read(operation)
        if record is None:
            return None
        return Known(operation, record.head, record.request, record.outcome, record.journal, record.beat, record.links)

    async def get(self, operation: str, namespace: str) -> Known:
        """Raises NotFound, also for another namespace's operation."""
        known = await self.read(operation) if is_operation_id(operation) else None
        if known is None or known.head.namespace != namespace:
            raise unknown_operation(operation)
        return known

    async def at_work(self, operation: str) -> Known:
        """The record, for an agent that proved to have an attempt of it. Raises NotFound once it is gone."""
        known = await self.read(operation)
        if known is None:
            raise unknown_operation(operation)
        return known

    async def input(self, operation: str) -> bytes:
        """The input that a record has in itself."""
        return await self._store.input(operation) or b""

    async def result(self, operation: str, namespace: str, wait_s: float, gone: Gone | None = None) -> Known:
        """The record once it is terminal, or after `wait_s` or when `gone` returns as it is. Raises NotFound."""
        known = await self.get(operation, namespace)
        if not known.state.terminal and wait_s > 0:
            deadline_s = monotonic_s() + wait_s
            with self._waiters.watching(operation) as moved, _told_of(gone or _never, moved) as hung_up:
                while True:
                    known = await self.get(operation, namespace)
                    left_s = deadline_s - monotonic_s()
                    if known.state.terminal or left_s <= 0 or self._waiters.ended or hung_up.done():
                        break
                    await wait_for(moved, left_s)
        return known

    async def whole(self, operation: str, namespace: str) -> Record:
        """The record with its own events. Raises NotFound."""
        while True:
            record = await self._store.read(operation, events=True) if is_operation_id(operation) else None
            if record is None or record.head.namespace != namespace:
                raise unknown_operation(operation)
            if len(record.events) == record.head.seq:
                return record
            # Something happened between the two looks; an end that is known goes with all that came before it.

    async def history(self, operation: str, namespace: str, after: int, limit: int) -> History:
        """The events after number `after`, at most `limit` and about 1 MiB of journal. Raises NotFound."""
        record = await self.whole(operation, namespace)
        part = span(record.events, record.journal, after, limit)
        lines: Sequence[Line] = ()
        if part.to > part.from_:
            lines = (await self._store.lines(operation, JOURNAL, part.from_, part.to - part.from_)).lines
        found = merged(operation, record.head.created_at, record.events, part, lines)
        return History(record, found, len(record.events) + record.journal)

    async def stream(self, operation: str, namespace: str, after: int, limit: int) -> Stream:
        """The chunks after number `after`, with the record as it was before them. Raises NotFound."""
        known = await self.get(operation, namespace)
        page = await self._store.lines(operation, STREAM, after, limit)
        return Stream(known, page.lines, page.stream)


async def _never() -> None:
    await asyncio.get_running_loop().create_future()


@contextmanager
def _told_of(gone: Gone, moved: asyncio.Event) -> Generator[asyncio.Future[None]]:
    """Sets `moved` when the caller hangs up: nobody waits for whom nobody is left."""
    hung_up = asyncio.ensure_future(gone())
    hung_up.add_done_callback(lambda _: moved.set())
    try:
        yield hung_up
    finally:
        hung_up.cancel()


def unknown_operation(operation: str) -> NotFound:
    """The one wording for an operation that is not there, or not there for this namespace."""
    return NotFound(f"there is no operation {operation[:64]!r}", code="unknown_operation")


def ended(placed: Placed, ending: Ending) -> Known:
    """What is known of an operation whose outcome was recorded here, without asking the store."""
    head = msgspec.structs.replace(
        placed.head,
        state=ending.state,
        attempt=ending.attempt,
        seq=ending.seq,
        closed_at=ending.closed_at_ms,
        stamp=ending.closed_at_ms - placed.head.created_at,
        blocked="",
    )
    return Known(placed.id, head, placed.request, ending.outcome, links=placed.agent_links)
