"""What a durable handler is given: `Context` for `async def`, `SyncContext` for plain `def` handlers.

Names and options become specifications here; what they do is in steps.py, calls.py, gather.py and waits.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload
from uuid import UUID

from mesh.agent.durable.attempt import Attempt
from mesh.agent.durable.calls import Call, run_call
from mesh.agent.durable.entries import check_name, key_of
from mesh.agent.durable.functions import shape_of
from mesh.agent.durable.gather import Given, checked, run_gather, scope
from mesh.agent.durable.gathered import Gathered
from mesh.agent.durable.owed import Owed
from mesh.agent.durable.steps import DEFAULT, Retry, Step, run_step, running_step
from mesh.agent.durable.waits import drawn, emit_chunk, moment, sleep_for, tell_progress
from mesh.client.order import called
from mesh.errors import ConfigError

if TYPE_CHECKING:
    from mesh.agent.durable.sync import SyncContext

T = TypeVar("T")

Match = Literal["inputs", "name"]
_NESTED: Final = "inside a step there are no steps, calls, sleeps or values: what a step does is recorded as a whole"


class Common:
    """What both contexts know of the call."""

    def __init__(self, attempt: Attempt) -> None:
        task = attempt.task
        self._attempt = attempt
        self._undo: list[Step] = []
        self.owed = Owed()
        self.operation_id = task.operation_id
        """The durable operation, also the caller's token."""
        self.run = task.run
        self.attempt = task.attempt
        """1, 2, ... within the run: dispatches to an agent, resumptions included."""
        self.namespace = task.namespace
        """The caller's team."""
        self.headers: Mapping[str, str] = task.headers
        """The caller's, names in lower case."""
        self.deadline: datetime | None = None if task.deadline_at_ms is None else moment(task.deadline_at_ms)
        """When the operation ends at the latest."""

    @property
    def key(self) -> str:
        """Inside a step: its idempotency key, `{operation id}.{run}/{name}#{n}`, the same on every try.

        For effects outside that must happen once; a function with a parameter `key` gets it too. Raises LookupError.
        """
        running = running_step.get()
        if running is None:
            message = "ctx.key is for the function of a step"
            raise LookupError(message)
        return running.key

    def on_cancel(
        self,
        name: str,
        function: Callable[..., Any],
        /,
        *args: Any,
        retry: Retry = DEFAULT,
        timeout_ms: int | None = None,
        **kwargs: Any,
    ) -> None:
        """If the caller cancels, run this as a step when the handler has ended; the last one that was given first."""
        self._undo.append(self._step(name, function, args, kwargs, retry, timeout_ms, None, "inputs"))

    def _number(self, name: str) -> tuple[str, int]:
        """The scoped name and its next occurrence. Raises ConfigError."""
        if running_step.get() is not None:
            raise ConfigError(_NESTED)
        name = check_name(scope.get() + name)
        return name, self._attempt.exchange.replay.number(name)

    def _step(
        self,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        retry: Retry,
        timeout_ms: int | None,
        out: Any,
        match: Match,
    ) -> Step:
        shape = shape_of(function, out)
        name, n = self._number(name)
        return Step(name, n, function, args, kwargs, shape, retry, timeout_ms, match == "inputs")

    def _call(
        self, endpoint: str, what: tuple[Any, ...], out: Any, name: str | None, timeout_ms: int | None,
        labels: Mapping[str, str] | None, parent_close: str, match: Match,
    ) -> Call:  # fmt: skip
        operation, rest = called(what, out)
        if len(rest) > 1 or parent_close not in ("cancel", "keep"):
            message = "a call takes an endpoint, an operation and one input; parent_close is 'cancel' or 'keep'"
            raise ConfigError(message)
        name, n = self._number(name or f"{operation.service}.{operation.operation}")
        value = rest[0] if rest else None
        keep = parent_close == "keep"
        return Call(name, n, endpoint, operation, value, timeout_ms, dict(labels or {}), keep, match == "inputs")

    async def undo(self) -> None:
        """Run what `on_cancel` was given."""
        for step in reversed(self._undo):
            await run_step(self._attempt, step)


