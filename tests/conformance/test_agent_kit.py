"""The kit for agents: it passes agents that keep the rules, and finds each defect with the advice that mends it.

Here the good ones, ours among them, and servers that are no agents; test_agent_kit_bad.py has the defects.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from nexusrpc import HandlerError, HandlerErrorType, OperationError, OperationErrorState
from nexusrpc.handler import (
    CancelOperationContext,
    OperationHandler,
    StartOperationContext,
    StartOperationResultAsync,
    operation_handler,
    service_handler,
)

import mesh
from mesh.check.agent import Sample, ordered
from mesh.clock import sleep
from mesh.errors import Malformed, MeshError, Unavailable
from mesh.ids import short_id
from tests.agents.serving import serving
from tests.conformance.bad_manners import unread
from tests.conformance.kit_checks import QUICK, SLOW, by_number, checked, raw
from tests.conformance.plain_agents import Plain

KEPT = Sample("work", "kept", b"1234")


@service_handler
class Jobs:
    """Work under tokens of its own, which the host does not see end."""

    def __init__(self) -> None:
        self.by_request: dict[str, str] = {}
        self.by_token: dict[str, asyncio.Event] = {}

    @operation_handler
    def job(self) -> OperationHandler[float, str]:
        return JobHandler(self)


class JobHandler(OperationHandler[float, str]):
    """Once per request id: a later attempt of work that runs gets its token, and brings nothing new."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self.tasks: set[asyncio.Task[None]] = set()

    async def start(self, ctx: StartOperationContext, input: float) -> StartOperationResultAsync:  # noqa: A002 - nexusrpc's name
        token = self.jobs.by_request.get(ctx.request_id)
        if token is None:
            token = self.jobs.by_request[ctx.request_id] = short_id("job")
            canceled = self.jobs.by_token[token] = asyncio.Event()
            task = asyncio.get_running_loop().create_task(self.work(ctx, token, canceled, input))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        return StartOperationResultAsync(token=token)

    async def work(self, ctx: StartOperationContext, token: str, canceled: asyncio.Event, seconds: float) -> None:
        error: OperationError | None = None
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await canceled.wait()
            error = OperationError("as asked", state=OperationErrorState.CANCELED)
        if ctx.callback_url:
            with suppress(MeshError):
                await mesh.complete(
                    ctx.callback_url, "", "done", error=error, operation_token=token, headers=ctx.callback_headers
                )

    async def cancel(self, ctx: CancelOperationContext, token: str) -> None:
        if token not in self.jobs.by_token:
            raise HandlerError("no such job", type=HandlerErrorType.NOT_FOUND)
        self.jobs.by_token[token].set()


class TestGood:
    async def test_an_agent_on_the_sdk_passes_everything(self) -> None:
        async def quick(value: int) -> int:
            return value + 1

        async def lasting(seconds: float) -> str:
            await sleep(seconds)
            return "done"

        agent = mesh.Agent("work", [quick, lasting], register=False, answer_within_ms=100, lease_ms=1500)
        with serving(agent) as url:
            report = await checked(url, QUICK, Sample("work", "lasting", b"1.2000"), parallel=12)
        assert [(each.number, each.verdict, each.seen, each.advice) for each in report.results] == [
            (each.number, "pass", "", "") for each in ordered()
        ]

    async def test_work_that_its_handler_completes_by_hand(self) -> None:
        """Tokens and completions of the handler's own, behind our host."""
        agent = mesh.Agent("work", [Jobs()], register=False, answer_within_ms=100)
        with serving(agent) as url:
            report = await checked(url, Sample("Jobs", "job", b"0.2000"), Sample("Jobs", "job", b"0.9"), parallel=12)
        wrong = [f"{each.number}: {each.seen}. {each.advice}" for each in report.results if each.verdict == "fail"]
        assert not wrong

    async def test_a_handler_without_the_sdk_passes_everything(self) -> None:
        with serving(Plain()) as url:
            report = await checked(url, QUICK, SLOW, parallel=12)
        found = {each.number: (each.seen, each.advice) for each in report.results if each.verdict != "pass"}
        promise = ("the agent's 201 promises no heartbeats (Mesh-Lease-Ms)", "")
        assert found == {"L1": promise, "L2": promise}


