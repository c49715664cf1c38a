"""Completions on their way out: the outcome of a call that was answered 201 (P50).

`deliver` repeats until somebody answers for good; `complete` is for handlers that hand out tokens of their own.
Knows nothing of runs: what to send and where is given.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from nexusrpc import HandlerError, Link, OperationError

from mesh import trace
from mesh.agent.codec import Codec
from mesh.agent.context import Home, running
from mesh.agent.inbound import MESH_CALLBACK, Callback, destination_of, merged, sound_callback_headers
from mesh.agent.outcome import Outcome, digested, linked, raised, succeeded
from mesh.clock import now_ms, sleep, to_http_date, to_rfc3339
from mesh.errors import Conflict, Gone, MeshError, NotFound, PeerFault, Refusal, ReplyTimeout, Unauthenticated
from mesh.ids import jittered
from mesh.pool import POOL_CLOSED, Pool, Reply, Target
from mesh.streams import Source
from mesh.wire import RawHeader, failure_json, load_json, operation_failure
from mesh.wire.digests import CONTENT_DIGEST

RETRY_FIRST_MS: Final = 200
RETRY_MAX_MS: Final = 10_000
RETRY_SPREAD: Final = 0.2
RETRY_AFTER_MAX_MS: Final = 3_600_000
"""What a receiver may ask for; more is taken for this."""
RETRY_FOR_MS: Final = 24 * 3_600_000
"""After a day nobody waits, and the result no longer fills the agent's memory."""
TIMEOUT_S: Final = 10.0
SLOWEST_BYTES_PER_S: Final = 4 << 20
"""A result that is streamed has its time for that on top (P393)."""
REPLY_BYTES_MAX: Final = 64 << 10
FINAL: Final = frozenset({400, 401, 403, 404, 409, 410, 501})
"""Answers that no repetition changes: refused, or delivered before (P50 to P52)."""
FINAL_ELSEWHERE: Final = frozenset({409, 410})
"""Of those, what another gateway of the mesh knows of an operation. It may be one of another mesh, by mistake: its 401
or 404 says nothing about the gateway that asked."""

logger: Final = logging.getLogger("mesh.agent")

_anything: Final = Codec(Any)


def _home() -> Home | None:
    """The host of the handler that this code was started by, if it was."""
    here = running.get(None)
    return None if here is None else here.home


def completion_of(outcome: Outcome, operation_token: str, started_at_ms: int) -> tuple[list[RawHeader], bytes]:
    """Headers (without the caller's) and body that report an outcome. The close time is now.

    A handler error that came after the 201 has no form of its own here: the operation failed, with it as the cause.
    """
    state = "failed" if outcome.state == "error" else outcome.state
    body = outcome.body
    headers = [header for header in outcome.headers if header[0] in (b"content-type", b"nexus-link", CONTENT_DIGEST)]
    if outcome.state == "error":
        cause = load_json(outcome.body)
        headers = [(b"content-type", b"application/json")]
        body = failure_json(operation_failure("failed", cause["message"], cause=cause))
    headers += [
        (b"nexus-operation-state", state.encode()),
        (b"nexus-operation-start-time", to_http_date(started_at_ms).encode()),
        (b"nexus-operation-close-time", to_rfc3339(now_ms()).encode()),
    ]
    if operation_token:
        headers.append((b"nexus-operation-token", operation_token.encode("latin-1")))
    return headers, body


def traced(headers: list[RawHeader], callback: Callback, context: Mapping[str, str]) -> list[RawHeader]:
    """With a trace context, unless the caller's callback headers bring one."""
    if not context or any(name == b"traceparent" for name, _ in callback.headers):
        return headers
    return [*headers, *merged(context)]


