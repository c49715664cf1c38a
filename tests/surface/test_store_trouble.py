"""A store that hangs, is killed, is full, emptied, demoted or careless. Each test has a gateway of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mesh.clock import monotonic_s, sleep
from tests.surface.actors import Actor, started
from tests.surface.checks import check_failure
from tests.surface.gateways import ASYNC, Caller, Gateway

Own = Callable[..., Gateway]


async def begin(caller: Caller, name: str, key: str) -> str:
    """The operation of a start that leaves some KiB; "" when it was refused as it is to be."""
    answer = await caller.nexus(name, headers=[ASYNC, ("nexus-request-id", key)], body=json.dumps("x" * 5_000).encode())
    if answer.status == 201:
        return str(answer.json["token"])
    check_failure(answer, 503, "UNAVAILABLE")
    assert int(answer["retry-after"]) >= 1
    return ""


def fill(ballast: Path) -> None:
    """Takes all the room that its file system has."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4_096)


async def in_thread(work: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, work)


class TestStore:
    async def test_a_store_that_hangs(self, own_gateway: Own, agent: Actor) -> None:
        """P7: 503 with Retry-After on both surfaces, not ready; afterwards the same key is one operation."""
        caller = Caller(await in_thread(own_gateway))
        name = await caller.register(agent.url)
        done = (await caller.nexus(name))["mesh-operation-id"]
        os.kill(caller.gateway.store_pid(), signal.SIGSTOP)
        try:
            key = {"idempotency-key": "k"}
            asked = [
                caller.nexus(name, headers=key),
                caller.v1(name, key, input=None),
                caller.get(f"/v1/operations/{done}"),
                caller.result(done),
                caller.get("/readyz"),
                caller.get("/v1/operations"),
            ]
            nexus, v1, record, result, ready, listed = await asyncio.gather(*asked)
        finally:
            os.kill(caller.gateway.store_pid(), signal.SIGCONT)
        check_failure(nexus, 503, "UNAVAILABLE")
        assert int(nexus["retry-after"]) >= 1
        for answer in (v1, record, result, listed):
            assert (answer.status, int(answer["retry-after"]) >= 1, answer.json["retryable"]) == (503, True, True)
        assert (ready.status, int(ready["retry-after"]) >= 1) == (503, True)
        assert (await caller.get("/healthz")).status == 200
        end_s = monotonic_s() + 10
        while (await caller.get("/readyz")).status != 200:
            assert monotonic_s() < end_s
            await sleep(0.05)
        again = await caller.nexus(name, headers={**key, "prefer": "wait=10"})
        assert again.status == 200
        once_more = await caller.v1(name, key, input=None)
        assert once_more["mesh-operation-id"] == again["mesh-operation-id"]
        assert {call.operation for call in agent.calls} == {done, again["mesh-operation-id"]}

    async def test_a_store_that_is_killed(self, own_gateway: Own, agent: Actor, receiver: Actor) -> None:
        """P7: it comes back by itself, and nothing that was acknowledged is missing."""
        caller = Caller(await in_thread(own_gateway))
        agent.replies(started())
        name = await caller.register(agent.url)
        acknowledged: list[str] = []
        statuses: list[int] = []

        async def start(number: int) -> None:
            key = ("nexus-request-id", f"k{number}")
            while True:
                answer = await caller.nexus(name, headers=[ASYNC, key], callback=receiver.url)
                statuses.append(answer.status)
                if answer.status == 201:
                    acknowledged.append(answer.json["token"])
                    return
                assert answer.status == 503
                await sleep(0.1)

        starts = [asyncio.create_task(start(number)) for number in range(60)]
        for _ in range(3):
            await sleep(0.05)
            os.kill(caller.gateway.store_pid(), signal.SIGKILL)
            await caller.until_ready()
        await asyncio.gather(*starts)
        assert len(set(acknowledged)) == 60
        for operation in acknowledged:
            await caller.until(operation, state="started", within_s=15)
        for call in list(agent.starts):
            assert (await call.complete(body=b"1")).status == 200
        for operation in acknowledged:
            assert (await caller.result(operation)).body == b"1"
            await caller.until_delivery(operation, "delivered")

    async def test_an_accepted_operation_is_no_error_when_the_store_goes(self, own_gateway: Own, agent: Actor) -> None:
        """P7, P11: what is durable is answered as such."""
        caller = Caller(await in_thread(own_gateway))
        gate = agent.holds()
        name = await caller.register(agent.url)
        asked = asyncio.create_task(caller.nexus(name, headers={"prefer": "wait=1"}))
        call = await agent.until(1)
        await caller.until_gauge("mesh_waits_open", 2)
        os.kill(caller.gateway.store_pid(), signal.SIGSTOP)
        answer = await asked
        os.kill(caller.gateway.store_pid(), signal.SIGCONT)
        assert (answer.status, answer.json["token"]) == (201, call.operation)
        gate.set()
        await caller.until(call.operation, state="succeeded")


