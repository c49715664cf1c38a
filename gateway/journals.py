"""What agents say of running attempts under their task tokens: heartbeats, journal, stream, suspension.

Owns what a token may do and who is told of it. Entries and chunks are the agents' own JSON, checked by the route and
kept byte for byte. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from gateway.history import child_entry
from gateway.reading import Reading
from gateway.waiters import wait_for
from mesh.clock import monotonic_s, now_ms
from mesh.errors import Conflict, Gone, TooMany, Unauthenticated, Unavailable
from mesh.store.durable import JOURNAL, STREAM
from mesh.store.layout import DataRef, Line, Outcome, decode_outcome
from mesh.store.verbs import LOOK, Append, Completion, Page, Step, Suspend, Task, Wanted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Sequence

    from gateway.metrics import Metrics
    from gateway.payloads import Payloads
    from gateway.waiters import Waiters
    from mesh.store.store import Store
    from mesh.tokens import Claim, CompletionTokens

SOON_MS: Final = 300
"""A wake-up nearer than this is before the ticker's next look."""
ANSWER_BYTES: Final = 2 << 20
"""Above that a page of a journal ends, after the entry that crossed it; a longer result of a child is referred to."""
READERS_MAX: Final = 16
"""Reads that wait for news of one operation at once: an agent needs one, and some that its line has forgotten."""
INVALID: Final = Step("invalid")


class Steps(NamedTuple):
    """The store's time, and what became of each task in the order asked."""

    now_ms: int
    steps: list[Step]


class Entries(NamedTuple):
    """A page of a journal, ready to be sent."""

    page: Page
    entries: list[msgspec.Raw]


class Journal(NamedTuple):
    """The store's time, and a page for each journal in the order asked."""

    now_ms: int
    pages: list[Entries]


FORGED: Final = Entries(Page("invalid"), [])


def _news(page: Page) -> bool:
    return page.status != "ok" or page.cancel or bool(page.lines)


