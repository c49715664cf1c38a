"""P390 to P400: inputs and results too large for a record, from socket to disk and back, and what goes wrong."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from base64 import b64encode
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.payloads import EACH_INPUTS_MAX, INPUTS_MAX
from mesh.blobs.spool import PIECE_BYTES
from mesh.clock import monotonic_s, now_ms, sleep
from mesh.tokens import verify_webhook
from tests.surface.actors import Actor, Call, Reply, as_json, started
from tests.surface.gateways import ALPHA, ASYNC, KEYLESS, WEBHOOK_SECRET, Caller, Gateway
from tests.surface.wire import Connection, Pairs, read_head

BIG = bytes(range(256)) * (3 << 12)
"""3 MiB: more than a body in memory may have."""
BYTES = ("content-type", "application/x-numbers")
GRACE_S = 3600


def digest(body: bytes) -> str:
    return f"sha-256=:{b64encode(hashlib.sha256(body).digest()).decode()}:"


def blobs(gateway: Gateway) -> list[Path]:
    return [path for path in files(gateway.directory / "data" / "blobs") if path.name != "place"]


def files(root: Path) -> list[Path]:
    """All files below; directories that go away meanwhile are none."""
    return [Path(directory) / name for directory, _, names in os.walk(root) for name in names]


def parts(gateway: Gateway) -> list[Path]:
    return [path for path in blobs(gateway) if path.parent.name == "parts"]


async def until(check: Callable[[], object], within_s: float = 30.0) -> None:
    end_s = monotonic_s() + within_s
    while not check():
        assert monotonic_s() < end_s, check
        await sleep(0.02)


def echoing(agent: Actor) -> None:
    async def script(call: Call, _writer: asyncio.StreamWriter) -> Reply:
        return Reply(200, call.body, [("content-type", call["content-type"])])

    agent.script = script


class TestThroughTheGateway:
    async def test_an_echo_over_nexus(self, caller: Caller, agent: Actor) -> None:
        """P390, P393, P394: the input reaches the agent byte for byte, the result the caller; a repeat is a repeat."""
        echoing(agent)
        endpoint = await caller.register(agent.url)
        asked = [BYTES, ("prefer", "wait=10"), ("nexus-request-id", "large-1"), ("content-digest", digest(BIG))]
        answer = await caller.nexus(endpoint, BIG, asked)
        assert answer.status == 200
        assert answer.body == BIG
        assert (answer["content-type"], answer["repr-digest"]) == (BYTES[1], digest(BIG))
        (start,) = agent.starts
        assert start.body == BIG
        assert start["content-digest"] == digest(BIG)
        again = await caller.nexus(endpoint, BIG, asked)
        assert (again.status, again["idempotency-replayed"], again.body) == (200, "true", BIG)
        other = await caller.nexus(endpoint, BIG[:-1] + b"x", asked[:3])
        assert (other.status, other.code) == (409, "key_reused")
        operation = answer["mesh-operation-id"]
        kept = [path for path in blobs(caller.gateway) if operation in path.parts]
        assert [path.name for path in kept] == [hashlib.sha256(BIG).hexdigest()]
        await until(lambda: not parts(caller.gateway))

    async def test_v1_takes_the_input_as_the_body(self, caller: Caller, agent: Actor) -> None:
        """P391, P392, P395: the order in a header, references in the record, ranges of both."""
        echoing(agent)
        endpoint = await caller.register(agent.url)
        order = {"endpoint": endpoint, "service": "svc", "operation": "op", "labels": {"size": "large"}}
        headers = [("mesh-start", json.dumps(order)), BYTES, ("prefer", "wait=10")]
        answer = await caller.ask("POST", "/v1/operations", headers, BIG)
        assert answer.status == 200
        record = answer.json
        shown = {"digest": digest(BIG), "bytes": len(BIG), "content_type": BYTES[1]}
        operation = f"/v1/operations/{record['id']}"
        assert record["input_dataref"] == {"url": f"{operation}/input", **shown}
        assert record["result_dataref"] == {"url": f"{operation}/result", **shown}
        assert record["labels"] == {"size": "large"}
        assert not {"result", "result_base64"} & record.keys()
        for part in ("input", "result"):
            whole = await caller.get(f"{operation}/{part}")
            assert (whole.status, whole.body, whole["content-type"]) == (200, BIG, BYTES[1])
        some = await caller.get(f"{operation}/result", [("range", "bytes=255-1024")])
        assert (some.status, some.body) == (206, BIG[255:1025])
        assert some["content-range"] == f"bytes 255-1024/{len(BIG)}"
        end = await caller.get(f"{operation}/input", [("range", "bytes=-5")])
        assert (end.status, end.body) == (206, BIG[-5:])
        none = await caller.get(f"{operation}/input", [("range", f"bytes={len(BIG)}-")])
        assert (none.status, none.code) == (400, "range_invalid")

    async def test_json_in_memory_is_kept_outside_the_record_too(self, caller: Caller, agent: Actor) -> None:
        """P390, P391: over the threshold it is large, however it came; below, the record has it as ever."""
        echoing(agent)
        endpoint = await caller.register(agent.url)
        text = "x" * (300 << 10)
        record = (await caller.v1(endpoint, [("prefer", "wait=10")], input=text)).json
        assert record["result_dataref"]["bytes"] == len(text) + 2
        assert (await caller.result(record["id"])).json == text
        small = (await caller.v1(endpoint, [("prefer", "wait=10")], input=text[: 200 << 10])).json
        assert small["result"] == text[: 200 << 10]
        assert "input_dataref" not in small
        beside = {"endpoint": endpoint, "service": "svc", "operation": "op"}
        answer = await caller.ask("POST", "/v1/operations", [("mesh-start", json.dumps(beside | {"input": 1}))], b"2")
        assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, "/input")
        agent.replies(as_json(None))
        answer = await caller.ask("POST", "/v1/operations", [("mesh-start", json.dumps(beside)), ("prefer", "wait=5")])
        assert answer.json["result"] is None
        assert (agent.starts[-1].body, agent.starts[-1].all("content-type")) == (b"", [])

    async def test_a_body_in_chunks_whose_sender_vanishes(self, caller: Caller, agent: Actor) -> None:
        """P390, P396: without a length too; what is cut off leaves nothing behind."""
        echoing(agent)
        endpoint = await caller.register(agent.url)
        target = f"/nexus/endpoints/{endpoint}/services/svc/op"
        piece = b"%x\r\n%b\r\n" % (1 << 16, BIG[: 1 << 16])
        headers: Pairs = [("transfer-encoding", "chunked"), BYTES, ("prefer", "wait=10")]
        async with await Connection.open(caller.gateway.port) as connection:
            connection.send("POST", target, headers, piece * 16 + b"0\r\n\r\n")
            answer = await connection.answer()
        assert (answer.status, answer.body) == (200, BIG[: 1 << 16] * 16)
        async with await Connection.open(caller.gateway.port) as connection:
            connection.send("POST", target, headers, piece * 16)
            await until(lambda: parts(caller.gateway))
        await until(lambda: not parts(caller.gateway))
        assert len(agent.starts) == 1

    async def test_a_completion_and_its_callbacks(self, caller: Caller, agent: Actor, receiver: Actor) -> None:
        """P394, P397: a large result comes by token, goes out streamed and signed, or as an event that refers to it."""
        agent.replies(started())
        endpoint = await caller.register(agent.url)
        one = await caller.begin(endpoint, callback=f"{receiver.url}/nexus")
        start = await agent.until(1)
        taken = await start.complete(body=BIG, headers=[BYTES])
        assert taken.status == 200
        assert (await start.complete(body=BIG, headers=[BYTES])).status == 200  # an equal repeat
        assert (await start.complete(body=BIG[1:], headers=[BYTES])).status == 409
        told = await receiver.until(1)
        assert told.body == BIG
        assert told["content-digest"] == digest(BIG)
        assert verify_webhook(WEBHOOK_SECRET, dict(told.headers), told.body) == f"{one}.1"
        await caller.until_delivery(one, "delivered")
        forged = await start.complete(body=BIG, headers=[BYTES], token="m1.forged")
        assert forged.status == 401
        await until(lambda: not parts(caller.gateway))

        event = {"url": f"{receiver.url}/event", "format": "cloudevents"}
        two = (await caller.v1(endpoint, [ASYNC], callback=event)).json["id"]
        assert (await (await agent.until(2)).complete(body=BIG, headers=[BYTES])).status == 200
        told = await receiver.until(2)
        url = caller.gateway.url(f"/v1/operations/{two}")
        assert told.json["dataref"] == url
        assert told.json["data"]["result_dataref"]["url"] == f"{url}/result"
        assert told.json["data"]["result_dataref"]["digest"] == digest(BIG)


class TestTrouble:
    async def test_a_digest_that_does_not_fit(self, caller: Caller, agent: Actor) -> None:
        """P396: 400 and nothing kept, whatever the size and whoever sends; an agent's attempt is repeated."""
        endpoint = await caller.register(agent.url)
        before = blobs(caller.gateway)
        for body in (BIG, b"1"):
            answer = await caller.nexus(endpoint, body, [("content-digest", digest(b"other"))])
            assert (answer.status, answer.code) == (400, "digest_mismatch")
            answer = await caller.nexus(endpoint, body, [("repr-digest", "sha-256=:short:")])
            assert (answer.status, answer.code) == (400, "digest_invalid")
        fine = await caller.nexus(endpoint, b"1", [("content-digest", f"sha-512=:AAAA:, {digest(b'1')}")])
        assert fine.status == 200
        assert len(agent.starts) == 1
        await until(lambda: blobs(caller.gateway) == before)
        endpoint = await caller.register(agent.url, policy={"retry": {"initial_ms": 10}})
        lying = Reply(200, BIG, [BYTES, ("content-digest", digest(b"other"))])
        agent.replies(lying, Reply(200, BIG, [BYTES]))
        answer = await caller.nexus(endpoint, b"1", [("prefer", "wait=10")])
        assert (answer.status, answer.body) == (200, BIG)
        record = await caller.record(answer["mesh-operation-id"])
        assert record["attempt"] == 2
        agent.replies(started())
        await caller.begin(endpoint)
        start = await agent.until(4)
        refused = await start.complete(body=BIG, headers=[BYTES, ("content-digest", digest(b"other"))])
        assert (refused.status, refused.code) == (400, "digest_mismatch")
        assert (await start.complete(body=BIG, headers=[BYTES, ("content-digest", digest(BIG))])).status == 200

    async def test_bounds(self, own_gateway: Callable[..., Gateway], agent: Actor) -> None:
        """P390, P398: over the limit is refused while it streams; a schema bounds what can be checked."""
        gateway = own_gateway(KEYLESS | {"blobs": {"bytes_max": 4 << 20}})
        caller = Caller(gateway)
        endpoint = await caller.register(agent.url)
        answer = await caller.nexus(endpoint, BIG * 2, [BYTES])
        assert (answer.status, answer.code) == (400, "too_large")
        piece = b"%x\r\n%b\r\n" % (1 << 20, BIG[: 1 << 20])
        async with await Connection.open(gateway.port) as connection:
            target = f"/nexus/endpoints/{endpoint}/services/svc/op"
            connection.send("POST", target, [("transfer-encoding", "chunked")], piece * 5)
            answer = await connection.answer()
        assert (answer.status, answer.code) == (400, "too_large")
        await until(lambda: not parts(gateway))
        agent.replies(Reply(200, BIG * 2, [BYTES]))
        failed = await caller.nexus(endpoint, b"1", [("prefer", "wait=10")])
        assert (failed.status, failed.json["metadata"]["reason"]) == (424, "result_too_large")
        services = [{"name": "svc", "operations": [{"name": "op", "input": {"type": "string"}}]}]
        checked = await caller.register(agent.url, services=services)
        agent.replies(as_json("fine"))
        fits = json.dumps("x" * (1 << 20)).encode()
        assert (await caller.nexus(checked, fits, [("prefer", "wait=10")])).status == 200
        broken = await caller.nexus(checked, b"[" + b"1," * (1 << 19) + b"1]", [("prefer", "wait=10")])
        assert (broken.status, broken.code) == (400, "schema_breach")
        over = await caller.nexus(checked, json.dumps("x" * (3 << 20)).encode())
        assert (over.status, over.code) == (400, "input_unchecked")
        assert "more is taken where the agent declares its input as mesh.Blob" in over.json["message"]

    async def test_where_an_order_belongs(self, caller: Caller) -> None:
        """P391: what is wrong with it says in which of the two places, and where a large body may go."""
        broken = await caller.ask("POST", "/v1/operations", [("mesh-start", "{'endpoint': 1}"), BYTES], b"1")
        assert (broken.status, broken.code) == (400, "json_invalid")
        assert broken.json["detail"].startswith("Mesh-Start: not JSON: ")
        lacks = await caller.ask("POST", "/v1/operations", [("mesh-start", '{"endpoint": "x"}'), BYTES], b"1")
        assert (lacks.status, lacks.code) == (422, "body_invalid")
        assert lacks.json["detail"].startswith("Mesh-Start: not a start request: ")
        without = await caller.ask("POST", "/v1/operations", [BYTES], b"\xff\x00")
        assert (without.status, without.code) == (400, "json_invalid")
        assert without.json["detail"].endswith("is the input itself has its order in the header Mesh-Start")
        slip = await caller.ask("POST", "/v1/operations", [("content-type", "application/json")], b"{")
        assert "Mesh-Start" not in slip.json["detail"]
        large = await caller.v1("nobody", input="x" * (3 << 20))
        assert (large.status, large.code) == (413, "too_large")
        assert large.json["detail"].endswith("with its order in the header Mesh-Start an input may be larger")

    async def test_nobody_takes_the_seats_of_others(self, alpha: Caller, beta: Caller, agent: Actor) -> None:
        """P390: silence has no seat, a namespace has a share, and results do not wait for starts."""
        agent.replies(started())
        greedy, modest = await alpha.register(agent.url), await beta.register(None)
        await alpha.begin(greedy)
        task = await agent.until(1)
        headers = [("authorization", f"Bearer {ALPHA}"), BYTES, ("expect", "100-continue")]
        async with AsyncExitStack() as stack:
            stalled: list[Connection] = []
            for _ in range(INPUTS_MAX + 1):
                one = await stack.enter_async_context(await Connection.open(alpha.gateway.port))
                one.send(
                    "POST",
                    f"/nexus/endpoints/{greedy}/services/svc/op",
                    [*headers, ("content-length", str(PIECE_BYTES * 2))],
                )
                assert " 100 " in (await read_head(one.reader))[0]
                stalled.append(one)
            assert (await alpha.nexus(greedy, BIG, [BYTES, ASYNC])).status == 201
            for one in stalled[:EACH_INPUTS_MAX]:
                one.writer.write(BIG[:PIECE_BYTES])
            await until(lambda: len(parts(alpha.gateway)) >= EACH_INPUTS_MAX)
            stalled[-1].writer.write(BIG[:PIECE_BYTES])
            assert (await stalled[-1].answer()).status == 429
            answer = await alpha.nexus(greedy, BIG, [BYTES, ASYNC])
            assert (answer.status, answer.code) == (429, "uploads_busy")
            assert (await beta.nexus(modest, BIG, [BYTES, ASYNC])).status == 201
            assert (await task.complete(body=BIG, headers=[BYTES])).status == 200
        await until(lambda: not parts(alpha.gateway))
        assert (await alpha.nexus(greedy, BIG, [BYTES, ASYNC])).status == 201, "seats come back"

    async def test_a_disk_without_room(self, own_gateway: Callable[..., Gateway], agent: Actor) -> None:
        """P399: 507 and nothing kept; a result that finds no room is asked for again, and costs no attempt."""
        gateway = own_gateway(KEYLESS | {"blobs": {"free_bytes_min": 1 << 50}})
        caller = Caller(gateway)
        endpoint = await caller.register(agent.url, policy={"retry": {"max_attempts": 1}})
        order = [("mesh-start", json.dumps({"endpoint": endpoint, "service": "s", "operation": "o"})), BYTES]
        answer = await caller.ask("POST", "/v1/operations", order, BIG)
        assert (answer.status, answer.code, answer.json["retryable"]) == (507, "blob_storage_full", True)
        assert answer["retry-after"]
        answer = await caller.nexus(endpoint, BIG, [BYTES])
        assert (answer.status, answer.code) == (503, "blob_storage_full")
        await until(lambda: not blobs(gateway))
        agent.replies(Reply(200, BIG, [BYTES]))
        operation = await caller.begin(endpoint)
        waiting = await caller.until(operation, state="backing_off")
        assert waiting["last_failure"]["type"] == "BLOB_STORAGE_FULL"
        gateway.settings_file.write_text(json.dumps(KEYLESS))
        gateway.stop()
        gateway.start()
        assert (await caller.result(operation, "20")).body == BIG
        assert len(agent.starts) >= 2

    async def test_a_blob_that_is_missing_or_damaged(self, own_gateway: Callable[..., Gateway], agent: Actor) -> None:
        """P399: the operation waits, says why, and goes on when its input is back; readers are told to come again."""
        gateway = own_gateway()
        caller = Caller(gateway)
        gate = agent.holds()
        endpoint = await caller.register(None, policy={"retry": {"max_attempts": 1}})
        operation = await caller.begin(endpoint, body=BIG)
        (kept,) = blobs(gateway)
        away = kept.with_name("away")
        kept.rename(away)
        instance = {"url": agent.url, "ttl_ms": 60_000}
        assert (await caller.ask("PUT", f"/v1/endpoints/{endpoint}/instances/one", (), instance)).status < 300
        waiting = await caller.until(operation, state="backing_off")
        assert waiting["last_failure"]["type"] == "BLOB_MISSING"
        assert "[blobs] url" in waiting["last_failure"]["message"]
        missing = await caller.get(f"/v1/operations/{operation}/input")
        assert (missing.status, missing.code, missing.json["retryable"]) == (503, "blob_missing", True)
        kept.write_bytes(BIG[:-1] + b"x")
        damaged = await caller.until(operation, attempt=waiting["attempt"] + 1, state="backing_off")
        assert damaged["last_failure"]["type"] == "BLOB_CORRUPT"
        assert not agent.starts  # the agent never had a whole request
        async with await Connection.open(gateway.port) as connection:
            connection.send("GET", f"/v1/operations/{operation}/input")
            with pytest.raises(asyncio.IncompleteReadError):
                await connection.answer()
        away.replace(kept)
        await until(lambda: agent.starts, 20)
        assert agent.starts[0].body == BIG
        gate.set()
        assert (await caller.until(operation, state="succeeded"))["result"] == "held"