class TestStoreTrouble:
    async def test_a_full_store(self, own_gateway: Own, agent: Actor, receiver: Actor) -> None:
        """P7: starts are refused and leave nothing; what is under way ends, and reads go on."""
        caller = Caller(await in_thread(own_gateway))
        agent.replies(started())
        name = await caller.register(agent.url)
        operation = await caller.begin(name, callback=receiver.url)
        call = await agent.until(1)
        assert caller.gateway.tell_store("CONFIG SET maxmemory 1") == b"+OK"
        key = {"idempotency-key": "k", "prefer": "respond-async"}
        refused = await caller.nexus(name, headers=key)
        check_failure(refused, 503, "UNAVAILABLE")
        assert (int(refused["retry-after"]) >= 1, "memory" in refused.json["message"]) == (True, True)
        assert (await caller.v1(name, key, input=None)).status == 503
        assert (await call.complete(body=b"1")).status == 200
        assert (await caller.result(operation)).body == b"1"
        assert (await receiver.until(1)).body == b"1"
        await caller.until_delivery(operation, "delivered")
        assert len((await caller.get("/v1/operations")).json["items"]) == 1
        assert caller.gateway.tell_store("CONFIG SET maxmemory 0") == b"+OK"
        assert (await caller.nexus(name, headers=key)).status == 201
        await agent.until(2)
        assert len((await caller.get("/v1/operations")).json["items"]) == 2

    async def test_a_disk_that_fills_up(
        self, own_gateway: Own, agent: Actor, small_disk: Callable[[Path], Path]
    ) -> None:
        """P7: what was acknowledged outlasts it; new work is 503, and `/readyz` says why; with room it all goes on."""
        gateway = await in_thread(own_gateway)
        await in_thread(gateway.stop)
        ballast = small_disk(gateway.directory / "data") / "ballast"
        await in_thread(gateway.start)
        caller = Caller(gateway)
        agent.replies(started())
        name = await caller.register(agent.url)
        acknowledged = {f"k{number}": await begin(caller, name, f"k{number}") for number in range(20)}
        assert "" not in acknowledged.values()
        fill(ballast)
        refused, end_s = dict[str, str](), monotonic_s() + 20
        while len(refused) < 3:
            assert monotonic_s() < end_s
            key = f"k{len(acknowledged) + len(refused)}"
            operation = await begin(caller, name, key)
            (acknowledged if operation else refused)[key] = operation
        ready = await caller.get("/readyz")
        assert (ready.status, int(ready["retry-after"]) >= 1) == (503, True)
        assert re.search(r"the disk that the store is on is full \(\d+ KiB free\): make room", ready.json["detail"])
        assert (await caller.get("/healthz")).status == 200
        assert "disk that the store is on is full" in gateway.log.read_text()
        ballast.unlink()
        await caller.until_ready()
        for key, operation in acknowledged.items():
            assert await begin(caller, name, key) == operation, "the same key is the same operation"
        every = [*acknowledged.values(), *[await begin(caller, name, key) for key in refused]]
        for operation in every:
            await caller.until(operation, state="started", within_s=15)
        for call in {call.operation: call for call in agent.starts}.values():
            assert (await call.complete(body=json.dumps(call.operation).encode())).status == 200
        for operation in every:
            assert (await caller.result(operation)).json == operation
        listed = (await caller.get("/v1/operations?limit=200")).json["items"]
        assert sorted(one["id"] for one in listed) == sorted(every), "what was refused left nothing"

    @pytest.mark.parametrize("by", ["start", "beat"])
    async def test_an_emptied_store(self, own_gateway: Own, agent: Actor, by: str) -> None:
        """P7: never taken for a new one; everything is 503 until its data is back. A start notices at once."""
        caller = Caller(await in_thread(own_gateway))
        name = await caller.register(agent.url)
        operation = (await caller.nexus(name))["mesh-operation-id"]
        caller.gateway.tell_store("FLUSHALL")
        if by == "start":
            check_failure(await caller.nexus(name), 503, "UNAVAILABLE")
        end_s = monotonic_s() + 5
        while (await caller.get(f"/v1/operations/{operation}")).status != 503:
            assert monotonic_s() < end_s
            await sleep(0.02)
        ready = await caller.get("/readyz")
        assert (ready.status, "empty after data was there" in ready.json["detail"]) == (503, True)
        for answer in (await caller.get("/v1/operations"), await caller.v1(name), await caller.cancel(operation)):
            assert (answer.status, answer.code, int(answer["retry-after"]) >= 1) == (503, "store_unsafe", True)
        assert len(agent.calls) == 1

    async def test_a_store_that_is_made_a_replica(self, own_gateway: Own, agent: Actor) -> None:
        """P7: read-only; back as a primary it serves again."""
        caller = Caller(await in_thread(own_gateway))
        name = await caller.register(agent.url)
        operation = (await caller.nexus(name))["mesh-operation-id"]
        caller.gateway.tell_store("REPLICAOF 127.0.0.1 1")
        check_failure(await caller.nexus(name), 503, "UNAVAILABLE")
        assert (await caller.get("/readyz")).status == 503
        caller.gateway.tell_store("REPLICAOF NO ONE")
        await caller.until_ready()
        assert (await caller.nexus(name)).status == 200
        assert (await caller.record(operation))["state"] == "succeeded"

    async def test_a_store_that_forgets_its_promise(self, own_gateway: Own) -> None:
        """P110: /readyz looks at the settings each time it is asked."""
        caller = Caller(await in_thread(own_gateway))
        caller.gateway.tell_store("CONFIG SET appendfsync everysec")
        ready = await caller.get("/readyz")
        assert (ready.status, "appendfsync" in ready.json["detail"]) == (503, True)
        caller.gateway.tell_store("CONFIG SET appendfsync always")
        assert (await caller.get("/readyz")).status == 200
