"""Versions of agents that ask for their work: pins, shares that nobody can keep, drains. P430 to P432, P313."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from mesh.clock import monotonic_s, sleep
from tests.servers import RawServer
from tests.surface.checks import check_problem
from tests.surface.gateways import ASYNC, KEYLESS, Caller, Gateway
from tests.surface.pollers import Poller, pull_endpoint, verb

Own = Callable[..., Gateway]


async def in_thread(work: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, work)


async def version(caller: Caller, endpoint: str, name: str) -> dict[str, Any]:
    items = (await caller.get(f"/v1/endpoints/{endpoint}/versions")).json["items"]
    return next(one for one in items if one["version"] == name)


async def until(caller: Caller, endpoint: str, name: str, **wanted: Any) -> dict[str, Any]:
    until_s = monotonic_s() + 10
    while True:
        found = await version(caller, endpoint, name)
        if all(found[key] == value for key, value in wanted.items()):
            return found
        assert monotonic_s() < until_s, found
        await sleep(0.05)


async def drain(caller: Caller, endpoint: str, name: str, verb: str = "drain") -> None:
    assert (await caller.post(f"/v1/endpoints/{endpoint}/versions/{name}/{verb}")).status == 200


class TestPins:
    async def test_a_pinned_start_meets_the_waiting_poll_of_its_version_only(self, caller: Caller) -> None:
        """P430: whichever of them asked first."""
        name = await pull_endpoint(caller)
        old, new = Poller(caller, name, "old"), Poller(caller, name, "new")
        async with old.waiting(version="3", max=5) as other, new.waiting(version="4", max=5) as poll:
            operation = await caller.begin(name, {"mesh-version": "4"})
            (task,) = (await poll)["tasks"]
            assert task["operation_id"] == operation
            assert not other.done()
            assert (await version(caller, name, "4"))["running"] == 1, "P313"
            assert (await verb(caller, "complete", task["task_token"])).status == 200
            assert (await version(caller, name, "4"))["running"] == 0

    async def test_it_waits_for_its_version_in_nobodys_way(self, caller: Caller) -> None:
        """P430, over both surfaces; the others go past it, and it goes when its version asks."""
        name = await pull_endpoint(caller)
        old = Poller(caller, name, "old")
        await old.poll(wait_ms=0, version="3")
        pinned = [await caller.begin(name, {"mesh-version": "4"}) for _ in range(3)]
        pinned.append((await caller.v1(name, [ASYNC], version="4")).json["id"])
        plain = await caller.begin(name)
        record = await caller.record(pinned[0])
        assert (record["blocked"], record["version"]) == ("no_version", "4")
        assert [one["operation_id"] for one in await old.tasks(1, version="3")] == [plain]
        assert (await old.poll(max=9, wait_ms=0, version="3"))["tasks"] == []
        assert (await version(caller, name, "4"))["waiting"] == 4
        got = await Poller(caller, name, "new").tasks(4, version="4")
        assert sorted(one["operation_id"] for one in got) == sorted(pinned)
        busy = await caller.begin(name, {"mesh-version": "4"})
        assert (await caller.record(busy))["blocked"] == "busy"

    async def test_who_names_no_version_gets_no_pinned_work(self, caller: Caller) -> None:
        name = await pull_endpoint(caller)
        await caller.begin(name, {"mesh-version": "4"})
        assert (await Poller(caller, name).poll(max=9, wait_ms=50))["tasks"] == []

    async def test_every_attempt_goes_to_its_version(self, caller: Caller) -> None:
        """P430: one that was given back, or comes again after a failure, too."""
        name = await pull_endpoint(caller, policy={"retry": {"initial_ms": 1}})
        old, new = Poller(caller, name, "old"), Poller(caller, name, "new")
        operation = await caller.begin(name, {"mesh-version": "4"})
        first = await new.task(version="4")
        await verb(caller, "release", first["task_token"])
        assert (await old.poll(wait_ms=50, version="3"))["tasks"] == []
        second = await new.task(version="4")
        assert (second["operation_id"], second["attempt"]) == (operation, 2)
        await verb(caller, "fail", second["task_token"], {"message": "not now", "type": "UNAVAILABLE"})
        await caller.until(operation, state="scheduled")
        async with old.waiting(version="3", max=5) as other:
            third = await new.task(version="4")
            assert (third["operation_id"], other.done()) == (operation, False)

    async def test_a_limit_leaves_its_slot_to_it(self, caller: Caller) -> None:
        """P430: what waited for a slot with all others is not passed for ever by a version that asks more often."""
        name = await pull_endpoint(caller, policy={"max_concurrency": 1})
        old, new = Poller(caller, name, "old"), Poller(caller, name, "new")
        await caller.begin(name)
        held = await old.task(version="3")
        pinned = await caller.begin(name, {"mesh-version": "4"})
        plain = [await caller.begin(name) for _ in range(5)]
        assert (await caller.record(pinned))["blocked"] == "concurrency"
        await verb(caller, "complete", held["task_token"])
        got: list[str] = []
        async with asyncio.timeout(60):
            while pinned not in got:
                for poller, at in ((old, "3"), (new, "4")):
                    for task in (await poller.poll(version=at, max=9, wait_ms=50))["tasks"]:
                        got.append(task["operation_id"])
                        assert (at, got[-1]) != ("3", pinned)
                        await verb(caller, "complete", task["task_token"])
        assert set(got) <= {pinned, *plain}

    async def test_a_poll_at_another_gateway_is_woken(
        self, start_server: Callable[..., RawServer], own_gateway: Own
    ) -> None:
        """P430: two gateways on one store; the version asks at one, the start comes to the other."""
        server = await in_thread(start_server)
        settings = KEYLESS | {"store": {"url": f"unix://{server.address.path}"}}
        one, other = [Caller(await in_thread(lambda at=at: own_gateway(settings, at))) for at in ("one", "other")]
        name = await pull_endpoint(one)
        assert (await other.get(f"/v1/endpoints/{name}")).status == 200
        old, new = Poller(one, name, "old"), Poller(other, name, "new")
        async with old.waiting(version="3") as mine, new.waiting(version="4") as poll:
            operation = await one.begin(name, {"mesh-version": "4"})
            assert [task["operation_id"] for task in (await poll)["tasks"]] == [operation]
            assert not mine.done()


async def test_a_poll_says_what_a_start_may_name(caller: Caller) -> None:
    """P450."""
    poller = Poller(caller, await pull_endpoint(caller), "one")
    for odd in ("3\n", "\x00", "v" * 129):
        check_problem(await poller.ask(version=odd, wait_ms=0), 422, "body_invalid")
    for good in ("", "v" * 128, "drei ünd"):
        assert await poller.poll(version=good, wait_ms=0) == {"tasks": []}


class TestShares:
    async def test_a_share_is_refused(self, caller: Caller) -> None:
        """P431: it could not be kept, so it is not taken."""
        name = await pull_endpoint(caller)
        for share in ({"percent": 5}, {"weight": 0}):
            answer = await caller.ask("PUT", f"/v1/endpoints/{name}/versions/4", (), share)
            check_problem(answer, 400, "share_of_pull")
        assert (await caller.get(f"/v1/endpoints/{name}/versions")).json["items"] == []


class TestDrain:
    async def test_its_instances_get_nothing_more(self, caller: Caller) -> None:
        """P432, P451: polls are told, also those that wait; what it has it finishes; resumed, it gets work."""
        name = await pull_endpoint(caller)
        old, new = Poller(caller, name, "old"), Poller(caller, name, "new")
        await caller.begin(name)
        task = await old.task(version="3")
        async with old.waiting(version="3", wait_ms=60_000) as poll:
            await drain(caller, name, "3")
            plain, pinned = await caller.begin(name), await caller.begin(name, {"mesh-version": "3"})
            assert await asyncio.wait_for(poll, 20) == {"tasks": [], "draining": True}
        for fresh in (False, True):
            assert await old.poll(version="3", fresh=fresh) == {"tasks": [], "draining": True}
        found = await version(caller, name, "3")
        assert (found["running"], found["waiting"]) == (1, 1)
        assert found["instance_counts"] == {"healthy": 0, "suspect": 0, "offline": 0, "draining": 1}
        assert (await caller.record(pinned))["blocked"] == "no_version"
        assert (await new.task(version="4"))["operation_id"] == plain
        assert (await verb(caller, "complete", task["task_token"])).status == 200
        assert (await until(caller, name, "3", running=0))["draining_since"]
        await drain(caller, name, "3", "resume")
        assert (await old.task(version="3"))["operation_id"] == pinned
