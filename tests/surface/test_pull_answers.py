"""What agents that ask for their work say about it: in frames, many at once, one at a time; and what they are told."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest

from mesh.clock import monotonic_s
from mesh.ids import operation_id
from tests.surface.actors import Actor, started
from tests.surface.checks import check_problem
from tests.surface.gateways import Caller, token_for
from tests.surface.pollers import Poller, pull_endpoint, verb


async def fetched(caller: Caller, name: str, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
    """Operations that an instance has."""
    for _ in range(count):
        await caller.begin(name)
    return await Poller(caller, name).tasks(count, **fields)


def statuses(frame: dict[str, Any]) -> list[str]:
    return [one["status"] for one in frame.get("answers") or frame["tasks"]]


class TestMany:
    async def test_a_frame_brings_answers_and_takes_tasks(self, caller: Caller) -> None:
        """P283, P287: one request per turn; the answers are in the store when it returns."""
        name = await pull_endpoint(caller)
        done = await fetched(caller, name, 3)
        waiting = await caller.begin(name)
        answers = [{"token": task["task_token"], "result": number} for number, task in enumerate(done)]
        frame = await Poller(caller, name).poll(answers=answers)
        assert statuses(frame) == ["ok"] * 3
        assert [task["operation_id"] for task in frame["tasks"]] == [waiting]
        results = [(await caller.result(task["operation_id"], "0")).json for task in done]
        assert results == [0, 1, 2]

    async def test_answers_alone(self, caller: Caller) -> None:
        """P283: `max` 0 asks for nothing; the wait is for tasks, not for answers."""
        name = await pull_endpoint(caller)
        (task,) = await fetched(caller, name)
        begun_s = monotonic_s()
        answers = [{"token": task["task_token"]}]
        frame = await Poller(caller, name).poll(max=0, wait_ms=0, answers=answers)
        assert (frame, monotonic_s() - begun_s < 8) == ({"tasks": [], "answers": [{"status": "ok"}]}, True)

    async def test_each_status(self, caller: Caller) -> None:
        """P287: a bad one keeps none of the others."""
        name = await pull_endpoint(caller)
        one, two, three = await fetched(caller, name, 3)
        (lost,) = await fetched(caller, name, lease_ms=1_000)
        await Poller(caller, name).task()
        tasks = [
            {"token": one["task_token"], "result": 1},
            {"token": one["task_token"], "result": 1},
            {"token": one["task_token"], "result": 2},
            {"token": one["task_token"], "state": "released"},
            {"token": lost["task_token"], "result": 1},
            {"token": "m1.forged", "result": 1},
            {"token": token_for(operation_id()), "result": 1},
            {"token": two["task_token"], "state": "perhaps"},
            {"token": two["task_token"], "result": 1, "result_base64": "MQ=="},
            {"token": two["task_token"], "result_base64": "!"},
            {"token": two["task_token"], "result": 1, "content_type": "text/plain\r\nx: y"},
            {"token": two["task_token"], "links": ["no link"]},
            {"token": two["task_token"], "state": "failed", "failure": {"message": 1}},
            {"token": two["task_token"], "state": "canceled", "message": "stopped"},
            {"token": three["task_token"], "state": "released"},
        ]
        answer = await caller.post("/v1/tasks/complete", {"tasks": tasks})
        assert statuses(answer.json) == [
            "ok", "ok", "conflict", "ended", "lost", "invalid", "unknown",
            *["invalid"] * 6, "ok", "ok",
        ]  # fmt: skip
        assert (await caller.record(two["operation_id"]))["state"] == "canceled"

    @pytest.mark.parametrize(
        ("body", "status", "code"),
        [
            (b"", 400, "json_invalid"),
            (b'{"tasks":[{}]}', 422, "body_invalid"),
            (b'{"tasks":[{"token":"t","mood":"good"}]}', 422, "body_invalid"),
            (b'{"tasks":[{"token":"t","result":%b%b}]}' % (b"[" * 20_000, b"]" * 20_000), 400, "json_invalid"),
            (json.dumps({"tasks": [{"token": "t"}] * 1001}).encode(), 422, "body_invalid"),
        ],
    )
    async def test_a_body_that_is_no_list_of_answers(self, caller: Caller, body: bytes, status: int, code: str) -> None:
        """P287."""
        for name in ("complete", "fail", "release"):
            check_problem(await caller.post(f"/v1/tasks/{name}", body), status, code)

    @pytest.mark.parametrize("path", ["poll", "/v1/tasks/complete"])
    async def test_one_that_cannot_be_read_keeps_none_of_the_others(self, caller: Caller, path: str) -> None:
        """P287: broken JSON, bytes that are no text, brackets without end, a field of no answer."""
        name = await pull_endpoint(caller)
        done = await fetched(caller, name, 6)
        results = [
            b"1", b"NaN", b'"\xff"', b"[" * 5_000 + b"]" * 5_000, b'{"a": ["],", "\\"" ]}', b'2,"mood":"good"'
        ]  # fmt: skip
        answers = [
            b'{"token": "%b", "result": %b}' % (task["task_token"].encode(), result)
            for task, result in zip(done, results, strict=True)
        ]
        listed = b"[%b]" % b" , ".join(answers)
        if path == "poll":
            body = b'{"instance":"odd","answers":%b,"max":0,"wait_ms":0}' % listed
            path = f"/v1/endpoints/{name}/poll"
        else:
            body = b'{"tasks":%b}' % listed
        said = (await caller.post(path, body)).json
        rows = said.get("answers") or said["tasks"]
        assert [row["status"] for row in rows] == ["ok", "invalid", "invalid", "invalid", "ok", "invalid"]
        assert [bool(row.get("detail")) for row in rows] == [row["status"] == "invalid" for row in rows]
        states = [(await caller.record(task["operation_id"]))["state"] for task in done]
        assert [state == "succeeded" for state in states] == [row["status"] == "ok" for row in rows]
        assert (await caller.result(done[4]["operation_id"], "0")).body == results[4]

    async def test_the_verb_is_the_state_that_is_left_out(self, caller: Caller) -> None:
        """P287."""
        name = await pull_endpoint(caller)
        failed, released = await fetched(caller, name, 2)
        for verb_, task in (("fail", failed), ("release", released)):
            answer = await caller.post(f"/v1/tasks/{verb_}", {"tasks": [{"token": task["task_token"]}]})
            assert statuses(answer.json) == ["ok"]
        assert (await caller.record(failed["operation_id"]))["state"] == "failed"
        assert (await caller.record(released["operation_id"]))["blocked"] == "busy"


class TestOne:
    @pytest.mark.parametrize(
        ("body", "sent", "kept"),
        [
            (b'{"a": 1.0}', "application/json", "application/json"),
            (b"\x00\xff", "image/png", "image/png"),
            (b'{"a":1}', "application/x-www-form-urlencoded", "application/json"),
            (b"a=1", "application/x-www-form-urlencoded", "application/octet-stream"),
            (b"", "", None),
        ],
        ids=["json", "any-type", "curl-d", "curl-d-no-json", "null"],
    )
    async def test_the_results_own_bytes_and_type(
        self, caller: Caller, body: bytes, sent: str, kept: str | None
    ) -> None:
        """P291."""
        name = await pull_endpoint(caller)
        (task,) = await fetched(caller, name)
        headers = {"content_type": sent} if sent else {}
        answer = await verb(caller, "complete", task["task_token"], body, **headers)
        assert (answer.status, answer.json) == (200, {"status": "ok"})
        result = await caller.result(task["operation_id"])
        assert (result.status, result.body, result.get("content-type")) == (200, body, kept)

    async def test_results_and_links_in_a_frame(self, caller: Caller) -> None:
        """P287: base64 for what is no JSON; links of the handler reach the caller."""
        name = await pull_endpoint(caller)
        call = asyncio.ensure_future(caller.nexus(name, headers={"prefer": "wait=10"}))
        task = await Poller(caller, name).task()
        link = '<http://example.com/run/1>; type="run"'
        fields = {"result_base64": base64.b64encode(b"\x01").decode(), "content_type": "image/png", "links": [link]}
        answer = await caller.post("/v1/tasks/complete", {"tasks": [{"token": task["task_token"], **fields}]})
        assert statuses(answer.json) == ["ok"]
        got = await call
        assert (got.body, got["content-type"], got.all("nexus-link")[1]) == (b"\x01", "image/png", link)

    async def test_a_key_is_not_asked_for_and_bearer_will_do(self, alpha: Caller) -> None:
        """P291, P5: the token is the proof."""
        name = await pull_endpoint(alpha)
        operation = await alpha.begin(name)
        task = await Poller(alpha, name).task()
        nobody = Caller(alpha.gateway)
        bearer = {"authorization": f"Bearer {task['task_token']}"}
        assert (await nobody.post("/v1/tasks/heartbeat", b"", bearer)).json == {"status": "ok"}
        assert (await nobody.post("/v1/tasks/complete", b"1", bearer)).json == {"status": "ok"}
        assert (await alpha.result(operation)).status == 200

    async def test_refusals(self, caller: Caller) -> None:
        """P291: as problems, with a code that says which."""
        name = await pull_endpoint(caller)
        done, ended = await fetched(caller, name, 2)
        (lost,) = await fetched(caller, name, lease_ms=1_000)
        await Poller(caller, name).task()
        await verb(caller, "complete", done["task_token"], b"1")
        await verb(caller, "fail", ended["task_token"])
        for token, name_, body, status, code in (
            (done["task_token"], "complete", b"2", 409, "other_outcome"),
            (done["task_token"], "release", b"", 409, "operation_ended"),
            (ended["task_token"], "heartbeat", b"", 409, "operation_ended"),
            (lost["task_token"], "complete", b"1", 409, "lease_lost"),
            (lost["task_token"], "fail", b"", 409, "lease_lost"),
            (lost["task_token"], "release", b"", 409, "lease_lost"),
            (lost["task_token"], "heartbeat", b"", 409, "lease_lost"),
            (token_for(operation_id()), "complete", b"1", 410, "operation_gone"),
            ("m1.forged", "complete", b"1", 401, "token_invalid"),
            ("m1.forged", "heartbeat", b"", 401, "token_invalid"),
            (token_for(operation_id(), expires_at_s=1), "release", b"", 401, "token_expired"),
            (lost["task_token"], "fail", b"[]", 400, "json_invalid"),
            (lost["task_token"], "fail", b'{"mood":1}', 422, "body_invalid"),
            (lost["task_token"], "fail", b'{"state":"x"}', 400, "state_invalid"),
            (lost["task_token"], "heartbeat", b'{"lease_ms":1}', 422, "body_invalid"),
        ):
            check_problem(await verb(caller, name_, token, body), status, code)

    async def test_a_repeat_is_ok(self, caller: Caller) -> None:
        """P287, P51."""
        (task,) = await fetched(caller, await pull_endpoint(caller))
        for _ in range(2):
            assert (await verb(caller, "complete", task["task_token"], b"1")).json == {"status": "ok"}

    async def test_work_that_was_sent_has_the_same_verbs(self, caller: Caller, agent: Actor) -> None:
        """P291, P289: an agent that answered 201 gives its work back, and is sent the next attempt."""
        agent.replies(started(headers={"mesh-lease-ms": "60000"}))
        operation = await caller.begin(await caller.register(agent.url))
        await caller.until(operation, state="started")
        token = agent.starts[0].completion_token
        assert (await verb(caller, "release", token, {"reason": "moving house"})).json == {"status": "ok"}
        again = await agent.until(2)
        assert (again.operation, again.attempt) == (operation, 2)
        assert (await caller.events(operation))[3]["reason"] == "moving house"
        assert (await verb(caller, "complete", again.completion_token, b"1")).status == 200


class TestFail:
    async def test_the_operation_failed(self, caller: Caller) -> None:
        """P288: as a 424."""
        name = await pull_endpoint(caller)
        failure = {"message": "no such file", "details": {"path": "/x"}}
        for body, message in (({"message": "boom"}, "boom"), ({"failure": failure}, "no such file"), ({}, "operation")):
            call = asyncio.ensure_future(caller.nexus(name, headers={"prefer": "wait=10"}))
            task = await Poller(caller, name).task()
            assert (await verb(caller, "fail", task["task_token"], body)).status == 200
            answer = await call
            assert (answer.status, answer["nexus-operation-state"]) == (424, "failed")
            assert message in json.dumps(answer.json)

    async def test_a_refusal_passes(self, caller: Caller) -> None:
        """P288, P13: a handler error that is not worth repeating ends it with its status."""
        name = await pull_endpoint(caller)
        call = asyncio.ensure_future(caller.nexus(name, headers={"prefer": "wait=10"}))
        task = await Poller(caller, name).task()
        assert (await verb(caller, "fail", task["task_token"], {"type": "NOT_FOUND", "message": "gone"})).status == 200
        answer = await call
        assert (answer.status, answer.json["message"], answer.json["details"]["type"]) == (404, "gone", "NOT_FOUND")
        assert (await caller.record(task["operation_id"]))["state"] == "failed"

    @pytest.mark.parametrize(
        "body", [{"type": "UNAVAILABLE"}, {"retryable": True}, {"type": "BAD_REQUEST", "retryable": True}]
    )
    async def test_worth_repeating(self, caller: Caller, body: dict[str, Any]) -> None:
        """P288, P90: it backs off; the next attempt is another task."""
        name = await pull_endpoint(caller, policy={"retry": {"initial_ms": 100, "jitter": 0.0}})
        (task,) = await fetched(caller, name)
        assert (await verb(caller, "fail", task["task_token"], body | {"message": "later"})).status == 200
        record = await caller.record(task["operation_id"])
        assert (record["state"], record["attempt"]) == ("backing_off", 1)
        again = await Poller(caller, name).task()
        assert (again["operation_id"], again["attempt"]) == (task["operation_id"], 2)
        failure = (await caller.record(task["operation_id"]))["last_failure"]
        assert (failure["attempt"], failure["message"]) == (1, "later")

    async def test_not_before_what_the_agent_asked_for(self, caller: Caller) -> None:
        """P288."""
        name = await pull_endpoint(caller, policy={"retry": {"initial_ms": 1}})
        (task,) = await fetched(caller, name)
        begun_s = monotonic_s()
        await verb(caller, "fail", task["task_token"], {"retryable": True, "retry_after_ms": 700})
        await Poller(caller, name).task()
        assert monotonic_s() - begun_s > 0.69

    async def test_no_attempt_left(self, caller: Caller) -> None:
        """P288, P92."""
        name = await pull_endpoint(caller, policy={"retry": {"max_attempts": 1}})
        (task,) = await fetched(caller, name)
        await verb(caller, "fail", task["task_token"], {"type": "INTERNAL", "message": "the last"})
        result = await caller.result(task["operation_id"])
        assert (result.status, result.json["metadata"]["reason"]) == (424, "attempts_exhausted")
        assert "the last" in json.dumps(result.json["cause"])


    @pytest.mark.parametrize(
        ("name", "body", "field"),
        [
            ("fail", {"reason": "the disk is full"}, "/reason"),
            ("fail", {"result": 1}, "/result"),
            ("fail", {"state": "canceled", "type": "NOT_FOUND"}, "/type"),
            ("release", {"message": "later"}, "/message"),
        ],
    )
    async def test_what_is_not_of_this_answer_is_not_lost(
        self, caller: Caller, name: str, body: dict[str, Any], field: str
    ) -> None:
        """P291: refused with its place, and the attempt stays; in a frame it is `invalid`."""
        (task,) = await fetched(caller, await pull_endpoint(caller))
        token = task["task_token"]
        check_problem(await verb(caller, name, token, body), 422, "body_invalid", field)
        many = await verb(caller, name, "", {"tasks": [{"token": token, **body}]})
        assert statuses(many.json) == ["invalid"]
        assert (await caller.record(task["operation_id"]))["state"] == "started"


class TestRelease:
    async def test_it_counts_against_nothing(self, caller: Caller) -> None:
        """P289: often, with one attempt allowed."""
        name = await pull_endpoint(caller, policy={"retry": {"max_attempts": 1}})
        operation = await caller.begin(name)
        poller = Poller(caller, name)
        for attempt in range(1, 5):
            task = await poller.task()
            assert task["attempt"] == attempt
            assert (await verb(caller, "release", task["task_token"])).json == {"status": "ok"}
        assert (await caller.record(operation))["blocked"] == "busy"

    @pytest.mark.parametrize("how", ["released", "lease over", "failed"])
    async def test_work_that_was_done_counts_until_somebody_else_has_it(self, caller: Caller, how: str) -> None:
        """P223, P286, P289: its outcome is taken; everything else of an attempt that was given up is `lost`."""
        name = await pull_endpoint(caller, policy={"retry": {"initial_ms": 60_000}})
        done, late = await fetched(caller, name, 2, lease_ms=1_000 if how == "lease over" else 60_000)
        for task in (done, late):
            if how == "lease over":
                await caller.until(task["operation_id"], state="scheduled")
            else:
                body = {"retryable": True} if how == "failed" else {}
                await verb(caller, "fail" if how == "failed" else "release", task["task_token"], body)
        check_problem(await verb(caller, "heartbeat", done["task_token"]), 409, "lease_lost")
        assert (await verb(caller, "complete", done["task_token"], b"1")).status == 200
        assert (await caller.record(done["operation_id"]))["state"] == "succeeded"
        if how != "failed":
            assert (await Poller(caller, name).task())["operation_id"] == late["operation_id"]
            check_problem(await verb(caller, "complete", late["task_token"], b"1"), 409, "lease_lost")

    async def test_a_late_answer_shows_in_the_history(self, caller: Caller) -> None:
        """P223: once per attempt, before another has answered and after it."""
        name = await pull_endpoint(caller)
        late = await fetched(caller, name, 2, lease_ms=60_000)
        for task in late:
            await verb(caller, "release", task["task_token"])
        tokens = {task["operation_id"]: task["task_token"] for task in await Poller(caller, name).tasks(2)}
        open_, ended = late
        assert (await verb(caller, "complete", tokens[ended["operation_id"]], b'"other"')).status == 200
        for task, code in ((open_, "lease_lost"), (ended, "other_outcome")):
            for body in (b"1", b"2"):
                check_problem(await verb(caller, "complete", task["task_token"], body), 409, code)
            events = await caller.events(task["operation_id"])
            refused = [(event["attempt"], event["verb"]) for event in events if event["type"] == "refused"]
            assert refused == [(1, "complete")]

    async def test_who_waits_has_it_at_once(self, caller: Caller) -> None:
        """P289, P282."""
        name = await pull_endpoint(caller)
        (task,) = await fetched(caller, name)
        async with Poller(caller, name).waiting() as poll:
            await verb(caller, "release", task["task_token"])
            (again,) = (await asyncio.wait_for(asyncio.shield(poll), 8))["tasks"]
        assert again["operation_id"] == task["operation_id"]


class TestCancel:
    async def test_a_waiting_poll_is_told_at_once(self, caller: Caller) -> None:
        """P290: also one that asks for no tasks."""
        name = await pull_endpoint(caller)
        operation = await caller.begin(name)
        poller = Poller(caller, name)
        task = await poller.task()
        async with poller.waiting(max=0) as poll:
            assert (await caller.cancel(operation)).status == 202
            frame = await asyncio.wait_for(asyncio.shield(poll), 8)
        assert frame == {
            "tasks": [], "cancels": [{"operation_id": operation, "run": 1, "attempt": 1, "state": "canceling"}]
        }  # fmt: skip
        assert (await verb(caller, "heartbeat", task["task_token"])).json == {"status": "cancel"}
        body = {"state": "canceled", "message": "stopped"}
        assert (await verb(caller, "fail", task["task_token"], body)).json == {"status": "ok"}
        assert (await caller.record(operation))["state"] == "canceled"
        assert await caller.deliveries(operation, "cancel") == []

    async def test_the_next_poll_is_told(self, caller: Caller) -> None:
        """P290: nobody else's is."""
        name = await pull_endpoint(caller)
        operation = await caller.begin(name)
        poller, other = Poller(caller, name), Poller(caller, name)
        await poller.task()
        await caller.cancel(operation)
        assert "cancels" not in await other.poll(wait_ms=0)
        frame = await poller.poll(wait_ms=5_000)
        assert [cancel["operation_id"] for cancel in frame["cancels"]] == [operation]
        assert "cancels" not in await poller.poll(wait_ms=0)

    async def test_a_timeout_is_told_too(self, caller: Caller) -> None:
        """P290, P102."""
        name = await pull_endpoint(caller, policy={"start_to_close_ms": 1_000})
        operation = await caller.begin(name)
        poller = Poller(caller, name)
        task = await poller.task()
        frame = await poller.poll()
        assert [(one["operation_id"], one["state"]) for one in frame["cancels"]] == [(operation, "timed_out")]
        check_problem(await verb(caller, "heartbeat", task["task_token"]), 409, "operation_ended")

    async def test_what_waits_is_canceled_at_once(self, caller: Caller) -> None:
        """P290, P31."""
        operation = await caller.begin(await pull_endpoint(caller))
        assert (await caller.cancel(operation)).json["state"] == "canceled"

    async def test_asked_before_it_is_handed_out_again(self, caller: Caller) -> None:
        """P290: given back after a cancel it ends instead of going to the next."""
        name = await pull_endpoint(caller)
        (task,) = await fetched(caller, name)
        await caller.cancel(task["operation_id"])
        assert (await verb(caller, "release", task["task_token"])).json == {"status": "ok"}
        assert (await caller.record(task["operation_id"]))["state"] == "canceled"
