"""Failures as we write them and as others send them. Case numbers are those of mesh/check/cases."""

import json
from typing import Any

import nexusrpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import wire
from mesh.errors import Malformed

JSON = [(b"content-type", b"application/json")]
CAUSE = {"message": "disk full", "metadata": {"type": "app"}, "details": {"free": 0}}


def body_of(failure: dict[str, Any]) -> bytes:
    return wire.failure_json(failure)


# Handler errors


def test_the_table_is_the_reference_sdks() -> None:
    for kind in nexusrpc.HandlerErrorType:  # cases 32 to 42
        assert nexusrpc.HandlerError("x", type=kind).retryable is wire.retryable_by_default(kind.value)
    assert {*wire.HANDLER_ERRORS, wire.UNKNOWN} == {kind.value for kind in nexusrpc.HandlerErrorType}
    assert all(wire.handler_error_type(status) == kind for kind, (status, _) in wire.HANDLER_ERRORS.items())


@pytest.mark.parametrize("kind", wire.HANDLER_ERRORS)
@pytest.mark.parametrize("override", [None, True, False])
def test_what_we_write_reads_back(kind: str, override: bool | None) -> None:
    status, by_default = wire.HANDLER_ERRORS[kind]
    body = body_of(wire.handler_failure(kind, "no", retryable=override, cause=CAUSE, stack_trace="at x"))
    headers = wire.headers_for_handler_error(kind, retryable=override)
    sent = json.loads(body)
    assert sent["metadata"] == {"type": "nexus.HandlerError"}
    assert sent["details"] == {"type": kind} | ({} if override is None else {"retryableOverride": override})
    retryable = by_default if override is None else override
    assert (b"nexus-request-retryable", b"true" if retryable else b"false") in headers  # case 43
    assert wire.parse_handler_failure(status, headers, body) == (kind, "no", retryable, sent)


def test_the_body_beats_the_status_and_the_header() -> None:
    body = body_of(wire.handler_failure("BAD_REQUEST", "no"))
    headers = [*JSON, (b"nexus-request-retryable", b"true")]
    assert wire.parse_handler_failure(500, headers, body)[:3] == ("BAD_REQUEST", "no", False)  # case 48
    unheard = body_of(wire.handler_failure("TEAPOT", ""))
    assert wire.parse_handler_failure(400, JSON, unheard)[:3] == ("TEAPOT", "TEAPOT", True)


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [(400, "BAD_REQUEST", False), (404, "NOT_FOUND", False), (409, "CONFLICT", False), (429,
     "RESOURCE_EXHAUSTED", True),
     (503, "UNAVAILABLE", True), (520, "UPSTREAM_TIMEOUT", True), (501, "NOT_IMPLEMENTED", False),
     (204, "UNKNOWN", True), (302, "UNKNOWN", True), (422, "UNKNOWN", True), (502, "UNKNOWN", True)],
)  # fmt: skip
@pytest.mark.parametrize(
    ("headers", "body", "cause"),
    [
        ([], b"", None),
        ([(b"content-type", b"text/plain")], b"went \xff wrong", {"message": "went \ufffd wrong"}),
        (JSON, b"{broken", {"message": "{broken"}),
        (JSON, b"[1]", {"message": "[1]", "details": [1]}),
        (
            JSON,
            b'{"detail":"Not Found"}',
            {"message": '{"detail":"Not Found"}', "details": {"detail": "Not Found"}},
        ),
        (JSON, b'{"message":5}', {"message": '{"message":5}', "details": {"message": 5}}),
        (JSON, body_of(CAUSE), CAUSE),
        # Case 50: HandlerError without details, and with details of the wrong kind.
        (JSON, b'{"metadata":{"type":"nexus.HandlerError"}}', {"metadata": {"type": "nexus.HandlerError"}}),
        (
            [(b"content-type", b"application/json; charset=utf-8")],
            b'{"metadata":{"type":"nexus.HandlerError"},"details":{"type":""}}',
            {"metadata": {"type": "nexus.HandlerError"}, "details": {"type": ""}},
        ),
    ],
)
def test_an_answer_without_type_is_typed_by_its_status(
    *,
    status: int,
    kind: str,
    retryable: bool,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
    cause: dict[str, Any] | None,
) -> None:
    found = wire.parse_handler_failure(status, headers, body, "Reason")  # cases 49, 53
    # A Failure of another kind speaks for itself; the words of proxies and frameworks are only the cause.
    assert found[:3] == (kind, "disk full" if cause == CAUSE else f"{status} Reason", retryable)
    assert found.failure["details"] == {"type": kind}
    assert found.failure.get("cause") == cause


