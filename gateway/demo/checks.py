"""The checks agent of team `quality`: runs its tools in subprocesses, carries on what an earlier attempt began.

Knows which operation it serves only by the request id, which is the same on every attempt.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import platform
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from nexusrpc import HandlerError, HandlerErrorType
from nexusrpc.handler import StartOperationContext, service_handler, sync_operation

from gateway.demo.contracts import STDLIB, Checks, DoctestReport, DoctestRequest, LintReport, LintRequest
from mesh.clock import now_ms

JOURNALS_KEPT_MS: Final = 24 * 3_600_000


@service_handler(service=Checks)
class ChecksHandler:
    """`state`: a directory for journals, the same one after a restart."""

    def __init__(self, state: Path) -> None:
        self._state = state
        _sweep(state)

    @sync_operation
    async def lint(self, ctx: StartOperationContext, request: LintRequest) -> LintReport:
        """Check every Python file of a source tree."""
        root = tree_root(request.tree)
        journal = journal_of(self._state, ctx.request_id)
        fields = await _run_tool("lint_worker", str(root), "--journal", str(journal))
        return LintReport.model_validate({"tree": request.tree, "python": platform.python_version(), **fields})

    @sync_operation
    async def doctests(self, ctx: StartOperationContext, request: DoctestRequest) -> DoctestReport:
        """Run the doctests of installed modules."""
        return DoctestReport.model_validate(await _run_tool("doctest_worker", *request.modules))


def tree_root(tree: str) -> Path:
    """Where the tree lies. Raises HandlerError BAD_REQUEST when there is none of that name."""
    if tree == STDLIB:
        return Path(sysconfig.get_path("stdlib"))
    try:
        # Only top-level names: looking up `a.b` would import, that is run, `a`.
        spec = find_spec(tree) if tree.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    if not places:
        message = f"there is no source tree {tree!r} here: `{STDLIB}` or the name of an installed package"
        raise HandlerError(message, type=HandlerErrorType.BAD_REQUEST)
    return Path(places[0])


def journal_of(state: Path, request_id: str) -> Path:
    """The journal of one request; the name is a digest because a request id may hold any characters."""
    return state / f"{hashlib.sha256(request_id.encode()).hexdigest()[:32]}.jsonl"


def _sweep(state: Path) -> None:
    """Forget journals of operations that ended long ago."""
    for journal in state.glob("*.jsonl"):
        if journal.stat().st_mtime * 1000 < now_ms() - JOURNALS_KEPT_MS:
            journal.unlink(missing_ok=True)


async def _run_tool(module: str, *arguments: str) -> dict[str, Any]:
    """The report of a tool, which ends when the operation is canceled.

    An agent that dies takes it along, because the tool's standard input ends then.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"gateway.demo.{module}",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None  # noqa: S101 - it was asked for
    try:
        report = await process.stdout.read()
        status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if status != 0:
        message = f"{module} ended with status {status}"
        raise HandlerError(message, type=HandlerErrorType.INTERNAL)
    return json.loads(report)
