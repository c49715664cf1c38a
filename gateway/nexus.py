"""The Nexus surface: start, cancel, completion callback, and the legacy reads of older clients. HTTP in, thin.

Names are taken from the raw path and decoded once (P1); errors are Nexus Failure JSON in both shapes, and
faults of the gateway itself carry `Mesh-Failure-Source: gateway`.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from gateway.callbacks import operation_link
from gateway.nexus_faults import render
from gateway.operations import Order
from gateway.outcomes import GATEWAY, encode_json, nexus_answer, running_answer
from gateway.payloads import DIGESTS, check_told
from gateway.wishes import NO_WISHES, SELDOM, wishes_of
from mesh.clock import monotonic_s
from mesh.edge import Answer, HotRoute, Request
from mesh.errors import Malformed, NotFound, Unauthenticated
from mesh.wire import (
    caller_headers,
    check_operation,
    check_service,
    failure_json,
    handler_failure,
    headers_for_handler_error,
    parse_completion,
    parse_duration_ms,
    parse_prefer,
    split_path,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from gateway.auth import Auth
    from gateway.operations import Operations, Placed
    from mesh.blobs.spool import Spooled
    from mesh.machine import State
    from mesh.store.layout import Outcome
    from mesh.streams import Intake

PREFIX: Final = b"/nexus/endpoints/"
CALLBACK_PATH: Final = b"/nexus/callback"
CARRIED_BYTES_MAX: Final = 65_536
"""A longer result is not kept a second time, in the request, while a slow receiver takes it."""
_TAKEN: Final = Answer(200, [])
PATH_BYTES_REMEMBERED_MAX: Final = 512
MARGIN_SHARE: Final = 0.1
MARGIN_MS_MAX: Final = 50
"""P14: with `Request-Timeout` the 201 leaves a margin before the caller's patience ends."""


@lru_cache(maxsize=4096)
def _segments(raw_path: bytes) -> tuple[str, ...]:
    """The names on the path, checked; the same few paths come again and again."""
    segments = split_path(raw_path, PREFIX)
    if len(segments) >= 4 and segments[2] and segments[3]:  # noqa: PLR2004
        check_service(segments[2])
        check_operation(segments[3])
    return tuple(segments)


