"""An agent of the chaos runs, in a process of its own: hosts handlers with the SDK and records what reaches them.

    python -m tests.agents.chaos_worker --endpoint work --process worker-a.1 --port 9001 --history F --gateways URL,URL

Every execution puts a mark of its own into its result, so that a result tells which execution made it.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

from nexusrpc import HandlerError, HandlerErrorType, OperationError, OperationErrorState
from nexusrpc.handler import (
    CancelOperationContext,
    OperationHandler,
    StartOperationContext,
    StartOperationResultAsync,
    operation_handler,
    service_handler,
)
from pydantic import BaseModel

from mesh.agent import Agent, complete, current
from mesh.clock import sleep
from mesh.errors import MeshError, Refusal
from mesh.ids import short_id
from tests.chaos.history import Kind, Recorder, What, digest

LEASE_MS = 2_000
LATE_MS = 3_400
"""Longer than the endpoint's heartbeat_ms: the mesh gives such an attempt up."""
TTL_MS = 2_000


class Job(BaseModel):
    """What a caller asks for. `ms` is how long it takes, `fails` how many attempts fail first."""

    n: int
    ms: int
    fails: int
    twist: str


class Made(BaseModel):
    """A result; `mark` names the execution."""

    mark: str
    n: int


record: Recorder
background: set[asyncio.Task[None]] = set()


def invoked(job: Job) -> dict[str, Any]:
    """Record that a handler runs; what its other lines have in common."""
    call = current()
    about: dict[str, Any] = {"op": call.operation_id or "", "run": call.run, "attempt": call.attempt}
    record(Kind.INFO, What.INVOKED, request_id=call.request_id, input=digest(job.model_dump_json().encode()), **about)
    return about


def made(job: Job, about: dict[str, Any]) -> Made:
    """A result of this execution, recorded before anybody can see it."""
    mark = short_id(record.process)
    record(Kind.INFO, What.EXECUTED, mark=mark, **about)
    return Made(mark=mark, n=job.n)


async def quick(job: Job) -> Made:
    return made(job, invoked(job))


async def slow(job: Job) -> Made:
    about = invoked(job)
    await sleep(job.ms / 1000)
    return made(job, about)


async def flaky(job: Job) -> Made:
    about = invoked(job)
    if about["attempt"] <= job.fails:
        raise HandlerError("not yet", type=HandlerErrorType.RESOURCE_EXHAUSTED)
    return made(job, about)


async def failing(job: Job) -> Made:
    invoked(job)
    await sleep(job.ms / 1000)
    raise OperationError("this one fails", state=OperationErrorState.FAILED)


async def refusing(job: Job) -> Made:
    invoked(job)
    raise HandlerError("not this one", type=HandlerErrorType.BAD_REQUEST)


class NativeHandler(OperationHandler[Job, Made]):
    """Answers 201 with a token of its own and completes from a task of its own, by the job's twist.

    early       the completion goes out before the 201 does
    twice       the same completion again
    conflict    then another one
    late        the first attempt is silent for longer than its lease, the others take half of it
    """

    async def start(self, ctx: StartOperationContext, input: Job) -> StartOperationResultAsync:  # noqa: A002
        about = invoked(input)
        if input.twist == "early":
            await self._complete(ctx, input, about)
        else:
            task = asyncio.get_running_loop().create_task(self._later(ctx, input, about))
            background.add(task)
            task.add_done_callback(background.discard)
        return StartOperationResultAsync(short_id("native"))

    async def cancel(self, ctx: CancelOperationContext, token: str) -> None:
        """Heard, and left to the completion."""

    async def _later(self, ctx: StartOperationContext, job: Job, about: dict[str, Any]) -> None:
        late_ms = 0 if job.twist != "late" else LATE_MS if about["attempt"] == 1 else LATE_MS // 2
        await sleep((late_ms or job.ms) / 1000)
        await self._complete(ctx, job, about)

    async def _complete(self, ctx: StartOperationContext, job: Job, about: dict[str, Any]) -> None:
        result = made(job, about)
        await report(ctx, result, about)
        if job.twist == "twice":
            await report(ctx, result, about)
        if job.twist == "conflict":
            await report(ctx, made(job, about), about)


async def report(ctx: StartOperationContext, result: Made, about: dict[str, Any]) -> None:
    """Send one completion and record how it was answered."""
    about = {**about, "call": short_id("completion"), "mark": result.mark, "state": "succeeded"}
    record(Kind.INVOKE, What.COMPLETED, **about)
    try:
        await complete(ctx.callback_url or "", ctx.callback_headers.get("token", ""), result, retry_for_s=60)
    except Refusal as refusal:
        record(Kind.FAIL, What.COMPLETED, status=refusal.status, code=refusal.code, **about)
    except MeshError as error:
        record(Kind.UNKNOWN, What.COMPLETED, code=error.code, **about)
    else:
        record(Kind.OK, What.COMPLETED, status=200, **about)


@service_handler(name="native")
class Native:
    """A service of operations that are asynchronous by themselves."""

    @operation_handler
    def own(self) -> OperationHandler[Job, Made]:
        return NativeHandler()


def main() -> None:
    global record  # noqa: PLW0603 - one recorder per process
    parser = argparse.ArgumentParser()
    for name in ("endpoint", "process", "port", "history", "gateways", "answer-within-ms"):
        parser.add_argument(f"--{name}", required=True)
    given = parser.parse_args()
    record = Recorder(Path(given.history), given.process)
    Agent(
        given.endpoint,
        [quick, slow, flaky, failing, refusing, Native()],
        gateway=given.gateways.split(","),
        register="instance",
        ttl_ms=TTL_MS,
        lease_ms=LEASE_MS,
        answer_within_ms=int(given.answer_within_ms),
    ).run(port=int(given.port))


if __name__ == "__main__":
    main()