def test_without_a_typed_body_the_older_header_decides() -> None:
    for said, retryable in ((b"false", False), (b"True", True), (b"maybe", True)):
        found = wire.parse_handler_failure(503, [(b"Nexus-Request-Retryable", said)], b"")
        assert found.retryable is retryable
        assert found.failure["details"].get("retryableOverride") == {b"false": False, b"True": True}.get(said)


def test_causes_survive_three_deep_and_long_texts_are_cut() -> None:
    deep = wire.handler_failure("INTERNAL", "1", cause={"message": "2", "cause": {"message": "3", "cause": CAUSE}})
    assert wire.parse_handler_failure(500, JSON, body_of(deep)).failure == deep  # case 46
    found = wire.parse_handler_failure(502, [(b"content-type", b"text/html")], "é".encode() * 5000)
    assert found.failure["cause"] == {"message": "é" * 1024}


def test_failures_are_written_as_utf8_whatever_stands_in_them() -> None:
    assert body_of({"message": "é\ud800\r\n"}) == '{"message":"é?\\r\\n"}'.encode()
    assert wire.handler_failure("INTERNAL", "x", metadata={"type": "mine", "k": "v"})["metadata"] == {
        "type": "nexus.HandlerError",
        "k": "v",
    }


def test_a_deep_failure_becomes_text_and_stays_readable_when_wrapped() -> None:
    for levels, kept in ((100, True), (101, False), (5000, False)):
        body = b'{"details":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"
        found = wire.parse_handler_failure(500, JSON, body)
        wrapped = wire.as_operation_failure("failed", found.failure)
        wire.check_json(body_of(wrapped))
        assert ("details" in found.failure["cause"]) is kept


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["message", "metadata", "details", "cause", "type", "state", "stackTrace"]), inner
        )
    ),
    max_leaves=12,
)


@given(st.integers(100, 599), json_like.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=20))
def test_no_body_breaks_the_readers(status: int, body: bytes) -> None:
    found = wire.parse_handler_failure(status, JSON, body)
    assert wire.is_failure(found.failure)
    assert wire.load_json(body_of(found.failure))["details"]["type"] == found.type
    outcome = wire.parse_operation_error([*JSON, (b"nexus-operation-state", b"canceled")], body)
    assert outcome is not None
    assert outcome.failure["details"]["state"] == outcome.state
    completed = [*JSON, (b"nexus-operation-state", b"failed")]
    try:
        completion = wire.parse_completion(completed, body)
    except Malformed:
        return
    assert completion.failure is not None
    assert completion.failure["details"]["state"] == "failed"


# 424


@pytest.mark.parametrize("state", ["failed", "canceled"])
def test_an_outcome_is_found_in_body_or_header(state: Any) -> None:
    full = wire.operation_failure(state, "no", cause=CAUSE)
    headers = wire.headers_for_operation_error(state)
    assert headers == [*JSON, (b"nexus-operation-state", state.encode())]  # cases 44, 45
    assert wire.parse_operation_error(headers, body_of(full)) == (state, full)
    assert wire.parse_operation_error(JSON, body_of(full)) == (state, full)  # case 51
    old = wire.parse_operation_error(headers, body_of(CAUSE))
    assert old == (state, wire.operation_failure(state, "disk full", cause=CAUSE))
    text = wire.parse_operation_error([(b"nexus-operation-state", state.encode())], b"sorry")
    assert text == (state, wire.operation_failure(state, "sorry", cause={"message": "sorry"}))
    stateless = full | {"details": {"note": 1}}
    assert wire.parse_operation_error(headers, body_of(stateless)) == (
        state,
        full | {"details": {"note": 1, "state": state}},
    )


@pytest.mark.parametrize("headers", [[], [(b"nexus-operation-state", b"succeeded")], [(b"nexus-operation-state", b"")]])
def test_an_outcome_without_state_is_a_protocol_error(headers: list[tuple[bytes, bytes]]) -> None:
    for failure in (CAUSE, wire.handler_failure("INTERNAL", "x"), wire.operation_failure("running", "x")):  # pyright: ignore[reportArgumentType]
        assert wire.parse_operation_error([*headers, *JSON], body_of(failure)) is None  # case 51


def test_the_body_decides_when_body_and_header_disagree() -> None:
    outcome = wire.parse_operation_error(
        wire.headers_for_operation_error("failed"), body_of(wire.operation_failure("canceled", "x"))
    )
    assert outcome is not None
    assert outcome.state == "canceled"
