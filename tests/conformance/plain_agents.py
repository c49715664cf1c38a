"""A Nexus handler by hand, without the SDK: it keeps all rules that the kit for agents tries, its children all but one.

`work/quick` answers its input plus one, `work/lasting` is completed after as many seconds as its input says.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs, unquote

import httpx

from mesh.clock import now_ms, sleep, to_http_date, to_rfc3339
from mesh.errors import Malformed
from mesh.ids import short_id
from mesh.wire import handler_failure, operation_failure, parse_duration_ms

RETRY_S = 0.05
TRIES_MAX = 60
FINAL = (400, 401, 403, 404, 409, 410, 501)
STATUS = {"BAD_REQUEST": 400, "NOT_FOUND": 404, "CONFLICT": 409, "REQUEST_TIMEOUT": 408, "INTERNAL": 500}

Headers = dict[str, str]


class Job:
    """One operation: its token, where its outcome goes, how it ended."""

    def __init__(self, token: str, callback: str, headers: Headers) -> None:
        self.token = token
        self.callback = callback
        self.headers = headers
        self.began_ms = now_ms()
        self.ended = asyncio.Event()
        self.state, self.body = "running", b""
        self.task: asyncio.Task[None] | None = None

    def end(self, state: str, body: bytes) -> None:
        if self.state == "running":
            self.state, self.body = state, body
            self.ended.set()


class Plain:
    """An ASGI app. What a defect changes is a method of its own."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.known: dict[str, Job] = {}
        self.tasks: set[asyncio.Task[Any]] = set()
        self.posts: set[asyncio.Task[httpx.Response]] = set()
        self.http = httpx.AsyncClient(trust_env=False, timeout=5)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send, self)
            return
        headers: Headers = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode(), value.decode("latin-1"))
        body = await self.read(headers, receive)
        if body is None:
            return
        query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
        status, answered, content = await self.serve(self.path(scope), query, headers, body)
        answered = {"content-length": str(len(content)), **answered}
        raw = [(name.encode(), value.encode("latin-1")) for name, value in answered.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": content})

    async def close(self) -> None:
        for task in tuple(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        # Not canceled: httpx leaves the socket open of a connection that is being made. They end by its timeout.
        await asyncio.gather(*self.posts, return_exceptions=True)
        await self.http.aclose()

    def spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    # -- requests

    async def read(self, headers: Headers, receive: Any) -> bytes | None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if not message.get("more_body"):
                return body

    def path(self, scope: MutableMapping[str, Any]) -> list[str]:
        return [unquote(part) for part in scope["raw_path"].decode().split("/")[1:]]

    async def serve(self, path: list[str], query: Headers, headers: Headers, body: bytes) -> tuple[int, Headers, bytes]:
        match path:
            case ["work", "quick" | "lasting" as operation]:
                return await self.start(operation, query, headers, body)
            case ["work", "quick" | "lasting", "cancel"]:
                return self.cancel(headers.get("nexus-operation-token") or query.get("token", ""))
        return self.refuse("NOT_FOUND")

    async def start(self, operation: str, query: Headers, headers: Headers, body: bytes) -> tuple[int, Headers, bytes]:
        try:
            value = self.input(body)
            timeout_ms = parse_duration_ms(headers.get("request-timeout", ""))
            limit_ms = parse_duration_ms(headers.get("operation-timeout", ""))
        except (ValueError, Malformed):
            return self.refuse("BAD_REQUEST")
        if operation == "quick":
            return self.done(value)
        job = await self.find(headers)
        if job is None:
            replayed = {name[15:]: text for name, text in headers.items() if name.startswith("nexus-callback-")}
            job = Job(self.token(), query.get("callback", ""), replayed)
            await self.remember(job, headers)
            job.task = self.spawn(self.work(job, value, limit_ms))
        if not job.callback:
            with suppress(TimeoutError):
                await asyncio.wait_for(job.ended.wait(), self.wait_s(timeout_ms))
        return self.running(job) if job.callback else self.waited(job)

    def input(self, body: bytes) -> float:
        return float(json.loads(body))

    def wait_s(self, timeout_ms: int | None) -> float | None:
        return timeout_ms / 2000 if timeout_ms else None

    def token(self) -> str:
        return short_id("job")

    def key(self, headers: Headers) -> str:
        return headers.get("nexus-request-id") or short_id("request")

    async def find(self, headers: Headers) -> Job | None:
        return self.known.get(self.key(headers))

    async def remember(self, job: Job, headers: Headers) -> None:
        self.known[self.key(headers)] = self.jobs[job.token] = job

    # -- answers

    def done(self, value: float) -> tuple[int, Headers, bytes]:
        return 200, {"content-type": "application/json"}, json.dumps(value + 1).encode()

    def running(self, job: Job) -> tuple[int, Headers, bytes]:
        body = json.dumps({"token": job.token, "state": "running"}).encode()
        return 201, {"content-type": "application/json"}, body

    def waited(self, job: Job) -> tuple[int, Headers, bytes]:
        if job.state == "succeeded":
            return 200, {"content-type": "application/json"}, job.body
        return self.refuse("REQUEST_TIMEOUT")

    def refuse(self, kind: str) -> tuple[int, Headers, bytes]:
        body = json.dumps(handler_failure(kind, "no")).encode()
        return STATUS[kind], {"content-type": "application/json"}, body

    def cancel(self, token: str) -> tuple[int, Headers, bytes]:
        if not token:
            return self.refuse("BAD_REQUEST")
        job = self.jobs.get(token)
        if job is None:
            return self.refuse("NOT_FOUND")
        self.stop(job)
        return 202, {}, b""

    def stop(self, job: Job) -> None:
        job.end("canceled", json.dumps(operation_failure("canceled", "as asked")).encode())

    # -- work and its outcome

    async def work(self, job: Job, seconds: float, limit_ms: int | None) -> None:
        limit_s = self.limit_s(seconds, limit_ms)
        with suppress(TimeoutError):
            await asyncio.wait_for(job.ended.wait(), min(seconds, limit_s))
        if limit_s < seconds:
            job.end("failed", json.dumps(operation_failure("failed", "out of time")).encode())
        job.end("succeeded", b'"done"')
        if job.callback:
            await self.report(job)

    def limit_s(self, seconds: float, limit_ms: int | None) -> float:
        return limit_ms / 1000 if limit_ms else seconds

    def completion(self, job: Job) -> tuple[str, Headers, bytes]:
        sent = {
            **job.headers,
            "content-type": "application/json",
            "nexus-operation-state": job.state,
            "nexus-operation-token": job.token,
            "nexus-operation-start-time": to_http_date(job.began_ms),
            "nexus-operation-close-time": to_rfc3339(now_ms()),
        }
        return job.callback, sent, job.body

    async def report(self, job: Job) -> None:
        url, sent, body = self.completion(job)
        for _ in range(TRIES_MAX):
            pause_s = RETRY_S
            try:
                reply = await self.post(url, sent, body)
            except httpx.TransportError:
                if not self.repeats(0):
                    return
            else:
                if not self.repeats(reply.status_code):
                    return
                pause_s = self.pause_s(reply)
            await sleep(pause_s)
            url, sent, body = self.next_try(job, url, sent, body)

    async def post(self, url: str, headers: Headers, body: bytes) -> httpx.Response:
        post = asyncio.get_running_loop().create_task(self.http.post(url, headers=headers, content=body))
        self.posts.add(post)
        post.add_done_callback(self.posts.discard)
        return await asyncio.shield(post)

    def repeats(self, status: int) -> bool:
        return status not in FINAL and not 200 <= status < 300

    def pause_s(self, reply: httpx.Response) -> float:
        return max(RETRY_S, float(reply.headers.get("retry-after", 0)))

    def next_try(self, job: Job, url: str, sent: Headers, body: bytes) -> tuple[str, Headers, bytes]:
        return url, sent, body


class Street:
    """Several agents behind one server, each under its own name: `/{class name}` is an agent's URL."""

    def __init__(self, agents: Iterable[type[Plain]]) -> None:
        self.houses = {agent.__name__: agent() for agent in agents}

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send, *self.houses.values())
            return
        name = scope["path"].split("/")[1]
        raw, path = scope["raw_path"].removeprefix(f"/{name}".encode()), scope["path"].removeprefix(f"/{name}")
        await self.houses[name]({**scope, "raw_path": raw, "path": path}, receive, send)


async def live(receive: Any, send: Any, *agents: Plain) -> None:
    """The lifespan of an ASGI app."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await asyncio.gather(*(agent.close() for agent in agents))
    await send({"type": "lifespan.shutdown.complete"})
