"""The link against real servers: order, batching, errors of the store, log-in."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hiredis
import pytest
import uvloop

from mesh.clock import monotonic_s
from mesh.errors import ConfigError, StoreUnavailable, StoreUnsafe
from mesh.store.address import Address
from mesh.store.connection import SIZES_MADE, Arg, Call, StoreDemoted, StoreLoading, pack, reply_error
from mesh.store.link import Link, StoreReply
from tests.servers import Proxy, RawServer, connected, eventually

StartServer = Callable[..., RawServer]


@pytest.mark.parametrize("size", [0, 1, 9, 10, SIZES_MADE - 1, SIZES_MADE, 100_000])
def test_a_command_is_packed_as_hiredis_packs_it(size: int) -> None:
    args: list[Arg] = [b"SET", "k\u00e9y" * size, b"\r\n\x00"[:size].ljust(size, b"$"), size, -size, 10**15]
    assert pack(args) == hiredis.pack_command(tuple(args))  # pyright: ignore[reportUnknownMemberType, reportArgumentType]


class TestCalls:
    async def test_replies_come_as_plain_values_in_the_order_of_the_calls(self, link: Link) -> None:
        calls = [
            link.call("SET", "k", b"\x00\xff"),
            link.call("GET", "k"),
            link.call("GET", "absent"),
            link.call("INCRBY", "n", 41),
            link.call("MGET", "k", "n"),
        ]
        assert await asyncio.gather(*calls) == [b"OK", b"\x00\xff", None, 41, [b"\x00\xff", b"41"]]

    async def test_an_error_reply_fails_its_own_call_only(self, link: Link) -> None:
        wrong, right = link.call("LPUSH", link.call.__name__), link.call("ECHO", "right")
        with pytest.raises(StoreReply, match="wrong number of arguments") as caught:
            await wrong
        assert caught.value.word == "ERR"
        assert caught.value.text.startswith("ERR wrong number")
        assert await right == b"right"

    async def test_calls_of_one_turn_leave_in_one_write(self, link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        assert link._connection
        assert link._connection._transport
        written: list[bytes] = []
        write = link._connection._transport.write
        # At the transport: on a stream socket the receiver may see several writes as one.
        monkeypatch.setattr(link._connection._transport, "write", lambda chunk: (written.append(chunk), write(chunk)))
        await asyncio.gather(*[link.call("SET", f"k{i}", "v" * 100) for i in range(200)])
        assert [chunk.count(b"SET") for chunk in written] == [200]

    async def test_a_turn_does_not_wait_for_the_answers_of_the_turn_before(self, proxy: Proxy) -> None:
        async with connected(proxy.address) as link:
            proxy.chunks.clear()
            proxy.replies_flow.clear()
            first = link.call("ECHO", "first")
            await eventually(lambda: len(proxy.chunks) == 1)
            second = link.call("ECHO", "second")
            await eventually(lambda: len(proxy.chunks) == 2)
            assert not first.done()
            proxy.replies_flow.set()
            assert [await first, await second] == [b"first", b"second"]

    async def test_a_caller_that_leaves_does_not_shift_the_replies_of_others(self, link: Link) -> None:
        connection = link._connection
        calls = [link.call("ECHO", i) for i in range(10)]
        for left in calls[::2]:
            left.cancel()
        assert await asyncio.gather(*calls[1::2]) == [b"1", b"3", b"5", b"7", b"9"]
        assert await link.call("ECHO", "next") == b"next"
        assert link._connection is connection

    async def test_no_timer_runs_while_nothing_waits(self, link: Link) -> None:
        await link.call("PING")
        await eventually(lambda: link._sweeper is None)

    async def test_it_must_be_connected_and_open(self, embedded: Any) -> None:
        link = Link(embedded.address)
        with pytest.raises(StoreUnavailable, match="not connected"):
            await link.call("PING")
        await link.connect()
        await link.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            await link.call("PING")

    def test_it_works_on_uvloop(self, start_server: StartServer) -> None:
        server = start_server()

        async def run() -> int:
            async with connected(server.address) as link:
                calls = [link.call("SADD", "s", i) for i in range(1000)]
                server.restart()
                await asyncio.gather(*calls)
                return await link.call("SCARD", "s")

        assert uvloop.run(run()) == 1000


class TestErrorsOfTheStore:
    @pytest.mark.parametrize(
        ("text", "kind", "says"),
        [
            ("LOADING Valkey is loading the dataset in memory", StoreLoading, "loading its data"),
            ("READONLY You can't write against a read only replica.", StoreDemoted, "read-only replica"),
            ("OOM command not allowed when used memory > 'maxmemory'.", StoreUnavailable, "out of memory"),
            (
                "MISCONF Errors writing to the AOF file: No space",
                StoreUnavailable,
                "cannot write to its disk",
            ),
            ("MASTERDOWN Link with MASTER is down", StoreDemoted, "lost its primary"),
            ("BUSY Valkey is busy running a script.", StoreUnavailable, "long script"),
            ("NOREPLICAS Not enough good replicas to write.", StoreUnavailable, "healthy replicas"),
            ("BUSYGROUP Consumer Group name already exists", StoreReply, "BUSYGROUP"),
            ("MESH_CONFLICT op 1", StoreReply, "MESH_CONFLICT op 1"),
        ],
    )
    def test_what_will_pass_is_unavailable_the_rest_is_a_reply(
        self, text: str, kind: type[Exception], says: str
    ) -> None:
        error = reply_error(text)
        assert type(error) is kind
        assert says in str(error)

    async def test_out_of_memory(self, start_server: StartServer) -> None:
        async with connected(start_server(maxmemory="1").address) as link:
            with pytest.raises(StoreUnavailable, match="out of memory"):
                await link.call("SET", "k", "v")
            assert await link.call("PING") == b"PONG"

    async def test_too_few_replicas(self, start_server: StartServer) -> None:
        async with connected(start_server(min_replicas_to_write="1").address) as link:
            with pytest.raises(StoreUnavailable, match="healthy replicas"):
                await link.call("SET", "k", "v")

    async def test_disk_trouble(self, start_server: StartServer) -> None:
        server = start_server(appendonly="no", save="900 1")
        async with connected(server.address) as link:
            server.directory.rename(server.directory.with_name("moved"))
            shutil.rmtree(server.directory.with_name("moved"))
            await link.call("SET", "k", "v")
            await link.call("BGSAVE")
            with pytest.raises(StoreUnavailable, match="cannot write to its disk"):  # noqa: PT012 - in time
                end_s = monotonic_s() + 5
                while monotonic_s() < end_s:  # until the background save has failed
                    await link.call("SET", "k", "v")

    async def test_a_long_script_of_somebody_else(self, start_server: StartServer) -> None:
        server = start_server(busy_reply_threshold="20")
        async with connected(server.address) as link, connected(server.address, stall_s=60) as other:
            script = other.call("EVAL", "while true do end", 0)
            with pytest.raises(StoreUnavailable, match="long script"):
                await link.call("SET", "k", "v")
            server.ask("SCRIPT KILL")
            with pytest.raises(StoreReply):
                await script
            assert await link.call("SET", "k", "v") == b"OK"

    async def test_a_demoted_primary_fails_the_call_and_is_dialed_anew(self, start_server: StartServer) -> None:
        server = start_server()
        checks: list[bytes] = []

        async def check(call: Call) -> None:
            checks.append((await call("ROLE"))[0])
            if checks[-1] != b"master":
                raise StoreUnsafe("the store is a replica.", mend="Name its primary.")

        async with connected(server.address, on_reconnect=check) as link:
            await link.call("SET", "k", "v")
            await link.call("REPLICAOF", "127.0.0.1", 1)
            with pytest.raises(StoreUnavailable, match="read-only replica"):
                await link.call("SET", "k", "w")
            await eventually(lambda: b"slave" in checks)
            with pytest.raises(StoreUnsafe, match="replica"):
                await link.call("SET", "k", "x")
            server.ask("REPLICAOF NO ONE")
            await eventually(lambda: link.up)
            assert await link.call("GET", "k") == b"v"


class TestConnecting:
    async def test_nothing_there(self, tmp_path: Path) -> None:
        link = Link(Address(path=str(tmp_path / "none.sock")))
        with pytest.raises(StoreUnavailable, match=r"none\.sock cannot be reached"):
            await link.connect(within_s=0.2)

    async def test_a_server_that_starts_later_is_found(self, start_server: StartServer) -> None:
        server = start_server()
        server.kill()
        link = Link(server.address)
        connecting = asyncio.ensure_future(link.connect())
        await eventually(lambda: link.fault is not None)
        server.restart()
        await connecting
        assert await link.call("PING") == b"PONG"
        await link.close()

    async def test_a_loading_server_is_waited_for(self, start_server: StartServer) -> None:
        server = start_server(key_load_delay="50")
        async with connected(server.address) as link:
            await link.call("EVAL", "for i = 1, 20000 do redis.call('SET', i, i) end", 0)
            server.restart()
            await eventually(lambda: server.ask("PING").startswith(b"-LOADING"))
            assert await link.call("DBSIZE") == 20_000

    async def test_log_in_and_database(self, start_server: StartServer) -> None:
        server = start_server(requirepass="s3cret")
        url = f"unix://:s3cret@{server.address.path}?db=3"
        async with connected(Address.parse(url)) as link:
            await link.call("ACL", "SETUSER", "mesh", "on", ">p@ss/w:rd", "~m:*", "+@all")
            assert b"db=3" in await link.call("CLIENT", "INFO")
        async with connected(Address.parse(f"unix://mesh:p%40ss%2Fw%3Ard@{server.address.path}")) as link:
            assert await link.call("ACL", "WHOAMI") == b"mesh"
        with pytest.raises(ConfigError, match="wants a log-in"):
            await Link(server.address).connect()
        with pytest.raises(ConfigError, match="refuses the log-in"):
            await Link(Address.parse(f"unix://:wrong@{server.address.path}")).connect()

    async def test_tls_is_verified(self, embedded: Any, tmp_path: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("openssl makes the certificate")
        certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
        make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
        more = ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
        await asyncio.to_thread(subprocess.run, [*make.split(), *more], check=True, capture_output=True)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        proxy = Proxy(embedded.address, tmp_path / "unused.sock")
        server = await asyncio.start_server(proxy._accept, "localhost", 0, ssl=context)
        url = f"rediss://localhost:{server.sockets[0].getsockname()[1]}"
        async with connected(Address.parse(f"{url}?ssl_ca_certs={certificate}")) as link:
            assert await link.call("ECHO", "secret") == b"secret"
        with pytest.raises(StoreUnavailable, match="certificate verify failed"):
            await Link(Address.parse(url)).connect(within_s=0.5)
        server.close()
        await proxy.stop()
