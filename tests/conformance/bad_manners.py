"""More agents with one defect each: cancels, deadlines, odd requests, leases, and what they leave behind."""

from __future__ import annotations

import asyncio
from typing import Any

from mesh.clock import sleep
from mesh.ids import short_id
from tests.conformance.bad_agents import caught
from tests.conformance.plain_agents import Headers, Job, Plain

# -- cancel


@caught("X1", "never gave out with 404")
class Agreeable(Plain):
    """Says yes to every cancel."""

    def cancel(self, token: str) -> tuple[int, Headers, bytes]:
        if token not in self.jobs and token:
            return 202, {}, b""
        return super().cancel(token)


@caught("X2", "with 400 BAD_REQUEST")
class Crashing(Plain):
    """Falls over a cancel without a token."""

    def cancel(self, token: str) -> tuple[int, Headers, bytes]:
        return super().cancel(token) if token else self.refuse("INTERNAL")


@caught("X3", "Let a canceled operation end and report how it did")
class Abandoning(Plain):
    """Kills the work, and with it the report."""

    def stop(self, job: Job) -> None:
        if job.task is not None and not job.ended.is_set():
            job.task.cancel()


@caught("X3", "The cancel was taken and changed nothing")
class Ignoring(Plain):
    """Says yes and goes on. Legal, and a waste."""

    def stop(self, job: Job) -> None:
        pass


@caught("X4", "also when it comes twice or too late")
class OnceOnly(Plain):
    """Refuses the second cancel."""

    def stop(self, job: Job) -> None:
        super().stop(job)
        self.jobs.pop(job.token)


@caught("X5", "Cancel only the operation whose token is named")
class Sweeping(Plain):
    """Stops whatever runs when it does not know what is meant."""

    def cancel(self, token: str) -> tuple[int, Headers, bytes]:
        if token not in self.jobs:
            for job in self.jobs.values():
                self.stop(job)
        return super().cancel(token)


@caught("X6", "Run the work once per Nexus-Request-Id")
class NewNames(Plain):
    """Gives one piece of work a new token in every answer."""

    def running(self, job: Job) -> tuple[int, Headers, bytes]:
        job.token = short_id("job")
        self.jobs[job.token] = job
        return super().running(job)

    def completion(self, job: Job) -> tuple[str, Headers, bytes]:
        url, sent, body = super().completion(job)
        return url, {**sent, "nexus-operation-token": "job-of-old"}, body


@caught("X7", "also when it comes twice or too late")
class Finished(Plain):
    """Knows nothing of what ended."""

    async def report(self, job: Job) -> None:
        await super().report(job)
        self.jobs.pop(job.token)


# -- deadlines and requests


@caught("D1", "201 when the work goes on")
class Blocking(Plain):
    """Answers when the work is done, whoever waits."""

    async def start(self, operation: str, query: Headers, headers: Headers, body: bytes) -> Any:
        answer = await super().start(operation, query, headers, body)
        job = self.known.get(self.key(headers))
        # The first start shows it answers 201; what is limited shows that it does not look.
        if job is not None and headers.get("request-timeout") == "500ms":
            await job.ended.wait()
        return answer


@caught("D2", "Answer before Request-Timeout is over")
class Endless(Plain):
    """Keeps those waiting who have no callback."""

    def wait_s(self, timeout_ms: int | None) -> float | None:
        return None


@caught("D3", "Stop when Operation-Timeout is over")
class Timeless(Plain):
    """Works on for nobody. Legal, and a waste."""

    def limit_s(self, seconds: float, limit_ms: int | None) -> float:
        return seconds


@caught("R1", "Read bodies with Transfer-Encoding: chunked")
class LengthOnly(Plain):
    """Reads as much as Content-Length says."""

    async def read(self, headers: Headers, receive: Any) -> bytes | None:
        body = await super().read(headers, receive)
        return body[: int(headers.get("content-length", 0))] if body else body


@caught("R2", "Take an empty body without Content-Type for null")
class NoNull(Plain):
    """Falls over nothing."""

    def input(self, body: bytes) -> float:
        return super().input(body) if body else float(body[0])

    async def start(self, operation: str, query: Headers, headers: Headers, body: bytes) -> Any:
        try:
            return await super().start(operation, query, headers, body)
        except IndexError:
            return self.refuse("INTERNAL")


@caught("R3", "never 422 or 500")
class Validating(Plain):
    """Answers as its framework does."""

    def refuse(self, kind: str) -> tuple[int, Headers, bytes]:
        if kind == "BAD_REQUEST":
            return 422, {"content-type": "application/json"}, b'{"detail": []}'
        return super().refuse(kind)


@caught("R4", "Match names on the raw path")
class Decoding(Plain):
    """Decodes the path, then splits it."""

    def path(self, scope: Any) -> list[str]:
        return scope["path"].split("/")[1:]


@caught("R5", "unknown services and operations with 404")
class Lost(Plain):
    """Falls over names that it does not know."""

    async def serve(self, path: list[str], query: Headers, headers: Headers, body: bytes) -> Any:
        return await super().serve(path, query, headers, body) if path[0] == "work" else self.refuse("INTERNAL")


@caught("R6", "Pass over headers that you do not know")
class Suspicious(Plain):
    """Compares media types letter by letter."""

    async def start(self, operation: str, query: Headers, headers: Headers, body: bytes) -> Any:
        if "charset" in headers.get("content-type", ""):
            return self.refuse("BAD_REQUEST")
        return await super().start(operation, query, headers, body)


# -- leases and afterwards


@caught("L1", "Mesh-Lease-Ms, or leave that header out")
class Promising(Plain):
    """Promises heartbeats and sends none."""

    def running(self, job: Job) -> tuple[int, Headers, bytes]:
        status, headers, body = super().running(job)
        return status, {**headers, "mesh-lease-ms": "300"}, body


@caught("L2", "that a heartbeat says is lost or ended")
class Clinging(Promising):
    """Heartbeats whatever it is answered."""

    async def work(self, job: Job, seconds: float, limit_ms: int | None) -> None:
        beats = self.spawn(self.beat(job))
        await super().work(job, seconds, limit_ms)
        beats.cancel()

    async def beat(self, job: Job) -> None:
        url = job.callback.removesuffix("/nexus/callback") + "/v1/tasks/heartbeat"
        while not job.ended.is_set():
            await sleep(0.1)
            await self.http.post(url, json={"tasks": [{"token": job.headers["token"]}]})


@caught("Z1", "with the Token of its own start")
class Unsigned(Plain):
    """Reports what ends under another name too."""

    async def report(self, job: Job) -> None:
        await super().report(job)
        await self.http.post(job.callback, content=b"log", headers={"token": "of-my-own"})


@caught("Z2", "Free what a broken-off request held")
class Leaking(Plain):
    """Never gives back what a broken-off request held."""

    def __init__(self) -> None:
        super().__init__()
        self.held = 0

    async def read(self, headers: Headers, receive: Any) -> bytes | None:
        body = await super().read(headers, receive)
        self.held += body is None
        return body

    async def start(self, operation: str, query: Headers, headers: Headers, body: bytes) -> Any:
        if self.held > 1:
            return self.refuse("INTERNAL")
        return await super().start(operation, query, headers, body)


async def unread(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """R7: refuses without reading the body, and reads the body as the next request. Serve with asyncio.start_server."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            if head.startswith(b"POST ") and b"/quick?" in head.partition(b"\r\n")[0]:
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1\r\n\r\n2")
            elif head.startswith(b"POST "):
                writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            else:
                writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
        pass
    finally:
        writer.close()
