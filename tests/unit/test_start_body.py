"""What is said of a body that is no start: where, and what there is (P63)."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.json import encode

from gateway.auth import Auth
from gateway.cli.exits import problem_of
from gateway.settings import Settings
from gateway.start_body import read_start
from mesh.errors import Malformed, Unauthenticated, Unprocessable
from mesh.wire.strict_json import load_json

START = {"endpoint": "a1", "service": "s", "operation": "o"}


def refused(**fields: Any) -> Unprocessable:
    with pytest.raises(Unprocessable) as caught:
        read_start(encode(START | fields))
    assert caught.value.code == "body_invalid"
    return caught.value


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"labels": {"a": 1}}, "/labels/a"),
        ({"labels": {"a": "x", "b/~": None, "c": 1}}, "/labels/b~1~0"),
        ({"labels": {"a": "x", "b": {}}}, "/labels/b"),
        ({"callback": {"url": "u", "headers": {"x": "y", "z": [1]}}}, "/callback/headers/z"),
        ({"labels": {"l" * 129: 1}}, "/labels"),
        ({"labels": {str(n): 0 if n == 9_999 else "" for n in range(10_000)}}, "/labels"),
        ({"labels": 1}, "/labels"),
        ({"delay_ms": "1s"}, "/delay_ms"),
    ],
)
def test_where(fields: dict[str, Any], pointer: str) -> None:
    """In the detail too: commands and clients show only that. Of what is too long, not which member."""
    error = refused(**fields)
    assert error.errors[0]["pointer"] == pointer
    assert error.detail.endswith(f" at {pointer}")


def test_what_there_is() -> None:
    error = refused(inputs=1, schedule_to_close=5)
    assert "unknown field `inputs` (there are endpoint, service, operation, input, callback," in error.detail
    assert error.detail.endswith("(and 1 more)")
    assert problem_of(error).detail == f"{error.detail} (/: Object contains unknown field `schedule_to_close`)"
    error = refused(timeouts={"schedule_to_close": 5})
    assert "(there are schedule_to_close_ms, schedule_to_start_ms, " in error.detail
    assert error.detail.endswith(" at /timeouts")
    assert problem_of(error).detail == error.detail


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', "the JSON has a duplicate key: 'b'"),
        (b"", "not JSON: there is nothing"),
        (b" \n", "not JSON: there is nothing"),
    ],
)
def test_no_json(body: bytes, detail: str) -> None:
    """P64."""
    with pytest.raises(Malformed) as caught:
        load_json(body)
    assert (caught.value.detail, caught.value.code) == (detail, "json_invalid")


def test_where_a_key_comes_from() -> None:
    """Whoever runs an agent or a client sends no headers."""
    auth = Auth(Settings.model_validate({"namespaces": [{"name": "a1", "keys": ["k" * 16]}]}))
    with pytest.raises(Unauthenticated, match="MESH_KEY"):
        auth.authenticate([])
