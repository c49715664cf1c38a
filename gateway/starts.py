"""Starts on the wire: one request to an agent, what its reply means for the operation, and how an outcome is recorded.

Every path out of a try ends in exactly one store call, or in none when the store is away. Chooses no instance
(registry/routing.py) and decides no policy (egress.py); what is sent says start_request.py, cancels and callbacks are
deliveries.py.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from gateway.answers import Refused, StartAnswer, Started, Succeeded, TryAgain, Unsuccessful, read_start_reply
from gateway.payloads import transfer_ms
from gateway.start_request import TOKEN_LIFE_S, patience_ms, start_headers, start_lines, start_path
from gateway.waiters import Ending
from mesh.clock import now_ms
from mesh.errors import Malformed, MeshError, NotSent, PeerFault, Refusal, TooLarge, TooMany, Unavailable
from mesh.ids import jittered
from mesh.machine import Event, State
from mesh.store.layout import Outcome
from mesh.store.store import pack
from mesh.store.verbs import Completion
from mesh.wire import failure_json, handler_failure, quote_segment
from registry.routing import Outcome as Routed

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from gateway.courier import Session
    from gateway.egress import Egress
    from gateway.metrics import Metrics
    from gateway.payloads import Payloads
    from gateway.waiters import Waiters
    from mesh.pool import Pool
    from mesh.store.store import Store
    from mesh.store.verbs import Completed, Work
    from mesh.streams import Intake
    from mesh.tokens import CompletionTokens
    from registry.catalog import Endpoint
    from registry.routing import Admitted, Router

RETRY_AFTER_MS_MAX: Final = 3_600_000
DETAIL_CHARS_MAX: Final = 200
POSTPONED_MS: Final = 1_000
POSTPONED_MS_MAX: Final = 30_000
POSTPONED_SPREAD: Final = 0.2
UNSENDABLE: Final = "request_invalid"
"""The pool's code for a request that HTTP cannot carry."""

# Looked up once: CPython 3.11 is slow to find the member of an enum.
_OK: Final = Routed.OK
_NEUTRAL: Final = Routed.NEUTRAL
_SUCCEED: Final = Event.SUCCEED
_DONE: Final = Completion.DONE
_RECORDED: Final = (Completion.DONE, Completion.SAME)
_STATES: Final = {Event.SUCCEED: State.SUCCEEDED, Event.FAIL: State.FAILED, Event.CANCEL: State.CANCELED}
_log = logging.getLogger(__name__)


