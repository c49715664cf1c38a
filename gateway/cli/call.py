"""`mesh call`: its options, and the request that they make. How it is sent and waited for is calling.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from gateway.cli.calling import Calling
from gateway.cli.exits import Problem
from gateway.cli.options import ApiKey, Json, Labels, Url, check_seconds, check_url, pairs, read_json, read_key
from gateway.cli.show import Show
from gateway.cli.wire import Gateway
from mesh.blob import OCTETS, Blob
from mesh.ids import secret_bytes

WAIT_DEFAULT_S: Final = 60.0
DEADLINE_MIN_S: Final = 0.001
FORMATS: Final = ("nexus", "cloudevents", "cloudevents-binary")


def call(
    endpoint: Annotated[str, typer.Argument(help="Registered name of the agent.")],
    service: Annotated[str, typer.Argument(help="Service of that agent.")],
    operation: Annotated[str, typer.Argument(help="Operation of that service.")],
    input_: Annotated[
        str | None, typer.Option("--input", "-i", metavar="JSON", help="JSON, @FILE, or - for standard input.")
    ] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input-file", metavar="FILE", help="The input is this file, of any type and size."),
    ] = None,
    content_type: Annotated[
        str, typer.Option("--content-type", metavar="TYPE", help="What the input file is.")
    ] = OCTETS,
    output_file: Annotated[
        Path | None, typer.Option("--output-file", "-o", metavar="FILE", help="Write the result to this file.")
    ] = None,
    wait: Annotated[
        float | None, typer.Option("--wait", "-w", metavar="SECONDS", help="How long to wait for the result. [60]")
    ] = None,
    *,
    at_once: Annotated[
        bool, typer.Option("--async", help="Do not wait: print the id as soon as the operation is durable.")
    ] = False,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="KEY", help="Idempotency key: repeated, it is the same operation. [made up]"),
    ] = None,
    callback: Annotated[
        str | None, typer.Option(metavar="URL", help="Is told the outcome, at least once, signed.")
    ] = None,
    callback_format: Annotated[str, typer.Option(metavar="|".join(FORMATS), help="What the callback looks like.")] = (
        FORMATS[0]
    ),
    deadline: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="It times out that long after acceptance, or its begin (--delay, --at)."),
    ] = None,
    delay: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="It begins that long after acceptance; only --wait waits for it then."),
    ] = None,
    at: Annotated[str | None, typer.Option("--at", metavar="TIME", help="As --delay, but then; RFC 3339.")] = None,
    priority: Annotated[
        int, typer.Option(min=0, max=9, help="9 goes first among what waits there from your namespace.")
    ] = 0,
    version: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Only agents of this version run it; without one it waits.")
    ] = None,
    label: Labels = None,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Call an operation of an agent. The call survives crashes of agent, gateway and this command.

    The result goes to standard output, remarks to standard error. When the wait is over first, the operation goes on;
    its id is printed.

    \b
    Examples:
      mesh call greeter greeter greet --input '"Ada"'
      mesh call checks checks lint -i @request.json --wait 120
      mesh call reports reports nightly --at 2026-11-23T02:00:00+01:00
      mesh call copier copier copy --input-file big.bin --output-file copy.bin
      mesh call checks checks lint --async --key nightly-2026-11-22 --callback https://example.com/done
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    if at_once and wait is not None:
        raise Problem("--async and --wait exclude each other")
    if callback_format not in FORMATS:
        raise Problem(f"--callback-format is one of {', '.join(FORMATS)}")
    check_url(callback, "--callback")
    check_seconds(wait, "--wait")
    check_seconds(deadline, "--deadline", least=DEADLINE_MIN_S)
    check_seconds(delay, "--delay")
    if delay is not None and at is not None:
        raise Problem("--delay and --at exclude each other", "One time to begin is enough.")
    # Whoever has it begin later and names no patience does not mean to sit here.
    at_once = at_once or (wait is None and bool(delay or at))
    wait_s = 0.0 if at_once else WAIT_DEFAULT_S if wait is None else wait
    fields: dict[str, Any] = {"endpoint": endpoint, "service": service, "operation": operation}
    fields |= {"priority": priority} if priority else {}
    if callback is not None:
        fields["callback"] = {"url": callback, "format": callback_format}
    if deadline is not None:
        fields["timeouts"] = {"schedule_to_close_ms": round(deadline * 1000)}
    if delay is not None:
        fields["delay_ms"] = round(delay * 1000)
    fields |= {name: value for name, value in (("start_at", at), ("version", version)) if value is not None}
    if label:
        fields["labels"] = pairs(label, "--label")
    given = key is not None
    key = secret_bytes(12).hex() if key is None else read_key(key)
    if input_file is not None and input_ is not None:
        raise Problem("--input and --input-file exclude each other")
    body = _body(fields, input_) if input_file is None else _file(input_file, content_type)
    with Gateway(url, api_key) as gateway:
        calling = Calling(gateway, show, key, wait_s, given=given, output=output_file)
        if isinstance(body, Blob):
            calling.describe(fields, body)
        calling.run(body)


def _body(fields: dict[str, Any], input_: str | None) -> bytes:
    """The request, with the input byte for byte as it was given."""
    head = json.dumps(fields).encode()
    if input_ is None:
        return head
    raw, _ = read_json(input_, "--input")
    return head[:-1] + b', "input": ' + raw + b"}"


def _file(path: Path, content_type: str) -> Blob:
    """Raises Problem."""
    try:
        with path.open("rb"):
            return Blob(path, content_type=content_type)
    except OSError as fault:
        raise Problem(f"--input-file {path} cannot be read: {fault.strerror}") from None
