"""Schedules over HTTP, fired by real gateways (P370 to P377)."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import mesh
from mesh.client.schedules import ScheduleSpec
from mesh.clock import from_rfc3339, monotonic_s, now_ms, sleep, to_rfc3339
from mesh.errors import NotFound, PreconditionFailed, Unprocessable
from mesh.ids import PARTITION
from mesh.store.keys import Keys
from tests.surface.actors import Actor, Call, Reply, as_json, started
from tests.surface.checks import check_problem
from tests.surface.gateways import Caller, Gateway, fresh

EVERY_SECOND = "* * * * * *"
NIGHTLY = "30 2 * * *"
HOUR_MS = 3_600_000
TEN_MIN_MS = 600_000


class Schedules:
    """What a test says of schedules; those it made are gone after it."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.made: list[str] = []

    async def put(self, endpoint: str, cron: str = NIGHTLY, headers: Any = (), **fields: Any) -> str:
        name = fresh("nightly")
        operation = {"endpoint": endpoint, "service": "svc", "operation": "op"} | fields.pop("operation", {})
        answer = await self.ask("PUT", name, {"cron": cron, "operation": operation, **fields}, headers)
        assert answer.status == 201, answer
        self.made.append(name)
        return name

    async def ask(self, method: str, target: str, body: Any = b"", headers: Any = ()) -> Any:
        return await self.caller.ask(method, f"/v1/schedules/{target}", headers, body)

    async def get(self, name: str) -> Any:
        answer = await self.ask("GET", name)
        assert answer.status == 200, answer
        return answer.json

    async def runs(self, name: str) -> list[Any]:
        return (await self.ask("GET", f"{name}/runs")).json["items"]

    async def until(self, name: str, look: Callable[[Any], Any], within_s: float = 30.0) -> Any:
        """The record once `look` of it is true."""
        end_s = monotonic_s() + within_s
        while not look(record := await self.get(name)):
            assert monotonic_s() < end_s, record
            await sleep(0.05)
        return record


@pytest.fixture
async def schedules(caller: Caller) -> AsyncIterator[Schedules]:
    mine = Schedules(caller)
    yield mine
    for name in mine.made:
        await mine.ask("DELETE", name)


