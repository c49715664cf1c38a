"""What became of an operation, for whoever called or watches it: its result, or one sentence and an exit code.

Shared by `mesh call` and `mesh operation`. Knows records as /v1 gives them; waits for nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gateway.cli.exits import Exit, Problem
from gateway.cli.results import put_out
from gateway.cli.show import Show, between, is_live, soon, span
from gateway.cli.wire import Gateway
from mesh.client.errors import story
from mesh.client.patience import why_waits
from mesh.errors import MeshError
from mesh.wire import quote_segment

if TYPE_CHECKING:
    from mesh.client.order import Record


def finish(
    gateway: Gateway, show: Show, record: dict[str, Any], *, waited_s: float, output: Path | None = None
) -> None:
    """Print what became of an operation. Raises Problem (exit 1 or 5) unless it succeeded or nobody waited."""
    state, operation_id = record["state"], record["id"]
    if state == "succeeded":
        result_path = f"/v1/operations/{operation_id}/result"
        written = gateway.download(result_path, output) if output is not None else 0
        if not show.json(record):
            took = between(record["created_at"], record["closed_at"])
            attempts = "" if record["attempt"] == 1 else f", attempt {record['attempt']}"
            show.note(f"succeeded in {took}{attempts}: operation {operation_id}")
            if output is not None:
                show.note(f"{written} bytes written to {output}")
            else:
                put_out(gateway, show, result_path, int(record.get("result_dataref", {"bytes": 0})["bytes"]), None)
        return
    if record["closed_at"] is not None:
        show.json(record)
        words = f"operation {operation_id} {state.replace('_', ' ')}: {story(record.get('failure'))}"
        raise Problem(words, exit_code=Exit.FAILED, code=f"operation_{state}", extra={"operation_id": operation_id})
    if waited_s <= 0:
        if not show.json(record):
            print(operation_id)
            at = record.get("starts_at", "")
            begins = f"it begins at {at} ({soon(at)})" if at else "under way"
            show.note(f"durable, {begins}; `mesh operation watch {operation_id}` shows how it goes")
        return
    show.json(record)
    why = _why(gateway, record)
    last = record.get("last_failure")
    tried = f" (attempt {last['attempt']} failed: {last['message']})" if last else ""
    still = f"is still {state.replace('_', ' ')} after {span(waited_s * 1000)}{why}{tried}"
    raise Problem(
        f"operation {operation_id} {still}; it goes on",
        f"`mesh operation watch {operation_id}` waits for its end.",
        exit_code=Exit.UNAVAILABLE,
        code="still_running",
        extra={"operation_id": operation_id},
    )


def _why(gateway: Gateway, record: dict[str, Any]) -> str:
    """What it waits for, in words; of a version that nobody runs, which ones there are."""
    if not record.get("blocked"):
        return ""
    why = f": {why_waits(cast('Record', record))}"
    if record["blocked"] == "no_version":
        try:
            found = gateway.get(f"/v1/endpoints/{quote_segment(record['endpoint'])}/versions")
        except MeshError:
            return why
        there = [one["version"] for one in found["items"] if is_live(one)]
        why += f" (there {'is' if len(there) == 1 else 'are'} {', '.join(there)})" if there else ""
    return why
