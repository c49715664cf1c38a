"""Polling instances in the registry, several gateways, and the end of one."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

from mesh.clock import monotonic_s
from tests.servers import RawServer
from tests.surface.checks import check_problem
from tests.surface.gateways import KEYLESS, Caller, Gateway
from tests.surface.pollers import Poller, pull_endpoint, verb

Own = Callable[..., Gateway]


async def in_thread(work: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, work)


class TestRegistry:
    async def test_who_polls_is_there(self, caller: Caller) -> None:
        """P293."""
        name = await pull_endpoint(caller)
        path = f"/v1/endpoints/{name}"
        before = (await caller.get(path)).json
        assert (before["health"], before["instances"]) == ("offline", [])
        async with Poller(caller, name, "laptop").waiting(version="1.2"):
            found = (await caller.get(path)).json
        assert (found["health"], found["instance_counts"]["healthy"]) == ("healthy", 1)
        (instance,) = found["instances"]
        shown = {key: instance[key] for key in ("id", "kind", "version", "health")}
        assert shown == {"id": "laptop", "kind": "pull", "version": "1.2", "health": "healthy"}
        assert "url" not in instance

    async def test_a_removed_instance_is_told_to_stop(self, caller: Caller) -> None:
        """P293."""
        name = await pull_endpoint(caller)
        poller = Poller(caller, name, "laptop")
        operation = await caller.begin(name)
        task = await poller.task()
        assert (await caller.ask("DELETE", f"/v1/endpoints/{name}/instances/laptop")).status == 204
        waiting = await caller.begin(name)
        begun_s = monotonic_s()
        answers = [{"token": task["task_token"]}]
        assert await poller.poll(answers=answers) == {"tasks": [], "answers": [{"status": "ok"}], "draining": True}
        assert monotonic_s() - begun_s < 8
        assert (await caller.record(operation))["state"] == "succeeded"
        (instance,) = (await caller.get(f"/v1/endpoints/{name}")).json["instances"]
        assert instance["health"] == "draining"
        assert (await Poller(caller, name).task())["operation_id"] == waiting

    async def test_a_new_process_under_the_name_of_a_removed_one(self, caller: Caller) -> None:
        """P293."""
        name = await pull_endpoint(caller)
        poller = Poller(caller, name, "laptop")
        await poller.poll(wait_ms=0)
        assert (await caller.ask("DELETE", f"/v1/endpoints/{name}/instances/laptop")).status == 204
        assert (await poller.poll(wait_ms=0)) == {"tasks": [], "draining": True}
        operation = await caller.begin(name)
        assert (await poller.task(fresh=True))["operation_id"] == operation
        assert (await poller.poll(wait_ms=0)) == {"tasks": []}

    async def test_an_endpoint_that_is_deleted_and_one_that_changes(self, caller: Caller) -> None:
        """P280: known by the next poll."""
        name = await pull_endpoint(caller)
        poller = Poller(caller, name)
        await poller.poll(wait_ms=0)
        forced = await caller.ask("PUT", f"/v1/endpoints/{name}?force=true", (), {"target": {"kind": "http"}})
        assert forced.status == 200
        check_problem(await poller.ask(), 409, "endpoint_pushes")
        assert (await caller.ask("DELETE", f"/v1/endpoints/{name}")).status == 204
        check_problem(await poller.ask(), 404, "unknown_endpoint")

    async def test_agents_at_work_are_not_cut_off_by_another_kind(self, caller: Caller) -> None:
        """P293: refused with who is there, either way; free once they are gone, or forced."""
        pushed, name = await caller.register(None), await pull_endpoint(caller)
        instance = f"/v1/endpoints/{pushed}/instances/i-1"
        assert (await caller.ask("PUT", instance, (), {"url": "http://127.0.0.1:9"})).status == 201
        await Poller(caller, name, "laptop").poll(wait_ms=0)
        for endpoint, kind, who in ((pushed, "pull", "i-1"), (name, "http", "laptop")):
            path, body = f"/v1/endpoints/{endpoint}", {"target": {"kind": kind}}
            answer = await caller.ask("PUT", path, (), body)
            check_problem(answer, 409, "kind_in_use", "/target/kind")
            assert who in answer.json["detail"]
            assert (await caller.get(path)).json["target"]["kind"] != kind
            assert (await caller.ask("DELETE", f"{path}/instances/{who}")).status == 204
            assert (await caller.ask("PUT", path, (), body)).status == 200


class TestGateways:
    async def two(self, start_server: Callable[..., RawServer], own_gateway: Own) -> tuple[Caller, Caller]:
        server = await in_thread(start_server)
        settings = KEYLESS | {"store": {"url": f"unix://{server.address.path}"}}
        made = [await in_thread(lambda name=name: own_gateway(settings, name)) for name in ("one", "two")]
        return Caller(made[0]), Caller(made[1])

    async def test_a_poll_at_another_gateway_is_woken(
        self, start_server: Callable[..., RawServer], own_gateway: Own
    ) -> None:
        """P282, P287, P290: start, answer and cancel at one gateway, polls at the other."""
        here, there = await self.two(start_server, own_gateway)
        name = await pull_endpoint(here)
        poller = Poller(there, name)
        took_s: list[float] = []
        for _ in range(3):
            async with poller.waiting() as poll:
                begun_s = monotonic_s()
                call = asyncio.ensure_future(here.nexus(name, headers={"prefer": "wait=10"}))
                (task,) = (await asyncio.wait_for(asyncio.shield(poll), 8))["tasks"]
                took_s.append(monotonic_s() - begun_s)
            assert (await verb(there, "complete", task["task_token"], b"1")).status == 200
            assert (await call).json == 1
        assert min(took_s) < 1.0, took_s  # a poll that is not woken waits 10 s
        operation = await here.begin(name)
        task = await poller.task()
        async with poller.waiting(max=0) as poll:
            await here.cancel(operation)
            frame = await asyncio.wait_for(asyncio.shield(poll), 8)
        assert [cancel["operation_id"] for cancel in frame["cancels"]] == [operation]

    async def test_two_gateways_hand_out_each_operation_once(
        self, start_server: Callable[..., RawServer], own_gateway: Own
    ) -> None:
        """P282, P283."""
        here, there = await self.two(start_server, own_gateway)
        name = await pull_endpoint(here)
        got: list[str] = []

        async def work(caller: Caller) -> None:
            poller = Poller(caller, name)
            while len(got) < 60:
                frame = await poller.poll(max=5, wait_ms=300)
                got.extend(task["operation_id"] for task in frame["tasks"])
                if frame["tasks"]:
                    answers = [{"token": task["task_token"]} for task in frame["tasks"]]
                    await poller.poll(max=0, wait_ms=0, answers=answers)

        workers = [asyncio.ensure_future(work(caller)) for caller in (here, there, there)]
        begun = [await (here, there)[number % 2].begin(name) for number in range(60)]
        await asyncio.gather(*workers)
        assert sorted(got) == sorted(begun)

    async def test_sigterm_answers_waiting_polls(self, own_gateway: Own) -> None:
        """P294: and leaves to its agent what is handed out."""
        gateway = await in_thread(own_gateway)
        caller = Caller(gateway)
        name = await pull_endpoint(caller)
        operation = await caller.begin(name)
        task = await Poller(caller, name).task(lease_ms=60_000)
        async with Poller(caller, name).waiting(wait_ms=60_000) as poll:
            assert gateway.process is not None
            gateway.process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(asyncio.shield(poll), 30) == {"tasks": []}
            assert await in_thread(lambda: gateway.process.wait(40)) == 0  # type: ignore[union-attr]
        await in_thread(gateway.start)
        assert (await caller.record(operation))["attempt"] == 1
        assert (await verb(caller, "complete", task["task_token"], b"7")).status == 200
        assert (await caller.result(operation)).json == 7

    async def test_a_killed_gateway_loses_nothing_that_is_handed_out(self, own_gateway: Own) -> None:
        """P294, P281: no session owns it, the agent goes on at the next gateway."""
        gateway = await in_thread(own_gateway)
        caller = Caller(gateway)
        name = await pull_endpoint(caller)
        operation = await caller.begin(name)
        task = await Poller(caller, name).task(lease_ms=60_000)
        await in_thread(gateway.kill)
        await in_thread(gateway.start)
        assert (await verb(caller, "heartbeat", task["task_token"])).json == {"status": "ok"}
        assert (await caller.record(operation))["attempt"] == 1
        assert (await verb(caller, "complete", task["task_token"], b"8")).status == 200
