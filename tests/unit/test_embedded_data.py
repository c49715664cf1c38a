"""The embedded store when its server dies, and with data that must not be opened."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.clock import monotonic_s, sleep
from mesh.errors import ConfigError, StoreUnsafe
from mesh.store import embedded as room
from mesh.store.embedded import EmbeddedStore
from mesh.store.link import Link
from tests.servers import ask, ended, eventually

INCREMENT = "appendonlydir/appendonly.aof.1.incr.aof"
MANIFEST = "appendonlydir/appendonly.aof.manifest"

Open = Callable[..., EmbeddedStore]


def fill(store: EmbeddedStore, count: int = 100) -> None:
    asyncio.run(ask(store.address, *[("SET", f"k{i}", "v" * 100) for i in range(count)]))


class TestDeath:
    async def test_a_killed_server_is_back_with_its_data_and_the_link_goes_on(self, open_store: Open) -> None:
        store = open_store()
        link = Link(store.address)
        await link.connect()
        for round_ in range(2):
            writes = [link.call("SADD", "acknowledged", f"{round_}.{i}") for i in range(500)]
            await writes[0]
            assert store.pid
            os.kill(store.pid, signal.SIGKILL)
            await asyncio.gather(*writes)
            # The link may be through before its keeper has seen that the server answers: killed then, it never was up.
            async with asyncio.timeout(20):
                while store.restarts <= round_ or store.fault is not None:
                    await sleep(0.01)
        assert await link.call("SCARD", "acknowledged") == 1000
        await link.close()
        assert (store.restarts, store.fault) == (2, None)

    async def test_it_is_started_again_at_once_the_first_times_and_then_with_pauses(self, open_store: Open) -> None:
        store = open_store()
        pauses = [store._restart_pause_s()]
        for _ in range(8):
            store._boots.append(monotonic_s())
            pauses.append(store._restart_pause_s())
        assert pauses == [0, 0, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]

    async def test_data_that_vanished_meanwhile_is_not_replaced_by_an_empty_store(
        self, open_store: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = open_store()
        store.remember("store-1")
        await ask(store.address, ("SET", "k", "v"))
        kept = (tmp_path / "data" / "appendonlydir").rename(tmp_path / "kept")
        assert store.pid
        os.kill(store.pid, signal.SIGKILL)
        await eventually(lambda: isinstance(store.fault, StoreUnsafe))
        assert store.pid is None
        assert caplog.text.count("would start empty") == 1
        kept.rename(tmp_path / "data" / "appendonlydir")
        await eventually(lambda: store.fault is None)
        assert await ask(store.address, ("GET", "k")) == [b"v"]

    def test_a_server_that_does_not_listen_is_ended_by_force(
        self, open_store: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(room, "STOP_S_MAX", 0.2)
        store = open_store()
        server = store.pid
        assert server
        os.kill(server, signal.SIGSTOP)
        store.stop()
        assert ended(server)
        assert store.restarts == 0


class TestData:
    def refuse(self, directory: Path) -> StoreUnsafe:
        with pytest.raises(StoreUnsafe) as caught:
            EmbeddedStore(directory).start()
        assert str(directory) in caught.value.detail
        assert "\n" not in caught.value.detail
        return caught.value

    def test_a_damaged_file_is_shown_with_a_mend_that_works(self, open_store: Open, tmp_path: Path) -> None:
        store = open_store()
        fill(store)
        store.stop()
        file = tmp_path / "data" / INCREMENT
        content = bytearray(file.read_bytes())
        content[content.index(b"*3", len(content) // 2)] = ord("X")
        file.write_bytes(content)
        refusal = self.refuse(tmp_path / "data")
        assert "Bad file format" in refusal.reason
        command = re.search(r"bash -c '.*'", refusal.mend)
        assert command
        subprocess.run(["bash", "-c", command[0]], input="y\n", text=True, check=True, capture_output=True)
        (kept,) = asyncio.run(ask(open_store().address, ("DBSIZE",)))
        assert 30 < kept < 70

    def test_a_torn_last_write_is_cut_off(self, open_store: Open, tmp_path: Path) -> None:
        store = open_store()
        fill(store)
        store.stop()
        file = tmp_path / "data" / INCREMENT
        os.truncate(file, file.stat().st_size - 5)
        assert asyncio.run(ask(open_store().address, ("DBSIZE",))) == [99]

    def test_a_part_that_is_missing(self, open_store: Open, tmp_path: Path) -> None:
        open_store().stop()
        (tmp_path / "data" / INCREMENT).unlink()
        refusal = self.refuse(tmp_path / "data")
        assert "1.incr.aof" in refusal.reason
        assert "from a backup" in refusal.mend

    @pytest.mark.parametrize("gone", [MANIFEST, "appendonlydir"])
    def test_a_manifest_that_is_missing_is_a_loss_once_the_store_had_an_identity(
        self, open_store: Open, tmp_path: Path, gone: str
    ) -> None:
        path = tmp_path / "data" / gone
        store = open_store()
        assert store.recall() == ""
        store.remember("store-1")
        store.stop()
        kept = path.rename(tmp_path / "kept")
        assert "would start empty" in self.refuse(tmp_path / "data").reason
        kept.rename(path)
        assert open_store().recall() == "store-1"

    def test_before_that_it_may_begin_anew(self, open_store: Open, tmp_path: Path) -> None:
        open_store().stop()
        shutil.rmtree(tmp_path / "data" / "appendonlydir")
        assert open_store().pid

    def test_data_of_another_server(self, open_store: Open, tmp_path: Path) -> None:
        open_store().stop()
        (tmp_path / "data" / "mesh-store.json").unlink()
        assert "not written by Mesh" in self.refuse(tmp_path / "data").reason

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"format": 2}, "has format 2"),
            ({"version": "99.0.0"}, "written by valkey 99.0.0, which is newer"),
            ({"version": "nine"}, "not a store marker"),
            ({"flavor": None, "version": None}, "not a store marker"),
        ],
    )
    def test_a_marker_of_another_mesh(
        self, open_store: Open, tmp_path: Path, change: dict[str, object], says: str
    ) -> None:
        open_store().stop()
        file = tmp_path / "data" / "mesh-store.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        assert says in self.refuse(tmp_path / "data").reason

    def test_an_unreadable_marker(self, open_store: Open, tmp_path: Path) -> None:
        open_store().stop()
        (tmp_path / "data" / "mesh-store.json").write_text("{")
        assert "cannot be read" in self.refuse(tmp_path / "data").reason

    def test_a_marker_of_an_older_server_is_raised(self, open_store: Open, tmp_path: Path) -> None:
        open_store().stop()
        file = tmp_path / "data" / "mesh-store.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"version": "8.0.1", "of_a_later_mesh": 1}))
        open_store()
        assert json.loads(file.read_text())["version"] != "8.0.1"

    @pytest.mark.parametrize("place", ["file", "file/below", "/proc/mesh", "/proc"])
    def test_a_directory_that_cannot_be_had(self, tmp_path: Path, place: str) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match=r"cannot be made|not writable") as caught:
            EmbeddedStore(tmp_path / place).start()
        assert str(tmp_path / place) in caught.value.detail
