"""The history's codes, words and JSON form."""

from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from mesh import events
from mesh.clock import from_rfc3339
from mesh.events import DETAIL, EventKind, to_json
from mesh.store.layout import Entry


class Stored(NamedTuple):
    code: int
    after_ms: int
    attempt: int
    detail: Any = None
    instance: str = ""


def test_codes_are_stored_and_never_move() -> None:
    assert {kind.name.lower(): kind.value for kind in EventKind} == {
        "accepted": 1, "dispatched": 2, "blocked": 3, "started": 4, "attempt_failed": 5, "attempt_lost": 6,
        "cancel_requested": 7, "cancel_delivered": 8, "cancel_failed": 9, "succeeded": 10, "failed": 11,
        "canceled": 12,
        "timed_out": 13, "callback_delivered": 14, "callback_failed": 15, "callback_dead": 16,
        "redelivered": 17, "suspended": 18, "refused": 19, "released": 30,
    }  # fmt: skip
    assert [kind.word for kind in EventKind if kind.terminal] == [
        "succeeded",
        "failed",
        "canceled",
        "timed_out",
    ]


def test_cloudevents_types() -> None:
    assert events.OPERATION_SUCCEEDED == EventKind.SUCCEEDED.cloud_type == "mesh.operation.succeeded.v1"
    assert events.OPERATION_FAILED == "mesh.operation.failed.v1"
    assert events.OPERATION_CANCELED == "mesh.operation.canceled.v1"
    assert events.OPERATION_TIMED_OUT == "mesh.operation.timed_out.v1"
    assert set(events.CLOUD_TYPES) == set(EventKind)


def test_an_event_as_json() -> None:
    assert to_json("00-a", 5, 1_700_000_000_000, Stored(5, 123, 2, "connection reset")) == {
        "seq": 5,
        "at": "2023-11-14T22:13:20.123Z",
        "type": "attempt_failed",
        "operation_id": "00-a",
        "attempt": 2,
        "error": "connection reset",
    }
    assert to_json("00-a", 3, 1_700_000_000_000, Stored(4, 123, 1, False, "i-1")) == {
        "seq": 3,
        "at": "2023-11-14T22:13:20.123Z",
        "type": "started",
        "operation_id": "00-a",
        "attempt": 1,
        "instance": "i-1",
    }


def test_the_stores_entry_reads_as_it_is() -> None:
    entry = msgspec.msgpack.decode(msgspec.msgpack.encode([3, 9, 0, "paused"]), type=Entry)
    assert to_json("00-a", 2, 0, entry)["reason"] == "paused"


def test_a_newer_gateways_event_stays_readable() -> None:
    event = to_json("00-a", 1, 0, Stored(99, 0, 1, "x"))
    assert (event["type"], event["detail"]) == ("event_99", "x")


def test_the_schema_is_one_and_rejects_what_is_not_an_event() -> None:
    schema = events.schema()
    Draft202012Validator.check_schema(schema)
    good = to_json("00-a", 1, 0, Stored(3, 0, 0, "paused"))
    validator = Draft202012Validator(schema)
    assert validator.is_valid(good)
    for change in ({"reason": "mood"}, {"type": "Nap"}, {"seq": 0}, {"attempt": -1}):
        assert not validator.is_valid(good | change)
    for name in ("seq", "at", "type", "operation_id", "attempt"):
        assert not validator.is_valid({key: value for key, value in good.items() if key != name})


validator = Draft202012Validator(events.schema())


@pytest.mark.parametrize("kind", EventKind)
@given(
    data=st.data(), seq=st.integers(1, 10**6), after_ms=st.integers(0, 10**10), attempt=st.integers(0, 10**4)
)
def test_every_event_fits_the_schema(
    kind: EventKind, data: Any, seq: int, after_ms: int, attempt: int
) -> None:
    detail: str | int | None = None
    if kind in DETAIL:
        words, numbers = DETAIL[kind][1].get("enum"), kind is EventKind.SUSPENDED
        some = st.sampled_from(words) if words else st.integers(0, 1 << 45) if numbers else st.text(max_size=20)
        detail = data.draw(st.none() | some)
    event = to_json("00-a", seq, 1_700_000_000_000, Stored(kind.value, after_ms, attempt, detail))
    validator.validate(event)
    assert from_rfc3339(event["at"]) == 1_700_000_000_000 + after_ms
