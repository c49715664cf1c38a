"""Running a durable handler in this process: once, or once for every moment at which it may be interrupted.

    from mesh import testing

    def test_review() -> None:
        run = testing.run(review, Job(repo="demo"), children={"linter/Lint/run": {"faults": 0}})
        assert run.result.faults == 0

    def test_review_survives() -> None:
        for run in testing.interrupted(review, Job(repo="demo"), children=...):
            assert ...  # what must hold whatever was interrupted

Time is virtual, the engine is the real one, the mesh is memory.py. Needs no gateway and no running loop.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

from nexusrpc import HandlerError, HandlerErrorType, OperationError, OperationErrorState

from mesh.agent.codec import Codec, Undecodable
from mesh.agent.context import Call, Cancellation, running
from mesh.agent.durable.attempt import Attempt
from mesh.agent.durable.errors import JournalMismatch, Suspended
from mesh.agent.durable.handler import Durable, durable_of
from mesh.agent.durable.link import Task, Tools
from mesh.blob import Blob
from mesh.clock import sleep
from mesh.errors import ConfigError
from mesh.testing.loop import VirtualLoop
from mesh.testing.memory import MemoryLink, MemoryMesh

LEASE_S: Final = 5.0
"""Virtual time until a crash is noticed."""
ATTEMPTS_MAX: Final = 10_000
THREADS: Final = 32


class Crashed(Suspended):
    """The process of this attempt is gone."""


@dataclass(slots=True)
class Run:
    """What became of one operation.

    state       succeeded, failed, canceled
    result      as the caller would read it, in the handler's type; None unless it succeeded
    failure     the message of an operation that failed or was canceled
    crash       where it was interrupted; None if it was not
    attempts    how many it took, resumptions included
    elapsed_s   virtual time from start to end
    in_flight   keys of the steps that had begun and were not recorded when it was interrupted
    executions  how often the function of each step was called, by key (`clone#1`)
    journal     the entries, as JSON objects
    chunks      what was emitted, as JSON objects `{data, source, n}`
    children    how often each called operation was started
    uncalled    what `children=` gives and nobody called
    canceled_children  how many of them were asked to end
    """

    state: Literal["succeeded", "failed", "canceled"] = "failed"
    result: Any = None
    failure: str | None = None
    crash: str | None = None
    attempts: int = 0
    elapsed_s: float = 0.0
    in_flight: list[str] = field(default_factory=list[str])
    executions: dict[str, int] = field(default_factory=dict[str, int])
    journal: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    chunks: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    children: dict[str, int] = field(default_factory=dict[str, int])
    uncalled: list[str] = field(default_factory=list[str])
    canceled_children: int = 0
    moments: list[str] = field(default_factory=list[str])

    @property
    def steps(self) -> list[str]:
        """Keys of the recorded steps, in order."""
        return [f"{entry['name']}#{entry['n']}" for entry in self.journal if entry["kind"] == "step"]


def run(
    handler: Callable[..., Any],
    input: Any = None,  # noqa: A002 - what it is
    *,
    children: Mapping[str, Any] | None = None,
    cancel_after_s: float | None = None,
    attempts: int = 1,
    linger_ms: int = 0,
    crash_at: int | None = None,
) -> Run:
    """One operation, from its start to its end.

    handler         decorated with `mesh.durable`; a method of an instance for services
    input           checked and read anew by each attempt, as an agent does
    children        what operations it calls answer, by `endpoint/service/operation`: a value, an exception, or a
                    function of the input, async or not; `await asyncio.sleep(3600)` in it costs no time; a Refusal,
                    such as mesh.errors.NotFound: the call is refused. What it calls has to be here
    cancel_after_s  the caller cancels then
    attempts        how many attempts may end with an error worth repeating; the last one's error is raised here
    linger_ms       0: every wait suspends, so that every wait is a replay too
    crash_at        index of the moment at which the process is lost, once

    Raises what the handler raises unless it means an end of the operation; JournalMismatch; ConfigError, also for a
    call of what `children` does not give; HandlerError for an input that is not of the handler's type; loop.Stuck.
    """
    durable = durable_of(handler)
    if durable is None:
        message = f"{handler!r} is not durable: decorate it with @mesh.durable"
        raise ConfigError(message)
    owner = getattr(handler, "__self__", None)
    scene = _Scene(durable, () if owner is None else (owner,), input, attempts, linger_ms)
    return _on_virtual_loop(lambda: scene.play(children or {}, cancel_after_s, crash_at))


def interrupted(
    handler: Callable[..., Any],
    input: Any = None,  # noqa: A002 - what it is
    *,
    same: bool = True,
    **options: Any,
) -> Iterator[Run]:
    """The same operation again and again, interrupted once at every moment that it has: one Run for each.

    First comes an undisturbed one. Moments are before and after everything that is stored or started, and in the middle
    of every step. Checks after each: the end is the same (unless `same` is False: where a deadline decides, a crash may
    well change the result), no recorded step ran again, at most those in flight did, and no child was started twice.
    Raises AssertionError with the moment's name. `options` as of `run`.
    """
    whole = run(handler, input, **options)
    yield whole
    for at, moment in enumerate(whole.moments):
        again = run(handler, input, crash_at=at, **options)
        again.crash = moment
        _check(whole, again, same=same)
        yield again


def _check(whole: Run, again: Run, *, same: bool) -> None:
    where = f"interrupted {again.crash}"
    assert not same or (again.state, again.result) == (whole.state, whole.result), (
        f"{where}: ended {again.state} with {again.result!r} instead of {whole.state} with {whole.result!r}"
    )
    twice = {key for key in again.steps if again.steps.count(key) > 1}
    assert not twice, f"{where}: recorded twice: {twice}"
    more = {key: count - whole.executions.get(key, 0) for key, count in again.executions.items()}
    repeated = {key for key, count in more.items() if count > 0}
    assert repeated <= set(again.in_flight), f"{where}: ran again: {repeated}; in flight was {again.in_flight}"
    assert all(more[key] == 1 for key in repeated), f"{where}: ran more than once again: {repeated}"
    for name, count in again.children.items():
        assert count <= whole.children.get(name, 0), f"{where}: child {name} was started {count} times"


class _Scene:
    """One operation on its stage."""

    def __init__(self, durable: Durable, owner: tuple[Any, ...], value: Any, attempts: int, linger_ms: int) -> None:
        self._durable = durable
        self._owner = owner
        self._value = value
        self._attempts = attempts
        self._linger_ms = linger_ms
        self._run = Run()

    async def play(self, children: Mapping[str, Any], cancel_after_s: float | None, crash_at: int | None) -> Run:
        loop = cast("VirtualLoop", asyncio.get_running_loop())
        began_s = loop.time()
        mesh = MemoryMesh(children, cancel_after_s)
        mesh.crash_at = crash_at
        outcome = self._run
        threads = ThreadPoolExecutor(THREADS), ThreadPoolExecutor(THREADS)
        tools = Tools(*threads, linger_ms=self._linger_ms, blocked=loop.blocked)
        try:
            await self._attempts_of(mesh, tools)
        except Exception as error:
            if mesh.missing:
                raise _missing(mesh) from error
            raise
        finally:
            await mesh.close()
            for each in threads:
                each.shutdown(wait=False)
        if mesh.missing:
            # A handler may take a refused call for an outcome (a gather always does); of a misspelt test it is none.
            raise _missing(mesh)
        outcome.attempts = mesh.attempt
        outcome.elapsed_s = loop.time() - began_s
        outcome.journal = [json.loads(raw) for raw in mesh.journal]
        outcome.chunks = [json.loads(raw) for raw in mesh.chunks]
        outcome.moments = mesh.moments
        outcome.uncalled = mesh.uncalled()
        outcome.canceled_children = len(mesh.canceled)
        for _, name in mesh.started.values():
            outcome.children[name] = outcome.children.get(name, 0) + 1
        return outcome

    async def _attempts_of(self, mesh: MemoryMesh, tools: Tools) -> None:
        """Attempt after attempt, until the operation ends."""
        failures = 0
        while mesh.attempt < ATTEMPTS_MAX:
            mesh.beginning()
            link = MemoryLink(mesh)
            try:
                value = await self._attempt(mesh, link, tools)
            except Suspended:
                if link.dead:
                    # Else a step's thread of the lost process and the next attempt would work on the same files.
                    await cast("VirtualLoop", asyncio.get_running_loop()).settled()
                    await sleep(LEASE_S)
                else:
                    await mesh.woken(link.wake_at_ms)
            except OperationError as error:
                self._run.state = "canceled" if error.state is OperationErrorState.CANCELED else "failed"
                self._run.failure = error.message
                return
            except HandlerError as error:
                failures += 1
                if error.retryable and failures < self._attempts:
                    continue
                raise _own(error) from None
            except Exception:
                failures += 1
                if failures >= self._attempts:
                    raise
            else:
                body = Codec(self._durable.output_type).encode(value)
                self._run.result = Codec(self._durable.output_type).decode(*body)
                self._run.state = "succeeded"
                return
        message = f"{ATTEMPTS_MAX} attempts did not bring it to an end"
        raise AssertionError(message)

    async def _attempt(self, mesh: MemoryMesh, link: MemoryLink, tools: Tools) -> Any:
        task = Task(
            mesh.operation_id, 1, mesh.attempt, "default", {}, None, len(mesh.journal), mesh.canceling, lambda: None
        )
        attempt = Attempt(task, link, tools)

        def crash() -> None:
            link.dead = True
            self._run.journal = [json.loads(raw) for raw in mesh.journal]
            self._run.in_flight = [key for key in self._run.executions if key not in self._run.steps]
            attempt.stop(Crashed("the process is gone"))

        def begins(key: str) -> None:
            self._run.executions[key] = self._run.executions.get(key, 0) + 1
            if mesh.moment(f"in the middle of {key}", now=False):
                asyncio.get_running_loop().call_soon(crash)

        mesh.crash, mesh.tell_cancel = crash, attempt.cancel
        tools.begins = begins
        call = Call(
            "test", "test", self._durable.name, mesh.operation_id, 1, mesh.attempt, "default",
            f"{mesh.operation_id}.1", {}, None, Cancellation(),
        )  # fmt: skip
        running.set(_Called(call))
        return await self._durable.run(attempt, self._owner, self._input())

    def _input(self) -> Any:
        """The input as it comes over the wire, new for each attempt. Raises HandlerError, as the agent answers."""
        codec = Codec(self._durable.input_type)
        if isinstance(self._value, Blob) and codec.takes_blobs:
            return self._value
        try:
            return codec.decode(*codec.encode(self._value))
        except Undecodable as error:
            message = f"the input cannot be read: {error}"
            raise HandlerError(message, type=HandlerErrorType.BAD_REQUEST) from None


def _own(error: HandlerError) -> Exception:
    """What Durable.run made a HandlerError of, for the mesh: a test is told what it was."""
    return error.__cause__ if isinstance(error.__cause__, (JournalMismatch, ConfigError)) else error


def _missing(mesh: MemoryMesh) -> ConfigError:
    names = list(mesh.missing)
    given = ", ".join(map(repr, mesh.uncalled())) or "nothing else"
    return ConfigError(
        f"the handler calls {', '.join(map(repr, names))}, which the test does not give: children={{{names[0]!r}: ...}}"
        f" (given and not called: {given})"
    )


class _Called:
    """The call of an attempt, which no host runs."""

    def __init__(self, call: Call) -> None:
        self.home = None
        self._call = call

    def current(self) -> Call:
        return self._call


def _on_virtual_loop(play: Callable[[], Any]) -> Run:
    """On a loop of its own; in a thread of its own when this one has a loop that runs."""
    if not _loop_runs():
        return _played(play)
    ended: list[Run | BaseException] = []

    def work() -> None:
        try:
            ended.append(_played(play))
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(ended[0], BaseException):
        raise ended[0]
    return ended[0]


def _loop_runs() -> bool:
    # Apart: what is raised inside an `except` shows its RuntimeError first, as if that were the fault.
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _played(play: Callable[[], Any]) -> Run:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(play())
