"""The demo tells what happens while it happens: one line a step, colors on a terminal, plain text elsewhere."""

from __future__ import annotations

import sys
from typing import Final, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mesh.clock import now_ms

COLUMNS_MAX: Final = 110
STEP_COLUMNS: Final = 19

KINDS: Final[dict[str, str]] = {
    "start": "cyan",
    "ready": "cyan",
    "call": "bold",
    "answer": "green",
    "KILL -9": "bold red",
    "back": "cyan",
    "healed": "green",
    "refused": "yellow",
    "stream": "magenta",
    "callback": "magenta",
    "trouble": "bold red",
}
"""Kinds of steps and their rich style."""


class Step(NamedTuple):
    """One line of the story; `at_ms` on the wall clock."""

    at_ms: int
    kind: str
    text: str


class Story:
    """Collects the steps and, unless `quiet`, prints them."""

    def __init__(self, *, quiet: bool) -> None:
        self.console = Console(highlight=False, quiet=quiet)
        # Lines that a person reads; a pipe has no width of its own.
        self.console.width = min(self.console.width, COLUMNS_MAX) if sys.stdout.isatty() else COLUMNS_MAX
        self.begun_ms = now_ms()
        self.steps: list[Step] = []

    @property
    def unicode(self) -> bool:
        """Whether the output can show more than ASCII."""
        return (self.console.encoding or "").lower().startswith("utf")

    def say(self, text: str = "") -> None:
        """A line outside of time, with markup."""
        self.console.print(self._plain(text), soft_wrap=True)

    def hang(self, head: str, text: str, width: int) -> None:
        """`text` behind a head of `width` columns, folded within its own column; both with markup."""
        grid = Table.grid()
        grid.add_column(width=width, no_wrap=True)
        grid.add_column()
        grid.add_row(self._plain(head), self._plain(text))
        self.console.print(grid)

    def _plain(self, text: str) -> str:
        return text if self.unicode else text.encode("ascii", "replace").decode()

    def step(self, kind: str, text: str) -> int:
        """Something happened now; when."""
        at_ms = now_ms()
        self.steps.append(Step(at_ms, kind, text))
        after_s = (at_ms - self.begun_ms) / 1000
        self.hang(f"[dim]{after_s:5.1f} s[/]  [{KINDS[kind]}]{kind}[/]", escape(text), STEP_COLUMNS)
        return at_ms
