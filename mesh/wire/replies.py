"""What a handler says about an operation: the 201 of a start, and the completion it sends later.

Owns the form (P43, P50). Knows no operation: whether a token is genuine and an outcome still
possible is decided by mesh/tokens.py and the store.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias, cast

import msgspec

from mesh.errors import Malformed, ReplyInvalid
from mesh.wire.durations import parse_http_date, parse_rfc3339
from mesh.wire.failures import FAILURE_DEPTH_MAX, Failure, as_operation_failure, is_failure, unsuccessful
from mesh.wire.headers import RawHeaders, header, is_json_type
from mesh.wire.links import Link, parse_links
from mesh.wire.strict_json import READ_NS_MAX, load_json

OPERATION_TOKEN_BYTES_MAX: Final = 4096
"""Temporal's limit."""

_token = re.compile(r"[!-~](?:[\t -~]*[!-~])?").fullmatch

Terminal: TypeAlias = Literal["succeeded", "failed", "canceled"]


def parse_started(headers: RawHeaders, body: bytes) -> str:
    """The operation token of a 201.

    Raises ReplyInvalid: code `token_too_long` above OPERATION_TOKEN_BYTES_MAX, which no retry mends (case
    86), and `started_invalid` for every other breach (case 52): not JSON, state other than `running`, no
    token, or one that is not legal in a header.
    """
    if not is_json_type(header(headers, b"content-type")):
        raise ReplyInvalid("the 201 is not labelled application/json", code="started_invalid")
    try:
        value = load_json(body, ns_max=READ_NS_MAX)
    except Malformed as error:
        raise ReplyInvalid(f"the 201: {error.detail}", code="started_invalid") from None
    if not isinstance(value, dict):
        raise ReplyInvalid("the 201 is not a JSON object", code="started_invalid")
    info = cast("dict[str, Any]", value)
    if info.get("state") != "running":
        raise ReplyInvalid("the 201 has a state other than running", code="started_invalid")
    token = info.get("token")
    if not isinstance(token, str) or not token:
        raise ReplyInvalid("the 201 has no operation token", code="started_invalid")
    if len(token) > OPERATION_TOKEN_BYTES_MAX:
        raise ReplyInvalid(
            f"the operation token is longer than {OPERATION_TOKEN_BYTES_MAX} bytes", code="token_too_long"
        )
    if not _token(token):
        raise ReplyInvalid("the operation token is not legal in a header", code="started_invalid")
    return token


class Completion(msgspec.Struct, frozen=True, gc=False):
    """A completion as received. Times in milliseconds since the epoch, None when not sent.

    `token` is the completion token of the header `Token`, empty when absent; `operation_token` the
    handler's own. `body` and `content_type` are the result's, byte for byte, no type for null; empty when
    `failure` (always in the OperationError shape) is set.
    """

    state: Terminal
    token: str
    operation_token: str
    started_at_ms: int | None
    closed_at_ms: int | None
    links: list[Link]
    content_type: str | None
    body: bytes
    failure: Failure | None


def _failure(state: Literal["failed", "canceled"], content_type: bytes | None, body: bytes) -> Failure:
    if not is_json_type(content_type):
        raise Malformed("a failed or canceled completion is application/json", code="completion_invalid")
    value = load_json(body, FAILURE_DEPTH_MAX, ns_max=READ_NS_MAX)
    if not is_failure(value):
        raise Malformed(
            "a failed or canceled completion has a Nexus Failure as body", code="completion_invalid"
        )
    return as_operation_failure(state, value)


def parse_completion(headers: RawHeaders, body: bytes, first: Mapping[bytes, bytes] | None = None) -> Completion:
    """A request to the completion callback (P50 to P53, cases 76 to 79, 83); names in lower case (ASGI).

    The header's state rules; an OperationError body of another state is brought in line. Of a repeated header the first
    value counts, which `first` has where that is made already, links excepted. Raises Malformed on a missing, unknown
    or `running` state, a failure that is not JSON or no Failure, a bad start time (HTTP-date; RFC 3339 is accepted),
    close time (RFC 3339) or link, an operation token that is no header value or too long, and an encoded
    result, since only its type is kept.
    """
    if first is None:
        first = dict(reversed(headers))
    field = first.get
    state = field(b"nexus-operation-state", b"").decode("latin-1")
    started, closed = field(b"nexus-operation-start-time"), field(b"nexus-operation-close-time")
    operation_token = field(b"nexus-operation-token", b"").decode("latin-1")
    if operation_token and (len(operation_token) > OPERATION_TOKEN_BYTES_MAX or not _token(operation_token)):
        raise Malformed("Nexus-Operation-Token is too long or not visible ASCII", code="completion_invalid")
    content_type = field(b"content-type") or None
    links: list[str] = []
    if b"nexus-link" in first:
        links = [value.decode("latin-1") for name, value in headers if name == b"nexus-link"]
    failure: Failure | None = None
    if state != "succeeded":
        bad = unsuccessful(state)
        if bad is None:
            raise Malformed(
                "Nexus-Operation-State is not succeeded, failed or canceled", code="completion_invalid"
            )
        failure = _failure(bad, content_type, body)
        content_type, body = None, b""
    elif field(b"content-encoding", b"identity").lower() != b"identity":
        raise Malformed(
            "an encoded result cannot be kept; send it without Content-Encoding", code="completion_invalid"
        )
    return Completion(
        cast("Terminal", state),
        field(b"token", b"").decode("latin-1"),
        operation_token,
        _start_time(started.decode("latin-1")) if started else None,
        parse_rfc3339(closed.decode("latin-1")) if closed else None,
        parse_links(links) if links else [],
        content_type.decode("latin-1") if content_type else None,
        body,
        failure,
    )


def _start_time(text: str) -> int:
    # The spec says HTTP-date; senders that format both times alike write RFC 3339, known by its year and
    # hyphen.
    return parse_rfc3339(text) if text[4:5] == "-" else parse_http_date(text)
