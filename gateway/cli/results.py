"""Results for people, printed or written to a file: of an operation, of a step or a child in its history.

Takes events as `/v1/operations/{id}/events` gives them. What they say comes from agents, so no URL of theirs is asked:
the path is made of what may stand in one.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from pathlib import Path
from typing import Any, Final

from gateway.cli.exits import Exit, Problem
from gateway.cli.show import Show
from gateway.cli.wire import Gateway

SHOWN_BYTES_MAX: Final = 8 << 20
"""A result above this is not for a terminal, nor for a pipe by accident."""
KEYS_SHOWN_MAX: Final = 20
_blob: Final = re.compile(r"/v1/operations/[0-9a-z-]{1,64}/blobs/[0-9a-f]{64}").fullmatch

Event = dict[str, Any]


def put_out(gateway: Gateway, show: Show, path: str, size: int, output: Path | None) -> None:
    """What is at `path`, to the file or printed. Raises Problem, and as Gateway.ask."""
    if output is not None:
        show.note(f"{gateway.download(path, output)} bytes written to {output}")
    elif size > SHOWN_BYTES_MAX:
        show.note(f"the result has {size} bytes; --output-file writes it to a file")
    else:
        found = gateway.ask("GET", path)
        show.result(found.body, found.headers.get("content-type"))


def key_of(event: Event) -> str:
    """How the journal calls a step or a child; "" for what is neither."""
    if event["type"] == "step":
        return f"{event.get('name', '')}#{event.get('n', '')}"
    return str(event.get("key", "")) if event["type"] == "child" else ""


def step_of(events: list[Event], key: str) -> Event:
    """The step or child that is called so. Raises Problem."""
    known = {key_of(event): event for event in events if key_of(event)}
    if key not in known:
        some = ", ".join(list(known)[:KEYS_SHOWN_MAX]) or "none so far"
        raise Problem(f"--step {key!r} is not in its history; there: {some}", exit_code=Exit.MISSING)
    return known[key]


def put_out_step(gateway: Gateway, show: Show, event: Event, output: Path | None) -> None:
    """The result of a step or a child. Raises Problem."""
    error: Any = event.get("error") or event.get("failure")
    key = key_of(event)
    if error:
        raise Problem(f"{key} has no result: {error.get('message', error)}", exit_code=Exit.FAILED)
    ref = event.get("result_dataref")
    if isinstance(ref, dict):
        url, size = str(ref.get("url")), ref.get("bytes")  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType, reportUnknownVariableType]
        if _blob(url) is None or not isinstance(size, int):
            raise Problem(f"what the entry of {key} refers to is kept by no mesh", exit_code=Exit.MISSING)
        put_out(gateway, show, url, size, output)
    elif event["type"] == "child" and not {"result", "result_base64"} & event.keys():
        put_out(gateway, show, f"/v1/operations/{event['id']}/result", 0, output)
    elif "result_preview" in event or "result_base64_preview" in event:
        size = event.get("result_bytes") or event.get("result_base64_bytes")
        detail = f"the result of {key} has {size} bytes in the journal, of which the history shows the beginning"
        raise Problem(detail, "Only what is larger than 256 KiB can be had by itself.", exit_code=Exit.MISSING)
    else:
        encoded = event.get("result_base64")
        is_bytes = isinstance(encoded, str)
        body = b64decode(encoded) if is_bytes else json.dumps(event.get("result"), ensure_ascii=False).encode()
        if output is None:
            show.result(body, "application/octet-stream" if is_bytes else "application/json")
            return
        try:
            output.write_bytes(body)
        except OSError as fault:
            raise Problem(f"{output} cannot be written: {fault.strerror}", "Name another --output-file.") from None
        show.note(f"{len(body)} bytes written to {output}")
