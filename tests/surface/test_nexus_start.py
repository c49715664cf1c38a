"""Starting over Nexus: the four kinds of answer, waiting, repeats."""

from __future__ import annotations

import asyncio
import json

import pytest

from mesh.clock import monotonic_s
from tests.surface.actors import Actor, Reply, as_json, handler_error, operation_error, started
from tests.surface.gateways import ASYNC, Caller, fresh
from tests.surface.wire import Connection


def link(caller: Caller, operation: str) -> str:
    return f'<{caller.gateway.url("/v1/operations/" + operation)}>; type="mesh.Operation"'


class TestAnswers:
    async def test_200_is_the_handlers_result_byte_for_byte(self, caller: Caller, agent: Actor) -> None:
        """P10."""
        agent.replies(Reply(200, b'{ "a" : 1.0 }', {"content-type": "application/json; charset=utf-8"}))
        answer = await caller.nexus(await caller.register(agent.url), b'{"n":  1}')
        assert (answer.status, answer.body) == (200, b'{ "a" : 1.0 }')
        assert answer["content-type"] == "application/json; charset=utf-8"
        assert answer["nexus-operation-state"] == "succeeded"
        (call,) = agent.calls
        assert answer["mesh-operation-id"] == call.operation
        assert answer["nexus-link"] == link(caller, call.operation)

    async def test_201_has_the_operation_id_as_token(self, caller: Caller, agent: Actor) -> None:
        """P11: the agent's own token stays inside."""
        agent.replies(started("inner"))
        answer = await caller.nexus(await caller.register(agent.url), headers={"prefer": "wait=0.05"})
        assert (answer.status, answer["content-type"]) == (201, "application/json")
        assert answer.json == {"token": agent.calls[0].operation, "state": "running"}
        assert answer["nexus-link"] == link(caller, answer.json["token"])

    @pytest.mark.parametrize("state", ["failed", "canceled"])
    async def test_424_says_it_in_both_shapes(self, caller: Caller, agent: Actor, state: str) -> None:
        """P12: the body of today, the header of older clients."""
        agent.replies(operation_error(state, "no luck"))
        answer = await caller.nexus(await caller.register(agent.url))
        assert (answer.status, answer["nexus-operation-state"]) == (424, state)
        assert (answer.json["message"], answer.json["details"]["state"]) == ("no luck", state)
        assert answer.json["metadata"]["type"] == "nexus.OperationError"
        assert answer["mesh-operation-id"] == agent.calls[0].operation
        assert answer.get("mesh-failure-source") is None

    @pytest.mark.parametrize(
        ("reply", "message"),
        [
            (
                Reply(
                    424, b'{"message":"old"}', {"content-type": "application/json", "nexus-operation-state": "failed"}
                ),
                "old",
            ),
            (Reply(424, b"plain", {"nexus-operation-state": "canceled"}), "plain"),
        ],
    )
    async def test_424_of_an_older_agent(self, caller: Caller, agent: Actor, reply: Reply, message: str) -> None:
        """P43: the state only in the header, the plain cause as body."""
        agent.replies(reply)
        answer = await caller.nexus(await caller.register(agent.url))
        state = dict(reply.headers)["nexus-operation-state"]
        assert (answer.status, answer.json["details"]["state"]) == (424, state)
        assert answer.json["cause"]["message"] == message

    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (400, "BAD_REQUEST"),
            (401, "UNAUTHENTICATED"),
            (403, "UNAUTHORIZED"),
            (404, "NOT_FOUND"),
            (409, "CONFLICT"),
            (501, "NOT_IMPLEMENTED"),
        ],
    )
    async def test_a_refusal_passes_untouched(self, caller: Caller, agent: Actor, status: int, kind: str) -> None:
        """P13: status, headers and body, to the request and to its repeats; late readers get 424 with it as cause."""
        reply = handler_error(status, kind)
        reply.headers.append(("x-of-the-handler", "yes"))
        agent.replies(reply)
        name = await caller.register(agent.url)
        for replayed in (None, "true"):
            answer = await caller.nexus(name, headers={"nexus-request-id": "r1"})
            assert (answer.status, answer.body, answer["x-of-the-handler"]) == (status, reply.body, "yes")
            assert answer["content-type"] == "application/json"
            assert (answer.get("mesh-failure-source"), answer.get("idempotency-replayed")) == (None, replayed)
        late = await caller.result(agent.calls[0].operation)
        assert (late.status, late.json["cause"]["details"]["type"]) == (424, kind)
        assert len(agent.calls) == 1

    @pytest.mark.parametrize(
        "reply",
        [
            Reply(404),
            Reply(400, b"what?", {"content-type": "text/plain"}),
            Reply(404, b'{"detail":"Not Found"}', {"content-type": "application/json"}),
            Reply(500, b"<h1>no</h1>", {"nexus-request-retryable": "false", "content-type": "text/html"}),
        ],
    )
    async def test_a_refusal_in_other_words_passes_too(self, caller: Caller, agent: Actor, reply: Reply) -> None:
        """P13: bodies that are no Failure, and an empty one."""
        agent.replies(reply)
        answer = await caller.nexus(await caller.register(agent.url))
        assert (answer.status, answer.body) == (reply.status, reply.body)
        assert answer.get("content-type") == dict(reply.headers).get("content-type")
        assert (await caller.result(agent.calls[0].operation)).status == 424

    async def test_the_bodys_retryable_override_beats_the_status(self, caller: Caller, agent: Actor) -> None:
        """P13, P90: an INTERNAL that says it is not worth repeating is a refusal; a NOT_FOUND that is, is repeated."""
        agent.replies(handler_error(500, "INTERNAL", retryableOverride=False))
        assert (await caller.nexus(await caller.register(agent.url))).status == 500
        agent.replies(handler_error(404, "NOT_FOUND", retryableOverride=True), as_json("second"))
        name = await caller.register(agent.url, policy={"retry": {"initial_ms": 10}})
        assert (await caller.nexus(name)).json == "second"


