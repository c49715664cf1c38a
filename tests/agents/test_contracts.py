"""An agent whose contract breaks its callers is told what, for whom and how to go on; through a real gateway."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mesh
from mesh.agent import Agent
from tests.agents.serving import serving, until
from tests.agents.test_real_gateway import Dev


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    one = Dev(Path(tmp_path_factory.mktemp("dev")))
    one.start()
    yield one
    one.stop()


def agent(dev: Dev, greet: Callable[..., Any]) -> Agent:
    greet.__name__ = "greet"
    return Agent("hello", [greet], gateway=dev.url, url="http://127.0.0.1:9", instance="one", ttl_ms=600)


async def first(name: str) -> str:
    return f"Hello, {name}!"


async def second(name: str | None) -> str:
    return f"Hello, {name or 'you'}!"


async def third(name: int) -> str:
    return f"Hello, number {name}!"


def said(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_a_new_version_that_fits_is_taken_and_one_that_breaks_is_refused_until_it_is_forced(
    dev: Dev, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P178, P180."""
    caplog.set_level(logging.INFO, "mesh.agent")
    with mesh.SyncClient(dev.url) as client:
        for greet in (first, second):
            with serving(agent(dev, greet)):
                until(lambda: "hello/one is registered" in said(caplog, logging.INFO))
            caplog.clear()
        with serving(agent(dev, third)):
            (why,) = until(lambda: said(caplog, logging.ERROR))
        assert "hello/one cannot register: the endpoint: 409 contract_breaks" in why
        assert "hello/greet: input: is no longer taken when it is string (" in why
        assert "MESH_FORCE_CONTRACT=1" in why
        caplog.clear()
        monkeypatch.setenv("MESH_FORCE_CONTRACT", "1")
        with serving(agent(dev, third)):
            until(lambda: "hello/one is registered" in said(caplog, logging.INFO))
        with pytest.raises(mesh.Refusal) as error:
            client.call("hello", "hello", "greet", "Ada")
        assert error.value.code == "schema_breach"
