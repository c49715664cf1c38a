"""The link when the store dies, stops, is cut off or refused: what is sent again, what is unknown."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from signal import SIGCONT, SIGSTOP
from typing import Any

import pytest

from mesh.clock import monotonic_s
from mesh.errors import OutcomeUnknown, StoreUnavailable, StoreUnsafe
from mesh.store.connection import Call
from mesh.store.dial import Fence, dial
from mesh.store.link import Link, StoreReply
from mesh.store.merging import Merging
from tests.servers import Proxy, RawServer, connected, eventually

StartServer = Callable[..., RawServer]


class TestLoss:
    async def test_calls_in_flight_survive_a_killed_server_in_their_order(self, start_server: StartServer) -> None:
        server = start_server()
        async with connected(server.address) as link:
            server.signal(SIGSTOP)
            calls: list[asyncio.Future[Any]] = []
            for turn in range(20):
                calls += [link.call("SET", "last", turn * 50 + i) for i in range(50)]
                calls += [link.call("SADD", "all", turn * 50 + i) for i in range(50)]
                await asyncio.sleep(0)  # noqa: TID251 - one turn of the loop, no time
            server.restart()
            await asyncio.gather(*calls)
            assert await link.call("GET", "last") == b"999"
            assert await link.call("SCARD", "all") == 1000

    async def test_a_call_that_must_not_be_sent_twice_is_unknown(self, proxy: Proxy) -> None:
        async with connected(proxy.address) as link:
            proxy.replies_flow.clear()
            proxy.chunks.clear()
            once, again = link.call("INCR", "n", resend=False), link.call("SET", "k", "v")
            await eventually(lambda: proxy.chunks)
            proxy.cut()
            proxy.replies_flow.set()
            with pytest.raises(OutcomeUnknown, match="broke before the answer"):
                await once
            assert await again == b"OK"

    async def test_deadline_unknown_if_it_was_written_unavailable_if_it_never_left(
        self, start_server: StartServer
    ) -> None:
        server = start_server()
        async with connected(server.address, deadline_s=0.4) as link:
            server.signal(SIGSTOP)
            written = link.call("SET", "k", "v")
            await eventually(lambda: link.writes)
            server.kill()
            await eventually(lambda: not link.up)
            unsent = link.call("SET", "k", "w")
            begun_s = monotonic_s()
            with pytest.raises(OutcomeUnknown, match="did not come back"):
                await written
            with pytest.raises(StoreUnavailable, match="cannot be reached") as caught:
                await unsent
            assert not isinstance(caught.value, OutcomeUnknown)
            assert str(server.address) in caught.value.detail
            assert monotonic_s() - begun_s < 15

    async def test_a_stopped_server_costs_deadlines_and_then_recovers(self, start_server: StartServer) -> None:
        server = start_server()
        async with connected(server.address, deadline_s=0.3, stall_s=0.3) as link:
            server.signal(SIGSTOP)
            begun_s = monotonic_s()
            calls = [link.call("SET", f"k{i}", "v") for i in range(100)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {OutcomeUnknown}
            assert monotonic_s() - begun_s < 15
            await eventually(lambda: not link.up)
            server.signal(SIGCONT)
            await eventually(lambda: link.up)
            assert await link.call("SET", "k", "after") == b"OK"

    async def test_a_lost_line_is_redialed_and_the_old_one_is_ended_on_the_server(self, embedded: Any) -> None:
        fence = Fence()
        old, new = await dial(embedded.address, 10), await dial(embedded.address, 10)
        await fence.raise_on(old)
        await fence.raise_on(new)
        await asyncio.wait_for(old.lost, 20)
        assert await new.call("PING") == b"PONG"
        with pytest.raises(StoreUnavailable):
            await old.call("PING")
        new.abort()
        await new.lost

    async def test_the_number_of_waiting_calls_has_a_limit(self, start_server: StartServer) -> None:
        server = start_server()
        async with connected(server.address, waiting_max=10) as link:
            server.signal(SIGSTOP)
            calls = [link.call("PING") for _ in range(10)]
            with pytest.raises(StoreUnavailable, match="too many calls"):
                await link.call("PING")
            server.signal(SIGCONT)
            await asyncio.gather(*calls)
            assert await asyncio.gather(*[link.call("PING") for _ in range(10)]) == [b"PONG"] * 10

    async def test_calls_that_travel_together_count_each(self, start_server: StartServer) -> None:
        """They take room when they are asked for and give it back when they are answered, also after another try."""
        server, merging = start_server(), Merging(b"k", "many", lambda asked: [b"%d" % len(asked)])
        async with connected(server.address, waiting_max=10, deadline_s=60, stall_s=60) as link:
            for goes_on in (lambda: server.signal(SIGCONT), server.restart):
                server.signal(SIGSTOP)
                together = [link.join(merging, "one", [b"1"]) for _ in range(6)]
                await asyncio.sleep(0)  # noqa: TID251 - one turn of the loop, no time
                asked = [*together, *[link.join(merging, "one", [b"1"]) for _ in range(3)], link.call("PING")]
                assert link.waiting == 10
                for one in (link.join(merging, "one", [b"1"]), link.call("PING")):
                    with pytest.raises(StoreUnavailable, match="too many calls"):
                        await one
                goes_on()
                *joined, pong = await asyncio.gather(*asked, return_exceptions=True)
                assert pong == b"PONG"
                assert [type(one) for one in joined] == [StoreReply] * 9, "a bare store has no such function"
                assert link.waiting == 0
            server.signal(SIGSTOP)
            left = [link.join(merging, "one", [b"1"]) for _ in range(10)]
        assert link.waiting == 0
        told = await asyncio.gather(*left, return_exceptions=True)
        assert [type(one) for one in told] == [StoreUnavailable] * 10

    async def test_the_bytes_of_waiting_calls_have_a_limit(self, start_server: StartServer) -> None:
        server = start_server()
        async with connected(server.address, waiting_bytes_max=8 * 1024 * 1024) as link:
            server.signal(SIGSTOP)
            calls = [link.call("SET", f"k{i}", b"v" * 1024 * 1024) for i in range(8)]
            with pytest.raises(StoreUnavailable, match="too many calls"):
                await link.call("PING")
            await eventually(lambda: link._connection and not link._connection.writable)
            server.signal(SIGCONT)
            assert await asyncio.gather(*calls) == [b"OK"] * 8
            assert await link.call("DBSIZE") == 8

    async def test_closing_ends_what_waits(self, start_server: StartServer) -> None:
        server = start_server()
        async with connected(server.address) as link:
            server.signal(SIGSTOP)
            written = link.call("SET", "k", "v")
            await eventually(lambda: link.writes)
            unsent = link.call("SET", "k", "w")
        with pytest.raises(OutcomeUnknown):
            await written
        with pytest.raises(StoreUnavailable, match="closed"):
            await unsent


class TestHook:
    async def test_it_runs_before_what_waits_is_sent_again(self, start_server: StartServer) -> None:
        server = start_server()

        async def check(call: Call) -> None:
            await call("RPUSH", "log", "checked")

        async with connected(server.address, on_reconnect=check) as link:
            server.signal(SIGSTOP)
            written = link.call("RPUSH", "log", "written")
            await eventually(lambda: link.writes)
            server.kill()
            await eventually(lambda: not link.up)
            waiting = link.call("RPUSH", "log", "waiting")
            server.restart()
            await asyncio.gather(written, waiting)
            expected = [b"checked", b"checked", b"written", b"waiting"]
            assert await link.call("LRANGE", "log", 0, -1) == expected

    async def test_a_refusal_fails_every_call_until_the_store_is_good_again(self, proxy: Proxy) -> None:
        refusing = False

        async def check(call: Call) -> None:
            if refusing:
                raise StoreUnsafe("the store is empty.", mend="Restore it.")

        async with connected(proxy.address, on_reconnect=check) as link:
            proxy.replies_flow.clear()
            proxy.chunks.clear()
            written = link.call("SET", "k", "v")
            await eventually(lambda: proxy.chunks)
            refusing = True
            proxy.cut()
            proxy.replies_flow.set()
            with pytest.raises(OutcomeUnknown, match="the store is empty"):
                await written
            for _ in range(2):
                with pytest.raises(StoreUnsafe, match="Restore it") as caught:
                    await link.call("GET", "k")
                assert caught.value.mend == "Restore it."
            assert isinstance(link.fault, StoreUnsafe)
            refusing = False
            await eventually(lambda: link.up)
            assert await link.call("PING") == b"PONG"

    async def test_a_refusal_at_the_start_is_raised(self, embedded: Any) -> None:
        async def check(call: Call) -> None:
            raise StoreUnsafe("the store is a replica.", mend="Name its primary.")

        with pytest.raises(StoreUnsafe, match="replica"):
            await Link(embedded.address, on_reconnect=check).connect()

    async def test_a_bug_in_the_hook_does_not_end_the_healing(
        self, proxy: Proxy, caplog: pytest.LogCaptureFixture
    ) -> None:
        runs: list[int] = []

        async def check(call: Call) -> None:
            runs.append(1)
            if len(runs) == 2:
                raise ZeroDivisionError

        async with connected(proxy.address, on_reconnect=check) as link:
            proxy.cut()
            await eventually(lambda: len(runs) == 3 and link.up)
            assert await link.call("PING") == b"PONG"
        assert "ZeroDivisionError" in caplog.text
