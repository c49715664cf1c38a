"""What a start says to an agent: its target, its headers, and how long its sender waits. Pure.

What comes from its caller is a header that the pool checks; what the mesh says itself, ids and numbers, is lines that
are sound as they are made. Knows no instance and sends nothing.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from gateway.orders import LEASE_GRACE_MS
from gateway.payloads import transfer_ms
from mesh.pool import Lines, header_lines
from mesh.pool.target import under
from mesh.wire import format_duration, quote_segment
from mesh.wire.digests import digest_field
from registry.choice import CANARY

if TYPE_CHECKING:
    from mesh.store.verbs import Work

TOKEN_LIFE_S: Final = 400 * 86_400
"""From the dispatch of its attempt: longer than any timeout may be, which is a year."""


@lru_cache(maxsize=4096)
def start_path(url_path: bytes, service: str, operation: str, query: bytes) -> bytes:
    """The request target of a start below an instance's URL; the same few come again and again."""
    return under(url_path, f"/{quote_segment(service)}/{quote_segment(operation)}".encode(), query)


def patience_ms(work: Work, policy_ms: int) -> int:
    """What a start request may take, the sending of a large input aside."""
    head, request = work.head, work.request
    # The lease was measured at acceptance: a policy that has become more patient since must not outlast it, for
    # then the attempt would be given to somebody else while it is still out.
    lease_ms = head.lease_ms - LEASE_GRACE_MS - transfer_ms(request.data)
    timeout_ms = min(request.request_timeout_ms or policy_ms, lease_ms)
    return min(timeout_ms, _left_ms(work)) if head.close_by else timeout_ms


def _left_ms(work: Work) -> int:
    """Of an operation with a deadline, when the attempt was leased."""
    head = work.head
    return head.close_by - (head.start_at - head.lease_ms)


def start_lines(work: Work, timeout_ms: int, token: str) -> Lines:
    """The mesh's own; `token`: of the attempt. Raises Malformed for a content type that is no header's value."""
    head, request = work.head, work.request
    common = _common_lines(head.namespace, head.run, head.attempt, timeout_ms, request.content_type)
    own = (
        f"nexus-request-id: {work.id}.{head.run}\r\nnexus-callback-token: {token}\r\nmesh-operation-id: {work.id}\r\n"
    )
    if head.close_by:
        own += f"operation-timeout: {format_duration(_left_ms(work))}\r\n"
    if head.journal:
        own += f"mesh-journal: {work.journal}\r\n"
    if head.cancel_asked:
        own += "mesh-cancel-requested: 1\r\n"
    if head.pin[:1] == CANARY:
        own += "mesh-canary: 1\r\n"
    if request.data is not None:
        own += f"content-digest: {digest_field(request.data.sha256)}\r\n"
    return Lines(common + own.encode())


@lru_cache(maxsize=4096)
def _common_lines(namespace: str, run: int, attempt: int, timeout_ms: int, content_type: str | None) -> Lines:
    """What many starts say alike; nothing that their callers send on. Raises Malformed."""
    headers = [
        (b"request-timeout", b"%dms" % timeout_ms),
        (b"mesh-run", b"%d" % run),
        (b"mesh-attempt", b"%d" % attempt),
        (b"mesh-namespace", namespace.encode()),
    ]
    if content_type is not None:
        headers.append((b"content-type", content_type.encode("latin-1")))
    return header_lines(headers)


def start_headers(work: Work) -> list[tuple[bytes, bytes]]:
    """Its caller's."""
    request = work.request
    if not request.links:
        return request.headers
    return [*request.headers, *[(b"nexus-link", link.encode("latin-1")) for link in request.links]]
