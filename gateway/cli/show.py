"""What commands print: JSON for programs, rich text for people. Knows no command and no gateway.

rich is loaded when something for people is printed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from mesh.clock import from_rfc3339, now_ms

if TYPE_CHECKING:
    from rich.console import Console

PIPE_COLUMNS: Final = 500
WHOLE: Final = ("id", "state")
"""Columns whose text is copied: as long as others can shrink, they do not."""
FOLDED: Final = ("why", "name", "")
"""Columns that tell a person what is wrong: several lines rather than half of it."""

STYLES: Final[dict[str, str]] = {
    **dict.fromkeys(("succeeded", "healthy", "delivered", "active", "ok", "ready", "pass", "closed"), "green"),
    **dict.fromkeys(("failed", "timed_out", "dead", "offline", "bad", "fail", "open"), "red"),
    **dict.fromkeys(("canceled", "suspect", "backing_off", "paused", "draining", "warn", "skipped"), "yellow"),
    "half_open": "yellow",
    **dict.fromkeys(("started", "scheduled", "pending", "leased"), "cyan"),
}
"""Words for states -> rich style."""


class Show:
    """Prints in one of the two ways. `as_json` of the last one made is what errors are told in (main.py)."""

    as_json = False

    def __init__(self, as_json: bool) -> None:  # noqa: FBT001 - the option's value
        type(self).as_json = as_json
        self._console: Console | None = None

    @property
    def console(self) -> Console:
        """Standard output for people."""
        if self._console is None:
            from rich.console import Console  # noqa: PLC0415 - not for --json

            # A pipe has no width: whatever reads it cuts lines as it likes.
            width = None if sys.stdout.isatty() else PIPE_COLUMNS
            self._console = Console(highlight=False, width=width, soft_wrap=width is not None)
        return self._console

    def json(self, value: Any) -> bool:
        """Print `value` if JSON was asked for; whether it was."""
        if self.as_json:
            print(json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False), flush=True)
        return self.as_json

    def line(self, text: str) -> None:
        """A line for people, with rich markup."""
        if not self.as_json:
            self.console.print(text)

    def note(self, text: str) -> None:
        """A remark beside the result: plain, to standard error, so that pipes get the result alone."""
        if not self.as_json:
            print(text, file=sys.stderr, flush=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
        """Rows under columns, cut to the terminal's width but for FOLDED; `empty` is said when there are none."""
        if not rows:
            self.note(empty)
            return
        from rich.table import Table  # noqa: PLC0415 - as above
        from rich.text import Text  # noqa: PLC0415 - as above

        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for column in columns:
            table.add_column(column, no_wrap=column in WHOLE, overflow="fold")
        for row in rows:
            cells = [Text.from_markup(cell) for cell in row]
            for column, cell in zip(columns, cells, strict=True):
                if column not in FOLDED:
                    cell.no_wrap, cell.overflow = True, "ellipsis"
            table.add_row(*cells)
        self.console.print(table)

    def page(self, columns: Sequence[str], rows: Sequence[Sequence[str]], what: str, cursor: str | None) -> None:
        """A page of a list; one without rows is not the end of it while there is a cursor."""
        self.table(columns, rows, f"none of the {what} looked at so far" if cursor else f"no {what}")
        if cursor:
            self.note(f"{'more' if rows else 'look further'} with --cursor {cursor}")

    def fields(self, rows: Sequence[tuple[str, str]]) -> None:
        """Names and values, one a line; empty values are left out."""
        width = max((len(name) for name, value in rows if value), default=0)
        for name, value in rows:
            if value:
                self.console.print(f"[bold]{name:<{width}}[/]  {value}")

    def result(self, body: bytes, content_type: str | None) -> None:
        """A result as it came; JSON is laid out for a terminal."""
        if not body:
            return
        if sys.stdout.isatty() and (content_type or "").startswith("application/json"):
            self.console.print_json(body.decode())
            return
        sys.stdout.flush()
        sys.stdout.buffer.write(body if body.endswith(b"\n") else body + b"\n")
        sys.stdout.buffer.flush()


def word(state: str) -> str:
    """A state in its color."""
    style = STYLES.get(state)
    return f"[{style}]{plain(state)}[/]" if style else plain(state)


def plain(text: object) -> str:
    """Text from elsewhere, so that rich takes none of it for markup."""
    from rich.markup import escape  # noqa: PLC0415 - as above

    return escape(str(text))


def ago(at: str | None) -> str:
    """`3 s ago` for an RFC 3339 time."""
    return f"{span(max(0, now_ms() - from_rfc3339(at)))} ago" if at else ""


def soon(at: str | None) -> str:
    """`in 3 s` for an RFC 3339 time that comes, `now` for one that has come."""
    if not at:
        return ""
    left_ms = from_rfc3339(at) - now_ms()
    return f"in {span(left_ms)}" if left_ms > 0 else "now"


def between(start: str | None, end: str | None) -> str:
    """`1.24 s` between two RFC 3339 times."""
    return span(from_rfc3339(end) - from_rfc3339(start)) if start and end else ""


def span(ms: float) -> str:
    """`85 ms`, `1.24 s`, `3 min`, `2 h`, `5 d`."""
    if ms < 1000:  # noqa: PLR2004
        return f"{ms:.0f} ms"
    if ms < 60_000:  # noqa: PLR2004
        return f"{ms / 1000:.3g} s"
    for size, unit in ((86_400_000, "d"), (3_600_000, "h")):
        if ms >= 2 * size:
            return f"{ms / size:.0f} {unit}"
    return f"{ms / 60_000:.0f} min"


def is_live(version: dict[str, Any]) -> bool:
    """Whether an instance of a version, as `.../versions` has it, takes work."""
    counts = version["instance_counts"]
    return bool(counts["healthy"] or counts["suspect"])


def large(ref: dict[str, Any] | None) -> str:
    """What a record refers to: `8 MiB application/pdf, sha-256=:...:, /v1/operations/.../input`; "" without."""
    if not ref:
        return ""
    return f"{_bytes(ref['bytes'])} {ref['content_type'] or 'of no type'}, {ref['digest']}, {ref['url']}"


def _bytes(count: int) -> str:
    for size, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
