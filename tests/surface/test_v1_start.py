"""POST /v1/operations: answers, waiting, repeats, the raw slice of the input, and what is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mesh.clock import monotonic_s
from tests.surface.actors import Actor, Reply, as_json, handler_error, operation_error, started
from tests.surface.checks import TIME, check_problem
from tests.surface.gateways import ASYNC, Caller, fresh
from tests.surface.wire import Connection


class TestAnswers:
    async def test_200_is_the_finished_record(self, caller: Caller, agent: Actor) -> None:
        """P60, P65."""
        agent.replies(as_json({"b": 1}))
        name = await caller.register(agent.url)
        answer = await caller.v1(name, [("idempotency-key", '"k"')], input={"a": 1}, labels={"team": "x"})
        assert (answer.status, answer["content-type"], answer["cache-control"]) == (200, "application/json", "no-store")
        record = answer.json
        operation = agent.calls[0].operation
        expected = {
            "id": operation, "state": "succeeded", "run": 1, "attempt": 1, "endpoint": name, "service": "svc",
            "operation": "op", "namespace": "default", "labels": {"team": "x"}, "deadline": None, "events": 3,
            "idempotency_key": "k", "result": {"b": 1},
        }  # fmt: skip
        assert expected.items() <= record.items()
        assert all(TIME(record[name]) for name in ("created_at", "updated_at", "closed_at"))
        assert record.keys() == expected.keys() | {"created_at", "updated_at", "closed_at"}
        assert await caller.record(operation) == record | {"instance": "target"}
        assert (answer["location"], answer["mesh-operation-id"]) == (f"/v1/operations/{operation}", operation)

    async def test_202_says_where_and_when_to_look(self, caller: Caller, agent: Actor) -> None:
        """P60."""
        agent.replies(started())
        answer = await caller.v1(await caller.register(agent.url), [ASYNC])
        assert (answer.status, answer["retry-after"], answer["preference-applied"]) == (202, "1", "respond-async")
        record = answer.json
        assert (record["state"], record["closed_at"]) == ("scheduled", None)
        assert answer["location"] == f"/v1/operations/{record['id']}"
        assert "result" not in record

    async def test_202_tells_the_state_as_of_the_answer(self, caller: Caller, agent: Actor) -> None:
        """P60: not that of the acceptance, which the wait has outlived."""
        agent.replies(started(), handler_error(503, "UNAVAILABLE", "busy"))
        name = await caller.register(agent.url)
        answer = await caller.v1(name, {"prefer": "wait=0.3"})
        assert (answer.status, answer.json["state"], answer.json["events"]) == (202, "started", 3)
        again = await caller.v1(name, {"prefer": "wait=0.3"})
        assert (again.status, again.json["state"], again.json["attempt"]) == (202, "backing_off", 1)

    @pytest.mark.parametrize(
        ("reply", "state"),
        [
            (operation_error("failed", "no"), "failed"),
            (operation_error("canceled", "no"), "canceled"),
            (handler_error(400, "BAD_REQUEST", "no"), "failed"),
        ],
    )
    async def test_200_whatever_the_outcome(self, caller: Caller, agent: Actor, reply: Reply, state: str) -> None:
        """P60, P66: only /result answers 424."""
        agent.replies(reply)
        answer = await caller.v1(await caller.register(agent.url))
        assert (answer.status, answer.json["state"]) == (200, state)
        failure = answer.json["failure"]
        assert failure["details"]["state"] == state
        assert "no" in (failure["message"], failure.get("cause", {}).get("message"))

    @pytest.mark.parametrize(
        ("reply", "fields"),
        [
            (Reply(200), {"result": None}),
            (as_json(None), {"result": None}),
            (Reply(200, b"\x00\xff", {"content-type": "image/x"}), {"result_base64": "AP8=", "result_type": "image/x"}),
            (Reply(200, b"{bad", {"content-type": "application/json"}),
             {"result_base64": "e2JhZA==", "result_type": "application/json"}),
            (Reply(200, b"{}", {"content-type": "application/problem+json"}), {"result": {}}),
        ],
    )  # fmt: skip
    async def test_results_that_are_not_json(
        self, caller: Caller, agent: Actor, reply: Reply, fields: dict[str, Any]
    ) -> None:
        """P65."""
        agent.replies(reply)
        record = (await caller.v1(await caller.register(agent.url))).json
        assert {name: value for name, value in record.items() if name.startswith("result")} == fields

    @pytest.mark.parametrize(
        ("prefer", "low_s", "high_s", "applied"),
        [
            ("respond-async", 0, 1.2, "respond-async"),
            ("wait=0", 0, 1.2, "wait=0"),
            ("wait=0.00001", 0, 1.2, "wait=0"),
            ("wait=0.3", 0.28, 1.5, "wait=0.3"),
            ("wait=1", 0.98, 1.9, "wait=1"),
            ("", 1.95, 4, None),
        ],
    )
    async def test_how_long(
        self, caller: Caller, agent: Actor, prefer: str, low_s: float, high_s: float, applied: str | None
    ) -> None:
        """P61."""
        gate = agent.holds()
        name = await caller.register(agent.url)
        asked_at_s = monotonic_s()
        answer = await caller.v1(name, [("prefer", prefer)] if prefer else [])
        took_s = monotonic_s() - asked_at_s
        assert (answer.status, low_s <= took_s <= high_s) == (202, True), took_s
        assert answer.get("preference-applied") == applied
        gate.set()


class TestRepeats:
    async def test_the_same_key_and_content(self, caller: Caller, agent: Actor) -> None:
        """P62: also over the other surface."""
        agent.replies(started())
        name, key = await caller.register(agent.url), fresh("k")
        first = await caller.v1(name, [ASYNC, ("idempotency-key", key)], input=None)
        again = await caller.v1(name, [ASYNC, ("idempotency-key", key)], input=None, labels={"other": "labels"})
        assert (first.status, again.status, again.json["id"]) == (202, 202, first.json["id"])
        assert (first.get("idempotency-replayed"), again["idempotency-replayed"]) == (None, "true")
        assert await caller.begin(name, [("nexus-request-id", key)]) == first.json["id"]
        await (await agent.until(1)).complete(body=b"3")
        done = await caller.v1(name, [("idempotency-key", key)], input=None)
        assert (done.status, done.json["result"], done["idempotency-replayed"]) == (200, 3, "true")
        assert len(agent.starts) == 1

    async def test_other_content_is_422(self, caller: Caller, agent: Actor) -> None:
        """P62: nothing changed."""
        agent.replies(started())
        name = await caller.register(agent.url)
        first = (await caller.v1(name, [ASYNC, ("idempotency-key", "k")], input=1)).json
        before = await caller.until(first["id"], state="started")
        for fields in ({"input": 2}, {"input": 1.0}, {}, {"input": 1, "callback": {"url": "http://127.0.0.1:9/"}}):
            answer = await caller.v1(name, [("idempotency-key", "k")], **fields)
            check_problem(answer, 422, "key_reused")
            assert answer.json["operation_id"] == first["id"]
        assert (await caller.record(first["id"]), len(agent.starts)) == (before, 1)

    async def test_fifty_at_once_are_one(self, caller: Caller, agent: Actor) -> None:
        """P62."""
        name = await caller.register(agent.url)
        answers = await asyncio.gather(*[caller.v1(name, [("idempotency-key", "k")], input=1) for _ in range(50)])
        assert {(one.status, one.json["id"]) for one in answers} == {(200, agent.calls[0].operation)}
        assert len(agent.calls) == 1


class TestInput:
    @pytest.mark.parametrize(
        "raw",
        [b"null", b"1.0", b'"\\u00e9\xc3\xa9"', b'{"b" :1,\n"a":  [ 1e3 ]}', b"12345678901234567890.10", b'""'],
    )
    async def test_a_raw_slice(self, caller: Caller, agent: Actor, raw: bytes) -> None:
        """P64: the agent gets the caller's own bytes."""
        name = (await caller.register(agent.url)).encode()
        body = b'{ "endpoint":"%b","service":"s","operation":"o","input":%b }' % (name, raw)
        assert (await caller.post("/v1/operations", body)).status == 200
        assert (agent.calls[0].body, agent.calls[0]["content-type"]) == (raw, "application/json")

    async def test_absent_is_null_without_a_type(self, caller: Caller, agent: Actor) -> None:
        """P64."""
        assert (await caller.v1(await caller.register(agent.url))).status == 200
        assert (agent.calls[0].body, agent.calls[0].get("content-type")) == (b"", None)

    @pytest.mark.parametrize(
        "raw",
        [
            *(b'{"a":1,"a":2}', b"NaN", b"-Infinity", b"1e999", b'"\\ud800"', b'"\\u0000"', b'"\xff"'),
            *(b"[" * 300 + b"]" * 300, b"01", b"1 2", b"tru", b'{"a":}', b"9" * 5000),
        ],
    )
    async def test_what_two_readers_could_read_differently(self, caller: Caller, agent: Actor, raw: bytes) -> None:
        """P64: 400, wherever in the body it stands."""
        name = (await caller.register(agent.url)).encode()
        body = b'{"endpoint":"%b","service":"s","operation":"o","input":%b}' % (name, raw)
        check_problem(await caller.post("/v1/operations", body), 400, "json_invalid")
        assert agent.calls == []

    async def test_a_field_given_twice(self, caller: Caller, agent: Actor) -> None:
        """P64."""
        body = b'{"endpoint":"a","endpoint":"b","service":"s","operation":"o"}'
        check_problem(await caller.post("/v1/operations", body), 400, "json_invalid")

    async def test_headers_go_along(self, caller: Caller, agent: Actor) -> None:
        """P42: but those that speak of this request's own body."""
        name = await caller.register(agent.url)
        await caller.v1(name, {"traceparent": "00-1-2-3", "x-mine": "a", "content-type": "text/x"}, input=1)
        call = agent.calls[0]
        assert (call["traceparent"], call["x-mine"], call["content-type"]) == ("00-1-2-3", "a", "application/json")


