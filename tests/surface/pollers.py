"""Agents that ask for their work, with bare hands: what they poll and answer, nothing that decides for them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.surface.gateways import Caller, fresh
from tests.surface.wire import Answer, ask

WAITING = "mesh_polls_open"


class Poller:
    """One instance of an agent. It asks the gateway of `caller`, in its name."""

    def __init__(self, caller: Caller, endpoint: str, instance: str = "") -> None:
        self.caller = caller
        self.endpoint = endpoint
        self.instance = instance or fresh("instance")

    async def poll(self, *, max: int = 1, wait_ms: int = 10_000, **fields: Any) -> dict[str, Any]:  # noqa: A002
        """One poll; its frame."""
        answer = await self.ask(max=max, wait_ms=wait_ms, **fields)
        assert (answer.status, answer["content-type"]) == (200, "application/json"), answer
        return answer.json

    async def ask(self, **fields: Any) -> Answer:
        body = {"instance": self.instance, **fields}
        return await self.caller.post(f"/v1/endpoints/{self.endpoint}/poll", body)

    async def task(self, **fields: Any) -> dict[str, Any]:
        """The one task of a poll."""
        (task,) = (await self.poll(**fields))["tasks"]
        return task

    async def tasks(self, count: int, **fields: Any) -> list[dict[str, Any]]:
        """Poll until `count` tasks came."""
        tasks: list[dict[str, Any]] = []
        async with asyncio.timeout(30):
            while len(tasks) < count:
                tasks += (await self.poll(max=count - len(tasks), **fields))["tasks"]
        return tasks

    @asynccontextmanager
    async def waiting(self, **fields: Any) -> AsyncIterator[asyncio.Task[dict[str, Any]]]:
        """A poll that waits at its gateway by now; ended with the block, if it is not answered before."""
        before = await self.caller.gauge(WAITING)
        task = asyncio.ensure_future(self.poll(**fields))
        try:
            await self.caller.until_gauge(WAITING, before + 1)
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def verb(caller: Caller, name: str, token: str, body: Any = b"", **headers: str) -> Answer:
    """One verb about one attempt, by its token alone."""
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"mesh-task-token": token, **{key.replace("_", "-"): value for key, value in headers.items()}}
    return await ask(caller.gateway.port, "POST", f"/v1/tasks/{name}", given, sent)


async def pull_endpoint(caller: Caller, **spec: Any) -> str:
    """A new endpoint whose agents ask for their work."""
    name = fresh("pulled")
    answer = await caller.ask("PUT", f"/v1/endpoints/{name}", (), {"target": {"kind": "pull"}, **spec})
    assert answer.status == 201, answer
    return name
