"""A real gateway with its store, and durable agents around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import mesh
from mesh.agent import Agent
from mesh.agent.server import bind
from tests.agents.serving import serving, until
from tests.agents.test_real_gateway import Dev


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


@pytest.fixture
def host(dev: Dev) -> Iterator[Callable[..., Agent]]:
    """`host(endpoint, [handler, ...], **options)`: an agent behind a real server, registered; gone after the test."""
    with ExitStack() as stack:

        def start(endpoint: str, services: list[Any], **options: Any) -> Agent:
            with bind("127.0.0.1", 0) as listener:
                port = listener.getsockname()[1]
            defaults: dict[str, Any] = {"lease_ms": 1000, "drain_s": 1.0, "linger_ms": 100}
            agent = Agent(endpoint, services, gateway=dev.url, url=f"http://127.0.0.1:{port}", **(defaults | options))
            stack.enter_context(serving(agent, port=port))
            until(lambda: agent._registration is not None and agent._registration.known.is_set(), 10)
            return agent

        yield start