class TestRefused:
    @pytest.mark.parametrize(
        ("fields", "code", "pointer"),
        [
            ({"endpoint": 1}, "body_invalid", "/endpoint"),
            ({"endpoint": "-x"}, "body_invalid", "/endpoint"),
            ({"service": ""}, "body_invalid", "/service"),
            ({"operation": ".."}, "body_invalid", "/operation"),
            ({"operation": "x" * 1001}, "body_invalid", "/operation"),
            ({"labels": {"a": 1}}, "body_invalid", "/labels/a"),
            ({"labels": {"": "x"}}, "body_invalid", "/labels"),
            ({"labels": {str(number): "" for number in range(17)}}, "body_invalid", "/labels"),
            ({"timeouts": {"schedule_to_close_ms": 0}}, "body_invalid", "/timeouts/schedule_to_close_ms"),
            ({"timeouts": {"start_to_close_ms": "1s"}}, "body_invalid", "/timeouts/start_to_close_ms"),
            ({"timeouts": {"request_timeout_ms": 10**15}}, "body_invalid", "/timeouts/request_timeout_ms"),
            ({"callback": {}}, "body_invalid", "/callback"),
            ({"callback": {"url": "http://127.0.0.1:9/", "format": "x"}}, "body_invalid", "/callback/format"),
            (
                {"callback": {"url": "http://127.0.0.1:9/", "headers": {"Host": "x"}}},
                "body_invalid",
                "/callback/headers",
            ),
            (
                {"callback": {"url": "http://127.0.0.1:9/", "headers": {"X": "a\nb"}}},
                "body_invalid",
                "/callback/headers",
            ),
            ({"callback": {"url": "http://127.0.0.1:9/", "headers": {"X": "ü"}}}, "body_invalid", "/callback/headers"),
        ],
    )
    async def test_wrong_fields_are_422_with_pointers(
        self, caller: Caller, agent: Actor, fields: dict[str, Any], code: str, pointer: str
    ) -> None:
        """P63."""
        body = {"endpoint": await caller.register(agent.url), "service": "s", "operation": "o"} | fields
        check_problem(await caller.post("/v1/operations", body), 422, code, pointer)
        assert agent.calls == []

    async def test_all_faults_are_told_at_once(self, caller: Caller) -> None:
        """P63."""
        body = {"endpoint": 1, "service": "s", "x": 2, "timeouts": {"request_timeout_ms": "1s"}, "callback": {}}
        answer = await caller.post("/v1/operations", body)
        told = [(each["pointer"], each["detail"].partition(" `")[0]) for each in answer.json["errors"]]
        assert told == [
            ("", "Object contains unknown field"),
            ("/endpoint", "Expected"),
            ("", "Object missing required field"),
            ("/callback", "Object missing required field"),
            ("/timeouts/request_timeout_ms", "Expected"),
        ]

    @pytest.mark.parametrize(
        "body", [b"{}", b"[]", b"1", b'{"endpoint":"a"}', b'{"endpoint":"a1","service":"s","operation":"o","x":1}']
    )
    async def test_missing_and_unknown_fields(self, caller: Caller, body: bytes) -> None:
        """P63."""
        answer = await caller.post("/v1/operations", body)
        assert (answer.status, answer.code) == (422, "body_invalid"), answer
        assert answer.json["errors"]

    @pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"endpoint":"a"', b"\xef\xbb\xbf{}"])
    async def test_no_json(self, caller: Caller, body: bytes) -> None:
        """P63."""
        check_problem(await caller.post("/v1/operations", body), 400, "json_invalid")

    async def test_unknown_names_are_404(self, caller: Caller, agent: Actor) -> None:
        """P22."""
        name = await caller.register(agent.url, services=[{"name": "s", "operations": [{"name": "o"}]}])
        check_problem(await caller.v1("nobody"), 404, "unknown_endpoint")
        check_problem(await caller.v1(name), 404, "unknown_service")
        check_problem(await caller.v1(name, service="s"), 404, "unknown_operation_name")

    async def test_a_schema_breach_is_422_with_pointers_into_the_body(self, caller: Caller, agent: Actor) -> None:
        """P20."""
        schema = {"type": "object", "properties": {"a/b": {"type": "array", "items": {"type": "integer"}}}}
        name = await caller.register(
            agent.url, services=[{"name": "s", "operations": [{"name": "o", "input": schema}]}]
        )
        answer = await caller.v1(name, service="s", operation="o", input={"a/b": [1, "x"]})
        check_problem(answer, 422, "schema_breach", "/input/a~1b/1")
        check_problem(await caller.v1(name, service="s", operation="o"), 422, "schema_breach", "/input")
        assert agent.calls == []

    @pytest.mark.parametrize("form", ["nexus", "cloudevents"])
    async def test_a_forbidden_callback(self, caller: Caller, agent: Actor, form: str) -> None:
        """P19."""
        callback = {"url": "http://10.1.2.3/", "format": form}
        check_problem(await caller.v1(await caller.register(agent.url), callback=callback), 400, "url_forbidden")

    async def test_sizes(self, caller: Caller, agent: Actor) -> None:
        """P2: 413 and 431 here."""
        name = await caller.register(agent.url)
        check_problem(await caller.v1(name, input="x" * (2 * 1024 * 1024)), 413, "too_large")
        check_problem(await caller.v1(name, {"cookie": "x" * 33_000}), 431, "headers_too_large")
        check_problem(await caller.v1(name, {"x": "x" * 8_200}), 400, "header_too_large")
        check_problem(await caller.v1(name, {"idempotency-key": "x" * 256}), 400, "idempotency_key_invalid")
        check_problem(await caller.v1(name, {"prefer": "wait=x"}), 400, "prefer_invalid")
        check_problem(await caller.v1(name, {"content-encoding": "gzip"}), 400, "encoding_not_supported")
        async with await Connection.open(caller.gateway.port) as connection:
            coded = {"transfer-encoding": "gzip, chunked", "content-type": "application/json"}
            connection.send("POST", "/v1/operations", coded, b"2\r\n{}\r\n0\r\n\r\n")
            check_problem(await connection.answer(), 400, "encoding_not_supported")
        assert agent.calls == []

    @pytest.mark.parametrize(
        ("method", "path", "status", "code"),
        [
            ("GET", "/v1/nothing", 404, "unknown_route"),
            ("GET", "/nothing", 404, "unknown_route"),
            ("GET", "/v1/operationsx/result", 404, "unknown_operation"),
            ("GET", "/v1/operations/result", 404, "unknown_operation"),
            ("GET", "/v1/operations/%2e%2e/result", 404, "unknown_operation"),
        ],
    )
    async def test_other_paths_and_methods(
        self, caller: Caller, method: str, path: str, status: int, code: str
    ) -> None:
        """P8."""
        check_problem(await caller.ask(method, path), status, code)

    @pytest.mark.parametrize(
        ("method", "path", "allow"),
        [
            ("PUT", "/v1/operations", "GET, POST"),
            ("DELETE", "/v1/operations/x", "GET"),
            ("POST", "/v1/operations/x/result", "GET"),
            ("PATCH", "/v1/endpoints/x", "DELETE, GET, PUT"),
        ],
    )
    async def test_a_wrong_method_is_told_the_right_ones(
        self, caller: Caller, method: str, path: str, allow: str
    ) -> None:
        """P8: all of them, also where several routes share the path."""
        answer = await caller.ask(method, path)
        check_problem(answer, 405, "method_not_allowed")
        assert answer["allow"] == allow
