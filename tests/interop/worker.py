"""Temporal's side of the interop tests, run in an environment of its own (environment.py): never imported by a test.

    python worker.py ADDRESS      workers and a client of the Temporal server there, told what to do on standard input

Every line in is a JSON object `{"id", "do", ...}` (a method of `Side`), every line out `{"id", "value"}` or
`{"id", "error"}`. What handlers and workflows do is in their input, so that a test says in its own text what happens.
"""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections import Counter
from datetime import timedelta
from typing import Any

import nexusrpc
from nexusrpc import HandlerError, HandlerErrorType, OperationError, OperationErrorState
from nexusrpc.handler import StartOperationContext, service_handler, sync_operation
from temporalio import nexus, workflow
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ApplicationError, FailureError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

CALLERS, HANDLERS = "callers", "handlers"

# The SDK's core logs to standard output: the answers get a line of their own, and all else goes to standard error.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def told(error: BaseException | None) -> list[dict[str, Any]]:
    """An exception and its causes, outermost first."""
    chain: list[dict[str, Any]] = []
    while error is not None:
        entry = {"is": type(error).__name__, "message": str(error)}
        for name in ("type", "raw_error_type", "retryable", "non_retryable", "operation_token", "state"):
            if (value := getattr(error, name, None)) is not None:
                entry[name] = getattr(value, "value", value)
        chain.append(entry)
        error = error.cause if isinstance(error, FailureError) else error.__cause__
    return chain


# -- workflows that call


@workflow.defn(name="Caller")
class CallerWorkflow:
    """Calls one Nexus operation; gives `{"result"}` or `{"error": [...]}`. Signals: `cancel` the operation."""

    def __init__(self) -> None:
        self.handle: Any = None

    @workflow.signal
    def cancel(self) -> None:
        self.handle.cancel()

    @workflow.run
    async def run(self, call: dict[str, Any]) -> dict[str, Any]:
        client = workflow.create_nexus_client(service=call.get("service", "svc"), endpoint=call["endpoint"])
        options: dict[str, Any] = {
            f"{name}_timeout": timedelta(seconds=call[name])
            for name in ("schedule_to_close", "schedule_to_start", "start_to_close")
            if name in call
        }
        if "cancellation" in call:
            options["cancellation_type"] = workflow.NexusOperationCancellationType[call["cancellation"]]
        value = call.get("input")
        if "bytes" in call:
            value = call["bytes"].encode()
        try:
            self.handle = handle = await client.start_operation(
                call.get("operation", "op"),
                value,
                output_type=bytes if "bytes" in call else None,
                headers=call.get("headers"),
                **options,
            )
            result = await handle
        except Exception as error:  # noqa: BLE001 - what came is what the test wants to see
            return {"error": told(error)}
        token = handle.operation_token
        return {"result": result.decode() if isinstance(result, bytes) else result, "token": token}


# -- what is called


@workflow.defn(name="Job")
class JobWorkflow:
    """A workflow behind an operation: returns, fails, or waits until somebody says `go` or cancels it."""

    def __init__(self) -> None:
        self.going = False

    @workflow.signal
    def go(self) -> None:
        self.going = True

    @workflow.run
    async def run(self, job: dict[str, Any]) -> Any:
        if job.get("wait"):
            await workflow.wait_condition(lambda: self.going)
        if "fail" in job:
            raise ApplicationError(job["fail"], {"because": "as told"}, type="AsTold", non_retryable=True)
        return job.get("value")


@nexusrpc.service
class Desk:
    """`echo` answers at once, `raise_` with an error, `job` runs a workflow."""

    echo: nexusrpc.Operation[Any, Any]
    raise_: nexusrpc.Operation[dict[str, Any], None] = nexusrpc.Operation(name="raise")
    seen: nexusrpc.Operation[None, dict[str, Any]]
    typed: nexusrpc.Operation[int, int]
    blob: nexusrpc.Operation[bytes, bytes]
    nothing: nexusrpc.Operation[None, None]
    job: nexusrpc.Operation[dict[str, Any], Any]


TRIES: Counter[str] = Counter()
"""Starts by the request id they came with: the one thing handlers remember."""


