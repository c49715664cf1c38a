"""One request with its whole body, its answer, and the route functions between them. No socket, no ASGI.

A body over `Routes.inline_bytes` goes to the Intake that its route opens, if it does; an answer may have a Source.

A route function takes a `Request` and returns an `Answer`, or None when another task will answer (`Request.later`) or
when it has answered and gone on (`Request.answer`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, Protocol, TypeAlias
from urllib.parse import parse_qsl

import msgspec

from mesh.errors import HeadersTooLarge, Malformed, MeshError, TooLarge
from mesh.streams import Intake, Source

Headers: TypeAlias = list[tuple[bytes, bytes]]
Lines: TypeAlias = Sequence[tuple[bytes, bytes]]

QUERY_BYTES_MAX: Final = 16_384
HEADER_COUNT_MAX: Final = 200

_log = logging.getLogger(__name__)
_later: Final[set[asyncio.Task[None]]] = set()


class Answer(msgspec.Struct, frozen=True, gc=False):
    """Status, headers without content-length, body; `stream` stands in place of the body."""

    status: int
    headers: Lines
    body: bytes = b""
    stream: Source | None = None


class Sink(Protocol):
    """Where an answer goes; what a Request needs of its connection."""

    disconnected: bool

    @property
    def task(self) -> asyncio.Task[Any]:
        """In which the request's route function runs; to be asked for there."""
        ...

    def answer(self, answer: Answer) -> None:
        """Write it; exactly once per request."""

    async def gone(self) -> None:
        """Return once the caller has hung up."""

    def left(self) -> bool:
        """Whether the caller has hung up, also where only its line can tell yet."""
        ...

    def let_go(self) -> None:
        """The request is no longer its task's, which goes on with something else: the server need not wait for that."""


Render: TypeAlias = Callable[[Exception], Answer]


def _unrendered(error: Exception) -> Answer:
    raise error


class Request(msgspec.Struct, eq=False):
    """One request. `headers` have lower-case names, in order, repeats kept; `first` has the first value of each.

    `intake` has the body, and `body` nothing, where its route opened one for it.
    """

    method: str
    raw_path: bytes
    query: bytes
    headers: Headers
    first: dict[bytes, bytes]
    sink: Sink
    body: bytes = b""
    intake: Intake | None = None
    render: Render = _unrendered

    def all(self, name: bytes) -> list[str]:
        """All values of `name` (lower case)."""
        if name not in self.first:
            return []
        return [value.decode("latin-1") for key, value in self.headers if key == name]

    def arguments(self) -> dict[str, str]:
        """Query arguments, decoded once. Raises Malformed on a repeated one or too many bytes."""
        if not self.query:
            return {}
        if len(self.query) > QUERY_BYTES_MAX:
            raise Malformed(f"the query is longer than {QUERY_BYTES_MAX} bytes", code="query_too_long")
        try:
            pairs = parse_qsl(self.query.decode("ascii"), keep_blank_values=True, errors="strict")
        except ValueError:
            raise Malformed("the query is not percent-encoded UTF-8", code="query_invalid") from None
        arguments = dict(pairs)
        if len(arguments) != len(pairs):
            raise Malformed("a query argument is given twice", code="query_invalid")
        return arguments

    async def gone(self) -> None:
        """Return once the caller has hung up."""
        await self.sink.gone()

    @property
    def hung_up(self) -> bool:
        """Whether it is known by now that nobody waits for the answer: one look at the line itself."""
        return self.sink.left()

    def answer(self, answer: Answer) -> None:
        """Answer now; the present task goes on with something that the caller does not wait for.

        Its route function returns None and does not raise any more, for the request is over.
        """
        sink = self.sink
        sink.let_go()
        sink.answer(answer)

    def later(self, answering: Coroutine[Any, Any, Answer], *, apart: bool = False) -> None:
        """Another task answers this request; its route function returns None.

        `apart`: the route function has something else to do first, which the server need not wait for.
        """
        if apart:
            self.sink.let_go()
        task = asyncio.get_running_loop().create_task(self._answer_later(answering))
        _later.add(task)
        task.add_done_callback(_later.discard)

    async def _answer_later(self, answering: Coroutine[Any, Any, Answer]) -> None:
        self.sink.answer(await self.rendered(answering))

    async def rendered(self, answering: Awaitable[Any]) -> Any:
        """What `answering` gives, or its error in the dialect of the route."""
        try:
            return await answering
        except MeshError as error:
            return self.render(error)
        except Exception as error:  # noqa: BLE001 - the last line before the socket; logged, never leaked
            _log.exception("unexpected error in %s %r", self.method, self.raw_path)
            return self.render(error)


Route: TypeAlias = Callable[[Request], Awaitable[Answer | None]]
Opener: TypeAlias = Callable[[Request], Intake | None]
Beginner: TypeAlias = Callable[[Request], None]


class HotRoute(msgspec.Struct, frozen=True):
    """A route function and how its errors look on the wire.

    `take`: opens the Intake for a body over `Routes.inline_bytes`, from what the head says; None: it stays in memory,
    up to `Routes.body_bytes_max`. Whoever may not send one is refused by it, before anything is kept.

    `begin`: the same as `run` without a task for the request, for one whose body is in memory; whoever has the answer
    gives it to `Request.sink`, now or later. Raises what `run` raises.
    """

    run: Route
    render: Render
    take: Opener | None = None
    begin: Beginner | None = None


class Routes(msgspec.Struct, frozen=True):
    """The hot routes of an application: `find(method, raw path)` names one, None leaves the request to the ASGI app."""

    find: Callable[[str, bytes], HotRoute | None]
    body_bytes_max: int
    header_bytes_max: int
    limit: str = "the limit of this server"
    inline_bytes: int = 0
    """Above this a route may take a body elsewhere than into memory; 0: none does."""


async def serve(route: HotRoute, request: Request) -> Answer | None:
    """The answer of `route`; errors in the dialect of the route."""
    request.render = route.render
    try:
        return await route.run(request)
    except Exception as error:  # noqa: BLE001 - as in Request.rendered
        return failed(route, request, error)


def failed(route: HotRoute, request: Request, error: Exception) -> Answer:
    """What `route` answers for an error of its own; an unexpected one is logged."""
    if not isinstance(error, MeshError):
        _log.error("unexpected error in %s %r", request.method, request.raw_path, exc_info=error)
    return route.render(error)


def check_head(headers: Headers, first: dict[bytes, bytes], routes: Routes, *, measure: bool, large: bool) -> None:
    """What a head may say. Raises HeadersTooLarge, TooLarge, Malformed on an encoded body.

    `measure`: False where less came from the socket than the headers may have. `large`: the body may be over the limit.
    """
    length = first.get(b"content-length")
    if length is not None and not large and int(length) > routes.body_bytes_max:
        raise too_large(routes)
    if first.get(b"content-encoding", b"identity") != b"identity":
        raise Malformed("send the body without Content-Encoding", code="encoding_not_supported")
    if first.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
        raise Malformed("send the body as it is, or chunked and nothing else", code="encoding_not_supported")
    size = sum([len(name) + len(value) for name, value in headers]) if measure else 0
    if size > routes.header_bytes_max or len(headers) > HEADER_COUNT_MAX:
        detail = f"the headers are larger than {routes.header_bytes_max} bytes or more than {HEADER_COUNT_MAX}"
        raise HeadersTooLarge(detail)


def too_large(routes: Routes) -> TooLarge:
    """The body is over the limit."""
    return TooLarge(f"the body is larger than {routes.body_bytes_max} bytes, {routes.limit}")
