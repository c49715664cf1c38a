"""The demo's timeline: who was up and what each operation did, second by second, drawn with characters.

Pure: events of operations and marks of the demo in, lines of text with rich markup out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mesh.clock import from_rfc3339

CELLS_MIN: Final = 20
CELLS_MAX: Final = 66
NAME_CHARS: Final = 28
NOTE_CHARS: Final = 12

WORKING, WAITING, DOWN, NOTHING = "working", "waiting", "down", "nothing"
_STYLES: Final = {WORKING: "green", WAITING: "yellow", DOWN: "red", NOTHING: "dim"}
_UNICODE: Final = {WORKING: "█", WAITING: "░", DOWN: "×", NOTHING: " "}
_ASCII: Final = {WORKING: "#", WAITING: ".", DOWN: "x", NOTHING: " "}


@dataclass
class Row:
    """One line: what was the case from when on; times on the wall clock in ms."""

    name: str
    spans: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    note: str = ""

    def from_(self, at_ms: int, what: str) -> None:
        """`what` is the case from now on."""
        self.spans.append((at_ms, what))

    def at(self, at_ms: float) -> str:
        """What was the case then."""
        found = NOTHING
        for begun_ms, what in self.spans:
            if begun_ms <= at_ms:
                found = what
        return found


def row_of(name: str, events: Sequence[dict[str, Any]], killed_ms: int | None = None) -> Row:
    """The row of an operation from its history.

    The mesh learns of a death when a lease is over; `killed_ms` is when its agent really died.
    """
    row = Row(name)
    attempt = 0
    for event in events:
        at_ms, attempt = from_rfc3339(event["at"]), max(attempt, event["attempt"])
        match event["type"]:
            case "attempt_lost":
                begun_ms = row.spans[-1][0] if row.spans else at_ms
                row.from_(killed_ms if killed_ms and begun_ms <= killed_ms <= at_ms else at_ms, WAITING)
            case "accepted" | "blocked" | "attempt_failed":
                row.from_(at_ms, WAITING)
            case "dispatched" | "started":
                row.from_(at_ms, WORKING)
            case "succeeded" | "failed" | "canceled" | "timed_out":
                row.from_(at_ms, NOTHING)
            case _:
                pass
    row.note = "1 attempt" if attempt == 1 else f"{attempt} attempts"
    return row


def below_parents(accepted: Mapping[str, str], parents: Mapping[str, str]) -> list[str]:
    """Operations by when they were `accepted` (RFC 3339), each with its children right below it."""
    ordered = sorted(accepted, key=lambda one: accepted[one])
    roots = [one for one in ordered if parents.get(one) not in accepted]
    return [each for one in roots for each in (one, *(child for child in ordered if parents.get(child) == one))]


def draw(rows: Sequence[Row], begun_ms: int, ended_ms: int, *, columns: int, unicode: bool) -> list[str]:
    """The lines, a scale first, each at most `columns` wide."""
    signs = _UNICODE if unicode else _ASCII
    cells_count = max(CELLS_MIN, min(CELLS_MAX, columns - NAME_CHARS - NOTE_CHARS))
    cell_ms = max(1.0, (ended_ms - begun_ms) / cells_count)
    lines = [f"{'':<{NAME_CHARS}}{_scale(cell_ms, cells_count)}"]
    for row in rows:
        cells = [row.at(begun_ms + (number + 0.5) * cell_ms) for number in range(cells_count)]
        # What is shorter than a cell is shown all the same.
        for at_ms, what in row.spans:
            number = min(cells_count - 1, max(0, int((at_ms - begun_ms) / cell_ms)))
            if what == DOWN or (what == WORKING and WORKING not in cells):
                cells[number] = what
        drawn = "".join(f"[{_STYLES[cell]}]{signs[cell]}[/]" for cell in cells)
        lines.append(f"{row.name[: NAME_CHARS - 1]:<{NAME_CHARS}}{drawn} [dim]{row.note}[/]".rstrip())
    lines.append(
        f"{'':<{NAME_CHARS}}[green]{signs[WORKING]}[/] up, at work   [yellow]{signs[WAITING]}[/] accepted, waits"
        f"   [red]{signs[DOWN]}[/] killed"
    )
    return lines


def _scale(cell_ms: float, cells_count: int) -> str:
    """`0s    5s    10s`, each mark above the cell of its second."""
    step_s = 5 if cell_ms * cells_count > 10_000 else 1  # noqa: PLR2004
    scale = [" "] * (cells_count + 4)
    second = 0
    while (number := int(second * 1000 / cell_ms)) < cells_count:
        scale[number : number + len(f"{second}s")] = f"{second}s"
        second += step_s
    return "".join(scale).rstrip()
