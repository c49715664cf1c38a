"""The start-up gate in front of servers that would lose acknowledged work."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import Callable

import pytest

from mesh.clock import now_ms
from mesh.errors import StoreUnsafe
from mesh.store.address import Address
from mesh.store.connection import Connection, StoreLoading
from mesh.store.embedded import EmbeddedStore
from mesh.store.gate import Durability, Verdict, _check_role, _check_server, durability_facts, inspect
from mesh.store.link import Link
from tests.ports import lasting_port
from tests.servers import RawServer, eventually

StartServer = Callable[..., RawServer]


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


class TestServer:
    async def test_the_embedded_store_passes(self, link: Link, embedded: EmbeddedStore) -> None:
        verdict = await judge(embedded.address)
        assert (verdict.fsync, verdict.compact_records, verdict.warnings) == ("always", True, ())
        facts = json.loads(json.dumps(durability_facts(verdict)))
        assert facts["acknowledged_means"] == "on the store's disk"
        assert facts["incarnation"].startswith("store-")
        assert facts["server"].startswith("valkey ")

    @pytest.mark.parametrize(
        ("settings", "reason", "mend"),
        [
            ({"appendonly": "no"}, "no append-only file", "appendonly yes"),
            ({"appendfsync": "everysec"}, "appendfsync everysec", 'durability="everysec"'),
            ({"appendfsync": "no"}, "appendfsync no", "appendfsync always"),
            ({"maxmemory-policy": "allkeys-lru"}, "evicts keys", "noeviction"),
            ({"replicaof": "127.0.0.1 1"}, "is a replica", "127.0.0.1:1"),
            ({"cluster-enabled": "yes", "port": "free", "cluster-port": "free"}, "is a Cluster", "single primary"),
        ],
    )
    async def test_settings_that_lose_work_are_refused(
        self, start_server: StartServer, settings: dict[str, str], reason: str, mend: str
    ) -> None:
        settings = {name: str(lasting_port()) if value == "free" else value for name, value in settings.items()}
        refusal = await refused(start_server(**settings).address)
        assert reason in refusal.reason
        assert mend in refusal.mend

    async def test_everysec_is_served_when_declared_and_warned_of(self, start_server: StartServer) -> None:
        verdict = await judge(start_server(appendfsync="everysec").address, Durability.EVERYSEC)
        assert verdict.fsync == "everysec"
        assert "may be lost" in verdict.warnings[0]
        assert "seconds later" in durability_facts(verdict)["acknowledged_means"]
        assert "appendfsync no" in (await refused(start_server(appendfsync="no").address, Durability.EVERYSEC)).reason

    async def test_the_better_store_is_reported_as_it_is(self, start_server: StartServer) -> None:
        verdict = await judge(start_server().address, Durability.EVERYSEC)
        assert (verdict.fsync, verdict.warnings) == ("always", ())

    async def test_a_failed_write_to_disk_is_refused_until_it_is_mended(self, start_server: StartServer) -> None:
        server = start_server(appendfsync="everysec")
        await judge(server.address, Durability.EVERYSEC)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        server.ask(f"SET k {'v' * 2000}")
        await eventually(lambda: b"aof_last_write_status:err" in server.ask("INFO persistence"))
        assert "append-only file failed" in (await refused(server.address, Durability.EVERYSEC)).reason
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (-1, resource.RLIM_INFINITY))
        await eventually(lambda: b"aof_last_write_status:ok" in server.ask("INFO persistence"))
        assert await judge(server.address, Durability.EVERYSEC)

    async def test_loading_is_not_yet_rather_than_never(self, start_server: StartServer) -> None:
        server = start_server(key_load_delay="200")
        server.ask("""EVAL "for i = 1, 5000 do redis.call('SET', i, i) end" 0""")
        server.restart()
        await eventually(lambda: server.ask("PING").startswith(b"-LOADING"))
        loop = asyncio.get_running_loop()
        transport, connection = await loop.create_unix_connection(Connection, server.address.path)
        with pytest.raises(StoreLoading):
            await inspect(connection.call, declared=Durability.ALWAYS)
        transport.abort()
        await connection.lost

    @pytest.mark.parametrize(
        "info",
        [
            {"redis_version": "6.2.14"},
            {"redis_version": "7.2.4", "valkey_version": "7.2.11"},
            {"redis_version": "255.255.255", "valkey_version": "7.9.9"},
            {},
        ],
    )
    def test_servers_too_old(self, info: dict[str, str]) -> None:
        with pytest.raises(StoreUnsafe, match=r"Valkey >= 8 or Redis >= 7"):
            _check_server(info)

    @pytest.mark.parametrize(
        "info", [{"redis_version": "7.0.0"}, {"redis_version": "8.2.1"}, {"valkey_version": "8.0.0"}]
    )
    def test_servers_new_enough(self, info: dict[str, str]) -> None:
        assert _check_server(info).version in info.values()

    def test_a_sentinel_is_no_store(self) -> None:
        with pytest.raises(StoreUnsafe, match="Sentinel"):
            _check_role({"redis_mode": "sentinel"})

    async def test_clocks_far_apart_are_a_warning(self, link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mesh.store.gate.now_ms", lambda: now_ms() - 7_200_500)
        verdict = await inspect(link.call, declared=Durability.ALWAYS)
        assert 7_190_000 < verdict.skew_ms < 7_210_000
        assert "7200 s away" in verdict.warnings[0]


class TestManagedStore:
    """A store that does not let itself be looked at."""

    @pytest.fixture
    def without(self, start_server: StartServer) -> Callable[..., Address]:
        def start(*denied: str, **settings: str) -> Address:
            server = start_server(**settings)
            server.ask(f"ACL SETUSER mesh on >pw ~* &* +@all {' '.join(denied)}")
            return Address(path=server.address.path, username="mesh", password="pw")

        return start

    async def test_its_durability_must_be_declared(self, without: Callable[..., Address]) -> None:
        address = without("-config", appendonly="no")
        assert 'durability="declared"' in (await refused(address)).mend
        assert "NOPERM" in (await refused(address, Durability.EVERYSEC)).reason
        verdict = await judge(address, Durability.DECLARED)
        assert (verdict.fsync, verdict.compact_records) == ("declared", False)
        assert "durability is declared" in verdict.warnings[0]
        assert "not checked" in durability_facts(verdict)["acknowledged_means"]

    async def test_eviction_is_seen_all_the_same(self, without: Callable[..., Address]) -> None:
        address = without("-config", maxmemory_policy="volatile-ttl")
        assert "volatile-ttl" in (await refused(address, Durability.DECLARED)).reason

    async def test_info_is_indispensable(self, without: Callable[..., Address]) -> None:
        assert "forbids INFO" in (await refused(without("-info"), Durability.DECLARED)).reason

    async def test_a_refused_config_set_is_remembered_and_served(self, without: Callable[..., Address]) -> None:
        assert not (await judge(without("-config|set"))).compact_records
        address = without()
        assert (await judge(address)).compact_records