async def deliver(
    pool: Pool,
    callback: Callable[[], Callback],
    headers: list[RawHeader],
    body: bytes | Source,
    *,
    others: Sequence[Target] = (),
    retry_for_ms: int = RETRY_FOR_MS,
) -> int:
    """Post until 2xx or an answer in FINAL; that status.

    Raises ReplyTimeout when `retry_for_ms` is over, NotSent when the pool is closed.

    `callback` is asked before every try: a later attempt of the same call may have brought a new token. `others` are
    base URLs of further gateways of the mesh, tried when the one that asked does not answer.
    """
    give_up_at_ms = now_ms() + retry_for_ms
    delay_ms = RETRY_FIRST_MS
    timeout_s = TIMEOUT_S if isinstance(body, bytes) else TIMEOUT_S + body.size / SLOWEST_BYTES_PER_S
    while True:
        to = callback()
        destinations = [(to.target, to.target.path)]
        if to.gateway is not None and others:
            path = MESH_CALLBACK.encode()
            destinations += [(base, base.under(path)) for base in others if base.origin != to.target.origin]
        trouble, not_before_ms = "", 0
        for target, path in destinations:
            try:
                reply = await pool.post(
                    target, path, [*to.headers, *headers], body, timeout_s=timeout_s, reply_bytes_max=REPLY_BYTES_MAX
                )
            except PeerFault as fault:
                if fault.code == POOL_CLOSED:
                    raise  # the agent has ended; whoever waits here would keep its process from ending
                trouble = fault.detail
                continue
            final = FINAL if target is to.target else FINAL_ELSEWHERE
            if reply.status in final or 200 <= reply.status < 300:  # noqa: PLR2004
                return reply.status
            trouble = f"{target.origin} answered {reply.status}"
            not_before_ms = max(not_before_ms, min(_retry_after_ms(reply), RETRY_AFTER_MAX_MS))
        pause_ms = max(jittered(delay_ms, RETRY_SPREAD), not_before_ms)
        if now_ms() + pause_ms >= give_up_at_ms:
            raise ReplyTimeout(f"the completion was not taken: {trouble}")
        logger.info("a completion is not taken yet: %s", trouble)
        await sleep(pause_ms / 1000)
        delay_ms = min(delay_ms * 2, RETRY_MAX_MS)


async def complete(
    callback_url: str,
    token: str,
    result: Any = None,
    *,
    error: OperationError | HandlerError | None = None,
    operation_token: str = "",
    headers: Mapping[str, str] | None = None,
    started_at_ms: int | None = None,
    links: Sequence[Link] = (),
    retry_for_s: float = RETRY_FOR_MS / 1000,
) -> None:
    """Report the outcome of an operation that a handler started with `StartOperationResultAsync`.

    callback_url     `ctx.callback_url` of the start
    token            the completion token, `ctx.callback_headers["token"]`; "" where the caller sent none, or `headers`
                     have it
    result           a pydantic model, dataclass or builtin value; bytes go as octet-stream, None as null
    error            instead of a result: OperationError for failed or canceled, HandlerError for failed
    operation_token  the handler's own token, the one of its StartOperationResultAsync
    headers          further callback headers, e.g. all of `ctx.callback_headers`
    started_at_ms    when the work began, milliseconds since the epoch; default now
    links            what the work was, for the caller

    Returns when the caller took it, also as a duplicate of what it knows. Repeats faults and 5xx for `retry_for_s`,
    then raises ReplyTimeout; NotSent (code `pool_closed`) once the agent has ended. Raises Unauthenticated, NotFound,
    Conflict (another outcome stands), Gone, Refusal as the caller answered, Malformed for a URL or headers that cannot
    be sent, Undecodable for a result that is not JSON.
    """
    target, gateway = destination_of(callback_url)
    replayed = [one for one in merged(headers) if not token or one[0] != b"token"] if headers else []
    if token:
        replayed.append((b"token", token.encode("latin-1")))
    destination = Callback(callback_url, target, sound_callback_headers(replayed), token, gateway)
    outcome = succeeded(_anything, result) if error is None else raised(error, "complete")
    host = _home()
    operation_token = operation_token if host is None else host.outer(operation_token)
    if links:
        outcome = linked(outcome, links)
    if outcome.blob is not None:
        outcome = await digested(outcome)
    head, body = completion_of(outcome, operation_token, now_ms() if started_at_ms is None else started_at_ms)
    head = traced(head, destination, trace.outgoing())
    # Its host's pool serves the host's own loop only.
    pool = host.pool if host is not None and host.loop is asyncio.get_running_loop() else None
    own = Pool() if pool is None else pool
    try:
        sent, for_ms = outcome.blob or body, int(retry_for_s * 1000)
        status = await deliver(own, lambda: destination, head, sent, retry_for_ms=for_ms)
    finally:
        if own is not pool:
            await own.close()
    if status in FINAL:
        kinds: dict[int, type[MeshError]] = {401: Unauthenticated, 404: NotFound, 409: Conflict, 410: Gone}
        raise kinds.get(status, Refusal)(f"{target.origin} refused the completion with {status}")


def _retry_after_ms(reply: Reply) -> int:
    value = (reply.header(b"retry-after") or b"").decode("latin-1")
    return int(value) * 1000 if value.isascii() and value.isdigit() and len(value) < 7 else 0  # noqa: PLR2004
