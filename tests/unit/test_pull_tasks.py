"""A task of a frame is put together by hand; what it says is what specs/openapi.json calls a TaskBody."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.orders import fetched_head, fresh_head
from gateway.pull.frames import TaskBody, task_json
from mesh.clock import to_rfc3339
from mesh.machine import Kind
from mesh.store.layout import DataRef, Request
from mesh.store.verbs import Accepted, Start, Work

NOW_MS = 1_790_000_000_123
TOKEN = "m1.k.00-operation.1.3.1890000000.0123456789abcdef"
JSON = "application/json"


def task(body: bytes = b'{"n":1}', content_type: str | None = JSON, **fields: Any) -> TaskBody:
    """What an agent reads; `fields` of the head or of the request."""
    request = Request("work", 'Svc "x"\\', "op ü\n", content_type)
    head = fresh_head(Start("00-operation", "tëam", "e-1", "", "", "g1.s-1"), Accepted(NOW_MS, 1, "", fetched=True))
    head = fetched_head(head, "i-1", 30_000)
    head.attempt = 3
    for name, value in fields.items():
        setattr(request if name in Request.__struct_fields__ else head, name, value)
    raw = task_json(Work("00-operation", Kind.START, head, request, body, 7), TOKEN, 30_000, NOW_MS)
    return msgspec.json.decode(raw, type=TaskBody)


def expected(**fields: Any) -> TaskBody:
    """The same for certain."""
    given: dict[str, Any] = {"input": msgspec.Raw(b'{"n":1}')}
    return TaskBody(
        task_token=TOKEN, operation_id="00-operation", namespace="tëam", service='Svc "x"\\', operation="op ü\n",
        run=1, attempt=3, lease_ms=30_000, journal=7, **(given | fields),
    )  # fmt: skip


def test_names_are_escaped_and_json_stands_as_it_is() -> None:
    assert task() == expected()
    assert task(b' [ 1 , "\xc3\xbc" ] ').input == msgspec.Raw(b'[ 1 , "\xc3\xbc" ]')


@pytest.mark.parametrize(
    ("body", "content_type", "fields"),
    [
        (b"", None, {}),
        (b"", JSON, {"input_base64": "", "content_type": JSON}),
        (b"{", JSON, {"input_base64": "ew==", "content_type": JSON}),
        (b"\xff", JSON, {"input_base64": "/w==", "content_type": JSON}),
        (b"hi", None, {"input_base64": "aGk="}),
        (b"hi", 'text/"x"', {"input_base64": "aGk=", "content_type": 'text/"x"'}),
        (b"1", "Application/JSON; charset=utf-8", {"input": b"1", "content_type": "Application/JSON; charset=utf-8"}),
    ],
)
def test_what_is_not_simply_json(body: bytes, content_type: str | None, fields: dict[str, Any]) -> None:
    found = fields.get("input", msgspec.UNSET)
    more = fields | {"input": msgspec.Raw(found) if isinstance(found, bytes) else found}
    assert task(body, content_type) == expected(**more)


def test_a_large_input_is_a_reference() -> None:
    read = task(b"", JSON, data=DataRef("file", "ab" * 32, 5_000_000))
    assert read.dataref is not None
    assert (read.dataref["url"], read.dataref["bytes"]) == ("/v1/operations/00-operation/input", 5_000_000)
    assert (read.content_type, read.input, read.input_base64) == (JSON, msgspec.UNSET, None)


def test_headers_links_and_a_cancel() -> None:
    headers = [(b"x-a", b"1"), (b"x-a", b'"\xe9'), (b"x-b", b"2")]
    read = task(headers=headers, links=["<l>", "<m>"], cancel_asked=1)
    assert read == expected(headers={"x-a": '1, "é', "x-b": "2", "nexus-link": "<l>, <m>"}, cancel=True)


@pytest.mark.parametrize(
    ("ends", "left_ms"),
    [
        ({"close_by": 900}, 900),
        ({"finish_by": 40}, 40),
        ({"close_by": 900, "finish_by": 40}, 40),
        ({"close_by": -1}, 0),
    ],
)
def test_the_earlier_end_is_its_deadline(ends: dict[str, int], left_ms: int) -> None:
    by = {name: NOW_MS + ms for name, ms in ends.items()}
    assert task(**dict[str, Any](by)) == expected(deadline=to_rfc3339(min(by.values())), timeout_ms=left_ms)
