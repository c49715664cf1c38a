"""Gateway processes that end, die, start again, or are one too many. Each test has a gateway of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mesh.clock import monotonic_s
from tests.servers import RawServer, ended, eventually_sync
from tests.surface.actors import Actor, Call, Reply, as_json
from tests.surface.gateways import KEYLESS, ROOT, SECRET, Caller, Gateway, run

Own = Callable[..., Gateway]


async def in_thread(work: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, work)


def serve_command(directory: Path) -> list[str]:
    """`mesh serve` on the store that MESH_STORE_URL names."""
    config = directory / "mesh.toml"
    config.write_text(f'[gateway]\nport = 0\n[tokens]\ncurrent = "a"\nkeys = {{ a = "{SECRET}" }}\n')
    return [sys.executable, "-m", "gateway.cli.main", "serve", "-c", str(config)]


def handles_sigterm(pid: int) -> bool:
    """Whether the process has set its own handler by now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(line.split()[1] for line in lines if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


class TestGateway:
    async def test_a_second_one_on_the_same_directory(self, own_gateway: Own) -> None:
        """P112: a status other than 0, and one line that names the directory."""
        gateway = await in_thread(own_gateway)
        data = gateway.directory / "data"
        command = [gateway.command[0], "-m", "gateway.cli.main", "dev", "--data", str(data), "--port", "0"]
        status, text = await in_thread(lambda: run(command))
        said = [line for line in text.splitlines() if line.strip()]
        assert status != 0
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
        status = await in_thread(lambda: gateway.process.wait(40))  # type: ignore[union-attr]
        assert (status, monotonic_s() - asked_at_s < 30) == (0, True)
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

    async def test_sigterm_while_it_starts(self, start_server: Callable[..., RawServer], tmp_path: Path) -> None:
        """P113: it is not forgotten."""
        server = await in_thread(start_server)
        server.signal(signal.SIGSTOP)
        env = os.environ | {"PYTHONPATH": str(ROOT), "MESH_STORE_URL": f"unix://{server.address.path}"}

        def run_and_end() -> int:
            with subprocess.Popen(serve_command(tmp_path), cwd=ROOT, env=env, stdout=subprocess.DEVNULL) as process:
                eventually_sync(lambda: handles_sigterm(process.pid), 15)
                process.send_signal(signal.SIGTERM)
                server.signal(signal.SIGCONT)
                return process.wait(40)

        assert await in_thread(run_and_end) == 0

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
        again = await agent.until(2)
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
        command, url = serve_command(tmp_path), f"unix://{server.address.path}"
        status, said = await in_thread(lambda: run(command, MESH_STORE_URL=url))
        assert status != 0
        assert ("appendonly" in said, "Traceback" in said) == (True, False), said
