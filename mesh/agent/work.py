"""The work itself: a task per run, what its end means, and how the end is reported once a 201 has left.

Owns tasks, their cancellation and the drain. Which request gets which answer is host.py's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from functools import partial
from types import coroutine
from typing import Any, Final, cast

from nexusrpc import HandlerError, HandlerErrorType
from nexusrpc.handler import StartOperationContext, StartOperationResultAsync, StartOperationResultSync

from mesh import trace
from mesh.agent import outcome as outcomes
from mesh.agent.arrivals import Pending
from mesh.agent.codec import Undecodable
from mesh.agent.completion import FINAL, completion_of, deliver, traced
from mesh.agent.context import Home, running, start_context
from mesh.agent.durable.errors import LeaseLost, Suspended
from mesh.agent.durable.link import Hosted, hosted
from mesh.agent.hosting import Hosting
from mesh.agent.inbound import Callback, StartHead
from mesh.agent.leases import Leases
from mesh.agent.outcome import Outcome
from mesh.agent.runs import Run, Runs
from mesh.errors import Malformed, NotSent, ReplyTimeout
from mesh.ids import short_id
from mesh.pool import Pool, Target
from mesh.wire import OPERATION_TOKEN_BYTES_MAX

CANCEL_GRACE_S: Final = 5.0
"""What a handler that watches its cancellation gets to end in its own way."""
LOST_GRACE_S: Final = 5.0
"""How long work whose lease is lost goes on. A gateway that was away for longer than the lease sends the next attempt,
mostly to this very agent, where it finds the work still running instead of beginning it again."""
EXPIRY_GRACE_S: Final = 0.5
"""Work stops that long after its Operation-Timeout: the caller's own clock, which began earlier, ends the operation
first, as timed out instead of failed."""
LAST_COMPLETIONS_S: Final = 2.0
CANCELED: Final = "canceled by the caller"
TIMED_OUT: Final = "the Operation-Timeout is over"
STOPPING: Final = "the agent is stopping"

logger: Final = logging.getLogger("mesh.agent")


class Work:
    """The runs of one agent. `gateways`: base URLs of the mesh, for completions and heartbeats."""

    def __init__(
        self,
        endpoint: str,
        pool: Pool,
        gateways: Sequence[Target],
        *,
        key: str | None,
        lease_ms: int,
        hosting: Hosting,
    ) -> None:
        self.runs = Runs()
        self._hosting = hosting
        self.leases = Leases(
            pool,
            gateways,
            lease_ms=lease_ms,
            key=key,
            cancel=partial(self.cancel, reason=CANCELED),
            lose=self._doubt,
            stop=partial(self._abandon, why="the operation is over"),
        )
        self.stopping = False
        self._home: Home | None = None
        self._endpoint = endpoint
        self._pool = pool
        self._gateways = gateways

    def listen(self, *, durable: bool) -> None:
        """Work may come from now on, on this loop; `durable`: also for handlers with a journal."""
        if durable:
            self._hosting.begin()

    def home(self) -> Home:
        """Of the runs that begin now; an agent may come back on another loop."""
        loop = asyncio.get_running_loop()
        if self._home is None or self._home.loop is not loop:
            self._home = Home(loop, self._pool, self._endpoint, self.runs.outer)
        return self._home

    def begin(self, run: Run, value: Any) -> None:
        """Call the handler in a task of its own."""
        route, at_ms, head, callback = run.route, run.started_at_ms, run.head, run.callback
        # With a callback the request's own timeout binds nobody: the work outlives it.
        limit_ms = head.request_timeout_ms if callback is None else head.operation_timeout_ms
        ctx = run.ctx = start_context(head, {
            "service": route.service,
            "operation": route.operation,
            "task_cancellation": run.cancellation,
            "request_deadline": None if limit_ms is None else moment(at_ms + limit_ms),
            "request_id": head.request_id or short_id("request"),
            "callback_url": None if callback is None else callback.url,
            "inbound_links": head.links,
            "outbound_links": [],
        })  # fmt: skip
        self.runs.open(run)
        loop = run.home.loop
        if head.operation_timeout_ms is not None:
            limit_s = head.operation_timeout_ms / 1000 + EXPIRY_GRACE_S
            run.expiry = loop.call_later(limit_s, partial(self.cancel, run, TIMED_OUT))
        given = self._hosting.task(run, head) if route.durable else None
        execution = self._execute(run, ctx, value, given)
        execution.send(None)  # up to `_entered`: who cancels the task before its first step is heard in it all the same
        # Not by the loop, which writes a name for each.
        run.task = asyncio.Task(execution, loop=loop, name="mesh-run")

    def adopt(self, run: Run, head: StartHead) -> None:
        """A later attempt of the same run has come: its token supersedes the one we had, its lease the one we lost."""
        run.callback, run.attempt = head.callback, head.attempt
        if run.route.durable:
            self._hosting.adopted(run, head)
        if run.doubt is not None:
            run.doubt.cancel()
            run.doubt = None

    def cancel(self, run: Run, reason: str) -> None:
        """Tell the handler to stop, and stop it: at once, or after a grace when it watches its cancellation."""
        if run.outcome is not None or run.task is None:
            if run.sink is not None and reason == CANCELED:
                run.sink.canceled(run)
            return
        run.cancellation.set(reason)
        if run.durable is not None and not self.stopping:
            if reason == CANCELED:
                run.durable.cancel()
            else:
                run.durable.stop(LeaseLost(reason))
        elif run.cancellation.watched and not self.stopping:
            asyncio.get_running_loop().call_later(CANCEL_GRACE_S, _interrupt, run)
        else:
            run.task.cancel()

    def over(self, run: Run) -> None:
        """The operation is over, however: stop, report nothing."""
        self._abandon(run, "the operation is over")

    async def drain(self, grace_s: float) -> None:
        """Give running work `grace_s`, then interrupt it.

        What was answered 201 and leased goes to another instance when the lease ends; the rest is told UNAVAILABLE.
        """
        self.stopping = True
        self._hosting.leave()
        await self._until_idle(grace_s)
        for run in tuple(self.runs.live):
            self.cancel(run, STOPPING)
        await self._until_idle(LAST_COMPLETIONS_S)
        tasks = self._tasks()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.leases.close()
        await self._hosting.close()
        self.runs.clear()

    # -- the handler's task

    async def _execute(self, run: Run, ctx: StartOperationContext, value: Any, given: Hosted | None) -> None:
        try:
            try:
                await _entered()
                running.set(run)
                if given is not None:
                    hosted.set(given)
                trace.enter(run.head.trace())
                if isinstance(value, Pending):
                    value = await value.get()
                answer = await run.route.start(ctx, value)
                del value  # a large input goes with the last reference
                outcome = self._returned(run, ctx, answer)
                if outcome.blob is not None:
                    outcome = await outcomes.digested(outcome)
            except asyncio.CancelledError:
                outcome = self._interrupted(run)
            except Suspended as why:
                outcome = self._suspended(run, why)
            except Exception as error:  # noqa: BLE001 - whatever a handler raises is its answer
                outcome = outcomes.raised(error, f"{run.route.service}/{run.route.operation}")
            if run.lost:
                outcome = None
            elif outcome is not None and outcome.state in ("failed", "canceled"):
                outcome = outcomes.linked(outcome, ctx.outbound_links)
            run.end(outcome)
            # In doubt nothing is reported: the token is superseded. The attempt that has the work may still ask here.
            if run.token and run.doubt is None and outcome is not None and outcome.state != "running":
                await self._report(run, outcome)
        finally:
            self._ended(run)

    def _ended(self, run: Run) -> None:
        if run.outcome is None:
            run.lost = True
            run.end(None)
        if run.durable is not None:
            self._hosting.ended(run.durable)
            run.durable = None
        # Each would keep the other, and all that the attempt was, until the garbage collector comes by.
        run.task = None
        if run.doubt is not None:
            run.doubt.cancel()
        if run.expiry is not None:
            run.expiry.cancel()
        self.leases.discard(run)
        self.runs.close(run)
        if run.sink is not None:
            run.sink.ended(run)

    def _returned(self, run: Run, ctx: StartOperationContext, answer: object) -> Outcome:
        if isinstance(answer, StartOperationResultSync):
            value: Any = answer.value  # pyright: ignore - of whatever type
            try:
                return outcomes.succeeded(run.route.output, value, ctx.outbound_links)
            except Undecodable as error:
                raise _unsendable(run, error) from None
        if not isinstance(answer, StartOperationResultAsync):
            message = f"a handler's start returned {type(answer).__name__} instead of a StartOperationResult"
            raise TypeError(message)
        token = answer.token
        if not token or len(token) > OPERATION_TOKEN_BYTES_MAX or not token.isascii() or not token.isprintable():
            message = f"a handler's operation token is 1 to {OPERATION_TOKEN_BYTES_MAX} visible ASCII characters"
            raise ValueError(message)
        run.inner = token
        if run.token:
            self.runs.alias(run.token, token)
        return outcomes.running(run.token or token, ctx.outbound_links)

    def _interrupted(self, run: Run) -> Outcome:
        """The task was cancelled: by us for a reason, or by the handler's own doing."""
        task = asyncio.current_task()
        while task is not None and task.cancelling():
            task.uncancel()  # what follows, the completion, is not to be cancelled
        reason = run.cancellation.reason
        if reason is None or self.stopping:
            return outcomes.refusal("UNAVAILABLE", reason or "the handler was interrupted")
        if reason == TIMED_OUT:
            return outcomes.refusal("REQUEST_TIMEOUT", reason)
        return outcomes.canceled(reason)

    def _suspended(self, run: Run, why: Suspended) -> None:
        """A durable handler's attempt is over without an outcome: nothing is reported, nothing remembered."""
        if isinstance(why, LeaseLost):
            logger.warning(
                "%s: %s; what attempt %d did since does not count", run.key.partition(" ")[2], why, run.attempt
            )
        run.lost = True
        self.runs.forget(run)

    async def _report(self, run: Run, outcome: Outcome) -> None:
        """The completion of a run that was answered 201."""
        where = f"{run.route.service}/{run.route.operation}"
        if run.cancellation.reason == TIMED_OUT and run.callback is not None and run.callback.gateway is not None:
            return  # a mesh timed the operation out by its own clock, and refuses whatever comes now
        if outcome.state == "error" and outcome.retryable and (run.leased or run.route.durable):
            # Nexus has no way to fail an attempt after its 201. Silence has: the lease ends, the mesh sends the next
            # attempt, and the retry policy of the endpoint holds for late errors as it does for early ones.
            if run.route.durable:
                self.runs.forget(run)  # the next attempt is other work, even if it comes before we are done here
                if await self._hosting.fail(run, outcome):
                    return
            logger.warning("%s failed in a way worth repeating; left to the next attempt", where)
            return
        headers, body = completion_of(outcome, run.token, run.started_at_ms)
        body = outcome.blob or body
        if run.ctx is not None and run.callback is not None:
            headers = traced(headers, run.callback, trace.received(run.ctx.headers))
        try:
            status = await deliver(
                self._pool, lambda: cast("Callback", run.callback), headers, body, others=self._gateways
            )
        except (Malformed, NotSent, ReplyTimeout) as error:
            logger.error("%s: its outcome could not be delivered: %s", where, error.detail)  # noqa: TRY400 - no bug here
            return
        if status in FINAL:
            # Expected of work that was told to stop: the operation mostly ended before it did.
            level = logging.INFO if run.cancellation.reason else logging.WARNING
            logger.log(level, "%s: its outcome was refused with status %d", where, status)

    def _doubt(self, run: Run) -> None:
        """The lease is lost. Unless the attempt that got it comes here, the work stops."""
        if run.hold is not None:
            run.hold.lost()
        if run.outcome is None and run.doubt is None:
            logger.warning(
                "%s: the lease is lost; what attempt %d did since does not count, unless the next one comes here",
                run.key.partition(" ")[2],
                run.attempt,
            )
            stop = partial(self._abandon, run, why="another attempt has the work")
            run.doubt = asyncio.get_running_loop().call_later(LOST_GRACE_S, stop)

    def _abandon(self, run: Run, why: str) -> None:
        """The work is nobody's, or another's: stop, report nothing, forget."""
        if run.outcome is None:
            run.lost = True
            self.runs.forget(run)
            self.cancel(run, why)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [run.task for run in self.runs.live if run.task is not None]

    async def _until_idle(self, limit_s: float) -> None:
        tasks = self._tasks()
        if tasks:
            await asyncio.wait(tasks, timeout=limit_s)


@coroutine
def _entered() -> Generator[None, None, None]:
    yield


def _interrupt(run: Run) -> None:
    if run.outcome is None and run.task is not None:
        run.task.cancel()


def _unsendable(run: Run, error: Undecodable) -> HandlerError:
    """Why a result cannot be sent: another attempt would come to the same, so there is none."""
    where = f"{run.route.service}/{run.route.operation}"
    message = f"the result of {where} is not the declared {run.route.output.name}: {error}"
    logger.error("%s", message)
    return HandlerError(message, type=HandlerErrorType.INTERNAL, retryable_override=False)


def moment(at_ms: int) -> datetime:
    """Milliseconds since the epoch as nexusrpc's contexts have it."""
    return datetime.fromtimestamp(at_ms / 1000, UTC)
