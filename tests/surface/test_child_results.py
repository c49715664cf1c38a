"""P403, P440, P441: results of children that are too large for a page of their parent's journal, with bare hands."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

from mesh.clock import monotonic_s, sleep
from tests.surface.actors import Actor, started
from tests.surface.checks import check_problem
from tests.surface.gateways import ASYNC, KEYLESS, Caller, Gateway, token_for
from tests.surface.test_durable import LEASE, Ground, one, say
from tests.surface.test_large_payloads import BIG, BYTES, digest
from tests.surface.test_step_blobs import kept, sha256
from tests.surface.wire import Answer, ask

MIB = 1 << 20


async def parent(caller: Caller, agent: Actor) -> Ground:
    """An operation that runs, and has an attempt to start children."""
    agent.replies(started(headers=LEASE))
    endpoint = await caller.register(agent.url)
    operation = await caller.begin(endpoint)
    call = await agent.until(len(agent.starts) or 1)
    await caller.until(operation, state="started")
    return Ground(caller, agent, endpoint, operation, call)


async def ended_child(ground: Ground, key: str, body: bytes) -> str:
    """A child that gave this result; its id."""
    before = len(ground.agent.starts)
    answer = await ground.caller.v1(ground.endpoint, [ASYNC], parent={"token": ground.token, "key": key})
    call = await ground.agent.until(before + 1)
    assert call.operation == answer.json["id"]
    assert (await call.complete(body=body, headers=[BYTES])).status == 200
    return call.operation


async def by_token(caller: Caller, url: str, token: str) -> Answer:
    return await ask(caller.gateway.port, "GET", url, [("mesh-task-token", token)])


def refers(child: str, body: bytes) -> dict[str, Any]:
    url = f"/v1/operations/{child}/blobs/{sha256(body)}"
    return {"url": url, "digest": digest(body), "bytes": len(body), "content_type": BYTES[1]}


async def test_who_may_read_it_and_for_how_long(caller: Caller, agent: Actor) -> None:
    """P440, P441: by the parent's token, also past the child's retention; by no other token, and nothing else of it."""
    ground = await parent(caller, agent)
    large, small = await ended_child(ground, "large#1", BIG), await ended_child(ground, "small#1", b"few")
    entries = (await ground.say("read"))["entries"]
    ref = refers(large, BIG)
    assert entries[0] == {
        "kind": "child", "key": "large#1", "id": large, "state": "succeeded", "result_dataref": ref
    }  # fmt: skip
    shown = [event for event in await caller.events(ground.operation) if event["type"] == "child"]
    assert shown[0]["result_dataref"] == ref
    # Both are past their retention from here on.
    for each in (large, small):
        caller.gateway.tell_store(f"ZADD m:{{00}}:due 1 {each}")
    end_s = monotonic_s() + 10
    while (await caller.get(f"/v1/operations/{small}")).status != 404:
        assert monotonic_s() < end_s
        await sleep(0.02)
    for found in (await by_token(caller, ref["url"], ground.token), await caller.get(ref["url"])):
        assert (found.status, found.body, found["repr-digest"]) == (200, BIG, digest(BIG))
    other = await parent(caller, agent)
    urls = (ref["url"], ref["url"].replace(sha256(BIG), sha256(b"few")), ref["url"].replace(large, small))
    for url, token in ((urls[0], other.token), (urls[1], ground.token), (urls[2], ground.token)):
        check_problem(await by_token(caller, url, token), 401, "token_foreign")
    stale_run = token_for(ground.operation, run=2)
    check_problem(await by_token(caller, ref["url"], stale_run), 401, "token_foreign")


async def test_one_that_is_missing_stops_nobody(caller: Caller, agent: Actor) -> None:
    """P403, P441: what a page would hold is referred to when it is not there; pages asked for beside it come."""
    ground = await parent(caller, agent)
    other = await parent(caller, agent)
    body = BIG[:MIB]
    child = await ended_child(ground, "half#1", body)
    assert "result_base64" in (await ground.say("read"))["entries"][0]
    (path,) = kept(caller.gateway, child)
    path.unlink()
    answer = await say(caller, "read", {"tasks": [{"token": each.token} for each in (ground, other)]})
    assert answer.status == 200
    first, second = answer.json["tasks"]
    assert first["entries"][0]["result_dataref"] == refers(child, body)
    assert second["status"] == "ok"
    check_problem(await by_token(caller, refers(child, body)["url"], ground.token), 503, "blob_missing")


async def test_what_stands_in_its_record(own_gateway: Callable[..., Gateway], agent: Actor) -> None:
    """P440: where nothing of that size is large, it is referred to all the same."""
    bounds = {"gateway": {"body_bytes_max": 4 * MIB}, "blobs": {"inline_bytes_max": 4 * MIB - 1}}
    caller = Caller(await asyncio.get_running_loop().run_in_executor(None, own_gateway, KEYLESS | bounds))
    ground = await parent(caller, agent)
    child = await ended_child(ground, "large#1", BIG)
    (entry,) = (await one(caller, "read", ground.token))["entries"]
    assert entry["result_dataref"] == refers(child, BIG)
    assert kept(caller.gateway, child) == []
    found = await by_token(caller, entry["result_dataref"]["url"], ground.token)
    assert (found.status, hashlib.sha256(found.body).hexdigest()) == (200, sha256(BIG))
    wrong = refers(child, BIG[1:])["url"]
    check_problem(await by_token(caller, wrong, ground.token), 401, "token_foreign")
