"""Fixtures for all tests: the real store. One embedded server per test worker, emptied before each test."""

from __future__ import annotations

import gc
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from mesh.store.embedded import EmbeddedStore
from mesh.store.link import Link
from tests.servers import SAFE, Proxy, RawServer

# By default an example that took 200 ms once fails its test: on a busy machine any of them may.
settings.register_profile("mesh", deadline=None)
settings.load_profile("mesh")

# `make test &` in a script ignores SIGINT, and what a test starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_open() -> Iterator[None]:
    """What a file's tests leave open fails there, not in whatever test runs when the garbage is collected."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    """The worker's store: what a gateway starts by default. Do not kill it; start your own for that."""
    store = EmbeddedStore(tmp_path_factory.mktemp("store") / "data")
    store.start()
    yield store
    store.stop()


@pytest.fixture
async def link(embedded: EmbeddedStore) -> AsyncIterator[Link]:
    """A connected link to the worker's store, empty but for its functions."""
    link = Link(embedded.address)
    await link.connect()
    await link.call("FLUSHALL")
    yield link
    await link.close()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., RawServer]]:
    """`start_server(**settings)`: a server of your own; safe settings but for yours (`_` stands for `-`)."""
    started: list[RawServer] = []

    def start(**settings: str) -> RawServer:
        directory = tmp_path / f"server{len(started)}"
        directory.mkdir()
        changed = {name.replace("_", "-"): value for name, value in settings.items()}
        started.append(RawServer(directory, SAFE | changed))
        started[-1].wait_ready()
        return started[-1]

    yield start
    for server in started:
        server.kill()


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[..., EmbeddedStore]]:
    """`open_store(directory)`: an embedded store of your own that you may kill; stopped after the test."""
    opened: list[EmbeddedStore] = []

    def open_one(directory: Path = tmp_path / "data", **options: Any) -> EmbeddedStore:
        opened.append(EmbeddedStore(directory, **options))
        opened[-1].start()
        return opened[-1]

    yield open_one
    for store in opened:
        store.stop()


@pytest.fixture
async def proxy(embedded: EmbeddedStore, tmp_path: Path) -> AsyncIterator[Proxy]:
    """A proxy in front of the worker's store."""
    proxy = await Proxy(embedded.address, tmp_path / "proxy.sock").start()
    yield proxy
    await proxy.stop()
