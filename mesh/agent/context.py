"""What a handler can ask about the call it serves, beyond what nexusrpc hands it.

`current()` works in async handlers, in plain `def` handlers (their thread inherits it) and in tasks they start. It must
not know how calls arrive or where answers go.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from nexusrpc.handler import OperationTaskCancellation, StartOperationContext

if TYPE_CHECKING:
    from mesh.agent.inbound import StartHead
    from mesh.pool import Pool

_creation = threading.Lock()


class Cancellation(OperationTaskCancellation):
    """nexusrpc's `ctx.task_cancellation`: set once by the host's event loop, watched from any thread or loop.

    `watched` says whether the handler ever looked: one that did gets time to end in its own way.
    """

    reason: str | None = None
    watched = False
    _event: threading.Event | None = None
    _futures: tuple[asyncio.Future[None], ...] = ()

    def set(self, reason: str) -> None:
        """Tell everybody who waits; the first reason stays."""
        if self.reason is not None:
            return
        # Waiters register first and read `reason` after, so either they see it or they are seen here.
        self.reason = reason
        if self._event is not None:
            self._event.set()
        for future in self._futures:
            try:
                future.get_loop().call_soon_threadsafe(_wake, future)
            except RuntimeError:
                continue  # a loop that the handler ran in its own thread, closed by now

    def is_cancelled(self) -> bool:
        self.watched = True
        return self.reason is not None

    def cancellation_reason(self) -> str | None:
        return self.reason

    def wait_until_cancelled_sync(self, timeout: float | None = None) -> bool:
        self.watched = True
        with _creation:
            event = self._event = self._event or threading.Event()
        if self.reason is not None:
            return True
        return event.wait(timeout)

    async def wait_until_cancelled(self) -> None:
        self.watched = True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with _creation:
            self._futures = (*self._futures, future)
        try:
            if self.reason is None:
                await future
        finally:
            with _creation:
                self._futures = tuple([one for one in self._futures if one is not future])


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@dataclass(slots=True)
class Call:
    """The call being served.

    operation_id    the durable operation, also the caller's token; None when the caller is not a mesh
    run, attempt    1, 2, ...; 1 when the caller is not a mesh
    namespace       the caller's team; None when the caller is not a mesh
    request_id      the same on every attempt of a run: the key for effects outside that must happen once
    headers         the caller's, names in lower case, without `content-*` and `nexus-callback-*`
    deadline_at_ms  when the operation ends at the latest (`Operation-Timeout`), milliseconds since the epoch, or None
    cancellation    set when the caller cancels, when the lease is lost, or when the agent must stop
    """

    endpoint: str
    service: str
    operation: str
    operation_id: str | None
    run: int
    attempt: int
    namespace: str | None
    request_id: str
    headers: Mapping[str, str]
    deadline_at_ms: int | None
    cancellation: Cancellation


class Home(NamedTuple):
    """The host that a handler runs on, for `complete` in what it starts.

    outer   the token under which the caller knows work that a handler names otherwise
    """

    loop: asyncio.AbstractEventLoop
    pool: Pool
    endpoint: str
    outer: Callable[[str], str]


class _Late:
    """A field that is read when somebody asks for it. functools.cached_property, whose lock costs 1 us until 3.12."""

    def __init__(self, read: Callable[[StartHead], dict[str, str]]) -> None:
        self._read = read

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, ctx: StartContext, owner: type) -> dict[str, str]:
        fields = vars(ctx)
        value = fields[self._name] = self._read(fields["head"])
        return value


class StartContext(StartOperationContext):
    """What nexusrpc hands a handler. Headers, which few handlers look at, are read late."""

    headers: Mapping[str, str] = _Late(lambda head: head.headers())  # type: ignore[assignment]
    callback_headers: Mapping[str, str] = _Late(lambda head: head.replayed())  # type: ignore[assignment]


def start_context(head: StartHead, fields: dict[str, Any]) -> StartOperationContext:
    """`StartOperationContext` with `fields`, all but those that `head` has.

    Its own way, eleven guarded assignments of a frozen dataclass, costs as much as the rest of what a call needs.
    """
    ctx = object.__new__(StartContext)
    fields["head"] = head
    object.__setattr__(ctx, "__dict__", fields)
    return ctx


class Running(Protocol):
    """What code of a handler runs for."""

    @property
    def home(self) -> Home | None:
        """The host it runs on."""

    def current(self) -> Call:
        """The call, the same one each time; most handlers never ask."""
        ...


running: ContextVar[Running] = ContextVar("mesh_agent_context")


def current() -> Call:
    """The call that this code runs for. Raises LookupError outside of a handler."""
    try:
        return running.get().current()
    except LookupError:
        message = "mesh.agent.current() is for code that runs inside an operation handler"
        raise LookupError(message) from None
