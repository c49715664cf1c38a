"""One connection: uvicorn's protocol with bounds on what a slow or endless peer may hold, and hot routes answered here.

uvicorn by itself waits for a request as long as it takes and reads headers of any size; and its ASGI cycle costs more
than a hot route itself. An application with an attribute `hot` (exchange.Routes) has those routes called straight from
the parser; everything else is uvicorn's. Both kinds share uvicorn's order of pipelined requests, keep-alive and drain.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from mesh.edge.exchange import Answer, HotRoute, Request, Routes, check_head, serve, too_large
from mesh.edge.upgrade import framing, parser_behind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesh.edge.exchange import Headers

HEAD_BYTES_MAX: Final = 65_536
"""Request line and headers, before they are parsed; the routes' own limit answers politely below it."""
PIPELINE_MAX: Final = 64
"""Requests that wait on one connection behind the one being answered."""
TRAILERS_MAX: Final = 64
QUIET_BYTES_MAX: Final = 65_536
"""Trailers and chunk extensions: what comes within a request without a byte of body. The parser keeps a trailer whole,
and copies it with every read, until its line ends."""
REQUEST_S_MAX: Final = 30.0
"""From the first byte of a request to its last."""
SWEEP_S: Final = 1.0

_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_METHODS: Final = {method.encode(): method for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")}


class Exchange:
    """One request to a hot route, from its head to its answer. Has the face of uvicorn's RequestResponseCycle."""

    __slots__ = (
        "_body", "_edge", "_fault", "_gone", "_route", "_routes", "_size", "disconnected", "expects", "keep_alive",
        "more_body", "request", "response_complete", "turn",
    )  # fmt: skip

    def __init__(self, edge: Edge, routes: Routes, route: HotRoute, request: tuple[str, bytes, bytes, Headers]) -> None:
        self._edge = edge
        self._routes = routes
        self._route = route
        self._body: bytes | bytearray = b""
        self._size = 0
        self._fault: Exception | None = None
        self._gone: asyncio.Future[None] | None = None
        self.request = Request(*request, self)
        self.keep_alive = True
        self.expects = False
        self.disconnected = False
        self.more_body = True
        self.response_complete = False
        self.turn = False
        """The requests before it on this connection are answered."""

    # What the protocol tells

    def check(self, *, measure: bool) -> None:
        """Look at the head; what is wrong with it is answered in the request's turn."""
        try:
            check_head(self.request.headers, self.request.first, self._routes, measure=measure)
        except Exception as error:  # noqa: BLE001 - answered as the route answers
            self._fault = error

    def take(self, chunk: bytes) -> None:
        """Some of the body."""
        self._size += len(chunk)
        if self._fault is None:
            if self._size <= self._routes.body_bytes_max:
                if not self._body:
                    self._body = chunk
                    return
                # One piece of memory: a peer that sends a byte at a time is not to make an object of each.
                if type(self._body) is bytes:
                    self._body = bytearray(self._body)
                self._body += chunk
                return
            self._fault = too_large(self._routes)
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
        self._edge.spawn(self._run())

    @property
    def message_event(self) -> Exchange:
        """Uvicorn sets it when the connection is lost."""
        return self

    def set(self) -> None:
        """The connection is lost, if `disconnected` says so."""
        if self.disconnected and self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    # What the route does

    async def _run(self) -> None:
        request, fault = self.request, self._fault
        try:
            if fault is None:
                body = self._body
                request.body = body if type(body) is bytes else bytes(body)
                answer = await serve(self._route, request)
            else:
                answer = self._route.render(fault)
        except BaseException:
            self._edge.transport.abort()
            raise
        if answer is not None:
            self.answer(answer)

    def answer(self, answer: Answer) -> None:
        """Write it in one piece and go on to the next request."""
        status, headers, body = answer
        edge = self._edge
        self.response_complete = True
        if not edge.transport.is_closing():
            # A value is Latin-1 text without line ends: it was parsed from one, or checked where it was made.
            lines = b"".join([b"%b: %b\r\n" % one for one in headers])
            end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
            sent = b"" if self.request.method == "HEAD" else body
            status_line = STATUS_LINE.get(status) or b"HTTP/1.1 %d \r\n" % status
            head = b"%b%b%bcontent-length: %d\r\n%b" % (status_line, edge.default_lines(), lines, len(body), end)
            edge.transport.write(head + sent)
            if not self.keep_alive:
                edge.transport.close()
        edge.on_response_complete()

    async def gone(self) -> None:
        """Return once the caller has hung up."""
        if not self.disconnected:
            if self._gone is None:
                self._gone = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._gone)


