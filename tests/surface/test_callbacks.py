"""Callbacks to callers: when they are owed, how each form looks, signatures, retries, dead letters, redelivery."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from cloudevents.core.formats.json import JSONFormat
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from tests.surface.actors import Actor, Call, Reply, as_json, handler_error, operation_error, started
from tests.surface.gateways import ASYNC, WEBHOOK_SECRET, Caller, unused_port
from tests.surface.test_v1_start import TIME, check_problem

HTTP_DATE = re.compile(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT").fullmatch
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def verify(call: Call) -> None:
    """Standard Webhooks, by the package of its authors."""
    Webhook(WEBHOOK_SECRET).verify(call.body.decode(), dict(call.headers))


def event_of(call: Call) -> Any:
    """The CloudEvent, by the package of its authors."""
    return from_http_event(HTTPMessage(dict(call.headers), call.body), JSONFormat())


class TestOwed:
    @pytest.mark.parametrize("surface", ["nexus", "v1"])
    async def test_not_when_the_answer_was_the_outcome(
        self, caller: Caller, agent: Actor, receiver: Actor, surface: str
    ) -> None:
        """P80: Nexus form."""
        name = await caller.register(agent.url)
        if surface == "nexus":
            answer = await caller.nexus(name, callback=receiver.url)
        else:
            answer = await caller.v1(name, callback={"url": receiver.url})
        assert answer.status == 200
        (row,) = await caller.deliveries(agent.calls[0].operation)
        assert (row["state"], row["url"], row["tries"]) == ("dropped", receiver.url, 0)
        assert receiver.calls == []

    @pytest.mark.parametrize("reply", [operation_error("failed"), handler_error(400, "BAD_REQUEST")])
    async def test_not_for_a_failure_that_was_answered(
        self, caller: Caller, agent: Actor, receiver: Actor, reply: Reply
    ) -> None:
        """P80."""
        agent.replies(reply)
        await caller.nexus(await caller.register(agent.url), callback=receiver.url)
        (row,) = await caller.deliveries(agent.calls[0].operation)
        assert (row["state"], receiver.calls) == ("dropped", [])

    @pytest.mark.parametrize("surface", ["nexus", "v1"])
    @pytest.mark.parametrize("prefer", ["respond-async", "wait=0.05"])
    async def test_once_a_201_or_202_left(
        self, caller: Caller, agent: Actor, receiver: Actor, surface: str, prefer: str
    ) -> None:
        """P80."""
        gate = agent.holds()
        name = await caller.register(agent.url)
        if surface == "nexus":
            answer = await caller.nexus(name, headers={"prefer": prefer}, callback=receiver.url)
        else:
            answer = await caller.v1(name, {"prefer": prefer}, callback={"url": receiver.url})
        assert answer.status in (201, 202)
        gate.set()
        call = await receiver.until(1)
        assert (call.json, call["nexus-operation-token"]) == ("held", agent.calls[0].operation)

    async def test_events_are_always_owed(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        """P80: decision 37 spares Nexus callbacks; who subscribed an event receiver wants every event."""
        name = await caller.register(agent.url)
        assert (await caller.v1(name, callback={"url": receiver.url, "format": "cloudevents"})).status == 200
        assert (await receiver.until(1)).json["data"]["state"] == "succeeded"


class TestNexusForm:
    async def test_a_result(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        """P81, P84, P86: the URL with its query untouched, callback headers without prefix, body and type of the handler."""
        agent.replies(
            Reply(200, b'{ "x": 1 }', [("content-type", "application/json; v=1"), ("nexus-link", '<http://a/>; type="b"')])
        )
        operation = await caller.begin(
            await caller.register(agent.url),
            [
                ("Nexus-Callback-Token", '{"v":1,"d":"abc=="}'),
                ("nexus-callback-authorization", "Bearer x"),
                ("nexus-callback-x-many", "a"),
                ("nexus-callback-x-many", "b"),
                ("traceparent", TRACE),
            ],
            callback=receiver.url + "/p%2Fq?a=1&b=%20",
        )
        call = await receiver.until(1)
        assert (call.method, call.target) == ("POST", "/p%2Fq?a=1&b=%20")
        assert (call.body, call["content-type"]) == (b'{ "x": 1 }', "application/json; v=1")
        assert (call["token"], call["authorization"]) == ('{"v":1,"d":"abc=="}', "Bearer x")
        assert call.all("x-many") == ["a", "b"]
        assert (call["nexus-operation-token"], call["nexus-operation-state"]) == (operation, "succeeded")
        assert HTTP_DATE(call["nexus-operation-start-time"])
        record = await caller.record(operation)
        assert call["nexus-operation-close-time"] == record["closed_at"]
        assert call.all("nexus-link")[1:] == ['<http://a/>; type="b"']
        assert f"/v1/operations/{operation}>" in call.all("nexus-link")[0]
        assert (call["traceparent"], agent.calls[0]["traceparent"]) == (TRACE, TRACE)
        assert (call["webhook-id"], call["mesh-operation-id"]) == (f"{operation}.1", operation)
        verify(call)
        assert (await caller.until_delivery(operation, "delivered"))["webhook_id"] == f"{operation}.1"

    async def test_null(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        """P81: no body, no type."""
        agent.replies(Reply(200))
        await caller.begin(await caller.register(agent.url), callback=receiver.url)
        call = await receiver.until(1)
        assert (call.body, call.get("content-type"), call["content-length"]) == (b"", None, "0")

    @pytest.mark.parametrize("state", ["failed", "canceled"])
    async def test_a_failure(self, caller: Caller, agent: Actor, receiver: Actor, state: str) -> None:
        """P81."""
        agent.replies(operation_error(state, "why"))
        await caller.begin(await caller.register(agent.url), callback=receiver.url)
        call = await receiver.until(1)
        assert (call["nexus-operation-state"], call["content-type"]) == (state, "application/json")
        assert (call.json["message"], call.json["details"]["state"]) == ("why", state)
        verify(call)

    async def test_a_refusal_of_the_handler_and_a_timeout(
        self, caller: Caller, agent: Actor, receiver: Actor
    ) -> None:
        """P81: `failed`, with the refusal or the timeout as cause."""
        agent.replies(handler_error(403, "UNAUTHORIZED", "not you"), started(), Reply(202))
        name = await caller.register(agent.url)
        await caller.begin(name, callback=receiver.url)
        refused = (await receiver.until(1)).json
        assert (refused["cause"]["message"], refused["cause"]["details"]["type"]) == ("not you", "UNAUTHORIZED")
        await caller.begin(name, [("operation-timeout", "200ms")], callback=receiver.url)
        late = await receiver.until(2)
        assert late["nexus-operation-state"] == "failed"
        assert late.json["cause"]["metadata"]["timeout"] == "schedule_to_close"

    async def test_v1_callback_headers(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        """P81."""
        callback = {"url": receiver.url, "headers": {"Token": "t", "Traceparent": "own"}}
        await caller.v1(await caller.register(agent.url), [ASYNC, ("traceparent", TRACE)], callback=callback)
        call = await receiver.until(1)
        assert (call["token"], call["traceparent"]) == ("t", "own")


class TestCloudEvents:
    @pytest.mark.parametrize("form", ["cloudevents", "cloudevents-binary"])
    @pytest.mark.parametrize(
        ("reply", "state", "fields"),
        [
            (as_json({"x": "ü"}), "succeeded", {"result": {"x": "ü"}}),
            (Reply(200, b"\xff", {"content-type": "a/b"}), "succeeded", {"result_base64": "/w==", "result_type": "a/b"}),
            (operation_error("failed", "why"), "failed", {}),
        ],
        ids=["json", "bytes", "failure"],
    )
    async def test_an_event(
        self, caller: Caller, agent: Actor, receiver: Actor, form: str, reply: Reply, state: str, fields: dict[str, Any]
    ) -> None:
        """P82, P83, P84."""
        agent.replies(reply)
        name = await caller.register(agent.url)
        callback = {"url": receiver.url + "/e", "format": form, "headers": {"X-Mine": "a"}}
        operation = (await caller.v1(name, [ASYNC, ("traceparent", TRACE)], callback=callback)).json["id"]
        call = await receiver.until(1)
        event = event_of(call)
        assert (event.get_id(), event.get_subject()) == (f"{operation}.1", operation)
        assert event.get_type() == f"mesh.operation.{state}.v1"
        assert event.get_source() == f"/namespaces/default/endpoints/{name}"
        assert TIME(event.get_time().isoformat(timespec="milliseconds").replace("+00:00", "Z"))
        data = event.get_data()
        assert {"id": operation, "state": state, **fields}.items() <= data.items()
        if state == "failed":
            assert data["failure"]["message"] == "why"
        structured = call["content-type"].startswith("application/cloudevents+json")
        assert structured == (form == "cloudevents")
        assert ("ce-id" in dict(call.headers)) != structured
        assert (call["x-mine"], call["traceparent"], call["webhook-id"]) == ("a", TRACE, f"{operation}.1")
        verify(call)
        delivered = await caller.until_delivery(operation, "delivered")
        assert delivered["format"] == form


class TestSignature:
    async def test_a_changed_byte_or_another_secret_is_noticed(
        self, caller: Caller, agent: Actor, receiver: Actor
    ) -> None:
        """P84."""
        await caller.begin(await caller.register(agent.url), callback=receiver.url)
        call = await receiver.until(1)
        verify(call)
        call.body += b" "
        with pytest.raises(WebhookVerificationError):
            verify(call)

    async def test_the_secret_is_shown_to_its_owner(self, caller: Caller) -> None:
        """P84."""
        answer = await caller.get("/v1/webhook-secret")
        assert (answer.json, answer["cache-control"]) == ({"secret": WEBHOOK_SECRET}, "no-store")


class TestRetry:
    async def test_until_it_is_taken_with_one_id(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        """P84, P85: a second, then twice that, each by +-20 %; signed anew, one webhook-id."""
        receiver.replies(Reply(500), Reply(429, headers={"retry-after": "1"}), Reply(204))
        operation = await caller.begin(await caller.register(agent.url), callback=receiver.url)
        calls = [await receiver.until(number) for number in (1, 2, 3)]
        gaps = [later.at_s - earlier.at_s for earlier, later in zip(calls, calls[1:], strict=False)]
        assert 0.75 <= gaps[0] <= 1.7
        assert 1.55 <= gaps[1] <= 2.9
        assert {call["webhook-id"] for call in calls} == {f"{operation}.1"}
        assert calls[0]["webhook-timestamp"] != calls[2]["webhook-timestamp"]
        for call in calls:
            verify(call)
        row = await caller.until_delivery(operation, "delivered")
        assert row["tries"] == 3
        types = await caller.types(operation)
        assert types[-3:] == ["callback_failed", "callback_failed", "callback_delivered"]
        assert "500" in (await caller.events(operation))[-3]["error"]

    async def test_retry_after_is_kept(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        """P85: never sooner than the receiver asked."""
        receiver.replies(Reply(503, headers={"retry-after": "2"}), Reply(200))
        await caller.begin(await caller.register(agent.url), callback=receiver.url)
        first, second = await receiver.until(1), await receiver.until(2)
        assert 1.95 <= second.at_s - first.at_s <= 3.2

    @pytest.mark.parametrize(
        ("form", "status", "state"),
        [
            *[("nexus", status, "dead") for status in (400, 401, 403, 404, 409, 501)],
            *[("nexus", status, "pending") for status in (302, 307, 408, 410, 422, 429, 500, 503)],
            ("cloudevents", 410, "dead"),
            *[("cloudevents", status, "pending") for status in (307, 400, 401, 404, 409, 500)],
            *[("nexus", status, "delivered") for status in (200, 202, 204, 299)],
        ],
    )
    async def test_what_a_status_means(
        self, caller: Caller, agent: Actor, receiver: Actor, form: str, status: int, state: str
    ) -> None:
        """P85: decision 20. Redirects are not followed."""
        receiver.replies(Reply(status, headers={"location": f"{receiver.url}/elsewhere"}))
        callback = {"url": receiver.url, "format": form}
        operation = (await caller.v1(await caller.register(agent.url), [ASYNC], callback=callback)).json["id"]
        row = await caller.until_delivery(operation, state)
        assert (row["tries"], len(receiver.calls)) == (1, 1)
        assert ("next_at" in row) == (state == "pending")

    async def test_faults_of_the_line_are_repeated(
        self, caller: Caller, agent: Actor, receiver: Actor, actor: Callable[[], Awaitable[Actor]]
    ) -> None:
        """P85: refused, reset, garbage."""
        receiver.replies(b"")
        other = await actor()
        other.replies(b"HTTP/9.9 what\r\n\r\n")
        name = await caller.register(agent.url)
        urls = [receiver.url, other.url, f"http://127.0.0.1:{await unused_port()}/"]
        operations = [await caller.begin(name, callback=url) for url in urls]
        for operation in operations:
            await caller.until_delivery(operation, "pending")
            assert (await caller.types(operation))[-1] == "callback_failed"

    async def test_a_caller_who_is_slow_holds_up_nobody(
        self, caller: Caller, agent: Actor, receiver: Actor, actor: Callable[[], Awaitable[Actor]]
    ) -> None:
        """P85."""
        gate = receiver.holds()
        name, other = await caller.register(agent.url), await actor()
        slow = await caller.begin(name, callback=receiver.url)
        await receiver.until(1)
        await caller.begin(name, callback=other.url)
        await other.until(1, within_s=2)
        assert (await caller.deliveries(slow))[0]["state"] == "in_flight"
        gate.set()
        await caller.until_delivery(slow, "delivered")


class TestDeliveries:
    async def test_dead_listed_and_redelivered(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        """P71, P72: a receiver that refuses, then recovers; the same id."""
        receiver.replies(Reply(404), Reply(200))
        operation = await caller.begin(await caller.register(agent.url), callback=receiver.url)
        dead = await caller.until_delivery(operation, "dead")
        assert dead["id"] == f"{operation}.1.callback"
        assert await caller.deliveries(operation, state="dead") == [dead]
        assert await caller.deliveries(operation, state="delivered") == []
        answer = await caller.post(f"/v1/deliveries/{dead['id']}/redeliver")
        assert (answer.status, answer.json["state"]) == (202, "pending")
        second = await receiver.until(2)
        assert second["webhook-id"] == f"{operation}.1"
        await caller.until_delivery(operation, "delivered")
        assert await caller.deliveries(operation, state="dead") == []
        assert (await caller.types(operation))[-3:] == ["callback_dead", "redelivered", "callback_delivered"]

    async def test_a_delivered_one_may_be_sent_again(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        """P72."""
        operation = await caller.begin(await caller.register(agent.url), callback=receiver.url)
        row = await caller.until_delivery(operation, "delivered")
        assert (await caller.post(f"/v1/deliveries/{row['id']}/redeliver")).status == 202
        assert (await receiver.until(2)).json is None
        await caller.until_delivery(operation, "delivered")

    async def test_one_that_waits_for_its_back_off_goes_at_once(
        self, caller: Caller, agent: Actor, receiver: Actor
    ) -> None:
        """P72."""
        receiver.replies(Reply(503, headers={"retry-after": "60"}), Reply(200))
        operation = await caller.begin(await caller.register(agent.url), callback=receiver.url)
        row = await caller.until_delivery(operation, "pending")
        assert (await caller.post(f"/v1/deliveries/{row['id']}/redeliver")).status == 202
        await receiver.until(2, within_s=3)

    async def test_what_cannot_be_redelivered(self, caller: Caller, agent: Actor) -> None:
        """P72."""
        operation = (await caller.v1(await caller.register(agent.url)))["mesh-operation-id"]
        check_problem(await caller.post(f"/v1/deliveries/{operation}.1.callback/redeliver"), 400, "not_owed")
        for unknown in (
            "x", operation, f"{operation}.1.start", f"{operation}.2.callback", f"{operation}.%C2%B2.callback",
            "00-00000000000000000000.1.callback", f"{operation}.{'9' * 5000}.callback",
        ):  # fmt: skip
            answer = await caller.post(f"/v1/deliveries/{unknown}/redeliver")
            check_problem(answer, 404, "unknown_delivery")

    async def test_lists(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        """P71: starts and callbacks of what happened, and bad queries."""
        operation = await caller.begin(await caller.register(agent.url), callback=receiver.url)
        await caller.until_delivery(operation, "delivered")
        (start,) = await caller.deliveries(operation, "start")
        assert (start["state"], start["tries"], start["kind"]) == ("delivered", 1, "start")
        for query in ("state=x", "kind=event", "cursor=x&state=delivered"):
            assert (await caller.get(f"/v1/deliveries?{query}")).status == 400
        page = (await caller.get("/v1/deliveries?state=delivered&limit=2")).json
        assert page["next_cursor"]

    async def test_many_dead_ones_have_pages(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        """P71."""
        receiver.replies(Reply(404))
        name = await caller.register(agent.url)
        operations = [await caller.begin(name, callback=receiver.url) for _ in range(5)]
        for operation in operations:
            await caller.until_delivery(operation, "dead")
        seen: list[str] = []
        cursor = ""
        while True:
            page = (await caller.get(f"/v1/deliveries?state=dead&limit=2&cursor={cursor}")).json
            seen += [one["operation_id"] for one in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert [one for one in seen if one in operations] == operations[::-1]

    async def test_pages_never_hold_more_than_their_limit(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        """P71: an operation with several deliveries may stand on two pages, each delivery once."""
        name = await caller.register(agent.url)
        operations = [await caller.begin(name, callback=receiver.url) for _ in range(4)]
        for operation in operations:
            await caller.until_delivery(operation, "delivered")
        seen: list[str] = []
        cursor = ""
        for _ in range(3):
            page = (await caller.get(f"/v1/deliveries?limit=3&cursor={cursor}")).json
            assert len(page["items"]) == 3
            seen += [one["id"] for one in page["items"]]
            cursor = page["next_cursor"]
        wanted = [f"{operation}.1.{kind}" for operation in operations[::-1] for kind in ("start", "callback")]
        assert [one for one in seen if one in wanted] == wanted
        assert len(set(seen)) == 9


async def test_the_body_of_an_event_is_what_the_record_says(caller: Caller, agent: Actor, receiver: Actor) -> None:
    """P82: one shape for the record, wherever it is read."""
    agent.replies(as_json([1]))
    callback = {"url": receiver.url, "format": "cloudevents"}
    operation = (await caller.v1(await caller.register(agent.url), [ASYNC], callback=callback)).json["id"]
    told = (await receiver.until(1)).json["data"]
    await caller.until_delivery(operation, "delivered")
    record = await caller.record(operation)
    changing = ("events", "updated_at")
    assert {k: v for k, v in told.items() if k not in changing} == {k: v for k, v in record.items() if k not in changing}
