"""The subscriber: messages reach their callback, and a gap is told once all channels are back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any

import pytest

from mesh.errors import StoreUnavailable
from mesh.store.address import Address
from mesh.store.link import Link, Subscriber
from tests.servers import RawServer, connected, eventually

StartServer = Callable[..., RawServer]


class TestSubscriber:
    @asynccontextmanager
    async def subscribed(self, address: Address, **options: Any) -> AsyncIterator[tuple[Subscriber, list[int]]]:
        """The subscriber, and for every gap the number of channels not subscribed again when it was told."""
        gaps: list[int] = []
        subscriber = Subscriber(address, on_gap=lambda: gaps.append(len(subscriber._asked)), **options)
        await subscriber.connect()
        try:
            yield subscriber, gaps
        finally:
            await subscriber.close()

    async def test_messages_reach_the_channel_s_callback_until_it_leaves(self, link: Link) -> None:
        heard: list[bytes] = []
        async with self.subscribed(link.address) as (subscriber, gaps):
            await asyncio.gather(
                subscriber.subscribe(b"a", heard.append),
                subscriber.subscribe(b"b", lambda body: heard.append(b"b:" + body)),
            )
            assert [await link.call("PUBLISH", "a", "1"), await link.call("PUBLISH", "b", "2")] == [1, 1]
            await eventually(lambda: heard == [b"1", b"b:2"])
            subscriber.unsubscribe(b"a")
            await subscriber.subscribe(b"c", heard.append)
            assert await link.call("PUBLISH", "a", "3") == 0
            assert gaps == []

    async def test_the_future_of_a_renewed_subscription_is_the_last_one(self, link: Link) -> None:
        async with self.subscribed(link.address) as (subscriber, _):
            first = subscriber.subscribe(b"a", lambda _: None)
            subscriber.unsubscribe(b"a")
            heard: list[bytes] = []
            second = subscriber.subscribe(b"a", heard.append)
            with pytest.raises(StoreUnavailable, match="unsubscribed"):
                await first
            await second
            assert await link.call("PUBLISH", "a", "1") == 1
            await eventually(lambda: heard == [b"1"])
            await subscriber.subscribe(b"a", heard.append)  # in effect already

    async def test_a_callback_that_fails_does_not_silence_the_others(
        self, link: Link, caplog: pytest.LogCaptureFixture
    ) -> None:
        heard: list[bytes] = []

        def fail(_: bytes) -> None:
            raise ZeroDivisionError

        async with self.subscribed(link.address) as (subscriber, _):
            await asyncio.gather(subscriber.subscribe(b"a", fail), subscriber.subscribe(b"b", heard.append))
            await asyncio.gather(link.call("PUBLISH", "a", "1"), link.call("PUBLISH", "b", "2"))
            await eventually(lambda: heard == [b"2"])
        assert "ZeroDivisionError" in caplog.text

    async def test_what_was_published_before_is_heard_first(self, link: Link) -> None:
        """A reply of another connection may come earlier than the message of the same call."""
        heard: list[bytes] = []
        async with self.subscribed(link.address) as (subscriber, _):
            await subscriber.subscribe(b"a", heard.append)
            for number in range(200):
                await link.call("PUBLISH", "a", str(number))
                await subscriber.caught_up()
                assert heard[-1:] == [b"%d" % number]

    async def test_nobody_waits_for_a_server_that_is_silent(self, start_server: StartServer) -> None:
        server = start_server()
        async with self.subscribed(server.address) as (subscriber, _):
            await subscriber.subscribe(b"a", lambda _: None)
            server.signal(SIGSTOP)
            await subscriber.caught_up(within_s=0.05)
            server.signal(SIGCONT)
            await subscriber.caught_up(within_s=5)

    async def test_a_killed_server_is_a_gap_told_once_all_channels_are_back(self, start_server: StartServer) -> None:
        server = start_server()
        heard: list[bytes] = []
        async with self.subscribed(server.address) as (subscriber, gaps):
            await asyncio.gather(*[subscriber.subscribe(b"%d" % i, heard.append) for i in range(100)])
            server.kill()
            await eventually(lambda: subscriber._connection is None)
            late = subscriber.subscribe(b"late", heard.append)
            assert gaps == []
            server.restart()
            await eventually(lambda: gaps == [0])
            await late
            async with connected(server.address) as link:
                assert await link.call("PUBLISH", "99", "after") == 1
            await eventually(lambda: heard == [b"after"])

    async def test_a_silent_server_is_a_gap(self, start_server: StartServer) -> None:
        server = start_server()
        async with self.subscribed(server.address, silence_s=0.5) as (subscriber, gaps):
            await subscriber.subscribe(b"a", lambda _: None)
            server.signal(SIGSTOP)
            await eventually(lambda: subscriber._connection is None)
            server.signal(SIGCONT)
            await eventually(lambda: gaps == [0])

    async def test_nothing_there(self, tmp_path: Path) -> None:
        subscriber = Subscriber(Address(path=str(tmp_path / "none.sock")), on_gap=lambda: None)
        with pytest.raises(StoreUnavailable, match=r"none\.sock cannot be reached"):
            await subscriber.connect(within_s=0.2)
        with pytest.raises(StoreUnavailable, match="closed"):
            await subscriber.subscribe(b"a", lambda _: None)
