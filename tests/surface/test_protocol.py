"""specs/protocol.md, the tests of the surface and the conformance cases know the same rules."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
RULE = re.compile(r"\bP\d+\b")


def cited(*rooms: str) -> set[str]:
    files = [file for room in rooms for file in (ROOT / room).rglob("*.py") if file != Path(__file__)]
    return {rule for file in files for rule in RULE.findall(file.read_text())}


def test_every_rule_is_cited_and_every_citation_is_a_rule() -> None:
    stated = re.findall(r"\*\*(P\d+)\b", (ROOT / "specs" / "protocol.md").read_text())
    assert len(stated) == len(set(stated))
    assert set(stated) - cited("tests", "mesh/check") == set()
    assert cited("tests/surface", "tests/conformance", "mesh/check") - set(stated) == set()