class Journals(Reading):
    """The verbs of /v1/tasks, for one gateway."""

    def __init__(
        self,
        store: Store,
        waiters: Waiters,
        tokens: CompletionTokens,
        metrics: Metrics,
        wake: Callable[[str], None],
        payloads: Payloads,
    ) -> None:
        """`wake` makes the ticker look at once (LOOK), or at the line of an endpoint."""
        super().__init__(store, waiters)
        self._tokens = tokens
        self._metrics = metrics
        self._wake = wake
        self.payloads = payloads
        self._readers: Counter[str] = Counter()
        """How many reads wait for news of an operation."""

    def _claims(self, tokens: Sequence[str]) -> list[Claim | None]:
        now_s = now_ms() / 1000
        claims: list[Claim | None] = []
        for token in tokens:
            try:
                claims.append(self._tokens.check(token, now_s))
            except Unauthenticated:
                claims.append(None)
        return claims

    async def heartbeat(self, tasks: Sequence[tuple[str, int, bytes]]) -> list[str]:
        """Renew leases: (task token, lease_ms or 0, details) -> the store's word for each, or `invalid`."""
        replies = ["invalid"] * len(tasks)
        genuine: list[tuple[int, Task]] = []
        for position, claim in enumerate(self._claims([token for token, _, _ in tasks])):
            if claim is not None:
                _, lease_ms, details = tasks[position]
                genuine.append((position, Task(claim.operation_id, claim.run, claim.attempt, lease_ms, details)))
        if genuine:
            answers = await self._store.heartbeat([task for _, task in genuine])
            for (position, _), answer in zip(genuine, answers, strict=True):
                replies[position] = answer
        return replies

    async def holder(self, token: str) -> str:
        """The operation whose running attempt has this token. Raises Unauthenticated, Conflict, Gone.

        Said of one moment: what it is asked for has to be harmless when the attempt is superseded in the next.
        """
        claim = self._tokens.check(token, now_ms() / 1000)
        look = Wanted(claim.operation_id, claim.run, claim.attempt, 0, 0)
        status = (await self._store.pages(JOURNAL, [look]))[1][0].status
        if status == "lost":
            # Shows in the history as a late entry does; that it cannot is no news to who is refused.
            with suppress(Unavailable):
                await self._store.append(JOURNAL, [Append(claim.operation_id, claim.run, claim.attempt, 0, [])])
        raise_for_step(status, claim.operation_id)
        return claim.operation_id

    async def journal(self, tasks: Sequence[tuple[str, int, list[bytes]]]) -> Steps:
        """Append entries: (task token, entries known, new entries)."""
        return await self._append(JOURNAL, tasks)

    async def emit(self, tasks: Sequence[tuple[str, int, list[bytes]]]) -> Steps:
        """Append chunks to streams: (task token, chunks known, new chunks)."""
        return await self._append(STREAM, tasks)

    async def _append(self, into: str, tasks: Sequence[tuple[str, int, list[bytes]]]) -> Steps:
        genuine: list[tuple[int, Append]] = []
        for position, claim in enumerate(self._claims([token for token, _, _ in tasks])):
            if claim is not None:
                _, at, bodies = tasks[position]
                genuine.append((position, Append(claim.operation_id, claim.run, claim.attempt, at, bodies)))
        return await self._send(into, len(tasks), genuine, lambda some: self._store.append(into, some))

    async def suspend(self, tasks: Sequence[tuple[str, int, int, int, bool]]) -> Steps:
        """Give attempts up until they are woken: (task token, entries known, wake_in_ms, wake_at_ms, cancel known)."""
        genuine: list[tuple[int, Suspend]] = []
        for position, claim in enumerate(self._claims([task[0] for task in tasks])):
            if claim is not None:
                _, at, in_ms, at_ms, cancel = tasks[position]
                task = Suspend(claim.operation_id, claim.run, claim.attempt, at, in_ms, at_ms, int(cancel))
                genuine.append((position, task))
        done = await self._send("suspend", len(tasks), genuine, self._store.suspend)
        for step in done.steps:
            if step.line:
                self._wake(step.line)
        if any(
            task.wake_at_ms - done.now_ms < SOON_MS if task.wake_at_ms else 0 < task.wake_in_ms < SOON_MS
            for _, task in genuine
        ):
            self._wake(LOOK)
        return done

    async def _send(
        self,
        verb: str,
        count: int,
        genuine: list[tuple[int, Any]],
        call: Callable[[list[Any]], Awaitable[tuple[int, list[Step]]]],
    ) -> Steps:
        steps = [INVALID] * count
        if not genuine:
            return Steps(now_ms(), steps)
        at_ms, answers = await call([task for _, task in genuine])
        for (position, task), answer in zip(genuine, answers, strict=True):
            steps[position] = answer
            self._waiters.tell(task.id)
            self._metrics.step(verb, answer.status)
        return Steps(at_ms, steps)

    async def read_journals(
        self, tasks: Sequence[tuple[str, int, int]], wait_s: float, gone: Callable[[], Awaitable[None]]
    ) -> Journal:
        """Entries of journals, (task token, entries known, limit), for the attempts that hold the work.

        At once if there is anything to say of one of them, else within `wait_s`, or when whoever asks has `gone`.
        Raises TooMany: as many as may wait for news of one attempt do so already.
        """
        claims = self._claims([token for token, _, _ in tasks])
        lists = [
            Wanted(claim.operation_id, claim.run, claim.attempt, after, limit)
            for claim, (_, after, limit) in zip(claims, tasks, strict=True)
            if claim is not None
        ]
        at_ms, pages = await self._store.pages(JOURNAL, lists)
        # Nobody waits for nothing: that would be a wait without any proof.
        if wait_s > 0 and lists and len(lists) == len(tasks) and not any(map(_news, pages)):
            deadline_s = monotonic_s() + wait_s
            ids = {wanted.id for wanted in lists}
            with self._reading(ids), self._waiters.watching(*ids) as moved:
                hung_up = asyncio.ensure_future(gone())
                hung_up.add_done_callback(lambda _: moved.set())
                try:
                    while True:
                        at_ms, pages = await self._store.pages(JOURNAL, lists)
                        left_s = deadline_s - monotonic_s()
                        if left_s <= 0 or hung_up.done() or self._waiters.ended or any(map(_news, pages)):
                            break
                        await wait_for(moved, left_s)
                finally:
                    hung_up.cancel()
        found = iter(pages)
        return Journal(at_ms, [await self._shown(next(found)) if claim else FORGED for claim in claims])

    @contextmanager
    def _reading(self, ids: set[str]) -> Generator[None]:
        """One more waits for news of these. Raises TooMany."""
        for one in ids:
            if self._readers[one] >= READERS_MAX:
                detail = f"{READERS_MAX} requests wait for news of {one} already; end one, or read without wait_ms"
                raise TooMany(detail, code="too_many_waits")
        self._readers.update(ids)
        try:
            yield
        finally:
            self._readers.subtract(ids)
            for one in ids:
                if not self._readers[one]:
                    del self._readers[one]

    async def _shown(self, page: Page) -> Entries:
        """As many entries as one answer carries: a child's outcome may be more than its parent's journal keeps."""
        shown: list[msgspec.Raw] = []
        room = ANSWER_BYTES
        for line in page.lines:
            if room <= 0:
                break
            entry = await self.entry(line)
            room -= len(entry)
            shown.append(msgspec.Raw(entry))
        return Entries(page, shown)

    async def entry(self, line: Line) -> bytes:
        """A journal entry as JSON. What the store left out of a child's is looked up with the child."""
        if line.child is None:
            return line.body
        packed = line.body or await self._store.outcome(line.child[1])
        outcome = decode_outcome(packed) if packed else None
        if outcome is not None and outcome.kind == "result":
            await self._fit(line.child[1], outcome)
        return child_entry(line.child, outcome)

    async def _fit(self, child: str, outcome: Outcome) -> None:
        """A result that is not too much for a page stands in the entry, a longer one is referred to (P403, P440)."""
        if outcome.data is None:
            if len(outcome.body) > ANSWER_BYTES:
                outcome.data = DataRef("record", await digest_of(outcome.body), len(outcome.body))
        elif outcome.data.size <= min(ANSWER_BYTES, self.payloads.body_bytes_max):
            # What is missing or damaged is told to whoever comes to read it: it must not keep others from their pages.
            with suppress(Unavailable):
                outcome.body = await self.payloads.read(child, outcome.data, ANSWER_BYTES)
                outcome.data = None


