"""`ctx.gather`: many sources at once, with a quorum, a deadline and an outcome for each of them.

The decision, who answered in time, is recorded: a replay sees the same sources late, whatever has come in since. Each
source runs as a task with a scope of names of its own, so that one that is left out on a replay shifts nobody's.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias, cast

from mesh.agent.durable.attempt import Attempt, settle
from mesh.agent.durable.branch import Branch, SourceBlocked, SourceLate, branch
from mesh.agent.durable.entries import MESSAGE_CHARS_MAX, Entry, key_of
from mesh.agent.durable.errors import JournalMismatch
from mesh.agent.durable.functions import in_thread
from mesh.agent.durable.gathered import Gathered, Source
from mesh.clock import sleep
from mesh.errors import ConfigError

SOURCES_MAX: Final = 10_000
SKIPPED: Final = frozenset({"breaker", "no_instance", "unreachable", "endpoint_deleted", "paused"})
"""Why nothing is sent to an endpoint: a gather that has a deadline, or needs only some, does not wait for that."""

TURNS: Final = 8
"""Turns of the loop within which code comes to what it has recorded."""
RECORDED_S: Final = 0.05
"""What recorded answers get to be found again, when the deadline is over already."""

Given: TypeAlias = Awaitable[Any] | Callable[[], Any]

scope: ContextVar[str] = ContextVar("mesh_scope", default="")
"""What the names of steps and calls begin with, inside a source of a gather."""


class Spec(NamedTuple):
    """One occurrence of a gather, as the code asks for it."""

    name: str
    n: int
    sources: Mapping[str, Given]
    quorum: int | None
    deadline_ms: int | None
    keep: bool
    skipped: frozenset[str]

    @property
    def needed(self) -> int:
        return len(self.sources) if self.quorum is None else self.quorum


def checked(
    name: str, n: int, sources: Mapping[str, Given], quorum: int | None, deadline_ms: int | None, late: str
) -> Spec:
    """Raises ConfigError."""
    message = ""
    if not sources or len(sources) > SOURCES_MAX or late not in ("cancel", "keep"):
        message = f"a gather takes 1 to {SOURCES_MAX} sources, and late='cancel' or late='keep'"
    elif quorum is not None and not 0 < quorum <= len(sources):
        message = f"a quorum of {quorum} cannot be had from {len(sources)} sources"
    if message:
        _close(sources.values())
        raise ConfigError(message)
    patient = quorum is None and deadline_ms is None
    return Spec(name, n, sources, quorum, deadline_ms, late == "keep", frozenset() if patient else SKIPPED)


async def run_gather(attempt: Attempt, spec: Spec) -> Gathered:
    """Raises JournalMismatch; Suspended and CancelRequested pass through."""
    attempt.resting.begin()
    race = _Race(attempt, spec)
    try:
        asked = f"a gather of {len(spec.sources)} sources"
        known = {entry.kind: entry for entry in await attempt.find(key_of(spec.name, spec.n), "gather", asked)}
        if "gather" in known:
            outcomes = await _repeated(race, spec, known["gather"].sources or {})
        else:
            outcomes = await _decided(attempt, race, spec, known["gathering"].until_ms if "gathering" in known else 0)
        late = [name for name, source in outcomes.items() if source.state == "late"]
        if spec.keep:
            return Gathered(outcomes, spec.needed, race.keep(late))
        race.withdraw(late)
        return Gathered(outcomes, spec.needed, {})
    finally:
        race.drop()
        attempt.resting.end()


async def _decided(attempt: Attempt, race: _Race, spec: Spec, until_ms: int) -> dict[str, Source]:
    """Ask everybody, decide, and record what was decided."""
    await attempt.ready()
    if not until_ms and spec.deadline_ms is not None:
        until_ms = attempt.link.now_ms() + spec.deadline_ms
        attempt.exchange.put(Entry("gathering", spec.name, spec.n, until_ms=until_ms))
    # When the time is over already, after a crash say, what is recorded counts; nobody is asked anew.
    expired = bool(until_ms) and until_ms <= attempt.link.now_ms()
    race.begin(spec.sources, spec.needed, expired=expired)
    await race.decision(until_ms or None, expired=expired)
    outcomes = {name: race.outcome(name) for name in spec.sources}
    # Recorded before the late ones are withdrawn: else a crash in between would find them canceled instead of late.
    await attempt.record(Entry("gather", spec.name, spec.n, sources={n: _packed(s) for n, s in outcomes.items()}))
    return outcomes


async def _repeated(race: _Race, spec: Spec, recorded: dict[str, Any]) -> dict[str, Source]:
    """What was decided before. Who answered replays its own records; a source that is new to the code was skipped."""
    states = {name: recorded.get(name, {}).get("state", "skipped") for name in spec.sources}
    answered = [name for name in spec.sources if states[name] == "succeeded"]
    # Late ones only find their children here, which a crash may have kept from being canceled; unless they are kept.
    late = [name for name in spec.sources if states[name] == "late"]
    race.begin(late, 0, expired=not spec.keep)
    race.begin(answered, len(answered))
    if answered:
        await race.decision(None)
    for _ in range(TURNS):
        await sleep(0)
    outcomes: dict[str, Source] = {}
    for name, state in states.items():
        was = recorded.get(name, {})
        source = outcomes[name] = Source(state, was.get("ms", 0), error=was.get("error"))
        if state == "succeeded":
            now = race.outcome(name)
            if now.state != "succeeded":
                what, told = f"source {name!r} succeeded", now.error or {"message": now.state}
                mend = "A source must come to the same result on every attempt: put what varies into a step."
                raise JournalMismatch(key_of(spec.name, spec.n), what, f"{now.state}: {told['message']}", mend)
            source.value = now.value
    return outcomes


class _Race:
    """The tasks of the sources, until enough have succeeded or all have ended."""

    def __init__(self, attempt: Attempt, spec: Spec) -> None:
        self._attempt = attempt
        self._spec = spec
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._branches: dict[str, Branch] = {}
        self._ended: dict[str, Source] = {}
        self._over: asyncio.Future[None] = attempt.loop.create_future()
        self._broken: BaseException | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._missing = 0
        self._open = 0
        self._began_s = 0.0

    def begin(self, names: Iterable[str], needed: int, *, expired: bool = False) -> None:
        """Start sources; `needed` of them decide, for 0 they only run along."""
        self._began_s = self._attempt.loop.time()
        self._missing = needed
        outer = scope.get()
        for name in names:
            self._branches[name] = Branch(self._spec.skipped, expired=expired)
            work = self._run(name, self._spec.sources[name], f"{outer}{key_of(self._spec.name, self._spec.n)}/{name}/")
            task = self._tasks[name] = self._attempt.loop.create_task(work)
            task.add_done_callback(partial(self._end, name, needed > 0))
            self._open += needed > 0

    async def decision(self, until_ms: int | None, *, expired: bool = False) -> None:
        """Wait until enough succeeded, all ended, or the time is over. Raises what breaks the whole."""
        attempt = self._attempt
        if expired:
            self._look()
            await attempt.wait(self._over)
        elif until_ms is not None:
            await attempt.park(self._over, until_ms)
        else:
            attempt.resting.end()  # neither busy nor parked: what its sources do counts
            try:
                await attempt.wait(self._over)
            finally:
                attempt.resting.begin()
        if self._broken is not None:
            raise self._broken

    def _look(self) -> None:
        """The time is over as soon as nothing recorded is on its way here."""
        if not self._over.done():
            self._timer = self._attempt.loop.call_later(RECORDED_S, self._recorded)

    def _recorded(self) -> None:
        self._timer = None
        if self._attempt.fetching:
            self._look()
        else:
            settle(self._over)

    def outcome(self, name: str) -> Source:
        return self._ended.get(name) or Source("late", self._elapsed_ms())

    def withdraw(self, names: Iterable[str]) -> None:
        """Nobody waits for them any more: their steps are cancelled, their children too."""
        for name in names:
            if name in self._tasks:
                self._branches[name].give_up()
                self._tasks[name].cancel()
                for operation_id in self._branches[name].children.values():
                    self._attempt.cancel_child(operation_id)

    def keep(self, names: Iterable[str]) -> dict[str, asyncio.Task[Any]]:
        """The tasks that go on beside the code."""
        kept = {name: self._tasks.pop(name) for name in names if name in self._tasks}
        for name in kept:
            self._branches[name].give_up()  # the code need not wait for it
        self._attempt.background.update(kept.values())
        return kept

    def drop(self) -> None:
        """Leave nothing behind: tasks that still run, coroutines that were never begun."""
        if self._timer is not None:
            self._timer.cancel()
        for name, task in self._tasks.items():
            if task.cancel():
                self._branches[name].give_up()
        given = self._spec.sources.items()
        _close(each for name, each in given if name in self._tasks or name not in self._branches)

    async def _run(self, name: str, given: Given, names: str) -> Any:
        branch.set(self._branches[name])
        scope.set(names)
        if inspect.isawaitable(given):
            return await given
        call = given
        if inspect.iscoroutinefunction(call):
            return await call()
        self._attempt.resting.begin()  # what it does between its waits, nobody sees
        try:
            return await in_thread(self._attempt.tools.executor, call)
        finally:
            self._attempt.resting.end()

    def _end(self, name: str, counts: bool, task: asyncio.Task[Any]) -> None:  # noqa: FBT001 - bound by partial
        self._open -= counts
        error = None if task.cancelled() else task.exception()
        if task.cancelled():
            source = Source("late", self._elapsed_ms())
        elif error is None:
            source = Source("succeeded", self._elapsed_ms(), task.result())
            self._missing -= counts
        elif isinstance(error, SourceLate):
            source = Source("late", self._elapsed_ms())
        elif isinstance(error, SourceBlocked):
            source = Source("skipped", self._elapsed_ms(), error={"message": error.detail, "type": error.reason})
            self.withdraw([name])
        elif isinstance(error, Exception) and not isinstance(error, JournalMismatch):
            told = {"message": str(error)[:MESSAGE_CHARS_MAX], "type": type(error).__name__}
            source = Source("failed", self._elapsed_ms(), error=told)
        else:
            self._broken = self._broken or error
            source = Source("late", self._elapsed_ms())
        if source.state != "succeeded":
            self._branches[name].give_up()
        if self._over.done() or not counts:
            return  # decided without it
        self._ended[name] = source
        if self._missing <= 0 or not self._open or self._broken is not None:
            self._over.set_result(None)

    def _elapsed_ms(self) -> int:
        return round((self._attempt.loop.time() - self._began_s) * 1000)


def _close(sources: Iterable[Given]) -> None:
    """Coroutines that were given and never begun."""
    for given in sources:
        if inspect.iscoroutine(given) and inspect.getcoroutinestate(given) == inspect.CORO_CREATED:
            cast("Coroutine[Any, Any, Any]", given).close()


def _packed(source: Source) -> dict[str, Any]:
    packed: dict[str, Any] = {"state": source.state, "ms": source.ms}
    if source.error is not None:
        packed["error"] = source.error
    return packed