class Edge(HttpToolsProtocol):
    """One connection of a caller or an agent."""

    reading_since_s = 0.0
    """Loop time of the first byte of a request that is not complete; 0 between requests."""
    idle_since_s = 0.0
    """Loop time of the last answer, when nothing is asked; else 0."""
    _head_bytes = 0
    _quiet_bytes = 0
    _framing = b""
    """Of the body behind a head that asked for another protocol."""
    _routes: Routes | None = None
    _lines: tuple[Any, bytes] = (None, b"")
    parser: Any

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.reading_since_s = self.loop.time()
        self._routes = getattr(self.config.app, "hot", None)

    def data_received(self, data: bytes) -> None:
        if self._head_bytes < 0:
            # Looked at before this read is parsed: it may be all body.
            if len(self.headers) > TRAILERS_MAX or self._quiet_bytes > QUIET_BYTES_MAX:
                self.abort()
                return
            self._quiet_bytes += len(data)
        else:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX and not self._head_ends_within(data):
                self.transport.write(_TOO_LARGE)
                self.transport.close()
                return
        self.idle_since_s = 0.0
        self._unset_keepalive_if_required()
        while data and not self.transport.is_closing():
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
            except httptools.HttpParserUpgrade as other:
                data = data[other.args[0] :]
                self.parser = parser_behind(self, self._framing)
                self._framing = b""
                continue
            return

    def _head_ends_within(self, data: bytes) -> bool:
        # A body may follow its head in one read; only what comes before the empty line counts.
        return self._head_bytes - len(data) + data.find(b"\r\n\r\n") + 1 <= HEAD_BYTES_MAX and b"\r\n\r\n" in data

    # What the parser tells

    def on_message_begin(self) -> None:
        self.reading_since_s = self.loop.time()
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        measure = self._routes is not None and self._head_bytes > self._routes.header_bytes_max
        self._head_bytes = -1
        self._quiet_bytes = 0
        if len(self.pipeline) >= PIPELINE_MAX:
            self.abort()
            return
        if not self._hot(measure=measure):
            self._ordinary()
        if self.parser.should_upgrade():
            self._framing = framing(self.headers)
        # The request has its own list by now; what comes after the body is no header of it, credentials least of all.
        self.headers = []

    def _hot(self, *, measure: bool) -> bool:
        """Begin an exchange with a hot route; False: it is not for one."""
        routes, url = self._routes, self.url
        if routes is None or not url.isascii():
            return False
        method = self.parser.get_method()
        method = _METHODS.get(method) or method.decode("ascii")
        if url[:1] == b"/" and b"#" not in url:
            raw_path, _, query = url.partition(b"?")
        else:
            parsed = httptools.parse_url(url)
            raw_path, query = parsed.path or b"/", parsed.query or b""
        route = routes.find(method, raw_path)
        if route is None:
            return False
        earlier = self.cycle
        exchange = Exchange(self, routes, route, (method, raw_path, query, self.headers))
        self.cycle: Any = exchange
        exchange.check(measure=measure)
        exchange.keep_alive = self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0"
        exchange.expects = exchange.request.first.get(b"expect", b"").lower() == b"100-continue"
        if earlier is None or earlier.response_complete:
            exchange.turn = True
            exchange.advance()
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]
        return True

    def _ordinary(self) -> None:
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        self.headers = self.scope["headers"] = headers
        self.expect_100_continue = any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in headers
        )
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._quiet_bytes = 0
        cycle = self.cycle
        if type(cycle) is not Exchange:
            super().on_body(body)
        elif not cycle.response_complete:
            cycle.take(body)

    def on_message_complete(self) -> None:
        if self._framing:
            return  # the body is still to come
        self.reading_since_s = 0.0
        self._head_bytes = 0
        cycle = self.cycle
        if type(cycle) is not Exchange:
            super().on_message_complete()
        elif not cycle.response_complete:
            cycle.more_body = False
            cycle.advance()

    # What uvicorn asks for

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if type(cycle) is Exchange:
            cycle.turn = True
            cycle.advance()
        else:
            super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        else:
            # Instead of a timer per answer: the sweep looks at all connections.
            self.idle_since_s = self.loop.time()

    def spawn(self, running: Any) -> None:
        """A task that the server waits for when it drains."""
        task = self.loop.create_task(running)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def default_lines(self) -> bytes:
        """The date and what else uvicorn says by default, as header lines."""
        headers = self.server_state.default_headers
        if Edge._lines[0] is not headers:
            Edge._lines = (headers, b"".join([b"%b: %b\r\n" % one for one in headers]))
        return Edge._lines[1]

    def abort(self) -> None:
        """Drop the connection."""
        self.transport.abort()


def sweep(connections: Iterable[Any], now_s: float) -> int:
    """Drop connections that send one request for too long, close those that were idle too long; how many."""
    late = 0
    for one in connections:
        if not isinstance(one, Edge):
            continue
        if one.reading_since_s and now_s - one.reading_since_s > REQUEST_S_MAX:
            late += 1
            one.abort()
        elif one.idle_since_s and now_s - one.idle_since_s > one.timeout_keep_alive:
            late += 1
            one.timeout_keep_alive_handler()
    return late