async def digest_of(body: bytes) -> str:
    """SHA-256 in hex, of many bytes, without holding up the event loop."""
    return await asyncio.get_running_loop().run_in_executor(None, lambda: hashlib.sha256(body).hexdigest())


def raise_for_step(status: str, operation: str = "") -> None:
    """The refusal that a task's status stands for, where it is asked for alone; returns for all that is no refusal."""
    about = operation or None
    if status == "lost":
        detail = "this attempt was given up; another attempt owns the operation now, or it waits for one"
        raise Conflict(detail, code="lease_lost", operation_id=about)
    if status == "ended":
        raise Conflict("the operation has ended", code="operation_ended", operation_id=about)
    if status == "full":
        raise Conflict("the operation keeps as much as it may", code="journal_full", operation_id=about)
    if status == "unknown":
        raise Gone("the operation is past its retention", code="operation_gone", operation_id=about)
    if status == "invalid":
        raise Unauthenticated("the task token is not valid", code="token_invalid")


def foreign_token() -> Unauthenticated:
    """The one wording for a task token that says nothing of the operation it is shown for."""
    return Unauthenticated("the task token is of another operation", code="token_foreign")


def raise_for(verdict: Completion, operation: str) -> None:
    """The refusal that a completion's verdict stands for; returns for accepted and equal duplicates."""
    if verdict in (Completion.DONE, Completion.SAME, Completion.DROPPED):
        return
    if verdict is Completion.OTHER:
        detail = f"operation {operation} already has another outcome; the first one stands"
        raise Conflict(detail, code="other_outcome", operation_id=operation)
    if verdict is Completion.LEASE_LOST:
        detail = f"this attempt of operation {operation} was given up; another attempt owns it now"
        raise Conflict(detail, code="lease_lost", operation_id=operation)
    if verdict is Completion.STALE_RUN:
        raise Unauthenticated("the completion token is of an earlier run", code="token_stale")
    raise Gone(f"operation {operation} is past its retention", code="operation_gone")
