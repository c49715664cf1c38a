"""Agents that keep a journal, over real sockets with bare hands: P220 to P232."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.surface.actors import Actor, Call, started
from tests.surface.checks import TIME, check_problem
from tests.surface.gateways import ASYNC, Caller, Gateway, token_for
from tests.surface.wire import Answer, Connection, Pairs, ask, pairs

LEASE: Pairs = [("mesh-lease-ms", "30000")]
STEP_1 = {"kind": "step", "name": "clone", "n": 1, "result": {"files": 3}, "tries": 1}
STEP_2 = {"kind": "step", "name": "lint", "n": 1, "result": "clean"}


async def say(caller: Caller, verb: str, body: Any, token: str = "", headers: Pairs = ()) -> Answer:
    """POST /v1/tasks/{verb}; with `token` about that attempt alone."""
    given = [("content-type", "application/json"), *pairs(headers)]
    if token:
        given.append(("mesh-task-token", token))
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await ask(caller.gateway.port, "POST", f"/v1/tasks/{verb}", given, raw)


async def one(caller: Caller, verb: str, token: str, **fields: Any) -> dict[str, Any]:
    """The answer about one attempt."""
    answer = await say(caller, verb, fields, token)
    assert answer.status == 200, answer
    return answer.json


class Ground:
    """A durable operation that runs: its agent has answered 201."""

    def __init__(self, caller: Caller, agent: Actor, endpoint: str, operation: str, call: Call) -> None:
        self.caller, self.agent, self.endpoint, self.operation, self.call = caller, agent, endpoint, operation, call

    @property
    def token(self) -> str:
        return self.call.completion_token

    async def say(self, verb: str, **fields: Any) -> dict[str, Any]:
        return await one(self.caller, verb, self.token, **fields)

    async def next_attempt(self, number: int) -> Call:
        """Wait for the start of attempt `number`, and go on with it."""
        self.call = await self.agent.until(number)
        assert self.call.attempt == number
        return self.call


@pytest.fixture
async def ground(caller: Caller, agent: Actor) -> Ground:
    agent.replies(started(headers=LEASE))
    endpoint = await caller.register(agent.url)
    operation = await caller.begin(endpoint, [("traceparent", "00-" + "a" * 32 + "-" + "b" * 16 + "-01")])
    call = await agent.until(1)
    await caller.until(operation, state="started")
    return Ground(caller, agent, endpoint, operation, call)


class TestJournal:
    async def test_entries_are_kept_and_read_byte_for_byte(self, ground: Ground) -> None:
        """P220, P221: in the order of their coming; the store's time comes along."""
        assert ground.call.get("mesh-journal") is None
        said = await ground.say("journal", at=0, entries=[STEP_1, {"kind": "odd_one", "x": 1e-7}])
        assert (said["status"], said["length"]) == ("ok", 2)
        await ground.say("journal", at=2, entries=[STEP_2])
        page = await ground.say("read")
        assert page["entries"] == [STEP_1, {"kind": "odd_one", "x": 1e-7}, STEP_2]
        assert (page["length"], page["stream"], page["cancel"]) == (3, 0, False)
        assert TIME(page["now"])
        assert abs(page["now_ms"] - said["now_ms"]) < 10_000
        assert (await ground.say("read", after=1, limit=1))["entries"] == [{"kind": "odd_one", "x": 1e-7}]
        assert (await ground.caller.record(ground.operation))["journal"] == 3

    async def test_a_repeat_is_ok_and_adds_nothing(self, ground: Ground) -> None:
        """P222: the reply was lost, the same entries come again."""
        await ground.say("journal", at=0, entries=[STEP_1])
        await ground.say("journal", at=1, entries=[STEP_2])
        assert (await ground.say("journal", at=0, entries=[STEP_1]))["status"] == "ok"
        other = await ground.say("journal", at=0, entries=[STEP_2])
        assert (other["status"], other["length"]) == ("grown", 2)
        ahead = await ground.say("journal", at=7, entries=[STEP_2])
        assert (ahead["status"], ahead["length"]) == ("grown", 2)
        assert (await ground.say("read"))["length"] == 2

    async def test_many_attempts_in_one_request(self, ground: Ground) -> None:
        """P220: each task is answered, in order."""
        forged = ground.token[:-1] + ("0" if ground.token[-1] != "0" else "1")
        tasks = [{"token": token, "at": 0, "entries": [STEP_1]} for token in (ground.token, forged)]
        stale = token_for(ground.operation, attempt=7)
        tasks.append({"token": stale, "at": 0, "entries": [STEP_1]})
        answer = await say(ground.caller, "journal", {"tasks": tasks})
        assert [task["status"] for task in answer.json["tasks"]] == ["ok", "invalid", "lost"]

    async def test_what_ended_takes_no_entries(self, ground: Ground) -> None:
        """P223."""
        await ground.call.complete()
        late = await say(ground.caller, "journal", {"at": 0, "entries": [STEP_1]}, ground.token)
        check_problem(late, 409, "operation_ended")

    @pytest.mark.parametrize(
        ("entries", "pointer"),
        [
            (["text"], "/entries/0"),
            ([{"name": "no kind"}], "/entries/0"),
            ([STEP_1, {"kind": "child"}], "/entries/1/kind"),
            ([{"kind": "succeeded"}], "/entries/0/kind"),
            ([{"kind": "Loud!"}], "/entries/0/kind"),
        ],
    )
    async def test_what_is_no_entry_changes_nothing(self, ground: Ground, entries: list[Any], pointer: str) -> None:
        """P221."""
        answer = await say(ground.caller, "journal", {"at": 0, "entries": entries}, ground.token)
        check_problem(answer, 422, "body_invalid", pointer)
        assert (await ground.say("read"))["length"] == 0

    async def test_bounds(self, ground: Ground) -> None:
        """P221: 1 MiB an entry, 1000 of them in a request; strict JSON."""
        large = {"at": 0, "entries": [{"kind": "step", "result": "x" * (1 << 20)}]}
        check_problem(await say(ground.caller, "journal", large, ground.token), 413, "entry_too_large")
        many = {"at": 0, "entries": [STEP_1] * 1001}
        check_problem(await say(ground.caller, "journal", many, ground.token), 422, "body_invalid", "/entries")
        twice = b'{"at":0,"entries":[{"kind":"step","a":1,"a":2}]}'
        check_problem(await say(ground.caller, "journal", twice, ground.token), 400, "json_invalid")
        check_problem(await say(ground.caller, "journal", {"at": -1}, ground.token), 422, "body_invalid", "/at")
        check_problem(await say(ground.caller, "journal", {"at": 0}, "m1.forged"), 401, "token_invalid")


