"""P410 to P414: what is too large for a journal's entry, over real sockets with bare hands."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from mesh.clock import now_ms
from tests.surface.actors import Actor, started
from tests.surface.checks import check_problem
from tests.surface.gateways import KEYLESS, Caller, Gateway, token_for
from tests.surface.pollers import Poller, pull_endpoint, verb
from tests.surface.test_durable import LEASE, say
from tests.surface.test_large_payloads import BIG, BYTES, GRACE_S, blobs, digest, parts, until
from tests.surface.wire import Answer, Connection, Pairs, ask, pairs

STRICT = KEYLESS | {"blobs": {"bytes_max": 6 << 20, "sweep_ms": 100}}
FIVE = BIG + BIG[: 2 << 20]
"""5 MiB."""


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


async def put(caller: Caller, token: str, body: bytes, headers: Pairs = (BYTES,)) -> Answer:
    given = [*([("mesh-task-token", token)] if token else []), *pairs(headers)]
    return await ask(caller.gateway.port, "PUT", "/v1/tasks/blobs", given, body)


async def attempt(caller: Caller, agent: Actor, **spec: Any) -> tuple[str, str]:
    """An operation whose agent has answered 201, and its task token."""
    agent.replies(started(headers=LEASE))
    operation = await caller.begin(await caller.register(agent.url, **spec))
    call = await agent.until(len(agent.starts) or 1)
    await caller.until(operation, state="started")
    return operation, call.completion_token


def kept(gateway: Gateway, operation: str) -> list[Path]:
    return [path for path in blobs(gateway) if path.parent.name == operation]


async def journal(caller: Caller, token: str, at: int, *entries: dict[str, Any]) -> None:
    answer = await say(caller, "journal", {"at": at, "entries": entries}, token)
    assert (answer.status, answer.json["status"]) == (200, "ok"), answer


def entry(answer: Answer, n: int = 1) -> dict[str, Any]:
    return {"kind": "step", "name": "large", "n": n, "result_dataref": answer.json}


async def until_left(gateway: Gateway, operation: str, count: int) -> set[str]:
    await until(lambda: len(kept(gateway, operation)) == count)
    return {path.name for path in kept(gateway, operation)}


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path_factory.mktemp("strict"), STRICT)
    gateway.start()
    yield gateway
    gateway.kill()


class TestKeeping:
    async def test_it_is_put_journaled_and_had_again(self, caller: Caller, agent: Actor) -> None:
        """P410, P411, P412: streamed in, referred to by its entry and in the history, and the same bytes come out."""
        operation, token = await attempt(caller, agent)
        answer = await put(caller, token, FIVE, [BYTES, ("content-digest", digest(FIVE))])
        assert answer.status == 200
        where = f"/v1/operations/{operation}/blobs/{sha256(FIVE)}"
        assert answer.json == {"url": where, "digest": digest(FIVE), "bytes": len(FIVE), "content_type": BYTES[1]}
        assert (await put(caller, token, FIVE)).json == answer.json, "a repeat is the same"
        small = await put(caller, token, b"few", ())
        assert (small.json["bytes"], small.json["content_type"]) == (3, "application/octet-stream")
        await journal(caller, token, 0, entry(answer), entry(small, 2))
        page = (await say(caller, "read", {}, token)).json
        assert [one["result_dataref"] for one in page["entries"]] == [answer.json, small.json]
        shown = [event for event in await caller.events(operation) if event["type"] == "step"]
        assert [event["result_dataref"] for event in shown] == [answer.json, small.json]
        by_token = await ask(caller.gateway.port, "GET", where, [("mesh-task-token", token)])
        for found in (await caller.get(where), by_token):
            assert (found.status, found.body, found["repr-digest"]) == (200, FIVE, digest(FIVE))
        some = await caller.get(where, [("range", "bytes=255-1024")])
        assert (some.status, some.body) == (206, FIVE[255:1025])
        assert (await caller.get(small.json["url"])).body == b"few"

    async def test_who_may_not(self, alpha: Caller, beta: Caller, agent: Actor) -> None:
        """P410, P412: no token, a forged one, another operation's, another namespace."""
        caller, gateway = alpha, alpha.gateway
        operation, token = await attempt(caller, agent)
        for body in (FIVE, b"few"):
            check_problem(await put(caller, "", body), 401, "token_invalid")
            check_problem(await put(caller, "m1.forged", body), 401, "token_invalid")
        gone = token_for("00-4m5k9q2r7t1v3w6x8y0z")
        check_problem(await put(caller, gone, b"few"), 410, "operation_gone")
        where = (await put(caller, token, FIVE)).json["url"]
        assert (await caller.get(where)).body == FIVE
        check_problem(await beta.get(where), 404, "unknown_operation")
        check_problem(await Caller(gateway).get(where), 401, "key_missing")
        check_problem(await ask(gateway.port, "GET", where, [("mesh-task-token", gone)]), 401, "token_foreign")
        check_problem(await caller.get(where[:-1]), 404, "unknown_route")
        assert len(kept(gateway, operation)) == 1

    async def test_a_lost_attempt_keeps_nothing_and_it_shows(self, caller: Caller, agent: Actor) -> None:
        """P410, P223: superseded, suspended or ended: refused, and the history says who came too late."""
        operation, token = await attempt(caller, agent)
        await say(caller, "suspend", {"at": 0, "wake_in_ms": 0}, token)
        successor = await agent.until(2)
        await caller.until(operation, state="started", attempt=2)
        check_problem(await put(caller, token, FIVE), 409, "lease_lost")
        check_problem(await put(caller, token, b"few"), 409, "lease_lost")
        refused = [event for event in await caller.events(operation) if event["type"] == "refused"]
        assert [(event["attempt"], event["verb"]) for event in refused] == [(1, "journal")]
        assert (await put(caller, successor.completion_token, b"few")).status == 200
        await successor.complete()
        check_problem(await put(caller, successor.completion_token, FIVE), 409, "operation_ended")
        assert [path.name for path in kept(caller.gateway, operation)] == [sha256(b"few")]

    async def test_bounds_and_digests(self, strict: Gateway, agent: Actor) -> None:
        """P410: over the limit it is refused while it streams; what does not fit its digest is not kept."""
        caller, gateway = Caller(strict), strict
        operation, token = await attempt(caller, agent)
        check_problem(await put(caller, token, FIVE + BIG), 413, "too_large")
        piece = b"%x\r\n%b\r\n" % (1 << 20, BIG[: 1 << 20])
        async with await Connection.open(gateway.port) as connection:
            head = [("mesh-task-token", token), ("transfer-encoding", "chunked")]
            connection.send("PUT", "/v1/tasks/blobs", head, piece * 7)
            check_problem(await connection.answer(), 413, "too_large")
        for body in (BIG, b"few"):
            answer = await put(caller, token, body, [BYTES, ("content-digest", digest(b"other"))])
            check_problem(answer, 400, "digest_mismatch")
        assert kept(gateway, operation) == []
        assert (await put(caller, token, BIG)).status == 200
        await until(lambda: not parts(gateway))

    async def test_small_ones_pass_by_what_stalls(self, caller: Caller, agent: Actor) -> None:
        """P410, P452: 8 of each of four operations, that do not go on, leave room for others, large ones too."""
        agent.replies(started(headers=LEASE))
        name, tokens = await caller.register(agent.url), list[str]()
        for number in range(1, 6):
            await caller.until(await caller.begin(name), state="started")
            tokens.append((await agent.until(number)).completion_token)
        async with AsyncExitStack() as stack:
            for token in tokens[:4] * 8:
                line = await stack.enter_async_context(await Connection.open(caller.gateway.port))
                head = [("mesh-task-token", token), ("content-length", str(1 << 20))]
                line.send("PUT", "/v1/tasks/blobs", head, FIVE[: 300 << 10])
            async with asyncio.timeout(25):  # until the gateway has read the last of those heads
                for token in tokens[:4]:
                    busy = await put(caller, token, FIVE)
                    while busy.status == 200:
                        busy = await put(caller, token, FIVE)
                    check_problem(busy, 429, "uploads_busy")
            assert (await put(caller, tokens[4], FIVE)).status == 200
            for token in tokens:
                assert (await put(caller, token, b"few")).status == 200
        await until(lambda: not parts(caller.gateway))

    async def test_no_room_and_no_place(self, own_gateway: Callable[..., Gateway], agent: Actor) -> None:
        """P410, P399: 507, and nothing was kept; what is missing or damaged is said, with what to do."""
        loop = asyncio.get_running_loop()
        full = Caller(await loop.run_in_executor(None, own_gateway, KEYLESS | {"blobs": {"free_bytes_min": 1 << 50}}))
        operation, token = await attempt(full, agent)
        for body in (FIVE, b"few"):
            check_problem(await put(full, token, body), 507, "blob_storage_full")
        assert kept(full.gateway, operation) == []

    async def test_missing_and_damaged(self, caller: Caller, agent: Actor) -> None:
        """P412, P399: neither is ever taken for something else."""
        operation, token = await attempt(caller, agent)
        where = (await put(caller, token, FIVE)).json["url"]
        (path,) = kept(caller.gateway, operation)
        path.write_bytes(FIVE[:-1] + b"x")
        async with await Connection.open(caller.gateway.port) as connection:
            connection.send("GET", where, [("mesh-task-token", token)])
            head = await connection.reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head
            assert len(await connection.reader.read()) < len(FIVE)
        path.unlink()
        check_problem(await caller.get(where), 503, "blob_missing")


