"""One connection: uvicorn's protocol with bounds on what a slow or endless peer may hold, and hot routes answered here.

uvicorn by itself waits for a request as long as it takes and reads headers of any size; and its ASGI cycle costs more
than a hot route itself. An application with an attribute `hot` (exchange.Routes) has those routes called straight from
the parser; everything else is uvicorn's. Both kinds share uvicorn's order of pipelined requests, keep-alive and drain.
"""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mesh.edge.exchange import Routes
from mesh.edge.line import is_over
from mesh.edge.turn import TAKE_S_MAX, Exchange
from mesh.edge.upgrade import framing, parser_behind

if TYPE_CHECKING:
    from collections.abc import Iterable

HEAD_BYTES_MAX: Final = 65_536
"""Request line and headers, before they are parsed; the routes' own limit answers politely below it."""
PIPELINE_MAX: Final = 64
"""Requests that wait on one connection behind the one being answered."""
TRAILERS_MAX: Final = 64
QUIET_BYTES_MAX: Final = 65_536
"""Trailers and chunk extensions: what comes within a request without a byte of body. The parser keeps a trailer whole,
and copies it with every read, until its line ends."""
REQUEST_S_MAX: Final = 30.0
"""From the first byte of a request to its last; of a large one, for each MiB."""
PROGRESS_BYTES: Final = 1 << 20
SWEEP_S: Final = 1.0
NAMES_REMEMBERED_MAX: Final = 1024
NAME_BYTES_REMEMBERED_MAX: Final = 64

