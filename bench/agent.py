"""The handler: an SDK-hosted agent in a process of its own. `python -m bench.agent`, one line of JSON on stdin.

Its operations do no work. `echo` answers at once; `typed` is the same with pydantic models, whose JSON Schema the
gateway then checks on every start; `later` answers 201 and completes by its token a moment after; `never` answers 201
and is not heard of again. The durable ones are in durable_handlers.py.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Final

import msgspec
from nexusrpc.handler import (
    CancelOperationContext,
    OperationHandler,
    StartOperationContext,
    StartOperationResultAsync,
    operation_handler,
    service_handler,
)
from pydantic import BaseModel

from bench.durable_handlers import HANDLERS
from bench.work import ASYNC_SERVICE, ENDPOINT, MOMENT_MS
from mesh.agent import Agent, complete
from mesh.clock import sleep

TOKENS: Final = 42
SLOTS: Final = 256
"""Operations at once, where the agent asks for them."""


class Settings(msgspec.Struct):
    """`register` False: the registry knows the handler by its URL only. `port` 0: any. `pulls`: it asks for work."""

    gateway: str
    port: int = 0
    register: bool = True
    pulls: bool = False


class Task(BaseModel):
    """Input of `typed`."""

    id: str
    agent: str
    task: str
    priority: int
    text: str
    tags: list[str]
    more: str


class Done(BaseModel):
    """Output of `typed`."""

    id: str
    ok: bool
    tokens: int


async def echo(task: Any) -> Any:
    """A small result that names the input."""
    return {"id": task["id"], "ok": True, "tokens": TOKENS}


async def typed(task: Task) -> Done:
    """The same with models."""
    return Done(id=task.id, ok=True, tokens=TOKENS)


class _Started(OperationHandler[Any, Any]):
    """201 at once; `completes` says whether the outcome ever comes."""

    def __init__(self, *, completes: bool) -> None:
        self._completes = completes
        self._running: set[asyncio.Task[None]] = set()

    async def start(self, ctx: StartOperationContext, input: Any) -> StartOperationResultAsync:  # noqa: A002
        if self._completes:
            task = asyncio.get_running_loop().create_task(_complete(ctx, input))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return StartOperationResultAsync(token=ctx.request_id)

    async def cancel(self, ctx: CancelOperationContext, token: str) -> None:
        raise NotImplementedError


async def _complete(ctx: StartOperationContext, task: Any) -> None:
    await sleep(MOMENT_MS / 1000)
    token = ctx.callback_headers["token"]
    await complete(ctx.callback_url or "", token, await echo(task), operation_token=ctx.request_id)


@service_handler(name=ASYNC_SERVICE)
class Asynchronous:
    """Work that outlives its request."""

    @operation_handler
    def later(self) -> OperationHandler[Any, Any]:
        """Completed by token."""
        return _Started(completes=True)

    @operation_handler
    def never(self) -> OperationHandler[Any, Any]:
        """Parked for ever."""
        return _Started(completes=False)


def main() -> None:
    """Serve until SIGTERM."""
    settings = msgspec.json.decode(sys.stdin.buffer.readline(), type=Settings)
    mode = "pull" if settings.pulls else "push"
    services = [echo, typed, Asynchronous(), *HANDLERS]
    agent = Agent(ENDPOINT, services, gateway=settings.gateway, register=settings.register, mode=mode, slots=SLOTS)
    agent.run(port=settings.port)


if __name__ == "__main__":
    main()
