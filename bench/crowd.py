"""The flood of `spike`: two gateways on one store, an agent that counts what it has at once, three teams that call it.

The load is open: starts leave by the clock, whatever became of those before them. Judges nothing.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from bench.process import BenchFailed, Part, start
from gateway.demo.fleet import free_ports
from mesh.clock import monotonic_s, sleep
from mesh.errors import MeshError
from mesh.pool import Pool, Reply, Target
from mesh.store.binary import find_server

COUNT: Final = 3_000
SECONDS: Final = 5
LIMIT: Final = 16
SERVICE_MS: Final = 100
LARGE, MIDDLE, SMALL = "large", "middle", "small"
MIX: Final = (LARGE,) * 16 + (MIDDLE,) * 3 + (SMALL,)
MAX_WAITING: Final = 2_120
"""Less than the large team's backlog, so that it is told to come later at the end of its flood."""
ENDPOINT: Final = "bench-spike"
READY_S: Final = 30.0
DRAIN_S: Final = 120.0
TIMEOUT_S: Final = 30.0
CONNECTIONS: Final = 128
KEYS: Final = {name: f"bench-{name}-0123456789" for name in ("owner", LARGE, MIDDLE, SMALL)}
_SIGNS: Final = "0123456789abcdef0123456789abcdef"