class Context(Common):
    """A durable handler's hand on its operation: what goes through it happens once, whatever is killed.

    Steps, calls and the rest are found again by name and occurrence: a second `step("page", ...)` in a run is `page#2`.
    Code between them runs again on every resumption, so keep effects, clocks and chance inside them. Methods that are
    awaited take their occurrence when they are called, not when they are awaited.
    """

    @overload
    def step(
        self, name: str, function: Callable[..., Awaitable[T]], /, *args: Any, retry: Retry = ...,
        timeout_ms: int | None = ..., out: None = ..., match: Match = ..., **kwargs: Any,
    ) -> Coroutine[Any, Any, T]: ...  # fmt: skip
    @overload
    def step(
        self, name: str, function: Callable[..., T], /, *args: Any, retry: Retry = ...,
        timeout_ms: int | None = ..., out: None = ..., match: Match = ..., **kwargs: Any,
    ) -> Coroutine[Any, Any, T]: ...  # fmt: skip
    @overload
    def step(
        self, name: str, function: Callable[..., Any], /, *args: Any, retry: Retry = ...,
        timeout_ms: int | None = ..., out: Any, match: Match = ..., **kwargs: Any,
    ) -> Coroutine[Any, Any, Any]: ...  # fmt: skip
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
    ) -> Coroutine[Any, Any, Any]:
        """`await ctx.step("clone", clone, repo)`: call `clone(repo)`, record its result once, give it.

        function    `async def`, or plain: then it runs in a thread; a parameter named `key` gets the idempotency key
        retry       its tries; default 3, from 0.2 s apart
        timeout_ms  of one try; a thread is not interrupted, but its result no longer counts
        out         the result's type, where the function's annotations do not say it; without any, plain JSON
        match       "inputs": other arguments than recorded are a JournalMismatch; "name": the name alone decides

        Raises StepFailed, when its tries are over or its error is not worth repeating, and JournalMismatch.
        """
        step = self._step(name, function, args, kwargs, retry, timeout_ms, out, match)
        return self.owed.give("step", key_of(step.name, step.n), run_step(self._attempt, step))

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
    ) -> Coroutine[Any, Any, Any]:
        """`await ctx.call("linter", "Lint", "run", files)`: a child operation's result; started once.

        what          `Contract.operation, input`, or `service, operation, input`, as with mesh.Client
        out           the result's type, where `what` is names; mesh.Blob: a file, of any size (else 64 MiB at most)
        name          in the journal; default `{service}.{operation}`
        timeout_ms    the child's schedule-to-close; never longer than what is left of this operation
        parent_close  "cancel": the child ends with this operation; "keep": it goes on

        Waits without holding anything: if it takes long, the attempt suspends. Raises OperationFailed,
        OperationCanceled, OperationTimedOut, CallRefused, JournalMismatch.
        """
        call = self._call(endpoint, what, out, name, timeout_ms, labels, parent_close, match)
        return self.owed.give("call", key_of(call.name, call.n), run_call(self._attempt, call))

    def gather(
        self,
        sources: Mapping[str, Given],
        *,
        quorum: int | None = None,
        deadline_ms: int | None = None,
        late: Literal["cancel", "keep"] = "cancel",
        name: str = "gather",
    ) -> Coroutine[Any, Any, Gathered]:
        """Ask many sources at once: `{"a": ctx.step(...), "b": ctx.call(...), "c": async_function}`.

        quorum       ends when so many have succeeded; default: when all have ended
        deadline_ms  ends then, whoever has answered; counted from the first attempt
        late         who has not answered then is canceled, children too; or kept: `await gathered.late("b")`

        With a quorum or a deadline, a call that cannot be sent now (open breaker, no instance) is skipped at once.
        A failed source is an outcome, not an exception; `.require()` raises QuorumMissed.
        """
        name, n = self._number(name)
        spec = checked(name, n, sources, quorum, deadline_ms, late)
        return self.owed.give("gather", key_of(name, n), run_gather(self._attempt, spec))

    def sleep(self, seconds: float) -> Coroutine[Any, Any, None]:
        """Go on after that time, counted from the first attempt that came here. Longer sleeps hold nothing."""
        _, n = self._number("sleep")
        return self.owed.give("sleep", key_of("sleep", n), sleep_for(self._attempt, n, seconds * 1000))

    def now(self) -> Coroutine[Any, Any, datetime]:
        """The mesh's time, the same on every replay."""
        return drawn(self._attempt, "now", self._number("now")[1], moment)

    def random(self) -> Coroutine[Any, Any, float]:
        """In [0, 1), the same on every replay."""
        return drawn(self._attempt, "random", self._number("random")[1], float)

    def uuid(self) -> Coroutine[Any, Any, UUID]:
        """Version 4, the same on every replay."""
        return drawn(self._attempt, "uuid", self._number("uuid")[1], UUID)

    def progress(
        self, message: str | None = None, *, percent: float | None = None, data: Any = None
    ) -> Coroutine[Any, Any, None]:
        """Tell those who watch; also from inside a step. On its way when this returns."""
        n = 0 if running_step.get() is not None else self._number("progress")[1]
        return tell_progress(self._attempt, n, message, percent, data)

    async def emit(self, chunk: Any) -> None:
        """Append a chunk (any JSON value, a model, ...) to the operation's stream, which readers follow with a cursor.

        Also from inside a step; when a crash makes the step run again, readers see which chunks it sends anew. On its
        way when this returns, stored before whatever is recorded after it. Raises TooLarge.
        """
        await emit_chunk(self._attempt, chunk)

    @property
    def sync(self) -> SyncContext:
        """The same for code in threads: `ctx.sync.emit(...)` in a plain `def` step."""
        from mesh.agent.durable.sync import SyncContext  # noqa: PLC0415 - it is made of this class

        return SyncContext(self)
