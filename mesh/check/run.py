"""Running cases against a target: which apply, one after the other or a few at once, and what came of each.

Owns the time a case may take. Knows neither the cases nor how to talk to a target.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

from mesh.check.case import Ask, Call, Case, Target, Trial
from mesh.check.listener import Listener
from mesh.check.play import Breach, NotApplicable, Play
from mesh.check.report import Report, Result, Verdict
from mesh.clock import monotonic_s

CASE_S_MAX: Final = 60.0
AT_ONCE: Final = 4
"""Cases under way at the same time; they share nothing, and some mostly wait."""
NEEDS: Final = {
    "kill": "needs to kill and restart the target, which only who runs it can do",
    "store": "needs to restart the target's store, which only who runs it can do",
    "prefix": "needs a URL with a path below the host",
    "limit": "needs a target with a known limit of running work",
}


class Checked(Protocol):
    """A target that cases can be run against."""

    url: str
    headers: tuple[tuple[str, str], ...]

    @property
    def kind(self) -> Target: ...
    @property
    def has(self) -> frozenset[str]: ...
    async def look(self) -> None: ...
    def opened(
        self, trial: Trial, handler: Listener, receiver: Listener
    ) -> AbstractAsyncContextManager[Mapping[str, Any]]: ...
    def operation(self, step: Ask, names: Mapping[str, Any]) -> tuple[str, Ask]: ...
    async def call(self, step: Call, gateway: str) -> list[str]: ...
    async def hand(self, action: str) -> None: ...


async def run_case(case: Case, target: Checked, *, bind: str = "127.0.0.1", here: str = "127.0.0.1") -> Result:
    """One case; never raises for what the target does. `bind`, `here`: where our listeners are, and are reached."""
    trial = case.trial(target.kind)
    began_s = monotonic_s()
    verdict: Verdict = "pass"
    seen = ""
    missing = [NEEDS[one] for one in (trial.needs if trial else ()) if one not in target.has]
    if trial is None or missing:
        verdict, seen = (
            "skipped",
            missing[0] if missing else case.skips.get(target.kind, "says nothing about this kind"),
        )
    else:
        try:
            async with (
                asyncio.timeout(CASE_S_MAX),
                Listener(bind, here) as handler,
                Listener(bind, here) as receiver,
                target.opened(trial, handler, receiver) as names,
            ):
                await Play(target, handler, receiver, names).trial(trial)
        except Breach as breach:
            verdict, seen = "fail", breach.seen
        except NotApplicable as reason:
            verdict, seen = "skipped", str(reason)
        except TimeoutError:
            verdict, seen = "fail", f"it was not over after {CASE_S_MAX:g} s"
    return Result(
        number=str(case.number),
        name=case.name,
        group=case.group,
        rule=case.rule_for(target.kind),
        verdict=verdict,
        expected=case.expected,
        seen=seen,
        advice=case.advice if verdict == "fail" else "",
        reason=case.reason,
        took_ms=round((monotonic_s() - began_s) * 1000),
    )


async def run(
    cases: Sequence[Case], target: Checked, *, bind: str = "127.0.0.1", here: str = "127.0.0.1"
) -> AsyncIterator[Result]:
    """The results, each as soon as it is there. Raises Unfit."""
    await target.look()
    free = asyncio.Semaphore(AT_ONCE)

    async def one(case: Case) -> Result:
        async with free:
            return await run_case(case, target, bind=bind, here=here)

    alone = [case for case in cases if _fills(case.trial(target.kind))]
    tasks = [asyncio.ensure_future(one(case)) for case in cases if case not in alone]
    try:
        for task in asyncio.as_completed(tasks):
            yield await task
        for case in alone:
            yield await run_case(case, target, bind=bind, here=here)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _fills(trial: Trial | None) -> bool:
    """It leaves no room for others while it runs."""
    return trial is not None and "limit" in trial.needs


async def report(cases: Sequence[Case], target: Checked, *, bind: str = "127.0.0.1", here: str = "127.0.0.1") -> Report:
    """All results, in the order of the cases. Raises Unfit."""
    results = [result async for result in run(cases, target, bind=bind, here=here)]
    order = {str(case.number): at for at, case in enumerate(cases)}
    return Report(target.url, target.kind, sorted(results, key=lambda result: order[result.number]))
