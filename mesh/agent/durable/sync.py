"""`SyncContext`: the context of a plain `def` handler, whose thread blocks where `async def` code awaits.

Everything happens on the loop of the attempt; the thread counts as busy except while it waits here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import datetime
from inspect import CORO_CREATED, getcoroutinestate
from typing import Any, Final, Literal, TypeVar, overload
from uuid import UUID

from mesh.agent.durable.context import Common, Context, Match
from mesh.agent.durable.gather import Given
from mesh.agent.durable.gathered import Gathered
from mesh.agent.durable.steps import DEFAULT, Retry, running_step

T = TypeVar("T")

LOOK_S: Final = 5.0
"""How often a thread that waits looks whether its loop is still there: a process that ends must not wait for it."""
_GONE: Final = "the loop of this attempt is closed: the process ends"


class SyncContext(Common):
    """`Context` for a plain `def` handler: methods block instead of being awaited, and mean the same.

    Sources of a gather are functions: `{"a": lambda: ctx.step("ask", ask, "a")}`, each runs in a thread of its own.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context._attempt)  # noqa: SLF001 - the same object in another form
        self._context = context
        self._undo = context._undo  # noqa: SLF001 - as above

    @overload
    def step(
        self, name: str, function: Callable[..., Awaitable[T]], /, *args: Any, retry: Retry = ...,
        timeout_ms: int | None = ..., out: None = ..., match: Match = ..., **kwargs: Any,
    ) -> T: ...  # fmt: skip
    @overload
    def step(
        self, name: str, function: Callable[..., T], /, *args: Any, retry: Retry = ...,
        timeout_ms: int | None = ..., out: None = ..., match: Match = ..., **kwargs: Any,
    ) -> T: ...  # fmt: skip
    @overload
    def step(
        self, name: str, function: Callable[..., Any], /, *args: Any, retry: Retry = ...,
        timeout_ms: int | None = ..., out: Any, match: Match = ..., **kwargs: Any,
    ) -> Any: ...  # fmt: skip
    def step(
        self,
        name: str,
        function: Callable[..., Any],
        /,
        *args: Any,
        retry: Retry = DEFAULT,
        timeout_ms: int | None = None,
        out: Any = None,
        match: Match = "inputs",
        **kwargs: Any,
    ) -> Any:
        """As Context.step."""
        options: dict[str, Any] = {"retry": retry, "timeout_ms": timeout_ms, "out": out, "match": match}
        return self._do(lambda: self._context.step(name, function, *args, **options, **kwargs))

    def call(
        self,
        endpoint: str,
        /,
        *what: Any,
        out: Any = Any,
        name: str | None = None,
        timeout_ms: int | None = None,
        labels: Mapping[str, str] | None = None,
        parent_close: Literal["cancel", "keep"] = "cancel",
        match: Match = "inputs",
    ) -> Any:
        """As Context.call."""
        options: dict[str, Any] = {"out": out, "name": name, "timeout_ms": timeout_ms, "labels": labels}
        return self._do(lambda: self._context.call(endpoint, *what, parent_close=parent_close, match=match, **options))

    def gather(
        self,
        sources: Mapping[str, Given],
        *,
        quorum: int | None = None,
        deadline_ms: int | None = None,
        late: Literal["cancel", "keep"] = "cancel",
        name: str = "gather",
    ) -> Gathered:
        """As Context.gather, with functions."""
        options: dict[str, Any] = {"quorum": quorum, "deadline_ms": deadline_ms, "late": late, "name": name}
        return self._do(lambda: self._context.gather(sources, **options))

    def sleep(self, seconds: float) -> None:
        """As Context.sleep."""
        self._do(lambda: self._context.sleep(seconds))

    def now(self) -> datetime:
        """As Context.now."""
        return self._do(self._context.now)

    def random(self) -> float:
        """As Context.random."""
        return self._do(self._context.random)

    def uuid(self) -> UUID:
        """As Context.uuid."""
        return self._do(self._context.uuid)

    def progress(self, message: str | None = None, *, percent: float | None = None, data: Any = None) -> None:
        """As Context.progress."""
        self._do(lambda: self._context.progress(message, percent=percent, data=data))

    def emit(self, chunk: Any) -> None:
        """As Context.emit."""
        self._do(lambda: self._context.emit(chunk))

    def _do(self, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run it on the loop, in this thread's context, and wait."""
        resting = self._attempt.resting
        blocked = self._attempt.tools.blocked
        nested = running_step.get() is not None  # a step that runs is busy in its own name

        async def bridged() -> T:
            if nested:
                return await start()
            resting.end()
            if blocked is not None:
                blocked(1)
            try:
                return await start()
            finally:
                resting.begin()
                if blocked is not None:
                    blocked(-1)

        return _blocking(bridged(), self._attempt.loop)


def _blocking(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
    """Run it on the loop of another thread, and wait. Raises what it raises; RuntimeError when the loop is gone."""
    try:
        running = asyncio.run_coroutine_threadsafe(work, loop)
        while True:
            try:
                return running.result(LOOK_S)
            except TimeoutError:
                if running.done():
                    return running.result()
                if loop.is_closed():  # between the call and its turn
                    raise RuntimeError(_GONE) from None
    except RuntimeError:
        if getcoroutinestate(work) == CORO_CREATED:
            work.close()
        raise