class TestDocuments:
    async def test_record_and_versions(self, schedules: Schedules, caller: Caller) -> None:
        """P370: created, equal, replaced under guard, listed, removed."""
        name = await schedules.put(await caller.register(None), timezone="Europe/Berlin", operation={"input": [1]})
        record = await schedules.get(name)
        assert (record["cron"], record["timezone"], record["overlap"]) == (NIGHTLY, "Europe/Berlin", "skip")
        assert record["operation"]["input"] == [1]
        assert len(record["upcoming"]) == 5
        assert now_ms() < from_rfc3339(record["next_at"]) < now_ms() + 26 * HOUR_MS
        body = {"cron": NIGHTLY, "operation": record["operation"], "overlap": "allow"}
        stale = await schedules.ask("PUT", name, body, {"if-match": '"v9"'})
        check_problem(stale, 412, "precondition_failed")
        assert (await schedules.ask("PUT", name, body, {"if-none-match": "*"})).status == 412
        fresh_ = await schedules.ask("PUT", name, body, {"if-match": '"v1"'})
        assert (fresh_.status, fresh_["etag"], fresh_.json["overlap"]) == (200, '"v2"', "allow")
        page = (await caller.get("/v1/schedules?limit=200")).json
        assert name in [one["name"] for one in page["items"]]
        assert (await schedules.ask("DELETE", name)).status == 204
        check_problem(await schedules.ask("GET", name), 404, "unknown_schedule")

    @pytest.mark.parametrize(
        ("change", "pointer"),
        [
            ({"cron": "61 * * * *"}, "/cron"),
            ({"timezone": "Mars/Olympus"}, "/timezone"),
            ({"overlap": "both"}, "/overlap"),
            ({"catch_up_ms": 1}, "/catch_up_ms"),
            ({"jitter_ms": HOUR_MS + 1}, "/jitter_ms"),
            ({"every": 5}, ""),
            ({"operation": {"endpoint": "ee", "service": "s", "operation": "o", "delay_ms": 5}}, "/operation/delay_ms"),
            ({"operation": {"endpoint": "!", "service": "s", "operation": "o"}}, "/operation/endpoint"),
        ],
    )
    async def test_what_is_no_schedule(self, caller: Caller, change: dict[str, Any], pointer: str) -> None:
        """P370, P373: refused with its place, and nothing is kept."""
        operation = {"endpoint": "e-x", "service": "s", "operation": "o"}
        answer = await caller.ask("PUT", "/v1/schedules/bad", (), {"cron": NIGHTLY, "operation": operation} | change)
        check_problem(answer, 422, "body_invalid")
        assert answer.json["errors"][0]["pointer"] == pointer
        check_problem(await caller.get("/v1/schedules/bad"), 404, "unknown_schedule")

    async def test_what_no_start_would_take(self, caller: Caller) -> None:
        """P370."""
        body = {"cron": NIGHTLY, "operation": {"endpoint": "nobody-here", "service": "s", "operation": "o"}}
        check_problem(await caller.ask("PUT", "/v1/schedules/x", (), body), 404, "unknown_endpoint")
        check_problem(await caller.ask("PUT", "/v1/schedules/9x", (), body), 400, "name_invalid")

    async def test_other_namespaces(self, alpha: Caller, beta: Caller, teams: Gateway) -> None:
        """P370, P6: the same name is another schedule; who has no key sees none."""
        name = await Schedules(alpha).put(await alpha.register(None))
        for method, target in (("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("GET", "/runs")):
            answer = await beta.ask(method, f"/v1/schedules/{name}{target}")
            check_problem(answer, 404, "unknown_schedule")
        assert (await beta.get("/v1/schedules")).json["items"] == []
        check_problem(await Caller(teams).get("/v1/schedules"), 401, "key_missing")


class TestRuns:
    async def test_every_second(self, schedules: Schedules, caller: Caller, agent: Actor) -> None:
        """P371: ordinary operations with key and label, one for each time, none before it."""
        name = await schedules.put(await caller.register(agent.url), EVERY_SECOND, operation={"labels": {"a": "b"}})
        await schedules.until(name, lambda one: one["counts"]["started"] >= 2)
        paused = await schedules.ask("POST", f"{name}/pause")
        assert (paused.json["paused"], paused.json["next_at"], paused.json["upcoming"]) == (True, None, [])
        runs = await schedules.runs(name)
        times = [from_rfc3339(run["scheduled_at"]) for run in runs]
        assert times == sorted(times, reverse=True)
        assert len(set(times)) == len(runs)
        record = await schedules.get(name)
        for run, at in zip(runs, times, strict=True):
            operation = await caller.until(run["operation"]["id"], state="succeeded")
            assert operation["idempotency_key"] == f"{record['id']}.{at}"
            assert operation["labels"] == {"a": "b", "mesh.schedule": name}
            assert from_rfc3339(operation["created_at"]) >= at
        listed = (await caller.get(f"/v1/operations?label.mesh.schedule={name}")).json["items"]
        assert {one["id"] for one in listed} == {run["operation"]["id"] for run in runs}
        assert record["last_run"]["operation_id"] == runs[0]["operation"]["id"]
        # P377: what came meanwhile is not caught up with.
        assert record["counts"]["started"] == len(runs)
        while now_ms() <= times[0] + 1_000:
            await sleep(0.05)
        resumed_ms = now_ms()
        assert (await schedules.ask("POST", f"{name}/resume")).json["paused"] is False
        record = await schedules.until(name, lambda one: one["counts"]["started"] > len(runs))
        newer = [run for run in await schedules.runs(name) if from_rfc3339(run["scheduled_at"]) > times[0]]
        assert min(from_rfc3339(run["scheduled_at"]) for run in newer) > resumed_ms - 1_000

    async def test_overlap(self, schedules: Schedules, caller: Caller, agent: Actor) -> None:
        """P372: `skip` leaves the one that runs alone, `cancel_previous` asks it to end."""

        async def script(call: Call, _writer: object) -> Reply:
            return Reply(202) if call.is_cancel else started()

        agent.script = script
        name = await caller.register(agent.url)
        skips = await schedules.put(name, EVERY_SECOND)
        cancels = await schedules.put(name, EVERY_SECOND, overlap="cancel_previous", operation={"operation": "other"})
        record = await schedules.until(skips, lambda one: one["counts"]["skipped"] >= 1)
        assert (record["counts"]["started"], record["last_run"]["state"]) == (1, "started")
        await schedules.until(cancels, lambda one: one["counts"]["started"] >= 2)
        call = await agent.until(1, cancels=True)
        assert call.path == "/svc/other/cancel"

    async def test_a_refused_start_is_shown_and_passed_over(self, schedules: Schedules, caller: Caller) -> None:
        """P375: an endpoint that is gone; the schedule goes on and runs again when it is back."""
        endpoint = await caller.register(None)
        name = await schedules.put(endpoint, EVERY_SECOND)
        await caller.ask("DELETE", f"/v1/endpoints/{endpoint}")
        record = await schedules.until(name, lambda one: one["counts"]["failed"] >= 1)
        assert record["last_failure"]["code"] == "unknown_endpoint"
        await caller.ask("PUT", f"/v1/endpoints/{endpoint}", (), {"target": {"kind": "http"}})
        before = record["counts"]["started"]
        await schedules.until(name, lambda one: one["counts"]["started"] > before)

    async def test_backfill(self, schedules: Schedules, caller: Caller, agent: Actor) -> None:
        """P376: the times of a span, one after the other; asked for again they are the same operations."""
        agent.replies(as_json(1))
        name = await schedules.put(await caller.register(agent.url), "0 * * * *")
        until = now_ms() // HOUR_MS * HOUR_MS
        span = {"from": to_rfc3339(until - 2 * HOUR_MS), "until": to_rfc3339(until)}
        answer = await schedules.ask("POST", f"{name}/backfill", span)
        assert (answer.status, len(answer.json["times"])) == (202, 3)
        await schedules.until(name, lambda one: one["counts"]["started"] == 3 and not one["queued"])
        runs = await schedules.runs(name)
        assert [run["scheduled_at"] for run in runs] == answer.json["times"][::-1]
        ended = [await caller.until(run["operation"]["id"], state="succeeded") for run in runs]
        stamps = [from_rfc3339(one["created_at"]) for one in ended]
        assert stamps == sorted(stamps, reverse=True)
        await schedules.ask("POST", f"{name}/backfill", {**span, "overlap": "allow"})
        await schedules.until(name, lambda one: not one["queued"])
        assert len(await schedules.runs(name)) == 3
        for bad, pointer in (
            ({"from": "x", "until": span["until"]}, "/from"),
            ({"from": "0001-01-01T00:00:00Z", "until": span["until"]}, "/from"),
            ({"from": "1969-12-31T23:59:59+00:00", "until": span["until"]}, "/from"),
            ({"from": span["until"], "until": span["from"]}, "/until"),
            ({"from": span["from"], "until": to_rfc3339(now_ms() + HOUR_MS)}, "/until"),
        ):
            refused = await schedules.ask("POST", f"{name}/backfill", bad)
            check_problem(refused, 422, "body_invalid", pointer)
        long = {"from": to_rfc3339(until - 1_200 * HOUR_MS), "until": span["until"]}
        check_problem(await schedules.ask("POST", f"{name}/backfill", long), 429, "backfill_too_long")


async def test_the_asynchronous_client_has_all_verbs(caller: Caller, agent: Actor) -> None:
    """P378: the records of P370, and its refusals."""
    agent.replies(as_json(1))
    name, endpoint = fresh("nightly"), await caller.register(agent.url)
    spec: ScheduleSpec = {"cron": "0 * * * *", "operation": {"endpoint": endpoint, "service": "svc", "operation": "op"}}
    beside: ScheduleSpec = {**spec, "overlap": "allow"}
    never: ScheduleSpec = {**spec, "cron": "61 * * * *"}
    async with mesh.Client(caller.gateway.url()) as client:
        schedules = client.schedules
        made = await schedules.put(name, spec)
        assert (made["name"], made["cron"], made["overlap"]) == (name, spec["cron"], "skip")
        with pytest.raises(PreconditionFailed):
            await schedules.put(name, beside, etag='"v9"')
        assert (await schedules.put(name, beside, etag='"v1"'))["overlap"] == "allow"
        assert name in [one["name"] for one in (await schedules.list(limit=200))["items"]]
        assert (await schedules.pause(name))["paused"] is True
        assert (await schedules.resume(name))["next_at"] is not None
        until = now_ms() // HOUR_MS * HOUR_MS
        span = to_rfc3339(until - HOUR_MS), to_rfc3339(until)
        assert len((await schedules.backfill(name, *span, overlap="allow"))["times"]) == 2
        end_s = monotonic_s() + 20
        while len(runs := (await schedules.runs(name))["items"]) < 2:
            assert monotonic_s() < end_s, runs
            await sleep(0.05)
        assert {run["scheduled_at"] for run in runs} == set(span)
        await schedules.remove(name)
        with pytest.raises(NotFound):
            await schedules.get(name)
        with pytest.raises(Unprocessable) as refused:
            await schedules.put(name, never)
        assert refused.value.errors[0]["pointer"] == "/cron"


async def test_a_killed_gateway_loses_no_time(own_gateway: Callable[..., Gateway], agent: Actor) -> None:
    """P371, P375: killed in the middle and started anew, every second of the whole has its one run.

    Another schedule was fired by nobody for 3 h: what is within its hour is started in order, the rest passed over.
    """
    agent.replies(as_json(1))
    gateway = own_gateway()
    caller = Caller(gateway)
    schedules = Schedules(caller)
    endpoint = await caller.register(agent.url)
    name = await schedules.put(endpoint, EVERY_SECOND, overlap="allow")
    old = await schedules.put(endpoint, "*/10 * * * *", overlap="allow", catch_up_ms=HOUR_MS)
    await schedules.until(name, lambda one: one["counts"]["started"] >= 1)
    due_ms = from_rfc3339((await schedules.get(old))["next_at"]) - 3 * HOUR_MS
    identity = (await schedules.get(old))["id"]
    leave_behind(gateway, identity, due_ms)
    gateway.kill()
    await asyncio.to_thread(gateway.start)
    await caller.until_ready()
    await schedules.until(name, lambda one: one["counts"]["started"] >= 4)
    await schedules.ask("POST", f"{name}/pause")
    times = sorted(from_rfc3339(run["scheduled_at"]) for run in await schedules.runs(name))
    assert times == list(range(times[0], times[-1] + 1, 1_000))
    listed = (await caller.get(f"/v1/operations?label.mesh.schedule={name}&limit=500")).json["items"]
    assert len(listed) == len(times)
    record = await schedules.until(old, lambda one: one["next_at"] and from_rfc3339(one["next_at"]) > now_ms())
    assert (record["last_missed"]["code"], record["counts"]["missed"]) == ("catch_up_window", 1)
    assert from_rfc3339(record["last_missed"]["from"]) == due_ms
    oldest = from_rfc3339(record["last_missed"]["until"])
    runs = [(from_rfc3339(run["scheduled_at"]), run["operation"]["id"]) for run in reversed(await schedules.runs(old))]
    assert [at for at, _ in runs] == list(range(-(-oldest // TEN_MIN_MS) * TEN_MIN_MS, runs[-1][0] + 1, TEN_MIN_MS))
    assert from_rfc3339(record["next_at"]) - TEN_MIN_MS in [at for at, _ in runs]
    begun = [from_rfc3339((await caller.record(one))["created_at"]) for _, one in runs]
    assert begun == sorted(begun)


def leave_behind(gateway: Gateway, schedule: str, due_ms: int) -> None:
    """Have its store say that nobody has fired the schedule since `due_ms`, as after an outage of that length."""
    assert gateway.process is not None
    gateway.process.send_signal(signal.SIGSTOP)
    keys = Keys(PARTITION)
    for line in (
        f"HSET {keys.schedule(schedule).decode()} next {due_ms} due {due_ms}",
        f"ZADD {keys.schedules_due('default').decode()} {due_ms} {schedule}",
    ):
        assert gateway.tell_store(line)[:1] == b":", line
