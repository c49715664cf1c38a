"""How a history reads: attempts as headings, what was done under them, nothing that moves a terminal's cursor."""

from __future__ import annotations

from typing import Any

import pytest
from rich.text import Text

from gateway.cli.timeline import children, event_line, timeline

START = "2026-11-22T10:00:00.000Z"


def event(seq: int, kind: str, attempt: int = 1, **fields: Any) -> dict[str, Any]:
    at = f"2026-11-22T10:00:{seq:02d}.000Z"
    return {"seq": seq, "at": at, "type": kind, "operation_id": "00-a", "attempt": attempt} | fields


def text(line: str) -> str:
    return Text.from_markup(line).plain


def test_attempts_are_headings() -> None:
    """A late step of an earlier attempt stays where it came, and says whose it is."""
    events = [
        event(1, "accepted", 0),
        event(2, "dispatched"),
        event(3, "step", name="clone", n=1, result={"files": 3}, ms=1200, tries=3),
        event(4, "attempt_lost", reason="heartbeat"),
        event(5, "dispatched", 2),
        event(6, "refused", 1, verb="journal"),
    ]
    lines = [text(line) for line in timeline(events, START)]
    assert [line for line in lines if line.startswith("attempt")] == ["attempt 1", "attempt 2"]
    assert lines[3].split() == ["3", "+3", "s", "step", "clone#1", "1.2", "s,", "3", "tries", '{"files":', "3}"]
    assert lines[-1].endswith("refused                verb: journal (attempt 1)")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (event(1, "step", name="lint", n=2, error={"type": "OSError", "message": "gone"}), "lint#2  OSError: gone"),
        (
            event(1, "step", name="a", n=1, result_dataref={"url": "/v1/x", "digest": "sha-256=:A:", "bytes": 5}),
            "a#1  5 bytes at /v1/x",
        ),
        (event(1, "step", name="a", n=1, result_preview='"xx', result_bytes=5000), 'a#1  "xx (5000 bytes)'),
        (
            event(1, "call", name="lint", n=1, id="00-b", endpoint="team-b/linter", service="Lint", operation="run"),
            "lint#1 00-b  team-b/linter: Lint/run",
        ),
        (event(1, "child", key="lint#1", id="00-b", state="succeeded", result=7), "lint#1 00-b succeeded  7"),
        (
            event(1, "child", key="lint#1", id="00-b", state="failed", failure={"message": "no"}),
            "lint#1 00-b failed  no",
        ),
        (event(1, "suspended", until="2026-11-22T11:00:00.000Z"), "until 2026-11-22T11:00:00.000Z"),
        (event(1, "suspended"), "until a child ends"),
        (event(1, "progress", percent=50, message="half"), "50 %  half"),
        (event(1, "value", name="uuid", n=1, value="abc"), 'uuid#1  "abc"'),
        (event(1, "note", text="mine", more={"a": 1}), 'text: mine, more: {"a": 1}'),
        (event(1, "note", text="x" * 200), "text: " + "x" * 80 + "…"),
        (event(1, "step", name="[red]a\x1b[2J", n=1), "[red]a [2J#1"),
        (event(1, "step", name=7, n=None, error="plain words", ms="?", tries="?"), "7#None  plain words"),
    ],
)
def test_what_is_said_of_an_event(found: dict[str, Any], said: str) -> None:
    """Whatever an agent put there."""
    assert text(event_line(found, START)).split("attempt 1", 1)[1].strip() == said


def test_children_are_lines_of_their_own() -> None:
    """Oldest first, with what became of each."""
    row = {"parent_key": "lint#1", "id": "00-b", "state": "succeeded", "endpoint": "e", "service": "S"}
    row |= {"operation": "o", "created_at": START, "closed_at": "2026-11-22T10:00:02.000Z"}
    lines = children([{**row, "id": "00-c", "closed_at": None, "parent_key": "a#1"}, row])
    assert [text(line).split() for line in lines] == [
        ["lint#1", "00-b", "succeeded", "e:", "S/o", "2", "s"],
        ["a#1", "00-c", "succeeded", "e:", "S/o"],
    ]