class TestSuspend:
    async def test_a_time_wakes_it(self, ground: Ground) -> None:
        """P224, P225: the attempt is over, and the next one brings the journal's length."""
        await ground.say("journal", at=0, entries=[STEP_1, {"kind": "timer", "name": "nap", "n": 1}])
        assert (await ground.say("suspend", at=2, wake_in_ms=400))["status"] == "ok"
        record = await ground.caller.record(ground.operation)
        assert record["state"] == "started"
        assert TIME(record["suspended"]["since"])
        assert TIME(record["suspended"]["until"])
        late = await say(ground.caller, "journal", {"at": 2, "entries": [STEP_2]}, ground.token)
        check_problem(late, 409, "lease_lost")
        call = await ground.next_attempt(2)
        assert (call["mesh-journal"], call.get("mesh-cancel-requested")) == ("2", None)
        record = await ground.caller.until(ground.operation, state="started")
        assert "suspended" not in record
        assert (await ground.say("read"))["entries"][0] == STEP_1
        await call.complete()
        assert (await ground.caller.record(ground.operation))["state"] == "succeeded"

    async def test_it_is_repeatable(self, ground: Ground) -> None:
        """P224: the reply was lost."""
        for _ in range(2):
            assert (await ground.say("suspend", at=0, wake_in_ms=60_000))["status"] == "ok"

    async def test_an_attempt_that_gave_itself_up_ends_nothing(self, ground: Ground) -> None:
        """P223: neither before the next one is sent nor later, by whichever way its outcome comes."""
        await ground.say("suspend", at=0, wake_in_ms=60_000)
        check_problem(await say(ground.caller, "complete", b'"late"', ground.token), 409, "lease_lost")
        assert (await ground.call.complete()).status == 409
        record = await ground.caller.record(ground.operation)
        assert (record["state"], "suspended" in record) == ("started", True)

    async def test_what_the_agent_has_not_seen_keeps_it_awake(self, ground: Ground) -> None:
        """P224: an entry or a cancel that it does not know of would be slept through."""
        await ground.say("journal", at=0, entries=[STEP_1])
        assert (await ground.say("suspend", at=0))["status"] == "grown"
        await ground.caller.cancel(ground.operation)
        said = await ground.say("suspend", at=1)
        assert (said["status"], said["cancel"]) == ("grown", True)
        check_problem(
            await say(ground.caller, "suspend", {"at": 1, "cancel": True}, ground.token), 409, "operation_ended"
        )
        assert (await ground.caller.record(ground.operation))["state"] == "canceled", "P234: nothing would wake it"

    async def test_a_cancel_wakes_it(self, ground: Ground) -> None:
        """P226: its handler runs again and is told; it decides how it ends."""
        await ground.say("suspend", at=0)
        assert (await ground.caller.cancel(ground.operation)).status == 202
        call = await ground.next_attempt(2)
        assert call["mesh-cancel-requested"] == "1"
        await ground.caller.until(ground.operation, state="started")
        await call.complete("canceled", json.dumps({"message": "wound up"}).encode())
        assert (await ground.caller.record(ground.operation))["state"] == "canceled"

    async def test_resumptions_are_no_attempts(self, caller: Caller, agent: Actor) -> None:
        """P225: `max_attempts` counts those that failed."""
        agent.replies(started(headers=LEASE))
        endpoint = await caller.register(agent.url, policy={"retry": {"max_attempts": 1}})
        operation = await caller.begin(endpoint)
        for attempt in range(1, 5):
            call = await agent.until(attempt)
            await caller.until(operation, state="started", attempt=attempt)
            assert (await one(caller, "suspend", call.completion_token, at=0, wake_in_ms=0))["status"] == "ok"
        await (await agent.until(5)).complete()
        assert (await caller.record(operation))["state"] == "succeeded"


    @pytest.mark.parametrize("number", [2**32, 2**63, 2**64 - 1, 2**64, 10**300])
    async def test_numbers_that_no_list_and_no_calendar_have(self, ground: Ground, number: int) -> None:
        """P220, P224: refused where they stand; the record and its list can still be shown."""
        for verb, fields in (
            ("journal", {"at": number, "entries": [STEP_1]}),
            ("emit", {"at": number, "chunks": [1]}),
            ("read", {"after": number}),
            ("suspend", {"at": number}),
            ("suspend", {"at": 0, "wake_at_ms": number * 2**21}),
        ):
            refused = await say(ground.caller, verb, fields, ground.token)
            check_problem(refused, 422, "body_invalid")
            assert refused.json["errors"][0]["pointer"] in ("/at", "/after", "/wake_at_ms")
        assert (await ground.say("read"))["length"] == 0
        assert "suspended" not in await ground.caller.record(ground.operation)


