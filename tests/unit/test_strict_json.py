"""P185: what hostile JSON costs is known before it is read, and what need not be read is only looked at."""

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mesh import wire
from mesh.errors import Malformed
from mesh.wire.strict_json import nested_deeper

SIZE = 1 << 19
LONG = b" " * wire.CHEAP_BYTES


def many(unit: bytes) -> bytes:
    return b"[" + b",".join([unit] * ((SIZE - 2) // (len(unit) + 1))) + b"]"


SHAPES = {
    "objects": many(b"{}"),
    "lists": many(b"[]"),
    "towers": many(b"[" * 190 + b"]" * 190),
    "towers of objects": many(b'{"":' * 190 + b"1" + b"}" * 190),
    "members": b"{" + b",".join(b'"%x":1' % number for number in range(SIZE // 10)) + b"}",
    "numbers": many(b"1.5"),
    "long numbers": many(b"9" * 4_300),
    "escapes": many(b'"\\ud83d\\ude00"'),
}


def took_s(read: Any, body: bytes) -> float:
    best_s = float("inf")
    for _ in range(3):
        begin_s = time.thread_time()
        read(body)
        best_s = min(best_s, time.thread_time() - begin_s)
    return best_s


class TestCost:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_what_is_costly_is_known_beforehand(self, shape: str) -> None:
        """Against a text of the same length: by the machine's own measure, for machines differ."""
        body = SHAPES[shape]
        text = json.dumps("x" * (SIZE - 2)).encode()
        assert not wire.costly(text)
        dear = took_s(wire.check_json, body) / took_s(wire.check_json, text)
        estimated = wire.reading_ns(body) / wire.reading_ns(text)
        assert estimated > dear / 10, "as a cheap text it would be read on the event loop"
        assert wire.costly(SHAPES[shape] * 4), "four times that is what a body may have"

    def test_a_short_text_is_read_at_once(self) -> None:
        assert wire.reading_ns(b"[" * wire.CHEAP_BYTES) == 0

    def test_a_bound_refuses_unread(self) -> None:
        with pytest.raises(Malformed, match="too many values") as caught:
            wire.load_json(b"[" * SIZE, ns_max=wire.READ_NS_MAX)
        assert caught.value.code == "json_invalid"

    def test_looking_is_cheaper_than_reading(self) -> None:
        body = SHAPES["towers"]
        assert wire.readable_json(body)
        assert took_s(wire.readable_json, body) * 3 < took_s(wire.check_json, body)


nests = st.recursive(
    st.sampled_from(["1", '""', '"]["', '"\\"["', '"\\\\"', '"\\\\\\"{"', "[]", "{}"]),
    lambda inner: st.lists(inner, max_size=4).map(lambda many: f"[{','.join(many)}]")
    | inner.map(lambda one: f'{{"[\\"": {one}}}'),
    max_leaves=40,
)


def levels(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(levels, value), default=0) if isinstance(value, list) else 0


@given(nests)
@example("[[[]],[[[[]]]],[]]")
@example("[{}]")
def test_depth_is_exact(text: str) -> None:
    deep = levels(json.loads(text))
    assert not nested_deeper(text.encode(), deep)
    assert deep == 0 or nested_deeper(text.encode(), deep - 1)


NUMBERS = ["1e307", "1e308", "1e309", "1E+999", "1e-999", "9" * 308, "9" * 310 + ".5", "9" * 5_000, '"1e999"', "1e0309"]


OTHERS = ['"\\ud800"', '"\\ud83d\\ude00"', "NaN", "{", '"é"', '{"a":1,"a":2}', "1e5 2"]


@pytest.mark.parametrize("text", [*NUMBERS, *OTHERS])
def test_a_long_text_is_readable_when_a_short_one_is(text: str) -> None:
    """What is only looked at is judged as if it had been read."""
    short, long = text.encode(), text.encode() + LONG
    try:
        msgspec.json.decode(short)
    except (msgspec.DecodeError, UnicodeDecodeError):
        assert not wire.readable_json(short)
        assert not wire.readable_json(long)
    else:
        assert wire.readable_json(short)
        assert wire.readable_json(long)


def test_what_spoils_a_reader_is_not_readable() -> None:
    assert not wire.readable_json(b"[" * 201 + b"]" * 201)
    assert not wire.readable_json(b'"\xff"' + LONG)
    assert not wire.readable_json(b"[1e999," + SHAPES["lists"] * 4 + b"]"), "not worth finding out"
    assert wire.readable_json(b'["1e999",' + SHAPES["lists"] + b"]")


pieces = st.sampled_from(["\\ud800", "\\uDBff", "\\udc00", "\\uDFFF", "\\\\", "\\u0041", "a", '\\"', "ud800"])


@given(st.lists(pieces, max_size=8).map("".join))
def test_lone_surrogates_are_found_in_the_text(inner: str) -> None:
    text = f'"{inner}"'
    try:
        json.loads(text).encode()
    except UnicodeEncodeError:
        with pytest.raises(Malformed, match="surrogate"):
            wire.check_json(text.encode())
    else:
        wire.check_json(text.encode())


keys = st.sampled_from(['""', '":"', '"a"', '"a:"', '"é"', '"\\u0061"', '"\\\\"'])
leaves = st.sampled_from(["1", "-0", "1e2", "1.50", "9" * 30, "9" * 310, "true", "null", "nul", '"\x01"', '"::"'])
objects = st.recursive(
    leaves | keys,
    lambda inner: st.lists(inner, max_size=3).map(lambda many: f"[{' , '.join(many)}]")
    | st.lists(st.tuples(keys, inner), max_size=3).map(
        lambda members: "{" + ",".join(f"{key} : {value}" for key, value in members) + "}"
    ),
    max_leaves=12,
)


def read(body: bytes) -> tuple[str, str]:
    """The value with its types, or what was wrong, but for the place."""
    try:
        return "value", repr(wire.load_json(body))
    except Malformed as error:
        return "refused", error.detail.partition(": line")[0]


@given(objects)
@example('{"a":1,"a":2}')
@example('{"a":{"a":1},"b":{"a":1}}')
@example('{":":1,"a":"b",":":2}')
@example("[" * 201 + "]" * 201)
@example("\ufeff1")
def test_a_short_text_is_read_as_a_long_one(text: str) -> None:
    """P64: the quick way through short ones without escapes lets nothing else pass, and gives the same."""
    short = text.encode()
    assert read(short) == read(short + LONG)
