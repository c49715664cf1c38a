"""Fixtures: one gateway process per worker and variant of settings, scripted actors per test."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.surface.actors import Actor
from tests.surface.gateways import ALPHA, BETA, KEYLESS, TEAMS, Caller, Gateway


def _serving(directory: Path, settings: dict[str, Any]) -> Iterator[Gateway]:
    gateway = Gateway(directory, settings)
    gateway.start()
    yield gateway
    assert gateway.stop() == 0, gateway.log.read_text()[-3000:]
    said = gateway.log.read_text()
    assert "Traceback" not in said, said[-3000:]


@pytest.fixture(scope="session")
def keyless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Default settings: no keys, one namespace, waits of 2 s."""
    yield from _serving(tmp_path_factory.mktemp("keyless"), KEYLESS)


@pytest.fixture(scope="session")
def teams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Two namespaces with keys, waits of 100 ms."""
    yield from _serving(tmp_path_factory.mktemp("teams"), TEAMS)


@pytest.fixture
def caller(keyless: Gateway) -> Caller:
    return Caller(keyless)


@pytest.fixture
def alpha(teams: Gateway) -> Caller:
    return Caller(teams, ALPHA)


@pytest.fixture
def beta(teams: Gateway) -> Caller:
    return Caller(teams, BETA)


@pytest.fixture
def own_gateway(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """A started gateway per call of `own_gateway(settings)`, which the test may break; gone after the test."""
    made: list[Gateway] = []

    def start(settings: dict[str, Any] = KEYLESS, name: str = "own") -> Gateway:
        made.append(Gateway(tmp_path / name, settings))
        made[-1].start()
        return made[-1]

    yield start
    for one in made:
        one.kill()


@pytest.fixture
async def actor() -> AsyncIterator[Callable[[], Awaitable[Actor]]]:
    """One more listener per call of it; a listener answers null until it has a script."""
    made: list[Actor] = []

    async def start() -> Actor:
        made.append(await Actor().start())
        return made[-1]

    yield start
    for one in made:
        await one.stop()


@pytest.fixture
async def agent(actor: Callable[[], Awaitable[Actor]]) -> Actor:
    return await actor()


@pytest.fixture
async def receiver(actor: Callable[[], Awaitable[Actor]]) -> Actor:
    """Takes callbacks."""
    return await actor()


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path], Path]]:
    """Puts a file system of 8 MiB of its own over a directory, or says why there is none."""
    mounted: list[Path] = []

    def mount(path: Path) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "mesh", str(path)]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system of its own can be mounted here: {done.stderr.decode().strip()}")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)
