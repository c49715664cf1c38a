"""Which headers cross the mesh, idempotency keys, strict JSON. Case numbers are those of mesh/check/cases."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import wire
from mesh.errors import Malformed

DROPPED = (
    b"host content-length authorization cookie prefer idempotency-key x-forwarded-for x-forwarded-proto"
    b" forwarded nexus-request-id nexus-callback-token mesh-operation-id keep-alive te trailer"
    b" transfer-encoding upgrade proxy-authorization proxy-connection expect accept-encoding"
    b" request-timeout operation-timeout x-client-cert-subject content-type"
)


def test_what_reaches_the_agent() -> None:
    kept = [
        (b"traceparent", b"00-1-2-01"),  # case 93
        (b"x-team", b"blue"),
        (b"x-team", b'{"k": "\t"}'),
        (b"content-encoding", b"gzip"),
    ]
    dropped = [(name, b"1") for name in DROPPED.split()]  # the content type travels beside the input
    named = [(b"connection", b"close, X-Auth-User"), (b"x-auth-user", b"root"), (b"connection", b"x-other")]
    assert wire.caller_headers(dropped + kept + named + [(b"x-other", b"1")]).forwarded == kept  # case 92
    assert wire.caller_headers([]).forwarded == []


@pytest.mark.parametrize("value", [b"a\r\nX: y", b"\xff\xfe", b"a\x00", b"\x7f", "é".encode()])
def test_values_that_are_not_visible_ascii_are_refused(value: bytes) -> None:
    with pytest.raises(Malformed, match="x-note"):
        wire.caller_headers([(b"x-ok", b"1"), (b"x-note", value)])
    with pytest.raises(Malformed, match="x-note"):
        wire.caller_headers([(b"nexus-callback-x-note", value)])
    assert wire.caller_headers([(b"cookie", value)]).forwarded == []


def test_headers_have_a_size_limit() -> None:
    exact = [(b"x-%04d" % number, b"v" * 1018) for number in range(8)]
    assert sum(len(name) + len(value) for name, value in exact) == wire.FORWARDED_BYTES_MAX
    assert wire.caller_headers([*exact, (b"cookie", b"c" * 9000)]).forwarded == exact
    assert wire.caller_headers([*exact, (b"x-a", b"1"), (b"connection", b"x-a")]).forwarded == exact
    for filtered in (wire.caller_headers, wire.check_callback_headers):
        with pytest.raises(Malformed, match="8192"):
            filtered([*exact, (b"x", b"")])  # case 87


def test_callback_headers_lose_their_prefix_and_nothing_else() -> None:
    token = b'{"v":1,"d":"abc=="}'  # case 74: Temporal's token, quotes and braces
    raw = [
        (b"content-type", b"application/json"),
        (b"nexus-callback-token", token),
        (b"nexus-callback-temporal-callback-token", token),
        (b"nexus-callback-authorization", b"Bearer x"),
    ]
    expected = [(b"token", token), (b"temporal-callback-token", token), (b"authorization", b"Bearer x")]
    assert wire.caller_headers(raw).callback == expected  # case 64
    assert wire.caller_headers([]).callback == []


@pytest.mark.parametrize(
    "name",
    # S19: what would break the framing or speak for the mesh.
    ["Host", "Content-Length", "Content-Type", "Transfer-Encoding", "TE", "Trailer", "Connection",
     "Keep-Alive", "Upgrade",
     "Expect", "Proxy-Authorization", "Webhook-Id", "webhook-signature", "Nexus-Operation-State",
     "Nexus-Link", "ce-id",
     "Mesh-Run", "", "a b", "a:", "a\r\nb", "ä"],
)  # fmt: skip
def test_reserved_callback_headers_are_refused(name: str) -> None:
    with pytest.raises(Malformed) as caught:
        wire.caller_headers([(b"nexus-callback-" + name.encode(), b"x")])
    assert caught.value.code == "callback_header_invalid"


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([], ""),
        ([(b"nexus-request-id", b"5a7f-1")], "5a7f-1"),
        ([(b"idempotency-key", b'"5a7f-1"')], "5a7f-1"),
        ([(b"idempotency-key", b" bare-1 ")], "bare-1"),
        ([(b"idempotency-key", b'"a\\"b\\\\c"')], 'a"b\\c'),
        ([(b"idempotency-key", b'"k"'), (b"nexus-request-id", b"k"), (b"idempotency-key", b"k")], "k"),
        ([(b"nexus-request-id", b'"k"')], '"k"'),
        ([(b"nexus-request-id", b"k" * 255)], "k" * 255),
    ],
)
def test_idempotency_keys(headers: list[tuple[bytes, bytes]], key: str) -> None:
    assert wire.caller_headers(headers).key == key


@pytest.mark.parametrize(
    "headers",
    [
        [(b"nexus-request-id", b"a"), (b"idempotency-key", b"b")],
        [(b"idempotency-key", b"a"), (b"idempotency-key", b"A")],
        *(
            [(b"idempotency-key", value)]
            for value in (b"", b'""', b'"a', b'"a"b', b'"a";p=1', b"a b", b"\xe9", b"k" * 256)
        ),
        [(b"nexus-request-id", b"")],
    ],
)
def test_bad_idempotency_keys(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(Malformed) as caught:
        wire.caller_headers(headers)
    assert caught.value.code == "idempotency_key_invalid"


# Strict JSON (S24)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a":1}x', "not JSON"),
        (b"\xef\xbb\xbf1", "not JSON"),
        ('{"a":1}'.encode("utf-16"), "UTF-8"),
        (b'"\xff"', "UTF-8"),
        (b'"\xed\xa0\x80"', "UTF-8"),
        (b"NaN", "NaN"),
        (b"[-Infinity]", "NaN"),
        (b"1e999", "double"),
        (b"[" + b"9" * 400 + b".0]", "double"),
        (b"9" * 5000, "digits"),
        (b'{"a":1,"a":2}', "duplicate"),
        (b'[{"a":1,"\\u0061":2}]', "duplicate"),
        (b'"\\ud800"', "surrogate"),
        (b'{"\\uDC00\\ud83d":1}', "surrogate"),
        (b'"\\\\\\u0000"', "NUL"),
        (b'"a\x00"', "not JSON"),
        (b"[" * 201 + b"]" * 201, "nested"),
        (b'{"a":' * 100 + b"[" * 101 + b"1" + b"]" * 101 + b"}" * 100, "nested"),
        (b"[" * 100_000, "nested"),
    ],
)
def test_json_that_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why) as caught:
        wire.check_json(body)
    assert caught.value.code == "json_invalid"


@pytest.mark.parametrize(
    "body",
    [b"null", b" {} ", b"1e-999", b'"\\ud83d\\ude00"', b'"\\\\ud800 \\\\u0000"', b"[" * 200 + b"]" * 200,
     b"[" + b"[]," * 300 + b"[]]", b'"' + b"[" * 300 + b'"', json.dumps("é\u2028",
     ensure_ascii=False).encode()],
)  # fmt: skip
def test_json_that_passes(body: bytes) -> None:
    wire.check_json(body)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4)
)


@given(values, st.booleans())
def test_every_ordinary_value_is_strict_json(value: object, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert wire.load_json(text.encode()) == value


@given(st.binary(max_size=30) | st.text('[]{}",:\\u0d8e19-+.aNI \n', max_size=30).map(str.encode))
def test_any_bytes_are_json_or_malformed(body: bytes) -> None:
    try:
        wire.check_json(body)
    except Malformed:
        return
    json.loads(body)
