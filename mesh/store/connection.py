"""One connection to the store until it is lost: packs commands, pairs replies with waiting calls in order.

Owns the RESP2 wire (hiredis) and the wording of store errors. Knows nothing of log-in (dial.py), reconnecting
and deadlines (link.py, subscriber.py) or the meaning of a command.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeVar, cast

import hiredis

from mesh.clock import monotonic_s
from mesh.errors import MeshError, StoreUnavailable

Arg = bytes | str | int


class Asker(Protocol):
    """Who gets a call's reply: a future, or what stands for those of several (merging.py)."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: Any, /) -> None: ...


Waiting = tuple[Asker, bytes, float, bool, int]
"""A call on its way: its asker, the packed bytes, when it was asked (monotonic s), may it be sent again, and how many
calls it stands for (merging.py)."""

Call = Callable[..., asyncio.Future[Any]]
"""`call(*args)`: one command; the future gets the reply (bytes, int, None or lists of these)."""

E = TypeVar("E", bound=BaseException)

SIZES_MADE: Final = 1_024
"""Lengths of arguments that stand ready."""
_SIZES: Final = tuple([b"$%d" % size for size in range(SIZES_MADE)])
WRITE_BUFFER_BYTES: Final = 4 * 1024 * 1024
"""Unsent bytes that one connection holds before calls wait in front of it."""


def pack(args: Sequence[Arg]) -> bytes:
    """A command as it stands on the wire."""
    return pack_bytes([arg if isinstance(arg, bytes) else str(arg).encode() for arg in args])


def pack_bytes(args: Sequence[bytes]) -> bytes:
    """The same of bytes alone. Not by hiredis, which prints the length of every argument with sprintf."""
    lines = [b"*%d" % len(args)]
    for one in args:
        size = len(one)
        lines.append(_SIZES[size] if size < SIZES_MADE else b"$%d" % size)
        lines.append(one)
    lines.append(b"")
    return b"\r\n".join(lines)


class StoreReply(MeshError):
    """An error reply. `text` as the store sent it, `word` its first word (`ERR`, `WRONGTYPE`, `MESH_...`)."""

    code = "store_reply"

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text
        self.word = text.split(" ", 1)[0]


class StoreDemoted(StoreUnavailable):
    """The node at this address is a replica now; only a new connection can lead to the primary."""


class StoreLoading(StoreUnavailable):
    """The store reads its data back from disk; it answers soon."""


_UNAVAILABLE: Final[dict[str, tuple[type[StoreUnavailable], str]]] = {
    "LOADING": (StoreLoading, "the store is still loading its data"),
    "READONLY": (StoreDemoted, "the store is a read-only replica"),
    "OOM": (StoreUnavailable, "the store is out of memory (its maxmemory is reached)"),
    "MISCONF": (StoreUnavailable, "the store cannot write to its disk"),
    "MASTERDOWN": (StoreDemoted, "the store is a replica that lost its primary"),
    "BUSY": (StoreUnavailable, "the store is busy running a long script"),
    "NOREPLICAS": (StoreUnavailable, "the store has fewer healthy replicas than it demands"),
}


def reply_error(text: str) -> MeshError:
    """An error reply as an exception: StoreUnavailable for what will pass, StoreReply for the rest."""
    known = _UNAVAILABLE.get(text.split(" ", 1)[0])
    return known[0](f"{known[1]}: {text}") if known else StoreReply(text)


def words(fault: Exception | None) -> str:
    """A fault as a person reads it; some exceptions (TimeoutError) say nothing by themselves."""
    return str(fault) or type(fault).__name__ if fault else "no answer"


def fresh(error: E) -> E:
    """The same error once more: raising one instance again and again grows its traceback."""
    again = type(error).__new__(type(error), *error.args)
    vars(again).update(vars(error))
    return again


class Connection(asyncio.Protocol):
    """Replies resolve the futures of `inflight` in order.

    `on_reply(calls, bytes)` tells once per read how much was answered; `on_push(message)` gets what comes
    when nothing is waiting (pub/sub). When the connection is lost its unanswered calls fail, unless an owner
    has set `owned` and takes them from `inflight`.
    """

    def __init__(self) -> None:
        self.inflight: deque[Waiting] = deque()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.fault: Exception | None = None
        self.read_at_s = monotonic_s()
        self.writable = True
        self.owned = False
        self.on_reply: Callable[[int, int], None] | None = None
        self.on_push: Callable[[list[Any]], None] | None = None
        self.on_writable: Callable[[], None] | None = None
        self._reader: Any = hiredis.Reader(protocolError=hiredis.ProtocolError, replyError=reply_error)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None

    def call(self, *args: Arg) -> asyncio.Future[Any]:
        """Send one command now, for handshakes and admin work; not batched."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if self.lost.done() or self._transport is None:
            future.set_exception(StoreUnavailable("the connection to the store is lost"))
            return future
        packed = pack(args)
        self.inflight.append((future, packed, monotonic_s(), False, 1))
        self._write(packed)
        return future

    def send(self, calls: list[Waiting]) -> None:
        """Put `calls` on the wire in one write, whatever their number: group commit lives from that."""
        self.inflight.extend(calls)
        self._write(b"".join([call[1] for call in calls]))

    def push(self, *args: Arg) -> None:
        """Send a command whose answer is a push message."""
        self._write(pack(args))

    def _write(self, packed: bytes) -> None:
        try:
            if self._transport is not None:
                self._transport.write(packed)
        except RuntimeError as fault:
            # uvloop, between the loss of a socket and `connection_lost`, which takes care of what is in flight.
            self.abort(fault)

    def abort(self, fault: Exception | None = None) -> None:
        """Drop the connection at once; `lost` follows in a later turn."""
        self.fault = self.fault or fault
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        self.read_at_s = monotonic_s()
        inflight = self.inflight
        gets: Callable[[], Any] = self._reader.gets
        count = size = 0
        demoted = False
        try:
            self._reader.feed(data)
            while (reply := gets()) is not False:
                if not inflight:
                    self._pushed(reply)
                    continue
                future, packed, _, _, calls = inflight.popleft()
                count += calls
                size += len(packed)
                if future.done():  # its deadline passed or its caller left
                    continue
                if isinstance(reply, Exception):
                    future.set_exception(reply)
                    demoted = demoted or isinstance(reply, StoreDemoted)
                else:
                    future.set_result(reply)
        except hiredis.ProtocolError as fault:
            self.abort(fault)
        if count and self.on_reply is not None:
            self.on_reply(count, size)
        if demoted:
            self.abort(StoreDemoted("the store became a replica"))

    def _pushed(self, reply: Any) -> None:
        if self.on_push is None or not isinstance(reply, list):
            raise hiredis.ProtocolError(f"a reply that nobody asked for: {reply!r:.100}")
        self.on_push(cast("list[Any]", reply))

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if self.on_writable is not None:
            self.on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        self.fault = self.fault or exc or ConnectionResetError("the store closed the connection")
        reason = f"the connection to the store is lost: {words(self.fault)}"
        while self.inflight and not self.owned:
            future = self.inflight.popleft()[0]
            if not future.done():
                future.set_exception(StoreUnavailable(reason))
        if not self.lost.done():
            self.lost.set_result(None)
