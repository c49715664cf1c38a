"""Results of checks, and what a set of them says: by case, by rule, as a whole. Pure; prints nothing.

One form for everything that judges a URL: the conformance cases and the kit for agents' authors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

Verdict: TypeAlias = Literal["pass", "fail", "skipped"]
VERDICTS: Final[tuple[Verdict, ...]] = ("fail", "skipped", "pass")
"""In the order in which people want to read them."""

TEXT_MAX: Final = 2000
"""Characters of what was seen that a result keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one case went against one target.

    number    of the case: "17"; checks beyond the list have a letter in front, "K3"
    name      what the case is about, a few words
    group     its subject: start, errors, cancel, ...
    rule      of specs/protocol.md, "P15"; empty where the wire itself is the rule
    expected  what should have been seen, one sentence
    seen      what was seen; for `skipped` why the case says nothing about this target
    advice    what the target's author has to change; of a pass: what could be better though nothing is wrong
    reason    why anybody wants that
    took_ms   duration
    """

    number: str
    name: str
    group: str
    rule: str
    verdict: Verdict
    expected: str = ""
    seen: str = ""
    advice: str = ""
    reason: str = ""
    took_ms: int = 0

    def __post_init__(self) -> None:
        if len(self.seen) > TEXT_MAX:
            object.__setattr__(self, "seen", f"{self.seen[:TEXT_MAX]}...")


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found out about `url`. `kind` is what it was taken for: gateway, agent."""

    url: str
    kind: str
    results: Sequence[Result]

    def count(self, verdict: Verdict) -> int:
        """How many cases ended so."""
        return sum(result.verdict == verdict for result in self.results)

    @property
    def ok(self) -> bool:
        """Nothing failed, and something was tried."""
        return not self.count("fail") and bool(self.count("pass"))

    def by_rule(self) -> dict[str, list[Result]]:
        """The results under each rule, rules in the order of their numbers, those without one at the end."""
        rules: dict[str, list[Result]] = {}
        for result in sorted(self.results, key=lambda result: rule_number(result.rule)):
            rules.setdefault(result.rule, []).append(result)
        return rules

    def as_json(self) -> dict[str, Any]:
        """`{ok, url, kind, passed, failed, skipped, results: [...]}`, results in the order of their cases."""
        return {
            "ok": self.ok,
            "url": self.url,
            "kind": self.kind,
            "passed": self.count("pass"),
            "failed": self.count("fail"),
            "skipped": self.count("skipped"),
            "results": [asdict(result) for result in self.results],
        }

    def summary(self) -> str:
        """`88 passed, 1 failed, 6 not applicable`."""
        return f"{self.count('pass')} passed, {self.count('fail')} failed, {self.count('skipped')} not applicable"


def merged(url: str, kind: str, reports: Iterable[Report]) -> Report:
    """Several reports about one target as one. Raises ValueError when two cases share a number."""
    results = [result for report in reports for result in report.results]
    twice = [number for number, count in Counter(result.number for result in results).items() if count > 1]
    if twice:
        message = f"cases with the same number: {', '.join(twice)}"
        raise ValueError(message)
    return Report(url, kind, results)


def rule_number(rule: str) -> tuple[int, str]:
    """Where a rule stands among others: by its number, not by its letters."""
    digits = rule[1:]
    return (int(digits), "") if digits.isdigit() else (1 << 30, rule)
