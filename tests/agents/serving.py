"""Real HTTP for tests of the SDK: uvicorn in a thread on a free port, a receiver of completions, a scripted gateway."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from mesh.agent.server import bind
from mesh.clock import monotonic_s, pause, sleep
from tests.ports import lasting_port

App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]


def until(check: Callable[[], object], within_s: float = 30.0) -> Any:
    """Poll until `check()` is truthy, and give it; fail the test when it never is."""
    end_s = monotonic_s() + within_s
    while not (found := check()):
        assert monotonic_s() < end_s, f"never came true: {check}"
        pause(0.005)
    return found


class _Server(uvicorn.Server):
    """uvicorn without its rests of a tenth of a second."""

    async def main_loop(self) -> None:
        await self.on_tick(0)
        while not self.should_exit:
            await sleep(0.005)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in tuple(self.server_state.connections):
            connection.shutdown()
        await self.lifespan.shutdown()
        await asyncio.gather(*self.server_state.tasks, return_exceptions=True)
        # What connected meanwhile: a loop that closes over an open socket fails, and so does whoever tests next.
        while self.server_state.connections:
            for connection in tuple(self.server_state.connections):
                connection.transport.abort()
            await sleep(0.005)


@contextmanager
def serving(app: App, *, prefix: str = "", port: int = 0, http: Any = "auto") -> Iterator[str]:
    """`app` behind a real uvicorn in a thread of its own; gives its base URL. The lifespan ends with the block.

    http: the class of its connections; mesh.edge.protocol.Edge is the one of `Agent.run`
    """
    listener = bind("127.0.0.1", port or lasting_port())
    # Not uvloop: in a thread, with peers that cut their connections, its end is "resource busy" now and then.
    config = uvicorn.Config(
        app, loop="asyncio", http=http, log_level="error", access_log=False, lifespan="on", ws="none"
    )
    server = _Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        assert thread.is_alive(), "the app did not start"
        yield f"http://127.0.0.1:{listener.getsockname()[1]}{prefix}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive(), "the app did not stop"


@dataclass
class Request:
    """What arrived: method, path with query, headers with lower-case names, body."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Script = Callable[[Request], "Response | Awaitable[Response]"]


@dataclass
class Response:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    chunks: list[bytes] | None = None
    """Instead of `body`: sent one by one, without a length; an empty one breaks the connection."""


def answer(value: Any, status: int = 200, **headers: str) -> Response:
    """A JSON response."""
    return Response(status, json.dumps(value).encode(), {"content-type": "application/json", **headers})


class Scripted:
    """An ASGI app that keeps every request and answers what `script` says; 200 without one."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script
        self.requests: list[Request] = []

    def at(self, part: str, method: str = "") -> list[Request]:
        """The requests whose path holds `part`."""
        return [each for each in self.requests if part in each.path and method in ("", each.method)]

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        query = f"?{scope['query_string'].decode()}" if scope["query_string"] else ""
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        request = Request(scope["method"], scope["raw_path"].decode() + query, headers, body)
        if (request.method, request.path) == ("GET", "/healthz"):
            # A gateway that looks after another test's agent, whose port this was a moment ago.
            response: Response | Awaitable[Response] = Response(404)
        else:
            self.requests.append(request)
            response = Response() if self.script is None else self.script(request)
        if not isinstance(response, Response):
            response = await response
        raw = [(name.encode(), value.encode("latin-1")) for name, value in response.headers.items()]
        await send({"type": "http.response.start", "status": response.status, "headers": raw})
        for chunk in response.chunks or []:
            if not chunk:
                return  # uvicorn drops the connection of an app that ends before its response does
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": response.body})


class Gateway(Scripted):
    """The parts of a gateway an agent talks to: registry, heartbeats, completions.

    verdicts    what the next heartbeats answer, by completion token; "ok" for others
    statuses    what the next completions answer, in order; 200 after that
    """

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.url = ""
        self.endpoint: dict[str, Any] | None = None
        self.etag = 0
        self.verdicts: dict[str, str] = {}
        self.statuses: list[int] = []
        self.completions: list[Request] = []
        self.refuse: tuple[int, dict[str, Any]] | None = None
        self.remarks: dict[str, Any] = {}

    def completed(self, count: int = 1, within_s: float = 30.0) -> list[Request]:
        until(lambda: len(self.completions) >= count, within_s)
        return self.completions

    def _answer(self, request: Request) -> Response:
        path = request.path.partition("?")[0]
        if path == "/nexus/callback":
            self.completions.append(request)
            return Response(self.statuses.pop(0) if self.statuses else 200)
        if path == "/v1/tasks/heartbeat":
            tasks = [{"status": self.verdicts.get(task["token"], "ok")} for task in request.json["tasks"]]
            return answer({"tasks": tasks})
        if self.refuse is not None:
            return answer(self.refuse[1], self.refuse[0])
        if "/instances/" in path:
            return answer({}, 404) if self.endpoint is None else answer({"ok": True})
        if request.method == "PUT":
            created, self.endpoint = self.endpoint is None, request.json
            self.etag += 1
            return answer({**request.json, **self.remarks}, 201 if created else 200, etag=f'"{self.etag}"')
        return answer({}, 404) if self.endpoint is None else answer(self.endpoint, etag=f'"{self.etag}"')


async def forever() -> None:
    """Until cancelled."""
    await asyncio.Event().wait()
