"""Runs of tasks that were fetched: how a task becomes a run of the host, and what its end and a cancel mean.

Knows no gateway and no connection: tasks come in, answers go into the outbox.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from mesh.agent import outcome as outcomes
from mesh.agent.arrivals import Arrivals
from mesh.agent.host import Host
from mesh.agent.inbound import MESH_CALLBACK
from mesh.agent.outbox import Outbox
from mesh.agent.routes import Routes
from mesh.agent.runs import Run
from mesh.agent.tasks import Cancel, Task, head_of, input_of, request_id_of
from mesh.agent.work import CANCELED, STOPPING, Work
from mesh.errors import Malformed, NotFound
from mesh.pool import Target

logger: Final = logging.getLogger("mesh.agent")


class Fetched:
    """The fetched runs of one agent, at most `slots` of them at once."""

    def __init__(self, host: Host, work: Work, routes: Routes, outbox: Outbox, slots: int, arrivals: Arrivals) -> None:
        self._host = host
        self._work = work
        self._routes = routes
        self._outbox = outbox
        self._slots = slots
        self._arrivals = arrivals
        self._runs: dict[str, Run] = {}
        self._outside: set[asyncio.Task[None]] = set()
        self._callbacks: dict[str, tuple[str, Target]] = {}

    @property
    def free(self) -> int:
        """Seats that no run takes."""
        return self._slots - len(self._runs)

    def begin(self, tasks: Sequence[Task], gateway: Target) -> None:
        """Run them; whatever comes of each goes into the outbox."""
        url, target = self._callback(gateway)
        for task in tasks:
            self._begin(task, gateway, url, target)

    def _begin(self, task: Task, gateway: Target, callback_url: str, callback: Target) -> None:
        request_id = request_id_of(task)
        try:
            route = self._routes.named(task.service, task.operation)
            head = head_of(task, request_id, gateway, callback_url, callback)
            data = task.dataref
            body = input_of(task) if data is None else self._arrivals.pending(route, task, data, gateway)
        except NotFound as error:
            self._outbox.put(task.task_token, outcomes.refusal("NOT_FOUND", error.detail))
            return
        except Malformed as error:
            self._outbox.put(task.task_token, outcomes.refusal("BAD_REQUEST", error.detail))
            return
        if self._work.stopping:
            self._outbox.give_back(task.task_token, STOPPING)
            return
        entered = self._host.enter(route, head, body)
        if not isinstance(entered, Run):
            self._outbox.put(task.task_token, entered)
            return
        # An earlier attempt may still go on here: it got this one's token, and answers with it.
        if entered.sink is None:
            entered.sink = self
            entered.leased = True
            self._runs[request_id] = entered
            self._work.leases.add(entered)

    def cancel(self, cancel: Cancel) -> None:
        """The mesh says that an attempt is not wanted any more."""
        run = self._runs.get(request_id_of(cancel))
        if run is None or run.attempt != cancel.attempt:
            return
        if cancel.state == "canceling":
            self._work.cancel(run, CANCELED)
        else:
            self._work.over(run)

    # What a run tells (runs.Sink)

    def ended(self, run: Run) -> None:
        """Its task is over; `run.outcome` None: there is nothing to report."""
        request_id = run.head.request_id or ""
        if self._runs.get(request_id) is run:
            del self._runs[request_id]
        outcome, token = run.outcome, "" if run.callback is None else run.callback.token
        if outcome is not None and outcome.state == "running":
            # The handler goes on by itself and reports later; until then somebody must keep up the lease.
            self._work.leases.add(run)
        elif outcome is not None and self._work.stopping and outcome.state == "error" and outcome.retryable:
            self._outbox.give_back(token, STOPPING)
            return
        elif outcome is not None and run.doubt is None:
            self._outbox.put(token, outcome)
            return
        self._outbox.news.set()  # nothing to say, but a seat is free

    def canceled(self, run: Run) -> None:
        """A cancel for what goes on under the handler's own token."""
        if run.inner and run.cancellation.reason is None:
            run.cancellation.set(CANCELED)
            task = asyncio.get_running_loop().create_task(self._cancel_own(run))
            self._outside.add(task)
            task.add_done_callback(self._outside.discard)

    async def _cancel_own(self, run: Run) -> None:
        answer = await self._host.cancel_by_handler(run.route, {}, run.inner, None)
        if answer.state != "canceling":
            logger.info("%s/%s: not canceled: status %d", run.route.service, run.route.operation, answer.status)

    def _callback(self, gateway: Target) -> tuple[str, Target]:
        known = self._callbacks.get(gateway.origin)
        if known is None:
            url = f"{gateway.origin}{gateway.path.decode().rstrip('/')}{MESH_CALLBACK}"
            known = self._callbacks[gateway.origin] = url, Target.parse(url)
        return known