async def test_a_disk_that_fills_up(
    own_gateway: Callable[..., Gateway], agent: Actor, small_disk: Callable[[Path], Path], tmp_path: Path
) -> None:
    """P399: a real one: what does not fit is 507 and gone, what fits after that is taken."""
    disk = tmp_path / "disk"
    disk.mkdir()
    small_disk(disk)
    gateway = own_gateway(KEYLESS | {"blobs": {"url": disk.as_uri(), "free_bytes_min": 0}})
    caller = Caller(gateway)
    endpoint = await caller.register(None)
    order = [("mesh-start", json.dumps({"endpoint": endpoint, "service": "s", "operation": "o"})), BYTES]
    first = await caller.ask("POST", "/v1/operations", [*order, ("prefer", "respond-async")], BIG)
    assert first.status == 202
    full = await caller.ask("POST", "/v1/operations", order, BIG * 3)
    assert (full.status, full.code) == (507, "blob_storage_full")
    await until(lambda: len(files(disk)) == 2)  # the first payload and the name of the place
    await until(lambda: shutil.disk_usage(disk).free > len(BIG) + 65_536)  # a name goes before its pages do
    again = await caller.ask("POST", "/v1/operations", [*order, ("prefer", "respond-async")], BIG)
    assert again.status == 202
    for one in (first, again):
        assert (await caller.get(one.json["input_dataref"]["url"])).body == BIG