class TestWaiting:
    async def test_without_a_header_the_gateways_default(self, caller: Caller, agent: Actor) -> None:
        """P14: 2 s."""
        gate = agent.holds()
        name = await caller.register(agent.url)
        tries_s: list[float] = []
        while len(tries_s) < 4 and not any(one <= 2.6 for one in tries_s):  # the best one, as below
            asked_at_s = monotonic_s()
            answer = await caller.nexus(name)
            tries_s.append(monotonic_s() - asked_at_s)
            assert (answer.status, tries_s[-1] > 1.9) == (201, True), tries_s
        assert min(tries_s) <= 2.6, tries_s
        gate.set()

    @pytest.mark.parametrize(
        ("headers", "low_s", "high_s"),
        [
            ({"prefer": "respond-async"}, 0, 0.2),
            ({"prefer": "wait=0"}, 0, 0.2),
            ({"prefer": "wait=0.3"}, 0.28, 0.6),
            ({"prefer": "respond-async, wait=0.3"}, 0.28, 0.6),
            ({"request-timeout": "400ms"}, 0.30, 0.399),
            ({"request-timeout": "1.0s"}, 0.90, 0.999),
            ({"request-timeout": "1.0s", "prefer": "wait=5"}, 0.90, 0.999),
            ({"request-timeout": "5s", "prefer": "wait=0.2"}, 0.18, 0.5),
        ],
    )
    async def test_how_long(
        self, caller: Caller, agent: Actor, headers: dict[str, str], low_s: float, high_s: float
    ) -> None:
        """P14: with Request-Timeout the 201 is there before the caller's patience ends.

        The best of a few tries counts: a busy machine wakes anybody late, a gateway that waits too long is late always.
        """
        gate = agent.holds()
        name = await caller.register(agent.url)
        tries_s: list[float] = []
        while len(tries_s) < 5 and not any(one <= high_s for one in tries_s):
            asked_at_s = monotonic_s()
            answer = await caller.nexus(name, headers=headers)
            tries_s.append(monotonic_s() - asked_at_s)
            assert (answer.status, low_s <= tries_s[-1]) == (201, True), tries_s
        assert min(tries_s) <= high_s, tries_s
        gate.set()

    async def test_who_is_called_back_gets_the_201_after_the_default(
        self, alpha: Caller, agent: Actor, receiver: Actor
    ) -> None:
        """P14: Request-Timeout is a bound then (this gateway's default is 100 ms); `Prefer` is still a wish."""
        gate = agent.holds()
        name = await alpha.register(agent.url)
        for headers, low_s, high_s in (({}, 0.09, 0.5), ({"prefer": "wait=0.6"}, 0.58, 1.0)):
            tries_s: list[float] = []
            while len(tries_s) < 5 and not any(one <= high_s for one in tries_s):
                asked_at_s = monotonic_s()
                answer = await alpha.nexus(name, headers={"request-timeout": "5s", **headers}, callback=receiver.url)
                tries_s.append(monotonic_s() - asked_at_s)
                assert (answer.status, low_s <= tries_s[-1]) == (201, True), tries_s
            assert min(tries_s) <= high_s, tries_s
        gate.set()

    async def test_who_is_called_back_gets_the_201_with_the_agents(
        self, caller: Caller, agent: Actor, receiver: Actor
    ) -> None:
        """P14, P161: at once and with its links, where nothing was said of waiting."""
        agent.replies(started(headers={"nexus-link": '<http://a/>; type="b"'}))
        name = await caller.register(agent.url)
        asked_at_s = monotonic_s()
        answer = await caller.nexus(name, headers={"request-timeout": "9s"}, callback=receiver.url)
        assert (answer.status, monotonic_s() - asked_at_s < 7) == (201, True)
        assert answer.all("nexus-link")[1:] == ['<http://a/>; type="b"']
        assert (await agent.calls[0].complete(body=b'"later"')).status == 200
        assert (await receiver.until(1)).json == "later"

    async def test_an_outcome_within_the_wait_is_the_answer(self, caller: Caller, agent: Actor) -> None:
        """P14: also when the agent answered 201 first and completes meanwhile."""

        async def script(call: object, writer: object) -> Reply:
            return started()

        agent.script = script
        asked = asyncio.create_task(caller.nexus(await caller.register(agent.url), headers={"prefer": "wait=10"}))
        call = await agent.until(1)
        await caller.until(call.operation, state="started")
        assert (await call.complete(body=b'"in time"')).status == 200
        answer = await asked
        assert (answer.status, answer.json) == (200, "in time")

    async def test_the_connection_of_a_201_takes_the_next_request(self, caller: Caller, agent: Actor) -> None:
        """P14: while the attempt is out, whose end answers none of them."""
        gate = agent.holds()
        target = f"/nexus/endpoints/{await caller.register(agent.url)}/services/s/o"
        async with await Connection.open(caller.gateway.port) as connection:
            operations: list[str] = []
            for _ in range(3):
                connection.send("POST", target, {"prefer": "wait=0.15"})
                answer = await connection.answer()
                assert answer.status == 201
                operations.append(answer.json["token"])
            gate.set()
            for operation in operations:
                connection.send("GET", f"/v1/operations/{operation}/result?wait=30")
                answer = await connection.answer()
                assert (answer.status, answer.json, answer["mesh-operation-id"]) == (200, "held", operation)
        assert len(agent.calls) == 3

    async def test_a_caller_that_hangs_up_cancels_nothing(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        """P14: and is told by callback."""
        gate = agent.holds()
        name = await caller.register(agent.url)
        async with await Connection.open(caller.gateway.port) as connection:
            target = f"/nexus/endpoints/{name}/services/s/o?callback=http%3A%2F%2F127.0.0.1%3A{receiver.port}%2Fdone"
            connection.send("POST", target, {"prefer": "wait=60"})
            call = await agent.until(1)
            await caller.until(call.operation, state="scheduled")
        await caller.until_gauge("mesh_waits_open", 0)
        gate.set()
        assert (await caller.result(call.operation)).json == "held"
        assert (await receiver.until(1)).path == "/done"


class TestRepeats:
    async def test_the_same_key_and_content_is_the_same_operation(self, caller: Caller, agent: Actor) -> None:
        """P15: while it runs, and after; either header names the key, quoted or not."""
        agent.replies(started())
        name = await caller.register(agent.url)
        first = await caller.nexus(name, headers=[ASYNC, ("nexus-request-id", "k 1".replace(" ", "-"))])
        again = await caller.nexus(name, headers=[ASYNC, ("idempotency-key", '"k-1"')])
        assert (first.status, again.status, again.json) == (201, 201, first.json)
        assert (first.get("idempotency-replayed"), again["idempotency-replayed"]) == (None, "true")
        assert (await (await agent.until(1)).complete(body=b"[1]")).status == 200
        done = await caller.nexus(name, headers={"nexus-request-id": "k-1"})
        assert (done.status, done.json, done["idempotency-replayed"]) == (200, [1], "true")
        assert len(agent.starts) == 1

    async def test_fifty_at_once_are_one(self, caller: Caller, agent: Actor) -> None:
        """P15."""
        gate = agent.holds()
        name = await caller.register(agent.url)
        key = {"nexus-request-id": fresh("key"), "prefer": "wait=10"}
        asked = [asyncio.create_task(caller.nexus(name, headers=key)) for _ in range(50)]
        await agent.until(1)
        gate.set()
        answers = await asyncio.gather(*asked)
        assert {(one.status, one.json, one["mesh-operation-id"]) for one in answers} == {
            (200, "held", agent.calls[0].operation)
        }
        assert (len(agent.calls), sum(one.get("idempotency-replayed") is None for one in answers)) == (1, 1)

    async def test_what_may_differ_between_tries(self, caller: Caller, agent: Actor) -> None:
        """P15: timeouts, callback header values, links, trace headers."""
        agent.replies(started())
        name = await caller.register(agent.url)
        first = await caller.begin(name, [("nexus-request-id", "k")], callback="http://127.0.0.1:9/x")
        other = [
            ("nexus-request-id", "k"),
            ("operation-timeout", "5m"),
            ("nexus-callback-token", "other"),
            ("nexus-link", '<http://x/y>; type="t"'),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ]
        assert await caller.begin(name, other, callback="http://127.0.0.1:9/x") == first

    @pytest.mark.parametrize("what", ["body", "type", "callback"])
    async def test_other_content_is_409_and_changes_nothing(self, caller: Caller, agent: Actor, what: str) -> None:
        """P16."""
        agent.replies(started())
        name = await caller.register(agent.url)
        first = await caller.begin(name, [("nexus-request-id", "k")])
        before = await caller.until(first, state="started")
        answer = await caller.nexus(
            name,
            b"1" if what == "body" else b"null",
            {"nexus-request-id": "k", "content-type": "text/x" if what == "type" else "application/json"},
            callback="http://127.0.0.1:9/x" if what == "callback" else "",
        )
        assert (answer.status, answer.code) == (409, "key_reused")
        assert (answer.json["details"]["type"], answer["mesh-operation-id"]) == ("CONFLICT", first)
        assert answer["nexus-request-retryable"] == "false"
        assert (await caller.record(first), len(agent.calls)) == (before, 1)

    async def test_a_key_belongs_to_its_operation_name(self, caller: Caller, agent: Actor) -> None:
        """P15: the scope is namespace, endpoint, service, operation."""
        agent.replies(started())
        name = await caller.register(agent.url)
        key = [("nexus-request-id", "k")]
        found = {
            await caller.begin(name, key),
            await caller.begin(name, key, service="b"),
            await caller.begin(name, key, operation="b"),
            await caller.begin(await caller.register(agent.url), key),
        }
        assert len(found) == 4

    async def test_no_key_no_dedupe(self, caller: Caller, agent: Actor) -> None:
        """P15."""
        name = await caller.register(agent.url)
        assert await caller.begin(name) != await caller.begin(name)

    @pytest.mark.parametrize(
        "headers",
        [
            [("nexus-request-id", "")],
            [("nexus-request-id", "x" * 256)],
            [("nexus-request-id", "a b")],
            [("idempotency-key", '"open')],
            [("nexus-request-id", "a"), ("idempotency-key", "b")],
        ],
    )
    async def test_keys_that_are_none(self, caller: Caller, agent: Actor, headers: list[tuple[str, str]]) -> None:
        """P15: 1 to 255 visible ASCII characters."""
        answer = await caller.nexus(await caller.register(agent.url), headers=headers)
        assert (answer.status, answer.code, agent.calls) == (400, "idempotency_key_invalid", [])

    async def test_a_repeat_that_got_201_is_told_by_callback(
        self, caller: Caller, agent: Actor, receiver: Actor
    ) -> None:
        """P15, P80: although the first request is still open and gets the outcome itself."""
        gate = agent.holds()
        name = await caller.register(agent.url)
        key = ("nexus-request-id", "k")
        first = asyncio.create_task(
            caller.nexus(name, headers=[key, ("prefer", "wait=20")], callback=receiver.url + "/told")
        )
        call = await agent.until(1)
        again = await caller.nexus(name, headers=[key, ASYNC], callback=receiver.url + "/told")
        assert (again.status, again.json["token"]) == (201, call.operation)
        gate.set()
        assert (await first).json == "held"
        assert json.loads((await receiver.until(1)).body) == "held"
