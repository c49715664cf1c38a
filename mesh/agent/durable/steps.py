"""`ctx.step`: a function whose result is recorded once, with tries of its own.

    recorded          the recorded result or failure is given, the function is not called
    not recorded      it is called, its result encoded, appended, and given when it is stored
    a crash between   the function is called again, with the same key

What is given is always what the journal has, read back: a replay cannot see another value than the first run did.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

from nexusrpc import HandlerError, OperationError

from mesh.agent.codec import Undecodable
from mesh.agent.durable.attempt import Attempt, settle_by
from mesh.agent.durable.branch import begin_within_branch
from mesh.agent.durable.entries import Entry, Trouble, fingerprint, key_of, trouble_of
from mesh.agent.durable.errors import CancelRequested, StepFailed, StepTimedOut, Suspended
from mesh.agent.durable.functions import Shape, in_thread
from mesh.agent.durable.large import packed, unpacked
from mesh.blob import Blob
from mesh.clock import to_rfc3339
from mesh.errors import ConfigError, TooLarge
from mesh.ids import jittered

CANCEL_GRACE_S: Final = 5.0
"""What an async step gets to end in its own way when it is cancelled."""

logger: Final = logging.getLogger("mesh.agent")


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and when a step's function is called again after an error.

    attempts    calls in all; each failed one is recorded, so a crash does not begin the count anew
    initial_ms  wait after the first failure, then times `factor`, at most `max_ms`, moved by up to ±`jitter` of itself
    fatal       error classes not worth repeating; nexusrpc's OperationError and non-retryable HandlerError never are
    """

    attempts: int = 3
    initial_ms: int = 200
    factor: float = 2.0
    max_ms: int = 60_000
    jitter: float = 0.2
    fatal: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.initial_ms < 0 or self.factor < 1 or not 0 <= self.jitter < 1:
            message = "Retry: attempts >= 1, initial_ms >= 0, factor >= 1, 0 <= jitter < 1"
            raise ConfigError(message)

    def worth(self, error: Exception, tries: int) -> bool:
        """Whether the function should be called again after `tries` calls."""
        if isinstance(error, (OperationError, Undecodable, TooLarge, *self.fatal)):
            return False
        return tries < self.attempts and not (isinstance(error, HandlerError) and not error.retryable)

    def delay_ms(self, tries: int) -> int:
        return jittered(min(self.initial_ms * self.factor ** (tries - 1), self.max_ms), self.jitter)


ONCE: Final = Retry(attempts=1)
DEFAULT: Final = Retry()


class _Unsure(Exception):
    """The function was not called: by the time there was a thread for it, the lease was no longer known to hold."""


class Running:
    """The step that this code runs for. `key`: the same on every try, whoever makes it."""

    __slots__ = ("chunks", "key", "name")

    def __init__(self, name: str, key: str) -> None:
        self.name = name
        self.key = key
        self.chunks = 0


running_step: ContextVar[Running | None] = ContextVar("mesh_running_step", default=None)


class Step(NamedTuple):
    """One occurrence of a step, as the code asks for it."""

    name: str
    n: int
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: Shape
    retry: Retry
    timeout_ms: int | None
    strict: bool


async def run_step(attempt: Attempt, step: Step) -> Any:
    """The step's result. Raises StepFailed, JournalMismatch; Suspended and CancelRequested pass through."""
    attempt.resting.begin()
    try:
        key = key_of(step.name, step.n)
        args = fingerprint(step.args, step.kwargs)
        recorded = await attempt.find(key, "step", "a step", args, strict=step.strict)
        tries = 0
        for entry in recorded:
            if entry.kind == "step":
                return await _told(attempt, step, entry)
            tries = max(tries, entry.tries)
            await _rest(attempt, entry.until_ms)
        return await _told(attempt, step, *await _executed(attempt, step, key, args, tries))
    finally:
        attempt.resting.end()


