"""Hosting: one execution per request id, quick answers at once, slow ones as 201 and a completion later (decision 27).

A handler gets a share of the request's time. When it is still running then and the caller gave a callback URL, the host
answers 201 with a token of its own and reports the outcome to the callback; without one the caller waits until
its `Request-Timeout` and gets 408. Knows no sockets: a request comes as head and body, an Outcome goes out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

from nexusrpc.handler import (
    CancelOperationContext,
    StartOperationContext,
    StartOperationResultAsync,
    StartOperationResultSync,
)

from mesh.agent import outcome as outcomes
from mesh.agent.codec import Undecodable
from mesh.agent.completion import FINAL, completion_of, deliver, pools
from mesh.agent.context import Cancellation, Context, running
from mesh.agent.inbound import Callback, StartHead
from mesh.agent.leases import Leases
from mesh.agent.outcome import Outcome
from mesh.agent.routes import Route
from mesh.agent.runs import TOKEN_PREFIX, Run, Runs
from mesh.clock import now_ms
from mesh.errors import Malformed, ReplyTimeout
from mesh.ids import short_id
from mesh.pool import Pool, Target
from mesh.wire import OPERATION_TOKEN_BYTES_MAX

SHARE_OF_TIMEOUT: Final = 0.5
"""The 201 leaves when this part of the `Request-Timeout` is over, if not before: the answer must still travel."""
CANCEL_GRACE_S: Final = 5.0
"""What a handler that watches its cancellation gets to end in its own way."""
LAST_COMPLETIONS_S: Final = 2.0
STOPPING: Final = "the agent is stopping"

logger: Final = logging.getLogger("mesh.agent")


class Host:
    """Runs operations of one agent. `gateways`: base URLs of the mesh, for completions and heartbeats."""

    def __init__(
        self,
        endpoint: str,
        pool: Pool,
        gateways: Sequence[Target],
        *,
        key: str | None,
        answer_within_ms: int,
        lease_ms: int,
        running_max: int,
    ) -> None:
        self._endpoint = endpoint
        self._pool = pool
        self._gateways = gateways
        self._answer_within_s = answer_within_ms / 1000
        self._running_max = running_max
        self._runs = Runs()
        self._leases = Leases(
            pool, gateways, lease_ms=lease_ms, key=key, cancel=self._cancel_asked, lose=self._lose
        )
        self.stopping = False

    # -- start

    async def start(self, route: Route, head: StartHead, body: bytes) -> Outcome:
        """Answer one start request. Never raises for what a caller sent or a handler did."""
        request_id = head.request_id
        key = None if request_id is None else (route, request_id)
        fingerprint = hash((head.content_type, body))
        run = None if key is None else self._runs.find(key)
        if run is None:
            if self.stopping:
                return outcomes.refusal("UNAVAILABLE", STOPPING, retry_after_s=1)
            if len(self._runs.live) >= self._running_max:
                message = f"{self._running_max} operations run here; that is the most this agent takes"
                return outcomes.refusal("RESOURCE_EXHAUSTED", message, retry_after_s=1)
            try:
                value = route.input.decode(head.content_type, body)
            except Undecodable as error:
                return outcomes.refusal("BAD_REQUEST", f"the input cannot be read: {error}")
            run = Run(route, key, fingerprint, head.callback, head.number("mesh-attempt"), now_ms())
            self._begin(run, head, value)
        elif run.fingerprint != fingerprint:
            return outcomes.refusal("CONFLICT", "this Nexus-Request-Id came before with another input")
        elif head.callback is not None and head.number("mesh-attempt") >= run.attempt:
            # A later attempt of the same run: its token supersedes the one we had.
            run.callback, run.attempt = head.callback, head.number("mesh-attempt")
        return run.outcome or await self._answer(run, head)

    def _begin(self, run: Run, head: StartHead, value: Any) -> None:
        route, at_ms = run.route, run.started_at_ms
        # With a callback the request's own timeout binds nobody: the work outlives it.
        limit_ms = head.operation_timeout_ms if head.callback is not None else head.request_timeout_ms
        request_id = head.request_id or short_id("request")
        callback = head.callback
        ctx = run.context = StartOperationContext(
            service=route.service,
            operation=route.operation,
            headers=head.headers,
            task_cancellation=run.cancellation,
            request_deadline=None if limit_ms is None else _moment(at_ms + limit_ms),
            request_id=request_id,
            callback_url=None if callback is None else callback.url,
            callback_headers={}
            if callback is None
            else {name.decode("latin-1"): text.decode("latin-1") for name, text in callback.headers},
            inbound_links=head.links,
        )
        context = Context(
            self._endpoint,
            route.service,
            route.operation,
            head.headers.get("mesh-operation-id"),
            head.number("mesh-run"),
            run.attempt,
            head.headers.get("mesh-namespace"),
            request_id,
            head.headers,
            None if head.operation_timeout_ms is None else at_ms + head.operation_timeout_ms,
            run.cancellation,
        )
        self._runs.open(run)
        run.task = asyncio.get_running_loop().create_task(self._execute(run, ctx, context, value))
        run.task.add_done_callback(lambda _: self._ended(run))

    async def _answer(self, run: Run, head: StartHead) -> Outcome:
        timeout_s = None if head.request_timeout_ms is None else head.request_timeout_ms / 1000
        if head.callback is not None:
            if run.token is None:
                patience_s = self._answer_within_s
                await run.wait(patience_s if timeout_s is None else min(patience_s, timeout_s * SHARE_OF_TIMEOUT))
            return run.outcome or self._take_over(run)
        await run.wait(timeout_s)
        if run.outcome is not None:
            return run.outcome
        if run.lost:
            return outcomes.refusal("UNAVAILABLE", "the work was taken from this agent", retry_after_s=1)
        if run.key is None:
            self._cancel(run, "the request timed out")  # nobody knows its id: nobody can come back for the answer
        return outcomes.refusal("REQUEST_TIMEOUT", "the handler did not answer within Request-Timeout")

    def _take_over(self, run: Run) -> Outcome:
        """Answer 201 in the handler's place; from here on its outcome travels as a completion."""
        if run.lost:
            return outcomes.refusal("UNAVAILABLE", "the work was taken from this agent", retry_after_s=1)
        token = self._runs.name(run)
        try:
            answer = outcomes.running(token, run.context.outbound_links if run.context is not None else ())
        except Malformed:
            answer = outcomes.running(token)  # the handler's bad link is told with its outcome
        if run.callback is not None and run.callback.gateway is not None:
            self._leases.add(run)
            answer.headers.append(self._leases.header)
        return answer

    # -- the handler's task

    async def _execute(self, run: Run, ctx: StartOperationContext, context: Context, value: Any) -> None:
        running.set(context)
        pools.set((asyncio.get_running_loop(), self._pool))
        try:
            answer = await run.route.start(ctx, value)
            outcome = self._returned(run, ctx, answer)
        except asyncio.CancelledError:
            outcome = self._interrupted(run)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is its answer
            outcome = outcomes.raised(error, f"{run.route.service}/{run.route.operation}")
        if run.lost:
            outcome = None
        run.end(outcome)
        if run.token is not None and outcome is not None and outcome.state != "running":
            await self._report(run, outcome)

    def _ended(self, run: Run) -> None:
        # Not in the task itself: one that is cancelled before its first step never runs a line of it.
        if run.outcome is None:
            run.lost = True
            run.end(None)
        self._leases.discard(run)
        self._runs.close(run)

    def _returned(self, run: Run, ctx: StartOperationContext, answer: object) -> Outcome:
        if isinstance(answer, StartOperationResultAsync):
            token = answer.token
            if not token or len(token) > OPERATION_TOKEN_BYTES_MAX or not token.isascii() or not token.isprintable():
                message = f"a handler's operation token is 1 to {OPERATION_TOKEN_BYTES_MAX} visible ASCII characters"
                raise ValueError(message)
            run.inner = token
            if run.token is not None:
                self._runs.alias(run.token, token)
            return outcomes.running(run.token or token, ctx.outbound_links)
        if isinstance(answer, StartOperationResultSync):
            return outcomes.succeeded(run.route.output, answer.value, ctx.outbound_links)
        message = f"a handler's start returned {type(answer).__name__} instead of a StartOperationResult"
        raise TypeError(message)

    def _interrupted(self, run: Run) -> Outcome:
        """The task was cancelled: by us for a reason, or by the handler's own doing."""
        task = asyncio.current_task()
        while task is not None and task.cancelling():
            task.uncancel()  # what follows, the completion, is not to be cancelled
        reason = run.cancellation.reason
        if reason is None or self.stopping:
            return outcomes.refusal("UNAVAILABLE", reason or "the handler was interrupted")
        return outcomes.canceled(reason)

    async def _report(self, run: Run, outcome: Outcome) -> None:
        """The completion of a run that was answered 201."""
        where = f"{run.route.service}/{run.route.operation}"
        if outcome.state == "error" and outcome.retryable and run.leased:
            # The Nexus wire has no way to fail an attempt after its 201. Silence has: the lease ends, the mesh sends the
            # next attempt, and the retry policy of the endpoint holds for late errors as it does for early ones.
            logger.warning("%s failed in a way worth repeating; left to the next attempt", where)
            return
        headers, body = completion_of(outcome, run.token or "", run.started_at_ms)
        try:
            status = await deliver(
                self._pool, lambda: cast("Callback", run.callback), headers, body, others=self._gateways
            )
        except (Malformed, ReplyTimeout) as error:
            logger.error("%s: its outcome could not be delivered: %s", where, error.detail)  # noqa: TRY400 - no code at fault
            return
        if status in FINAL:
            logger.warning("%s: its outcome was refused with status %d", where, status)

    # -- cancel

    async def cancel(
        self, route: Route, headers: dict[str, str], token: str, timeout_ms: int | None
    ) -> Outcome:
        """Answer one cancel request: 202, 404 for a token of ours that nobody holds, 501 for what cannot be canceled."""
        run = self._runs.by_token(token)
        if run is not None and run.route is route and run.inner is None:
            self._cancel(run, "canceled by the caller")
            return Outcome(202, [], b"", "canceling")
        token = self._runs.inner(token) or token
        if token.startswith(f"{TOKEN_PREFIX}-"):
            return outcomes.refusal("NOT_FOUND", "no operation with this token here")
        limit_s = None if timeout_ms is None else timeout_ms / 1000
        ctx = CancelOperationContext(
            service=route.service,
            operation=route.operation,
            headers=headers,
            task_cancellation=Cancellation(),
            request_deadline=None if timeout_ms is None else _moment(now_ms() + timeout_ms),
        )
        try:
            async with asyncio.timeout(limit_s):
                await route.cancel(ctx, token)
        except NotImplementedError:
            return outcomes.refusal("NOT_IMPLEMENTED", "this operation cannot be canceled")
        except TimeoutError:
            return outcomes.refusal("REQUEST_TIMEOUT", "the handler did not answer within Request-Timeout")
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is its answer
            return outcomes.raised(error, f"cancel of {route.service}/{route.operation}")
        return Outcome(202, [], b"", "canceling")

    def _cancel_asked(self, run: Run) -> None:
        self._cancel(run, "canceled by the caller")

    def _lose(self, run: Run, why: str) -> None:
        """The work belongs to another attempt, or is over: stop, report nothing, forget."""
        if run.outcome is None:
            run.lost = True
            self._runs.forget(run)
            self._cancel(run, why)

    def _cancel(self, run: Run, reason: str) -> None:
        if run.outcome is not None or run.task is None:
            return
        run.cancellation.set(reason)
        if run.cancellation.watched and not self.stopping:
            asyncio.get_running_loop().call_later(CANCEL_GRACE_S, _interrupt, run)
        else:
            run.task.cancel()

    # -- the end

    async def drain(self, grace_s: float) -> None:
        """Take nothing new, give running work `grace_s`, then interrupt it.

        What was answered 201 and leased goes to another instance when the lease ends; the rest is told UNAVAILABLE.
        """
        self.stopping = True
        await self._until_idle(grace_s)
        for run in tuple(self._runs.live):
            self._cancel(run, STOPPING)
        await self._until_idle(LAST_COMPLETIONS_S)
        tasks = [run.task for run in self._runs.live if run.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._leases.close()
        self._runs.clear()

    async def _until_idle(self, limit_s: float) -> None:
        tasks = [run.task for run in self._runs.live if run.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=limit_s)


def _interrupt(run: Run) -> None:
    if run.outcome is None and run.task is not None:
        run.task.cancel()


def _moment(at_ms: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=at_ms)