@service_handler(service=Desk)
class DeskHandler:
    @sync_operation
    async def echo(self, ctx: StartOperationContext, value: Any) -> Any:
        return value

    @sync_operation
    async def raise_(self, ctx: StartOperationContext, how: dict[str, Any]) -> None:
        """`{"type"}`: a HandlerError, `{"state"}`: an OperationError; `times`: only that often."""
        TRIES[ctx.request_id] += 1
        if TRIES[ctx.request_id] > how.get("times", 1 << 30):
            return
        cause = ValueError("the root of it")
        if "state" in how:
            raise OperationError(how.get("message", "as told"), state=OperationErrorState(how["state"])) from cause
        raise HandlerError(
            how.get("message", "as told"),
            type=HandlerErrorType(how["type"]),
            retryable_override=how.get("retryable"),
        ) from cause

    @sync_operation
    async def seen(self, ctx: StartOperationContext, value: None) -> dict[str, Any]:
        """What arrived beside the input."""
        links = [[link.type, link.url] for link in ctx.inbound_links]
        return {"headers": dict(ctx.headers), "links": links, "request_id": ctx.request_id}

    @sync_operation
    async def typed(self, ctx: StartOperationContext, value: int) -> int:
        return value + 1

    @sync_operation
    async def blob(self, ctx: StartOperationContext, value: bytes) -> bytes:
        return value[::-1]

    @sync_operation
    async def nothing(self, ctx: StartOperationContext, value: None) -> None:
        return None

    @nexus.workflow_run_operation
    async def job(self, ctx: nexus.WorkflowRunOperationContext, job: dict[str, Any]) -> nexus.WorkflowHandle[Any]:
        # Temporal leaves deduplication to the handler: the same request is the same workflow only by its id.
        return await ctx.start_workflow(JobWorkflow.run, job, id=job.get("id") or f"job-{ctx.request_id}")


# -- what the test may ask for


class Side:
    """Each method is a verb of the protocol."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def start(self, workflow_id: str, call: dict[str, Any]) -> None:
        await self.client.start_workflow(CallerWorkflow.run, call, id=workflow_id, task_queue=CALLERS)

    async def result(self, workflow_id: str) -> Any:
        try:
            return await self.client.get_workflow_handle(workflow_id).result()
        except WorkflowFailureError as error:
            return {"error": told(error.cause)}

    async def signal(self, workflow_id: str, name: str) -> None:
        await self.client.get_workflow_handle(workflow_id).signal(name)

    async def cancel(self, workflow_id: str) -> None:
        await self.client.get_workflow_handle(workflow_id).cancel()

    async def terminate(self, workflow_id: str) -> None:
        await self.client.get_workflow_handle(workflow_id).terminate("as told")

    async def status(self, workflow_id: str) -> str:
        description = await self.client.get_workflow_handle(workflow_id).describe()
        return description.status.name if description.status is not None else ""

    async def pending(self, workflow_id: str) -> list[dict[str, Any]]:
        """Nexus operations under way: state, attempt, last failure."""
        description = await self.client.get_workflow_handle(workflow_id).describe()
        return [
            {
                "state": one.state,
                "attempt": one.attempt,
                "token": one.operation_token,
                "failure": one.last_attempt_failure.message,
            }
            for one in description.raw_description.pending_nexus_operations
        ]

    async def history(self, workflow_id: str) -> list[dict[str, Any]]:
        """Nexus events in order: type, links."""
        found: list[dict[str, Any]] = []
        async for event in self.client.get_workflow_handle(workflow_id).fetch_history_events():
            name = EventType.Name(event.event_type).removeprefix("EVENT_TYPE_")
            links = [str(link) for link in event.links]
            found.append({"type": name, "links": links})
        return found

    async def jobs(self, prefix: str) -> list[str]:
        """Workflows by id prefix."""
        query = f"WorkflowId STARTS_WITH '{prefix}'"
        return [one.id async for one in self.client.list_workflows(query)]


async def main(address: str) -> None:
    client = await Client.connect(address)
    side = Side(client)
    callers = Worker(
        client, task_queue=CALLERS, workflows=[CallerWorkflow], workflow_runner=UnsandboxedWorkflowRunner()
    )
    handlers = Worker(
        client,
        task_queue=HANDLERS,
        workflows=[JobWorkflow],
        nexus_service_handlers=[DeskHandler()],
        workflow_runner=UnsandboxedWorkflowRunner(),
    )
    tasks: set[asyncio.Task[None]] = set()
    async with callers, handlers:
        say({"id": 0, "value": "ready"})
        reader = await lines()
        while line := await reader.readline():
            task = asyncio.create_task(do(side, json.loads(line)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


async def do(side: Side, asked: dict[str, Any]) -> None:
    number, verb = asked.pop("id"), asked.pop("do")
    try:
        say({"id": number, "value": await getattr(side, verb)(**asked)})
    except Exception as error:  # noqa: BLE001 - the test wants to know
        say({"id": number, "error": repr(error)})


def say(message: dict[str, Any]) -> None:
    ANSWERS.write(json.dumps(message) + "\n")
    ANSWERS.flush()


async def lines() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(main(sys.argv[1]))
