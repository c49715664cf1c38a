"""Pub/sub of the store on a connection of its own: hints that something changed, never the truth.

Owns re-subscribing and telling that messages may have been missed. Whoever subscribes must read the state
itself once `subscribe` is in effect and on every gap: the store keeps nothing for an absent subscriber.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from mesh.clock import monotonic_s, sleep
from mesh.errors import ConfigError, MeshError, StoreUnavailable
from mesh.ids import jittered
from mesh.store.address import Address
from mesh.store.connection import Connection, words
from mesh.store.dial import dial

PING_S: Final = 1.0
SILENCE_S: Final = 5.0
CATCH_UP_S: Final = 0.25
BACKOFF_S_MIN: Final = 0.02
BACKOFF_S_MAX: Final = 1.0
CHANNELS_MAX: Final = 200_000

_log = logging.getLogger(__name__)


class Subscriber:
    """`connect()`, then `subscribe`.

    `on_gap()` is called after every reconnect, once all channels are subscribed again. `silence_s` without a
    byte (it pings every second) and the connection counts as broken.
    """

    def __init__(self, address: Address, *, on_gap: Callable[[], None], silence_s: float = SILENCE_S) -> None:
        self.address = address
        self._on_gap = on_gap
        self._silence_s = silence_s
        self._callbacks: dict[bytes, Callable[[bytes], None]] = {}
        self._asked: dict[bytes, asyncio.Future[None]] = {}
        """Channels whose SUBSCRIBE has not been confirmed on the present connection."""
        self._acks: deque[tuple[bytes, asyncio.Future[None]]] = deque()
        """SUBSCRIBEs in the order sent. By order, not by name: after subscribe, unsubscribe, subscribe of one
        channel the first confirmation is not the one that counts."""
        self._pings: deque[asyncio.Future[None] | None] = deque()
        """PINGs in the order sent, each with who waits for its answer."""
        self._connection: Connection | None = None
        self._fault: Exception | None = None
        self._gap = False
        self._closed = False
        self._keeper: asyncio.Task[None] | None = None
        self._first: asyncio.Future[None] | None = None

    async def connect(self, *, within_s: float = SILENCE_S) -> None:
        """Return once connected. Raises ConfigError (log-in refused), StoreUnavailable; then it is closed."""
        loop = asyncio.get_running_loop()
        self._first = loop.create_future()
        self._keeper = loop.create_task(self._keep(), name="mesh-store-subscriber")
        try:
            async with asyncio.timeout(within_s):
                await self._first
        except TimeoutError:
            await self.close()
            reason = f"the store at {self.address} cannot be reached: {words(self._fault)}"
            raise StoreUnavailable(reason) from None
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._connection is not None:
            self._connection.abort()
            self._connection = None
        for asked in self._asked.values():
            _ended(asked, "the subscriber is closed")
        self._asked.clear()

    def subscribe(self, channel: bytes, callback: Callable[[bytes], None]) -> asyncio.Future[None]:
        """One callback per channel; a second one replaces the first.

        The future is done once messages flow: what is read after it cannot miss a change. It waits as long as
        the store is away. Raises StoreUnavailable.
        """
        loop = asyncio.get_running_loop()
        known = channel in self._callbacks
        if self._closed or (len(self._callbacks) >= CHANNELS_MAX and not known):
            full = f"more than {CHANNELS_MAX} channels are subscribed"
            return _ended(loop.create_future(), "the subscriber is closed" if self._closed else full)
        self._callbacks[channel] = callback
        if not known:
            self._asked[channel] = loop.create_future()
            self._send([channel])
        if channel in self._asked:
            asked = asyncio.shield(self._asked[channel])
            asked.add_done_callback(_seen)
            return asked
        done: asyncio.Future[None] = loop.create_future()
        done.set_result(None)
        return done

    def unsubscribe(self, channel: bytes) -> None:
        """Stop calling back for `channel`; who still waits for its subscription gets StoreUnavailable."""
        if self._callbacks.pop(channel, None) is None:
            return
        if asked := self._asked.pop(channel, None):
            _ended(asked, "unsubscribed meanwhile")
        if self._connection is not None:
            self._connection.push("UNSUBSCRIBE", channel)

    async def caught_up(self, *, within_s: float = CATCH_UP_S) -> None:
        """Return once all is heard that was published before, or `within_s` is over.

        Messages come in order, but not with the replies to calls, which have a connection of their own: a reply may be
        here before the messages of the call that it answers.
        """
        if self._connection is not None:
            heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._ping(self._connection, heard)
            await asyncio.wait([heard], timeout=within_s)

    def _ping(self, connection: Connection, heard: asyncio.Future[None] | None = None) -> None:
        self._pings.append(heard)
        connection.push("PING")

    def _answered(self) -> None:
        heard = self._pings.popleft() if self._pings else None
        if heard is not None and not heard.done():
            heard.set_result(None)

    def _send(self, channels: list[bytes]) -> None:
        if self._connection is not None and channels:
            self._acks.extend([(channel, self._asked[channel]) for channel in channels])
            self._connection.push("SUBSCRIBE", *channels)

    def _message(self, message: list[Any]) -> None:
        kind: bytes = message[0]
        if kind == b"message":
            callback = self._callbacks.get(message[1])
            if callback is None:  # unsubscribed while the message was on its way
                return
            try:
                callback(message[2])
            except Exception:  # noqa: BLE001 - the next channel's messages must still be delivered
                _log.exception("a subscription's callback failed")
        elif kind == b"subscribe":
            channel, asked = self._acks.popleft()
            if self._asked.get(channel) is asked:
                del self._asked[channel]
                asked.set_result(None)
            self._tell_gap()
        elif kind == b"pong":
            self._answered()

    def _tell_gap(self) -> None:
        if self._gap and not self._asked:
            self._gap = False
            self._on_gap()

    async def _keep(self) -> None:
        pause_s = BACKOFF_S_MIN
        while True:
            try:
                connection = await dial(self.address, self._silence_s)
            except (OSError, TimeoutError, MeshError) as fault:
                self._fault = fault
                if isinstance(fault, ConfigError) and self._first is not None and not self._first.done():
                    self._first.set_exception(fault)
            else:
                pause_s = BACKOFF_S_MIN
                self._adopt(connection)
                await self._watch(connection)
                self._connection = None
                self._fault = connection.fault
                self._gap = True
                _log.warning("store subscription lost: %s", words(connection.fault))
            await sleep(jittered(pause_s * 1000, 0.2) / 1000)
            pause_s = min(pause_s * 2, BACKOFF_S_MAX)

    def _adopt(self, connection: Connection) -> None:
        connection.on_push = self._message
        self._connection = connection
        self._acks.clear()
        while self._pings:
            self._answered()
        loop = asyncio.get_running_loop()
        for channel in self._callbacks:
            self._asked.setdefault(channel, loop.create_future())
        self._send(list(self._callbacks))
        self._tell_gap()
        if self._first is not None and not self._first.done():
            self._first.set_result(None)

    async def _watch(self, connection: Connection) -> None:
        while not connection.lost.done():
            await asyncio.wait([connection.lost], timeout=PING_S)
            self._ping(connection)
            if connection.read_at_s < monotonic_s() - self._silence_s:
                connection.abort(TimeoutError(f"the store was silent for {self._silence_s:g} s"))
                await connection.lost


def _seen(future: asyncio.Future[None]) -> None:
    """Nobody need wait for a subscription, so its failure is no news by itself."""
    if not future.cancelled():
        future.exception()


def _ended(future: asyncio.Future[None], reason: str) -> asyncio.Future[None]:
    future.set_exception(StoreUnavailable(reason))
    future.exception()  # seen: nobody need wait for a subscription
    return future
