"""What an attempt and the store tell each other: pages of the journal in, entries and chunks out, in their order.

Joins the pure ledger and replay with a Link. Knows no user code: what an answer means for the attempt (lease lost,
cancel wanted) goes to its Listener.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from mesh.agent.durable.chunks import Chunks
from mesh.agent.durable.entries import Entry, key_of, write
from mesh.agent.durable.errors import LeaseLost
from mesh.agent.durable.ledger import QUEUED_ENTRIES_MAX, Append, Ledger, Pending
from mesh.agent.durable.link import Ack, Link, Page
from mesh.agent.durable.replay import Replay
from mesh.errors import MeshError, TooLarge

_A = TypeVar("_A", Ack, Page)


class Listener(Protocol):
    """The attempt, as far as answers concern it."""

    @property
    def cancel_known(self) -> bool: ...
    def stop(self, why: BaseException) -> None: ...
    def cancel(self) -> None: ...


class _Nobody:
    cancel_known = False

    def stop(self, why: BaseException) -> None:
        pass

    def cancel(self) -> None:
        pass


NOBODY: Final[Listener] = _Nobody()
"""Hears what comes after the end."""


class Exchange:
    """`length`: entries in the journal when the attempt was sent out."""

    __slots__ = (
        "_children", "_closed", "_flushes", "_link", "_listener", "_loop", "_out", "_pages", "_renewals", "chunks",
        "ledger", "replay",
    )  # fmt: skip

    def __init__(self, link: Link, length: int, listener: Listener) -> None:
        self.replay = Replay()
        self.ledger = Ledger(length)
        self.chunks = Chunks(link, self.pump, self._understood)
        self._link = link
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._out: set[asyncio.Future[Any]] = set()
        self._pages: list[asyncio.Future[None]] = []
        self._flushes: list[asyncio.Future[None]] = []
        self._children: dict[str, asyncio.Future[None]] = {}
        self._renewals: list[asyncio.Future[None]] = []

    @property
    def idle(self) -> bool:
        """Everything of ours is stored and everything that is known to be there was read."""
        return self.ledger.idle and self.chunks.idle

    @property
    def crowded(self) -> bool:
        """Too much of ours waits for the store: whoever has more should wait too."""
        return self.ledger.queued > QUEUED_ENTRIES_MAX or self.chunks.crowded

    def put(self, entry: Entry) -> asyncio.Future[bytes | None]:
        """Append an entry. Done when it is stored, with None; or with the entry that somebody else stored before it.

        Raises TooLarge; the future fails with it when the journal is full.
        """
        key = key_of(entry.name, entry.n) if entry.n else ""
        stored: asyncio.Future[bytes | None] = self._loop.create_future()

        def done(answer: bytes | MeshError | None) -> None:
            if isinstance(answer, bytes):
                self.replay.drop(key, entry.kind)
            if stored.done():
                return
            if isinstance(answer, MeshError):
                stored.set_exception(answer)
                stored.exception()  # not everybody waits for what they put
            else:
                stored.set_result(answer)

        raw = write(entry)
        self._note()
        self.ledger.append(Pending(entry.kind, key, raw, self.chunks.total, done))
        self.pump()
        return stored

    def page(self) -> asyncio.Future[None]:
        """Done when the next page of the journal is here."""
        turn: asyncio.Future[None] = self._loop.create_future()
        self._pages.append(turn)
        self.ledger.wanted = True
        self.pump()
        return turn

    def flush(self) -> asyncio.Future[None]:
        """Done when everything of ours is stored, `idle`."""
        turn: asyncio.Future[None] = self._loop.create_future()
        self._flushes.append(turn)
        self._note()
        self.pump()
        return turn

    def renewed(self) -> asyncio.Future[None]:
        """Done when the mesh was asked to renew the lease and did; one question for all who ask meanwhile."""
        turn: asyncio.Future[None] = self._loop.create_future()
        self._renewals.append(turn)
        if len(self._renewals) == 1:
            self._send(self._link.renew(), self._confirmed)
        return turn

    def child(self, key: str) -> asyncio.Future[None]:
        """Done when the end of the child under `key` stands in the journal."""
        future = self._children.get(key)
        if future is None or future.done():
            future = self._children[key] = self._loop.create_future()
        return future

    def told(self, length: int) -> None:
        """The journal is said to have so many entries."""
        self.ledger.told(length)
        self.pump()

    def close(self) -> None:
        """Nothing is sent any more, no answer is awaited."""
        self._closed = True
        self.chunks.close()
        for future in tuple(self._out):
            future.cancel()

    def forget(self) -> None:
        """The attempt is over and was told all: let go of it."""
        self._listener = NOBODY
        self.chunks.forget()

    def pump(self) -> None:
        """Send what can be sent now. Called whenever that may have changed."""
        if self._closed:
            return
        self.chunks.pump()
        command = self.ledger.next(self.chunks.acked)
        if isinstance(command, Append):
            self._send(self._link.append(command.at, command.entries), self._appended)
        elif command is not None:
            self._send(self._link.read(command.after, command.limit), self._read)
        elif self.idle and self._flushes:
            turns, self._flushes = self._flushes, []
            _wake(turns)

    # -- answers

    def _appended(self, out: asyncio.Future[Ack]) -> None:
        if self._arrived(out):
            ack = out.result()
            if ack.status == "ok":
                self.replay.skip(self.ledger.appended(ack.length))
            elif ack.status == "grown":
                self.ledger.grown(ack.length)
            elif ack.status == "full":
                self.ledger.refused(
                    TooLarge(ack.detail or "the journal of this operation is full", code="journal_full")
                )
            self._understood(ack)
            self.pump()

    def _read(self, out: asyncio.Future[Page]) -> None:
        if not self._arrived(out):
            return
        page = out.result()
        if page.status != "ok" or not page.entries:
            detail = "" if page.status != "ok" else "its journal cannot be read on"
            self._understood(Ack("lost" if page.status == "ok" else page.status, page.length, page.cancel, detail))
            return
        heads = self.replay.feed(page.entries)
        self.ledger.page(page.entries, heads, page.length)
        self.chunks.begin(self.replay.emitted, self.replay.chunks)
        turns, self._pages = self._pages, []
        _wake(turns)
        for kind, key in heads:
            if kind == "child" and key in self._children:
                _wake([self._children.pop(key)])
        self._understood(Ack("ok", page.length, page.cancel))
        self.pump()

    def _confirmed(self, out: asyncio.Future[Ack]) -> None:
        turns, self._renewals = self._renewals, []
        if self._arrived(out):
            ack = out.result()
            self._understood(Ack("invalid", 0, detail=ack.detail) if ack.status == "full" else ack)
            _wake(turns)

    def _understood(self, ack: Ack) -> None:
        if ack.status not in ("ok", "grown", "full"):
            self._listener.stop(LeaseLost(ack.detail or f"the mesh answered {ack.status!r}"))
        elif ack.cancel:
            self._listener.cancel()

    def _note(self) -> None:
        note = self.chunks.note()
        if note is not None:
            self.ledger.append(Pending("", "", write(note), self.chunks.total, _nobody_waits))

    def _send(self, future: asyncio.Future[_A], answered: Callable[[asyncio.Future[_A]], None]) -> None:
        self._out.add(future)
        future.add_done_callback(answered)

    def _arrived(self, out: asyncio.Future[Any]) -> bool:
        self._out.discard(out)
        return not (self._closed or out.cancelled())


def _wake(turns: list[asyncio.Future[None]]) -> None:
    for turn in turns:
        if not turn.done():
            turn.set_result(None)


def _nobody_waits(answer: bytes | MeshError | None) -> None:
    pass
