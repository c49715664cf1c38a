"""The processes of one measurement: gateway with its embedded store, handler, receiver, generator.

They work in a directory of their own. Starts them, knows their pids, ends them whatever happens, and every child dies
with this process. Measures nothing.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from bench.meters import Reading, StoreMeter, is_store, pin, tree, usage
from bench.process import STRACE, BenchFailed, Part, is_strace, start, strace_filters
from bench.work import ENDPOINT, UNCHECKED_ENDPOINT, Wrong, key_of, new_tag, surface_of
from gateway.demo.fleet import free_ports
from mesh.clock import monotonic_s, sleep
from mesh.errors import MeshError
from mesh.pool import Pool, Reply, Target

READY_S: Final = 60.0
POLL_S: Final = 0.005


class Stack:
    """`async with Stack(...)`: a directory and the processes that were started in it, all gone at the end.

    parent    where the directory is made: its file system is the one whose fsync is measured
    trace     run the gateway's tree under strace, which sees the store's fsyncs in `fsync_trace`
    profiled  run the gateway under bench.profiled
    """

    def __init__(self, parent: Path, *, trace: bool = False, profiled: bool = False) -> None:
        self._parent = parent
        self._trace = trace
        self._profiled = profiled
        self.parts: dict[str, Part] = {}
        self.url = ""
        self.callback = ""
        self.pinned = False
        """Before a load begins, the gateway is put on the first core and everything else on the last."""
        self._pool = Pool()

    async def __aenter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="mesh-bench-", dir=self._parent))
        self.data = self.directory / "data"
        self.fsync_trace = self.directory / "fsync.trace"
        self.tap = self.directory / "tap.sock"
        self.store = StoreMeter(self.data)
        (self._port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self._port}"
        self._base = Target.parse(self.url)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.close()
        await self.store.close()
        for name in list(reversed(self.parts)):
            await self.stop(name, gently=name == "gateway" and kind is None)
        shutil.rmtree(self.directory, ignore_errors=True)

    # Parts

    async def gateway(self) -> None:
        """`mesh dev` on this directory, until /readyz says 200."""
        await self.spawn_gateway()
        await self._until("gateway", self._ready)
        await self.store.open()

    async def spawn_gateway(self) -> None:
        """Start `mesh dev` and return at once."""
        command = [str(Path(sys.executable).with_name("mesh"))]
        if self._profiled:
            command = [sys.executable, "-m", "bench.profiled"]
        if self._trace:
            filtered = ["--seccomp-bpf"] if await strace_filters() else []
            command = [*STRACE, *filtered, "-o", str(self.fsync_trace), *command]
        await self._spawn("gateway", [*command, "dev", "--data", str(self.data), "--port", str(self._port)])

    async def agent(self, *, port: int = 0, register: bool = True, pulls: bool = False) -> None:
        """The handler, until a first call was answered when it registers itself."""
        await self._role("agent", {"gateway": self.url, "port": port, "register": register, "pulls": pulls})
        if register:
            await self._until("agent", self.first_answer)

    async def receiver(self) -> None:
        """The callback receiver with the namespace's secret."""
        secret = msgspec.json.decode((await self.ask(b"GET", "/v1/webhook-secret")).body)["secret"]
        part = await self._role("receiver", {"secret": secret, "tap": str(self.tap)})
        self.callback = f"http://127.0.0.1:{(await part.event('ready', READY_S))['port']}/callbacks"

    async def generator(self, load: dict[str, Any]) -> Part:
        """A generator that begins at once."""
        part = await self._role("generator", load)
        self._pin()
        return part

    async def _role(self, name: str, settings: dict[str, Any]) -> Part:
        part = await self._spawn(name, [sys.executable, "-m", f"bench.{name}"])
        assert part.process.stdin is not None
        part.process.stdin.write(msgspec.json.encode(settings) + b"\n")
        await part.process.stdin.drain()
        return part

    async def command(self, name: str, command: Sequence[str]) -> Part:
        """Any other program as a part."""
        part = await self._spawn(name, command)
        self._pin()
        return part

    async def _spawn(self, name: str, command: Sequence[str]) -> Part:
        part = self.parts[name] = await start(name, command, self.directory)
        return part

    async def stop(self, name: str, *, gently: bool) -> None:
        """End a part, if it was started."""
        if part := self.parts.pop(name, None):
            if name == "gateway":
                await self.store.close()
                self.store = StoreMeter(self.data)
            await part.stop(gently=gently)

    # Asking

    async def ask(self, method: bytes, path: str, body: bytes = b"", *, prefer: bytes = b"") -> Reply:
        """One request to the gateway. Raises MeshError when it is not reached."""
        headers = [(b"content-type", b"application/json")] if body else []
        if prefer:
            headers.append((b"prefer", prefer))
        return await self._pool.request(method, self._base, path.encode(), headers, body, timeout_s=READY_S)

    async def put_endpoint(self, name: str, document: dict[str, Any]) -> None:
        """Register an endpoint. Raises BenchFailed, MeshError."""
        reply = await self.ask(b"PUT", f"/v1/endpoints/{name}", msgspec.json.encode(document))
        if reply.status not in (200, 201):
            raise BenchFailed(f"PUT endpoint {name} answered {reply.status} {reply.body!r}")

    async def open_unchecked(self) -> None:
        """The agent as an endpoint of its own that registers no schema. Raises BenchFailed, MeshError."""
        record = msgspec.json.decode((await self.ask(b"GET", f"/v1/endpoints/{ENDPOINT}")).body)
        await self.put_endpoint(UNCHECKED_ENDPOINT, {"target": {"kind": "http", "url": record["instances"][0]["url"]}})

    async def prove_checked(self, operation: str) -> None:
        """An input that breaks the schema must be refused, or nothing is checked. Raises BenchFailed, MeshError."""
        surface = surface_of("nexus", operation=operation)
        headers, _ = surface.request(key_of(new_tag(), 0))
        reply = await self._pool.post(self._base, surface.path, headers, b'{"id": 7}', timeout_s=READY_S)
        if reply.status != 400 or b"schema_breach" not in reply.body:
            raise BenchFailed(f"a breach of the schema of {operation} was answered {reply.status} {reply.body[:300]!r}")

    async def first_answer(self) -> None:
        """One checked call. Raises MeshError."""
        surface, key = surface_of("nexus", operation="echo"), key_of(new_tag(), 0)
        headers, body = surface.request(key)
        reply = await self._pool.post(self._base, surface.path, headers, body, timeout_s=READY_S)
        surface.check(key, reply)

    async def reach(self, url: str) -> None:
        """One GET, whatever its status. Raises MeshError when nobody answers."""
        target = Target.parse(url)
        await self._pool.request(b"GET", target, target.path, timeout_s=READY_S)

    async def _ready(self) -> None:
        reply = await self.ask(b"GET", "/readyz")
        if reply.status != 200:
            raise Wrong(f"/readyz answered {reply.status} {reply.body!r}")

    async def _until(self, name: str, step: Any) -> None:
        part, end_s = self.parts[name], monotonic_s() + READY_S
        while True:
            part.check()
            try:
                return await step()
            except MeshError as error:
                if monotonic_s() > end_s:
                    raise part.failed(f"is not ready after {READY_S:g} s: {error}") from error
            await sleep(POLL_S)

    def said(self) -> str:
        """The ends of all logs, for errors."""
        return "".join(f"\n{name}: {part.said()}" for name, part in self.parts.items())

    # Metering

    def pids(self) -> dict[str, list[int]]:
        """Process ids by the name under which their use is shown."""
        named: dict[str, list[int]] = {}
        for name, part in self.parts.items():
            part.check()
            if name != "gateway":
                named["handler" if name == "agent" else name] = [part.pid]
                continue
            pids = [pid for pid in tree(part.pid) if not is_strace(pid)]
            named["store"] = [pid for pid in pids if is_store(pid)]
            named["gateway"] = [pid for pid in pids if pid not in named["store"]]
        return named

    def _pin(self) -> None:
        if self.pinned:
            cores = sorted(os.sched_getaffinity(0))
            for name, pids in self.pids().items():
                pin(pids, cores[0] if name == "gateway" else cores[-1])

    async def read(self) -> Reading:
        """All meters, CPU first: it moves fastest."""
        used = {name: usage(pids) for name, pids in self.pids().items()}
        return Reading(used, await self.store.read())
