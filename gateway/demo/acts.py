"""What happens in the demo, in order: calls of two teams, two kills, answers in every way there is.

`Demo.play` reads as the story does. Who runs and dies stands in stage.py, what is claimed in the end in verdict.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, Final

import httpx

import mesh
from gateway.demo.caller import Caller
from gateway.demo.checks import journal_of, tree_root
from gateway.demo.contracts import (
    Checks,
    DoctestRequest,
    LintRequest,
    Retrieval,
    Review,
    Reviewer,
    ReviewRequest,
    SearchRequest,
)
from gateway.demo.lint_worker import source_files
from gateway.demo.mending import Mending
from gateway.demo.receiver import read_ledger
from gateway.demo.stage import TEAMS, Stage
from gateway.demo.story import Story
from gateway.demo.timeline import WORKING, Row, below_parents, row_of
from gateway.demo.verdict import Claim, Evidence, judge
from mesh.clock import from_rfc3339, now_ms

KILL_AGENT_AT: Final = 0.25
KILL_GATEWAY_AT: Final = 0.55
"""Shares of the files that the long check has done by then."""
KEY: Final = "review-of-today"
QUESTION: Final = "wait for the first of several tasks to finish, with a timeout"


class Demo:
    """One run; `play` tells the story and gathers the evidence."""

    def __init__(self, stage: Stage, story: Story, tree: str) -> None:
        self._stage = stage
        self._story = story
        self._tree = tree
        self._files = len(source_files(tree_root(tree)))
        self._acknowledged: dict[str, str] = {}
        self._parents: dict[str, str] = {}
        """Child -> who called it."""
        self._callers: dict[str, Caller] = {}
        self._reads: dict[str, list[str]] = {}
        self._owed: list[str] = []
        self._replays: list[str] = []
        self._conflicts: list[str] = []
        self._foreign = ""
        self._mended: Mending
        self._tasks: list[asyncio.Task[Any]] = []
        self.histories: dict[str, list[dict[str, Any]]] = {}

    async def play(self) -> list[Claim]:
        """Raises Trouble and mesh errors when it cannot go on."""
        stage, story = self._stage, self._story
        async with AsyncExitStack() as stack:
            for team in TEAMS:
                caller = Caller(team, stage.url, stage.keys[team])
                self._callers[team] = await stack.enter_async_context(caller)
            stack.push_async_callback(self._drop_tasks)
            quality, research = self._callers.values()
            story.step("start", "a gateway with its store, four agents, a webhook receiver: six processes")
            stage.open()
            store = await stage.ready([quality, research])
            story.step("ready", f"{store['server']}; what is acknowledged is {store['acknowledged_means']}")

            review = await self._ask_for_review(quality)
            watching = self._begin(self._watch(quality, review.id))
            searching = self._begin(self._search(quality))
            checking = self._begin(self._check_asyncio(research))
            mending = self._begin(self._mend(quality))
            await self._at_once(research)
            await self._try_the_key(quality, research, review.id)
            lint_id = await self._kill_the_agent(research, review.id)
            late = await self._call_while_away(research)
            await self._wait_for_healing(lint_id)
            await self._kill_the_gateway(lint_id)
            await self._try_the_key(quality, research, review.id)
            await asyncio.gather(searching, checking, mending, late)
            found: Review = await review.result()
            story.step("answer", f"reviewer → quality: {found.verdict}")
            for explained in found.explained:
                example, passage = explained.example, explained.read[0] if explained.read else None
                read = f"; read {passage.title} ({passage.file}:{passage.line})" if passage else ""
                story.hang("", f"{explained.count} × {explained.rule}, as in {example.file}:{example.line}{read}", 20)
            self._acknowledged |= {one: f"  └ {purpose}" for purpose, one in found.calls.items()}
            self._parents |= dict.fromkeys(found.calls.values(), review.id)
            streamed = await watching
            await self._settle_callbacks()
            return await self._judge(found, review.id, streamed)

    # -- acts

    async def _ask_for_review(self, quality: Caller) -> mesh.OperationHandle[Review]:
        review = await quality.client.start(
            "reviewer",
            Reviewer.review,
            ReviewRequest(tree=self._tree),
            idempotency_key=KEY,
            callback={"url": self._stage.receiver_url, "format": "cloudevents"},
        )
        self._accept(review.id, "review", callback=True)
        self._story.step(
            "call",
            f"quality → reviewer of research: review {self._tree}, {self._files} files. Durable as {review.id};"
            " answer by event stream and signed callback",
        )
        return review

    async def _search(self, quality: Caller) -> None:
        request = SearchRequest(question=QUESTION, top=1)
        handle = await quality.client.start("retrieval", Retrieval.search, request)
        self._accept(handle.id, "search")
        found = await handle.result()
        took_s = await self._took_s(quality, handle.id)
        self._story.step(
            "answer",
            f"retrieval → quality, long-poll: {found.searched} docstrings indexed and searched in {took_s:.1f} s;"
            f" best: {found.passages[0].title}",
        )
        await self._read(quality, handle.id)

    async def _check_asyncio(self, research: Caller) -> None:
        callback = {"url": self._stage.receiver_url, "format": "cloudevents"}
        handle = await research.client.start("checks", Checks.lint, LintRequest(tree="asyncio"), callback=callback)
        self._accept(handle.id, "lint asyncio", callback=True)
        found = await handle.result()
        await self._read(research, handle.id)
        self._story.step(
            "answer", f"checks → research, long-poll: asyncio, {found.files} files, {found.findings} findings"
        )

    async def _at_once(self, research: Caller) -> None:
        handle = await research.client.start("checks", Checks.doctests, DoctestRequest(), wait_s=10)
        self._accept(handle.id, "doctests")
        found = await handle.result()
        took_s = await self._took_s(research, handle.id)
        self._story.step(
            "answer",
            f"checks → research, at once, in the same request: {found.examples - found.failures} of"
            f" {found.examples} doctests hold ({took_s * 1000:.0f} ms)",
        )
        await self._read(research, handle.id)

    async def _try_the_key(self, quality: Caller, research: Caller, review_id: str) -> None:
        again = await quality.client.start(
            "reviewer",
            Reviewer.review,
            ReviewRequest(tree=self._tree),
            idempotency_key=KEY,
            callback={"url": self._stage.receiver_url, "format": "cloudevents"},
        )
        self._replays += [again.id] if again.replayed else ["not replayed"]
        try:
            await quality.client.start("reviewer", Reviewer.review, ReviewRequest(explain=1), idempotency_key=KEY)
        except mesh.Refusal as refusal:
            self._conflicts.append(refusal.code)
        else:
            self._conflicts.append("accepted")
        try:
            await research.client.get(review_id)
        except mesh.Refusal as refusal:
            self._foreign = refusal.code
        self._story.step(
            "refused",
            f"the key of the review again: same operation; with other content: {self._conflicts[-1]};"
            f" another team asks for it: {self._foreign}",
        )

    async def _kill_the_agent(self, research: Caller, review_id: str) -> str:
        """Returns the id of the long check that the reviewer asked for."""
        labels = {"label.for": f"{review_id}.1"}

        async def find() -> str | None:
            found = await research.operations(operation="lint", **labels)
            return found[0]["id"] if found else None

        lint_id = await self._stage.until("the reviewer has asked for the check", find)
        await self._until_done("a part of the files is checked", lint_id, KILL_AGENT_AT)
        done = round(self._done(lint_id) * self._files)
        self._stage.kill("checks", f"checks agent, in the middle of the review's lint, {done} of {self._files} files")
        return lint_id

    async def _call_while_away(self, research: Caller) -> asyncio.Task[None]:
        """Work for an agent that is not there waits; it does not fail."""
        handle = await research.client.start("checks", Checks.doctests, DoctestRequest(modules=["json", "heapq"]))
        self._accept(handle.id, "doctests, agent away")
        self._story.step("call", f"research → checks, although nobody is there: accepted as {handle.id}, waits")
        self._stage.start_again("checks")

        async def finish() -> None:
            await handle.result()
            await self._read(research, handle.id)

        return self._begin(finish())

    async def _wait_for_healing(self, lint_id: str) -> None:
        before = self._done(lint_id)
        await self._stage.until("checks is back", lambda: self._callers["quality"].is_healthy("checks"))
        self._stage.mark("checks", WORKING)
        self._story.step("back", "checks agent; what it lost is given out again when the lease of 4 s is over")
        await self._until_done("the check goes on", lint_id, before + 0.5 / self._files)
        attempt = (await self._callers["research"].client.get(lint_id))["attempt"]
        self._story.step("healed", f"attempt {attempt} of the lint goes on at file {round(before * self._files) + 1}")

    async def _kill_the_gateway(self, lint_id: str) -> None:
        await self._until_done("half of the files are checked", lint_id, KILL_GATEWAY_AT)
        running = [one for caller in self._callers.values() for one in await caller.operations(state="running")]
        self._stage.kill("gateway", f"gateway and with it the store, {len(running)} operations under way")
        self._stage.start_again("gateway")
        begun_ms = now_ms()
        await self._stage.until("the gateway is back", self._callers["quality"].is_ready)
        self._stage.mark("gateway", WORKING)
        self._story.step("back", f"gateway, on the same data, {(now_ms() - begun_ms) / 1000:.1f} s later")

    async def _settle_callbacks(self) -> None:
        """All effects done, the lost answer made good, a forgery tried."""

        async def settled() -> bool:
            entries = read_ledger(self._stage.ledger)
            done = {entry["webhook_id"] for entry in entries if entry["verdict"] == "effect"}
            return done >= set(self._owed) and any(entry["verdict"] == "repeat" for entry in entries)

        await self._stage.until("all callbacks have arrived", settled)
        forged = {
            "webhook-id": self._owed[0],
            "webhook-timestamp": str(now_ms() // 1000),
            "webhook-signature": "v1,bm8=",
        }
        async with httpx.AsyncClient(trust_env=False) as http:
            reply = await http.post(self._stage.receiver_url, content=b"{}", headers=forged)
        self._story.step(
            "callback",
            f"{len(self._owed)} outcomes told, signatures verified; the receiver lost one answer on purpose, so that"
            f" callback came again under its id and changed nothing; a forged one got {reply.status_code}",
        )

    async def _mend(self, quality: Caller) -> None:
        """A background agent whose every step is durable; it is killed in the middle of them."""
        mending = Mending(self._stage, self._story)
        self._mended = mending
        report = await mending.play(quality)
        for name, one in mending.operations.items():
            self._accept(one, name)
        self._parents |= mending.parents
        self._story.step("answer", f"coder → quality: {report.verdict}")
        await self._read(quality, mending.operations["mend"])

    # -- evidence

    async def _judge(self, found: Review, review_id: str, streamed: list[int]) -> list[Claim]:
        by_id = {one["id"]: caller for caller in self._callers.values() for one in await caller.operations()}
        for one in self._acknowledged:
            if one in by_id:
                self.histories[one] = await by_id[one].history(one)
                await self._read(by_id[one], one)
                await self._read(by_id[one], one)
        listed = [one["id"] for caller in self._callers.values() for one in await caller.operations()]
        return judge(
            Evidence(
                acknowledged=self._acknowledged,
                histories=self.histories,
                listed=listed,
                reads=self._reads,
                streamed=streamed,
                ledger=read_ledger(self._stage.ledger),
                owed=self._owed,
                replay=(review_id, self._replays),
                conflict=self._conflicts,
                foreign=self._foreign,
                resumed=(found.lint.files, self._files, found.lint.resumed_files),
                steps=self._mended.evidence(self.histories),
            )
        )

    def rows(self) -> list[Row]:
        """The timeline: processes that were killed, then operations as they were accepted, children below."""
        accepted = {one: events[0]["at"] for one, events in self.histories.items()}
        killed_ms = self._stage.killed_ms.get("checks")
        operations = [
            row_of(self._acknowledged[one], self.histories[one], killed_ms)
            for one in below_parents(accepted, self._parents)
        ]
        return [*self._stage.rows.values(), *operations]

    def _accept(self, operation_id: str, name: str, *, callback: bool = False) -> None:
        self._acknowledged[operation_id] = name
        if callback:
            self._owed.append(f"{operation_id}.1")

    async def _read(self, caller: Caller, operation_id: str) -> None:
        self._reads.setdefault(operation_id, []).append(await caller.digest(operation_id))

    async def _watch(self, caller: Caller, operation_id: str) -> list[int]:
        return [event.seq async for event in caller.client.watch(operation_id)]

    async def _took_s(self, caller: Caller, operation_id: str) -> float:
        record = await caller.client.get(operation_id)
        return (from_rfc3339(record["closed_at"] or record["updated_at"]) - from_rfc3339(record["created_at"])) / 1000

    def _done(self, lint_id: str) -> float:
        """The share of files that the check has in its journal."""
        journal = journal_of(self._stage.state, f"{lint_id}.1")
        if not journal.exists():
            return 0.0
        return sum(line.startswith(b"{") for line in journal.read_bytes().splitlines()) / max(1, self._files)

    async def _until_done(self, what: str, lint_id: str, share: float) -> None:
        async def look() -> bool:
            return self._done(lint_id) >= share

        await self._stage.until(what, look)

    def _begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        return task

    async def _drop_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
