"""Durable handlers behind a real gateway: what the kit proves, over HTTP, and what only the mesh can do (P220-P232)."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

import mesh
from mesh.clock import monotonic_s, sleep
from tests.agents.serving import until
from tests.agents.test_real_gateway import Dev
from tests.durable.conftest import Host

effects: list[Any] = []


@pytest.fixture(autouse=True)
def no_effects() -> None:
    effects.clear()


class Job(BaseModel):
    name: str
    parts: int = 3


async def square(n: int, key: str) -> int:
    effects.append(key)
    return n * n


def journal(dev: Dev, operation_id: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = httpx.get(
        f"{dev.url}/v1/operations/{operation_id}/events", params={"limit": 1000}, trust_env=False
    ).json()["items"]
    return items


def test_steps_sleeps_children_and_gathers(dev: Dev, client: mesh.SyncClient, host: Host, mode: str) -> None:
    @mesh.durable
    async def review(ctx: mesh.Context, job: Job) -> dict[str, Any]:
        """Review all parts."""
        squares = [await ctx.step("square", square, n) for n in range(job.parts)]
        await ctx.progress("squared", percent=50)
        await ctx.sleep(0.5)
        child = await ctx.call(f"maker-{mode}", f"maker-{mode}", "double", 21, out=int)
        gathered = await ctx.gather(
            {
                "quick": ctx.call(f"maker-{mode}", f"maker-{mode}", "double", 1),
                "slow": ctx.call(f"maker-{mode}", f"maker-{mode}", "slow", name="slow"),
                "local": ctx.step("square", square, 9),
            },
            quorum=2,
            deadline_ms=10_000,
        )
        return {
            "squares": squares,
            "child": child,
            "sources": {name: source.state for name, source in gathered.items()},
            "attempt": ctx.attempt,
        }

    async def double(n: int) -> int:
        await sleep(0.3)
        return 2 * n

    async def slow() -> None:
        await sleep(60)

    agent = host(f"maker-{mode}", [review, double, slow])
    handle = client.start(f"maker-{mode}", f"maker-{mode}", "review", Job(name="a"))
    result = handle.result(timeout_s=20)
    assert result["squares"] == [0, 1, 4]
    assert result["child"] == 42
    assert result["sources"] == {"quick": "succeeded", "slow": "late", "local": "succeeded"}
    assert result["attempt"] > 2
    assert effects == [f"{handle.id}.1/square#{n}" for n in range(1, 5)], "each once, over several attempts"
    # The late child is canceled; the caller's record has the whole tree.
    children = httpx.get(f"{dev.url}/v1/operations", params={"parent": handle.id}, trust_env=False)
    if children.status_code == 200:
        until(lambda: all(each["state"] != "started" for each in children.json()["items"]), 10)
    until(lambda: not agent._work.runs.live, 10)


def test_a_suspended_operation_leaves_nothing_in_the_agent(client: mesh.SyncClient, host: Host, mode: str) -> None:
    @mesh.durable
    async def wait(ctx: mesh.Context, seconds: float) -> str:
        await ctx.step("begin", square, 1)
        await ctx.sleep(seconds)
        return "done"

    agent = host(f"waiter-{mode}", [wait])
    handles = [client.start(f"waiter-{mode}", f"waiter-{mode}", "wait", 2.0) for _ in range(20)]
    until(lambda: len(effects) == 20)
    until(lambda: not agent._work.runs.live)
    assert not agent._work._hosting._attempts
    assert not agent._work.leases._held
    assert [handle.result(timeout_s=20) for handle in handles] == ["done"] * 20
    assert len(effects) == 20


def test_a_cancel_wakes_a_sleeper_and_its_cleanup_runs(client: mesh.SyncClient, host: Host, mode: str) -> None:
    @mesh.durable
    async def hold(ctx: mesh.Context) -> None:
        await ctx.step("take", effects.append, "taken")
        ctx.on_cancel("release", effects.append, "released")
        await ctx.sleep(3600)

    agent = host(f"holder-{mode}", [hold])
    handle = client.start(f"holder-{mode}", f"holder-{mode}", "hold")
    until(lambda: effects and not agent._work.runs.live, 10)
    handle.cancel()
    with pytest.raises(mesh.OperationCanceled):
        handle.result(timeout_s=10)
    assert effects == ["taken", "released"]


def test_a_cancel_interrupts_a_running_step(client: mesh.SyncClient, host: Host, mode: str) -> None:
    async def long() -> None:
        effects.append("began")
        try:
            await sleep(60)
        finally:
            effects.append("ended")

    @mesh.durable
    async def work(ctx: mesh.Context) -> None:
        try:
            await ctx.step("long", long)
        except mesh.CancelRequested:
            await ctx.step("sweep", effects.append, "swept")
            raise

    host(f"worker-{mode}", [work])
    handle = client.start(f"worker-{mode}", f"worker-{mode}", "work")
    until(lambda: effects, 10)
    handle.cancel()
    with pytest.raises(mesh.OperationCanceled):
        handle.result(timeout_s=10)
    assert effects == ["began", "ended", "swept"]


def test_a_failed_step_fails_the_operation_with_its_story(client: mesh.SyncClient, host: Host, mode: str) -> None:
    def broken() -> None:
        message = "no such repository"
        raise FileNotFoundError(message)

    @mesh.durable
    def clone(ctx: mesh.SyncContext) -> None:
        ctx.step("clone", broken, retry=mesh.Retry(attempts=2, initial_ms=10))

    host(f"cloner-{mode}", [clone])
    with pytest.raises(mesh.OperationFailed, match="step clone#1 failed after 2 tries: FileNotFoundError: no such"):
        client.call(f"cloner-{mode}", f"cloner-{mode}", "clone", timeout_s=10)


def test_what_journals_nothing_answers_at_once(client: mesh.SyncClient, host: Host, mode: str) -> None:
    @mesh.durable
    async def quick(ctx: mesh.Context, n: int) -> int:
        return n + 1

    host(f"quick-{mode}", [quick])
    handle = client.start(f"quick-{mode}", f"quick-{mode}", "quick", 1, wait_s=5)
    assert handle.record["state"] == "succeeded"
    begun = "started" if mode == "pull" else "dispatched"
    assert [event.type for event in handle.watch()] == ["accepted", begun, "succeeded"]


def test_an_agent_that_leaves_hands_its_work_over_at_once(client: mesh.SyncClient, host: Host, mode: str) -> None:
    """P268."""
    there = threading.Event()

    @mesh.durable
    async def parts(ctx: mesh.Context, count: int) -> list[int]:
        return [await ctx.step("part", part, n) for n in range(count)]

    async def part(n: int, key: str) -> int:
        effects.append(key)
        there.set()
        await sleep(0.2)
        return n

    # A long lease: whoever takes over did not wait for its end.
    first = host(f"parts-{mode}", [parts], lease_ms=60_000, drain_s=5)
    handle = client.start(f"parts-{mode}", f"parts-{mode}", "parts", 8)
    assert there.wait(30)
    host(f"parts-{mode}", [parts], lease_ms=60_000)
    began_s = monotonic_s()
    host.stop(first)
    assert handle.result(timeout_s=20) == list(range(8))
    assert monotonic_s() - began_s < 40
    assert len(effects) == len(set(effects)) == 8, "not one step ran twice"


def test_ten_thousand_steps_replay_in_pages(client: mesh.SyncClient, host: Host, mode: str) -> None:
    @mesh.durable
    async def many(ctx: mesh.Context, count: int) -> int:
        total = 0
        for n in range(0, count, 100):

            async def one(at: int) -> int:
                return at

            gathered = await ctx.gather({str(at): ctx.step("one", one, at) for at in range(n, n + 100)})
            total += sum(gathered.results.values())
        await ctx.sleep(1)
        return total

    host(f"many-{mode}", [many])
    assert client.call(f"many-{mode}", f"many-{mode}", "many", 10_000, timeout_s=60) == sum(range(10_000))


def test_a_bug_is_retried_by_the_endpoints_policy_and_its_message_is_there_to_read(
    client: mesh.SyncClient, host: Host, mode: str
) -> None:
    """P288: an attempt that failed after its 201; the journal stays, and so what is in it."""

    @mesh.durable
    async def fetch(ctx: mesh.Context) -> str:
        said = await ctx.step("fetch", str.upper, "old")
        if ctx.attempt == 1:
            raise ZeroDivisionError
        return said

    host(f"fetcher-{mode}", [fetch], policy={"retry": {"initial_ms": 200, "max_attempts": 5}}, lease_ms=60_000)
    handle = client.start(f"fetcher-{mode}", f"fetcher-{mode}", "fetch")
    assert handle.result(timeout_s=20) == "OLD"
    events = [event.data for event in handle.watch() if event.type == "attempt_failed"]
    assert len(events) == 1
    assert "the handler raised ZeroDivisionError; the agent's log has the rest" in str(events)


def test_code_that_no_longer_fits_its_journal_ends_the_operation_at_once(
    client: mesh.SyncClient, host: Host, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    version = iter(["old", "new", "old"])

    @mesh.durable
    async def fetch(ctx: mesh.Context) -> str:
        said = await ctx.step("fetch", str.upper, next(version))
        if ctx.attempt == 1:
            raise ZeroDivisionError
        return said

    host(f"changed-{mode}", [fetch], policy={"retry": {"initial_ms": 200, "max_attempts": 20}}, lease_ms=60_000)
    handle = client.start(f"changed-{mode}", f"changed-{mode}", "fetch")
    with pytest.raises(mesh.OperationFailed, match=r'the code now asks for a step\("new"\)'):
        handle.result(timeout_s=20)
    assert 'the code now asks for a step("new")' in caplog.text, "the agent's log has it too"
    assert next(version) == "old", "there was no third attempt"


def test_a_result_that_is_not_of_the_type_ends_the_operation_at_once(
    client: mesh.SyncClient, host: Host, mode: str
) -> None:
    attempts: list[int] = []

    @mesh.durable
    async def count(ctx: mesh.Context) -> int:
        attempts.append(ctx.attempt)
        await ctx.step("one", int)
        return "many"  # type: ignore[return-value]

    host(f"counter-{mode}", [count], policy={"retry": {"initial_ms": 200, "max_attempts": 20}})
    handle = client.start(f"counter-{mode}", f"counter-{mode}", "count")
    with pytest.raises(mesh.OperationFailed, match=rf"the result of counter-{mode}/count is not the declared int"):
        handle.result(timeout_s=20)
    assert attempts == [1]


def test_what_the_code_no_longer_asks_for_is_shown(client: mesh.SyncClient, host: Host, mode: str) -> None:
    @mesh.durable
    async def page(ctx: mesh.Context) -> str:
        said = await ctx.step("old" if ctx.attempt == 1 else "new", str.upper, "a")
        if ctx.attempt == 1:
            raise ZeroDivisionError
        return said

    host(f"pager-{mode}", [page], policy={"retry": {"initial_ms": 100}}, lease_ms=60_000)
    handle = client.start(f"pager-{mode}", f"pager-{mode}", "page")
    assert handle.result(timeout_s=20) == "A"
    assert "renamed or removed since): old#1" in str([event.data for event in handle.watch()])


def test_a_stream_is_followed_while_it_is_written(client: mesh.SyncClient, host: Host, mode: str) -> None:
    """P241, through the client: chunks with their source, from a cursor on, until the operation is over."""

    @mesh.durable
    async def write(ctx: mesh.Context, words: list[str]) -> int:
        await ctx.emit({"title": "story"})

        async def tell() -> int:
            for word in words:
                await ctx.emit(word)
                await sleep(0.01)
            return len(words)

        count = await ctx.step("tell", tell)
        await ctx.sleep(0.5)
        await ctx.emit("end")
        return count

    host(f"writer-{mode}", [write])
    words = [f"word {n}" for n in range(20)]
    handle = client.start(f"writer-{mode}", f"writer-{mode}", "write", words)
    chunks = list(handle.stream())
    assert [chunk.data for chunk in chunks] == [{"title": "story"}, *words, "end"]
    assert [(chunk.source, chunk.n) for chunk in chunks[:3]] == [("", 1), ("tell#1", 1), ("tell#1", 2)]
    assert (chunks[-1].source, chunks[-1].n, chunks[-1].attempt) == ("", 2, 2)
    assert [chunk.seq for chunk in handle.stream(after=20)] == [21, 22]
    assert handle.result(timeout_s=10) == 20
