"""Is it the right store: an identity made once, missed when it is gone, remembered beyond the process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import ConfigError, StoreUnsafe
from mesh.ids import PARTITION
from mesh.store.address import Address
from mesh.store.embedded import EmbeddedStore
from mesh.store.gate import Durability, Gate, Verdict, inspect
from mesh.store.identity import StateFile
from mesh.store.keys import SCHEMA, Keys
from mesh.store.link import Link
from tests.servers import RawServer, eventually

StartServer = Callable[..., RawServer]
META = Keys(PARTITION).meta


async def judge(address: Address, declared: Durability = Durability.ALWAYS, known: str = "") -> Verdict:
    link = Link(address)
    await link.connect()
    try:
        return await inspect(link.call, declared=declared, known=known)
    finally:
        await link.close()


async def refused(address: Address, declared: Durability = Durability.ALWAYS, known: str = "") -> StoreUnsafe:
    with pytest.raises(StoreUnsafe) as caught:
        await judge(address, declared, known)
    assert caught.value.mend.endswith(".")
    return caught.value


class TestIdentity:
    @pytest.fixture
    async def store(self, link: Link) -> AsyncIterator[Link]:
        """An empty store, as `link` gives it."""
        yield link
        await link.call("FLUSHALL")

    async def test_it_is_made_once_also_by_gateways_that_begin_together(self, store: Link) -> None:
        verdicts = await asyncio.gather(*[judge(store.address) for _ in range(8)])
        (incarnation,) = {verdict.incarnation for verdict in verdicts}
        meta = await store.call("HGETALL", META)
        fields = dict(zip(meta[::2], meta[1::2], strict=True))
        assert fields.pop(b"created_at_ms").isdigit()
        assert fields == {
            b"incarnation": incarnation.encode(),
            b"schema": b"%d" % SCHEMA,
            b"partitions": b"1",
        }
        assert (await judge(store.address, known=incarnation)).incarnation == incarnation

    async def test_keys_of_others_do_not_matter(self, store: Link) -> None:
        await asyncio.gather(*[store.call("SET", f"other:{i}", "v") for i in range(100)])
        assert await judge(store.address)

    async def test_our_keys_without_an_identity_are_a_loss(self, store: Link) -> None:
        await asyncio.gather(*[store.call("SET", f"other:{i}", "v") for i in range(100)])
        await store.call("SET", "m:{00}:due", "v")
        assert "identity is gone" in (await refused(store.address)).reason
        assert await store.call("EXISTS", META) == 0

    async def test_an_empty_store_after_data_was_there(self, store: Link) -> None:
        refusal = await refused(store.address, known="store-1")
        assert "empty after data was there" in refusal.reason
        assert await store.call("DBSIZE") == 0

    async def test_another_store(self, store: Link) -> None:
        await judge(store.address)
        assert "another store" in (await refused(store.address, known="store-1")).reason

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (("HSET", META, "schema", SCHEMA + 1), "Upgrade this gateway"),
            (("HSET", META, "schema", SCHEMA - 1), "older schema"),
            (("HSET", META, "schema", "one"), "belong to something else"),
            (("HDEL", META, "incarnation"), "belong to something else"),
            (("HSET", META, "partitions", 64), "64 partitions"),
            (("SET", META, "x"), "belong to something else"),
        ],
    )
    async def test_another_schema(self, store: Link, change: tuple[Any, ...], says: str) -> None:
        await judge(store.address)
        await store.call(*change)
        assert says in str(await refused(store.address))


class TestGate:
    """The gate as the link's hook, with its memory."""

    async def test_a_store_flushed_under_a_running_gateway_is_refused(self, start_server: StartServer) -> None:
        server = start_server()
        gate = Gate()
        link = Link(server.address, on_reconnect=gate)
        await link.connect()
        first = gate.verdict
        server.restart()
        await link.call("PING")
        assert gate.verdict
        assert first
        assert gate.verdict.incarnation == first.incarnation
        assert gate.verdict.run_id != first.run_id
        server.ask("FLUSHALL")
        server.restart()
        await eventually(lambda: isinstance(link.fault, StoreUnsafe))
        with pytest.raises(StoreUnsafe, match="empty after data was there"):
            await link.call("PING")
        await link.close()

    async def test_the_embedded_store_s_marker_remembers_beyond_the_process(self, tmp_path: Path) -> None:
        store = EmbeddedStore(tmp_path / "data")
        store.start()
        link = Link(store.address, on_reconnect=Gate(memory=store))
        await link.connect()
        await link.close()
        store.stop()
        assert json.loads((tmp_path / "data" / "mesh-store.json").read_text())["incarnation"] == store.recall()
        # The server itself starts on an emptied file without a word.
        os.truncate(tmp_path / "data" / "appendonlydir" / "appendonly.aof.1.incr.aof", 0)
        again = EmbeddedStore(tmp_path / "data")
        again.start()
        try:
            with pytest.raises(StoreUnsafe, match="empty after data was there"):
                await Link(again.address, on_reconnect=Gate(memory=again)).connect()
        finally:
            again.stop()

    async def test_a_state_file_remembers_a_remote_store(self, start_server: StartServer, tmp_path: Path) -> None:
        server = start_server()
        file = StateFile(tmp_path / "state.json")
        assert file.recall() == ""
        link = Link(server.address, on_reconnect=Gate(memory=file))
        await link.connect()
        await link.close()
        server.signal(signal.SIGKILL)
        other = start_server()
        with pytest.raises(StoreUnsafe, match="empty after data was there"):
            await Link(other.address, on_reconnect=Gate(memory=file)).connect()

    async def test_a_state_file_that_cannot_be_used(self, start_server: StartServer, tmp_path: Path) -> None:
        file = tmp_path / "state.json"
        file.write_text("[]")
        link = Link(start_server().address, on_reconnect=Gate(memory=StateFile(file)))
        with pytest.raises(ConfigError, match=r"state\.json cannot be read"):
            await link.connect()
        with pytest.raises(ConfigError, match="cannot be written"):
            StateFile(tmp_path / "none" / "state.json").remember("store-1")
