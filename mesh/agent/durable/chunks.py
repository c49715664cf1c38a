"""The durable stream of one operation, as the code writes it: chunks with their source, batched, each stored once.

A chunk is `{"data", "source", "n"}`. The handler's own have the source "" and count on through the run; those of a step
have its key and begin at 1 whenever the step is executed. Readers: a chunk replaces what its source sent from `n` on.
That makes a step which a crash repeats readable; so are the few chunks of the handler itself that a crash repeats.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from mesh.agent.codec import Codec
from mesh.agent.durable.entries import Entry
from mesh.agent.durable.link import Ack, Link
from mesh.errors import MeshError, TooLarge

CHUNK_BYTES_MAX: Final = 64 << 10
BATCH_CHUNKS_MAX: Final = 1000
BATCH_BYTES_MAX: Final = 1 << 20
QUEUED_CHUNKS_MAX: Final = 1000
"""Chunks that wait for the store; above it `emit` waits."""

_any: Final = Codec(Any)
_encode: Final = msgspec.json.Encoder().encode


class _Chunk(msgspec.Struct):
    data: msgspec.Raw
    source: str
    n: int


def chunk_of(data: Any, source: str, n: int) -> bytes:
    """Raises TooLarge, Undecodable."""
    raw = _encode(_Chunk(msgspec.Raw(_any.dump(data)), source, n))
    if len(raw) > CHUNK_BYTES_MAX:
        raise TooLarge(f"a chunk of {len(raw)} bytes; one has {CHUNK_BYTES_MAX} at most", code="chunk_too_large")
    return raw


class Chunks:
    """`acked` is called when more are stored; `answered` with every answer that says something else than that."""

    __slots__ = (
        "_answered", "_at", "_link", "_noted", "_on_acked", "_out", "_queue", "_refused", "_sent", "acked", "own",
        "total",
    )  # fmt: skip

    def __init__(self, link: Link, acked: Callable[[], None], answered: Callable[[Ack], None]) -> None:
        self.total = self.acked = 0
        """Chunks of this attempt: given, and stored."""
        self.own = 0
        """Of the handler's own chunks: how many the code has emitted."""
        self._noted = 0
        self._at = 0
        self._link = link
        self._on_acked = acked
        self._answered = answered
        self._queue: deque[bytes] = deque()
        self._sent: list[bytes] = []
        self._out: asyncio.Future[Ack] | None = None
        self._refused: MeshError | None = None

    @property
    def idle(self) -> bool:
        return self.acked == self.total

    @property
    def crowded(self) -> bool:
        return self.total - self.acked > QUEUED_CHUNKS_MAX

    def begin(self, own: int, length: int) -> None:
        """What the journal says of earlier attempts: chunks of the handler itself, and of the stream then."""
        self._noted = max(self._noted, own)
        self._at = max(self._at, length)

    def add(self, raw: bytes) -> None:
        """Raises what the store said of earlier ones."""
        if self._refused is not None:
            raise self._refused
        self._queue.append(raw)
        self.total += 1

    def note(self) -> Entry | None:
        """The entry that tells later attempts how many of the handler's own chunks are there, when that has changed."""
        if self.own <= self._noted:
            return None
        self._noted = self.own
        return Entry("emitted", n=self.own, length=self._at + len(self._sent) + len(self._queue))

    def pump(self) -> None:
        """Send what waits, unless an answer is awaited."""
        if self._out is not None or not self._queue:
            return
        size = 0
        while self._queue and len(self._sent) < BATCH_CHUNKS_MAX:
            size += len(self._queue[0])
            if self._sent and size > BATCH_BYTES_MAX:
                break
            self._sent.append(self._queue.popleft())
        self._out = self._link.emit(self._at, self._sent)
        self._out.add_done_callback(self._answer)

    def forget(self) -> None:
        """Nobody is told any more."""
        self._on_acked = _nothing
        self._answered = _nothing

    def close(self) -> None:
        if self._out is not None:
            self._out.cancel()

    def _answer(self, out: asyncio.Future[Ack]) -> None:
        self._out = None
        if out.cancelled():
            return
        ack, sent = out.result(), self._sent
        self._sent = []
        if ack.status == "ok":
            self._at += len(sent)
            self.acked += len(sent)
        elif ack.status == "grown":
            self._queue.extendleft(reversed(sent))
            self._at = ack.length
        elif ack.status == "full":
            self._refused = TooLarge(ack.detail or "the stream of this operation is full", code="stream_full")
            self._queue.clear()
            self.acked = self.total
        if ack.cancel or ack.status not in ("ok", "grown", "full"):
            self._answered(ack)
        self._on_acked()


def _nothing(*_: Any) -> None:
    pass
