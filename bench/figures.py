"""Figures: values with a unit over repeats, and the targets that stand beside them. Measures and prints nothing.

Targets are those of the issue that asked for them (2 cores, with load generator, gateway, store and handler on them).
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any, Final, NamedTuple

BEATS: Final = 0.05
"""What the gateway's own clockwork may add to the calls per operation: a beat a second, a look a quarter of one."""
KILOBYTE_ABOUT: Final = 1_100
"""`About 1 KB` of store memory."""


class Target(NamedTuple):
    """`least` or `most`; the other is None. `below`: `most` itself is too much."""

    least: float | None = None
    most: float | None = None
    below: bool = False
    shown: str = ""

    def met(self, value: float) -> bool:
        if self.least is not None and value < self.least:
            return False
        return self.most is None or (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        if self.shown:
            return self.shown
        if self.least is not None:
            return f">= {self.least:,g}"
        return f"{'<' if self.below else '<='} {self.most:,g}"


UNITS: Final = {
    "per_s": "operations/s",
    "per_op": "per operation",
    "mib_per_s": "MiB/s",
    "ms": "ms",
    "s": "s",
    "us": "us of CPU per operation",
    "percent": "% of a core",
    "mib": "MiB",
    "bytes": "bytes per operation",
    "count": "",
    "ratio": "times",
}
"""By the last word of a figure's name."""

_SYNC: Final = {
    "throughput_per_s": Target(least=6_000),
    "alone_p50_ms": Target(most=1.2, below=True),
    "store_calls_per_op": Target(most=2 + BEATS, shown="<= 2"),
    "fsyncs_per_op": Target(most=0.1, below=True),
    "gateway_cpu_us": Target(most=80),
    "store_cpu_us": Target(most=40),
    "store_bytes": Target(most=KILOBYTE_ABOUT, shown="~1 KB"),
}
TARGETS: Final[dict[str, dict[str, Target]]] = {
    "nexus_sync": _SYNC,
    "pull_sync": {
        "push_ratio": Target(least=1.3),
        "store_calls_per_op": _SYNC["store_calls_per_op"],
        "fsyncs_per_op": _SYNC["fsyncs_per_op"],
    },
    "v1_sync": _SYNC,
    "typed_sync": {"unchecked_ratio": Target(least=0.85)},
    "async": {
        "throughput_per_s": Target(least=3_000),
        "store_calls_per_op": Target(most=4 + BEATS, shown="<= 4"),
        "fsyncs_per_op": Target(most=0.1, below=True),
    },
    "durable_steps": {"loaded_per_s": Target(least=4_000), "alone_p50_ms": Target(most=1.5, below=True)},
    "replay": {"replay_1000_ms": Target(most=100, below=True)},
    "asleep": {"agent_mib": Target(most=10, below=True), "agent_idle_cpu_percent": Target(most=1, below=True)},
    "batch": {"single_ratio": Target(least=3.0)},
    "limited": {"limited_ratio": Target(least=0.85)},
    "spike": {
        "accepted_ratio": Target(least=0.95),
        "server_errors_count": Target(most=0),
        "without_retry_after_count": Target(most=0),
        "in_flight_most_count": Target(most=16),
        "lost_count": Target(most=0),
        "small_p95_s": Target(most=3, below=True),
        "depth_differs_count": Target(most=0),
    },
    "parked": {"idle_cpu_percent": Target(most=2, below=True)},
    "cold_start": {"empty_s": Target(most=1.5), "existing_s": Target(most=1.5)},
}
"""By scenario and figure."""


def unit_of(name: str) -> str:
    """The unit that the name ends in. Raises KeyError for a name without one."""
    if name.endswith("_mib_per_s"):
        return UNITS["mib_per_s"]
    if name.endswith(("_per_s", "_per_op")):
        return UNITS["_".join(name.split("_")[-2:])]
    return UNITS[name.rpartition("_")[2]]


class Figures:
    """The figures of one scenario, one value per repeat."""

    def __init__(self, scenario: str) -> None:
        self.scenario = scenario
        self.values: dict[str, list[float]] = {}
        self.notes: dict[str, str] = {}
        self.errors: list[str] = []

    def add(self, name: str, value: float, note: str = "") -> None:
        """One repeat's value; `note` says how it came about where that is not plain."""
        unit_of(name)
        self.values.setdefault(name, []).append(value)
        if note:
            self.notes[name] = note

    def target(self, name: str) -> Target | None:
        return TARGETS.get(self.scenario, {}).get(name)

    def verdict(self, name: str) -> str:
        """`ok`, `MISS`, or "" without a target. An upper bound that is too high proves nothing: `?`."""
        target = self.target(name)
        if target is None:
            return ""
        if target.met(median(self.values[name])):
            return "ok"
        return "?" if "upper bound" in self.notes.get(name, "") else "MISS"

    def to_json(self) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        for name, values in self.values.items():
            figures[name] = {
                "median": rounded(median(values)),
                "min": rounded(min(values)),
                "max": rounded(max(values)),
                "runs": [rounded(value) for value in values],
                "unit": unit_of(name),
            }
            if name in self.notes:
                figures[name]["note"] = self.notes[name]
            target = self.target(name)
            if target is not None:
                figures[name] |= {"target": str(target), "verdict": self.verdict(name)}
        return {"figures": figures, "errors": self.errors}


def compare(push: Figures, pull: Figures) -> None:
    """How much more an agent that asks for its work does; both measured in one run, for machines differ more."""
    rates = [median(one.values["throughput_per_s"]) for one in (push, pull) if "throughput_per_s" in one.values]
    if len(rates) == 2:
        pull.add("push_ratio", rates[1] / rates[0], f"throughput, to that of {push.scenario} in this run")


def rounded(value: float) -> float:
    """Four significant digits, more for large whole numbers."""
    return round(value) if abs(value) >= 1000 else float(f"{value:.4g}")


def misses(scenarios: Iterable[Figures]) -> list[str]:
    """`scenario.figure` of every target missed."""
    return [f"{one.scenario}.{name}" for one in scenarios for name in one.values if one.verdict(name) == "MISS"]
