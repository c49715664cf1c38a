"""The HTTP side of a Link: one attempt's line to its gateway, made of what the process shares.

`Lines` is what an agent has once; `HttpLink` is one attempt's. Knows no code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from mesh.agent.arrivals import Arrivals
from mesh.agent.durable.blobs import Blobs, Reference
from mesh.agent.durable.children import Children
from mesh.agent.durable.holding import Hold
from mesh.agent.durable.hub import JSON_HEADER, RETRY_FIRST_MS, RETRY_MAX_MS, RETRY_SPREAD, Address, Clock, Item, Verb
from mesh.agent.durable.link import Ack, Child, ChildOrder, Page, Status
from mesh.agent.durable.watching import Watch
from mesh.blob import Blob
from mesh.clock import boot_s, sleep
from mesh.errors import PeerFault
from mesh.ids import jittered
from mesh.pool import Pool, Target

PAGE_BYTES_MAX: Final = 8 << 20
TIMEOUT_S: Final = 10.0
VERBS_MAX: Final = 256
"""Gateways remembered; they come from callback URLs."""
LEASE_MS_MAX: Final = 3_600_000
"""The longest that a heartbeat may ask for (P103)."""
READ: Final = b"/v1/tasks/read"


class _Page(msgspec.Struct):
    status: str
    entries: list[msgspec.Raw] = []
    length: int = 0
    cancel: bool = False


class _Pages(msgspec.Struct):
    tasks: list[_Page]
    now_ms: int = 0


_read: Final = msgspec.json.Decoder(_Pages).decode


class Lines:
    """What the attempts of one agent share. `key`: its API key, for children. `lease_ms`: of its attempts."""

    def __init__(
        self,
        pool: Pool,
        gateways: Sequence[Target],
        key: str | None,
        arrivals: Arrivals,
        lease_ms: int = LEASE_MS_MAX,
    ) -> None:
        self.lease_ms = min(lease_ms, LEASE_MS_MAX)
        self.clock = Clock()
        self.pool = pool
        self.gateways = gateways
        self.children = Children(pool, gateways, key)
        self.blobs = Blobs(pool, gateways, arrivals)
        self._watch: Watch | None = None
        self._verbs: dict[tuple[str, str, bytes], Verb] = {}

    def verb(self, name: str, gateway: Target) -> Verb:
        where = (name, gateway.origin, gateway.path)
        verb = self._verbs.get(where)
        if verb is None:
            if len(self._verbs) >= VERBS_MAX:
                self._verbs = {key: each for key, each in self._verbs.items() if not each.idle}
            verb = self._verbs[where] = Verb(name, self.pool, self.clock, gateway, self.gateways)
        return verb

    @property
    def watch(self) -> Watch:
        if self._watch is None:
            self._watch = Watch(self.clock, self.gateways)
        return self._watch

    async def close(self) -> None:
        if self._watch is not None:
            await self._watch.close()


class HttpLink:
    """One attempt's Link. `leaving` is told 1 while the attempt may be over already, for all one knows; else 0.

    `hold`: what is known of its lease.
    """

    __slots__ = ("_address", "_hold", "_leaving", "_lines")

    def __init__(self, lines: Lines, address: Address, leaving: Callable[[int], None], hold: Hold) -> None:
        self._lines = lines
        self._address = address
        self._leaving = leaving
        self._hold = hold

    def now_ms(self) -> int:
        return self._lines.clock.now_ms()

    def sure(self) -> bool:
        return self._hold.sure()

    def renew(self) -> asyncio.Future[Ack]:
        item = Item(self._address, b'"lease_ms":%d' % self._lines.lease_ms)
        item.done.add_done_callback(partial(self._renewed, item, boot_s()))
        return self._lines.verb("heartbeat", self._address.gateway).put(item)

    def append(self, at: int, entries: Sequence[bytes]) -> asyncio.Future[Ack]:
        return self._put("journal", b'"at":%d,"entries":[%b]' % (at, b",".join(entries)))

    def emit(self, at: int, chunks: Sequence[bytes]) -> asyncio.Future[Ack]:
        return self._put("emit", b'"at":%d,"chunks":[%b]' % (at, b",".join(chunks)))

    def suspend(self, at: int, wake_at_ms: int | None, *, cancel: bool) -> asyncio.Future[Ack]:
        wake = b"null" if wake_at_ms is None else b"%d" % wake_at_ms
        told = b"true" if cancel else b"false"
        # The mesh may wake the operation, and send it here again, before its answer is read.
        self._leaving(1)
        done = self._put("suspend", b'"at":%d,"wake_at_ms":%b,"cancel":%b' % (at, wake, told))
        done.add_done_callback(self._suspended)
        return done

    def put_off(self, kind: str, message: str) -> asyncio.Future[Ack]:
        said = {"type": kind, "message": message, "retryable": True, "counts": False}
        self._leaving(1)  # as above
        done = self._put("fail", msgspec.json.encode(said)[1:-1])
        done.add_done_callback(self._suspended)
        return done

    async def keep(self, blob: Blob, told: Callable[[str], None]) -> dict[str, Any] | None:
        return await self._lines.blobs.keep(self._address, blob, told)

    async def fetch(self, ref: Reference, *, as_file: bool) -> Blob:
        return await self._lines.blobs.fetch(self._address, ref, as_file=as_file)

    def read(self, after: int, limit: int) -> asyncio.Future[Page]:
        return asyncio.ensure_future(self._page(after, limit))

    def watch(self, after: int, *, cancel: bool) -> asyncio.Future[Ack]:
        return self._lines.watch.ask(self._address, after, patient=not cancel)

    async def start_child(self, order: ChildOrder) -> Child:
        return await self._lines.children.start(self._address, order)

    async def cancel_child(self, operation_id: str) -> None:
        await self._lines.children.cancel(self._address, operation_id)

    def _put(self, verb: str, fields: bytes) -> asyncio.Future[Ack]:
        return self._lines.verb(verb, self._address.gateway).put(Item(self._address, fields))

    def _renewed(self, item: Item, asked_s: float, done: asyncio.Future[Ack]) -> None:
        # Not another attempt's lease, should a later one have come here meanwhile.
        if not done.cancelled() and done.result().status == "ok" and item.token == self._address.token:
            self._hold.renewed(asked_s)

    def _suspended(self, done: asyncio.Future[Ack]) -> None:
        if done.cancelled() or done.result().status != "ok":
            self._leaving(0)

    async def _page(self, after: int, limit: int) -> Page:
        """Repeated until a gateway answers."""
        delay_ms = RETRY_FIRST_MS
        while True:
            first = self._address.gateway
            for target in [first, *(each for each in self._lines.gateways if each.origin != first.origin)]:
                page = await self._page_from(target, after, limit)
                if page is not None:
                    return page
            await sleep(jittered(delay_ms, RETRY_SPREAD) / 1000)
            delay_ms = min(delay_ms * 2, RETRY_MAX_MS)

    async def _page_from(self, target: Target, after: int, limit: int) -> Page | None:
        asked: dict[str, Any] = {"tasks": [{"token": self._address.token, "after": after, "limit": limit}]}
        body = msgspec.json.encode(asked)
        try:
            reply = await self._lines.pool.post(
                target, target.under(READ), [JSON_HEADER], body, timeout_s=TIMEOUT_S, reply_bytes_max=PAGE_BYTES_MAX
            )
            if reply.status != 200:  # noqa: PLR2004
                return None
            answer = _read(reply.body)
        except (PeerFault, msgspec.MsgspecError):
            return None
        self._lines.clock.told(answer.now_ms)
        page = answer.tasks[0]
        status: Status = page.status if page.status in ("ok", "lost", "ended", "unknown") else "invalid"  # pyright: ignore[reportAssignmentType]
        # Copies: a slice of the reply would keep all of it in memory for as long as one entry is not asked for.
        return Page(status, [bytes(entry) for entry in page.entries], page.length, page.cancel)