class TestChildren:
    async def test_a_child_wakes_its_parent(self, ground: Ground, agent: Actor) -> None:
        """P230, P231: the outcome is in the parent's journal, in the same step as the child's end."""
        caller = ground.caller
        answer = await caller.v1(ground.endpoint, [ASYNC], input=5, parent={"token": ground.token, "key": "lint#1"})
        child = answer.json["id"]
        assert (answer.json["parent"], answer.json["parent_key"]) == (ground.operation, "lint#1")
        call = await agent.until(2)
        assert (call.operation, call["traceparent"]) == (child, ground.call["traceparent"])
        assert (await ground.say("suspend", at=0))["status"] == "ok"
        assert (await call.complete(body=b'{"ok":true}')).status == 200
        resumed = await agent.until(3)
        assert (resumed.operation, resumed.attempt, resumed["mesh-journal"]) == (ground.operation, 2, "1")
        page = await one(caller, "read", resumed.completion_token)
        assert page["entries"] == [
            {"kind": "child", "key": "lint#1", "id": child, "state": "succeeded", "result": {"ok": True}}
        ]
        assert (await caller.record(child))["parent"] == ground.operation

    async def test_a_result_too_deep_for_readers_spoils_no_journal(self, ground: Ground, agent: Actor) -> None:
        """P65, P231: of more than 200 levels it is shown as its bytes."""
        caller, deep = ground.caller, b"[" * 201 + b"]" * 201
        child = (await caller.v1(ground.endpoint, [ASYNC], parent={"token": ground.token, "key": "k#1"})).json["id"]
        call = await agent.until(2)
        assert (await call.complete(body=deep)).status == 200
        (entry,) = (await ground.say("read"))["entries"]
        shown = {"result_base64": base64.b64encode(deep).decode(), "result_type": "application/json"}
        assert entry == {"kind": "child", "key": "k#1", "id": child, "state": "succeeded", **shown}
        assert (await caller.record(child))["result_base64"] == shown["result_base64"]

    async def test_a_running_parent_hears_of_it(self, ground: Ground, agent: Actor) -> None:
        """P231, P221: `read` with a wait returns when the child ended; a failure is shown as such."""
        caller = ground.caller
        await caller.v1(ground.endpoint, [ASYNC], parent={"token": ground.token, "key": "a#1"})
        call = await agent.until(2)
        failure = {"message": "no", "metadata": {"type": "nexus.OperationError"}, "details": {"state": "failed"}}
        await call.complete("failed", json.dumps(failure).encode())
        page = await ground.say("read", wait_ms=10_000)
        assert (page["entries"][0]["state"], page["entries"][0]["failure"]["message"]) == ("failed", "no")

    async def test_an_attempt_that_was_given_up_starts_nothing(self, ground: Ground) -> None:
        """P230."""
        await ground.say("suspend", at=0)
        answer = await ground.caller.v1(ground.endpoint, [ASYNC], parent={"token": ground.token, "key": "a#1"})
        check_problem(answer, 409, "lease_lost")
        answer = await ground.caller.v1(ground.endpoint, [ASYNC], parent={"token": "m1.x", "key": "a#1"})
        check_problem(answer, 401, "token_invalid")

    async def test_by_headers_over_nexus_too(self, ground: Ground, agent: Actor) -> None:
        """P236."""
        caller = ground.caller
        given = [("mesh-parent-token", ground.token), ("mesh-parent-key", "lint#1")]
        child = await caller.begin(ground.endpoint, given)
        other = (await caller.v1(ground.endpoint, [ASYNC, *given[:1], ("mesh-parent-key", "b#1")])).json["id"]
        record = await caller.record(child)
        assert (record["parent"], record["parent_key"]) == (ground.operation, "lint#1")
        listed = (await caller.get(f"/v1/operations?parent={ground.operation}")).json["items"]
        assert {one["id"] for one in listed} == {child, other}
        call = await agent.until(2)
        assert not [name for name, _ in call.headers if name.startswith("mesh-parent")]
        assert (await call.complete(body=b"1")).status == 200
        assert (await ground.say("read", after=0))["entries"][0]["key"] == "lint#1"

    @pytest.mark.parametrize(
        "headers",
        [
            {"mesh-parent-key": "a#1"},
            {"mesh-parent-token": "m1.x"},
            {"mesh-parent-token": "m1.x", "mesh-parent-key": "k" * 1_025},
            {"mesh-parent-token": "m1.x", "mesh-parent-key": "a#1", "mesh-parent-close": "perhaps"},
        ],
    )
    async def test_headers_that_name_no_parent(self, ground: Ground, headers: dict[str, str]) -> None:
        """P236: said, and nothing is started."""
        given = list(headers.items())
        answer = await ground.caller.nexus(ground.endpoint, headers=given)
        assert answer.status == 400, answer
        check_problem(await ground.caller.v1(ground.endpoint, given), 400, "parent_invalid")
        both = [("mesh-parent-token", ground.token), ("mesh-parent-key", "a#1")]
        named = {"token": ground.token, "key": "a#1"}
        check_problem(await ground.caller.v1(ground.endpoint, both, parent=named), 400, "parent_invalid")

    async def test_a_key_that_is_somebody_elses(self, ground: Ground) -> None:
        """P235: its end would not be told to this call, which would wait for ever."""
        caller = ground.caller
        headers = [ASYNC, ("idempotency-key", "shared")]
        plain = (await caller.v1(ground.endpoint, headers)).json["id"]
        answer = await caller.v1(ground.endpoint, headers, parent={"token": ground.token, "key": "a#1"})
        check_problem(answer, 409, "other_parent")
        assert answer.json["operation_id"] == plain

    async def test_no_more_time_than_the_parent_has(self, caller: Caller, agent: Actor) -> None:
        """P230."""
        agent.replies(started(headers=LEASE))
        endpoint = await caller.register(agent.url)
        operation = await caller.begin(endpoint, [("operation-timeout", "30s")])
        token = (await agent.until(1)).completion_token
        for timeouts in ({}, {"schedule_to_close_ms": 90_000}):
            answer = await caller.v1(endpoint, [ASYNC], parent={"token": token, "key": "a#1"}, timeouts=timeouts)
            assert answer.json["deadline"] == (await caller.record(operation))["deadline"]

    async def test_what_its_parent_leaves_behind_is_canceled(self, ground: Ground, agent: Actor) -> None:
        """P232: unless it was to be kept."""
        caller = ground.caller
        children = [
            (await caller.v1(ground.endpoint, [ASYNC], parent={"token": ground.token, "key": "a#1", **more})).json["id"]
            for more in ({}, {"on_close": "keep"})
        ]
        await agent.until(3)
        for child in children:
            await caller.until(child, state="started")
        await ground.call.complete()
        cancel = await agent.until(1, cancels=True)
        assert cancel.operation == children[0]
        assert "cancel_requested" not in await caller.record(children[1])


