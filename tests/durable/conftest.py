"""A real gateway with its store, and durable agents around it, pushed to or pulling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

import mesh
from mesh.agent import Agent
from tests.agents.serving import serving, until
from tests.agents.test_real_gateway import Dev
from tests.ports import lasting_port


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    dev = Dev(tmp_path_factory.mktemp("dev") / "data")
    dev.start()
    yield dev
    dev.stop()


@pytest.fixture
def client(dev: Dev) -> Iterator[mesh.SyncClient]:
    with mesh.SyncClient(dev.url) as client:
        yield client


@pytest.fixture(params=["push", "pull"])
def mode(request: pytest.FixtureRequest) -> str:
    """How work comes to the agents of this test; part of their endpoints' names."""
    return request.param


class Host:
    """`host(endpoint, [handler, ...], **options)`: an agent, known to the registry; `stop` ends it, or the test."""

    def __init__(self, dev: Dev, mode: str, stack: ExitStack) -> None:
        self._dev = dev
        self._mode = mode
        self._stack = stack
        self._running: dict[Agent, ExitStack] = {}

    def __call__(self, endpoint: str, services: list[Any], **options: Any) -> Agent:
        port = lasting_port()
        defaults: dict[str, Any] = {"lease_ms": 5000, "drain_s": 1.0, "linger_ms": 100, "mode": self._mode}
        if self._mode == "push":
            defaults["url"] = f"http://127.0.0.1:{port}"
        agent = Agent(endpoint, services, gateway=self._dev.url, **(defaults | options))
        own = self._running[agent] = self._stack.enter_context(ExitStack())
        own.enter_context(serving(agent, port=port))
        until(lambda: known(self._dev, endpoint), 10)
        return agent

    def stop(self, agent: Agent) -> None:
        """As SIGTERM does."""
        self._running[agent].close()


@pytest.fixture
def host(dev: Dev, mode: str) -> Iterator[Host]:
    with ExitStack() as stack:
        yield Host(dev, mode, stack)


def known(dev: Dev, endpoint: str) -> bool:
    """Whether the registry knows an agent of the endpoint that is well."""
    reply = httpx.get(f"{dev.url}/v1/endpoints/{endpoint}", trust_env=False)
    return reply.status_code == 200 and reply.json()["health"] == "healthy"
