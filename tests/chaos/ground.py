"""The processes of a chaos run: a store, gateways, three agents, a callback receiver; started in order, kept running.

    async with Ground(directory, seed) as ground: ...              two gateways with `mesh serve` on one store
    async with Ground(directory, seed, dev=True) as ground: ...    one `mesh dev`, whose store is its own child

Owns how each process is started and when it is ready, and is their supervisor: what ends by itself is started again,
and told in `ended`. Breaks nothing and asks nothing: that is harness.py.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from mesh.clock import monotonic_s, sleep
from mesh.errors import PeerFault
from mesh.ids import secret_bytes
from mesh.pool import Pool, Target
from mesh.store.address import Address
from mesh.store.binary import find_server
from mesh.store.link import Link
from tests.chaos.asking import Gateway
from tests.chaos.history import Recorder
from tests.chaos.processes import Process, free_ports
from tests.servers import Proxy

READY_S = 30.0
WATCH_S = 0.1
AGENTS = {"worker-a": "work", "worker-b": "work", "worker-c": "paced"}
ANSWER_WITHIN_MS = {"worker-a": 150, "worker-b": 1_400, "worker-c": 600}
"""Up to then the gateway holds the lease of a start; afterwards the agent does."""
POLICY: dict[str, Any] = {
    "request_timeout_ms": 3_000,
    "heartbeat_ms": 2_500,
    "retry": {"initial_ms": 100, "factor": 2.0, "max_ms": 1_000, "max_attempts": 100},
    "breaker": {"failures": 20, "open_ms": 500},
}
PACED_MAX = 24


class Ground:
    """The processes.

    `bug` starts gateways with a planted bug (planted.py). With `answer_within_ms` all agents have that patience before
    they answer 201, and gateways hold what runs for so long. `proxied`: a proxy stands between each gateway and the
    store, in `proxies`.
    """

    def __init__(
        self,
        directory: Path,
        seed: int,
        *,
        dev: bool = False,
        bug: str = "",
        answer_within_ms: int = 0,
        proxied: bool = False,
    ) -> None:
        self.directory = directory
        self.seed = seed
        self.dev = dev
        self.ended: list[str] = []
        self.down: set[str] = set()
        """What the harness keeps from running."""
        self.histories: list[Path] = []
        self._bug = bug
        self._answer_within_ms = answer_within_ms
        self._token_key = secret_bytes(32).hex()
        self._secret = ""
        self._callback_path = f"/cb/{secret_bytes(8).hex()}"
        names = ["gateway-a"] if dev else ["gateway-a", "gateway-b"]
        self._ports = dict(zip([*names, *AGENTS, "receiver"], free_ports(6), strict=False))
        self._data = directory / "data"
        self._data.mkdir(exist_ok=True)
        self._address = Address(path=str(self._data / "s.sock"))
        self.proxies = {name: Proxy(self._address, directory / f"{name}.sock") for name in names if proxied}
        self.processes: dict[str, Process] = {}
        if not dev:
            self._add("store", self._store())
        for name in names:
            self._add(name, self._gateway(name))
        self.gateways = [Gateway(name, Target.parse(self.url(name))) for name in names]
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()
        for process in self.processes.values():
            process.kill()

    def history(self, name: str) -> Path:
        """The file for the lines of `name`; all of them make the run's history."""
        self.histories.append(self.directory / f"{name}.jsonl")
        return self.histories[-1]

    def recorder(self, process: str) -> Recorder:
        """A history of the tests' own process, closed with the ground."""
        record = Recorder(self.history(process), process)
        self._stack.callback(record.close)
        return record

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._ports[name]}"

    @property
    def callback_url(self) -> str:
        return self.url("receiver") + self._callback_path

    # How each is started

    def _add(self, name: str, command: list[str], title: str = "") -> None:
        """`title`: the option that gets the generation's name."""
        self.processes[name] = Process(name, lambda now: [*command, title, now] if title else command, self.directory)

    def _store(self) -> list[str]:
        binary, _ = find_server()
        settings = {
            "port": "0", "unixsocket": self._address.path, "dir": str(self._data), "appendonly": "yes",
            "appendfsync": "always", "maxmemory-policy": "noeviction", "save": "",
        }  # fmt: skip
        return [str(binary), *(word for name, value in settings.items() for word in (f"--{name}", value))]

    def _gateway(self, name: str) -> list[str]:
        mesh = [sys.executable, "-c", "from gateway.cli.main import main; main()"]
        if self._bug:
            mesh = [sys.executable, "-m", "tests.chaos.planted", self._bug]
        port = self._ports[name]
        if self.dev:
            return [*mesh, "dev", "--data", str(self._data), "--port", str(port)]
        file = self.directory / f"{name}.toml"
        store = self.proxies[name].address if name in self.proxies else self._address
        file.write_text(
            f'[store]\nurl = "unix://{store.path}"\n[gateway]\nname = "{name}"\nport = {port}\n'
            f'[egress]\nallow_loopback = true\n[tokens]\ncurrent = "t"\nkeys = {{ t = "{self._token_key}" }}\n'
        )
        return [*mesh, "serve", "--config", str(file)]

    def _agent(self, name: str) -> list[str]:
        within_ms = self._answer_within_ms or ANSWER_WITHIN_MS[name]
        gateways = ",".join(self.url(gateway.name) for gateway in self.gateways)
        return [
            *(sys.executable, "-m", "tests.agents.chaos_worker", "--endpoint", AGENTS[name], "--gateways", gateways),
            *("--port", str(self._ports[name]), "--history", str(self.history(name))),
            *("--answer-within-ms", str(within_ms)),
        ]

    def _receiver(self) -> list[str]:
        return [
            *(sys.executable, "-m", "tests.agents.chaos_receiver", "--secret", self._secret),
            *("--port", str(self._ports["receiver"]), "--path", self._callback_path),
            *("--history", str(self.history("receiver"))),
        ]

    # Starting, in order

    async def _start(self) -> None:
        self.pool = Pool(max_per_host=512)
        self._stack.push_async_callback(self.pool.close)
        for proxy in self.proxies.values():
            await proxy.start()
            self._stack.push_async_callback(proxy.stop)
        for process in self.processes.values():
            process.start()
        self.link = Link(self._address)
        await self.link.connect(within_s=READY_S)
        self._stack.push_async_callback(self.link.close)
        watcher = asyncio.create_task(self._watch())
        self._stack.push_async_callback(cancel, watcher)
        for gateway in self.gateways:
            await self._until(gateway, b"GET", b"/readyz")
        self._secret = msgspec.json.decode(await self._until(self.gateways[0], b"GET", b"/v1/webhook-secret"))["secret"]
        for endpoint in ("work", "paced"):
            policy = POLICY | ({"max_concurrency": PACED_MAX} if endpoint == "paced" else {})
            policy["request_timeout_ms"] = max(POLICY["request_timeout_ms"], self._answer_within_ms * 3)
            body = msgspec.json.encode({"target": {"kind": "http"}, "policy": policy, "services": []})
            await self._until(self.gateways[0], b"PUT", b"/v1/endpoints/" + endpoint.encode(), body)
        for name in AGENTS:
            self._add(name, self._agent(name), "--process")
        self._add("receiver", self._receiver(), "--process")
        for name in (*AGENTS, "receiver"):
            self.processes[name].start()
        for gateway in self.gateways:
            for endpoint, count in (("work", 2), ("paced", 1)):
                await self._until(gateway, b"GET", b"/v1/endpoints/" + endpoint.encode(), healthy=count + 1)

    async def _until(
        self, gateway: Gateway, method: bytes, path: bytes, body: bytes = b"", *, healthy: int = 0
    ) -> bytes:
        """Ask until the answer is 2xx and says `healthy` that often, once for the endpoint and once per instance."""
        end_s, seen = monotonic_s() + READY_S, ""
        while monotonic_s() < end_s:
            try:
                reply = await self.pool.request(method, gateway.target, path, [], body, timeout_s=2)
                seen = f"{reply.status} {reply.body[:2000]!r}"
                if 200 <= reply.status < 300 and reply.body.count(b'"healthy"') >= healthy:
                    return reply.body
            except PeerFault as fault:
                seen = fault.detail
            await sleep(0.05)
        tails = "\n".join(process.tail() for process in self.processes.values())
        raise AssertionError(f"{gateway.name} {path!r} was never as expected: {seen}\n{tails}")

    async def _watch(self) -> None:
        """Start again what ended by itself; while the store is away a gateway that starts may end, and says why."""
        while True:
            await sleep(WATCH_S)
            for name, process in list(self.processes.items()):
                if name not in self.down and process.generation and not process.alive:
                    if "store" not in self.down and self.link.up:
                        self.ended.append(f"{process.title} ended:\n{process.tail(8)}")
                    process.start()


async def cancel(*tasks: asyncio.Task[None]) -> None:
    """End tasks and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
