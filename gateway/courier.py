"""What moves: sends leased deliveries (start, cancel, callback) and books what became of them.

One try per leased delivery; the lease, the attempt number and the back-off live in the store. Every path out of a try
ends in exactly one store call, or in none when the store is away: then the lease ends and somebody tries again.
Knows agents and receivers as URLs; chooses nothing (registry/routing.py) and decides no policy (egress.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from gateway.answers import Refused, Started, Succeeded, TryAgain, Unsuccessful, read_start_reply
from gateway.callbacks import CallbackPlan, callback_request, judge_callback
from gateway.waiters import Ending
from mesh.clock import now_ms
from mesh.errors import MeshError, NotSent, PeerFault, Refusal, StoreUnsafe, Unavailable
from mesh.ids import jittered
from mesh.machine import Event, Kind, State
from mesh.store.layout import Outcome, decode_outcome
from mesh.store.store import pack
from mesh.store.verbs import Completion
from mesh.wire import failure_json, format_duration, handler_failure, quote_segment
from registry.routing import Admitted
from registry.routing import Outcome as Routed

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from gateway.egress import Egress
    from gateway.metrics import Metrics
    from gateway.waiters import Waiters
    from mesh.pool import Pool, Target
    from mesh.store.store import Store
    from mesh.store.verbs import Completed, Work
    from mesh.tokens import CompletionTokens
    from registry.catalog import Catalog, Endpoint
    from registry.routing import Router

RETRY_AFTER_MS_MAX: Final = 3_600_000
CANCEL_TRIES_MAX: Final = 8
CANCEL_TIMEOUT_S: Final = 10.0
CALLBACK_TIMEOUT_S: Final = 20.0
CALLBACK_FIRST_MS: Final = 1_000
CALLBACK_CAP_MS: Final = 3_600_000
CALLBACK_FOR_MS: Final = 72 * 3_600_000
"""Decision 23: 1 s doubling to 1 h, for 72 h."""
TOKEN_LIFE_S: Final = 90 * 86_400
"""A completion token outlives every operation and its retention."""
DETAIL_CHARS_MAX: Final = 200
JITTER: Final = 0.2

_log = logging.getLogger(__name__)


@lru_cache(maxsize=4096)
def start_path(target: Target, service: str, operation: str, query: bytes) -> bytes:
    """The request target of a start; the same few come again and again."""
    return target.under(f"/{quote_segment(service)}/{quote_segment(operation)}".encode(), query)


class Session:
    """The name under which this gateway holds leases; changes when the store took it for dead."""

    def __init__(self, name: str) -> None:
        self.name = name


class Courier:
    """Sends. `take` is for work that a store call leased; `start` for the fresh start of a request that waits here."""

    def __init__(
        self,
        *,
        store: Store,
        pool: Pool,
        egress: Egress,
        catalog: Catalog,
        router: Router,
        tokens: CompletionTokens,
        waiters: Waiters,
        session: Session,
        metrics: Metrics,
        callback_plan: CallbackPlan,
        completion_url: str,
        wake: Callable[[str], None],
    ) -> None:
        self._store = store
        self._pool = pool
        self._egress = egress
        self._catalog = catalog
        self._router = router
        self._tokens = tokens
        self._waiters = waiters
        self._session = session
        self._metrics = metrics
        self._callback_plan = callback_plan
        self._query = b"callback=" + quote_segment(completion_url).encode()
        self._wake = wake
        self._tasks: set[asyncio.Task[None]] = set()
        self.in_flight: Counter[str] = Counter()
        """Operations this process is working on: what `held` in the store should say."""

    @property
    def busy(self) -> int:
        """Tries under way."""
        return len(self._tasks)

    def take(self, works: Iterable[Work]) -> None:
        """Send each of them."""
        for work in works:
            if work.kind is Kind.START:
                endpoint = self._catalog.by_id(work.head.endpoint)
                if endpoint is None:
                    self._spawn(work.id, self._release(work, "endpoint_deleted"))
                    continue
                admitted = self._router.admit(endpoint)
                if isinstance(admitted, str):
                    self._spawn(work.id, self._release(work, admitted))
                else:
                    self.start(work, endpoint, admitted)
            elif work.kind is Kind.CANCEL:
                self._spawn(work.id, self._cancel(work))
            else:
                self._spawn(work.id, self._callback(work))

    def start(self, work: Work, endpoint: Endpoint, admitted: Admitted) -> None:
        """Send a leased start to the admitted instance."""
        self._spawn(work.id, self._start(work, endpoint, admitted))

    async def drain(self, grace_s: float) -> None:
        """Wait for the tries under way."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)

    def _spawn(self, operation_id: str, work: Coroutine[Any, Any, None]) -> None:
        self.in_flight[operation_id] += 1
        task = asyncio.get_running_loop().create_task(self._guarded(operation_id, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, operation_id: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (Unavailable, StoreUnsafe) as error:
            # The lease stays; when it ends, or when this gateway finds it among what it holds, the try is repeated.
            _log.warning("operation %s: not booked: %s", operation_id, error)
            if (first := self._waiters.first(operation_id)) and first.claimed:
                first.release()
        except Exception:  # noqa: BLE001 - one broken try must not take the others down; the lease repeats it
            _log.exception("operation %s: the courier failed", operation_id)
            if (first := self._waiters.first(operation_id)) and first.claimed:
                first.release()
        finally:
            self.in_flight[operation_id] -= 1
            if not self.in_flight[operation_id]:
                del self.in_flight[operation_id]

    # Starts -------------------------------------------------------------------------------------------------------

    async def _start(self, work: Work, endpoint: Endpoint, admitted: Admitted) -> None:
        routed = Routed.NEUTRAL
        try:
            routed = await self._try_start(work, endpoint, admitted)
        finally:
            self._router.settle(endpoint, admitted, routed)
            if routed is Routed.OK:
                self._wake("")

    async def _try_start(self, work: Work, endpoint: Endpoint, admitted: Admitted) -> Routed:
        head = work.head
        policy = endpoint.policy
        sent_at_ms = head.start_at - head.lease_ms
        timeout_ms = work.request.request_timeout_ms or policy.request_timeout_ms
        if head.close_by:
            timeout_ms = min(timeout_ms, head.close_by - sent_at_ms)
        try:
            target = self._egress.cached(admitted.url) or await self._egress.resolve(admitted.url)
            reply = await self._pool.post(
                target,
                start_path(target, work.request.service, work.request.operation, self._query),
                self._start_headers(work, timeout_ms),
                work.extra,
                timeout_s=timeout_ms / 1000,
            )
        except (NotSent, Refusal) as fault:
            self._metrics.attempt(endpoint.name, "not_sent")
            await self._release(work, "unreachable", fault)
            return Routed.UNREACHABLE
        except PeerFault as fault:
            self._metrics.attempt(endpoint.name, fault.code)
            if fault.code == "reply_too_large":
                await self._complete(work, Event.FAIL, Outcome("mesh", "result_too_large"))
            else:
                await self._retry(work, endpoint, TryAgain("UPSTREAM_TIMEOUT", fault.detail, None, 0))
            return Routed.FAILED
        answer = read_start_reply(reply)
        self._metrics.attempt(endpoint.name, answer.word)
        if isinstance(answer, Succeeded):
            await self._complete(work, Event.SUCCEED, answer.outcome)
        elif isinstance(answer, Started):
            await self._started(work, answer, policy.heartbeat_ms or 0)
        elif isinstance(answer, Unsuccessful):
            event = Event.CANCEL if answer.state == "canceled" else Event.FAIL
            await self._complete(work, event, answer.outcome)
        elif isinstance(answer, Refused):
            await self._complete(work, Event.FAIL, answer.outcome)
        else:
            await self._retry(work, endpoint, answer)
            return Routed.FAILED
        return Routed.OK

    def _start_headers(self, work: Work, timeout_ms: int) -> list[tuple[bytes, bytes]]:
        head, request = work.head, work.request
        expires_at_s = now_ms() // 1000 + TOKEN_LIFE_S
        headers = [
            (b"nexus-request-id", f"{work.id}.{head.run}".encode()),
            (b"nexus-callback-token", self._tokens.mint(work.id, head.run, head.attempt, expires_at_s).encode()),
            (b"request-timeout", b"%dms" % timeout_ms),
            (b"mesh-operation-id", work.id.encode()),
            (b"mesh-run", b"%d" % head.run),
            (b"mesh-attempt", b"%d" % head.attempt),
            (b"mesh-namespace", head.namespace.encode()),
        ]
        if head.close_by:
            left_ms = head.close_by - (head.start_at - head.lease_ms)
            headers.append((b"operation-timeout", format_duration(left_ms).encode()))
        if request.content_type is not None:
            headers.append((b"content-type", request.content_type.encode("latin-1")))
        headers += [(b"nexus-link", link.encode("latin-1")) for link in request.links]
        headers += request.headers
        return headers

    async def _started(self, work: Work, answer: Started, policy_beat_ms: int) -> None:
        head = work.head
        beat_ms = answer.lease_ms or policy_beat_ms
        moved = await self._store.started(work.id, head.run, head.attempt, self._session.name, answer.token, beat_ms)
        self._waiters.tell(work.id)
        if moved.work is not None:
            self.take([moved.work])

    async def _complete(self, work: Work, event: Event, outcome: Outcome) -> None:
        head = work.head
        await self.complete(work.id, head.run, head.attempt, event, outcome, by_token=False)

    async def complete(
        self, operation_id: str, run: int, attempt: int, event: Event, outcome: Outcome, *, by_token: bool
    ) -> Completed:
        """Record an outcome, answer the first request if it waits here, send the callback that is owed.

        Used for replies to starts and for completions by token alike: one way for an operation to end well.
        """
        first = self._waiters.first(operation_id)
        claimed = first if first is not None and first.claim() else None
        try:
            completed = await self._store.complete(
                operation_id,
                run,
                attempt,
                event,
                pack(outcome),
                session=self._session.name,
                answered=claimed is not None,
                by_token=by_token,
            )
        except BaseException:
            if claimed is not None:
                claimed.release()
            raise
        if completed.verdict is Completion.DONE:
            if claimed is not None:
                claimed.settle(Ending(_STATES[event], outcome, attempt, completed.seq, completed.at_ms))
            self._metrics.ended(_STATES[event])
            if completed.callback is not None:
                self.take([completed.callback])
            if completed.line:
                self._wake(completed.line)
        elif claimed is not None:
            claimed.release()
        self._waiters.tell(operation_id)
        return completed

    async def _retry(self, work: Work, endpoint: Endpoint, answer: TryAgain) -> None:
        retry = endpoint.policy.retry
        head = work.head
        delay_ms = min(retry.initial_ms * retry.factor ** min(head.attempt - 1, 64), retry.max_ms)
        delay_ms = max(jittered(delay_ms, retry.jitter), min(answer.retry_after_ms, RETRY_AFTER_MS_MAX))
        detail = f"{answer.type}: {answer.message}"[:DETAIL_CHARS_MAX]
        failure = answer.failure or handler_failure(answer.type, answer.message)
        last = Outcome("mesh", "attempts_exhausted", body=failure_json(failure))
        moved = await self._store.retry(
            work.id,
            head.run,
            head.attempt,
            session=self._session.name,
            delay_ms=delay_ms,
            detail=detail,
            outcome=pack(last),
        )
        self._waiters.tell(work.id)
        self._wake(moved.line)

    async def _release(self, work: Work, reason: str, fault: MeshError | None = None) -> None:
        if fault is not None:
            _log.info("operation %s: attempt %d reached nobody: %s", work.id, work.head.attempt, fault)
        await self._store.release(work.id, work.head.run, work.head.attempt, reason)
        self._waiters.tell(work.id)

    # Cancels ------------------------------------------------------------------------------------------------------

    async def _cancel(self, work: Work) -> None:
        head, request = work.head, work.request
        endpoint = self._catalog.by_id(head.endpoint)
        detail, final = "no instance to tell", head.cancel_tries >= CANCEL_TRIES_MAX
        instances = self._router.every(endpoint) if endpoint is not None else []
        path = f"/{quote_segment(request.service)}/{quote_segment(request.operation)}/cancel".encode()
        headers = [
            (b"nexus-operation-token", work.extra),
            (b"nexus-request-id", f"{work.id}.{head.run}.cancel".encode()),
            (b"mesh-operation-id", work.id.encode()),
            (b"mesh-run", b"%d" % head.run),
        ]
        # The mesh does not know which instance holds the work (behind a load balancer it could not): ask each one until
        # one knows the token. Cancel is idempotent by the protocol.
        for instance in instances:
            try:
                target = self._egress.cached(instance.url) or await self._egress.resolve(instance.url)
                reply = await self._pool.post(target, target.under(path), headers, b"", timeout_s=CANCEL_TIMEOUT_S)
            except (PeerFault, Refusal) as fault:
                detail = fault.detail
                continue
            if 200 <= reply.status < 300:  # noqa: PLR2004
                await self._store.delivered(work.id, head.run, Kind.CANCEL)
                self._waiters.tell(work.id)
                return
            detail = f"the agent answered {reply.status}"
            final = final or (reply.status in (400, 401, 403, 404, 409, 501) and instance is instances[-1])
        delay_ms = jittered(min(1000 * 2 ** min(head.cancel_tries - 1, 16), 60_000), JITTER)
        await self._store.defer(
            work.id, head.run, Kind.CANCEL, tries=head.cancel_tries, delay_ms=delay_ms, dead=final,
            detail=detail[:DETAIL_CHARS_MAX],
        )  # fmt: skip
        self._waiters.tell(work.id)

    # Callbacks ----------------------------------------------------------------------------------------------------

    async def _callback(self, work: Work) -> None:
        head, request = work.head, work.request
        retry_after_ms = 0
        final = False
        try:
            target = self._egress.cached(request.callback_url) or await self._egress.resolve(request.callback_url)
            sending = callback_request(work.id, head, request, decode_outcome(work.extra), self._callback_plan)
            reply = await self._pool.post(
                target, target.path, sending.headers, sending.body, timeout_s=CALLBACK_TIMEOUT_S
            )
        except Refusal as fault:
            # The egress policy changed its mind since the start, or the name leads elsewhere now.
            detail, final = fault.detail, False
        except PeerFault as fault:
            detail = fault.detail
        else:
            verdict = judge_callback(request.callback_format, reply)
            if verdict.delivered:
                self._metrics.callback("delivered")
                await self._store.delivered(work.id, head.run, Kind.CALLBACK)
                self._waiters.tell(work.id)
                return
            detail, final, retry_after_ms = verdict.detail, verdict.final, verdict.retry_after_ms
        delay_ms = min(CALLBACK_FIRST_MS * 2 ** min(head.callback_tries - 1, 32), CALLBACK_CAP_MS)
        delay_ms = max(jittered(delay_ms, JITTER), min(retry_after_ms, RETRY_AFTER_MS_MAX))
        # head.callback_at is the end of this try's lease, by the store's clock.
        final = final or head.callback_at - head.closed_at > CALLBACK_FOR_MS
        self._metrics.callback("dead" if final else "failed")
        await self._store.defer(
            work.id, head.run, Kind.CALLBACK, tries=head.callback_tries, delay_ms=delay_ms, dead=final,
            detail=detail[:DETAIL_CHARS_MAX],
        )  # fmt: skip
        self._waiters.tell(work.id)


_STATES: Final = {Event.SUCCEED: State.SUCCEEDED, Event.FAIL: State.FAILED, Event.CANCEL: State.CANCELED}
