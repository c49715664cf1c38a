"""The demo's coding agent and its end: called, watched, killed in the middle of its steps, started again.

What is killed and why it does not matter stands here; the agent itself is coder.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.demo.caller import Caller
from gateway.demo.coder import workshop_of
from gateway.demo.coder_tools import LOG
from gateway.demo.contracts import Coder, MendReport, MendRequest
from gateway.demo.stage import Stage
from gateway.demo.story import Story
from gateway.demo.timeline import WORKING
from gateway.demo.verdict import Steps

KILL_AT: Final = 4
"""Steps that are recorded by then."""


class Mending:
    """One job of the coding agent."""

    def __init__(self, stage: Stage, story: Story) -> None:
        self._stage = stage
        self._story = story
        self._kept: list[str] = []
        self.operations: dict[str, str] = {}
        """What was called, by what it was for."""
        self.parents: dict[str, str] = {}

    async def play(self, quality: Caller) -> MendReport:
        """Call, kill, start again, wait for the answer."""
        handle = await quality.client.start("coder", Coder.mend, MendRequest())
        self.operations["mend"] = handle.id
        self._story.step("call", f"quality → coder: mend a copy of unittest, in the background, as {handle.id}")

        async def far_enough() -> bool:
            self._kept = list(steps_of(await quality.history(handle.id)))
            return len(self._kept) >= KILL_AT

        await self._stage.until("the coder has done some steps", far_enough)
        self._stage.kill("coder", f"coder agent, after {len(self._kept)} steps: {', '.join(self._kept)}")
        # What was recorded between the look and the kill counts as well.
        history = await quality.history(handle.id)
        self._kept = list(steps_of(history))
        self._stage.start_again("coder")
        await self._stage.until("the coder is back", lambda: quality.is_healthy("coder"))
        self._stage.mark("coder", WORKING)
        report: MendReport = await handle.result()
        (child,) = [event["id"] for event in await quality.history(handle.id) if event["type"] == "call"]
        self.operations["  └ look it up"] = child
        self.parents[child] = handle.id
        return report

    def evidence(self, histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Steps:
        """What its journal and its own log say."""
        operation_id = self.operations["mend"]
        log = workshop_of(self._stage.state, operation_id) / LOG
        return Steps(steps_of(histories[operation_id]), Counter(log.read_text().split()), self._kept)


def steps_of(events: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Recorded steps, in order, with the attempt that did them."""
    return {f"{event['name']}#{event['n']}": event["attempt"] for event in events if event["type"] == "step"}
