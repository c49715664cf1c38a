"""The reviewer agent of team `research`: asks two other agents, one of another team, and makes one report of it.

Its calls carry keys made of its own operation's id and what they are for. An attempt that follows a killed one asks
with the same keys, gets the same operations, and so repeats none of their work.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from nexusrpc.handler import StartOperationContext, service_handler, sync_operation

import mesh
from gateway.demo.contracts import (
    Checks,
    DoctestReport,
    DoctestRequest,
    Explained,
    LintReport,
    LintRequest,
    Retrieval,
    Review,
    Reviewer,
    ReviewRequest,
    SearchRequest,
)

QUESTIONS: Final[dict[str, str]] = {
    "bare-except": "context manager to suppress specified exceptions",
    "swallowed-exception": "format an exception with its traceback, log the error",
    "mutable-default": "dataclass field with a default factory",
    "none-comparison": "compare two objects by identity, is operator",
    "unreachable": "statically assert that code is unreachable",
    "duplicate-key": "group several mappings to one view, chain of maps",
    "empty-fstring": "substitute placeholders in a string template",
    "assert-on-tuple": "fail the test unless the expression is true",
    "unused-import": "find the spec of a module without importing it",
    "too-complex": "single dispatch generic function by type of argument",
    "compiler-warning": "filter or ignore warnings",
    "mixed-indentation": "remove common leading whitespace, dedent",
    "syntax-error": "parse source into an abstract syntax tree",
}
"""Rule -> what to look up about it."""
PASSAGES: Final = 2


@service_handler(service=Reviewer)
class ReviewerHandler:
    """Calls through the mesh like any caller; the client finds gateway and key in MESH_URL and MESH_KEY by itself."""

    def __init__(self, client: mesh.Client, checks: str = "checks", retrieval: str = "retrieval") -> None:
        """`checks`, `retrieval`: the endpoints to ask."""
        self._client = client
        self._checks = checks
        self._retrieval = retrieval

    @sync_operation
    async def review(self, ctx: StartOperationContext, request: ReviewRequest) -> Review:
        """Check and test a source tree, and look up what was found."""
        calls = Calls(self._client, ctx.request_id)
        lint, doctests = await asyncio.gather(
            calls.ask("lint", self._checks, Checks.lint, LintRequest(tree=request.tree)),
            calls.ask("doctests", self._checks, Checks.doctests, DoctestRequest(modules=request.modules)),
        )
        explained = await asyncio.gather(
            *(self._explain(calls, lint, rule) for rule in list(lint.by_rule)[: request.explain])
        )
        return Review(
            verdict=_verdict(lint, doctests), lint=lint, doctests=doctests, explained=explained, calls=calls.made
        )

    async def _explain(self, calls: Calls, lint: LintReport, rule: str) -> Explained:
        question = QUESTIONS.get(rule, rule)
        found = await calls.ask(
            f"search-{rule}", self._retrieval, Retrieval.search, SearchRequest(question=question, top=PASSAGES)
        )
        example = next(finding for finding in lint.examples if finding.rule == rule)
        return Explained(rule=rule, count=lint.by_rule[rule], example=example, read=found.passages)


class Calls:
    """Durable calls on behalf of one operation: the same purpose is the same operation, on every attempt."""

    def __init__(self, client: mesh.Client, request_id: str) -> None:
        self._client = client
        self._request_id = request_id
        self.made: dict[str, str] = {}
        """Purpose -> operation id."""

    async def ask(self, purpose: str, endpoint: str, operation: Any, value: Any) -> Any:
        """The result of a call to another agent. Raises as `mesh.Client.call`."""
        handle = await self._client.start(
            endpoint,
            operation,
            value,
            idempotency_key=f"{self._request_id}/{purpose}",
            labels={"for": self._request_id},
        )
        self.made[purpose] = handle.id
        return await handle.result()


def _verdict(lint: LintReport, doctests: DoctestReport) -> str:
    per_thousand = 1000 * lint.findings / max(1, lint.lines)
    tested = f"{doctests.examples - doctests.failures} of {doctests.examples} doctest examples hold"
    return f"{lint.findings} findings in {lint.lines} lines ({per_thousand:.1f} per thousand); {tested}"
