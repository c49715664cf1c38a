"""One request to a hot route on a connection, from its head to its answer.

What arrives stays in memory or goes where the route takes large bodies; what is answered is written in one piece or
streamed. The connection itself is protocol.py.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from mesh.edge.exchange import HEADER_COUNT_MAX, Answer, HotRoute, Request, Routes, check_head, failed, too_large
from mesh.edge.line import is_over
from mesh.errors import MeshError

if TYPE_CHECKING:
    from mesh.edge.exchange import Beginner, Headers
    from mesh.edge.protocol import Edge
    from mesh.streams import Source

TAKE_S_MAX: Final = 30.0
"""A peer that takes nothing of a large answer for so long is dropped."""
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

_colon: Final = b": ".join
_log = logging.getLogger(__name__)


class Exchange:
    """One request to a hot route, from its head to its answer. Has the face of uvicorn's RequestResponseCycle."""

    __slots__ = (
        "_body", "_edge", "_fault", "_gone", "_inline", "_route", "_routes", "_size", "disconnected", "expects",
        "keep_alive", "more_body", "request", "response_complete", "task", "turn",
    )  # fmt: skip
    task: asyncio.Task[Any]

    def __init__(
        self, edge: Edge, routes: Routes, route: HotRoute, method: str, raw_path: bytes, query: bytes, headers: Headers
    ) -> None:
        self._edge = edge
        self._routes = routes
        self._route = route
        self._body: bytes | bytearray = b""
        self._size = 0
        self._inline = routes.inline_bytes if route.take is not None else routes.body_bytes_max
        self._fault: Exception | None = None
        self._gone: asyncio.Future[None] | None = None
        self.request = Request(method, raw_path, query, headers, dict(reversed(headers)), self, render=route.render)
        self.keep_alive = True
        self.expects = False
        self.disconnected = False
        self.more_body = True
        self.response_complete = False
        self.turn = False
        """The requests before it on this connection are answered."""

    # What the protocol tells

    def check(self, *, measure: bool) -> bool:
        """Look at the head; False: what is wrong with it is answered in the request's turn."""
        first = self.request.first
        try:
            within = not measure and len(self.request.headers) <= HEADER_COUNT_MAX
            plain = b"content-encoding" not in first and b"transfer-encoding" not in first
            if within and plain and int(first.get(b"content-length", b"0")) <= self._inline:
                return True  # nearly every one: nothing of check_head is for it
            large = self._route.take is not None
            check_head(self.request.headers, self.request.first, self._routes, measure=measure, large=large)
            if large and int(self.request.first.get(b"content-length", b"0")) > self._inline:
                self._go_large()
        except Exception as error:  # noqa: BLE001 - answered as the route answers
            self._fault = error
        return self._fault is None

    def take(self, chunk: bytes) -> None:
        """Some of the body."""
        self._size += len(chunk)
        if self._fault is None:
            if self._size <= self._inline:
                if not self._body:
                    self._body = chunk
                    return
                # One piece of memory: a peer that sends a byte at a time is not to make an object of each.
                if type(self._body) is bytes:
                    self._body = bytearray(self._body)
                self._body += chunk
                return
            self._overflow(chunk)

    def _overflow(self, chunk: bytes) -> None:
        """More than a body in memory may have."""
        if self.request.intake is None:
            if self._inline >= self._routes.body_bytes_max:
                self._refuse(too_large(self._routes))
                return
            try:
                self._go_large()
            except Exception as error:  # noqa: BLE001 - answered as the route answers
                self._refuse(error)
                return
        if self.request.intake is None:
            self._size -= len(chunk)
            self.take(chunk)
        else:
            self._feed(chunk)

    def _go_large(self) -> None:
        """From here on the body goes where its route takes it, or stays in memory after all. Raises its refusal."""
        take = self._route.take
        intake = take(self.request) if take is not None else None
        if intake is None:
            self._inline = self._routes.body_bytes_max
            if int(self.request.first.get(b"content-length", b"0")) > self._inline:
                raise too_large(self._routes)
            return
        self._inline = -1
        self.request.intake = intake
        intake.watch(self._edge.go_on, self._refuse)
        if self._body:
            self._feed(bytes(self._body))
            self._body = b""

    def _feed(self, chunk: bytes) -> None:
        intake = self.request.intake
        if intake is not None and not intake.feed(chunk):
            self._edge.hold()
        self._edge.progress(self._size)

    def _refuse(self, error: Exception) -> None:
        if self._fault is None and self.more_body:
            self._fault = error
            self._body = b""
            self.advance()

    def advance(self) -> None:
        """Begin when it is this request's turn and all of it is there, or enough to refuse it."""
        if not self.turn:
            return
        if self.more_body and self._fault is None:
            if self.expects:
                self.expects = False
                self._edge.transport.write(_CONTINUE)
            return
        self.turn = False
        if self._route.begin is not None and self._fault is None and self.request.intake is None:
            self._begin(self._route.begin)
        else:
            self.task = self._edge.begin(self._run())

    @property
    def message_event(self) -> Exchange:
        """Uvicorn sets it when the connection is lost."""
        return self

    def set(self) -> None:
        """The connection is lost, if `disconnected` says so."""
        if self.disconnected and self.more_body and not self.response_complete:
            intake = self.request.intake
            if intake is not None:
                intake.abandon()
        if self.disconnected and self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    # What the route does

    def _begin(self, begin: Beginner) -> None:
        request, body = self.request, self._body
        request.body = body if type(body) is bytes else bytes(body)
        try:
            begin(request)
        except Exception as error:  # noqa: BLE001 - as in `_run`
            self.answer(failed(self._route, request, error))

    async def _run(self) -> None:
        request, route, fault = self.request, self._route, self._fault
        try:
            if fault is None:
                body = self._body
                request.body = body if type(body) is bytes else bytes(body)
                try:
                    answer = await route.run(request)
                except Exception as error:  # noqa: BLE001 - as `exchange.serve`, a coroutine less
                    answer = failed(route, request, error)
            else:
                answer = route.render(fault)
        except BaseException:
            if not self.response_complete:
                self._edge.transport.abort()
            raise
        finally:
            if request.intake is not None:
                request.intake.abandon()
            self._edge.tasks.discard(self.task)
        if answer is not None:
            self.answer(answer)

    async def _send(self, answer: Answer, stream: Source) -> None:
        """Write an answer piece by piece, as the peer takes it; one that breaks off is cut, and the peer sees it."""
        edge = self._edge
        try:
            if not edge.transport.is_closing():
                edge.transport.write(self._head(answer, stream.size))
            async for piece in stream.chunks():
                if edge.transport.is_closing():
                    break
                edge.transport.write(piece)
                async with asyncio.timeout(TAKE_S_MAX):
                    await edge.flow.drain()
        except (MeshError, TimeoutError) as error:
            _log.warning("%s %r: its answer breaks off: %s", self.request.method, self.request.raw_path, error)
            edge.transport.abort()
        except BaseException:
            edge.transport.abort()
            raise
        self._over()
        if not self.keep_alive:
            edge.transport.close()
        edge.on_response_complete()

    def answer(self, answer: Answer) -> None:
        """Write it, in one piece unless it is a stream, and go on to the next request."""
        edge = self._edge
        method = self.request.method
        if answer.stream is not None and method != "HEAD":
            edge.spawn(self._send(answer, answer.stream))
            return
        self._over()
        if not edge.transport.is_closing():
            body = answer.body
            sent = b"" if method == "HEAD" else body
            size = len(body) if answer.stream is None else answer.stream.size
            edge.transport.write(self._head(answer, size) + sent)
            if not self.keep_alive:
                edge.transport.close()
        edge.on_response_complete()

    def _over(self) -> None:
        """It is answered, or cut off."""
        self.response_complete = True
        # They refer to each other: kept, every request would be a cycle for the garbage collector.
        del self.request

    def _head(self, answer: Answer, size: int) -> bytes:
        # A value is Latin-1 text without line ends: it was parsed from one, or checked where it was made.
        lines = b"\r\n".join(map(_colon, answer.headers))
        if lines:
            lines += b"\r\n"
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        status_line = STATUS_LINE.get(answer.status) or b"HTTP/1.1 %d \r\n" % answer.status
        return b"".join((status_line, self._edge.default_lines(), lines, b"content-length: %d\r\n" % size, end))

    @property
    def watches(self) -> bool:
        """Somebody wants to know when the caller hangs up."""
        return self._gone is not None

    async def gone(self) -> None:
        """Return once the caller has hung up."""
        if not self.disconnected:
            if self._gone is None:
                self._gone = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._gone)

    def let_go(self) -> None:
        """Another task answers: the server need not wait for this one."""
        self._edge.tasks.discard(self.task)

    def left(self) -> bool:
        """Whether the caller has hung up."""
        return self.disconnected or is_over(self._edge.transport)
