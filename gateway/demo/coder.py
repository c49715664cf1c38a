"""The coding agent of team `research`: mends a copy of a package in the background, in some twenty durable steps.

What it does with its hands is coder_tools.py. A step that was recorded is not done again, whoever is killed; the agent
that carries on may be another process, as long as it finds the same directory.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

from nexusrpc.handler import service_handler

import mesh
from gateway.demo.checks import tree_root
from gateway.demo.coder_tools import Workshop
from gateway.demo.contracts import Coder, MendReport, MendRequest, Retrieval, SearchReport, SearchRequest, Tool
from gateway.demo.reviewer import QUESTIONS


@service_handler(service=Coder)
class CoderHandler:
    """`state`: a directory for its jobs, the same one after a restart. `retrieval`: the endpoint that it asks."""

    def __init__(self, state: Path, retrieval: str = "retrieval") -> None:
        self._state = state.resolve()  # the tools run in other directories
        self._retrieval = retrieval

    @mesh.durable
    async def mend(self, ctx: mesh.Context, request: MendRequest) -> MendReport:
        """Mend what a linter finds in a copy of an installed package, and prove that its meaning stayed the same."""
        source = tree_root(request.tree)
        shop = Workshop(workshop_of(self._state, ctx.operation_id), request.tree)
        here = await ctx.step("tools", shop.tools)
        await ctx.step("clone", shop.clone, str(source))
        lines = await ctx.step("scan", shop.scan)
        await ctx.progress(f"{len(lines)} files, {sum(lines.values())} lines", percent=10)
        tools = [await ctx.step("compile", shop.compiles)]
        before = await ctx.step("lint", shop.lint, "before")
        todo = await ctx.step("plan", shop.plan)
        found = await self._look_up(ctx, before["by_rule"])

        mended = [await ctx.step("edit", shop.edit, name) for name in todo]
        await ctx.progress(f"{len(mended)} files mended", percent=50)
        for line in await ctx.step("diff", shop.diff, todo):
            await ctx.emit(line)

        tools.append(await ctx.step("compile", shop.compiles))
        after = await ctx.step("lint", shop.lint, "after")
        if here["ruff"]:
            tools.append(await ctx.step("ruff", shop.ruff))
        tools.append(await ctx.step("import", shop.imports))
        await ctx.step("write-tests", shop.write_tests, todo)
        tools.append(await ctx.step("test", shop.test, "pytest" if here["pytest"] else "unittest"))
        await ctx.progress("tested", percent=90)

        report = MendReport(
            verdict=_verdict(request.tree, before["findings"], after["findings"], len(mended), tools),
            files=len(lines),
            lines=sum(lines.values()),
            findings=(before["findings"], after["findings"]),
            mended=mended,
            diff_lines=sum(sum(each.rules.values()) for each in mended),
            tools=tools,
            read=found.passages,
            where=str(shop.directory),
        )
        await ctx.step("report", shop.report, report)
        return report

    async def _look_up(self, ctx: mesh.Context, by_rule: dict[str, int]) -> SearchReport:
        """Ask another agent about the most frequent finding, as a durable child."""
        rule = Counter(by_rule).most_common(1)[0][0] if by_rule else "bare-except"
        return await ctx.call(self._retrieval, Retrieval.search, SearchRequest(question=QUESTIONS[rule], top=2))


def workshop_of(state: Path, operation_id: str) -> Path:
    """The directory of one job."""
    return state / f"mend-{hashlib.sha256(operation_id.encode()).hexdigest()[:16]}"


def _verdict(tree: str, before: int, after: int, files: int, tools: list[Tool]) -> str:
    failed = [tool.name for tool in tools if not tool.ok]
    done = f"{tree}: {before} findings, {after} after mending {files} files"
    return f"{done}; {', '.join(failed)} not content" if failed else f"{done}; it compiles, imports and means the same"