async def _executed(
    attempt: Attempt, step: Step, key: str, args: str | None, tries: int
) -> tuple[Entry, Blob | None]:
    """Call the function until it gives a result or is not worth calling again; the entry that is stored then.

    With the bytes of what is kept outside the entry, if they are this call's own.
    """
    task = attempt.task
    running = Running(key, f"{task.operation_id}.{task.run}/{key}")
    while True:
        begin_within_branch(key)
        await attempt.ready()
        if not attempt.link.sure():
            await attempt.sure()
        tries += 1
        at_ms, at_s = attempt.link.now_ms(), attempt.loop.time()
        entry = Entry("step", step.name, step.n, args=args, tries=tries, started_at=to_rfc3339(at_ms))
        try:
            value = await _called(attempt, step, running)
            entry.ms = round((attempt.loop.time() - at_s) * 1000)
            fields, local = await packed(attempt, key, step.shape.codec, value)
            del value
            for field, each in fields.items():
                setattr(entry, field, each)
            stored = await attempt.record(entry)
        except _Unsure:
            tries -= 1
            continue
        except Exception as error:
            again = step.retry.worth(error, tries)
            logger.log(logging.INFO if again else logging.WARNING, "step %s failed", running.key, exc_info=error)
            entry = Entry("step", step.name, step.n, args=args, tries=tries, started_at=to_rfc3339(at_ms))
            entry.error = trouble_of(error, retryable=again)
            entry.ms = round((attempt.loop.time() - at_s) * 1000)
        else:
            return stored, local if stored is entry else None
        if not again:
            return await attempt.record(entry), None
        entry.kind = "try"
        entry.until_ms = attempt.link.now_ms() + step.retry.delay_ms(tries)
        attempt.exchange.put(entry)
        await _rest(attempt, entry.until_ms)


async def _called(attempt: Attempt, step: Step, running: Running) -> Any:
    """One call of the function: on the loop as a task of its own, or in a thread."""
    if attempt.tools.begins is not None:
        attempt.tools.begins(running.name)
    running.chunks = 0
    kwargs = step.kwargs
    if step.shape.wants_key and "key" not in kwargs:
        kwargs = {**kwargs, "key": running.key}
    call = partial(step.function, *step.args, **kwargs)
    token = running_step.set(running)
    try:
        work = attempt.loop.create_task(
            call() if step.shape.is_async else in_thread(attempt.tools.executor, partial(_held, attempt, call))
        )
    finally:
        running_step.reset(token)
    over: asyncio.Future[None] = attempt.loop.create_future()
    work.add_done_callback(partial(settle_by, over))
    timer = None
    if step.timeout_ms is not None:
        late = StepTimedOut(f"no result within {step.timeout_ms} ms")
        timer = attempt.loop.call_later(step.timeout_ms / 1000, _too_late, over, late)
    try:
        # A thread cannot be interrupted: a cancel request waits for its end.
        await attempt.wait(over, interruptible=step.shape.is_async)
    except BaseException as why:
        work.cancel()
        if isinstance(why, (CancelRequested, StepTimedOut)):
            # What it does about its end should be done before others clean up after it.
            await asyncio.wait({work}, timeout=CANCEL_GRACE_S if step.shape.is_async else 0)
        work.add_done_callback(_looked_at)
        raise
    finally:
        if timer is not None:
            timer.cancel()
        del over, timer  # as in Attempt.wait
    return work.result()


def _held(attempt: Attempt, call: Callable[[], Any]) -> Any:
    """In the thread, which the function may have waited for for long. Raises _Unsure."""
    if not attempt.link.sure():
        raise _Unsure
    return call()


async def _rest(attempt: Attempt, until_ms: int) -> None:
    if until_ms > attempt.link.now_ms():
        await attempt.park(attempt.loop.create_future(), until_ms)


def _too_late(over: asyncio.Future[None], why: StepTimedOut) -> None:
    if not over.done():
        over.set_exception(why)


async def _told(attempt: Attempt, step: Step, entry: Entry, local: Blob | None = None) -> Any:
    """The outcome in an entry. Raises StepFailed."""
    if entry.error is None:
        try:
            return await unpacked(attempt, key_of(step.name, step.n), step.shape.codec, entry, local)
        except Undecodable as error:
            message = f"its recorded result is no {step.shape.codec.type!r}: {error}"
            entry.error = Trouble(message, "Undecodable")
    raise StepFailed(key_of(step.name, step.n), entry.error.message, entry.error.type, entry.tries)


def _looked_at(work: asyncio.Task[Any]) -> None:
    if not work.cancelled():
        work.exception()


__all__ = ["DEFAULT", "ONCE", "Retry", "Running", "Step", "Suspended", "run_step", "running_step"]
