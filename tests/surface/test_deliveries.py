"""Callbacks that are not taken at once: retries, dead letters, redelivery, lists."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

from tests.surface.actors import Actor, Reply, as_json
from tests.surface.checks import check_problem, verify
from tests.surface.gateways import ASYNC, Caller, unused_port

HTTP_DATE = re.compile(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT").fullmatch
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class TestRetry:
    async def test_until_it_is_taken_with_one_id(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        """P84, P85: a second, then twice that, each by +-20 %; signed anew, one webhook-id."""
        receiver.replies(Reply(500), Reply(429, headers={"retry-after": "1"}), Reply(204))
        operation = await caller.begin(await caller.register(agent.url), callback=receiver.url)
        calls = [await receiver.until(number) for number in (1, 2, 3)]
        gaps = [later.at_s - earlier.at_s for earlier, later in pairwise(calls)]
        assert 0.75 <= gaps[0] <= 10
        assert 1.55 <= gaps[1] <= 10
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
        assert 1.95 <= second.at_s - first.at_s <= 10

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
        """P85. Redirects are not followed."""
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
        await other.until(1)
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
        assert "404" in dead["why"], "the list says why it is dead"
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
        assert "503" in row.get("why", "503"), "not tried yet, or the last try's answer"
        assert (await caller.post(f"/v1/deliveries/{row['id']}/redeliver")).status == 202
        await receiver.until(2)

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
        for query, status in (("state=x", 422), ("kind=event", 422), ("cursor=x&state=delivered", 400)):
            assert (await caller.get(f"/v1/deliveries?{query}")).status == status
        page = (await caller.get("/v1/deliveries?state=delivered&limit=2")).json
        assert page["next_cursor"]

    async def test_many_dead_ones_have_pages(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        """P71."""
        receiver.replies(Reply(404))
        name = await caller.register(agent.url)
        operations: list[str] = []
        for _ in range(5):  # each dies before the next begins: they are listed by their deaths, not by their starts
            operations.append(await caller.begin(name, callback=receiver.url))
            await caller.until_delivery(operations[-1], "dead")
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
    # What goes on changing while callbacks are tried, and what only a look at the one operation adds (P65).
    changing = ("events", "updated_at", "instance", "callback")
    assert {k: v for k, v in told.items() if k not in changing} == {
        k: v for k, v in record.items() if k not in changing
    }
