"""Hosting: one execution per request id, quick answers at once, slow ones as 201 and a completion later.

A handler gets a share of the request's time. When it is still running then and the caller gave a callback URL, the host
answers 201 with a token of its own and reports the outcome to the callback; without one the caller waits until
its `Request-Timeout` and gets 408. Knows no sockets: a request comes as head and body, an Outcome goes out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from msgspec.structs import replace
from nexusrpc.handler import CancelOperationContext

from mesh.agent import outcome as outcomes
from mesh.agent.arrivals import Pending
from mesh.agent.codec import Undecodable
from mesh.agent.context import Cancellation
from mesh.agent.inbound import StartHead
from mesh.agent.outcome import Outcome
from mesh.agent.routes import Route
from mesh.agent.runs import TOKEN_PREFIX, Run
from mesh.agent.waiting import Held, Patience
from mesh.agent.work import CANCELED, STOPPING, Work, moment
from mesh.blob import Blob
from mesh.clock import now_ms

SHARE_OF_TIMEOUT: Final = 0.5
"""The 201 leaves when this part of the `Request-Timeout` is over, if not before: the answer must still travel."""

_CANCELING: Final = Outcome(202, (), b"", "canceling")


class Host:
    """Answers requests to one agent. `work` does what they ask for."""

    def __init__(self, work: Work, *, answer_within_ms: int, running_max: int) -> None:
        self._work = work
        self._runs = work.runs
        self._patience = Patience(answer_within_ms / 1000)
        self._running_max = running_max

    # -- start

    async def start(self, route: Route, head: StartHead, body: bytes | Blob) -> Outcome:
        """Answer one start request. Never raises for what a caller sent or a handler did."""
        answered: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.begin(route, head, body, partial(_give, answered))
        return await answered

    def begin(self, route: Route, head: StartHead, body: bytes | Blob, answer: Callable[[Outcome], None]) -> None:
        """The same without a task for the request: `answer` is called once, now or later."""
        run = self.enter(route, head, body)
        if not isinstance(run, Run):
            answer(run)
        elif run.outcome is not None or (head.callback is not None and (run.token or run.detached)):
            answer(self._say(run, head))
        else:
            self._hold(run, head, answer)

    def _hold(self, run: Run, head: StartHead, answer: Callable[[Outcome], None]) -> None:
        held = Held(run, head, self._say, answer)
        run.waiting.append(held)
        timeout_s = None if head.request_timeout_ms is None else head.request_timeout_ms / 1000
        if head.callback is not None:
            patience_s = self._patience.seconds
            if timeout_s is None or timeout_s * SHARE_OF_TIMEOUT >= patience_s:
                self._patience.limit(held)
            else:
                held.limit(timeout_s * SHARE_OF_TIMEOUT)
        elif timeout_s is not None:
            held.limit(timeout_s)

    def enter(self, route: Route, head: StartHead, body: bytes | Blob | Pending) -> Run | Outcome:
        """The run of a start, begun now or before; or its answer, where that is known or there is to be no run."""
        key = f"{route.id} {head.request_id}" if head.request_id else ""
        fingerprint = hash((head.content_type, body if isinstance(body, bytes) else body.sha256))
        run = self._runs.find(key)
        if run is not None and run.leaving and head.attempt > run.attempt:
            run = None  # it was woken before we read that it may sleep
        if run is None:
            known = self._runs.answer(key)
            if known is not None and known.fingerprint != fingerprint:
                return _conflict()
            # A handler's own 201 is repeated within its attempt only. The next attempt comes because that work was
            # lost, and with it a new completion token: the handler must hear of it.
            if known is not None and (known.outcome.state != "running" or head.attempt <= known.attempt):
                return known.outcome
            if self._work.stopping or len(self._runs.live) >= self._running_max:
                return self._full()
            try:
                value = route.input.decode(head.content_type, body) if isinstance(body, bytes) else body
            except Undecodable as error:
                return outcomes.refusal("BAD_REQUEST", f"the input cannot be read: {error}")
            home = self._work.home()
            run = Run(route, key, fingerprint, head, home, head.callback, head.attempt, now_ms(), Cancellation())
            self._work.begin(run, value)
        elif run.fingerprint != fingerprint:
            return _conflict()
        elif head.callback is not None and head.attempt >= run.attempt:
            self._work.adopt(run, head)
        return run

    def _full(self) -> Outcome:
        """Why there is to be no further run."""
        if self._work.stopping:
            return outcomes.refusal("UNAVAILABLE", STOPPING, retry_after_s=1)
        most = "1 operation runs" if self._running_max == 1 else f"{self._running_max} operations run"
        message = f"{most} here; that is the most this agent takes"
        return outcomes.refusal("RESOURCE_EXHAUSTED", message, retry_after_s=1)

    def _say(self, run: Run, head: StartHead) -> Outcome:
        """The answer to a request that waits no longer: the outcome, or what there is in its place."""
        if run.outcome is not None:
            return run.outcome
        if head.callback is not None:
            return self._take_over(run)
        if run.lost:
            return _taken_away()
        if not run.key:
            # Nobody knows its id: nobody can come back for the answer.
            self._work.cancel(run, "the request timed out")
        return outcomes.refusal("REQUEST_TIMEOUT", "the handler did not answer within Request-Timeout")

    def _take_over(self, run: Run) -> Outcome:
        """Answer 201 in the handler's place; from here on its outcome travels as a completion."""
        if run.lost:
            return _taken_away()
        token = self._runs.name(run)
        answer = outcomes.running(token, run.ctx.outbound_links if run.ctx is not None else ())
        if run.callback is not None and run.callback.gateway is not None:
            self._work.leases.add(run)
            return replace(answer, headers=(*answer.headers, self._work.leases.header))
        return answer

    # -- cancel

    async def cancel(self, route: Route, headers: dict[str, str], token: str, timeout_ms: int | None) -> Outcome:
        """Answer one cancel request: 202; 404 for a token of ours that nobody holds; 501 where nothing is to cancel."""
        run = self._runs.by_token(token)
        if run is not None and run.route is route and not run.inner:
            self._work.cancel(run, CANCELED)
            return _CANCELING
        token = self._runs.inner(token) or token
        if self._runs.has_ended(token):
            return _CANCELING
        if token.startswith(f"{TOKEN_PREFIX}-"):
            return outcomes.refusal("NOT_FOUND", "no operation with this token here")
        return await self.cancel_by_handler(route, headers, token, timeout_ms)

    async def cancel_by_handler(
        self, route: Route, headers: dict[str, str], token: str, timeout_ms: int | None
    ) -> Outcome:
        """The token is the handler's own: so is its meaning."""
        ctx = CancelOperationContext(
            service=route.service,
            operation=route.operation,
            headers=headers,
            task_cancellation=Cancellation(),
            request_deadline=None if timeout_ms is None else moment(now_ms() + timeout_ms),
        )
        try:
            async with asyncio.timeout(None if timeout_ms is None else timeout_ms / 1000):
                await route.cancel(ctx, token)
        except NotImplementedError:
            return outcomes.refusal("NOT_IMPLEMENTED", "this operation cannot be canceled")
        except TimeoutError:
            return outcomes.refusal("REQUEST_TIMEOUT", "the handler did not answer within Request-Timeout")
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is its answer
            return outcomes.raised(error, f"cancel of {route.service}/{route.operation}")
        return _CANCELING


def _give(answered: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not answered.done():
        answered.set_result(outcome)


def _conflict() -> Outcome:
    return outcomes.refusal("CONFLICT", "this Nexus-Request-Id came before with another input")


def _taken_away() -> Outcome:
    return outcomes.refusal("UNAVAILABLE", "the work was taken from this agent", retry_after_s=1)