async def test_gateways_that_do_not_share_a_place(own_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
    """P404: /readyz and the log say so, from the second place on."""
    gateway = own_gateway()
    assert (await Caller(gateway).get("/readyz")).json["payloads"]["place"] == "file"
    other = KEYLESS | {"blobs": {"url": (tmp_path / "elsewhere").as_uri()}}
    gateway.settings_file.write_text(json.dumps(other))
    gateway.stop()
    gateway.start()
    said = (await Caller(gateway).get("/readyz")).json["payloads"]["warning"]
    assert "the same [blobs] url" in said
    assert said in gateway.log.read_text()


class TestSweep:
    async def test_what_no_operation_has_is_deleted(self, own_gateway: Callable[..., Gateway], agent: Actor) -> None:
        """P400: the record first, then its payloads; left-over uploads and orphans, but not while they are young."""
        gateway = own_gateway(KEYLESS | {"blobs": {"sweep_ms": 100}})
        caller = Caller(gateway)
        endpoint = await caller.register(agent.url)
        done = [await caller.begin(endpoint, body=BIG) for _ in range(2)]
        for one in done:
            await caller.until(one, state="succeeded")
        root = blobs(gateway)[0].parents[2]
        left = root / "parts" / "body-left.part"
        left.write_bytes(b"cut short")
        young = root / "ab" / "00-000000000000000000ab" / "young"
        young.parent.mkdir(parents=True)
        young.write_bytes(b"on its way in")
        stranger = root / "cd" / "not-an-operation"
        stranger.mkdir(parents=True)
        for path in (left, stranger, *(path.parent for path in blobs(gateway) if path.parent.name in done)):
            os.utime(path, (1, 1))
        gateway.tell_store(f"DEL m:{{00}}:o:{done[0]}")
        await until(lambda: not any(done[0] in path.parts for path in blobs(gateway)) and not left.exists())
        assert young.exists()
        assert stranger.exists()
        assert any(done[1] in path.parts for path in blobs(gateway))
        assert (await caller.get(f"/v1/operations/{done[1]}/input")).body == BIG

    async def test_what_its_record_does_not_name_is_deleted(
        self, own_gateway: Callable[..., Gateway], agent: Actor
    ) -> None:
        """P400: results that came too late to be its own go, once they are old; its input and its result stay."""
        gateway = own_gateway(KEYLESS | {"blobs": {"sweep_ms": 100}})
        caller = Caller(gateway)
        endpoint = await caller.register(agent.url)
        agent.replies(started("t"))
        operation = await caller.begin(endpoint, body=BIG)
        start = await agent.until(1)
        await caller.until(operation, state="started")
        assert (await start.complete(body=BIG[1:], headers=[BYTES])).status == 200
        for late in (BIG[2:], BIG[3:]):
            assert (await start.complete(body=late, headers=[BYTES])).status == 409
        mine = [path for path in blobs(gateway) if path.parent.name == operation]
        assert len(mine) == 4
        names = {hashlib.sha256(one).hexdigest() for one in (BIG, BIG[1:], BIG[2:])}
        for path in mine:
            if path.name in names:
                os.utime(path, (1, 1))
        of_age_s = now_ms() / 1000 - GRACE_S + 0.3
        os.utime(mine[0].parent, (of_age_s, of_age_s))
        young = hashlib.sha256(BIG[3:]).hexdigest()
        await until(lambda: len([path for path in blobs(gateway) if path.parent.name == operation]) == 3)
        left = {path.name for path in blobs(gateway) if path.parent.name == operation}
        assert left == {hashlib.sha256(BIG).hexdigest(), hashlib.sha256(BIG[1:]).hexdigest(), young}
        assert (await caller.get(f"/v1/operations/{operation}/result")).body == BIG[1:]

    async def test_a_kill_in_the_middle_of_an_upload(self, own_gateway: Callable[..., Gateway], agent: Actor) -> None:
        """P400: what was acknowledged is there afterwards, what was not is swept."""
        gateway = own_gateway(KEYLESS | {"blobs": {"sweep_ms": 100}})
        caller = Caller(gateway)
        endpoint = await caller.register(None)
        kept = await caller.begin(endpoint, body=BIG)
        async with await Connection.open(gateway.port) as connection:
            order: Any = {"endpoint": endpoint, "service": "s", "operation": "o"}
            headers = [("mesh-start", json.dumps(order)), ("content-length", str(len(BIG) + 1))]
            connection.send("POST", "/v1/operations", headers, BIG)
            await until(lambda: parts(gateway))
            gateway.kill()
        (left,) = parts(gateway)
        gateway.start()
        os.utime(left, (1, 1))
        await until(lambda: not parts(gateway))
        assert (await caller.get(f"/v1/operations/{kept}/input")).body == BIG
        echoing(agent)
        instance = {"url": agent.url, "ttl_ms": 60_000}
        assert (await caller.ask("PUT", f"/v1/endpoints/{endpoint}/instances/one", (), instance)).status < 300
        assert (await caller.result(kept)).body == BIG
