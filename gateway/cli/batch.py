"""`mesh batch`: start the operations that a file lists, a line each."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, NamedTuple

import typer

from gateway.cli.exits import Exit, Problem
from gateway.cli.options import ApiKey, Json, Url
from gateway.cli.show import Show
from gateway.cli.wire import Gateway, Unreached
from mesh.clock import pause
from mesh.errors import MeshError, TooMany, Unavailable
from mesh.ids import secret_bytes

PART_LINES_MAX: Final = 10_000
PART_BYTES_MAX: Final = 32 << 20
LINE_BYTES_MAX: Final = 16 << 20
TRIES: Final = 5
TRY_AGAIN_S: Final = 1.0
TIMEOUT_S: Final = 60.0
REFUSALS_SHOWN_MAX: Final = 20


class Part(NamedTuple):
    """Some lines of the file; the first one's number, from 1."""

    number: int
    first: int
    body: bytes


def batch(
    file: Annotated[str, typer.Argument(metavar="FILE", help="NDJSON, one start a line; - for standard input.")],
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="KEY", help="Repeated with the same file, it starts nothing twice. [made up]"),
    ] = None,
    *,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Start many operations: each line is the body of a start, with an `idempotency_key` if you like.

    Every line is accepted or refused by itself, and durable when its outcome is there; what got lost is sent again.
    Lines without a key of their own have one made of --key and their number. With --json the outcomes are printed, one
    a line. Ends with 1 when a line was refused.

    \b
    Examples:
      mesh batch orders.ndjson --key orders-2026-11-23
      jq -c '{endpoint: "greeter", service: "greeter", operation: "greet", input: .}' names.json | mesh batch -
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    given, key = key, key or secret_bytes(12).hex()
    accepted = replayed = 0
    refused: list[dict[str, Any]] = []
    with _open(file) as source, Gateway(url, api_key) as gateway:
        for part in parts(source):
            for outcome in _send(gateway, part, key, show):
                outcome["line"] += part.first - 1
                if as_json:
                    print(json.dumps(outcome, ensure_ascii=False), flush=False)
                if "problem" in outcome:
                    refused.append(outcome)
                accepted += "id" in outcome
                replayed += bool(outcome.get("replayed"))
    if not accepted and not refused:
        raise Problem(f"{file} has no line", "Give one JSON object a line, such as `mesh call` would send.")
    again = f", {replayed} of them before" if replayed else ""
    show.line(f"{accepted} accepted{again}, {len(refused)} refused")
    for one in refused[:REFUSALS_SHOWN_MAX]:
        show.note(f"line {one['line']}: {one['problem'].get('detail')}")
    if refused:
        more = len(refused) - REFUSALS_SHOWN_MAX
        raise Problem(
            f"{len(refused)} of {accepted + len(refused)} lines were refused" + (f" ({more} more)" if more > 0 else ""),
            "Mend those lines and send the file again" + (" with the same --key." if given else f" with --key {key}."),
            exit_code=Exit.FAILED,
            code="lines_refused",
        )


def _open(file: str) -> BinaryIO:
    if file == "-":
        return sys.stdin.buffer
    try:
        return Path(file).open("rb")
    except OSError as fault:
        raise Problem(f"{file} cannot be read: {fault.strerror}") from None


def parts(source: BinaryIO) -> Iterator[Part]:
    """The file in bodies within the bounds of a batch; no more than one of them is held. Raises Problem."""
    lines: list[bytes] = []
    size, first, number, at = 0, 1, 1, 0
    while line := source.readline(LINE_BYTES_MAX + 1):
        at += 1
        if len(line) > LINE_BYTES_MAX:
            raise Problem(f"line {at} is larger than {LINE_BYTES_MAX} bytes")
        if lines and (len(lines) == PART_LINES_MAX or size + len(line) > PART_BYTES_MAX):
            yield Part(number, first, b"".join(lines))
            lines, size, first, number = [], 0, at, number + 1
        lines.append(line)
        size += len(line)
    if b"".join(lines).strip():
        yield Part(number, first, b"".join(lines))


def _send(gateway: Gateway, part: Part, key: str, show: Show) -> list[dict[str, Any]]:
    """The outcomes of a part. Keys make a repeat safe, so what got lost is sent again."""
    headers = {"content-type": "application/x-ndjson", "idempotency-key": f"{key}.{part.number}"}
    for left in reversed(range(TRIES)):
        try:
            reply = gateway.ask(
                "POST", "/v1/operations/batch", body=part.body, headers=headers, timeout_s=TIMEOUT_S
            )
            return [json.loads(line) for line in reply.body.splitlines()]
        except (Unavailable, TooMany) as error:
            if not left or (isinstance(error, Unreached) and not error.sent):
                raise _with_key(error, key) from None
            show.note(f"{error.detail}; sending lines {part.first} and on again")
            pause(TRY_AGAIN_S)
    raise AssertionError  # the last try returns or raises


def _with_key(error: MeshError, key: str) -> MeshError:
    more: dict[str, Any] = {"sent": error.sent} if isinstance(error, Unreached) else {"code": error.code}
    return type(error)(f"{error.detail}. Repeat with --key {key}: nothing is started twice", **more)
