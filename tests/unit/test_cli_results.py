"""What `mesh operation result --step` makes of a history: what agents wrote there is asked for nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.cli.exits import Problem
from gateway.cli.results import key_of, put_out_step, step_of
from gateway.cli.show import Show
from gateway.cli.wire import Gateway

SHA256 = "0" * 64
STEP = {"type": "step", "name": "one", "n": 1}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"error": {"message": "it broke"}}, "one#1 has no result: it broke"),
        ({"result_preview": "[1, ", "result_bytes": 5000}, "5000 bytes in the journal"),
        ({"result_dataref": {"url": f"@elsewhere/v1/operations/00-a/blobs/{SHA256}", "bytes": 1}}, "kept by no mesh"),
        ({"result_dataref": {"url": "/v1/operations/00-a/cancel", "bytes": 1}}, "kept by no mesh"),
        ({"result_dataref": {"url": f"/v1/operations/00-a/blobs/{SHA256}"}}, "kept by no mesh"),
    ],
)
def test_what_it_does_not_ask_for(fields: dict[str, Any], said: str) -> None:
    """Nobody listens there: a request would be another error."""
    with Gateway("http://127.0.0.1:9", "key") as gateway, pytest.raises(Problem, match=said):
        put_out_step(gateway, Show(as_json=False), {**STEP, **fields}, None)


def test_what_stands_in_the_entry(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    with Gateway("http://127.0.0.1:9", "") as gateway:
        put_out_step(gateway, Show(as_json=False), {**STEP, "result": {"a": "ä"}}, None)
        put_out_step(gateway, Show(as_json=False), {**STEP, "result_base64": "AP8="}, tmp_path / "bytes")
    assert capsysbinary.readouterr().out == '{"a": "ä"}\n'.encode()
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"


def test_the_last_of_a_name_counts_and_others_are_told() -> None:
    events = [{"type": "accepted"}, {**STEP, "tries": 1}, {**STEP, "tries": 2}, {"type": "child", "key": "lint#1"}]
    assert [key_of(event) for event in events] == ["", "one#1", "one#1", "lint#1"]
    assert step_of(events, "one#1")["tries"] == 2
    with pytest.raises(Problem, match=r"'two#1' is not in its history; there: one#1, lint#1"):
        step_of(events, "two#1")