class TestDurable:
    """P186: work that keeps a journal at its gateway cannot end in a check that has none; no fault of the agent."""

    @staticmethod
    def agent() -> mesh.Agent:
        async def quick(value: int) -> int:
            return value + 1

        async def lasting(seconds: float) -> str:
            await sleep(seconds)
            return "done"

        @mesh.durable
        async def kept(ctx: mesh.Context, value: int) -> int:
            return await ctx.step("add", quick, value)

        return mesh.Agent("work", [quick, lasting, kept], register=False, answer_within_ms=100, lease_ms=1500)

    async def test_alone_what_cannot_apply_is_skipped_with_the_reason(self) -> None:
        with serving(self.agent()) as url:
            report = await checked(url, KEPT, parallel=12)
        found = by_number(report)
        assert [each.seen for each in report.results if each.verdict == "fail"] == []
        skipped = {each.number for each in report.results if each.verdict == "skipped"}
        assert {"S1", "S2", "S6", "C1", "C8", "X3", "D1", "L1"} <= skipped
        assert all("work/kept keeps a journal at its gateway" in found[number].seen for number in skipped)
        passed = {each.number for each in report.results if each.verdict == "pass"}
        assert passed >= {"X1", "X2", "R3", "R5", "R7", "Z2"}

    async def test_beside_others_it_is_said_once(self) -> None:
        with serving(self.agent()) as url:
            report = await checked(url, KEPT, QUICK, Sample("work", "lasting", b"1.2000"), parallel=12)
        assert {each.verdict for each in report.results} == {"pass"}
        assert [each.number for each in report.results if "keeps a journal" in each.advice] == ["S1"]


class TestNoAgent:
    @pytest.mark.parametrize(
        ("reply", "seen"),
        [
            (b"", "closed the connection instead of answering"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", "instead of answering to the end"),
            (b"I am a teapot\r\n\r\n", "no HTTP/1.1"),
            (b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n", "answered 302"),
            (b"HTTP/1.1 424 X\r\ncontent-length: 0\r\n\r\n", "neither failed nor canceled"),
            (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000 + b"\r\n", "no HTTP/1.1"),
        ],
    )
    async def test_answers_that_are_none(self, reply: bytes, seen: str) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(reply)
            writer.close()

        async with raw(answer) as url:
            found = by_number(await checked(url, QUICK, only=frozenset({"S1", "S2"})))
        assert seen in found["S1"].seen
        assert found["S2"].verdict == "skipped"

    async def test_an_agent_that_never_answers(self) -> None:
        async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(-1)
            writer.close()

        async with raw(wait) as url:
            found = by_number(await checked(url, QUICK, only=frozenset({"S1"}), answer_s=0.2))["S1"]
        assert (found.verdict, found.seen) == ("fail", "no answer within 0.2 s")


class TestAbout:
    async def test_nobody_there(self) -> None:
        async with raw(unread) as gone:
            pass
        with pytest.raises(Unavailable, match="nobody answers"):
            await checked(gone, QUICK, only=frozenset({"S1"}))

    async def test_a_url_that_is_none(self) -> None:
        with pytest.raises(Malformed):
            await checked("nowhere", QUICK)

    async def test_without_an_operation_little_can_be_said(self) -> None:
        with serving(Plain()) as url:
            report = await checked(url)
        assert {each.number for each in report.results if each.verdict == "pass"} == {"R5", "Z1"}
        assert report.count("fail") == 0

    async def test_a_refused_operation_says_what_to_give(self) -> None:
        with serving(Plain()) as url:
            found = by_number(await checked(url, Sample("work", "quick", b'"no number"'), only=frozenset({"S2"})))
        assert "an input that it takes" in found["S1"].advice
        assert found["S2"].verdict == "skipped"