class TestReading:
    async def test_news_of_one_of_many(self, caller: Caller, agent: Actor) -> None:
        """P221: one request waits for all journals of an agent, and is answered when one of them grows."""
        agent.replies(started(headers=LEASE))
        endpoint = await caller.register(agent.url)
        for _ in range(3):
            await caller.begin(endpoint)
        calls = [await agent.until(number) for number in (1, 2, 3)]
        tasks = [{"token": call.completion_token} for call in calls]
        waiting = asyncio.ensure_future(say(caller, "read", {"tasks": tasks, "wait_ms": 10_000}))
        await one(caller, "journal", calls[1].completion_token, at=0, entries=[STEP_1])
        answer = (await waiting).json
        assert [task["entries"] for task in answer["tasks"]] == [[], [STEP_1], []]
        assert answer["now_ms"] > 0
        again = await say(caller, "read", {"tasks": [*tasks, {"token": "m1.forged"}], "wait_ms": 10_000})
        assert [task["status"] for task in again.json["tasks"]] == ["ok", "ok", "ok", "invalid"]

    async def test_nothing_is_not_waited_for(self, caller: Caller) -> None:
        """P221: a wait takes a token."""
        async with asyncio.timeout(5):
            answer = await say(caller, "read", {"tasks": [], "wait_ms": 10_000})
        assert (answer.status, answer.json["tasks"]) == (200, [])

    async def test_who_hangs_up_waits_no_longer(self, own_gateway: Callable[..., Gateway], agent: Actor) -> None:
        """P233: not until `wait_ms` is over, whatever was asked for; and there is a bound for each attempt."""
        gateway = await asyncio.get_running_loop().run_in_executor(None, own_gateway)
        caller = Caller(gateway)
        agent.replies(started(headers=LEASE))
        operation = await caller.begin(await caller.register(agent.url))
        token = (await agent.until(1)).completion_token
        await caller.until(operation, state="started")
        body = json.dumps({"tasks": [{"token": token}], "wait_ms": 60_000}).encode()
        async with AsyncExitStack() as stack:
            lines = [await stack.enter_async_context(await Connection.open(gateway.port)) for _ in range(16)]
            for line in lines:
                line.send("POST", "/v1/tasks/read", [("content-type", "application/json")], body)
            await caller.until_gauge("mesh_waits_open", 16)
            check_problem(await say(caller, "read", body), 429, "too_many_waits")
            assert (await one(caller, "read", token))["status"] == "ok", "without a wait it may"
        await caller.until_gauge("mesh_waits_open", 0)

    async def test_a_long_journal_comes_in_pages(self, ground: Ground) -> None:
        """P221: about 1 MiB at a time, always something."""
        large = {"kind": "step", "name": "big", "result": "x" * 400_000}
        for at in range(5):
            await ground.say("journal", at=at, entries=[{**large, "n": at}])
        seen: list[int] = []
        while len(seen) < 5:
            page = await ground.say("read", after=len(seen))
            assert 1 <= len(page["entries"]) <= 3
            assert page["length"] == 5
            seen += [entry["n"] for entry in page["entries"]]
        assert seen == [0, 1, 2, 3, 4]
        for limit in (0, 1_001):
            check_problem(
                await say(ground.caller, "read", {"limit": limit}, ground.token), 422, "body_invalid", "/limit"
            )


