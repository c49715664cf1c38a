"""Callbacks to callers: when they are owed, how each form looks, signatures, retries, dead letters, redelivery."""

from __future__ import annotations

import re
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from cloudevents.core.formats.json import JSONFormat
from standardwebhooks.webhooks import WebhookVerificationError

from tests.surface.actors import Actor, Call, Reply, as_json, handler_error, operation_error, started
from tests.surface.checks import TIME, verify
from tests.surface.gateways import ASYNC, WEBHOOK_SECRET, Caller

HTTP_DATE = re.compile(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT").fullmatch
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


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
        """P80: the outcome in the answer spares Nexus callbacks; who subscribed an event receiver wants every event."""
        name = await caller.register(agent.url)
        assert (await caller.v1(name, callback={"url": receiver.url, "format": "cloudevents"})).status == 200
        assert (await receiver.until(1)).json["data"]["state"] == "succeeded"


class TestNexusForm:
    async def test_a_result(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        """P81, P84, P86: the URL untouched, callback headers without prefix, the handler's body and type."""
        agent.replies(
            Reply(
                200, b'{ "x": 1 }', [("content-type", "application/json; v=1"), ("nexus-link", '<http://a/>; type="b"')]
            )
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

    async def test_a_refusal_of_the_handler_and_a_timeout(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
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
            (
                Reply(200, b"\xff", {"content-type": "a/b"}),
                "succeeded",
                {"result_base64": "/w==", "result_type": "a/b"},
            ),
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

    @pytest.mark.parametrize("form", ["nexus", "cloudevents", "cloudevents-binary"])
    async def test_every_try_has_the_same_bytes(self, caller: Caller, agent: Actor, receiver: Actor, form: str) -> None:
        """P84, P82: whoever tells repeats by `webhook-id` finds one body under it; only time and signature are new."""
        receiver.replies(Reply(503), Reply(200))
        agent.replies(operation_error("failed", "why"))
        name = await caller.register(agent.url)
        operation = (await caller.v1(name, [ASYNC], callback={"url": receiver.url, "format": form})).json["id"]
        first, second = await receiver.until(1), await receiver.until(2)
        await caller.until_delivery(operation, "delivered")
        assert first.body == second.body
        of_the_try = ("webhook-timestamp", "webhook-signature")
        assert [one for one in first.headers if one[0].lower() not in of_the_try] == [
            one for one in second.headers if one[0].lower() not in of_the_try
        ]
        verify(second)


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
