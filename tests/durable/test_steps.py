"""Durable handlers by the test kit: steps, time, chance, words to watchers; and what an interruption may repeat.

Rules P260, P261, P262, P263, P264, P269 and P270 of specs/protocol.md.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
from nexusrpc import HandlerError, HandlerErrorType, OperationError, OperationErrorState
from pydantic import BaseModel

import mesh
from mesh import testing
from mesh.agent.durable.link import Ack
from mesh.agent.durable.steps import DEFAULT
from mesh.clock import pause, sleep
from mesh.errors import ConfigError
from mesh.testing.memory import MemoryLink

effects: list[Any] = []


@pytest.fixture(autouse=True)
def no_effects() -> None:
    effects.clear()


class Job(BaseModel):
    name: str
    parts: int = 3


@dataclass
class Part:
    number: int
    text: str


class Report(BaseModel):
    parts: list[Part]
    keys: list[str]


async def build(job: Job, number: int, key: str) -> Part:
    effects.append(key)
    await sleep(1)
    return Part(number, f"{job.name}-{number}")


def seal(parts: list[Part], *, key: str) -> str:
    effects.append(key)
    return f"{threading.current_thread() is threading.main_thread()} {len(parts)}"


@mesh.durable
async def make(ctx: mesh.Context, job: Job) -> Report:
    parts = [await ctx.step("build", build, job, number) for number in range(job.parts)]
    await ctx.sleep(3 * 86_400)
    seal_of = await ctx.step("seal", seal, parts)
    return Report(parts=parts, keys=[seal_of])


class TestOnce:
    def test_results_keep_their_types_and_a_long_sleep_costs_nothing(self) -> None:
        run = testing.run(make, Job(name="a"))
        assert run.result == Report(parts=[Part(n, f"a-{n}") for n in range(3)], keys=["False 3"])
        assert run.steps == ["build#1", "build#2", "build#3", "seal#1"]
        assert run.attempts == 2, "one before the sleep, one after"
        assert run.elapsed_s == pytest.approx(3 * 86_400 + 3, abs=1)
        assert run.executions == {"build#1": 1, "build#2": 1, "build#3": 1, "seal#1": 1}

    def test_whatever_is_interrupted_only_the_step_in_flight_repeats_with_its_key(self) -> None:
        moments: list[str | None] = []
        for run in testing.interrupted(make, Job(name="a")):
            repeated = [key for key in effects if effects.count(key) > 1]
            assert len(set(repeated)) <= 1, run.crash
            assert len(set(effects)) == 4, "the same keys as ever, but for the operation"
            effects.clear()
            moments.append(run.crash)
        assert moments[:4] == [
            None, "in the middle of build#1", "before recording step build#1", "after recording step build#1",
        ]  # fmt: skip
        assert "after suspending" in moments
        assert len(moments) == 1 + 4 * 3 + 3 * 2

    def test_keys_are_those_of_the_operation(self) -> None:
        testing.run(make, Job(name="a"))
        operation, _, key = effects[0].partition("/")
        assert operation.endswith(".1")
        assert [each.partition("/")[2] for each in effects] == [key, "build#2", "build#3", "seal#1"]

    def test_what_a_step_gives_is_what_the_journal_has(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> str:
            value = await ctx.step("pair", lambda: (1, 2))
            return type(value).__name__

        assert testing.run(handler).result == "list", "on the first run as on every replay"

    def test_a_type_can_be_given_where_annotations_do_not(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> str:
            return (await ctx.step("part", lambda: {"number": 1, "text": "x"}, out=Part)).text

        assert testing.run(handler).result == "x"

    def test_a_result_that_is_not_of_the_type_fails_the_step(self) -> None:
        async def wrong() -> int:
            return "no number"  # type: ignore[return-value]

        @mesh.durable
        async def handler(ctx: mesh.Context) -> int:
            return await ctx.step("wrong", wrong)

        run = testing.run(handler)
        assert run.state == "failed"
        assert run.executions == {"wrong#1": 1}, "it would not be one the next time either"


class TestTries:
    def test_a_step_is_tried_again_and_its_failures_are_in_the_journal(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> str:
            return await ctx.step("flaky", flaky, retry=mesh.Retry(attempts=4, initial_ms=60_000, jitter=0))

        def flaky(key: str) -> str:
            effects.append(key)
            if len(effects) < 3:
                message = f"not yet {len(effects)}"
                raise ValueError(message)
            return "done"

        run = testing.run(handler)
        assert run.result == "done"
        assert [(each["kind"], each["tries"]) for each in run.journal] == [("try", 1), ("try", 2), ("step", 3)]
        assert run.journal[0]["error"] == {"message": "not yet 1", "type": "ValueError", "retryable": True}
        assert len(set(effects)) == 1, "every try has the same key"
        assert run.elapsed_s == pytest.approx(120, abs=1)
        assert run.attempts == 3, "nothing is held between tries"

    def test_a_crash_does_not_begin_the_tries_anew(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> str:
            try:
                return await ctx.step("bad", bad, retry=mesh.Retry(attempts=3, initial_ms=1000))
            except mesh.StepFailed as error:
                return f"{error.kind} {error.message} {error.tries}"

        def bad() -> str:
            effects.append(1)
            message = "never"
            raise KeyError(message)

        for run in testing.interrupted(handler):
            assert run.result == "KeyError 'never' 3"
            assert 3 <= len(effects) <= 4
            effects.clear()

    @pytest.mark.parametrize(
        "error",
        [
            OperationError("no", state=OperationErrorState.FAILED),
            HandlerError("no", type=HandlerErrorType.BAD_REQUEST),
            LookupError("no"),
        ],
    )
    def test_some_errors_are_not_worth_repeating(self, error: Exception) -> None:
        async def refuse() -> None:
            raise error

        @mesh.durable
        async def handler(ctx: mesh.Context) -> None:
            await ctx.step("refuse", refuse, retry=mesh.Retry(fatal=(LookupError,)))

        run = testing.run(handler)
        assert run.state == "failed"
        assert run.executions == {"refuse#1": 1}
        assert run.failure is not None
        assert "step refuse#1 failed" in run.failure

    def test_a_try_has_its_time(self) -> None:
        async def slow() -> None:
            try:
                await sleep(60)
            except asyncio.CancelledError:
                effects.append("interrupted")
                raise

        @mesh.durable
        async def handler(ctx: mesh.Context) -> str:
            try:
                await ctx.step("slow", slow, timeout_ms=1000, retry=mesh.Retry(attempts=2))
            except mesh.StepFailed as error:
                return error.kind
            return ""

        run = testing.run(handler)
        assert run.result == "StepTimedOut"
        assert effects == ["interrupted", "interrupted"]

    def test_the_default_is_three_tries(self) -> None:
        assert (DEFAULT.attempts, DEFAULT.initial_ms) == (3, 200)
        with pytest.raises(ConfigError):
            mesh.Retry(attempts=0)


class TestBounds:
    def test_a_full_journal_fails_the_operation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stored = MemoryLink._stored

        def full(link: MemoryLink, into: list[bytes], at: int, more: Any) -> Ack:
            return stored(link, into, at, more) if at < 3 else Ack("full", at, detail="the journal is full")

        monkeypatch.setattr(MemoryLink, "_stored", full)

        @mesh.durable
        async def handler(ctx: mesh.Context) -> None:
            for n in range(10):
                await ctx.step("step", len, "x" * n)

        run = testing.run(handler)
        assert (run.state, run.failure) == ("failed", "the journal is full")
        assert len(run.steps) == 3

    def test_a_chunk_has_a_bound(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> None:
            await ctx.emit("x" * (64 << 10))

        run = testing.run(handler)
        assert run.failure is not None
        assert "chunk" in run.failure


class TestValues:
    def test_time_and_chance_are_drawn_once(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> list[str]:
            first = [str(await ctx.now()), str(await ctx.random()), str(await ctx.uuid()), str(await ctx.uuid())]
            effects.append(first)
            await ctx.sleep(60)
            return first

        run = testing.run(handler)
        assert len(effects) == 2
        assert effects[0] == effects[1] == run.result
        assert run.result[2] != run.result[3]
        assert datetime.fromisoformat(run.result[0]).year == 2030
        assert 0 <= float(run.result[1]) < 1


class TestWords:
    def test_progress_is_told_once_per_place_in_the_code(self) -> None:
        async def work(ctx: mesh.Context) -> None:
            await ctx.progress("inside", percent=50)

        @mesh.durable
        async def handler(ctx: mesh.Context) -> None:
            await ctx.progress("before")
            await ctx.step("work", work, ctx)
            await ctx.sleep(60)
            await ctx.progress("after", data={"n": 1})

        run = testing.run(handler)
        told = [(each.get("message"), each.get("step"), each.get("data")) for each in run.journal if
                each["kind"] == "progress"]  # fmt: skip
        assert told == [("before", None, None), ("inside", "work#1", None), ("after", None, {"n": 1})]

    def test_chunks_are_stored_before_what_follows_them_and_a_replay_emits_none_again(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> None:
            for word in ("a", "b"):
                await ctx.emit({"word": word})
            await ctx.step("think", think, ctx)
            await ctx.emit("c")
            await ctx.sleep(60)
            await ctx.emit("d")

        async def think(ctx: mesh.Context) -> None:
            for token in range(3):
                await ctx.emit(token)

        for run in testing.interrupted(handler):
            assert read_stream(run.chunks) == {"": [{"word": "a"}, {"word": "b"}, "c", "d"], "think#1": [0, 1, 2]}
            assert 7 <= len(run.chunks) <= 12, f"what came after the last entry may come again: {run.crash}"

    def test_a_step_that_says_something_else_the_second_time_replaces_its_chunks(self) -> None:
        tokens = iter([["a", "b"], ["a", "x", "y"]])

        async def think(ctx: mesh.Context) -> None:
            for token in next(tokens):
                await ctx.emit(token)
            await sleep(1)

        @mesh.durable
        async def handler(ctx: mesh.Context) -> None:
            await ctx.step("think", think, ctx)

        run = testing.run(handler, crash_at=5)
        assert run.attempts == 2
        assert [(each["data"], each["n"]) for each in run.chunks] == [("a", 1), ("b", 2), ("a", 1), ("x", 2), ("y", 3)]
        assert read_stream(run.chunks) == {"think#1": ["a", "x", "y"]}


def read_stream(chunks: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """As a reader does: a chunk replaces what its source sent from `n` on."""
    sources: dict[str, list[Any]] = {}
    for chunk in chunks:
        said = sources.setdefault(chunk["source"], [])
        del said[chunk["n"] - 1 :]
        said.append(chunk["data"])
    return sources


class TestCodeThatChanges:
    def test_new_arguments_under_an_old_name_are_explained(self) -> None:
        version = iter(["old", "new"])

        @mesh.durable
        async def handler(ctx: mesh.Context) -> None:
            await ctx.step("fetch", effects.append, next(version))
            await ctx.sleep(60)

        told = r'fetch#1: the journal has a step\("old"\).*now asks.*step\("new"\).*ctx\.random\(\)/ctx\.now\(\)'
        with pytest.raises(mesh.JournalMismatch, match=told):  # what it means to the mesh: test_mesh.py
            testing.run(handler)
        assert effects == ["old"]

    def test_removed_and_added_steps_and_another_order_are_fine(self, caplog: pytest.LogCaptureFixture) -> None:
        attempts: list[int] = []

        @mesh.durable
        async def handler(ctx: mesh.Context) -> list[int]:
            attempts.append(ctx.attempt)
            names = ["a", "b", "c"] if ctx.attempt == 1 else ["c", "a", "d"]
            found = [await ctx.step(name, lambda: len(effects)) for name in names]
            if ctx.attempt == 1:
                await ctx.sleep(60)
            return found

        run = testing.run(handler)
        assert run.steps == ["a#1", "b#1", "c#1", "d#1"]
        assert attempts == [1, 2]
        told = "recorded, but the code no longer asks for it (renamed or removed since): b#1"
        assert [told in line for line in caplog.messages if "b#1" in line] == [True]

    def test_the_name_alone_decides_where_the_author_says_so(self) -> None:
        version = iter(["old", "new"])

        @mesh.durable
        async def handler(ctx: mesh.Context) -> str:
            said = await ctx.step("say", str.upper, next(version), match="name")
            await ctx.sleep(60)
            return said

        assert testing.run(handler).result == "OLD"


class TestAuthorsMistakes:
    def test_a_step_inside_a_step_is_refused(self) -> None:
        async def outer(ctx: mesh.Context) -> None:
            await ctx.step("inner", len, "x")

        @mesh.durable
        async def handler(ctx: mesh.Context) -> None:
            await ctx.step("outer", outer, ctx, retry=mesh.Retry(attempts=1))

        run = testing.run(handler)
        assert run.failure is not None
        assert "inside a step there are no steps" in run.failure

    def test_a_broad_except_does_not_swallow_a_suspension(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> str:
            try:
                await ctx.sleep(60)
            except Exception:  # noqa: BLE001 - what it is about
                effects.append("swallowed")
            finally:
                effects.append("finally")
            return "done"

        run = testing.run(handler)
        assert run.result == "done"
        assert effects == ["finally", "finally"], "once when suspended, once when over"

    def test_code_that_swallows_even_that_gets_nothing_more_done(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> str:
            try:
                await ctx.sleep(60)
            except BaseException:  # noqa: BLE001 - what it is about
                effects.append(ctx.attempt)
                await ctx.step("never", effects.append, "never")
            return "done"

        run = testing.run(handler)
        assert run.result == "done"
        assert effects == [1]

    def test_the_key_is_for_steps(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> str:
            with pytest.raises(LookupError, match="for the function of a step"):
                _ = ctx.key
            return await ctx.step("name", lambda: ctx.key.partition("/")[2])

        assert testing.run(handler).result == "name#1"

    def test_a_bug_raises_in_the_test(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            testing.run(handler)

    def test_the_first_parameter_is_the_context(self) -> None:
        async def one_input(job: str) -> None: ...
        async def unnamed(job) -> None: ...  # type: ignore[no-untyped-def] # noqa: ANN001
        async def none() -> None: ...
        async def behind(job: str, ctx: mesh.Context) -> None: ...
        async def star(*ctx: Any) -> None: ...

        for wrong in (one_input, unnamed, none, behind, star):
            with pytest.raises(ConfigError, match=rf"{wrong.__name__}: .*first parameter is ctx: mesh\.Context, not"):
                mesh.durable(wrong)

        def plain(job: str) -> None: ...

        with pytest.raises(ConfigError, match=r"ctx: mesh\.SyncContext, not job: "):
            mesh.durable(plain)

    def test_what_is_never_awaited_is_told(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> int:
            await ctx.gather({"a": ctx.step("a", effects.append, 1), "b": ctx.sleep(1)}, quorum=1)
            ctx.step("charge", effects.append, 2)  # type: ignore[unused-coroutine] # noqa: RUF100
            ctx.call("x", "S", "op")  # type: ignore[unused-coroutine] # noqa: RUF100
            return 1

        told = r'without awaiting step charge#1, call S\.op#1, which .*: write `await ctx\.step\("charge", \.\.\.\)`'
        with pytest.raises(ConfigError, match=told):
            testing.run(handler)
        assert effects == [1]

    def test_what_is_not_durable_is_told(self) -> None:
        with pytest.raises(ConfigError, match="decorate it"):
            testing.run(len)
        with pytest.raises(ConfigError, match=r"takes a mesh\.Context"):

            @mesh.durable
            async def wrong(ctx: mesh.SyncContext) -> None: ...

        with pytest.raises(ConfigError, match="at most one input"):

            @mesh.durable
            async def two(ctx: mesh.Context, a: int, b: int) -> None: ...


class TestPlainFunctions:
    def test_a_def_handler_blocks_where_async_ones_wait(self) -> None:
        @mesh.durable
        def handler(ctx: mesh.SyncContext, job: Job) -> Report:
            parts = [ctx.step("build", build, job, number) for number in range(job.parts)]
            ctx.progress("built")
            ctx.sleep(3600)
            assert ctx.uuid().version == 4
            ctx.emit("sealing")
            return Report(parts=parts, keys=[ctx.step("seal", seal, parts)])

        for run in testing.interrupted(handler, Job(name="a", parts=2)):
            assert run.result.keys == ["False 2"]
            assert len(set(effects)) == 3
            effects.clear()

    def test_a_def_step_emits_through_the_sync_form(self) -> None:
        @mesh.durable
        async def handler(ctx: mesh.Context) -> None:
            await ctx.step("talk", talk, ctx)

        def talk(ctx: mesh.Context) -> None:
            for word in "ab":
                ctx.sync.emit(word)

        assert [each["data"] for each in testing.run(handler).chunks] == ["a", "b"]

    def test_methods_of_a_service_are_handlers_too(self) -> None:
        class Shop:
            def __init__(self) -> None:
                self.name = "shop"

            @mesh.durable
            async def order(self, ctx: mesh.Context, count: int) -> str:
                return await ctx.step("name", lambda: self.name * count)

        assert testing.run(Shop().order, 2).result == "shopshop"


def test_many_steps_replay_in_pages() -> None:
    @mesh.durable
    async def handler(ctx: mesh.Context) -> int:
        total = 0
        for number in range(2500):
            total += await ctx.step("add", lambda n: n, number)
        await ctx.sleep(60)
        return total

    run = testing.run(handler)
    assert run.result == sum(range(2500))
    assert run.attempts == 2
    assert sum(run.executions.values()) == 2500


async def test_the_kit_runs_inside_of_a_running_loop_too() -> None:
    assert testing.run(make, Job(name="a", parts=1)).state == "succeeded"


def test_a_handler_that_waits_for_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.testing.loop.STUCK_S", 0.1)

    @mesh.durable
    async def handler(ctx: mesh.Context) -> None:
        await asyncio.Event().wait()

    with pytest.raises(testing.Stuck):
        testing.run(handler)


def test_no_thread_of_a_lost_process_goes_on_beside_the_next_attempt() -> None:
    """P260: the kit's crash is a process's end, and what runs again has the files to itself."""

    def slow() -> None:
        effects.append("begins")
        pause(0.1)
        effects.append("ends")

    @mesh.durable
    async def handler(ctx: mesh.Context) -> None:
        await ctx.step("slow", slow)

    crashes = 0
    for run in testing.interrupted(handler):
        crashes += run.crash == "in the middle of slow#1"
        assert effects == ["begins", "ends"] * (len(effects) // 2), run.crash
        effects.clear()
    assert crashes == 1
