"""The cases bite: each fails at a target that does what it forbids."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from mesh.check.case import TARGETS, Case, Got, Target, Until
from mesh.check.cases import CASES
from mesh.check.run import run_case
from tests.conformance.faults import FAULTS
from tests.conformance.meddler import BrokenAgent, BrokenClient, BrokenGateway, Fault, Meddling
from tests.conformance.targets import deadly, gateway, shown

BY_NUMBER = {case.number: case for case in CASES}
PATIENCE_MS = 500
SLOW_MS = {68: 3000, 89: 3000, 90: 3000}
"""Cases that take their time when all is well."""


def hasty(value: Any, patience_ms: int = PATIENCE_MS) -> Any:
    """The same steps with less patience: what a fault keeps from coming is not waited for long."""
    if isinstance(value, Case):
        patience_ms = SLOW_MS.get(value.number, patience_ms)
    if isinstance(value, str):
        return "wait=1" if value == "wait=10" and patience_ms == PATIENCE_MS else value
    if isinstance(value, tuple):
        return tuple(hasty(one, patience_ms) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {one.name: hasty(getattr(value, one.name), patience_ms) for one in fields(value)}
        if isinstance(value, (Got, Until)):
            changed["within_ms"] = min(value.within_ms, patience_ms)
        return replace(value, **changed)
    return value


def broken(good: Any, fault: Fault) -> Any:
    if fault.kind == "gateway":
        return BrokenGateway(good.url, hands=good.hands, has=good.has, fault=fault)
    if fault.kind == "agent":
        return BrokenAgent(good.url, limit=good.limit, fault=fault)
    return BrokenClient(fault=fault)


def planted() -> list[Any]:
    return [
        pytest.param(BY_NUMBER[number], fault, id=f"{number:02d}-{fault.kind}-{shown(fault.name)}")
        for fault in FAULTS
        for number in fault.cases
        if BY_NUMBER[number].trial(fault.kind) is not None and not deadly(BY_NUMBER[number])  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize("kind", TARGETS)
async def test_a_meddler_that_does_nothing_is_no_fault(kind: Target, sides: dict[str, Any]) -> None:
    idle = Meddling()
    fault = Fault(name="none", kind=kind, cases=(), front=idle, back=idle, tail=idle, report=idle)
    numbers = {
        "gateway": (1, 10, 17, 28, 49, 64, 80, 92, 95),
        "agent": (1, 10, 17, 47, 64, 65),
        "client": (1, 11, 44, 53),
    }
    for number in numbers[kind]:
        result = await run_case(hasty(BY_NUMBER[number]), broken(sides[kind], fault))
        assert result.verdict == "pass", (number, result.seen)


@pytest.mark.parametrize(("case", "fault"), planted())
async def test_a_fault_is_found(case: Case, fault: Fault, sides: dict[str, Any]) -> None:
    result = await run_case(hasty(case), broken(sides[fault.kind], fault))
    assert result.verdict == "fail", (result.verdict, result.seen)
    assert result.advice


@pytest.mark.parametrize(
    ("case", "fault"),
    [
        pytest.param(BY_NUMBER[number], fault, id=f"{number:02d}-{shown(fault.name)}")
        for fault in FAULTS
        for number in fault.cases
        if fault.kind == "gateway" and deadly(BY_NUMBER[number])
    ],
)
async def test_a_deadly_fault_is_found(case: Case, fault: Fault, tmp_path: Path) -> None:
    with gateway(tmp_path) as good:
        result = await run_case(hasty(case), broken(good, fault))
    assert result.verdict == "fail", (result.verdict, result.seen)


def test_every_case_has_a_fault() -> None:
    planted = {(fault.kind, number) for fault in FAULTS for number in fault.cases}
    asked = {(kind, case.number) for case in CASES for kind in TARGETS if case.trial(kind) is not None}
    assert sorted(asked - planted) == []
