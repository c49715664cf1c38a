"""Agents with one defect each, of the kind that people write, in what they do with starts and completions.

`BAD` has them as (class, probe that finds it, a few words of its advice). A docstring says what is wrong. The rest of
them is in bad_manners.py.
"""

from __future__ import annotations

import json
from typing import Any

import httpx

from mesh.clock import now_ms, sleep, to_rfc3339
from mesh.ids import short_id
from tests.conformance.plain_agents import Headers, Job, Plain

BAD: list[tuple[type[Plain], str, str]] = []


def caught(probe: str, advice: str) -> Any:
    """Enter an agent."""

    def enter(agent: type[Plain]) -> type[Plain]:
        BAD.append((agent, probe, advice))
        return agent

    return enter


# -- starts


@caught("S1", "Post the outcome of what you answered 201")
class Silent(Plain):
    """Never reports an outcome."""

    async def report(self, job: Job) -> None:
        pass


@caught("S1", '{"token": "...", "state": "running"}')
class Nameless(Plain):
    """Answers 201 with an id of its own making."""

    def running(self, job: Job) -> tuple[int, Headers, bytes]:
        return 201, {"content-type": "application/json"}, json.dumps({"id": job.token}).encode()


@caught("S1", "200, 201, 424 or a handler error")
class Accepting(Plain):
    """Answers 202, as web frameworks do for background work."""

    def running(self, job: Job) -> tuple[int, Headers, bytes]:
        return 202, {"content-type": "application/json"}, b"{}"


@caught("S2", "Run the work once per Nexus-Request-Id")
class Forgetful(Plain):
    """Starts again whenever it is asked."""

    def key(self, headers: Headers) -> str:
        return short_id("request")


@caught("S2", "Answer a repeated Nexus-Request-Id like the first request")
class Strict(Plain):
    """Takes a repeat for a conflict."""

    async def start(self, operation: str, query: Headers, headers: Headers, body: bytes) -> Any:
        if await self.find(headers):
            return self.refuse("CONFLICT")
        return await super().start(operation, query, headers, body)


@caught("S2", "Keep the first outcome of a Nexus-Request-Id")
class TwoTongues(Plain):
    """Answers a repeat with 200 and something else than it completed."""

    def running(self, job: Job) -> tuple[int, Headers, bytes]:
        if job.ended.is_set():
            return 200, {"content-type": "application/json"}, b'"undone"'
        return super().running(job)


@caught("S3", "write id -> operation token down before the work begins")
class Racing(Plain):
    """Looks the id up, then waits for something, then writes it down."""

    async def find(self, headers: Headers) -> Job | None:
        found = await super().find(headers)
        await sleep(0.05)
        return found


@caught("S4", "Run the work once per Nexus-Request-Id")
class LateNotes(Plain):
    """Writes the id down when the answer is ready to leave, not before the work begins."""

    async def remember(self, job: Job, headers: Headers) -> None:
        self.jobs[job.token] = job

    async def start(self, operation: str, query: Headers, headers: Headers, body: bytes) -> Any:
        before = set(self.jobs)
        answer = await super().start(operation, query, headers, body)
        await sleep(0.15)
        for token in set(self.jobs) - before:
            self.known[self.key(headers)] = self.jobs[token]
        return answer


@caught("S5", "Begin only when the whole body is there")
class Hasty(Plain):
    """Works on whatever came before the connection broke."""

    async def read(self, headers: Headers, receive: Any) -> bytes | None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        return body

    def input(self, body: bytes) -> float:
        return float(body.decode().strip(". ") or 0)


@caught("S6", "Run the work once per Nexus-Request-Id")
class EveryAttempt(Plain):
    """Takes the next attempt for new work."""

    def key(self, headers: Headers) -> str:
        return f"{headers.get('nexus-request-id')} {headers.get('mesh-attempt')}"


@caught("S7", "with every completion")
class Anonymous(Plain):
    """Counts on the caller to know the operation by the time it is completed."""

    def completion(self, job: Job) -> tuple[str, Headers, bytes]:
        url, sent, body = super().completion(job)
        del sent["nexus-operation-token"]
        return url, sent, body


# -- completions


@caught("C1", "its query left as it is")
class Queryless(Plain):
    """Rebuilds the callback URL without its query."""

    def completion(self, job: Job) -> tuple[str, Headers, bytes]:
        url, sent, body = super().completion(job)
        return url.partition("?")[0], sent, body


@caught("C1", "Replay every Nexus-Callback-* header")
class TokenOnly(Plain):
    """Replays the token alone."""

    def completion(self, job: Job) -> tuple[str, Headers, bytes]:
        url, sent, body = super().completion(job)
        sent.pop("x-check", None)
        return url, sent, body


@caught("C1", "Send Nexus-Operation-State")
class Stateless(Plain):
    """Posts the result and nothing else."""

    def completion(self, job: Job) -> tuple[str, Headers, bytes]:
        url, sent, body = super().completion(job)
        del sent["nexus-operation-state"]
        return url, sent, body


@caught("C2", "Repeat a completion until it is answered 2xx")
class OneShot(Plain):
    """Reports once."""

    def repeats(self, status: int) -> bool:
        return False


@caught("C2", "Wait at least Retry-After")
class Impatient(Plain):
    """Does not read Retry-After."""

    def pause_s(self, reply: httpx.Response) -> float:
        return 0.05


@caught("C3", "a broken connection, with a growing pause")
class Trusting(Plain):
    """Takes a broken connection for success."""

    def repeats(self, status: int) -> bool:
        return status != 0 and super().repeats(status)


@caught("C3", "keep it, do not make it anew")
class Rewriting(Plain):
    """Makes the completion anew for every try."""

    def next_try(self, job: Job, url: str, sent: Headers, body: bytes) -> tuple[str, Headers, bytes]:
        return url, {**sent, "nexus-operation-close-time": to_rfc3339(now_ms())}, body


@caught("C4", "Stop when a completion is refused for good")
class Stubborn(Plain):
    """Repeats what came too late."""

    def repeats(self, status: int) -> bool:
        return status in (409, 410) or super().repeats(status)


@caught("C5", "Stop when a completion is refused for good")
class Deaf(Plain):
    """Repeats what is refused."""

    def repeats(self, status: int) -> bool:
        return status in (400, 404) or super().repeats(status)


@caught("C6", "Take any 2xx for a delivered completion")
class Literal(Plain):
    """Knows one success: 200."""

    def repeats(self, status: int) -> bool:
        return status in (202, 204) or super().repeats(status)


@caught("C7", "Turn redirects off")
class Following(Plain):
    """Goes where it is sent, token and all."""

    def __init__(self) -> None:
        super().__init__()
        self.http.follow_redirects = True


@caught("C8", "Decide an outcome once")
class Wavering(Plain):
    """Lets a cancel change an outcome that is on its way."""

    def stop(self, job: Job) -> None:
        job.state = "running"
        super().stop(job)

    def next_try(self, job: Job, url: str, sent: Headers, body: bytes) -> tuple[str, Headers, bytes]:
        return self.completion(job)
