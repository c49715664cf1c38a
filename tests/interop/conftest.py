"""Fixtures: one Temporal and one gateway per test worker, scripted agents from the surface tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.environment import NotInstalled, environment
from tests.interop.ground import Temporal, free_ports
from tests.surface.conftest import actor, agent, own_gateway, receiver
from tests.surface.gateways import KEYLESS, Caller, Gateway

__all__ = ["actor", "agent", "own_gateway", "receiver"]


@pytest.fixture(scope="session")
def installed() -> Path:
    """Where `temporal` and a Python with temporalio are."""
    try:
        return environment()
    except NotInstalled as why:
        pytest.skip(f"Temporal cannot be installed here: {why}")


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """At a port of its own choice that it has again after a restart."""
    (port,) = free_ports(1)
    # Temporal takes 2 MiB: what is larger shall end here, as docs/how-to/temporal.md says.
    settings = KEYLESS | {"gateway": {"port": port}, "blobs": {"bytes_max": 2 << 20}}
    gateway = Gateway(tmp_path_factory.mktemp("gateway"), settings)
    gateway.start()
    yield gateway
    gateway.stop()
    said = gateway.log.read_text()
    assert "Traceback" not in said, said[-3000:]


@pytest.fixture(scope="session")
def temporal(installed: Path, gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Temporal]:
    """A server that may call this gateway back, and its workers."""
    temporal = Temporal(installed, tmp_path_factory.mktemp("temporal"), callbacks_to=f"127.0.0.1:{gateway.port}")
    try:
        temporal.start()
        yield temporal
    finally:
        temporal.stop()


@pytest.fixture
def caller(gateway: Gateway) -> Caller:
    return Caller(gateway)
