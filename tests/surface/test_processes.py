"""Processes that stop, hang and die: the store, the gateway, a second gateway. Each test has a gateway of its own."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mesh.clock import monotonic_s, sleep
from tests.servers import RawServer, ended
from tests.surface.actors import Actor, Call, Reply, as_json, started
from tests.surface.gateways import ASYNC, KEYLESS, ROOT, SECRET, Caller, Gateway
from tests.surface.test_nexus_input import check_failure

Own = Callable[..., Gateway]


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
            asked = [caller.nexus(name, headers=key), caller.v1(name, key, input=None), caller.get(f"/v1/operations/{done}"),
                     caller.result(done), caller.get("/readyz"), caller.get("/v1/operations")]  # fmt: skip
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
            await until_ready(caller)
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


async def until_ready(caller: Caller, within_s: float = 15.0) -> None:
    end_s = monotonic_s() + within_s
    while True:
        try:
            if (await caller.get("/readyz")).status == 200:
                return
        except OSError:
            pass
        assert monotonic_s() < end_s
        await sleep(0.02)


class TestGateway:
    async def test_a_second_one_on_the_same_directory(self, own_gateway: Own) -> None:
        """P112: a status other than 0, and one line that names the directory."""
        gateway = await in_thread(own_gateway)
        data = gateway.directory / "data"
        command = [gateway.command[0], "-m", "gateway.cli.main", "dev", "--data", str(data), "--port", "0"]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = await in_thread(lambda: subprocess.run(command, env=env, cwd=ROOT, capture_output=True, timeout=20))
        said = [line for line in (done.stdout + done.stderr).decode().splitlines() if line.strip()]
        assert done.returncode != 0
        assert "Traceback" not in "\n".join(said)
        assert any(str(data) in line and "in use" in line for line in said), said
        assert (await Caller(gateway).get("/readyz")).status == 200

    async def test_sigterm_under_load_loses_nothing(
        self, own_gateway: Own, agent: Actor, receiver: Actor, tmp_path: Path
    ) -> None:
        """P113: all processes end within 15 s; what was acknowledged goes on with the next start."""
        gateway = await in_thread(lambda: own_gateway(KEYLESS | {"gateway": {"drain_s": 2.0}}))
        caller = Caller(gateway)
        slow = asyncio.Event()

        async def script(call: Call, _writer: object) -> Reply:
            if call.path.startswith("/slow"):
                await slow.wait()
            return as_json(call.operation)

        agent.script = script
        name = await caller.register(agent.url)
        acknowledged: dict[str, int] = {}
        answered: list[str] = []
        refused: list[str] = []

        async def load(number: int) -> None:
            for turn in range(1_000):
                try:
                    service = "slow" if (number + turn) % 10 == 0 else "quick"
                    key = {"nexus-request-id": f"{number}.{turn}", "prefer": "wait=0.3"}
                    answer = await caller.nexus(name, headers=key, service=service, callback=receiver.url)
                except (OSError, EOFError, asyncio.IncompleteReadError):
                    refused.append(f"{number}.{turn}")
                    return
                assert answer.status in (200, 201, 503), answer
                if answer.status != 503:
                    acknowledged[answer["mesh-operation-id"]] = answer.status
                    answered.append(f"{number}.{turn}")

        loads = [asyncio.create_task(load(number)) for number in range(8)]
        waiting = asyncio.create_task(caller.nexus(name, headers={"prefer": "wait=60"}, service="slow"))
        stream = asyncio.create_task(self.follow(caller, name))
        await agent.until(200, within_s=20)
        store = gateway.store_pid()
        assert gateway.process is not None
        asked_at_s = monotonic_s()
        gateway.process.send_signal(signal.SIGTERM)
        status = await in_thread(lambda: gateway.process.wait(15))  # type: ignore[union-attr]
        assert (status, monotonic_s() - asked_at_s < 15) == (0, True)
        assert ended(store)
        await asyncio.gather(*loads)
        assert (await waiting).status == 201
        await stream
        acknowledged[(await waiting).json["token"]] = 201
        assert len(acknowledged) >= 100
        slow.set()
        await in_thread(gateway.start)
        for operation, first_status in acknowledged.items():
            result = await caller.result(operation, "20")
            assert (result.status, result.json) == (200, operation)
            if first_status == 201 and operation != (await waiting).json["token"]:
                await caller.until_delivery(operation, "delivered")
        assert "Traceback" not in gateway.log.read_text()
        assert await in_thread(gateway.stop) == 0

    @staticmethod
    async def follow(caller: Caller, name: str) -> None:
        """An open stream must not keep the process."""
        operation = await caller.begin(name, service="slow")
        async with caller.stream(f"/v1/operations/{operation}/events") as events:
            try:
                async for event in events:
                    assert event.get("event") != "end"
            except (asyncio.IncompleteReadError, OSError, ValueError):
                return

    async def test_sigterm_with_a_store_that_hangs(self, own_gateway: Own, agent: Actor) -> None:
        """P113: also then within 15 s."""
        gateway = await in_thread(own_gateway)
        caller = Caller(gateway)
        agent.holds()
        await caller.begin(await caller.register(agent.url))
        await agent.until(1)
        store = gateway.store_pid()
        os.kill(store, signal.SIGSTOP)
        assert gateway.process is not None
        gateway.process.send_signal(signal.SIGTERM)
        asked_at_s = monotonic_s()
        await in_thread(lambda: gateway.process.wait(20))  # type: ignore[union-attr]
        took_s = monotonic_s() - asked_at_s
        assert took_s < 15
        assert ended(store)

    async def test_sigterm_while_it_starts(self, own_gateway: Own, tmp_path: Path) -> None:
        """P113: it is not forgotten, whenever it comes."""
        env = os.environ | {"PYTHONPATH": str(ROOT)}

        async def one(delay_s: float) -> int:
            command = Gateway(tmp_path / str(delay_s), KEYLESS).command
            with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL) as process:
                await sleep(delay_s)
                process.send_signal(signal.SIGTERM)
                return await in_thread(lambda: process.wait(10))

        statuses = await asyncio.gather(*[one(delay_s) for delay_s in (0.6, 0.9, 1.2, 1.5)])
        assert set(statuses) <= {0, -signal.SIGTERM}

    async def test_kill_9_and_a_new_start(self, own_gateway: Own, agent: Actor, receiver: Actor) -> None:
        """P114: a restarted gateway reclaims its own at once; the request id stays the same."""
        gateway = await in_thread(own_gateway)
        caller = Caller(gateway)
        gate = agent.holds()
        name = await caller.register(agent.url)
        operation = await caller.begin(name, callback=receiver.url)
        first = await agent.until(1)
        await in_thread(gateway.kill)
        await in_thread(gateway.start)
        again = await agent.until(2, within_s=1.5)
        assert (again.operation, again["nexus-request-id"]) == (operation, first["nexus-request-id"])
        gate.set()
        assert (await caller.result(operation)).json == "held"
        assert (await receiver.until(1)).json == "held"
        await caller.until_delivery(operation, "delivered")
        assert await in_thread(gateway.stop) == 0

    async def test_a_refused_store_is_one_clear_line(
        self, start_server: Callable[..., RawServer], tmp_path: Path
    ) -> None:
        """P112: the reason, and no traceback of the clean-up behind it."""
        server = await in_thread(lambda: start_server(appendonly="no"))
        config = tmp_path / "mesh.toml"
        config.write_text(f'[gateway]\nport = 0\n[tokens]\ncurrent = "a"\nkeys = {{ a = "{SECRET}" }}\n')
        command = [sys.executable, "-m", "gateway.cli.main", "serve", "-c", str(config)]
        env = os.environ | {"PYTHONPATH": str(ROOT), "MESH_STORE_URL": f"unix://{server.address.path}"}
        done = await in_thread(lambda: subprocess.run(command, env=env, cwd=ROOT, capture_output=True, timeout=20))
        said = (done.stdout + done.stderr).decode()
        assert done.returncode != 0
        assert ("appendonly" in said, "Traceback" in said) == (True, False), said


async def command(gateway: Gateway, line: str) -> bytes:
    """An inline command to the gateway's own store, as an operator would send it."""
    title = Path(f"/proc/{gateway.store_pid()}/cmdline").read_bytes().decode()
    found = re.search(r"unixsocket:(\S+?)[\x00\s]", title + " ")
    assert found, title
    reader, writer = await asyncio.open_unix_connection(found[1])
    writer.write(line.encode() + b"\r\n")
    reply = await reader.readline()
    writer.close()
    return reply