class TestWatching:
    async def test_what_happened_and_what_was_done_are_one_history(self, ground: Ground, agent: Actor) -> None:
        """P240: 1..n without gaps, whatever the page; numbers never change as it goes on."""
        caller = ground.caller
        await ground.say("journal", at=0, entries=[STEP_1, {"kind": "progress", "percent": 50}])
        await caller.v1(ground.endpoint, [ASYNC], parent={"token": ground.token, "key": "lint#1"})
        child = await agent.until(2)
        early = await caller.events(ground.operation)
        await ground.say("suspend", at=2)
        await child.complete(body=b'"clean"')
        resumed = await agent.until(3)
        await caller.until(ground.operation, state="started", attempt=2)
        await one(caller, "journal", resumed.completion_token, at=3, entries=[{"kind": "note", "text": "mine"}])
        await resumed.complete()
        events = await caller.events(ground.operation)
        assert [event["type"] for event in events] == [
            "accepted", "dispatched", "started", "step", "progress", "suspended", "child", "dispatched", "started",
            "note", "succeeded",
        ]  # fmt: skip
        assert [event["seq"] for event in events] == [*range(1, 12)]
        assert events[: len(early)] == early
        times = [event["at"] for event in events]
        assert times == sorted(times)
        assert events[3] == events[3] | {"name": "clone", "result": {"files": 3}, "attempt": 1}
        assert (events[6]["key"], events[6]["id"], events[6]["result"]) == ("lint#1", child.operation, "clean")
        assert "until" not in events[5]
        record = await caller.record(ground.operation)
        assert (record["events"], record["journal"]) == (11, 4)
        for limit in (1, 2, 5):
            paged: list[dict[str, Any]] = []
            cursor: str | None = "0"
            while cursor is not None:
                page = (
                    await caller.get(f"/v1/operations/{ground.operation}/events?cursor={cursor}&limit={limit}")
                ).json
                paged += page["items"]
                cursor = page["next_cursor"]
            assert paged == events

    async def test_a_reader_follows_and_resumes(self, ground: Ground) -> None:
        """P240: server-sent events bring entries as they come; `Last-Event-ID` goes on where it broke off."""
        caller, path = ground.caller, f"/v1/operations/{ground.operation}/events"
        seen: list[dict[str, str]] = []
        async with asyncio.timeout(10), caller.stream(path) as events:
            async for event in events:
                seen += [event] if "id" in event else []
                if len(seen) == 3:
                    await ground.say("journal", at=0, entries=[STEP_1])
                if len(seen) == 4:
                    break
        assert [event["event"] for event in seen] == ["accepted", "dispatched", "started", "step"]
        await ground.say("journal", at=1, entries=[STEP_2])
        await ground.call.complete()
        async with asyncio.timeout(10), caller.stream(path, {"last-event-id": "4"}) as events:
            rest = [event async for event in events if "event" in event]
        assert [(event["event"], event.get("id")) for event in rest] == [
            ("step", "5"),
            ("succeeded", "6"),
            ("end", None),
        ]

    async def test_long_values_are_cut_for_readers(self, ground: Ground) -> None:
        """P240: the agent gets all of it, readers of the history a preview."""
        await ground.say("journal", at=0, entries=[{"kind": "step", "name": "a", "result": "x" * 5_000}])
        event = (await ground.caller.events(ground.operation))[-1]
        assert (event["result_bytes"], len(event["result_preview"]), "result" in event) == (5_002, 1_024, False)

    async def test_an_entrys_own_names_are_kept(self, ground: Ground) -> None:
        """P240: what an event or a preview would be called too is followed by `_`."""
        entry = {
            "kind": "note", "at": "noon", "type": "x", "seq": 7, "type_": "y", "text": "z" * 2_000,
            "text_preview": "mine",
        }  # fmt: skip
        await ground.say("journal", at=0, entries=[entry])
        event = (await ground.caller.events(ground.operation))[-1]
        assert event["type"] == "note"
        assert TIME(event["at"])
        shown = {name: event[name] for name in ("at_", "type__", "seq_", "type_", "text_preview", "text_bytes")}
        assert shown == {
            "at_": "noon", "type__": "x", "seq_": 7, "type_": "y", "text_preview": "mine", "text_bytes": 2_002
        }  # fmt: skip
        assert event["text_preview_"].startswith('"zzz')

    async def test_late_steps_of_a_superseded_attempt_are_refused_and_shown(self, ground: Ground) -> None:
        """P223: once per attempt, however often it tries."""
        caller, late = ground.caller, ground.token
        await ground.say("suspend", at=0, wake_in_ms=0)
        await ground.next_attempt(2)
        for verb, body in (("journal", {"at": 0, "entries": [STEP_1]}), ("suspend", {"at": 0}), ("journal", {"at": 0})):
            check_problem(await say(caller, verb, body, late), 409, "lease_lost")
        assert (await ground.call.complete(token=late)).status == 409
        events = [event for event in await caller.events(ground.operation) if event["type"] == "refused"]
        assert [(event["attempt"], event["verb"]) for event in events] == [(1, "journal")]

    async def test_the_last_heartbeat_is_shown(self, ground: Ground) -> None:
        """P104: details stay until the next that has some."""
        await ground.say("heartbeat", details={"page": 3})
        await ground.say("heartbeat")
        beat = (await ground.caller.record(ground.operation))["heartbeat"]
        assert (TIME(beat["at"]) is not None, beat["details"]) == (True, {"page": 3})
        large = await say(ground.caller, "heartbeat", {"details": "x" * 20_000}, ground.token)
        check_problem(large, 422, "body_invalid", "/details")

    async def test_children_are_listed(self, ground: Ground, agent: Actor) -> None:
        """P230."""
        caller = ground.caller
        children = [
            (await caller.v1(ground.endpoint, [ASYNC], parent={"token": ground.token, "key": f"a#{number}"})).json["id"]
            for number in range(3)
        ]
        listed = (await caller.get(f"/v1/operations?parent={ground.operation}")).json["items"]
        assert [item["id"] for item in listed] == children[::-1]
        assert {item["parent"] for item in listed} == {ground.operation}


