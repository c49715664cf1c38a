"""The 201 of a start, and completions, as others send them. Case numbers are those of mesh/check/cases."""

import json
from typing import Any

import pytest

from mesh import wire
from mesh.clock import to_http_date, to_rfc3339
from mesh.errors import Malformed, ReplyInvalid

JSON = [(b"content-type", b"application/json")]
CAUSE = {"message": "disk full", "metadata": {"type": "app"}, "details": {"free": 0}}


def body_of(failure: dict[str, Any]) -> bytes:
    return wire.failure_json(failure)


# 201


@pytest.mark.parametrize("token", ["t", 'a "b" {c}', "x" * 4096])
def test_the_token_of_a_201(token: str) -> None:
    body = json.dumps({"token": token, "state": "running", "id": "old"}).encode()
    assert (
        wire.parse_started([(b"Content-Type", b"application/json; charset=utf-8")], body) == token
    )  # case 21


@pytest.mark.parametrize(
    ("headers", "body"),
    # Case 52.
    [([], b'{"token":"t","state":"running"}'), ([(b"content-type", b"text/plain")],
     b'{"token":"t","state":"running"}'),
     *((JSON, body) for body in (b"", b"x", b"[]", b"null", b'{"token":"t"}', b'{"state":"running"}',
      b'{"token":"t","state":"succeeded"}', b'{"token":"","state":"running"}',
      b'{"token":5,"state":"running"}',
      b'{"token":"a\\nb","state":"running"}', b'{"token":" t","state":"running"}',
      '{"token":"é","state":"running"}'.encode(),
      b'{"token":"a","token":"b","state":"running"}'))],
)  # fmt: skip
def test_a_bad_201(headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    with pytest.raises(ReplyInvalid) as caught:
        wire.parse_started(headers, body)
    assert caught.value.code == "started_invalid"


def test_a_token_over_the_limit_has_its_own_code() -> None:
    with pytest.raises(ReplyInvalid) as caught:
        wire.parse_started(JSON, json.dumps({"token": "x" * 4097, "state": "running"}).encode())
    assert caught.value.code == "token_too_long"  # case 86: fails the operation, other breaches are retried


# Completions


def completion_headers(state: bytes, *more: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    return [(b"token", b"m1.k.x"), (b"nexus-operation-state", state), *more]


def test_a_succeeded_completion() -> None:
    headers = completion_headers(
        b"succeeded",
        (b"nexus-operation-token", b"their token"),
        (b"nexus-operation-start-time", to_http_date(1_700_000_000_000).encode()),
        (b"nexus-operation-close-time", to_rfc3339(1_700_000_001_234).encode()),
        (b"nexus-link", b"<a>; type=x, <b>; type=y"),
        (b"nexus-link", b"<c>; type=z"),
        (b"content-type", b"image/png"),
    )
    completion = wire.parse_completion(headers, b"\x89PNG")
    assert completion.state == "succeeded"
    assert (completion.token, completion.operation_token) == ("m1.k.x", "their token")
    assert (completion.started_at_ms, completion.closed_at_ms) == (1_700_000_000_000, 1_700_000_001_234)
    assert [link.url for link in completion.links] == ["a", "b", "c"]
    assert (completion.content_type, completion.body, completion.failure) == ("image/png", b"\x89PNG", None)


def test_null_has_no_type_and_nothing_else_is_required() -> None:
    completion = wire.parse_completion([(b"nexus-operation-state", b"succeeded")], b"")
    assert completion == wire.Completion("succeeded", "", "", None, None, [], None, b"", None)  # cases 66, 76


@pytest.mark.parametrize("state", ["failed", "canceled"])
def test_both_shapes_of_an_unsuccessful_completion(state: Any) -> None:
    headers = completion_headers(state.encode(), *JSON)
    full = wire.operation_failure(state, "no", cause=CAUSE)
    for sent, read in (
        (full, full),
        (CAUSE, wire.operation_failure(state, "disk full", cause=CAUSE)),  # case 83
        (wire.operation_failure("failed", "no"), wire.operation_failure(state, "no")),
        ({}, wire.operation_failure(state, f"operation {state}", cause={})),
    ):
        completion = wire.parse_completion(headers, body_of(sent))
        assert (completion.state, completion.failure, completion.body) == (state, read, b"")


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([], b""),  # case 77
        *(
            (completion_headers(state), b"{}")
            for state in (b"", b"running", b"timed_out", b"Succeeded", b"\xff")
        ),
        (completion_headers(b"failed"), b"{}"),  # case 78
        (completion_headers(b"failed", (b"content-type", b"text/plain")), b"{}"),
        *(
            (completion_headers(b"canceled", *JSON), body)
            for body in (b"", b"x", b"5", b'{"message":5}', b'{"cause":[]}')
        ),
        (completion_headers(b"failed", *JSON), b'{"metadata":{"a":1}}'),
        (completion_headers(b"failed", *JSON), b'{"cause":{"cause":{"stackTrace":1}}}'),
        # Case 79.
        (completion_headers(b"succeeded", (b"nexus-operation-start-time", b"yesterday")), b""),
        (completion_headers(b"succeeded", (b"nexus-operation-start-time", b"2023-99-14T22:13:20Z")), b""),
        (
            completion_headers(
                b"succeeded", (b"nexus-operation-close-time", b"Tue, 14 Nov 2023 22:13:20 GMT")
            ),
            b"",
        ),
        (completion_headers(b"succeeded", (b"nexus-link", b"nonsense")), b""),
        (completion_headers(b"succeeded", (b"nexus-operation-token", b"x" * 4097)), b""),
        (completion_headers(b"succeeded", (b"nexus-operation-token", b"\xe9")), b""),
        (completion_headers(b"succeeded", (b"content-encoding", b"gzip")), b""),
    ],
)
def test_bad_completions(headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    with pytest.raises(Malformed):
        wire.parse_completion(headers, body)


def test_a_start_time_may_be_rfc3339_and_the_first_of_a_repeated_header_counts() -> None:
    headers = completion_headers(
        b"succeeded",
        (b"nexus-operation-start-time", b"2023-11-14T22:13:20Z"),
        (b"nexus-operation-state", b"failed"),
        (b"token", b"other"),
    )
    completion = wire.parse_completion(headers, b"")
    assert (completion.state, completion.token, completion.started_at_ms) == (
        "succeeded",
        "m1.k.x",
        1_700_000_000_000,
    )
