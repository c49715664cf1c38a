"""What a callback to a caller looks like, and what the receiver's answer means. Pure.

Two forms: `nexus` (P81) and `cloudevents` (structured or binary mode). Both carry the Standard Webhooks
headers, signed with the secret of the caller's namespace; `webhook-id` is the same on every try (P84).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec
from cloudevents.core.bindings.http import to_binary
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from gateway.answers import retry_after_ms
from gateway.outcomes import all_links, callback_parts, encode_json, record_fields, trace_headers
from mesh.clock import now_ms, to_http_date, to_rfc3339
from mesh.edge import Headers
from mesh.events import EventKind
from mesh.machine import STATES, State
from mesh.pool import Reply
from mesh.store.layout import DataRef, Outcome, Request, decode_outcome
from mesh.store.verbs import Work
from mesh.streams import Source
from mesh.tokens import WebhookSigning, sign_webhook
from mesh.wire.digests import CONTENT_DIGEST, digest_field

NEXUS: Final = "nexus"
CLOUDEVENTS: Final = "cloudevents"
CLOUDEVENTS_BINARY: Final = "cloudevents-binary"
FORMATS: Final = (NEXUS, CLOUDEVENTS, CLOUDEVENTS_BINARY)

_NEXUS_FINAL: Final = frozenset({400, 401, 403, 404, 409, 501})
"""P85: the receiver will never take it, or has it already; dead and visible, never retried."""
_CLOUD_FINAL: Final = frozenset({410})
_TYPES: Final = {
    State.SUCCEEDED.value: EventKind.SUCCEEDED.cloud_type,
    State.FAILED.value: EventKind.FAILED.cloud_type,
    State.CANCELED.value: EventKind.CANCELED.cloud_type,
    State.TIMED_OUT.value: EventKind.TIMED_OUT.cloud_type,
}
_STRUCTURED: Final = (b"content-type", b"application/cloudevents+json")
_format: Final = JSONFormat()


class Sending(msgspec.Struct, frozen=True, gc=False):
    """One try of a callback. Where `data` is set the body is that payload of `operation_id`, and yet to be signed."""

    headers: Headers
    body: bytes
    data: DataRef | None = None


class CallbackPlan(NamedTuple):
    """What sending needs beside the record: the webhook secret of each namespace, the public URL of this gateway."""

    secrets: Mapping[str, str]
    public_url: str


class Verdict(NamedTuple):
    """`final`: no further try makes sense."""

    delivered: bool
    final: bool
    detail: str
    retry_after_ms: int


_DELIVERED: Final = Verdict(delivered=True, final=True, detail="", retry_after_ms=0)


def operation_link(public_url: str, operation_id: str) -> str:
    """`Nexus-Link` to an operation (P10)."""
    return f'<{public_url}/v1/operations/{operation_id}>; type="mesh.Operation"'


def callback_request(work: Work, plan: CallbackPlan) -> Sending:
    """The headers and body of one try; signature and timestamp are of now."""
    operation_id, head, request = work.id, work.head, work.request
    data: DataRef | None = None
    outcome = decode_outcome(work.extra)
    if request.callback_format == NEXUS:
        headers, body = _nexus(work, outcome, plan)
        data = outcome.data
    else:
        headers, body = _cloud_event(work, outcome, plan)
        headers += request.callback_headers
    headers += _trace(request)
    secret = plan.secrets.get(head.namespace)
    if secret is not None and data is None:
        headers += sign_webhook(secret, f"{operation_id}.{head.run}", now_ms() // 1000, body)
    return Sending(headers, body, data)


async def sign_large(sending: Sending, work: Work, plan: CallbackPlan, payload: Source) -> Headers:
    """The headers of a try with `payload` as its body, read once for its signature. Raises BlobMissing, BlobCorrupt."""
    secret = plan.secrets.get(work.head.namespace)
    if secret is None:
        return sending.headers
    signing = WebhookSigning(secret, f"{work.id}.{work.head.run}", now_ms() // 1000)
    async for piece in payload.chunks():
        signing.update(piece)
    return [*sending.headers, *signing.headers()]


def _nexus(work: Work, outcome: Outcome, plan: CallbackPlan) -> tuple[Headers, bytes]:
    operation_id, head, request = work.id, work.head, work.request
    body, content_type = callback_parts(head, outcome)
    headers: Headers = [
        *request.callback_headers,
        (b"nexus-operation-token", operation_id.encode()),
        (b"nexus-operation-state", STATES[head.state].nexus.encode()),
        (b"nexus-operation-start-time", to_http_date(head.created_at).encode()),
        (b"nexus-operation-close-time", to_rfc3339(head.closed_at).encode()),
        (b"nexus-link", operation_link(plan.public_url, operation_id).encode()),
        (b"mesh-operation-id", operation_id.encode()),
    ]
    headers += all_links(work.links, outcome)
    if content_type is not None:
        headers.append((b"content-type", content_type))
    if outcome.data is not None:
        headers.append((CONTENT_DIGEST, digest_field(outcome.data.sha256).encode()))
    return headers, body


def _cloud_event(work: Work, outcome: Outcome, plan: CallbackPlan) -> tuple[Headers, bytes]:
    operation_id, head, request = work.id, work.head, work.request
    # The same bytes on every try, for the id is the same: what the tries themselves move is left out, or as of the end.
    record = record_fields(operation_id, head, request, outcome, work.journal, started=work.links)
    del record["events"]
    record["updated_at"] = record["closed_at"]
    attributes = {
        "id": f"{operation_id}.{head.run}",
        "source": f"/namespaces/{head.namespace}/endpoints/{request.endpoint}",
        "type": _TYPES[head.state],
        "specversion": "1.0",
        "subject": operation_id,
        "time": record["closed_at"],
        "datacontenttype": "application/json",
    }
    if outcome.data is not None:
        # The event's data is the record, which refers to the result: a receiver may drop the one and fetch the other.
        attributes["dataref"] = f"{plan.public_url}/v1/operations/{operation_id}"
        record["result_dataref"]["url"] = f"{attributes['dataref']}/result"
    if request.callback_format == CLOUDEVENTS:
        # Not by the package, which takes 20 us to check the names above; the tests read the events with it.
        return [_STRUCTURED], encode_json({**attributes, "data": record})
    event = CloudEvent({**attributes, "time": datetime.fromtimestamp(head.closed_at / 1000, UTC)})
    headers = to_binary(event, _format).headers
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()], encode_json(record)


def _trace(request: Request) -> Headers:
    """The caller's trace context, as the agent got it, unless the callback headers bring their own."""
    trace = trace_headers(request)
    if not trace or not request.callback_headers:
        return trace
    own = {name for name, _ in request.callback_headers}
    return [one for one in trace if one[0] not in own]


def judge_callback(callback_format: str, reply: Reply) -> Verdict:
    """What the receiver's status means for the delivery (P85)."""
    if 200 <= reply.status < 300:  # noqa: PLR2004
        return _DELIVERED
    final = reply.status in (_NEXUS_FINAL if callback_format == NEXUS else _CLOUD_FINAL)
    return Verdict(
        delivered=False,
        final=final,
        detail=f"the receiver answered {reply.status}",
        retry_after_ms=retry_after_ms(reply),
    )