class TestStream:
    async def test_chunks_are_kept_and_followed(self, ground: Ground) -> None:
        """P241: own numbers 1..n, resumable, with an end."""
        caller, path = ground.caller, f"/v1/operations/{ground.operation}/stream"
        assert (await ground.say("emit", at=0, chunks=["a", {"b": 1}]))["length"] == 2
        assert (await ground.say("emit", at=0, chunks=["a", {"b": 1}]))["status"] == "ok"
        assert (await ground.say("emit", at=1, chunks=["x"]))["status"] == "grown"
        page = (await caller.get(f"{path}?limit=1")).json
        assert (page["items"][0]["seq"], page["items"][0]["chunk"], page["next_cursor"]) == (1, "a", "1")
        seen: list[tuple[str, str]] = []
        async with asyncio.timeout(10), caller.stream(path, {"last-event-id": "1"}) as events:
            async for event in events:
                if "event" not in event:
                    continue
                seen.append((event.get("id", ""), event["data"]))
                if len(seen) == 1:
                    await ground.say("emit", at=2, chunks=["c"])
                    await ground.call.complete()
        assert [(number, json.loads(data).get("chunk")) for number, data in seen] == [
            ("2", {"b": 1}),
            ("3", "c"),
            ("", None),
        ]
        assert json.loads(seen[-1][1]) == {"state": "succeeded", "chunks": 3}
        assert (await caller.record(ground.operation))["events"] == 4

    async def test_bounds(self, ground: Ground) -> None:
        """P241: 64 KiB a chunk."""
        answer = await say(ground.caller, "emit", {"at": 0, "chunks": ["x" * (64 << 10)]}, ground.token)
        check_problem(answer, 413, "entry_too_large")
        check_problem(
            await ground.caller.get(f"/v1/operations/{ground.operation[:-1]}/stream"), 404, "unknown_operation"
        )


