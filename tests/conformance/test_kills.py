"""The cases that kill or restart what they check, on a gateway of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.check.case import Case
from mesh.check.cases import CASES
from mesh.check.run import run_case
from tests.conformance.targets import deadly, gateway, shown


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{case.number:02d}-gateway-{shown(case.name)}") for case in CASES if deadly(case)]
)
async def test_case(case: Case, tmp_path: Path) -> None:
    with gateway(tmp_path) as target:
        result = await run_case(case, target)
    assert result.verdict == "pass", f"{result.rule}: {result.expected}\n{result.seen}"
