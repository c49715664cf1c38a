"""specs/protocol.md and these tests know the same rules."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
RULE = re.compile(r"\bP\d+\b")


def test_every_rule_is_cited_and_every_citation_is_a_rule() -> None:
    stated = re.findall(r"\*\*(P\d+)\b", (HERE.parents[1] / "specs" / "protocol.md").read_text())
    assert len(stated) == len(set(stated))
    cited = {rule for file in HERE.glob("*.py") if file != Path(__file__) for rule in RULE.findall(file.read_text())}
    assert cited == set(stated)
