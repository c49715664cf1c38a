"""What is counted is said right, of one as of many."""

from __future__ import annotations

import pytest

from gateway.admission import backlog_full, delayed_full
from mesh.store.starting import BacklogFull
from mesh.words import counted


def test_counted() -> None:
    assert [counted(number, "operation") for number in (0, 1, 2)] == ["0 operations", "1 operation", "2 operations"]
    assert [counted(number, "try", "tries") for number in (1, 2)] == ["1 try", "2 tries"]


@pytest.mark.parametrize(
    ("depth", "waits", "later"),
    [(1, "1 operation of your namespace waits for", "is"), (2, "2 operations of your namespace wait for", "are")],
)
def test_refusals_of_what_waits(depth: int, waits: str, later: str) -> None:
    """P334, P433."""
    refused = BacklogFull(f"{depth} {depth} 1500")
    assert backlog_full(refused, "e", "n").detail.startswith(waits)
    assert f"of your namespace {later} accepted for later" in delayed_full(refused, "e", "n").detail
