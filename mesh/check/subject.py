"""The contract of specs/conformance.nexusrpc.yaml as an agent on this project's SDK: an agent that can be examined.

    python -m mesh.check.subject [PORT]          # prints its URL; `mesh check --kind agent URL`

Owns the behaviour that scripts ask for. Not part of the judge: no check imports it.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from contextlib import suppress
from typing import Any, Final, Literal

import nexusrpc
from nexusrpc import HandlerError, HandlerErrorType, Operation, OperationError, OperationErrorState
from nexusrpc.handler import (
    CancelOperationContext,
    OperationHandler,
    StartOperationContext,
    StartOperationResultAsync,
    operation_handler,
    service_handler,
    sync_operation,
)
from pydantic import BaseModel

from mesh.agent import Agent, complete
from mesh.clock import now_ms, sleep
from mesh.errors import MeshError
from mesh.ids import short_id

TASKS_MAX: Final = 10_000
"""Tokens that are remembered."""


class Terms(BaseModel):
    a: int
    b: int


class LinkModel(BaseModel):
    url: str
    type: str


class Script(BaseModel):
    """How an operation ends; see the contract."""

    tag: str = ""
    after_ms: int = 0
    end: Literal["succeeded", "failed", "canceled", "error", "crash"] = "succeeded"
    value: Any = None
    message: str = "as asked"
    causes: list[str] = []
    type: str = "INTERNAL"
    retryable: bool | None = None
    links: list[LinkModel] = []
    token: str = ""
    deaf: bool = False


@nexusrpc.service(name="conformance")
class Conformance:
    """The contract."""

    echo: Operation[Any, Any]
    sum: Operation[Terms, int]
    seen: Operation[Any, dict[str, Any]]
    odd: Operation[Any, dict[str, Any]] = Operation(name="a/b c%ü")
    act: Operation[Script, Any]
    task: Operation[Script, Any]
    runs: Operation[str, int]


@service_handler(service=Conformance)
class Subject:
    """Its handlers."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.tasks: dict[str, asyncio.Task[None] | None] = {}
        self.working: set[asyncio.Task[None]] = set()
        """Keeps them alive; the loop itself does not."""

    @sync_operation
    async def echo(self, ctx: StartOperationContext, value: Any) -> Any:
        return value

    @sync_operation
    async def sum(self, ctx: StartOperationContext, value: Terms) -> int:
        return value.a + value.b

    @sync_operation
    async def seen(self, ctx: StartOperationContext, value: Any) -> dict[str, Any]:
        return call_of(ctx, value)

    @sync_operation
    async def odd(self, ctx: StartOperationContext, value: Any) -> dict[str, Any]:
        return call_of(ctx, value)

    @sync_operation
    async def act(self, ctx: StartOperationContext, value: Script) -> Any:
        self.begun[value.tag] += 1
        await sleep(value.after_ms / 1000)
        ctx.outbound_links.extend(nexusrpc.Link(link.url, link.type) for link in value.links)
        return end_of(value)

    @operation_handler
    def task(self) -> OperationHandler[Script, Any]:
        return TaskHandler(self)

    @sync_operation
    async def runs(self, ctx: StartOperationContext, value: str) -> int:
        return self.begun[value]


class TaskHandler(OperationHandler[Script, Any]):
    """Work that is completed by callback, under tokens of its own."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    async def start(self, ctx: StartOperationContext, input: Script) -> StartOperationResultAsync:  # noqa: A002 - nexusrpc's name
        subject, token = self._subject, input.token or short_id("task")
        subject.begun[input.tag] += 1
        ctx.outbound_links.extend(nexusrpc.Link(link.url, link.type) for link in input.links)
        work = asyncio.get_running_loop().create_task(self._work(ctx, input, token))
        subject.working.add(work)
        work.add_done_callback(subject.working.discard)
        while len(subject.tasks) >= TASKS_MAX:
            del subject.tasks[next(iter(subject.tasks))]
        subject.tasks[token] = None if input.deaf else work
        return StartOperationResultAsync(token=token)

    async def cancel(self, ctx: CancelOperationContext, token: str) -> None:
        if token not in self._subject.tasks:
            raise HandlerError("no task has this token", type=HandlerErrorType.NOT_FOUND)
        work = self._subject.tasks[token]
        if work is not None:
            work.cancel()

    async def _work(self, ctx: StartOperationContext, script: Script, token: str) -> None:
        value: Any = None
        error: OperationError | HandlerError | None = None
        started_at_ms = now_ms()
        try:
            await sleep(script.after_ms / 1000)
            value = end_of(script)
        except asyncio.CancelledError:
            error = OperationError("canceled by the caller", state=OperationErrorState.CANCELED)
        except (OperationError, HandlerError) as raised:
            error = raised
        except RuntimeError:
            error = HandlerError("internal error", type=HandlerErrorType.INTERNAL)
        # From here on a cancel is too late, and must not stop the report.
        self._subject.tasks[token] = None
        if ctx.callback_url is None:
            return
        # Refused, or nobody is there any more: the examiner knows why.
        with suppress(MeshError):
            await complete(
                ctx.callback_url,
                ctx.callback_headers.get("token", ""),
                value,
                error=error,
                operation_token=token,
                headers=ctx.callback_headers,
                started_at_ms=started_at_ms,
            )


def call_of(ctx: StartOperationContext, value: Any) -> dict[str, Any]:
    """What a handler sees."""
    return {
        "service": ctx.service,
        "operation": ctx.operation,
        "request_id": ctx.request_id,
        "headers": dict(ctx.headers),
        "links": [{"url": link.url, "type": link.type} for link in ctx.inbound_links],
        "input_is_null": value is None,
    }


def end_of(script: Script) -> Any:
    """The value of a script, or what it raises."""
    if script.end == "succeeded":
        return script.value
    if script.end == "crash":
        raise RuntimeError(script.message)
    error: OperationError | HandlerError
    if script.end == "error":
        error = HandlerError(script.message, type=script.type, retryable_override=script.retryable)
    else:
        error = OperationError(script.message, state=OperationErrorState(script.end))
    inner: Exception = error
    for message in script.causes:
        inner.__cause__ = RuntimeError(message)
        inner = inner.__cause__
    raise error


def agent() -> Agent:
    """The subject, hosted but not registered."""
    return Agent("conformance", [Subject()], register=False)


if __name__ == "__main__":
    hosted = agent()
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 7412
    sys.stdout.write(f"http://127.0.0.1:{port}\n")
    sys.stdout.flush()
    hosted.run(port=port)
