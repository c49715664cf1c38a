"""Our own three sides, as targets of the conformance cases: real processes, real sockets."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.agent import Agent as HostedAgent
from mesh.check import targets
from mesh.check.case import NOTHING, Ask, Call, Case, Target, Trial
from mesh.check.expect import compare
from mesh.check.listener import Listener
from mesh.check.play import NotApplicable
from mesh.check.subject import Subject
from mesh.client import Client
from mesh.clock import monotonic_s
from mesh.errors import MeshError
from tests.agents.serving import serving
from tests.surface.gateways import KEYLESS, Gateway

PREFIX = "/hosted/here"
RUNNING_MAX = 16


def deadly(case: Case) -> bool:
    """It kills or restarts its gateway, or that one's store."""
    return case.gateway is not None and not {"kill", "store"}.isdisjoint(case.gateway.needs)


@contextmanager
def gateway(directory: Path) -> Iterator[targets.Gateway]:
    """A gateway process on an embedded store, which cases may kill and whose store they may restart."""
    process = Gateway(directory, KEYLESS)
    process.start()

    async def hands(action: str) -> None:
        if action == "kill":
            await asyncio.to_thread(process.kill)
        elif action == "start":
            await asyncio.to_thread(process.start)
            target.url = process.url()
        else:
            await asyncio.to_thread(process.tell_store, "SHUTDOWN")

    target = targets.Gateway(process.url(), hands=hands, has=frozenset({"kill", "store"}))
    try:
        yield target
    finally:
        process.kill()


@contextmanager
def agent() -> Iterator[targets.Agent]:
    """The contract of specs/conformance.nexusrpc.yaml, hosted by our SDK."""
    hosted = HostedAgent(
        "conformance", [Subject()], prefix=PREFIX, register=False, running_max=RUNNING_MAX, drain_s=0.0
    )
    with serving(hosted, prefix=PREFIX) as url:
        yield targets.Agent(url, limit=RUNNING_MAX)


@dataclass
class ClientLibrary:
    """`mesh.Client`; each trial's handler plays its gateway."""

    url: str = "mesh.Client"
    headers: tuple[tuple[str, str], ...] = ()
    has: frozenset[str] = frozenset()
    kind: Target = "client"
    prefix: str = ""

    async def look(self) -> None:
        """It is there."""

    @asynccontextmanager
    async def opened(self, trial: Trial, handler: Listener, receiver: Listener) -> AsyncIterator[Mapping[str, Any]]:
        self.prefix = trial.prefix
        yield {}

    def operation(self, step: Ask, names: Mapping[str, Any]) -> tuple[str, Ask]:
        raise NotApplicable("nobody asks a client")

    async def hand(self, action: str) -> None:
        raise NotApplicable("a client has no process of its own")

    async def call(self, step: Call, gateway: str) -> list[str]:
        began_s = monotonic_s()
        async with Client(gateway + self.prefix, retry_for_s=2.0) as client:
            try:
                value = await getattr(client, step.verb)(*step.args, **step.options)
            except MeshError as error:
                found = _raised(step, error)
            else:
                found = _returned(step, value)
        took_ms = (monotonic_s() - began_s) * 1000
        if step.within_ms and took_ms > step.within_ms:
            found.append(f"it took {took_ms:.0f} ms, more than {step.within_ms}")
        return found


def _raised(step: Call, error: MeshError) -> list[str]:
    if type(error).__name__ != step.raises:
        return [f"it raised {type(error).__name__} ({error}), not {step.raises or 'nothing'}"]
    return [line for name, wanted in step.fields.items() for line in compare(name, wanted, getattr(error, name, None))]


def _returned(step: Call, value: Any) -> list[str]:
    if step.raises:
        return [f"it returned {value!r} and did not raise {step.raises}"]
    if step.returns is NOTHING:
        return []
    if isinstance(step.returns, dict) and not isinstance(value, dict):
        value = {name: getattr(value, name, None) for name in step.returns}
    if isinstance(value, bytes):
        return [] if value == step.returns else [f"it returned {value[:100]!r}, not {step.returns[:100]!r}"]
    return compare("the value", step.returns, value)


def shown(name: str) -> str:
    """A case's name as part of a test id."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
