"""Gateways of two teams on real sockets over the real store, and the few calls that registry tests repeat.

`alpha` owns what is registered, `beta` is the neighbour.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from gateway.app import Mesh, create_app
from gateway.server import bind, with_port
from gateway.settings_file import load
from mesh.clock import monotonic_s, sleep
from mesh.store.embedded import EmbeddedStore

ALPHA, BETA = "alpha-key-0123456789", "beta-key-0123456789"
SETTINGS = f"""
[[namespaces]]
name = "alpha"
keys = ["{ALPHA}"]
[[namespaces]]
name = "beta"
keys = ["{BETA}"]
"""
URL = "http://127.0.0.1:9"
HTTP = {"kind": "http", "url": URL}


class Gateway:
    """A running gateway and a client of each team."""

    def __init__(self, mesh: Mesh, alpha: httpx.AsyncClient, beta: httpx.AsyncClient) -> None:
        self.mesh = mesh
        self.alpha = alpha
        self.beta = beta

    async def record(self, name: str = "summarizer") -> dict[str, Any]:
        return (await self.alpha.get(f"/v1/endpoints/{name}")).json()

    def admits(self, name: str = "summarizer") -> bool:
        """Whether the hot path would send a request of that endpoint somewhere."""
        return self.mesh.router.choose(self.mesh.catalog.find(name, "alpha")) is not None


@asynccontextmanager
async def serving(store: EmbeddedStore, settings_file: Path | None) -> AsyncIterator[Gateway]:
    listener = bind("127.0.0.1", 0)
    settings = with_port(load(settings_file, env={}), listener)
    mesh = Mesh(settings, store.address, memory=None, exclusive=False)
    await mesh.start()
    config = uvicorn.Config(create_app(mesh), lifespan="off", ws="none", log_config=None)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    await until(lambda: server.started)
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                httpx.AsyncClient(
                    base_url=settings.gateway.public_url, headers={"authorization": f"Bearer {key}"}, trust_env=False
                )
            )
            for key in (ALPHA, BETA)
        ]
        yield Gateway(mesh, *clients)
        mesh.drain()
    server.should_exit = True
    await task
    await mesh.stop()


Start = Callable[[], Awaitable[Gateway]]


@asynccontextmanager
async def gateways(store: EmbeddedStore, directory: Path) -> AsyncIterator[Start]:
    """Yields `start`: every call is one more gateway on that store."""
    path = directory / "mesh.toml"
    path.write_text(SETTINGS)
    async with AsyncExitStack() as stack:

        async def start() -> Gateway:
            return await stack.enter_async_context(serving(store, path))

        yield start


async def until(check: Callable[[], object], within_s: float = 30.0) -> None:
    end_s = monotonic_s() + within_s
    while not check():
        assert monotonic_s() < end_s, "it never came true"
        await sleep(0.005)


async def until_record(gateway: Gateway, within_s: float = 30.0, **wanted: Any) -> dict[str, Any]:
    end_s = monotonic_s() + within_s
    while True:
        record = await gateway.record()
        if wanted.items() <= record.items():
            return record
        assert monotonic_s() < end_s, record
        await sleep(0.02)


async def put(client: httpx.AsyncClient, name: str = "summarizer", **body: Any) -> httpx.Response:
    return await client.put(f"/v1/endpoints/{name}", json={"target": HTTP} | body)


async def beat(client: httpx.AsyncClient, instance: str = "i-1", **body: Any) -> httpx.Response:
    return await client.put(f"/v1/endpoints/summarizer/instances/{instance}", json={"url": URL} | body)


def problem(reply: httpx.Response) -> tuple[int, str]:
    assert reply.headers["content-type"] == "application/problem+json"
    return reply.status_code, reply.json()["code"]
