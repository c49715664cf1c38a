"""The kinds of targets: a gateway of this protocol, and an agent (any Nexus handler).

Owns where a target's operations are and what has to be prepared before it can be asked. Knows no case.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol
from urllib.parse import quote, urlsplit

from mesh.check.case import Ask, Call, Target, Trial
from mesh.check.listener import Listener
from mesh.check.play import NotApplicable
from mesh.check.tidy import tidy
from mesh.check.wire import Answer, WireFault, ask
from mesh.ids import short_id

SERVICE: Final = "conformance"
"""Of specs/conformance.nexusrpc.yaml."""
OPERATIONS: Final = {
    "any": "seen",
    "echo": "echo",
    "sum": "sum",
    "seen": "seen",
    "odd": "a/b c%ü",
    "act": "act",
    "task": "task",
    "runs": "runs",
}
"""What cases call an operation -> its name in the contract."""
SAMPLE_BYTES_MAX: Final = 1 << 20
"""Bodies above this are sent as they are, whatever input the user names."""
ENDS_WITHIN_MS: Final = 60_000
"""Nothing that a check starts outlives it by more."""
NAME: Final = "check"
"""How the endpoints of a check begin; records of its operations keep the name."""
MADE_BY: Final = "of `mesh check`, for one case; deleted after it"


class Hands(Protocol):
    """What only who runs a target can do to it."""

    async def __call__(self, action: str) -> None: ...


class Unfit(Exception):
    """The URL cannot be checked at all; the text says why and how to mend it. `silent`: nobody answers there."""

    def __init__(self, detail: str, *, silent: bool = False) -> None:
        super().__init__(detail)
        self.silent = silent


def path_of(service: str, operation: str) -> str:
    """`/service/operation`, percent-encoded."""
    return f"/{quote(service, safe='')}/{quote(operation, safe='')}"


async def look_at(url: str) -> str:
    """What answers there: `gateway` if it has its readiness page, else `agent`. Raises Unfit when nobody does."""
    try:
        answer = await ask(url, "GET", urlsplit(url).path.rstrip("/") + "/readyz", within_s=10)
    except WireFault as fault:
        raise Unfit(f"{url}: {fault}", silent=True) from None
    return "gateway" if answer.status in (200, 503) and b'"store"' in answer.body else "agent"


async def no_hands(action: str) -> None:
    """For a target that runs elsewhere."""
    raise NotApplicable(f"needs a hand on the target's process ({action})")


@dataclass
class Gateway:
    """A gateway: each trial gets an endpoint of its own, whose handler is a listener of ours; it is deleted after."""

    url: str
    key: str = ""
    hands: Hands = no_hands
    reach: Mapping[str, str] = field(default_factory=dict[str, str])
    """URL of a listener -> under which URL the target is told of it, for a proxy in between."""
    has: frozenset[str] = frozenset()
    tidies: bool = True
    """Whether what is left of a trial is ended (tidy.py)."""
    kind: Target = "gateway"
    headers: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        self.url = self.url.rstrip("/")
        if self.key:
            self.headers = (("authorization", f"Bearer {self.key}"),)

    async def look(self) -> None:
        """Raises Unfit when there is no gateway, or none that registers endpoints of ours."""
        answer = await self._ask("GET", "/readyz")
        if answer.status != 200:  # noqa: PLR2004
            raise Unfit(f"{self.url}/readyz answers {answer.status}: is this a Mesh gateway, and is it ready?")

    @asynccontextmanager
    async def opened(self, trial: Trial, handler: Listener, receiver: Listener) -> AsyncGenerator[Mapping[str, Any]]:
        """An endpoint for the trial; the names that its steps may use."""
        name = short_id(NAME)
        policy = {"schedule_to_close_ms": ENDS_WITHIN_MS, **trial.policy}
        spec: dict[str, Any] = {
            "description": MADE_BY,
            "target": {"kind": "http", "url": handler.url + trial.prefix},
            "policy": policy,
            "services": list(trial.services),
        }
        if not trial.services:
            del spec["services"]
        answer = await self._ask("PUT", f"/v1/endpoints/{name}", spec)
        if answer.status != 201:  # noqa: PLR2004
            mend = " An operator's egress rule must allow this machine." if b"url_forbidden" in answer.body else ""
            raise Unfit(f"{self.url} refuses to register an endpoint for {handler.url}: {answer}.{mend}")
        try:
            yield {"endpoint": name, "endpoint_id": str(answer.json.get("id")), "gateway": self.url}
        finally:
            # A trial that kills its gateway leaves nobody behind to do this.
            with suppress(Unfit):
                if self.tidies:
                    await tidy(self._ask, name, handler, receiver)
                await self._ask("DELETE", f"/v1/endpoints/{name}")

    def operation(self, step: Ask, names: Mapping[str, Any]) -> tuple[str, Ask]:
        endpoint = names["endpoint"]
        return f"/nexus/endpoints/{endpoint}/services{path_of(step.service, step.operation)}", step

    async def call(self, step: Call, gateway: str) -> list[str]:
        raise NotApplicable("a gateway is no client library")

    async def hand(self, action: str) -> None:
        await self.hands(action)

    async def _ask(self, method: str, path: str, body: Any = None) -> Answer:
        sent = b"" if body is None else json.dumps(body).encode()
        kind = (("content-type", "application/json"),) if sent else ()
        split = urlsplit(self.url)
        try:
            return await ask(self.url, method, split.path + path, [*self.headers, *kind], sent, within_s=10)
        except WireFault as fault:
            raise Unfit(f"{self.url}: {fault}", silent=True) from None


@dataclass
class Agent:
    """An agent: a Nexus handler at a URL, that hosts the contract, or one operation that the user names.

    operations   what cases call an operation -> (service, operation); what is missing is not there
    input        the JSON input of `any`, where the user names it
    limit        operations that it runs at once at most, where the user says so
    """

    url: str
    operations: Mapping[str, tuple[str, str]] = field(
        default_factory=lambda: {role: (SERVICE, name) for role, name in OPERATIONS.items()}
    )
    input: bytes | None = None
    limit: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    hands: Hands = no_hands
    has: frozenset[str] = frozenset()
    kind: Target = "agent"

    def __post_init__(self) -> None:
        self.url = self.url.rstrip("/")
        if urlsplit(self.url).path:
            self.has |= {"prefix"}
        if self.limit:
            self.has |= {"limit"}

    async def look(self) -> None:
        """Raises Unfit when nobody answers, or not to the operation that is known best."""
        if not self.operations:
            raise Unfit("name an operation of the agent: --operation any=SERVICE/OPERATION")
        role = "any" if "any" in self.operations else next(iter(self.operations))
        service, operation = self.operations[role]
        path = urlsplit(self.url).path + path_of(service, operation)
        kind = () if self.input is None else (("content-type", "application/json"),)
        try:
            answer = await ask(self.url, "POST", path, [*self.headers, *kind], self.input or b"", within_s=10)
        except WireFault as fault:
            raise Unfit(f"{self.url}: {fault}", silent=True) from None
        if answer.status not in (200, 201):
            raise Unfit(
                f"{self.url} does not take {service}/{operation} ({answer}). Host the contract of"
                " specs/conformance.nexusrpc.yaml, or name an operation: --operation any=SERVICE/OPERATION --input JSON"
            )

    @asynccontextmanager
    async def opened(self, trial: Trial, handler: Listener, receiver: Listener) -> AsyncGenerator[Mapping[str, Any]]:
        """Nothing to prepare; the names that steps may use."""
        yield {"limit": self.limit}

    def operation(self, step: Ask, names: Mapping[str, Any]) -> tuple[str, Ask]:
        if not step.role:
            return path_of(step.service, step.operation), step
        if step.role not in self.operations:
            raise NotApplicable(
                f"needs an operation like `{OPERATIONS[step.role]}` of specs/conformance.nexusrpc.yaml"
                f" (--operation {step.role}=SERVICE/OPERATION)"
            )
        started = step.role == "any" and step.method == "POST" and step.path == "{op}"
        if started and self.input is not None and len(step.body) <= SAMPLE_BYTES_MAX:
            step = replace(step, body=self.input, type="application/json")
        return path_of(*self.operations[step.role]), step

    async def call(self, step: Call, gateway: str) -> list[str]:
        raise NotApplicable("an agent is no client library")

    async def hand(self, action: str) -> None:
        await self.hands(action)
