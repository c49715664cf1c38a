"""One connection: sends one request at a time, parses the reply while it streams, keeps the caps.

It must not know limits or waiters: it tells its owner when it is free again and when it is gone. Everything
in it runs inside transport callbacks; the only thing a request waits for is one future.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, cast

import httptools

from mesh.errors import MeshError, ReplyInvalid, ReplyLost
from mesh.pool.reply import Large, Reply, StaleConnection

if TYPE_CHECKING:
    from mesh.pool.heads import Heads
    from mesh.streams import Intake, Source

HEAD, INTERIM, BODY, DONE = range(4)
"""Where the reply stands: waiting for its head, in a 1xx head, in the body, complete."""

_FRAMING = frozenset((b"content-length", b"transfer-encoding", b"content-encoding"))
_VERSION = b"HTTP/1."
_SWITCHING, _OK = 101, 200
_BODYLESS = (204, 304)
_STATUS_MIN = 100


class Owner(Protocol):
    """What a connection tells; the pool implements it."""

    heads: Heads

    def freed(self, connection: Connection) -> None:
        """The exchange is over and another may follow."""

    def lost(self, connection: Connection) -> None:
        """The transport is gone; called once per connection that was made."""


class Connection(asyncio.Protocol):
    """Owned by exactly one request while `future` is set; idle, or handed to a waiter, otherwise.

    closed   dropped or lost: no further request may be sent
    stale    lost before the reply, after earlier use: its request, not the owner, holds its slot now
    surplus  not to be reused after this reply: the peer said so, or sent more than the reply
    """

    __slots__ = (
        "address", "body", "body_bytes_max", "chunked", "closed", "deadline_s", "fault", "future", "head_only",
        "header_bytes_max", "headers", "heard", "idle_at_s", "intake", "large", "length", "loop", "origin",
        "owner", "parser", "phase", "quiet_bytes", "stale", "status", "surplus", "transport", "uses", "writable",
    )  # fmt: skip

    def __init__(
        self, owner: Owner, loop: asyncio.AbstractEventLoop, origin: str, address: str, header_bytes_max: int
    ) -> None:
        self.owner = owner
        self.loop = loop
        self.origin = origin
        self.header_bytes_max = header_bytes_max
        self.address = address
        self.transport: asyncio.Transport | None = None
        self.parser = httptools.HttpResponseParser(self)
        self.future: asyncio.Future[Reply] | None = None
        self.deadline_s = self.idle_at_s = 0.0
        self.uses = 0
        self.closed = self.stale = False
        self.heard = self.surplus = self.head_only = self.chunked = False
        self.phase, self.status, self.body_bytes_max, self.quiet_bytes = HEAD, 0, 0, 0
        self.length: int | None = None
        self.fault: MeshError | None = None
        self.large: Large | None = None
        self.intake: Intake | None = None
        self.writable: asyncio.Future[None] | None = None
        """Set while the transport takes no more, and somebody may wait for it."""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: bytes | bytearray = b""

    # -- what the pool does with it

    def leads_to(self, addresses: tuple[str, ...]) -> bool:
        """Whether a target that is pinned to `addresses` (none: not pinned) may still be sent through it."""
        return not addresses or self.address in addresses

    def exchange(
        self, head: bytes, body: bytes, deadline_s: float, body_bytes_max: int, *, head_only: bool, large: Large | None
    ) -> asyncio.Future[Reply]:
        """Write one request in one piece; the future gives the Reply, a PeerFault or StaleConnection."""
        self.future = future = self.loop.create_future()
        self.deadline_s = deadline_s
        self.body_bytes_max = body_bytes_max
        self.head_only = head_only
        self.heard = self.surplus = self.chunked = False
        self.phase, self.quiet_bytes, self.length = HEAD, 0, None
        self.headers = []
        self.body = b""
        self.large = large
        self.uses += 1
        self.transport.write(head + body)  # pyright: ignore[reportOptionalMemberAccess] - it is made, and not lost
        return future

    async def send(self, source: Source, future: asyncio.Future[Reply]) -> None:
        """The body of the exchange of `future`, piece by piece, until it is over; it fails when the source does."""
        try:
            async for piece in source.chunks():
                if self.future is not future:
                    return
                cast("asyncio.Transport", self.transport).write(piece)
                if self.writable is not None:
                    await self.writable
        except MeshError as fault:
            if self.future is future:
                self.fail(fault)
            return
        if self.future is future and self.phase == HEAD:
            self.surplus = False

    def pause_writing(self) -> None:
        self.writable = self.loop.create_future()

    def resume_writing(self) -> None:
        writable, self.writable = self.writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    def fail(self, fault: BaseException) -> None:
        """End the exchange with `fault` and drop the connection: what is still to come belongs to nobody."""
        future, self.future = self.future, None
        self.drop()
        if future is not None and not future.done():
            future.set_exception(fault)

    def drop(self) -> None:
        """Close without waiting for anything; the owner hears of it through `lost`."""
        self.future = None
        self.closed = True
        self._let_go()
        if self.transport is not None:
            self.transport.abort()

    # -- what the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        future = self.future
        if future is None or future.cancelled():
            self.drop()  # nobody asked: an answer to nothing would become the answer to the next request
            return
        first_read = not self.heard
        if first_read:
            self.heard = True
            if self._known(data, future):
                return
            if not _VERSION.startswith(data[:7]):
                self.fail(self._invalid("does not speak HTTP/1.x"))
                return
        quiet_before = self.quiet_bytes = self.quiet_bytes + len(data)
        phase_before = self.phase
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.surplus = True
            if self.phase != DONE and self.fault is None:
                self.fault = self._invalid(f"sent a reply that is not HTTP ({str(error)[:80]})")
        if quiet_before > self.header_bytes_max:
            self._check_head_size(phase_before)
        if self.fault is not None:
            fault, self.fault = self.fault, None
            self.fail(fault)
        elif self.phase == DONE:
            self._finish(future, data if first_read else b"")

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        future = self.future
        if future is not None and not future.cancelled():
            if self.phase == BODY and self.length is None and not self.chunked and exc is None:
                self.future = None
                intake, self.intake = self.intake, None
                future.set_result(Reply(self.status, self.headers, bytes(self.body), until_close=True, intake=intake))
            elif not self.heard and self.uses > 1:
                self.future = None
                self.stale = True
                future.set_exception(StaleConnection())
            else:
                when = "before the reply was complete" if self.heard else "before any reply"
                self.fail(ReplyLost(f"{self.origin} closed the connection {when}."))
        self._let_go()
        self.owner.lost(self)
        self.transport = None
        del self.parser  # the parser holds bound methods: without this every connection is a reference cycle

    # -- what the parser tells (exceptions raised here would be swallowed by it, hence `fault`)

    def on_message_begin(self) -> None:
        if self.phase == DONE:
            self.surplus = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.phase > HEAD:
            return  # a trailer, or what follows the reply
        name = name.lower()
        value = value.rstrip()
        if name in _FRAMING:
            self._framing(name, value)
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.phase == DONE:
            return
        status = self.status = self.parser.get_status_code()
        if not self.parser.should_keep_alive():  # asked here: the parser forgets it at the end of the message
            self.surplus = True
            if self.parser.get_http_version() not in ("1.0", "1.1"):
                self.fault = self._invalid("does not speak HTTP/1.x")
        if status < _OK:
            if status < _STATUS_MIN or status == _SWITCHING:
                self.fault = self._invalid(f"answered with status {status}, which nobody asked for")
            self.phase = INTERIM
        elif self.head_only or status in _BODYLESS:
            self.phase = DONE
            self.surplus = self.surplus or self.chunked or bool(self.length)
        else:
            self.phase = BODY
            if self.length is not None and self.length > self.body_bytes_max and not self._go_large():
                self.fault = self.fault or self._too_large(self.body_bytes_max)

    def on_body(self, body: bytes) -> None:
        if self.phase == DONE:
            self.surplus = True
            return
        self.quiet_bytes = 0
        if self.intake is not None:
            self._feed(body)
        elif len(self.body) + len(body) > self.body_bytes_max and not self._go_large(len(body)):
            self.fault = self.fault or self._too_large(self.body_bytes_max)
        elif self.intake is not None:
            self._feed(body)
        elif not self.body:
            self.body = body
        else:
            if isinstance(self.body, bytes):
                self.body = bytearray(self.body)
            self.body += body

    def on_message_complete(self) -> None:
        if self.phase == INTERIM:
            self.phase, self.length, self.chunked = HEAD, None, False
            self.headers = []
        else:
            self.phase = DONE

    # -- inside

    def _known(self, data: bytes, future: asyncio.Future[Reply]) -> bool:
        """Whether the exchange is over with a reply that needs no parser, which then stands as it stood before."""
        reply = None if self.head_only or self.surplus else self.owner.heads.reply(data, self.body_bytes_max)
        if reply is None:
            return False
        self.future = None
        future.set_result(reply)
        self._free()
        return True

    def _go_large(self, more: int = 0) -> bool:
        """From here on the body goes elsewhere, or may have more room in memory. False: it is too large."""
        large, self.large = self.large, None
        if large is None or self.fault is not None:
            return False
        try:
            intake = large.take(self.status, self.headers)
        except MeshError as fault:
            self.fault = fault
            return False
        if intake is None:
            self.body_bytes_max = large.bytes_max
            return max(self.length or 0, len(self.body) + more) <= large.bytes_max
        self.intake = intake
        intake.watch(self._go_on, self._intake_failed)
        if self.body:
            self._feed(bytes(self.body))
            self.body = b""
        return True

    def _feed(self, chunk: bytes) -> None:
        if self.intake is not None and not self.intake.feed(chunk) and self.transport is not None:
            self.transport.pause_reading()

    def _go_on(self) -> None:
        if self.transport is not None and not self.closed:
            self.transport.resume_reading()

    def _intake_failed(self, fault: MeshError) -> None:
        if self.future is not None and self.phase == BODY:
            self.fail(fault)

    def _let_go(self) -> None:
        intake, self.intake = self.intake, None
        if intake is not None:
            intake.abandon()
        self.resume_writing()

    def _framing(self, name: bytes, value: bytes) -> None:
        if name == b"content-length":
            self.length = int(value)  # digits only, once only: the parser refuses all else
        elif name == b"content-encoding":
            if value.lower() not in (b"identity", b""):
                self.fault = self._invalid("sent an encoded body although identity was asked for")
        else:
            self.chunked = True
            if value.lower() != b"chunked":
                self.fault = self._invalid("sent a transfer coding other than chunked")

    def _check_head_size(self, phase_before: int) -> None:
        # `quiet_bytes` came since the last piece of body: a head, trailers or chunk extensions. One read may hold
        # a whole head and much else, hence the exact count when the head ended in this read.
        head_bytes = 0
        if phase_before < BODY <= self.phase:
            head_bytes = sum(len(name) + len(value) + 4 for name, value in self.headers)
        rest_bytes = 0 if self.phase == DONE else self.quiet_bytes - head_bytes
        if max(head_bytes, rest_bytes) > self.header_bytes_max and self.fault is None:
            self.fault = self._too_large(self.header_bytes_max, "head or trailer")

    def _finish(self, future: asyncio.Future[Reply], whole: bytes) -> None:
        """`whole`: the reply, where it came in one piece."""
        self.future = None
        if whole and not (self.surplus or self.chunked or self.head_only or self.intake):
            self.owner.heads.remember(whole, self.status, self.headers, self.length)
        intake, self.intake = self.intake, None
        future.set_result(Reply(self.status, self.headers, bytes(self.body), intake=intake))
        self._free()

    def _free(self) -> None:
        # An answer that overtook the end of its request leaves the rest of that request in the write buffer.
        if not self.surplus and self.transport is not None and not self.transport.get_write_buffer_size():
            self.owner.freed(self)
        else:
            self.drop()

    def _invalid(self, what: str) -> ReplyInvalid:
        return ReplyInvalid(f"{self.origin} {what}.")

    def _too_large(self, limit_bytes: int, part: str = "body") -> ReplyInvalid:
        detail = f"{self.origin} sent a reply {part} over {limit_bytes} bytes."
        return ReplyInvalid(detail, code="reply_too_large")
