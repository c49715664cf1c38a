"""A service with one operation for each thing a handler can do; small enough to know by heart."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import nexusrpc
from nexusrpc import HandlerError, HandlerErrorType, Link, Operation, OperationError, OperationErrorState
from nexusrpc.handler import (
    CancelOperationContext,
    OperationHandler,
    StartOperationContext,
    StartOperationResultAsync,
    operation_handler,
    service_handler,
    sync_operation,
)
from pydantic import BaseModel, Field

from mesh import complete, current
from mesh.clock import sleep
from tests.agents.serving import forever


class Order(BaseModel):
    item: str
    count: int = Field(default=1, alias="howMany", ge=1)


@dataclass
class Receipt:
    text: str
    total: int


@nexusrpc.service
class Shop:
    """The contract."""

    order: Operation[Order, Receipt]
    echo: Operation[Any, Any] = Operation(name="echo/ü %")
    blob: Operation[bytes, bytes]
    nothing: Operation[None, None]
    wrong: Operation[None, int]
    count: Operation[int, int]
    slow: Operation[float, str]
    thread: Operation[float, str]
    patient: Operation[None, str]
    deaf: Operation[None, str]
    stubborn: Operation[None, str]
    error: Operation[str, None]
    late_error: Operation[str, None]
    seen: Operation[None, dict[str, Any]]
    linked: Operation[float, None]
    ticket: Operation[str, str]


class Counting:
    """What the handlers did, for the test to read."""

    def __init__(self) -> None:
        self.starts: list[str] = []
        self.canceled: list[str] = []
        self.ended = 0


@service_handler(service=Shop)
class ShopHandler:
    def __init__(self) -> None:
        self.did = Counting()
        self.tickets: dict[str, StartOperationContext] = {}
        self.gate = threading.Event()
        self.tasks: list[asyncio.Task[None]] = []

    @sync_operation
    async def order(self, ctx: StartOperationContext, value: Order) -> Receipt:
        """Order something.

        The rest is for the curious.
        """
        return Receipt(f"{value.count} {value.item}", value.count * 7)

    @sync_operation
    async def echo(self, ctx: StartOperationContext, value: Any) -> Any:
        return value

    @sync_operation
    async def blob(self, ctx: StartOperationContext, value: bytes) -> bytes:
        return value[::-1]

    @sync_operation
    async def nothing(self, ctx: StartOperationContext, value: None) -> None:
        assert value is None

    @sync_operation
    async def wrong(self, ctx: StartOperationContext, value: None) -> int:
        return "secret words"  # type: ignore[return-value]

    @sync_operation
    def count(self, ctx: StartOperationContext, value: int) -> int:
        self.did.starts.append(ctx.request_id)
        assert threading.current_thread().name.startswith("mesh-")
        assert current().operation == "count"
        return value + 1

    @sync_operation
    async def slow(self, ctx: StartOperationContext, value: float) -> str:
        self.did.starts.append(ctx.request_id)
        try:
            await sleep(value)
        except asyncio.CancelledError:
            self.did.canceled.append(ctx.task_cancellation.cancellation_reason() or "")
            raise
        self.did.ended += 1
        return "done"

    @sync_operation
    def thread(self, ctx: StartOperationContext, value: float) -> str:
        self.did.starts.append(ctx.request_id)
        if ctx.task_cancellation.wait_until_cancelled_sync(value):
            self.did.canceled.append(ctx.task_cancellation.cancellation_reason() or "")
            raise OperationError("stopped in order", state=OperationErrorState.CANCELED)
        return "done"

    @sync_operation
    async def patient(self, ctx: StartOperationContext, value: None) -> str:
        """Watches its cancellation, and ends with a result of its own."""
        self.did.starts.append(ctx.request_id)
        await ctx.task_cancellation.wait_until_cancelled()
        return "half of it"

    @sync_operation
    async def deaf(self, ctx: StartOperationContext, value: None) -> str:
        self.did.starts.append(ctx.request_id)
        await forever()
        return ""

    @sync_operation
    async def stubborn(self, ctx: StartOperationContext, value: None) -> str:
        """Looks at its cancellation, and goes on."""
        self.did.starts.append(ctx.request_id)
        assert not ctx.task_cancellation.is_cancelled()
        await sleep(1.5)
        return "on and on"

    @sync_operation
    async def error(self, ctx: StartOperationContext, value: str) -> None:
        """`failed`, `canceled`, `chain`, `bug`, or a handler error type, with `+` or `-` for an override."""
        self.did.starts.append(ctx.request_id)
        if value in ("failed", "canceled"):
            raise OperationError(f"it {value}", state=OperationErrorState(value))
        if value == "chain":
            middle = HandlerError("middle", type=HandlerErrorType.UNAVAILABLE)
            middle.__cause__ = KeyError("deep")
            raise OperationError("top", state=OperationErrorState.FAILED) from middle
        if value == "bug":
            raise RuntimeError("a secret of the house")
        override = {"+": True, "-": False}.get(value[-1])
        raise HandlerError("as asked", type=value.rstrip("+-"), retryable_override=override)

    @sync_operation
    async def late_error(self, ctx: StartOperationContext, value: str) -> None:
        """`error`, but only when the test opens the gate."""
        self.did.starts.append(ctx.request_id)
        while not self.gate.is_set():
            await sleep(0.01)
        await ShopHandler.error(self, ctx, value)

    @sync_operation
    async def seen(self, ctx: StartOperationContext, value: None) -> dict[str, Any]:
        context = current()
        return {
            "headers": dict(ctx.headers),
            "links": [[link.url, link.type] for link in ctx.inbound_links],
            "callback": [ctx.callback_url, dict(ctx.callback_headers)],
            "request_id": ctx.request_id,
            "deadline": ctx.request_deadline.isoformat() if ctx.request_deadline else None,
            "context": {
                name: getattr(context, name)
                for name in ("endpoint", "service", "operation", "operation_id", "run", "attempt", "namespace")
            },
            "deadline_at_ms": context.deadline_at_ms,
        }

    @sync_operation
    async def linked(self, ctx: StartOperationContext, value: float) -> None:
        ctx.outbound_links.append(Link(url="http://shop/order?id=1%2C2", type="shop.Order"))
        await sleep(value)

    @operation_handler
    def ticket(self) -> OperationHandler[str, str]:
        return TicketHandler(self)


class TicketHandler(OperationHandler[str, str]):
    """An operation with tokens of its own, completed by whoever holds them."""

    def __init__(self, shop: ShopHandler) -> None:
        self.shop = shop

    async def start(self, ctx: StartOperationContext, input: str) -> StartOperationResultAsync:  # noqa: A002 - nexusrpc's name
        self.shop.did.starts.append(ctx.request_id)
        self.shop.tickets[input] = ctx
        if input.startswith("slow"):
            await sleep(0.3)
            self.shop.did.ended += 1
        token = f"ticket {input}"
        if input.endswith(("self", "interrupted")):
            self.shop.tasks.append(asyncio.get_running_loop().create_task(self.finish(ctx, token)))
        return StartOperationResultAsync(token=token)

    async def finish(self, ctx: StartOperationContext, token: str) -> None:
        """The work that goes on after the handler has answered."""
        with suppress(asyncio.CancelledError):
            await sleep(30 if token.endswith("interrupted") else 0.1)
        await complete(ctx.callback_url or "", ctx.callback_headers["token"], "by itself", operation_token=token)

    async def cancel(self, ctx: CancelOperationContext, token: str) -> None:
        if token.removeprefix("ticket ") not in self.shop.tickets:
            raise HandlerError("no such ticket", type=HandlerErrorType.NOT_FOUND)
        self.shop.did.canceled.append(token)
