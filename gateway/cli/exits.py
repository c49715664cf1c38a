"""How a command ends: exit codes, and errors as one sentence with the mend. Knows no command.

Whatever a command raises of the project's error tree becomes a `Problem`; anything else is a bug and says so.
"""

from __future__ import annotations

import json
import os
import sys
from enum import IntEnum
from typing import Any, Final

from mesh.errors import (
    ConfigError,
    Conflict,
    MeshError,
    NotFound,
    PeerFault,
    PreconditionFailed,
    Refusal,
    StoreUnsafe,
    TooMany,
    Unauthenticated,
    Unavailable,
)

TRACEBACK: Final = "MESH_TRACEBACK"
"""Set in the environment, it makes a bug show its traceback."""


class Exit(IntEnum):
    """Exit codes of every `mesh` command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    MISSING = 3
    REFUSED = 4
    UNAVAILABLE = 5
    BUG = 70
    INTERRUPTED = 130


MEANINGS: Final[dict[Exit, str]] = {
    Exit.OK: "done; an operation that was waited for succeeded",
    Exit.FAILED: "the operation did not succeed, or a check or verdict is bad",
    Exit.USAGE: "wrong arguments or settings, or input that is no JSON",
    Exit.MISSING: "not found, or not yours",
    Exit.REFUSED: "refused by the gateway, as input that breaks its schema, or in conflict with what is there",
    Exit.UNAVAILABLE: "no answer, not ready, or still running when the wait was over",
    Exit.BUG: f"a bug in mesh itself; {TRACEBACK}=1 shows where",
    Exit.INTERRUPTED: "interrupted with Ctrl-C",
}


class Problem(Exception):
    """The end of a command that could not do its work: a sentence, the mend, an exit code."""

    def __init__(
        self,
        detail: str,
        mend: str = "",
        *,
        exit_code: Exit = Exit.USAGE,
        code: str = "usage",
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.mend = mend
        self.exit_code = exit_code
        self.code = code
        self.extra = extra or {}


_EXITS: Final[list[tuple[type[MeshError], Exit]]] = [
    (NotFound, Exit.MISSING),
    (TooMany, Exit.UNAVAILABLE),
    (Refusal, Exit.REFUSED),
    (StoreUnsafe, Exit.REFUSED),
    (ConfigError, Exit.USAGE),
    (Unavailable, Exit.UNAVAILABLE),
    (PeerFault, Exit.UNAVAILABLE),
]
_NEVER: Final = ("directory_in_use", "backfill_too_long")
"""What a repeat does not mend, whatever their status may otherwise mean."""
LOOK: Final = "Look at what is there and decide anew."
_MENDS: Final[dict[str, str]] = {
    "key_missing": "Set MESH_KEY, or give --api-key.",
    "key_invalid": "Check MESH_KEY or --api-key: it must be a key of a namespace of this gateway.",
    "unknown_endpoint": "`mesh endpoint list` shows the endpoints that you may call.",
    "unknown_operation": "`mesh operation list` shows the operations of your namespace.",
    "unknown_service": "`mesh endpoint show NAME` lists its services and operations.",
    "contract_breaks": "`mesh contract diff` shows all; --force replaces the contract all the same.",
    "key_reused": "Use another --key for other content, or repeat the first call exactly.",
    "origin_not_allowed": "Ask the gateway under a loopback address.",
}


def problem_of(error: MeshError) -> Problem:
    """The problem that an error stands for."""
    exit_code = next((code for kind, code in _EXITS if isinstance(error, kind)), Exit.FAILED)
    if error.code in _NEVER:
        exit_code = Exit.REFUSED
    mend = _MENDS.get(error.code, "")
    if not mend and isinstance(error, Unauthenticated):
        mend = _MENDS["key_invalid"]
    if not mend and isinstance(error, (Conflict, PreconditionFailed)):
        mend = LOOK
    if mend in (LOOK, _MENDS["key_reused"], _MENDS["unknown_endpoint"]) and _advises(error.detail):
        mend = ""  # the gateway said how to mend it, and better
    extra: dict[str, Any] = {}
    detail = error.detail
    if isinstance(error, Refusal):
        if error.errors:
            extra["errors"] = error.errors
            detail += _pointers(error.errors, detail)
        if error.operation_id:
            extra["operation_id"] = error.operation_id
    return Problem(detail, mend, exit_code=exit_code, code=error.code, extra=extra)


def _advises(detail: str) -> bool:
    """Whether the detail of a refusal ends in what to do: its sentences do that after `;` or a full stop."""
    return "; " in detail or ". " in detail


def _pointers(errors: list[dict[str, Any]], said: str) -> str:
    """What the errors of a refusal add to its detail: where, and why unless that was said."""
    parts: list[str] = []
    for error in errors[:5]:
        where, why = str(error.get("pointer") or ""), str(error.get("detail") or "")
        if where not in said or why not in said:
            parts.append(where if why in said else f"{where or '/'}: {why}")
    return f" ({'; '.join(parts)})" if parts else ""


def tell(problem: Problem, *, as_json: bool) -> Exit:
    """Write a problem to standard error: one JSON object, or one or two sentences."""
    if as_json:
        told = {"error": problem.code, "detail": problem.detail, "mend": problem.mend, "exit": problem.exit_code}
        print(json.dumps(told | problem.extra), file=sys.stderr)
    else:
        sentence = problem.detail if problem.detail.endswith((".", "!", "?")) else f"{problem.detail}."
        print(" ".join(filter(None, ["mesh:", sentence, problem.mend])), file=sys.stderr)
    return problem.exit_code


def tell_bug(error: Exception, *, as_json: bool) -> Exit:
    """Anything that should not have happened."""
    if os.environ.get(TRACEBACK):
        raise error
    detail = f"unexpected {type(error).__name__}: {error}"
    mend = f"This is a bug; {TRACEBACK}=1 shows where."
    return tell(Problem(detail, mend, exit_code=Exit.BUG, code="bug"), as_json=as_json)