class TestStoreTrouble:
    async def test_a_full_store(self, own_gateway: Own, agent: Actor, receiver: Actor) -> None:
        """P7: starts are refused and leave nothing; what is under way ends, and reads go on."""
        caller = Caller(await in_thread(own_gateway))
        agent.replies(started())
        name = await caller.register(agent.url)
        operation = await caller.begin(name, callback=receiver.url)
        call = await agent.until(1)
        assert await command(caller.gateway, "CONFIG SET maxmemory 1") == b"+OK\r\n"
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
        assert await command(caller.gateway, "CONFIG SET maxmemory 0") == b"+OK\r\n"
        assert (await caller.nexus(name, headers=key)).status == 201
        await agent.until(2)
        assert len((await caller.get("/v1/operations")).json["items"]) == 2

    async def test_an_emptied_store(self, own_gateway: Own, agent: Actor) -> None:
        """P7: never taken for a new one; everything is 503 until its data is back."""
        caller = Caller(await in_thread(own_gateway))
        name = await caller.register(agent.url)
        operation = (await caller.nexus(name))["mesh-operation-id"]
        await command(caller.gateway, "FLUSHALL")
        refused = await caller.nexus(name, headers={"nexus-request-id": "k"})
        check_failure(refused, 503, "UNAVAILABLE")
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
        await command(caller.gateway, "REPLICAOF 127.0.0.1 1")
        check_failure(await caller.nexus(name), 503, "UNAVAILABLE")
        assert (await caller.get("/readyz")).status == 503
        await command(caller.gateway, "REPLICAOF NO ONE")
        await until_ready(caller)
        assert (await caller.nexus(name)).status == 200
        assert (await caller.record(operation))["state"] == "succeeded"

    async def test_a_store_that_forgets_its_promise(self, own_gateway: Own) -> None:
        """P110: /readyz looks at the settings each time it is asked."""
        caller = Caller(await in_thread(own_gateway))
        await command(caller.gateway, "CONFIG SET appendfsync everysec")
        ready = await caller.get("/readyz")
        assert (ready.status, "appendfsync" in ready.json["detail"]) == (503, True)
        await command(caller.gateway, "CONFIG SET appendfsync always")
        assert (await caller.get("/readyz")).status == 200
