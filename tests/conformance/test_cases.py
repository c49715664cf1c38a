"""All conformance cases against our own three sides: the gateway, an agent on our SDK, our client library."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.check.case import TARGETS, Case, Target
from mesh.check.cases import CASES
from mesh.check.run import run_case
from tests.conformance.targets import deadly, shown


def pairs() -> list[Any]:
    return [
        pytest.param(case, kind, id=f"{case.number:02d}-{kind}-{shown(case.name)}")
        for kind in TARGETS
        for case in CASES
        if case.trial(kind) is not None and not (kind == "gateway" and deadly(case))
    ]


@pytest.mark.parametrize(("case", "kind"), pairs())
async def test_case(case: Case, kind: Target, sides: dict[str, Any]) -> None:
    result = await run_case(case, sides[kind])
    assert result.verdict == "pass", f"{result.rule}: {result.expected}\n{result.seen}"


def test_the_list_is_whole() -> None:
    """All 95 cases of the design, each asked of a gateway or saying why not."""
    assert [case.number for case in CASES] == list(range(1, 96))
    for case in CASES:
        asked = {kind for kind in TARGETS if case.trial(kind) is not None}
        assert asked, case.number
        assert asked.isdisjoint(case.skips), case.number
        assert asked | case.skips.keys() == set(TARGETS), case.number
