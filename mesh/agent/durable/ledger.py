"""The journal's writer and reader for one attempt, without I/O: what is to be sent next, what an answer means.

The store's list of entries is the truth; `length` is what we know of it, `read` how much of it we have seen. An append
names the length it builds on, so a repeat after a lost reply changes nothing and a child's outcome that came in between
is noticed (`grown`): it is read first, then the append goes again. One append is out at a time, the rest gathers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeAlias

from mesh.errors import MeshError

APPEND_ENTRIES_MAX: Final = 1000
APPEND_BYTES_MAX: Final = 1 << 20
PAGE_ENTRIES_MAX: Final = 1000
QUEUED_ENTRIES_MAX: Final = 10_000
"""Entries of one operation that wait for their turn: progress that nobody waits for is made to wait above it."""


class Append(NamedTuple):
    """Send these entries, which follow the first `at`."""

    at: int
    entries: tuple[bytes, ...]


class Read(NamedTuple):
    """Read at most `limit` entries after the first `after`."""

    after: int
    limit: int


Command: TypeAlias = Append | Read


class Pending:
    """An entry of ours on its way.

    done          called once: with None when the store has it; with the entry that the store had under the same key and
                  kind before (somebody else's attempt was quicker: the first one counts); or with why it is refused
    after_chunks  it must not be stored before so many chunks are, or a crash in between would lose them
    """

    __slots__ = ("after_chunks", "done", "key", "kind", "raw")

    def __init__(
        self, kind: str, key: str, raw: bytes, after_chunks: int, done: Callable[[bytes | MeshError | None], None]
    ) -> None:
        self.kind = kind
        self.key = key
        self.raw = raw
        self.after_chunks = after_chunks
        self.done = done


class Ledger:
    """`length`: entries in the journal when the attempt was sent out."""

    __slots__ = ("_queue", "_reading", "_sent", "_was_complete", "length", "read", "wanted")

    def __init__(self, length: int) -> None:
        self.length = length
        self.read = 0
        self.wanted = False
        """Somebody asks for an entry that may stand in what was not read yet."""
        self._queue: deque[Pending] = deque()
        self._sent: list[Pending] = []
        self._reading = False
        self._was_complete = length == 0

    @property
    def complete(self) -> bool:
        """All that is known to be there was read."""
        return self.read >= self.length

    @property
    def idle(self) -> bool:
        """Nothing of ours is on its way or waits, and nothing is unread."""
        return not self._queue and not self._sent and not self._reading and self.complete

    @property
    def queued(self) -> int:
        return len(self._queue)

    def append(self, pending: Pending) -> None:
        self._queue.append(pending)

    def next(self, chunks: int) -> Command | None:
        """What to send now, `chunks` being stored; None while an answer is awaited or nothing is to be said."""
        if self._sent or self._reading:
            return None
        if not self.complete:
            # Before the first append everything is read: an absent name is known to be absent only then.
            if self.wanted or self._queue or self._was_complete:
                self._reading = True
                return Read(self.read, PAGE_ENTRIES_MAX)
            return None
        self._was_complete = True
        self.wanted = False
        size = 0
        while self._queue and len(self._sent) < APPEND_ENTRIES_MAX and self._queue[0].after_chunks <= chunks:
            size += len(self._queue[0].raw)
            if self._sent and size > APPEND_BYTES_MAX:
                break
            self._sent.append(self._queue.popleft())
        if not self._sent:
            return None
        return Append(self.length, tuple(pending.raw for pending in self._sent))

    # -- answers

    def appended(self, length: int) -> int:
        """The store has them, and `length` in all; gives how many entries were ours."""
        sent, self._sent = self._sent, []
        self.read += len(sent)
        self.length = max(length, self.read)
        for pending in sent:
            pending.done(None)
        return len(sent)

    def grown(self, length: int) -> None:
        """Somebody appended before us: nothing of ours was taken."""
        self._queue.extendleft(reversed(self._sent))
        self._sent = []
        self.length = max(self.length, length)

    def refused(self, why: MeshError) -> None:
        """The store does not take what was sent, for good."""
        sent, self._sent = self._sent, []
        for pending in sent:
            pending.done(why)

    def told(self, length: int) -> None:
        """The journal is said to have `length` entries by now."""
        self.length = max(self.length, length)

    def page(self, entries: Sequence[bytes], heads: Sequence[tuple[str, str]], length: int) -> None:
        """Entries that follow those read so far, with their (kind, key)."""
        self._reading = False
        self.read += len(entries)
        self.length = max(self.length, length, self.read)
        if not self._queue or not entries:
            return
        theirs = dict(zip(heads, entries, strict=True))
        ours = list(self._queue)
        self._queue.clear()
        for pending in ours:
            recorded = theirs.get((pending.kind, pending.key)) if pending.key else None
            if recorded is None:
                self._queue.append(pending)
            else:
                pending.done(recorded)
