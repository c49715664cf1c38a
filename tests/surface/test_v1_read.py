"""Reading on /v1: record, result, history as JSON and as a stream, lists with filters and cursors."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import pytest

from mesh.clock import monotonic_s
from mesh.ids import operation_id
from tests.surface.actors import Actor, Reply, as_json, handler_error, operation_error, started
from tests.surface.checks import TIME, check_problem
from tests.surface.gateways import ASYNC, Caller
from tests.surface.wire import Connection


class TestRecord:
    async def test_while_it_runs(self, caller: Caller, agent: Actor) -> None:
        """P65: deadline, next attempt and last failure."""
        agent.replies(handler_error(503, "UNAVAILABLE", "busy"), handler_error(503, "UNAVAILABLE", "still busy"))
        name = await caller.register(agent.url, policy={"retry": {"initial_ms": 10, "max_ms": 60_000, "factor": 10}})
        operation = (await caller.v1(name, [ASYNC], timeouts={"schedule_to_close_ms": 60_000})).json["id"]
        await agent.until(2)
        await caller.until(operation, state="backing_off", attempt=2)
        await agent.until(3)
        record = await caller.until(operation, state="backing_off", attempt=3)
        assert TIME(record["deadline"])
        assert TIME(record["next_attempt_at"])
        failure = record["last_failure"]
        assert (failure["attempt"], failure["type"], failure["message"]) == (3, "UNAVAILABLE", "still busy")
        assert record["created_at"] <= failure["at"] <= record["next_attempt_at"]

    async def test_where_its_attempts_went(self, caller: Caller, agent: Actor) -> None:
        """P65, P67: the instance of the last attempt, while the request is out and after; so do the events."""
        gate = agent.holds()
        name = await caller.register(None)
        for instance in ("one", "two"):
            lease = {"url": agent.url, "ttl_ms": 60_000}
            assert (await caller.ask("PUT", f"/v1/endpoints/{name}/instances/{instance}", (), lease)).status == 201
        operation = await caller.begin(name)
        await agent.until(1)
        out = (await caller.record(operation))["instance"]
        assert out in ("one", "two")
        gate.set()
        record = await caller.until(operation, state="succeeded")
        assert (record["instance"], "last_failure" in record, "callback" in record) == (out, False, False)
        assert [one.get("instance") for one in await caller.events(operation)] == [None, None, out]
        agent.replies(handler_error(503, "UNAVAILABLE", "busy: very"), started())
        operation = await caller.begin(name)
        failed = await caller.until(operation, state="backing_off")
        assert (failed["instance"], failed["last_failure"]["message"]) == (
            failed["last_failure"]["instance"],
            "busy: very",
        )
        await caller.until(operation, state="started")
        types = {one["type"]: one.get("instance") for one in await caller.events(operation)}
        assert types["attempt_failed"] == failed["instance"]
        assert types["started"] == (await caller.record(operation))["instance"]
        await caller.cancel(operation)

    async def test_what_becomes_of_the_callback(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        """P65, P80: not owed yet, spared since the first request got the outcome, refused for good."""
        name = await caller.register(agent.url)
        spared = (await caller.nexus(name, callback=receiver.url))["mesh-operation-id"]
        callback = (await caller.record(spared))["callback"]
        assert (callback["state"], callback["url"], callback["format"]) == ("dropped", receiver.url, "nexus")
        assert callback["why"] == "the first request was answered with the outcome"
        agent.replies(started())
        receiver.replies(Reply(404))
        operation = await caller.begin(name, callback=receiver.url)
        call = await agent.until(2)
        assert (await caller.record(operation))["callback"]["why"] == "it is owed once the operation ends"
        await call.complete()
        await caller.until_delivery(operation, "dead")
        callback = (await caller.record(operation))["callback"]
        assert (callback["state"], callback["tries"], callback["why"]) == ("dead", 1, "the receiver answered 404")
        receiver.replies(Reply(500))
        operation = await caller.begin(name, callback=receiver.url)
        await (await agent.until(3)).complete()
        await caller.until_delivery(operation, "pending")
        callback = (await caller.record(operation))["callback"]
        assert (callback["state"], callback["why"]) == ("pending", "the receiver answered 500")
        assert TIME(callback["next_at"])

    async def test_etag_moves_with_every_event(self, caller: Caller, agent: Actor) -> None:
        """P65: 304 while nothing happened."""
        agent.replies(started())
        operation = await caller.begin(await caller.register(agent.url))
        await caller.until(operation, state="started")
        path = f"/v1/operations/{operation}"
        tag = (await caller.get(path))["etag"]
        assert (await caller.get(path, {"if-none-match": tag})).status == 304
        await (await agent.until(1)).complete()
        answer = await caller.get(path, {"if-none-match": tag})
        assert (answer.status, answer["cache-control"]) == (200, "no-store")
        assert answer["etag"] != tag

    @pytest.mark.parametrize("operation", ["x", "00-" + "0" * 20, "00-" + "g" * 20, "%00"])
    async def test_unknown(self, caller: Caller, operation: str) -> None:
        """P6."""
        for suffix in ("", "/result", "/events"):
            check_problem(await caller.get(f"/v1/operations/{operation}{suffix}"), 404, "unknown_operation")
        check_problem(await caller.cancel(operation), 404, "unknown_operation")
        check_problem(await caller.get(f"/v1/operations/..%2f{operation}/"), 404, "unknown_route")


class TestResult:
    async def test_long_poll(self, caller: Caller, agent: Actor) -> None:
        """P66: 202 with the record when the wait is over, else the result as soon as it is there."""
        agent.replies(started())
        operation = await caller.begin(await caller.register(agent.url))
        call = await agent.until(1)
        asked_at_s = monotonic_s()
        early = await caller.result(operation, "0.3")
        assert (early.status, early.json["id"], early["retry-after"]) == (202, operation, "1")
        assert early["location"] == f"/v1/operations/{operation}"
        assert 0.28 < monotonic_s() - asked_at_s < 10
        assert (await caller.get(f"/v1/operations/{operation}/result")).status == 202
        waiting = [asyncio.create_task(caller.result(operation, wait)) for wait in ("20", "20s", "20.5")]
        await caller.until_gauge("mesh_waits_open", 3)
        done_at_s = monotonic_s()
        await call.complete(body=b'"now"', headers={"content-type": "text/x"})
        answers = await asyncio.gather(*waiting)
        assert {(one.status, one.body, one["content-type"]) for one in answers} == {(200, b'"now"', "text/x")}
        assert monotonic_s() - done_at_s < 10
        assert answers[0]["cache-control"] == "no-store"

    async def test_a_wait_asked_for_as_of_a_start(self, caller: Caller, agent: Actor) -> None:
        """P66, P61: `Prefer` counts where `wait` says nothing; what is no parameter is refused, and names the one."""
        agent.replies(started())
        operation = await caller.begin(await caller.register(agent.url))
        call = await agent.until(1)
        target, asked_at_s = f"/v1/operations/{operation}/result", monotonic_s()
        early = await caller.get(target, [("prefer", "wait=0.3")])
        assert (early.status, early["preference-applied"]) == (202, "wait=0.3")
        assert 0.28 < monotonic_s() - asked_at_s < 10
        at_once = await caller.get(target, [ASYNC])
        assert (at_once.status, at_once["preference-applied"]) == (202, "respond-async")
        for query, headers, code in (
            ("?timeout=3", [], "parameter_invalid"),
            ("?wait=", [("prefer", "wait=soon")], "prefer_invalid"),
            ("?wait=soon", [], "wait_invalid"),
        ):
            refused = await caller.get(target + query, headers)
            check_problem(refused, 422 if code == "parameter_invalid" else 400, code)
            assert "wait" in refused.json["detail"]
        waiting = asyncio.create_task(caller.get(target, [("prefer", "wait=20")]))
        await caller.until_gauge("mesh_waits_open", 1)
        await call.complete(body=b"7")
        answer = await waiting
        assert (answer.status, answer.body, answer["preference-applied"]) == (200, b"7", "wait=20")

    @pytest.mark.parametrize("asked", [1, 3])
    async def test_who_hung_up_is_waited_for_no_longer(self, caller: Caller, agent: Actor, asked: int) -> None:
        """P66, also with more asked behind it on the same connection, of which nothing is read meanwhile."""
        agent.replies(started())
        operation = await caller.begin(await caller.register(agent.url))
        await agent.until(1)
        async with await Connection.open(caller.gateway.port) as connection:
            for _ in range(asked):
                connection.send("GET", f"/v1/operations/{operation}/result?wait=60")
            await caller.until_gauge("mesh_waits_open", 1)
        await caller.until_gauge("mesh_waits_open", 0)

    @pytest.mark.parametrize("state", ["failed", "canceled"])
    async def test_424(self, caller: Caller, agent: Actor, state: str) -> None:
        """P66."""
        agent.replies(operation_error(state))
        operation = (await caller.v1(await caller.register(agent.url))).json["id"]
        answer = await caller.result(operation)
        assert (answer.status, answer["nexus-operation-state"], answer.json["details"]["state"]) == (424, state, state)

    @pytest.mark.parametrize("wait", ["x", "-1", "nan", "inf", "1h", "99999999999999"])
    async def test_bad_waits(self, caller: Caller, agent: Actor, wait: str) -> None:
        """P66."""
        check_problem(await caller.result(operation_id(), wait), 400, "wait_invalid")


class TestEvents:
    async def test_the_whole_story(self, caller: Caller, agent: Actor) -> None:
        """P67: sequence 1..n without gaps, times that never run backwards, details by kind."""
        agent.replies(handler_error(503, "UNAVAILABLE", "busy"), started())
        name = await caller.register(agent.url, policy={"retry": {"initial_ms": 10}})
        operation = await caller.begin(name)
        call = await agent.until(2)
        await caller.until(operation, state="started")
        await call.complete()
        events = await caller.events(operation)
        assert [event["seq"] for event in events] == [1, 2, 3, 4, 5, 6]
        types = ["accepted", "dispatched", "attempt_failed", "dispatched", "started", "succeeded"]
        assert [event["type"] for event in events] == types
        assert [event["attempt"] for event in events] == [0, 1, 1, 2, 2, 2]
        times = [event["at"] for event in events]
        assert times == sorted(times)
        assert all(map(TIME, times))
        assert "busy" in events[2]["error"]
        assert {event["operation_id"] for event in events} == {operation}

    async def test_pages(self, caller: Caller, agent: Actor) -> None:
        """P67."""
        operation = (await caller.v1(await caller.register(agent.url))).json["id"]
        path = f"/v1/operations/{operation}/events"
        first = (await caller.get(f"{path}?limit=2")).json
        assert ([one["seq"] for one in first["items"]], first["next_cursor"]) == ([1, 2], "2")
        rest = (await caller.get(f"{path}?limit=2&cursor=2")).json
        assert ([one["seq"] for one in rest["items"]], rest["next_cursor"]) == ([3], None)
        assert (await caller.get(f"{path}?cursor=99")).json == {"items": [], "next_cursor": None}

    @pytest.mark.parametrize("cursor", ["x", "-1", "1.5", quote("²"), "9" * 5000])
    async def test_bad_cursors(self, caller: Caller, agent: Actor, cursor: str) -> None:
        """P67, P68."""
        operation = (await caller.v1(await caller.register(agent.url))).json["id"]
        check_problem(await caller.get(f"/v1/operations/{operation}/events?cursor={cursor}"), 400, "cursor_invalid")

    @pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
    @pytest.mark.parametrize("of", ["events", "stream"])
    async def test_unknown_parameters(self, caller: Caller, agent: Actor, of: str, accept: str) -> None:
        """P69: `after=5` for `cursor=5` would begin at the beginning, time and again."""
        operation = (await caller.v1(await caller.register(agent.url))).json["id"]
        answer = await caller.get(f"/v1/operations/{operation}/{of}?after=5", headers=[("accept", accept)])
        check_problem(answer, 422, "parameter_invalid")
        assert [one["parameter"] for one in answer.json["errors"]] == ["after"]

    async def test_a_stream_follows_and_ends(self, caller: Caller, agent: Actor) -> None:
        """P68: ids are the sequence; the end has none, and the stream closes."""
        agent.replies(started())
        operation = await caller.begin(await caller.register(agent.url))
        call = await agent.until(1)
        seen: list[dict[str, str]] = []
        async with asyncio.timeout(10), caller.stream(f"/v1/operations/{operation}/events") as events:
            async for event in events:
                seen.append(event)
                if event.get("event") == "started":
                    await call.complete()
        assert seen[0] == {"retry": "1000"}
        assert [(one.get("id"), one["event"]) for one in seen[1:]] == [
            ("1", "accepted"), ("2", "dispatched"), ("3", "started"), ("4", "succeeded"), (None, "end"),
        ]  # fmt: skip
        assert '"state":"succeeded"' in seen[-1]["data"]

    async def test_a_stream_resumes(self, caller: Caller, agent: Actor) -> None:
        """P68: Last-Event-ID, also behind the end, and with more history than one look."""
        operation = (await caller.v1(await caller.register(agent.url))).json["id"]
        path = f"/v1/operations/{operation}/events"
        for last, wanted in (("1", ["2", "3", None]), ("3", [None]), ("0", ["1", "2", "3", None])):
            async with asyncio.timeout(10), caller.stream(path, {"last-event-id": last}) as events:
                assert [one.get("id") async for one in events if "event" in one] == wanted
        answer = await caller.get(path, {"accept": "text/event-stream", "last-event-id": "x"})
        check_problem(answer, 400, "cursor_invalid")

    async def test_a_stream_waits_for_the_callback(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        """P68: what is still owed belongs to the history."""
        receiver.replies(Reply(500), Reply(200))
        operation = await caller.begin(await caller.register(agent.url), callback=receiver.url)
        async with asyncio.timeout(10), caller.stream(f"/v1/operations/{operation}/events") as events:
            types = [one["event"] async for one in events if "event" in one]
        assert types == ["accepted", "dispatched", "succeeded", "callback_failed", "callback_delivered", "end"]


class TestList:
    @pytest.fixture
    async def three(self, caller: Caller, agent: Actor) -> tuple[str, list[str]]:
        """An endpoint with a succeeded, a failed and a started operation, in this order."""
        agent.replies(as_json(1), operation_error("failed"), started())
        name = await caller.register(agent.url)
        ids: list[str] = []
        for number, operation in enumerate(("a", "b", "c")):
            labels = {"n": str(number), "team": "x"}
            prefer = [("prefer", "wait=5" if number < 2 else "wait=0")]
            ids.append((await caller.v1(name, prefer, operation=operation, labels=labels)).json["id"])
        await caller.until(ids[2], state="started")
        return name, ids

    @pytest.mark.parametrize(
        ("query", "wanted"),
        [
            ("", [2, 1, 0]),
            ("&state=succeeded", [0]),
            ("&state=succeeded,failed", [1, 0]),
            ("&state=running", [2]),
            ("&state=started", [2]),
            ("&service=svc", [2, 1, 0]),
            ("&service=other", []),
            ("&operation=b", [1]),
            ("&label.n=1", [1]),
            ("&label.n=1&label.team=x", [1]),
            ("&label.n=1&label.team=y", []),
            ("&until=2020-01-01T00:00:00Z", []),
            ("&since=2020-01-01T00:00:00Z", [2, 1, 0]),
            ("&since=2120-01-01T00:00:00Z", []),
        ],
    )
    async def test_filters(self, caller: Caller, three: tuple[str, list[str]], query: str, wanted: list[int]) -> None:
        """P69: newest first."""
        name, ids = three
        answer = await caller.get(f"/v1/operations?endpoint={name}{query}")
        assert [one["id"] for one in answer.json["items"]] == [ids[number] for number in wanted]
        assert answer.json["next_cursor"] is None

    @pytest.mark.parametrize("path", ["operations", "deliveries", "endpoints"])
    async def test_a_parameter_that_nobody_knows_is_named(self, caller: Caller, path: str) -> None:
        """P69: a misspelt filter must not show everything."""
        answer = await caller.get(f"/v1/{path}?limit=1&stat=failed&label.a=1")
        check_problem(answer, 422, "parameter_invalid")
        names = ["stat"] if path != "deliveries" else ["stat", "label.a"]
        assert [one["parameter"] for one in answer.json["errors"]] == names

    async def test_records_are_flat_and_without_results(self, caller: Caller, three: tuple[str, list[str]]) -> None:
        """P69."""
        name, ids = three
        items = (await caller.get(f"/v1/operations?endpoint={name}")).json["items"]
        record = await caller.record(ids[0])
        assert items[2] == {key: value for key, value in record.items() if key not in ("result", "instance")}

    async def test_time_bounds_are_inclusive(self, caller: Caller, three: tuple[str, list[str]]) -> None:
        """P69: by acceptance."""
        name, ids = three
        at = (await caller.record(ids[1]))["created_at"]
        items = (await caller.get(f"/v1/operations?endpoint={name}&since={at}&until={at}")).json["items"]
        assert ids[1] in [one["id"] for one in items]

    async def test_cursors_visit_each_once(self, caller: Caller, agent: Actor) -> None:
        """P69: also where many share a millisecond, and while new ones arrive."""
        name = await caller.register(agent.url)
        ids = [one.json["id"] for one in await asyncio.gather(*[caller.v1(name) for _ in range(25)])]
        seen: list[str] = []
        cursor = ""
        while True:
            page = (await caller.get(f"/v1/operations?endpoint={name}&limit=4&cursor={cursor}")).json
            seen += [one["id"] for one in page["items"]]
            await caller.v1(name)
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert sorted(seen) == sorted(ids)

    @pytest.mark.parametrize(
        ("query", "status", "code"),
        [
            ("state=done", 422, "parameter_invalid"),
            ("since=yesterday", 422, "parameter_invalid"),
            ("until=2020-01-01", 422, "parameter_invalid"),
            ("cursor=x", 400, "cursor_invalid"),
            ("cursor=%ff", 400, "cursor_invalid"),
            ("limit=0", 422, "parameter_invalid"),
            ("limit=501", 422, "parameter_invalid"),
            ("limit=x", 422, "parameter_invalid"),
        ],
    )
    async def test_bad_queries(self, caller: Caller, query: str, status: int, code: str) -> None:
        """P69."""
        check_problem(await caller.get(f"/v1/operations?{query}"), status, code)

    async def test_the_states_that_there_are(self, caller: Caller) -> None:
        """P69."""
        detail = (await caller.get("/v1/operations?state=done")).json["detail"]
        assert detail.startswith("state is one of scheduled, ")
        assert detail.endswith(", running")

    async def test_running_is_what_no_state_says(self, caller: Caller, three: Any) -> None:
        """P65: `blocked` stands beside the state."""
        operation = await caller.begin(await caller.register(None))
        record = await caller.until(operation, blocked="no_instance")
        assert (record["state"], record["attempt"]) == ("scheduled", 0)