async def test_nothing_of_it_is_for_others(alpha: Caller, beta: Caller, agent: Actor) -> None:
    """P6, P235: history and stream belong to its namespace, children to the one whose key started them."""
    agent.replies(started(headers=LEASE))
    endpoint = await alpha.register(agent.url, allow=["*"])
    operation = await alpha.begin(endpoint)
    token = (await agent.until(1)).completion_token
    await one(alpha, "journal", token, at=0, entries=[STEP_1])
    await one(alpha, "emit", token, at=0, chunks=[1])
    for path in ("events", "stream"):
        check_problem(await beta.get(f"/v1/operations/{operation}/{path}"), 404, "unknown_operation")
    parent = {"token": token, "key": "a#1"}
    child = (await beta.v1(endpoint, [ASYNC], parent=parent)).json["id"]
    assert [item["id"] for item in (await beta.get(f"/v1/operations?parent={operation}")).json["items"]] == [child]
    assert (await alpha.get(f"/v1/operations?parent={operation}")).json["items"] == []
    # Each cancels its own only, and what one may not see tells nothing of it; the parent's end still ends its child.
    assert (await beta.record(child))["parent"] == operation
    for path in ("", "/events", "/stream", "/result"):
        check_problem(await alpha.get(f"/v1/operations/{child}{path}"), 404, "unknown_operation")
        check_problem(await beta.get(f"/v1/operations/{operation}{path}"), 404, "unknown_operation")
    check_problem(await alpha.cancel(child), 404, "unknown_operation")
    check_problem(await beta.cancel(operation), 404, "unknown_operation")
    for record in (await alpha.record(operation), await beta.record(child)):
        assert "cancel_requested" not in record
    call = await agent.until(2)
    assert call.operation == child
    assert (await alpha.cancel(operation)).status == 202
    assert (await say(alpha, "complete", b"1", token)).status == 200
    await beta.until(child, cancel_requested=True)
    check_problem(await alpha.get("/v1/operations?parent=x:y"), 422, "parameter_invalid")
