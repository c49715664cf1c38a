"""Real gateways as processes, and the few things that tests of the surface do with them over and over."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mesh.clock import monotonic_s, now_ms, sleep
from mesh.tokens import CompletionTokens
from tests.ports import lasting_port
from tests.surface.wire import Answer, Connection, Pairs, ask, pairs

ROOT = Path(__file__).parents[2]
SECRET = "0123456789abcdef0123456789abcdef"
ALPHA, BETA = "alpha-key-0123456789", "beta-key-0123456789"
WEBHOOK_SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
TOKENS = {"current": "t1", "keys": {"t1": SECRET}}
KEYLESS: dict[str, Any] = {"tokens": TOKENS, "namespaces": [{"name": "default", "webhook_secret": WEBHOOK_SECRET}]}
TEAMS: dict[str, Any] = {
    "tokens": TOKENS,
    "gateway": {"wait_default_ms": 100, "wait_max_ms": 1_000},
    "namespaces": [
        {"name": "alpha", "keys": [ALPHA], "webhook_secret": WEBHOOK_SECRET},
        {"name": "beta", "keys": [BETA]},
    ],
}
ASYNC = ("prefer", "respond-async")
_names = itertools.count(1)


def fresh(prefix: str) -> str:
    """A name that no other test of this process uses."""
    return f"{prefix}-{next(_names)}"


def token_for(operation: str, *, run: int = 1, attempt: int = 1, expires_at_s: int = 1 << 33) -> str:
    """A genuine completion token of these gateways, for an operation that need not exist."""
    from gateway.settings import Settings  # noqa: PLC0415 - only this needs the gateway's code in the test process

    keys = Settings.model_validate({"tokens": TOKENS}).tokens.keys
    return CompletionTokens(keys, "t1").mint(operation, run, attempt, expires_at_s)


class Gateway:
    """One gateway process on a directory; `start` may be called again after it ended."""

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.settings_file = directory / "settings.json"
        self.settings_file.write_text(json.dumps(settings))
        self.log = directory / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def command(self) -> list[str]:
        where = [str(self.settings_file), str(self.directory / "data"), str(lasting_port())]
        return [sys.executable, "-m", "tests.surface.serve", *where]

    def start(self) -> None:
        self.kill()
        with self.log.open("ab") as log:
            env = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=env | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=log
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.kill()
        assert line, f"it did not start: {self.log.read_text()[-2000:]}"
        self.port = json.loads(line)["port"]

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        finally:
            self.kill()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def store_pid(self) -> int:
        """The process id of its store."""
        assert self.process is not None
        children = [int(one) for tasks in Path(f"/proc/{self.process.pid}/task").iterdir()
                    for one in (tasks / "children").read_text().split()]  # fmt: skip
        # It may have a process beside it that reads what would take long.
        found = [one for one in children if b"unixsocket:" in Path(f"/proc/{one}/cmdline").read_bytes()]
        assert len(found) == 1, (found, children)
        return found[0]

    def tell_store(self, line: str) -> bytes:
        """An inline command to its store, as an operator would send it; the first line of the reply."""
        title = Path(f"/proc/{self.store_pid()}/cmdline").read_bytes().decode()
        found = re.search(r"unixsocket:([^\x00\s]+)", title)
        assert found, title
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(found[1])
            connection.sendall(line.encode() + b"\r\n")
            return connection.recv(4096).partition(b"\r\n")[0]

    def url(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self.port}{path}"


async def next_ms() -> None:
    """Among operations that were accepted in the same millisecond there is no order."""
    present_ms = now_ms()
    while now_ms() <= present_ms:
        await sleep(0)


class Caller:
    """Somebody who asks a gateway; with `key` in the name of its namespace."""

    def __init__(self, gateway: Gateway, key: str = "") -> None:
        self.gateway = gateway
        self._own = [("authorization", f"Bearer {key}")] if key else []

    async def ask(
        self, method: str, target: str, headers: Pairs = (), body: bytes | Any = b"", *, within_s: float = 20.0
    ) -> Answer:
        """`body` that is not bytes goes as JSON."""
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await ask(self.gateway.port, method, target, [*self._own, *pairs(headers)], sent, within_s=within_s)

    async def get(self, target: str, headers: Pairs = ()) -> Answer:
        return await self.ask("GET", target, headers)

    async def post(self, target: str, body: Any = b"", headers: Pairs = ()) -> Answer:
        return await self.ask("POST", target, headers, body)

    async def register(self, url: str | None, **spec: Any) -> str:
        """A new endpoint for the agent at `url` (None: no instance); its name."""
        name = fresh("agent")
        target = {"kind": "http"} | ({"url": url} if url else {})
        answer = await self.ask("PUT", f"/v1/endpoints/{name}", (), {"target": target, **spec})
        assert answer.status == 201, answer
        return name

    async def nexus(
        self,
        endpoint: str,
        body: bytes = b"null",
        headers: Pairs = (),
        *,
        service: str = "svc",
        operation: str = "op",
        callback: str = "",
        json: bool = True,
    ) -> Answer:
        """Start over the Nexus surface. `json`: label the body, unless `headers` does."""
        given = pairs(headers)
        if json and "content-type" not in dict(given):
            given.append(("content-type", "application/json"))
        query = f"?callback={quote(callback, safe='')}" if callback else ""
        target = f"/nexus/endpoints/{endpoint}/services/{quote(service, safe='')}/{quote(operation, safe='')}{query}"
        return await self.ask("POST", target, given, body)

    async def begin(self, endpoint: str, headers: Pairs = (), **options: Any) -> str:
        """Start over the Nexus surface without waiting; the operation's id. One begun after it comes after it."""
        answer = await self.nexus(endpoint, headers=[ASYNC, *pairs(headers)], **options)
        assert answer.status == 201, answer
        await next_ms()
        return answer.json["token"]

    async def v1(self, endpoint: str, headers: Pairs = (), **fields: Any) -> Answer:
        """Start over /v1. One begun after it comes after it."""
        body = {"endpoint": endpoint, "service": "svc", "operation": "op"} | fields
        answer = await self.post("/v1/operations", body, headers)
        await next_ms()
        return answer

    async def record(self, operation: str) -> dict[str, Any]:
        answer = await self.get(f"/v1/operations/{operation}")
        assert answer.status == 200, answer
        return answer.json

    async def result(self, operation: str, wait: str = "10") -> Answer:
        return await self.get(f"/v1/operations/{operation}/result?wait={wait}")

    async def cancel(self, operation: str) -> Answer:
        return await self.post(f"/v1/operations/{operation}/cancel")

    async def until(self, operation: str, within_s: float = 30.0, **wanted: Any) -> dict[str, Any]:
        """The record once it has the fields `wanted`."""
        end_s = monotonic_s() + within_s
        while True:
            record = await self.record(operation)
            if wanted.items() <= record.items():
                return record
            assert monotonic_s() < end_s, record
            await sleep(0.01)

    async def events(self, operation: str) -> list[dict[str, Any]]:
        return (await self.get(f"/v1/operations/{operation}/events")).json["items"]

    async def types(self, operation: str) -> list[str]:
        return [event["type"] for event in await self.events(operation)]

    async def deliveries(self, operation: str, kind: str = "callback", **query: str) -> list[dict[str, Any]]:
        more = "".join(f"&{name}={value}" for name, value in query.items())
        items = (await self.get(f"/v1/deliveries?kind={kind}&limit=500{more}")).json["items"]
        return [one for one in items if one["operation_id"] == operation]

    async def gauge(self, name: str) -> float:
        """A value of /metrics, by its name with labels; 0 for one that was never counted."""
        lines = (await self.get("/metrics")).body.decode().splitlines()
        return float(next((line.rpartition(" ")[2] for line in lines if line.startswith(f"{name} ")), 0))

    async def until_gauge(self, name: str, wanted: float, within_s: float = 30.0) -> None:
        end_s = monotonic_s() + within_s
        while (found := await self.gauge(name)) != wanted:
            assert monotonic_s() < end_s, found
            await sleep(0.01)

    async def until_ready(self, within_s: float = 30.0) -> None:
        end_s = monotonic_s() + within_s
        while (await self.get("/readyz")).status != 200:
            assert monotonic_s() < end_s
            await sleep(0.02)

    async def until_delivery(self, operation: str, state: str, kind: str = "callback") -> dict[str, Any]:
        end_s = monotonic_s() + 30
        while True:
            found = await self.deliveries(operation, kind)
            if found and found[0]["state"] == state:
                return found[0]
            assert monotonic_s() < end_s, found
            await sleep(0.02)

    @asynccontextmanager
    async def stream(self, target: str, headers: Pairs = ()) -> AsyncIterator[AsyncIterator[dict[str, str]]]:
        """Server-sent events as dicts of their fields; ends when the stream does."""
        async with await Connection.open(self.gateway.port) as connection:
            connection.send("GET", target, [*self._own, ("accept", "text/event-stream"), *pairs(headers)])
            yield _sse(connection.reader)


async def _sse(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, str]]:
    from tests.surface.wire import read_chunks, read_head  # noqa: PLC0415 - nobody else reads streams

    start, headers = await read_head(reader)
    assert " 200 " in start, start
    assert dict(headers)["content-type"].startswith("text/event-stream"), headers
    text = ""
    async for chunk in read_chunks(reader):
        text += chunk.decode()
        while "\n\n" in text:
            block, _, text = text.partition("\n\n")
            yield {name: value.lstrip() for line in block.split("\n") for name, _, value in [line.partition(":")]}


async def unused_port() -> int:
    """A port at which nobody listens."""
    return lasting_port()


def run(command: list[str], **env: str) -> tuple[int, str]:
    """Exit status and all that a command said, which must end by itself."""
    whole = os.environ | {"PYTHONPATH": str(ROOT)} | env
    done = subprocess.run(command, env=whole, cwd=ROOT, capture_output=True, timeout=20, check=False)
    return done.returncode, (done.stdout + done.stderr).decode()