_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_METHODS: Final = {method.encode(): method for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")}


class _Lower(dict[bytes, bytes]):
    """Names of headers in lower case. The same few come again and again, and one object each is looked up fastest."""

    def __missing__(self, name: bytes) -> bytes:
        lower = name.lower()
        if len(self) < NAMES_REMEMBERED_MAX and len(name) <= NAME_BYTES_REMEMBERED_MAX:
            self[name] = lower
        return lower


_lower: Final = _Lower()


class Edge(HttpToolsProtocol):
    """One connection of a caller or an agent."""

    # Slots: CPython is slow to find what is in an instance of more than 30 attributes, and uvicorn has 28.
    __slots__ = (
        "_active", "_context", "_framing", "_head_bytes", "_held", "_lines", "_progress_bytes", "_quiet_bytes",
        "_routes", "_taken_at_s", "_unsent", "idle_since_s", "reading_since_s",
    )  # fmt: skip
    parser: Any

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.reading_since_s = self.loop.time()
        """Loop time of the first byte of a request that is not complete; 0 between requests."""
        self.idle_since_s = 0.0
        """Loop time of the last answer, when nothing is asked; else 0."""
        self._held = False
        """The answers so far are not taken: nothing more is read, no request that waits begins."""
        self._unsent = 0
        self._taken_at_s = 0.0
        self._head_bytes = self._quiet_bytes = self._progress_bytes = 0
        self._framing = b""
        """Of the body behind a head that asked for another protocol."""
        self._context = copy_context()
        self._active: Exchange | None = None
        """Whose turn it was last; others may wait behind it."""
        self._routes: Routes | None = getattr(self.config.app, "hot", None)
        self._lines: tuple[Any, bytes] = (None, b"")
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        # uvicorn tells the request that came last, which may be one that waits behind it.
        active = self._active
        if active is not None and active is not self.cycle and not active.response_complete:
            active.disconnected = True
            active.message_event.set()
        super().connection_lost(exc)

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
        if self.timeout_keep_alive_task is not None:
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
        self._progress_bytes = 0
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((_lower[name], value))

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
        if url[:1] == b"/" and url.find(b"#") < 0:  # `in` looks for a number first, and raises inside
            raw_path, _, query = url.partition(b"?")
        else:
            parsed = httptools.parse_url(url)
            raw_path, query = parsed.path or b"/", parsed.query or b""
        route = routes.find(method, raw_path)
        if route is None:
            return False
        earlier = self.cycle
        exchange = Exchange(self, routes, route, method, raw_path, query, self.headers)
        self.cycle: Any = exchange
        sound = exchange.check(measure=measure)
        first = exchange.request.first
        # Only by its `connection` would an HTTP/1.0 request be one to keep alive for: the version is slow to ask for.
        exchange.keep_alive = self.parser.should_keep_alive() and not (
            b"connection" in first and self.parser.get_http_version() == "1.0"
        )
        exchange.expects = b"expect" in first and first[b"expect"].lower() == b"100-continue"
        if (earlier is None or earlier.response_complete) and not self._held:
            exchange.turn = True
            self._active = exchange
            if exchange.expects or not sound:
                exchange.advance()  # before its body, which is still to come, be it an empty one
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]
        return True

    def _ordinary(self) -> None:
        url, headers, earlier = self.url, self.headers, self.cycle
        super().on_message_begin()
        self.url = url
        self.headers = self.scope["headers"] = headers
        self.expect_100_continue = any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in headers
        )
        super().on_headers_complete()
        if earlier is None or earlier.response_complete:
            self._held = False  # it has begun, and waits by itself with what it sends

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
            self._active = cycle
            cycle.advance()
        else:
            super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.flow.write_paused:
            # Who asks on and on and takes no answer would fill the memory.
            self._held = True
            self.flow.pause_reading()
        else:
            self._go_to_next()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._taken_at_s = self.loop.time()
        if self._held:
            self._held = False
            if not self.transport.is_closing():
                self._go_to_next()

    def _go_to_next(self) -> None:
        self.flow.resume_reading()
        if self.pipeline:
            # In a turn and a context of its own: whoever answered, a handler's task maybe, is none of its business.
            self.loop.call_soon(self._start_asgi_task, *self.pipeline.pop(), context=self._context)
        else:
            # Instead of a timer per answer: the sweep looks at all connections.
            self.idle_since_s = self.loop.time()

    def begin(self, running: Any) -> asyncio.Task[Any]:
        """A task that the server waits for when it drains, until it leaves `tasks` by itself."""
        # Not by the loop, which writes a name for each: a third of what a task costs.
        task = asyncio.Task(running, loop=self.loop, name="mesh-request")
        self.tasks.add(task)
        return task

    def spawn(self, running: Any) -> None:
        """A task that the server waits for when it drains, to its end."""
        self.begin(running).add_done_callback(self.tasks.discard)

    def default_lines(self) -> bytes:
        """The date and what else uvicorn says by default, as header lines."""
        headers = self.server_state.default_headers
        lines = self._lines
        if lines[0] is not headers:
            lines = self._lines = (headers, b"".join([b"%b: %b\r\n" % one for one in headers]))
        return lines[1]

    # What an exchange with a large body asks for

    def hold(self) -> None:
        """Read no more until `go_on`: the disk is slower than the peer."""
        self.flow.pause_reading()

    def go_on(self) -> None:
        """Read again."""
        if not self.transport.is_closing():
            self.flow.resume_reading()
            if self.reading_since_s:
                self.reading_since_s = self.loop.time()

    def progress(self, size: int) -> None:
        """A large body has come to `size` bytes: each MiB earns its sender REQUEST_S_MAX for the next."""
        if size >= self._progress_bytes:
            self._progress_bytes = size + PROGRESS_BYTES
            self.reading_since_s = self.loop.time()

    def takes_nothing(self, now_s: float) -> bool:
        """Whether the peer has taken nothing for TAKE_S_MAX of what is written for it; the sweep asks."""
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent < self._unsent or not self._unsent:
            self._taken_at_s = now_s
        self._unsent = unsent
        return now_s - self._taken_at_s > TAKE_S_MAX

    def is_left(self) -> bool:
        """Whether the caller hung up on an answer that watches for it; while others wait behind, nothing is read."""
        active = self._active
        watches = active is not None and active.watches and not active.response_complete
        return watches and bool(self.pipeline) and not self.transport.is_closing() and is_over(self.transport)

    def abort(self) -> None:
        """Drop the connection."""
        self.transport.abort()


def sweep(connections: Iterable[Any], now_s: float) -> int:
    """Drop connections that send one request for too long, take no answer or are gone; close those idle for too long.

    Returns how many.
    """
    late = 0
    for one in connections:
        if not isinstance(one, Edge):
            continue
        slow = one.reading_since_s and now_s - one.reading_since_s > REQUEST_S_MAX
        if slow or one.takes_nothing(now_s) or one.is_left():
            late += 1
            one.abort()
        elif one.idle_since_s and now_s - one.idle_since_s > one.timeout_keep_alive:
            late += 1
            one.timeout_keep_alive_handler()
    return late
