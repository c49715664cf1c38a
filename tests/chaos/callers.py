"""What callers do: programs drawn from a seed, over both surfaces, with repeats that only idempotency keys make safe.

A caller repeats a start with its key until it is acknowledged or surely refused, at whichever gateway answers; then it
polls, waits, repeats, cancels, sends other content under the same key, or just leaves. Judges nothing: checker.py.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import NamedTuple

import msgspec

from mesh.clock import monotonic_s, sleep
from mesh.wire import quote_segment
from tests.chaos.asking import JSON, Caller, Gateway
from tests.chaos.history import Kind, Line, What, digest
from tests.chaos.view import content_of

PATIENCE_S = 3.0
"""How long a caller waits beyond what it asked the gateway to wait."""
GIVE_UP_S = 30.0
PAUSE_S = (0.05, 0.3)
THINK_S = (0.0, 0.05)
ALIKE_PAUSE_S = (0.1, 0.4)
"""Between two operations of a caller; longer where nobody waits for an answer."""
SLOW_MS = (600, 3_000)
BRIEF_MS = (50, 250)
TOO_MANY = 429

JOBS: dict[str, int] = {
    "quick": 20, "slow": 46, "own": 12, "early": 3, "twice": 3, "conflict": 3, "late": 3, "flaky": 8, "failing": 3,
    "refusing": 2,
}  # fmt: skip
"""What is asked for, by weight; most of it takes a while, so that hundreds are in flight."""
NATIVE = ("own", "early", "twice", "conflict", "late")
MODES = {"async": 45, "wait": 20, "default": 25, "patience": 10}
AFTERS = {
    "leave": 34, "result": 20, "poll": 14, "legacy": 6, "repeat": 10, "other content": 5, "cancel": 6, "at once": 5
}  # fmt: skip
TIMED_SHARE = 0.05
PACED_SHARE = 0.1


class Plan(NamedTuple):
    """One operation that a caller wants. `close_ms` 0: no deadline."""

    key: str
    endpoint: str
    service: str
    operation: str
    body: bytes
    callback: str
    callback_format: str
    mode: str
    after: str
    close_ms: int
    surfaces: bool
    """Repeats may use the other surface; what both say must be the same request."""

    @property
    def input(self) -> str:
        return digest(self.body)

    @property
    def content(self) -> str:
        return content_of(self.endpoint, self.service, self.operation, self.input, self.callback)


class Crowd:
    """All callers. `run` until told to stop, then let them finish what they began."""

    def __init__(self, seed: int, gateways: list[Gateway], callback_url: str, *, only: str = "") -> None:
        """`only`: a job that everybody asks for, at once and without staying."""
        self.gateways = gateways
        self.ending = asyncio.Event()
        self._seed = seed
        self._callback_url = callback_url
        self._only = only
        self._planned = 0

    async def run(self, caller: Caller, number: int) -> None:
        """One caller: program after program."""
        chance = Random(f"{self._seed} {number}")
        while not self.ending.is_set():
            await Program(self, caller, chance, self.plan(chance)).run()
            await sleep(chance.uniform(*(ALIKE_PAUSE_S if self._only else THINK_S)))

    def plan(self, chance: Random) -> Plan:
        """The next operation."""
        self._planned += 1
        job = self._only or _drawn(chance, JOBS)
        native = job in NATIVE
        endpoint = "paced" if chance.random() < PACED_SHARE and not self._only else "work"
        ms = 0 if job == "quick" else chance.randint(*(SLOW_MS if job == "slow" else BRIEF_MS))
        order = {"n": self._planned, "ms": ms, "fails": chance.randint(1, 3), "twist": job if native else ""}
        mode = "async" if self._only else _drawn(chance, MODES)
        callback = self._callback_url if chance.random() < 0.5 else ""
        format_ = chance.choices(("nexus", "cloudevents"), (3, 1))[0]
        timed = job == "slow" and chance.random() < TIMED_SHARE
        return Plan(
            key=f"key-{self._planned}",
            endpoint=endpoint,
            service="native" if native else endpoint,
            operation="own" if native else job,
            body=msgspec.json.encode(order),
            callback=callback,
            callback_format=format_ if callback else "nexus",
            mode=mode,
            after="leave" if self._only else _drawn(chance, AFTERS),
            close_ms=chance.randint(200, 1_500) if timed else 0,
            surfaces=not callback or format_ == "nexus",
        )


class Program:
    """One operation from its start to the caller's loss of interest."""

    def __init__(self, crowd: Crowd, caller: Caller, chance: Random, plan: Plan) -> None:
        self._crowd = crowd
        self._caller = caller
        self._chance = chance
        self._plan = plan
        self._nexus = plan.surfaces and chance.random() < 0.5

    async def run(self) -> None:
        """Start, then what the plan says comes after."""
        plan = self._plan
        if plan.after == "at once":
            lines = await asyncio.gather(*[self._until_known(plan) for _ in range(3)])
            line = next((one for one in lines if one is not None), None)
        else:
            line = await self._until_known(plan)
        if line is None or not line.op:
            return
        if plan.after == "result":
            await self._result(line.op)
        elif plan.after == "poll":
            await self._poll(line.op)
        elif plan.after == "legacy":
            await self._legacy(line.op)
        elif plan.after == "repeat":
            self._nexus = plan.surfaces and not self._nexus
            await self._until_known(plan)
            await self._result(line.op)
        elif plan.after == "other content":
            await self._start(plan._replace(body=plan.body.replace(b'"n":', b'"n":1')), "async")
            await self._read(line.op)
        elif plan.after == "cancel":
            await self._cancel(line.op)

    # Starting

    async def _until_known(self, plan: Plan) -> Line | None:
        """Start, and start again with the same key until it is acknowledged or surely refused."""
        end_s = monotonic_s() + GIVE_UP_S
        while monotonic_s() < end_s:
            line = await self._start(plan, plan.mode)
            if line.kind is Kind.OK:
                return line
            if line.kind is Kind.FAIL and 400 <= line.status < 500 and line.status != TOO_MANY:
                return None
            await self._pause()
        return None

    async def _start(self, plan: Plan, mode: str) -> Line:
        headers = [JSON, (b"idempotency-key", plan.key.encode())]
        wait_s = 2.0
        if mode == "async":
            headers.append((b"prefer", b"respond-async"))
            wait_s = 0.0
        elif mode == "wait":
            wait_s = self._chance.randint(1, 4)
            headers.append((b"prefer", b"wait=%d" % wait_s))
        elif mode == "patience" and self._nexus:
            headers.append((b"request-timeout", b"1500ms"))
        path, body = self._nexus_start(plan, headers) if self._nexus else (b"/v1/operations", _v1_start(plan))
        return await self._caller.ask(
            What.START,
            self._gateway(),
            b"POST",
            path,
            headers,
            body,
            timeout_s=wait_s + PATIENCE_S,
            key=plan.key,
            content=plan.content,
            input=plan.input,
        )

    @staticmethod
    def _nexus_start(plan: Plan, headers: list[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
        if plan.close_ms:
            headers.append((b"operation-timeout", b"%dms" % plan.close_ms))
        query = f"?callback={quote_segment(plan.callback)}" if plan.callback else ""
        path = f"/nexus/endpoints/{plan.endpoint}/services/{plan.service}/{plan.operation}{query}"
        return path.encode(), plan.body

    # Afterwards

    async def _read(self, op: str) -> Line:
        path = f"/v1/operations/{op}".encode()
        return await self._ask(What.READ, b"GET", path, op, PATIENCE_S)

    async def _poll(self, op: str) -> None:
        for _ in range(self._chance.randint(2, 6)):
            if (await self._read(op)).terminal:
                break
            await self._pause()

    async def _result(self, op: str) -> None:
        for _ in range(6):
            wait_s = self._chance.choice((0, 1, 3))
            path = f"/v1/operations/{op}/result?wait={wait_s}".encode()
            if (await self._ask(What.RESULT, b"GET", path, op, wait_s + PATIENCE_S)).terminal:
                break
            await self._pause()

    async def _legacy(self, op: str) -> None:
        plan = self._plan
        base = f"/nexus/endpoints/{plan.endpoint}/services/{plan.service}/{plan.operation}"
        for wait_s in (0, 2, 3):
            path = f"{base}/result?wait={wait_s}s&token={op}".encode()
            if (await self._ask(What.RESULT, b"GET", path, op, wait_s + PATIENCE_S)).terminal:
                break

    async def _cancel(self, op: str) -> None:
        await sleep(self._chance.uniform(0, 0.5))
        plan = self._plan
        nexus = f"/nexus/endpoints/{plan.endpoint}/services/{plan.service}/{plan.operation}/cancel?token={op}"
        for path in self._chance.choices((nexus, f"/v1/operations/{op}/cancel"), k=2):
            await self._ask(What.CANCEL, b"POST", path.encode(), op, PATIENCE_S)
        await self._poll(op)

    async def _ask(self, what: What, method: bytes, path: bytes, op: str, timeout_s: float) -> Line:
        line = await self._caller.ask(what, self._gateway(), method, path, [], timeout_s=timeout_s, op=op)
        if line.kind is not Kind.OK:
            await self._pause()
        return line

    def _gateway(self) -> Gateway:
        return self._chance.choice(self._crowd.gateways)

    async def _pause(self) -> None:
        await sleep(self._chance.uniform(*PAUSE_S))


def _v1_start(plan: Plan) -> bytes:
    body: dict[str, object] = {
        "endpoint": plan.endpoint,
        "service": plan.service,
        "operation": plan.operation,
        "input": msgspec.Raw(plan.body),
    }
    if plan.callback:
        body["callback"] = {"url": plan.callback, "format": plan.callback_format}
    if plan.close_ms:
        body["timeouts"] = {"schedule_to_close_ms": plan.close_ms}
    return msgspec.json.encode(body)


def _drawn(chance: Random, weights: dict[str, int]) -> str:
    return chance.choices(list(weights), list(weights.values()))[0]
