"""Polls and tasks: who gets what, in which form, and what happens while nobody asks."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from collections.abc import Callable

import pytest

from mesh.clock import monotonic_s
from tests.surface.checks import TIME, check_problem
from tests.surface.gateways import Caller, Gateway
from tests.surface.pollers import Poller, pull_endpoint, verb
from tests.surface.wire import Connection


class TestPoll:
    async def test_a_start_meets_a_waiting_poll(self, caller: Caller) -> None:
        """P280, P281: one step, one event, and the caller has the result."""
        name = await pull_endpoint(caller)
        poller = Poller(caller, name, "laptop-7")
        async with poller.waiting(lease_ms=5_000) as poll:
            call = asyncio.ensure_future(
                caller.nexus(name, b'{"a": 1.0}', {"prefer": "wait=10", "traceparent": "00-ab-cd-01", "x-team": "a"})
            )
            (task,) = (await poll)["tasks"]
        operation = task["operation_id"]
        assert {name: task[name] for name in task if name not in ("task_token", "operation_id", "headers")} == {
            "namespace": "default", "service": "svc", "operation": "op", "run": 1, "attempt": 1, "lease_ms": 5_000,
            "input": {"a": 1.0},
        }  # fmt: skip
        assert task["headers"] == {"traceparent": "00-ab-cd-01", "x-team": "a"}
        record = await caller.record(operation)
        assert (record["state"], record["attempt"], record["instance"]) == ("started", 1, "laptop-7")
        assert (
            await verb(caller, "complete", task["task_token"], b'{"b":2}', content_type="application/json")
        ).json == {"status": "ok"}
        answer = await call
        assert (answer.status, answer.body, answer["content-type"]) == (200, b'{"b":2}', "application/json")
        events = await caller.events(operation)
        assert [event["type"] for event in events] == ["accepted", "started", "succeeded"]
        assert events[1]["instance"] == "laptop-7"

    async def test_empty_after_its_wait(self, caller: Caller) -> None:
        """P280."""
        poller = Poller(caller, await pull_endpoint(caller))
        begun_s = monotonic_s()
        assert await poller.poll(wait_ms=300) == {"tasks": []}
        assert 0.29 < monotonic_s() - begun_s < 5
        assert await poller.poll(wait_ms=0) == {"tasks": []}

    async def test_input_of_every_kind(self, caller: Caller) -> None:
        """P281: JSON as it is; what is not, or would spoil a frame, in base64; null as nothing."""
        name = await pull_endpoint(caller)
        poller = Poller(caller, name)
        deep = b"[" * 300 + b"]" * 300
        for body, content_type, expected in (
            (b' {"z":1, "a":[1e2]} ', "application/json", {"input": {"z": 1, "a": [1e2]}}),
            (b"null", "application/json", {"input": None}),
            (b"[]", "application/json; charset=utf-8",
             {"input": [], "content_type": "application/json; charset=utf-8"}),
            (b'{"cut":', "application/json", {"input_base64": b'{"cut":', "content_type": "application/json"}),
            (b'"\xff"', "application/json", {"input_base64": b'"\xff"', "content_type": "application/json"}),
            (deep, "application/json", {"input_base64": deep, "content_type": "application/json"}),
            (b"\x00\x01", "application/octet-stream",
             {"input_base64": b"\x00\x01", "content_type": "application/octet-stream"}),
            (b"plain", "text/plain", {"input_base64": b"plain", "content_type": "text/plain"}),
            (b"", "", {}),
        ):  # fmt: skip
            headers = {"content-type": content_type} if content_type else {}
            await caller.begin(name, headers, body=body, json=False)
            task = await poller.task()
            given = {name: task[name] for name in ("input", "input_base64", "content_type") if name in task}
            if "input_base64" in given:
                given["input_base64"] = base64.b64decode(given["input_base64"])
            assert given == expected

    async def test_json_input_is_passed_byte_for_byte(self, caller: Caller) -> None:
        """P281: spaces, order and number forms of the caller stay."""
        name = await pull_endpoint(caller)
        exact = b'{ "b" :1.50,"a": "\\u00e9" }'
        await caller.begin(name, body=exact)
        assert exact in (await Poller(caller, name).ask(max=1)).body

    async def test_deadlines_and_links_travel(self, caller: Caller) -> None:
        """P281."""
        name = await pull_endpoint(caller, policy={"start_to_close_ms": 40_000})
        link = '<http://example.com/1>; type="t"'
        await caller.begin(name, {"operation-timeout": "60s", "nexus-link": link})
        task = await Poller(caller, name).task()
        assert TIME(task["deadline"])
        assert 30_000 < task["timeout_ms"] <= 40_000
        assert task["headers"]["nexus-link"] == link

    @pytest.mark.parametrize(
        ("body", "code", "pointer"),
        [
            (b"{", "json_invalid", None),
            (b"[]", "body_invalid", None),
            (b"{}", "body_invalid", None),
            (b'{"instance":"a","max":-1}', "body_invalid", "/max"),
            (b'{"instance":"a","max":1001}', "body_invalid", "/max"),
            (b'{"instance":"a","wait_ms":60001}', "body_invalid", "/wait_ms"),
            (b'{"instance":"a","lease_ms":10}', "body_invalid", "/lease_ms"),
            (b'{"instance":"a","answers":{"token":1}}', "body_invalid", None),
            (b'{"instance":"a","answers":[{"token":1}],"wait_ms":-1}', "body_invalid", "/wait_ms"),
            (b'{"instance":"a","more":1}', "body_invalid", None),
            (b'{"instance":"-a"}', "name_invalid", None),
            (b'{"instance":"\xff"}', "json_invalid", None),
        ],
    )
    async def test_a_body_that_is_no_poll(self, caller: Caller, body: bytes, code: str, pointer: str | None) -> None:
        """P280."""
        answer = await caller.post(f"/v1/endpoints/{await pull_endpoint(caller)}/poll", body)
        check_problem(answer, 422 if code == "body_invalid" else 400, code, pointer)

    async def test_who_may_poll_what(self, caller: Caller, alpha: Caller, beta: Caller) -> None:
        """P280, P6."""
        check_problem(await Poller(caller, "nobody").ask(), 404, "unknown_endpoint")
        check_problem(await Poller(caller, await caller.register(None)).ask(), 409, "endpoint_pushes")
        shared = await pull_endpoint(alpha, allow=["*"])
        check_problem(await Poller(beta, shared).ask(), 404, "unknown_endpoint")
        answer = await beta.ask("POST", f"/v1/endpoints/{shared}/poll/more", (), {"instance": "a"})
        assert answer.status == 404

    async def test_a_url_cannot_be_registered(self, caller: Caller) -> None:
        """P280."""
        name = await pull_endpoint(caller)
        answer = await caller.ask("PUT", f"/v1/endpoints/{name}/instances/i-1", (), {"url": "http://127.0.0.1:9"})
        check_problem(answer, 400, "endpoint_pulls")
        spec = {"target": {"kind": "pull", "url": "http://127.0.0.1:9"}}
        check_problem(await caller.ask("PUT", f"/v1/endpoints/{name}", (), spec), 422, "body_invalid", "/target")


class TestLine:
    async def test_what_nobody_asks_for_waits(self, caller: Caller) -> None:
        """P282: no_instance, then busy; the next poll gets it all in the order of acceptance."""
        name = await pull_endpoint(caller)
        first = await caller.begin(name)
        record = await caller.record(first)
        assert (record["state"], record["blocked"], record["attempt"]) == ("scheduled", "no_instance", 0)
        poller = Poller(caller, name)
        assert (await poller.task())["operation_id"] == first
        others = [await caller.begin(name) for _ in range(3)]
        assert (await caller.record(others[0]))["blocked"] == "busy"
        await caller.until(others[2], blocked="busy")
        assert [task["operation_id"] for task in await poller.tasks(3)] == others

    async def test_many_in_one_frame_and_no_more_than_asked(self, caller: Caller) -> None:
        """P283."""
        name = await pull_endpoint(caller)
        begun = [await caller.begin(name) for _ in range(7)]
        poller = Poller(caller, name)
        tasks = await poller.tasks(5)
        rest = await poller.tasks(2)
        assert [task["operation_id"] for task in tasks + rest] == begun
        assert await poller.poll(max=0, wait_ms=0) == {"tasks": []}

    async def test_a_frame_is_no_larger_than_4_mib(self, caller: Caller) -> None:
        """P283: the rest waits for the next poll."""
        name = await pull_endpoint(caller)
        large = json.dumps("x" * 1_500_000).encode()
        begun = {await caller.begin(name, body=large) for _ in range(4)}
        poller = Poller(caller, name)
        sizes: list[int] = []
        got: set[str] = set()
        while len(got) < 4:
            answer = await poller.ask(max=4)
            sizes.append(len(answer.body))
            got |= {task["operation_id"] for task in answer.json["tasks"]}
        assert got == begun
        assert len(sizes) > 1
        assert max(sizes) < 6 << 20

    async def test_services_are_picked(self, caller: Caller) -> None:
        """P284: from the line, and from what comes in."""
        name = await pull_endpoint(caller)
        lint, test = await caller.begin(name, service="Lint"), await caller.begin(name, service="Test")
        tester = Poller(caller, name)
        assert (await tester.task(services=["Test", "Other"]))["operation_id"] == test
        assert await tester.poll(services=["Test"], wait_ms=200) == {"tasks": []}
        async with tester.waiting(services=["Test"]) as poll:
            later = await caller.begin(name, service="Lint")
            assert (await caller.record(later))["state"] == "scheduled"
            wanted = await caller.begin(name, service="Test")
            assert [task["operation_id"] for task in (await poll)["tasks"]] == [wanted]
        assert [task["operation_id"] for task in await Poller(caller, name).tasks(2)] == [lint, later]

    async def test_others_do_not_have_seen_the_line_for_it(self, caller: Caller) -> None:
        """P284, P282: what a poll for other services passed over is handed to the right one at once."""
        name = await pull_endpoint(caller)
        async with Poller(caller, name).waiting(services=["Other"]):
            wanted = await caller.begin(name, service="Lint")
            # The other poll's look at the line is over: nothing of it is for that one.
            await caller.until_gauge("mesh_seats_promised", 0)
            frame = await Poller(caller, name).poll(services=["Lint"], wait_ms=100)
            assert [task["operation_id"] for task in frame["tasks"]] == [wanted]

    async def test_instances_take_turns(self, caller: Caller) -> None:
        """P285."""
        name = await pull_endpoint(caller)
        pollers = [Poller(caller, name, f"i-{number}") for number in range(3)]
        got: list[str] = []

        async def work(poller: Poller) -> None:
            while len(got) < 12:
                for task in (await poller.poll(wait_ms=500))["tasks"]:
                    got.append(poller.instance)
                    await verb(caller, "complete", task["task_token"])

        workers = [asyncio.ensure_future(work(poller)) for poller in pollers]
        for _ in range(12):
            await caller.nexus(name)
        await asyncio.gather(*workers)
        assert {got.count(poller.instance) for poller in pollers} <= {3, 4, 5}, got

    async def test_a_repeat_goes_to_who_had_it(self, caller: Caller) -> None:
        """P285."""
        name = await pull_endpoint(caller)
        one, two = Poller(caller, name), Poller(caller, name)
        operation = await caller.begin(name)
        task = await two.task()
        assert (await verb(caller, "release", task["task_token"])).status == 200
        await caller.until(operation, blocked="busy")
        await caller.ask("POST", f"/v1/endpoints/{name}/pause")
        async with one.waiting() as first, two.waiting() as second:
            await caller.ask("POST", f"/v1/endpoints/{name}/resume")
            assert [task["attempt"] for task in (await second)["tasks"]] == [2]
            assert not first.done()

    async def test_pause_and_limits_hold(self, caller: Caller) -> None:
        """P282, P94, P95."""
        name = await pull_endpoint(caller, policy={"max_concurrency": 2})
        await caller.ask("POST", f"/v1/endpoints/{name}/pause")
        begun = [await caller.begin(name) for _ in range(3)]
        poller = Poller(caller, name)
        assert await poller.poll(max=3, wait_ms=300) == {"tasks": []}
        assert (await caller.record(begun[0]))["blocked"] == "paused"
        await caller.ask("POST", f"/v1/endpoints/{name}/resume")
        tasks = await poller.tasks(2)
        assert await poller.poll(wait_ms=300) == {"tasks": []}
        await caller.until(begun[2], blocked="concurrency")
        async with poller.waiting() as poll:
            assert (await verb(caller, "complete", tasks[0]["task_token"])).status == 200
            assert [task["operation_id"] for task in (await poll)["tasks"]] == [begun[2]]


class TestLostFrames:
    async def test_who_hung_up_gets_nothing(self, caller: Caller) -> None:
        """P292: its seat is known to be empty; the next poll has the work at once, at no cost."""
        name = await pull_endpoint(caller)
        async with Poller(caller, name).waiting():
            pass
        await caller.until_gauge("mesh_polls_open", 0)
        operation = await caller.begin(name)
        assert (await caller.record(operation))["state"] == "scheduled"
        assert (await Poller(caller, name).task())["operation_id"] == operation

    async def test_who_hangs_up_while_the_start_is_stored(self, own_gateway: Callable[..., Gateway]) -> None:
        """P292: leased to it already, and given back before anything was written; the next one has it at no cost."""
        gateway = await asyncio.get_running_loop().run_in_executor(None, own_gateway)
        caller = Caller(gateway)
        name = await pull_endpoint(caller, policy={"retry": {"max_attempts": 1}})
        await Poller(caller, name).poll(wait_ms=0)
        body = json.dumps({"instance": "cut", "wait_ms": 20_000, "lease_ms": 60_000}).encode()
        async with await Connection.open(gateway.port) as connection:
            connection.send("POST", f"/v1/endpoints/{name}/poll", (), body)
            await caller.until_gauge("mesh_polls_open", 1)
            store = gateway.store_pid()
            os.kill(store, signal.SIGSTOP)
            try:
                start = asyncio.ensure_future(caller.nexus(name, headers={"prefer": "wait=10"}))
                await caller.until_gauge("mesh_seats_promised", 1)
                connection.writer.transport.abort()
                await caller.until_gauge("mesh_polls_open", 0)
            finally:
                os.kill(store, signal.SIGCONT)
        task = await Poller(caller, name).task()
        assert task["attempt"] == 2
        assert await caller.types(task["operation_id"]) == ["accepted", "started", "released", "started"]
        assert (await verb(caller, "complete", task["task_token"])).status == 200
        assert (await start).status == 200

    async def test_who_fell_silent_gets_nothing_more(self, caller: Caller) -> None:
        """P292: its polls that still wait are answered when its lease ends, for nobody may be there to read them."""
        name = await pull_endpoint(caller)
        operation = await caller.begin(name)
        frozen = Poller(caller, name)
        await frozen.task(lease_ms=4_000)  # both polls wait before it ends
        async with frozen.waiting(wait_ms=60_000) as one, frozen.waiting(wait_ms=60_000) as other:
            assert [await one, await other] == [{"tasks": []}, {"tasks": []}]
        task = await Poller(caller, name).task()
        assert (task["operation_id"], task["attempt"]) == (operation, 2)

    async def test_a_frame_that_was_written_is_the_agents(self, caller: Caller) -> None:
        """P292, P286: what is lost later comes back when the lease ends, as the next attempt."""
        name = await pull_endpoint(caller)
        operation = await caller.begin(name)
        await Poller(caller, name).task(lease_ms=1_000)
        task = await Poller(caller, name).task()
        assert (task["operation_id"], task["attempt"]) == (operation, 2)
        assert "attempt_lost" in await caller.types(operation)