class TestDeletion:
    async def test_with_the_operation_and_not_before(self, strict: Gateway, agent: Actor) -> None:
        """P413: what no entry names goes when it ended and that is old, the rest with the operation."""
        caller, gateway = Caller(strict), strict
        operation, token = await attempt(caller, agent)
        answers = [await put(caller, token, body) for body in (FIVE, BIG, b"orphan")]
        # What another language makes of the same JSON: a slash may be escaped.
        where = answers[1].json["url"].encode().replace(b"/", b"\\/")
        escaped = b'{"at":1,"entries":[{"kind":"note","where":["%b"]}]}' % where
        await journal(caller, token, 0, entry(answers[0]))
        assert (await say(caller, "journal", escaped, token)).status == 200
        (room,) = {path.parent for path in kept(gateway, operation)}
        stranger = room.parents[1] / "cd" / "00-000000000000000000cd"
        stranger.mkdir(parents=True)
        (stranger / sha256(b"")).touch()
        for path in (*room.iterdir(), stranger / sha256(b"")):
            os.utime(path, (1, 1))
        of_age_s = now_ms() / 1000 - GRACE_S + 0.3
        for path in (room, stranger):
            os.utime(path, (of_age_s, of_age_s))
        await until(lambda: not stranger.exists())  # a round is over
        assert len(kept(gateway, operation)) == 3, "while it runs an entry may come that names it"
        await agent.starts[0].complete()
        left = await until_left(gateway, operation, 2)
        assert left == {sha256(FIVE), sha256(BIG)}
        assert (await caller.get(answers[0].json["url"])).body == FIVE
        os.utime(room, (1, 1))  # what went just now made it young
        gateway.tell_store(f"DEL m:{{00}}:o:{operation}")
        assert await until_left(gateway, operation, 0) == set()


class TestPostponing:
    async def test_what_an_attempt_missed_counts_against_no_limit(self, caller: Caller) -> None:
        """P414, P288: `counts` false: it backs off and comes again, however few attempts there are."""
        name = await pull_endpoint(caller, policy={"retry": {"max_attempts": 1, "initial_ms": 1}})
        operation = await caller.begin(name)
        poller = Poller(caller, name)
        task = await poller.task()
        body = {"type": "BLOB_MISSING", "message": "it is not there", "retryable": True, "counts": False}
        assert (await verb(caller, "fail", task["task_token"], body)).status == 200
        record = await caller.record(operation)
        assert record["state"] == "backing_off"
        last = record["last_failure"]
        assert (last["type"], last["message"]) == ("BLOB_MISSING", "it is not there")
        task = await poller.task()
        assert task["attempt"] == 2
        body = {"counts": False, "reason": "no"}
        check_problem(await verb(caller, "release", task["task_token"], body), 422, "body_invalid", "/counts")
        await verb(caller, "fail", task["task_token"], {"type": "INTERNAL"})
        assert (await caller.result(operation)).status == 424