class Agent:
    """Answers every start after SERVICE_MS; `most`: how many it had at once; `begun_s`: when each came first."""

    def __init__(self) -> None:
        self.most = 0
        self.seen: list[bytes] = []
        self.begun_s: dict[bytes, float] = {}
        self._now = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self) -> str:
        """Its URL."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        for writer in self._open:
            writer.close()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = re.search(rb"(?i)content-length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                operation = re.search(rb"(?i)mesh-operation-id: (\S+)", head)
                if operation is not None and head.startswith(b"POST"):
                    await self._work(operation[1])
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 4\r\n\r\ntrue")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _work(self, operation: bytes) -> None:
        self._now += 1
        self.most = max(self.most, self._now)
        self.seen.append(operation)
        self.begun_s.setdefault(operation, monotonic_s())
        await sleep(SERVICE_MS / 1000)
        self._now -= 1


class Site:
    """`async with Site(...)`: the store, two gateways, the agent and its endpoint; all gone at the end."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self.agent = Agent()
        self._parts: list[Part] = []
        self._pool = Pool(max_per_host=CONNECTIONS)

    async def __aenter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="mesh-bench-", dir=self._parent))
        socket = self.directory / "s.sock"
        binary, _ = find_server()
        settings = {
            "port": "0", "dir": str(self.directory), "unixsocket": str(socket), "appendonly": "yes",
            "appendfsync": "always", "save": "", "maxmemory-policy": "noeviction", "logfile": "store.log",
        }  # fmt: skip
        words = [word for name, value in settings.items() for word in (f"--{name}", value)]
        await self._start("store", [str(binary), *words])
        self.gateways = [await self._gateway(number, socket) for number in (0, 1)]
        for gateway in self.gateways:
            await self._until_ready(gateway)
        url = await self.agent.start()
        policy = {"max_concurrency": LIMIT, "max_waiting": MAX_WAITING}
        document = {"target": {"kind": "http", "url": url}, "allow": ["*"], "policy": policy}
        reply = await self.ask("owner", 0, b"PUT", f"/v1/endpoints/{ENDPOINT}", msgspec.json.encode(document))
        if reply.status not in (200, 201):
            raise BenchFailed(f"PUT endpoint answered {reply.status} {reply.body!r}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.close()
        await self.agent.stop()
        for part in reversed(self._parts):
            await part.stop(gently=kind is None)
        shutil.rmtree(self.directory, ignore_errors=True)

    async def _start(self, name: str, command: list[str]) -> None:
        self._parts.append(await start(name, command, self.directory))

    async def _gateway(self, number: int, socket: Path) -> Target:
        (port,) = free_ports(1)
        lines = [f'[store]\nurl = "unix://{socket}"\n[gateway]\nname = "g{number}"\nport = {port}']
        lines.append(f'[tokens]\ncurrent = "a"\nkeys = {{ a = "{_SIGNS}" }}\n[egress]\nallow_loopback = true')
        lines += [f'[[namespaces]]\nname = "{name}"\nkeys = ["{key}"]' for name, key in KEYS.items()]
        config = self.directory / f"g{number}.toml"
        config.write_text("\n".join(lines) + "\n")
        mesh = str(Path(sys.executable).with_name("mesh"))
        await self._start(f"gateway-{number}", [mesh, "serve", "-c", str(config)])
        return Target.parse(f"http://127.0.0.1:{port}")

    async def _until_ready(self, gateway: Target) -> None:
        end_s = monotonic_s() + READY_S
        while True:
            try:
                if (await self._pool.request(b"GET", gateway, b"/readyz", [], b"", timeout_s=5)).status == 200:
                    return
            except MeshError:
                pass
            for part in self._parts:
                part.check()
            if monotonic_s() > end_s:
                raise BenchFailed("a gateway is not ready: " + "".join(part.said() for part in self._parts))
            await sleep(0.02)

    async def ask(
        self, team: str, gateway: int, method: bytes, path: str, body: bytes = b"", *, prefer: bytes = b""
    ) -> Reply:
        """One request in the name of a team."""
        headers = [(b"authorization", b"Bearer " + KEYS[team].encode())]
        if body:
            headers.append((b"content-type", b"application/json"))
        if prefer:
            headers.append((b"prefer", prefer))
        target = self.gateways[gateway]
        return await self._pool.request(method, target, path.encode(), headers, body, timeout_s=TIMEOUT_S)

    async def depths(self) -> dict[str, int]:
        """How many wait, as each place says that shows it, while the endpoint is paused for the moment."""
        path = f"/v1/endpoints/{ENDPOINT}"
        await self.ask("owner", 0, b"POST", f"{path}/pause")
        await sleep(3 * SERVICE_MS / 1000)
        found: dict[str, int] = {}
        endpoint = ""
        for number in range(len(self.gateways)):
            queue = msgspec.json.decode((await self.ask("owner", number, b"GET", f"{path}/queue")).body)
            found[f"queue at {number}"] = queue["waiting"]
            record = msgspec.json.decode((await self.ask("owner", number, b"GET", path)).body)
            found[f"record at {number}"], endpoint = record["waiting"], record["id"]
            text = (await self.ask("owner", number, b"GET", "/metrics")).body.decode()
            series = re.findall(rf'^mesh_endpoint_waiting{{endpoint="{endpoint}".*}} (\S+)$', text, re.MULTILINE)
            found[f"metrics at {number}"] = sum(int(float(value)) for value in series)
        found["command line"] = (await self._command_line())["waiting"]
        await self.ask("owner", 0, b"POST", f"{path}/resume")
        return found

    async def _command_line(self) -> dict[str, Any]:
        mesh = str(Path(sys.executable).with_name("mesh"))
        env = os.environ | {"MESH_URL": f"http://127.0.0.1:{self.gateways[1].port}", "MESH_KEY": KEYS["owner"]}
        process = await asyncio.create_subprocess_exec(
            mesh, "endpoint", "queue", ENDPOINT, "--json", env=env, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await process.communicate()
        return msgspec.json.decode(said)


class Crowd:
    """COUNT starts in SECONDS, by the clock, each gateway in turn."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.answers: list[Reply] = []
        self.accepted: dict[bytes, tuple[str, float]] = {}
        """Operation -> team, when its start left."""
        self.drained_s = 0.0

    async def flood(self) -> None:
        begun_s = monotonic_s()
        tasks: list[asyncio.Task[None]] = []
        for number in range(COUNT):
            await sleep(max(begun_s + number * SECONDS / COUNT - monotonic_s(), 0))
            tasks.append(asyncio.create_task(self._start(number, MIX[number % len(MIX)])))
        await asyncio.gather(*tasks)

    async def _start(self, number: int, team: str) -> None:
        body = b'{"endpoint":"%b","service":"s","operation":"o","input":%d}' % (ENDPOINT.encode(), number)
        sent_s = monotonic_s()
        reply = await self._site.ask(team, number % 2, b"POST", "/v1/operations", body, prefer=b"respond-async")
        self.answers.append(reply)
        operation = reply.header(b"mesh-operation-id")
        if reply.status in (200, 202) and operation is not None:
            self.accepted[operation] = (team, sent_s)

    async def drained(self) -> None:
        """Until the agent has had all that was accepted. Raises BenchFailed."""
        begun_s = monotonic_s()
        while self.accepted.keys() - self._site.agent.begun_s.keys():
            if monotonic_s() > begun_s + DRAIN_S:
                return
            await sleep(0.05)
        await sleep(2 * SERVICE_MS / 1000)
        self.drained_s = monotonic_s() - begun_s

    async def lost(self) -> int:
        """How many of those accepted did not succeed."""
        right = 0
        for operation, (team, _) in self.accepted.items():
            path = f"/v1/operations/{operation.decode()}/result?wait=5"
            reply = await self._site.ask(team, 0, b"GET", path)
            right += reply.status == 200 and reply.body == b"true"
        return len(self.accepted) - right

    def queued_s(self) -> dict[str, list[float]]:
        """By team, in order: from the start's leaving to its arrival at the agent."""
        begun_s = self._site.agent.begun_s
        teams: dict[str, list[float]] = {}
        for operation, (team, sent_s) in self.accepted.items():
            if operation in begun_s:
                teams.setdefault(team, []).append(begun_s[operation] - sent_s)
        return {team: sorted(times) for team, times in teams.items()}
