"""The figures for people and for programs: a table per scenario, one JSON document. Measures nothing."""

from __future__ import annotations

from statistics import median
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table

from bench.figures import Figures, misses, rounded, unit_of
from bench.load import Options

FORMAT: Final = "mesh-bench/1"
_STYLES: Final = {"ok": "green", "MISS": "bold red", "?": "yellow"}


def to_json(
    scenarios: list[Figures], options: Options, machine: dict[str, Any], started_at: str, took_s: float
) -> dict[str, Any]:
    """The whole document. `ok`: every answer was right; targets missed are in `misses`."""
    return {
        "format": FORMAT,
        "started_at": started_at,
        "took_s": round(took_s, 1),
        "options": msgspec.structs.asdict(options),
        "machine": machine,
        "scenarios": {one.scenario: one.to_json() for one in scenarios},
        "ok": not any(one.errors for one in scenarios),
        "misses": misses(scenarios),
    }


def show(console: Console, figures: Figures) -> None:
    """One table."""
    table = Table(title=figures.scenario, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    table.add_column("figure", no_wrap=True)
    table.add_column("median", justify="right")
    table.add_column("range", justify="right")
    table.add_column("unit", no_wrap=True)
    table.add_column("target", justify="right", no_wrap=True)
    table.add_column("")
    table.add_column("how", overflow="fold")
    for name, values in figures.values.items():
        spread = f"{_number(min(values))}-{_number(max(values))}" if len(values) > 1 else ""
        target, verdict = figures.target(name), figures.verdict(name)
        style = _STYLES.get(verdict, "")
        shown = f"[{style}]{verdict}[/]" if style else verdict
        note = figures.notes.get(name, "")
        table.add_row(name, _number(median(values)), spread, unit_of(name), str(target) if target else "", shown, note)
    console.print(table)
    for error in figures.errors:
        console.print(f"[bold red]WRONG[/] {figures.scenario}: {error}", highlight=False, markup=True)
    console.print()


def _number(value: float) -> str:
    value = rounded(value)
    return f"{value:,}" if abs(value) >= 1000 else f"{value:g}"