class NexusSurface:
    """Route functions; `find` names the one for a request."""

    def __init__(
        self,
        operations: Operations,
        auth: Auth,
        *,
        public_url: str,
        wait_default_ms: int,
        wait_max_ms: int,
    ) -> None:
        self._operations = operations
        self._auth = auth
        self._public_url = public_url
        self._wait_default_ms = wait_default_ms
        self._wait_max_ms = wait_max_ms
        self._wait_unasked_ms = min(wait_default_ms, wait_max_ms)
        self._call = HotRoute(self.call, render, self._take_input)
        self._callback = HotRoute(self.callback, render, self._take_result)

    def find(self, method: str, raw_path: bytes) -> HotRoute | None:
        """Every method under the endpoints' prefix is answered here, wrong ones too: as Failure JSON."""
        if raw_path.startswith(PREFIX):
            return self._call
        if raw_path == CALLBACK_PATH:
            return self._callback
        return None

    def _take_input(self, request: Request) -> Intake | None:
        """A start may have a large body (P390), from whoever may start at all."""
        if request.method != "POST" or len(_segments.__wrapped__(request.raw_path)) != 4:  # noqa: PLR2004
            return None
        return self._operations.payloads.take_input(request, self._auth.authenticate(request.headers).namespace)

    def _take_result(self, request: Request) -> Intake | None:
        """A result may be large, of whoever has the token of an attempt."""
        if request.first.get(b"nexus-operation-state") != b"succeeded":
            return None
        self._operations.check_token(request.first.get(b"token", b"").decode("latin-1"))
        return self._operations.payloads.take_result(request)

    def call(self, request: Request) -> Coroutine[Any, Any, Answer | None]:
        """`/{endpoint}/services/{service}/{operation}[/cancel|/result|/{token}/cancel]`."""
        known = len(request.raw_path) <= PATH_BYTES_REMEMBERED_MAX
        segments = _segments(request.raw_path) if known else _segments.__wrapped__(request.raw_path)
        if len(segments) < 4 or segments[1] != "services":  # noqa: PLR2004
            raise NotFound(
                "the path is /nexus/endpoints/{endpoint}/services/{service}/{operation}", code="unknown_route"
            )
        endpoint, _, service, operation = segments[:4]
        rest = segments[4:]
        if request.method == "POST":
            if not rest:
                return self.start(request, endpoint, service, operation)
            if rest == ("cancel",):
                return self.cancel(request, "")
            if len(rest) == 2 and rest[1] == "cancel":  # noqa: PLR2004
                return self.cancel(request, rest[0])
        elif request.method == "GET":
            if not rest:
                return self.info(request)
            if rest == ("result",):
                return self.result(request)
        else:
            raise Malformed(f"{request.method} has no meaning here; use POST", code="method_not_supported")
        raise NotFound("there is no such route below an operation", code="unknown_route")

    async def start(self, request: Request, endpoint: str, service: str, operation: str) -> Answer | None:
        """Start an operation; 200 or 424 when the outcome comes within the wait, else 201 (P10 to P12)."""
        principal = self._auth.authenticate(request.headers, request.first)
        if not service or not operation:
            raise NotFound("service and operation names are not empty", code="unknown_operation")
        arguments = request.arguments()
        callback_url = arguments.get("callback", "")
        wait_ms = self._wait_ms(request, told=bool(callback_url))
        headers = caller_headers(request.headers)
        first = request.first
        content_type = first.get(b"content-type")
        timeout = first.get(b"operation-timeout")
        close_ms = parse_duration_ms(timeout.decode("latin-1")) if timeout else None
        plain = SELDOM.isdisjoint(first)
        wishes = NO_WISHES if plain else wishes_of(first)
        later = wishes.later
        if later is not None and later.left_ms() >= wait_ms:
            wait_ms = 0
        large: Spooled | None = None
        if request.intake is not None:
            large = await request.intake.finish()
        elif not plain and not DIGESTS.isdisjoint(first):
            check_told(first, request.body)
        if content_type is None and (request.body or large is not None):
            content_type = b"application/octet-stream"
        placed = await self._operations.start(
            Order(
                principal.namespace,
                endpoint,
                service,
                operation,
                content_type.decode("latin-1") if content_type else None,
                request.body,
                headers.key,
                headers.forwarded,
                callback_url=callback_url,
                callback_headers=headers.callback,
                close_ms=close_ms or 0,
                links=headers.links,
                priority=wishes.priority,
                later=later,
                parent=wishes.parent,
                large=large,
                pin=wishes.pin,
            ),
            wait=wait_ms > 0,
        )
        if callback_url and placed.first is not None and b"request-timeout" in first and b"prefer" not in first:
            placed.first.brief = True
        mine = placed.attempt
        if wait_ms <= 0 and mine is not None:
            request.answer(self._running(placed))
            await self._operations.send(mine, request)
            return None
        wait_s = wait_ms / 1000
        until_s = monotonic_s() + wait_s
        conclude = partial(self._conclude, request, placed, until_s)
        open_still = (
            self._operations.park(placed.first, wait_s, request, partial(self._at_once, placed), conclude)
            if mine is None
            else await self._operations.carry(mine, wait_s, request, conclude)
        )
        return await conclude() if open_still else None

    def _at_once(self, placed: Placed) -> Answer | None:
        """What a start is answered whose outcome is here."""
        ending = self._operations.ending_here(placed)
        return None if ending is None else self._ended(placed, ending.state, ending.outcome, placed.agent_links)

    async def _conclude(self, request: Request, placed: Placed, until_s: float) -> Answer:
        """What a start is answered, at the latest then."""
        answer = self._at_once(placed)
        if answer is not None:
            return answer
        known = await self._operations.first_outcome(placed, max(until_s - monotonic_s(), 0), request.gone)
        if known is None or known.outcome is None:
            return self._running(placed)
        answer, data = self._ended(placed, known.state, known.outcome, known.links), known.outcome.data
        return answer if data is None else await self._operations.payloads.answering(answer, request, placed.id, data)

    def _ended(self, placed: Placed, state: State, outcome: Outcome, links: Sequence[str]) -> Answer:
        link = operation_link(self._public_url, placed.id).encode()
        answer = nexus_answer(placed.id, state, outcome, link, links, first=True)
        if placed.replayed or placed.quota:
            answer = replace(answer, headers=[*answer.headers, *placed.told])
        return answer

    def _running(self, placed: Placed) -> Answer:
        link = operation_link(self._public_url, placed.id).encode()
        return running_answer(placed.id, link, placed.agent_links, placed.told)

    def _wait_ms(self, request: Request, *, told: bool) -> float:
        # Request-Timeout is a bound, not a wish. Temporal sends 10 s with every start and counts the requests that are
        # out, so who is `told` by callback gets the 201 early; without a callback the answer is all there is.
        first = request.first
        timeout = first.get(b"request-timeout")
        if timeout is None and b"prefer" not in first:
            return self._wait_unasked_ms
        prefer = request.all(b"prefer")
        wait_ms: float = self._wait_default_ms
        if prefer:
            preference = parse_prefer(prefer)
            if preference.wait_s is not None:
                wait_ms = preference.wait_s * 1000
            elif preference.respond_async:
                wait_ms = 0
        if timeout is not None:
            patience_ms = parse_duration_ms(timeout.decode("latin-1"))
            if patience_ms is not None:
                patience_ms -= min(patience_ms * MARGIN_SHARE, MARGIN_MS_MAX)
                wait_ms = min(wait_ms, patience_ms) if prefer or told else patience_ms
        return min(wait_ms, self._wait_max_ms)

    async def cancel(self, request: Request, path_token: str) -> Answer:
        """202, repeats and ended operations too. The header's token wins over the query's (case 56)."""
        principal = self._auth.authenticate(request.headers, request.first)
        token = self._named(request, path_token)
        await self._operations.cancel(token, principal.namespace)
        return Answer(202, [(b"mesh-operation-id", token.encode())])

    @staticmethod
    def _token(request: Request) -> str:
        token = request.first.get(b"nexus-operation-token")
        return token.decode("latin-1") if token else request.arguments().get("token", "")

    def _named(self, request: Request, path_token: str = "") -> str:
        """The operation that a request is about. Raises Malformed when it names none."""
        token = self._token(request) or path_token
        if not token:
            raise Malformed("give the operation token in Nexus-Operation-Token or ?token=", code="token_missing")
        return token

    async def result(self, request: Request) -> Answer:
        """Legacy: 200/424 when it ended, 412 while it runs, 408 when the wait is over (case 95)."""
        principal = self._auth.authenticate(request.headers, request.first)
        wait = request.arguments().get("wait", "")
        wait_ms = min(parse_duration_ms(wait) or 0, self._wait_max_ms)
        token = self._named(request)
        known = await self._operations.result(token, principal.namespace, wait_ms / 1000, request.gone)
        if known.state.terminal and known.outcome is not None:
            link = operation_link(self._public_url, token).encode()
            answer = nexus_answer(token, known.state, known.outcome, link, known.links, first=False)
            if known.outcome.data is None:
                return answer
            return await self._operations.payloads.answering(answer, request, token, known.outcome.data)
        if wait_ms:
            failure = handler_failure("REQUEST_TIMEOUT", "the operation still runs; ask again")
            return Answer(408, [GATEWAY, *headers_for_handler_error("REQUEST_TIMEOUT")], failure_json(failure))
        failure = handler_failure("CONFLICT", "the operation still runs", retryable=True)
        return Answer(412, [GATEWAY, (b"content-type", b"application/json")], failure_json(failure))

    async def info(self, request: Request) -> Answer:
        """Legacy: `{token, state}`."""
        principal = self._auth.authenticate(request.headers, request.first)
        token = self._named(request)
        known = await self._operations.get(token, principal.namespace)
        body = encode_json({"id": token, "token": token, "state": known.state.nexus})
        return Answer(200, [(b"content-type", b"application/json")], body)

    async def callback(self, request: Request) -> Answer | None:
        """A completion from an agent; the completion token is the whole proof (P52)."""
        if request.method != "POST":
            raise Malformed(f"{request.method} has no meaning here; use POST", code="method_not_supported")
        token = request.first.get(b"token")
        if token is None:
            raise Unauthenticated("the header Token is missing", code="token_missing")
        large = None
        if request.intake is not None:
            large = await request.intake.finish()
        elif not DIGESTS.isdisjoint(request.first):
            check_told(request.first, request.body)
        completion = parse_completion(request.headers, request.body, request.first)
        about = request.first.get(b"mesh-operation-id", b"")
        owed = await self._operations.complete(
            token.decode("latin-1"), completion, about=about.decode("latin-1"), large=large,
            calls_back=len(request.body) <= CARRIED_BYTES_MAX,
        )  # fmt: skip
        if owed is None:
            return _TAKEN
        request.answer(_TAKEN)
        await self._operations.call_back(owed, request)
        return None
