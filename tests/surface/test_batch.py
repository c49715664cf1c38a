"""Many starts in one request: an outcome a line, in order, whatever became of the others (P365 to P367)."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import pytest

from gateway.batch_lines import BATCH_BYTES_MAX, BLANKS_MAX, LINES_MAX, Line, Splitter
from gateway.operations import EACH_BATCHES_MAX
from mesh.clock import sleep
from tests.surface.actors import Actor, Call, Reply, as_json
from tests.surface.checks import check_problem
from tests.surface.gateways import ALPHA, Caller
from tests.surface.wire import Answer, Connection, read_chunks, read_head

PATH = "/v1/operations/batch"
PARALLEL = 2


def line(endpoint: str, **fields: Any) -> bytes:
    return json.dumps({"endpoint": endpoint, "service": "svc", "operation": "op"} | fields).encode() + b"\n"


def outcomes(answer: Answer) -> list[dict[str, Any]]:
    assert answer.status == 200, answer
    assert answer["content-type"] == "application/x-ndjson"
    return [json.loads(one) for one in answer.body.splitlines()]


class TestBatch:
    async def test_a_bad_line_stops_no_other(self, caller: Caller, agent: Actor) -> None:
        """P365: each has its outcome, in order, numbered as in the body."""
        name = await caller.register(agent.url)
        body = b"".join(
            [
                line(name, input=1, labels={"batch": "b-1"}),
                b"{no json\n",
                b"\n",
                line("nobody-has-this-name"),
                line(name, delay_ms=-1),
                line(name, input=2, parent={"token": "x", "key": "k"}),
                line(name, idempotency_key="a b"),
                line(name, input=3, labels={"batch": "b-1"}).rstrip(b"\n"),
            ]
        )
        found = outcomes(await caller.post(PATH, body))
        assert [one["line"] for one in found] == [1, 2, 4, 5, 6, 7, 8]
        assert [one["status"] for one in found] == [202, 400, 404, 422, 422, 422, 202]
        codes = [one["problem"]["code"] for one in found if "problem" in one]
        assert codes == ["json_invalid", "unknown_endpoint", "body_invalid", "body_invalid", "body_invalid"]
        pointers = [one["problem"]["errors"][0]["pointer"] for one in found[3:6]]
        assert pointers == ["/delay_ms", "/parent", "/idempotency_key"]
        for one in (found[0], found[-1]):
            await caller.until(one["id"], state="succeeded")
        assert {call.body for call in agent.starts} == {b"1", b"3"}
        page = await caller.get("/v1/operations?label.batch=b-1")
        assert {one["id"] for one in page.json["items"]} == {found[0]["id"], found[-1]["id"]}

    async def test_keys(self, caller: Caller, agent: Actor) -> None:
        """P365, P15: as for single starts, within one batch, over two, and shared with the other surfaces."""
        name = await caller.register(agent.url)
        single = (await caller.v1(name, {"idempotency-key": "k-1"}, input=1)).json["id"]
        body = line(name, input=1, idempotency_key="k-1") + line(name, input=2, idempotency_key="k-1")
        body += line(name, input=5) + line(name, input=6, idempotency_key="k-2")
        body += line(name, input=6, idempotency_key="k-2")
        first = outcomes(await caller.post(PATH, body, {"idempotency-key": '"whole"'}))
        assert (first[0]["id"], first[0]["replayed"]) == (single, True)
        assert (first[1]["status"], first[1]["problem"]["code"]) == (422, "key_reused")
        assert first[1]["problem"]["operation_id"] == single
        assert first[2]["idempotency_key"] == "whole.3"
        assert (first[4]["id"], first[4]["replayed"]) == (first[3]["id"], True)
        again = outcomes(await caller.post(PATH, body, {"idempotency-key": "whole"}))
        assert [one.get("id") for one in again] == [one.get("id") for one in first]
        assert again[2]["replayed"] is True
        await caller.until(first[2]["id"], state="succeeded")
        await caller.until(first[3]["id"], state="succeeded")
        assert len(agent.starts) == 3

    async def test_headers_are_of_every_line(self, caller: Caller, agent: Actor) -> None:
        """P365."""
        name = await caller.register(agent.url)
        headers = {"x-team": "a", "nexus-link": '<https://example.com/1>; type="t"'}
        (one,) = outcomes(await caller.post(PATH, line(name), headers))
        call = await agent.until(1)
        assert (call["x-team"], call["nexus-link"].split(";")[0]) == ("a", "<https://example.com/1>")
        assert call.operation == one["id"]

    async def test_limits_hold(self, caller: Caller, agent: Actor) -> None:
        """P366, P95: all of a batch run, never more at once than the endpoint takes."""
        running = most = 0

        async def script(_call: Call, _writer: object) -> Reply:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.wait([asyncio.ensure_future(agent.until(10_000, 0.05))])
            running -= 1
            return as_json(1)

        agent.script = script
        name = await caller.register(agent.url, policy={"max_concurrency": PARALLEL})
        found = outcomes(await caller.post(PATH, line(name) * 8))
        for one in found:
            await caller.until(one["id"], state="succeeded")
        assert most == PARALLEL

    async def test_begin_later_and_fetched(self, caller: Caller) -> None:
        """P365, P360, P282: what is due goes to whoever polls, what begins later does not."""
        name = "batch-pulled"
        assert (await caller.ask("PUT", f"/v1/endpoints/{name}", (), {"target": {"kind": "pull"}})).status == 201
        body = line(name, input=1) + line(name, input=2, delay_ms=3_600_000) + line(name, input=3)
        found = outcomes(await caller.post(PATH, body))
        assert ["starts_at" in one for one in found] == [False, True, False]
        poll = {"instance": "p-1", "max": 8, "wait_ms": 5_000}
        got: set[str] = set()
        while len(got) < 2:
            answer = await caller.post(f"/v1/endpoints/{name}/poll", poll)
            assert answer.json["tasks"]
            got |= {task["operation_id"] for task in answer.json["tasks"]}
        assert got == {found[0]["id"], found[2]["id"]}

    async def test_other_namespaces(self, alpha: Caller, beta: Caller, teams: Any) -> None:
        """P365, P5, P6: what may not be called is not there; no key, no batch."""
        name = await alpha.register(None)
        (one,) = outcomes(await beta.post(PATH, line(name)))
        assert (one["status"], one["problem"]["code"]) == (404, "unknown_endpoint")
        check_problem(await Caller(teams).post(PATH, line(name)), 401, "key_missing")


class TestStreams:
    async def test_outcomes_come_while_the_body_is_sent(self, caller: Caller) -> None:
        """P366: chunked, with `Expect`; the answer begins when the first line has an outcome."""
        name = await caller.register(None)
        async with await Connection.open(caller.gateway.port) as connection:
            headers = {"transfer-encoding": "chunked", "expect": "100-continue"}
            connection.send("POST", PATH, headers)
            start, _ = await read_head(connection.reader)
            assert " 100 " in start
            text = line(name, input=1)
            connection.writer.write(b"%x\r\n%b\r\n" % (len(text), text))
            start, _ = await read_head(connection.reader)
            assert " 200 " in start
            chunks = read_chunks(connection.reader)
            assert json.loads(await anext(chunks))["line"] == 1
            connection.writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(text), text))
            assert json.loads(await anext(chunks))["line"] == 2
            assert [rest async for rest in chunks] == []

    async def test_hanging_up_leaves_what_arrived(self, caller: Caller) -> None:
        """P366: whole lines are started, the one that was cut is not; a repeat with the same key finds them."""
        name = await caller.register(None)
        whole = line(name, input="cut", idempotency_key="cut-1")
        async with await Connection.open(caller.gateway.port) as connection:
            connection.send("POST", PATH, {"content-length": str(len(whole) * 3)})
            connection.writer.write(whole + line(name, input="cut", idempotency_key="cut-2").rstrip())
            await read_head(connection.reader)
        found = outcomes(await caller.post(PATH, whole + line(name, input="cut", idempotency_key="cut-2")))
        assert [one.get("replayed", False) for one in found] == [True, False]


class TestBounds:
    async def test_lines(self, caller: Caller) -> None:
        """P367: the first beyond is the last that is told of."""
        found = outcomes(await caller.post(PATH, b"1\n" * (LINES_MAX + 5)))
        assert len(found) == LINES_MAX + 1
        assert (found[-1]["line"], found[-1]["status"]) == (LINES_MAX + 1, 413)
        assert found[-1]["problem"]["code"] == "batch_too_long"

    async def test_blank_lines(self, caller: Caller) -> None:
        """P367: what starts nothing has its bound too; they count as lines, and have no outcome."""
        found = outcomes(await caller.post(PATH, b" \n" * BLANKS_MAX + b"1\n" + b"\n" * 5))
        assert [(one["line"], one["status"]) for one in found] == [(BLANKS_MAX + 1, 422), (BLANKS_MAX + 2, 413)]
        assert found[-1]["problem"]["code"] == "batch_too_long"

    async def test_a_large_line(self, caller: Caller, agent: Actor) -> None:
        """P367, P2: refused for itself; one below the limit reaches its agent whole, wherever it was kept."""
        name = await caller.register(agent.url)
        large = "y" * (400 << 10)
        found = outcomes(await caller.post(PATH, line(name, input="x" * (2 << 20)) + line(name, input=large)))
        assert [one["status"] for one in found] == [413, 202]
        assert found[0]["problem"]["code"] == "too_large"
        assert json.loads((await agent.until(1)).body) == large

    async def test_refused_as_a_whole(self, caller: Caller) -> None:
        """P367, P2: before anything is started."""
        large = await caller.ask("POST", PATH, {"content-length": str(BATCH_BYTES_MAX + 1)}, b"")
        check_problem(large, 413, "too_large")
        check_problem(await caller.post(PATH, b"\n \n"), 422, "batch_empty")
        check_problem(await caller.post(PATH, b""), 422, "batch_empty")
        check_problem(await caller.post(PATH, b"x", {"content-encoding": "gzip"}), 400, "encoding_not_supported")
        check_problem(await caller.post(PATH, b"{}", {"idempotency-key": "a b"}), 400, "idempotency_key_invalid")

    async def test_nobody_takes_the_seats_of_others(self, alpha: Caller, beta: Caller) -> None:
        """P367: batches of one namespace that never end leave room for those of another."""
        greedy, modest = await alpha.register(None), await beta.register(None)
        text = line(greedy)
        async with AsyncExitStack() as stack:
            for _ in range(EACH_BATCHES_MAX):
                one = await stack.enter_async_context(await Connection.open(alpha.gateway.port))
                one.send("POST", PATH, {"authorization": f"Bearer {ALPHA}", "transfer-encoding": "chunked"})
                one.writer.write(b"%x\r\n%b\r\n" % (len(text), text))
                assert " 200 " in (await read_head(one.reader))[0]
            check_problem(await alpha.post(PATH, text), 429, "too_many_batches")
            assert [one["status"] for one in outcomes(await beta.post(PATH, line(modest)))] == [202]
        async with asyncio.timeout(10):
            while (await alpha.post(PATH, text)).status != 200:
                await sleep(0.02)


class TestSplitter:
    @pytest.mark.parametrize("step", [1, 3, 1000])
    def test_lines_however_they_arrive(self, step: int) -> None:
        body = b'{"a":1}\r\n\n  \n' + b"x" * 20 + b"\nlast"
        lines = Splitter(10)
        found: list[Line] = []
        for at in range(0, len(body), step):
            found.extend(lines.feed(body[at : at + step]))
        found.extend(lines.end())
        assert [one.number for one in found] == [1, 4, 5]
        assert [one.text for one in found] == [b'{"a":1}\r', b"", b"last"]
        assert found[1].fault is not None

    def test_a_body_without_end_is_not_kept(self) -> None:
        """P367: not even its one endless line."""
        lines = Splitter(1 << 20)
        mib = b"y" * (1 << 20)
        found = [one for _ in range((BATCH_BYTES_MAX >> 20) + 1) for one in lines.feed(mib)]
        assert [one.fault.code for one in found if one.fault] == ["batch_too_large"]
        assert lines.over
        assert [*lines.end()] == []
