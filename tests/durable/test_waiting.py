"""Durable handlers by the test kit: children (P264), gathers (P265), cancellation (P266)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import mesh
from mesh import testing
from mesh.client.errors import OperationFailed
from mesh.clock import sleep
from mesh.errors import ConfigError, NotFound

effects: list[Any] = []


@pytest.fixture(autouse=True)
def no_effects() -> None:
    effects.clear()


async def note(what: Any, *, after_s: float = 0) -> Any:
    try:
        await sleep(after_s)
    except asyncio.CancelledError:
        effects.append(("interrupted", what))
        raise
    effects.append(what)
    return what


async def fail(message: str) -> None:
    raise LookupError(message)


class TestCalls:
    def test_a_child_is_started_once_and_waited_for_by_nobody(self) -> None:
        async def lint(files: list[str]) -> dict[str, int]:
            await sleep(7200)
            return {name: len(name) for name in files}

        @mesh.durable
        async def handler(ctx: mesh.Context) -> dict[str, int]:
            return await ctx.call("linter", "Lint", "run", ["a", "bb"], out=dict[str, int])

        for run in testing.interrupted(handler, children={"linter/Lint/run": lint}):
            assert run.result == {"a": 1, "bb": 2}
            assert run.children == {"linter/Lint/run": 1}
            assert 7200 <= run.elapsed_s <= 7210

    def test_children_fail_as_callers_see_it(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> str:
            try:
                await ctx.call("linter", "Lint", "run")
            except OperationFailed as error:
                return f"{error.failure['message']} {error.operation_id[:2]}"
            return ""

        assert testing.run(handler, children={"linter/Lint/run": ValueError("broken")}).result == "broken 00"

    def test_an_uncaught_failure_of_a_child_is_the_parents(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> None:
            await ctx.call("linter", "Lint", "run")

        run = testing.run(handler, children={"linter/Lint/run": ValueError("broken")})
        assert run.state == "failed"
        assert run.failure is not None
        assert "broken" in run.failure

    def test_a_refusal_is_recorded(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> str:
            try:
                await ctx.call("nobody", "S", "o", 1)
            except mesh.CallRefused as error:
                await ctx.sleep(60)
                return error.kind
            return ""

        run = testing.run(handler, children={"nobody/S/o": NotFound("there is no endpoint 'nobody'")})
        assert run.result == "NotFound"
        assert run.attempts == 2
        assert run.journal[0]["error"]["type"] == "NotFound"

    def test_another_input_under_an_old_name_is_explained(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> Any:
            return await ctx.call("e", "S", "o", {"attempt": ctx.attempt})

        with pytest.raises(Exception, match=r"a call of e/S/o\({\"attempt\":1}\); the code now asks for"):
            testing.run(handler, children={"e/S/o": lambda _: sleep(60)})

    def test_many_children_at_once_by_plain_asyncio(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> list[int]:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ctx.call("e", "S", "o", n, name=f"part-{n}")) for n in range(20)]
            return [task.result() for task in tasks]

        async def child(n: int) -> int:
            await sleep(60 * (n % 3))
            return n * n

        run = testing.run(handler, children={"e/S/o": child})
        assert run.result == [n * n for n in range(20)]
        assert run.children == {"e/S/o": 20}


class TestGather:
    def test_a_quorum_within_a_deadline_with_every_outcome(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> dict[str, Any]:
            gathered = await ctx.gather(
                {
                    "quick": ctx.step("ask", note, "quick"),
                    "slow": ctx.step("ask", note, "slow", after_s=3),
                    "bad": ctx.step("ask", fail, "down", retry=mesh.Retry(attempts=1)),
                    "remote": ctx.call("e", "S", "o", 1),
                    "never": ctx.call("e", "S", "never"),
                },
                quorum=2,
                deadline_ms=800,
            )
            await ctx.sleep(60)
            return {
                "states": {name: source.state for name, source in gathered.items()},
                "results": gathered.require().results,
                "error": gathered["bad"].error,
            }

        async def remote(value: int) -> int:
            await sleep(0.5)
            return value + 1

        run = testing.run(handler, children={"e/S/o": remote, "e/S/never": lambda _: sleep(10_000)})
        assert run.result == {
            "states": {"quick": "succeeded", "slow": "late", "bad": "failed", "remote": "succeeded", "never": "late"},
            "results": {"quick": "quick", "remote": 2},
            "error": {"message": "step ask#3 failed: LookupError: down", "type": "StepFailed"},
        }
        assert effects == ["quick", ("interrupted", "slow")]
        assert run.canceled_children == 1
        assert run.elapsed_s == pytest.approx(60.5, abs=0.2)

    def test_the_deadline_counts_from_the_first_attempt_and_the_decision_stands(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> list[str]:
            gathered = await ctx.gather({n: ctx.call("e", "S", n) for n in "abc"}, deadline_ms=10_000)
            states = [source.state for source in gathered.values()]
            effects.append(states)
            await ctx.sleep(3600)
            return states

        children = {"e/S/a": lambda _: sleep(1), "e/S/b": lambda _: sleep(100), "e/S/c": ValueError("no")}
        for run in testing.interrupted(handler, children=children):
            assert run.result == ["succeeded", "late", "failed"], run.crash
            assert all(each == run.result for each in effects), "the same on every replay"
            effects.clear()

    def test_late_ones_can_be_kept(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> list[Any]:
            gathered = await ctx.gather(
                {
                    "a": ctx.step("a", note, "a"),
                    "b": ctx.step("b", note, "b", after_s=30),
                    "c": ctx.call("e", "S", "o"),
                },
                quorum=1,
                late="keep",
            )
            states = [source.state for source in gathered.values()]
            return [states, await gathered.late("b"), await gathered.late("c")]

        for run in testing.interrupted(
            handler,
            children={
                "e/S/o": lambda _: sleep(
                    7200,
                )
            },
        ):
            assert run.result == [["succeeded", "late", "late"], "b", None], run.crash
            assert run.canceled_children == 0

    def test_a_quorum_that_is_missed_tells_who_failed(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> None:
            once = mesh.Retry(attempts=1)
            sources = {n: ctx.step(n, fail, n, retry=once) for n in "ab"} | {"c": ctx.step("c", note, 1)}
            (await ctx.gather(sources, quorum=2)).require()

        run = testing.run(handler)
        assert run.failure == "1 of 2 needed answered; 2 failed (a, b)"

    def test_sources_that_are_functions_have_names_of_their_own(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> dict[str, Any]:
            async def source(n: str, after_s: float) -> list[Any]:
                return [await ctx.step("ask", note, n, after_s=after_s), await ctx.step("rank", note, n + n)]

            gathered = await ctx.gather(
                {n: (lambda n=n, s=s: source(n, s)) for n, s in {"a": 50, "b": 1, "c": 2}.items()}, quorum=2
            )
            await ctx.sleep(60)
            return gathered.results

        for run in testing.interrupted(handler):
            assert run.result == {"b": ["b", "bb"], "c": ["c", "cc"]}, run.crash
            assert "gather#1/b/rank#1" in run.steps

    def test_plain_handlers_gather_functions(self) -> None:
        @mesh.durable
        def handler(ctx: mesh.SyncContext) -> dict[str, Any]:
            sources = {n: (lambda n=n: ctx.step("ask", note, n)) for n in "abc"}
            gathered = ctx.gather(sources)
            ctx.sleep(60)
            return gathered.results

        assert testing.run(handler).result == {"a": "a", "b": "b", "c": "c"}

    def test_what_cannot_be_asked_for_is_refused(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> None:
            await ctx.gather({"a": ctx.step("a", note, 1)}, quorum=2)

        with pytest.raises(ConfigError, match="a quorum of 2 cannot be had from 1"):
            testing.run(handler)


class TestCancel:
    def test_cleanup_runs_last_first_and_the_children_end(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> None:
            for name in ("flight", "car"):
                await ctx.step(name, note, name)
                ctx.on_cancel(f"undo-{name}", note, f"undo {name}")
            await ctx.call("e", "S", "o")

        for run in testing.interrupted(
            handler, children={"e/S/o": lambda _: sleep(10_000)}, cancel_after_s=100, same=False
        ):
            assert run.state == "canceled", run.crash
            assert run.canceled_children >= 1
            undone = [each for each in effects if str(each).startswith("undo")]
            assert list(dict.fromkeys(undone)) == ["undo car", "undo flight"]
            assert len(undone) <= 3
            effects.clear()

    def test_a_running_step_is_interrupted_and_ends_before_others_clean_up(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> None:
            try:
                await ctx.step("long", note, "long", after_s=1000)
            except mesh.CancelRequested:
                await ctx.step("sweep", note, "sweep")
                raise

        run = testing.run(handler, cancel_after_s=10)
        assert run.state == "canceled"
        assert effects == [("interrupted", "long"), "sweep"]

    def test_a_handler_may_end_otherwise(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> str:
            try:
                await ctx.sleep(1000)
            except mesh.CancelRequested:
                return "half of it"
            return "all of it"

        run = testing.run(handler, cancel_after_s=10)
        assert (run.state, run.result) == ("succeeded", "half of it")
        assert run.elapsed_s == pytest.approx(10, abs=0.1)

    def test_a_group_of_tasks_is_canceled_as_one(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> None:
            ctx.on_cancel("sweep", note, "sweep")
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.sleep(1000))
                group.create_task(ctx.step("long", note, "long", after_s=1000))

        run = testing.run(handler, cancel_after_s=10)
        assert run.state == "canceled"
        assert effects == [("interrupted", "long"), "sweep"]

    def test_a_gather_is_canceled_with_its_sources(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> None:
            await ctx.gather({"a": ctx.call("e", "S", "o"), "b": ctx.step("b", note, "b", after_s=500)}, quorum=2)

        run = testing.run(handler, children={"e/S/o": lambda _: sleep(10_000)}, cancel_after_s=10)
        assert run.state == "canceled"
        assert effects == [("interrupted", "b")]
        assert run.canceled_children >= 1

    def test_a_child_that_is_to_stay_stays(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> None:
            await ctx.call("e", "S", "o", parent_close="keep")

        run = testing.run(handler, children={"e/S/o": lambda _: sleep(1000)}, cancel_after_s=10)
        assert (run.state, run.canceled_children) == ("canceled", 0)