class Starts:
    """Sends leased starts. `take` gets work that a store call leased on the way; `wake` a line that may move."""

    def __init__(
        self,
        *,
        store: Store,
        pool: Pool,
        egress: Egress,
        router: Router,
        tokens: CompletionTokens,
        waiters: Waiters,
        session: Session,
        metrics: Metrics,
        payloads: Payloads,
        completion_url: str,
        take: Callable[[Iterable[Work]], None],
        wake: Callable[[str], None],
    ) -> None:
        self._store = store
        self._pool = pool
        self._egress = egress
        self._router = router
        self._tokens = tokens
        self._waiters = waiters
        self._session = session
        self._metrics = metrics
        self._payloads = payloads
        self._query = b"callback=" + quote_segment(completion_url).encode()
        self._take = take
        self._wake = wake
        self.out: dict[str, str] = {}
        """Operation -> the instance that a start of it is out at."""

    async def send(self, work: Work, endpoint: Endpoint, admitted: Admitted) -> None:
        """One try; its instance is settled with whatever happens."""
        head, request, data = work.head, work.request, work.request.data
        session = self._session.name
        self.out[work.id] = admitted.id
        routed = _NEUTRAL
        try:
            timeout_ms = patience_ms(work, endpoint.bounds.request_ms)
            try:
                body = work.extra if data is None else self._payloads.stored(work.id, data)
                target = self._egress.cached(admitted.url) or await self._egress.resolve(admitted.url)
                if not self._session.known():
                    await self._session.renew()
                if self._session.name != session:
                    _log.warning("%s, attempt %d is not sent: this gateway stood still", work.id, head.attempt)
                    return
                token = self._tokens.mint(work.id, head.run, head.attempt, now_ms() // 1000 + TOKEN_LIFE_S)
                reply = await self._pool.request(
                    b"POST",
                    target,
                    start_path(target.path, request.service, request.operation, self._query),
                    start_headers(work),
                    body,
                    timeout_s=(timeout_ms + transfer_ms(data)) / 1000,
                    large=self._payloads.replies(head.namespace),
                    lines=start_lines(work, timeout_ms, token),
                )
                answer = read_start_reply(reply)
                if reply.intake is not None:
                    answer = await self._keep(work.id, answer, reply.intake)
            except MeshError as fault:
                routed = await self._unanswered(work, endpoint, fault, admitted.id)
            else:
                self._metrics.attempt(endpoint.id, answer.word)
                await self._book(work, endpoint, answer, admitted)
                routed = Routed.FAILED if type(answer) is TryAgain and not answer.own_word else _OK
        finally:
            self.out.pop(work.id, None)
            self._router.settle(endpoint, admitted, routed)
            if admitted.probe and routed is _OK:
                self._wake(endpoint.id)

    def _book(
        self, work: Work, endpoint: Endpoint, answer: StartAnswer, admitted: Admitted
    ) -> Coroutine[Any, Any, object]:
        """The store call that an answer means."""
        if isinstance(answer, Succeeded):
            head = work.head
            return self.complete(work.id, head.run, head.attempt, _SUCCEED, answer.outcome, admitted.id)
        if isinstance(answer, Started):
            return self._started(work, answer, endpoint.policy.heartbeat_ms or 0, admitted)
        if isinstance(answer, Unsuccessful):
            event = Event.CANCEL if answer.state == "canceled" else Event.FAIL
            return self._complete(work, event, answer.outcome, admitted.id)
        if isinstance(answer, Refused):
            return self._complete(work, Event.FAIL, answer.outcome, admitted.id)
        return self._retry(work, endpoint, answer, admitted.id)

    async def _unanswered(self, work: Work, endpoint: Endpoint, fault: MeshError, instance: str) -> Routed:
        """There is no answer that could be read, or kept."""
        if isinstance(fault, Unavailable | TooMany):
            return await self._postpone(work, fault, instance)
        if fault.code in ("reply_too_large", TooLarge.code):
            self._metrics.attempt(endpoint.id, "reply_too_large")
            await self._complete(work, Event.FAIL, Outcome("mesh", "result_too_large"), instance)
            return Routed.OK
        if isinstance(fault, NotSent | Refusal):
            self._metrics.attempt(endpoint.id, "not_sent")
            if fault.code == UNSENDABLE:
                # No instance could ever be sent this; waiting would also make them look unreachable to others.
                await self._complete(work, Event.FAIL, Outcome("mesh", "request_invalid"))
                return Routed.NEUTRAL
            await self.release(work, "unreachable", fault)
            return Routed.UNREACHABLE
        if not isinstance(fault, PeerFault):
            raise fault
        self._metrics.attempt(endpoint.id, fault.code)
        await self._retry(work, endpoint, TryAgain("UPSTREAM_TIMEOUT", fault.detail, None, 0), instance)
        return Routed.FAILED

    async def _keep(self, operation_id: str, answer: StartAnswer, intake: Intake) -> StartAnswer:
        """A result in a file is the operation's before anything refers to it. Raises StorageFull, TooLarge."""
        try:
            if not isinstance(answer, Succeeded):
                return answer
            try:
                spooled = await intake.finish()
            except Malformed as fault:
                return TryAgain("INTERNAL", fault.detail, None, 0)
            answer.outcome.data = await self._payloads.keep(operation_id, spooled)
            return answer
        finally:
            intake.abandon()

    async def _postpone(self, work: Work, fault: Unavailable | TooMany, instance: str) -> Routed:
        """The place of large payloads is away or has no room: the operation waits for it, and no attempt is spent."""
        self._metrics.attempt(work.head.endpoint, fault.code)
        _log.warning("operation %s: attempt %d: %s", work.id, work.head.attempt, fault.detail)
        delay_ms = min(POSTPONED_MS * 2 ** min(work.head.resumes, 16), POSTPONED_MS_MAX)
        detail = f"{fault.code.upper()}: {fault.detail}"[:DETAIL_CHARS_MAX]
        moved = await self._store.retry(
            work.id, work.head.run, work.head.attempt, delay_ms=jittered(delay_ms, POSTPONED_SPREAD), detail=detail,
            outcome=b"", instance=instance, free=True,
        )  # fmt: skip
        self._waiters.tell(work.id)
        self._wake(moved.line)
        return Routed.NEUTRAL

    async def _started(self, work: Work, answer: Started, policy_beat_ms: int, admitted: Admitted) -> None:
        head = work.head
        beat_ms = answer.lease_ms or policy_beat_ms
        first = self._waiters.first(work.id)
        if first is not None:
            first.links = answer.links
        moved = await self._store.started(
            work.id, head.run, head.attempt, self._session.name, answer.token, beat_ms, admitted.id, answer.links,
            counted=bool(admitted.version),
            # Only a caller whose answer is the 201 itself waits for it.
            rides=first is None or not first.brief,
        )  # fmt: skip
        if first is not None and first.brief:
            first.close()
        self._waiters.tell(work.id)
        if moved.work is not None:
            self._take([moved.work])

    def _complete(
        self, work: Work, event: Event, outcome: Outcome, instance: str = ""
    ) -> Coroutine[Any, Any, Completed]:
        head = work.head
        return self.complete(work.id, head.run, head.attempt, event, outcome, instance)

    async def complete(
        self, operation_id: str, run: int, attempt: int, event: Event, outcome: Outcome, instance: str = "", *,
        calls_back: bool = False,
    ) -> Completed:  # fmt: skip
        """Record an outcome, answer the first request if it waits here, send the callback that is owed.

        `calls_back`: whoever asks sends that. Used for replies to starts and for completions by token alike: one way
        for an operation to end well.
        """
        state = _STATES[event]
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
                instance=instance,
            )
        except BaseException:
            if claimed is not None:
                claimed.release(unsure=True)
            raise
        if claimed is not None:
            # An equal outcome that stands already may be this very call, sent again after its reply was lost.
            if completed.verdict in _RECORDED:
                claimed.settle(Ending(state, outcome, attempt, completed.seq, completed.at_ms, completed.journal))
            else:
                claimed.release()
        if completed.verdict is _DONE:
            self._metrics.ended(state)
            if completed.callback is not None and not calls_back:
                self._take([completed.callback])
            if completed.line:
                self._wake(completed.line)
        self._waiters.tell(operation_id)
        return completed

    async def _retry(self, work: Work, endpoint: Endpoint, answer: TryAgain, instance: str) -> None:
        retry = endpoint.policy.retry
        head = work.head
        tries = max(head.attempt - head.resumes, 1)
        delay_ms = min(retry.initial_ms * retry.factor ** min(tries - 1, 64), retry.max_ms)
        delay_ms = max(jittered(delay_ms, retry.jitter), min(answer.retry_after_ms, RETRY_AFTER_MS_MAX))
        detail = f"{answer.type}: {answer.message}"[:DETAIL_CHARS_MAX]
        failure = answer.failure or handler_failure(answer.type, answer.message)
        last = Outcome("mesh", "attempts_exhausted", body=failure_json(failure))
        moved = await self._store.retry(
            work.id,
            head.run,
            head.attempt,
            delay_ms=delay_ms,
            detail=detail,
            outcome=pack(last),
            instance=instance,
        )
        self._waiters.tell(work.id)
        self._wake(moved.line)

    async def release(self, work: Work, reason: str, fault: MeshError | None = None) -> None:
        """Nobody was reached: give the attempt back and wait."""
        if fault is not None:
            _log.info("operation %s: attempt %d reached nobody: %s", work.id, work.head.attempt, fault)
        await self._store.release(work.id, work.head.run, work.head.attempt, reason, session=self._session.name)
        self._waiters.tell(work.id)
