"""`mesh call`: start an operation and, usually, wait for its result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from gateway.cli.exits import Exit, Problem
from gateway.cli.options import ApiKey, Json, Labels, Url, check_seconds, check_url, pairs, read_json, read_key
from gateway.cli.results import put_out
from gateway.cli.show import Show, between, is_live, soon, span
from gateway.cli.wire import Gateway, Reply, Unreached
from mesh.blob import OCTETS, Blob
from mesh.client.patience import Patience, lacks_failure, why_waits
from mesh.clock import monotonic_s, pause
from mesh.errors import MeshError, TooMany, Unavailable
from mesh.ids import secret_bytes
from mesh.wire import quote_segment
from mesh.wire.digests import digest_field

if TYPE_CHECKING:
    from mesh.client.order import Record

POLL_S: Final = 20.0
POLL_GRACE_S: Final = 10.0
REPEAT_S: Final = 0.5
WAIT_DEFAULT_S: Final = 60.0
DEADLINE_MIN_S: Final = 0.001
CAUSES_SHOWN_MAX: Final = 3
SLOWEST_BYTES_PER_S: Final = 4 << 20
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
        calling = _Call(gateway, show, key, wait_s, given=given, output=output_file)
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


class _Call:
    """One call, from its start to what is known when the wait is over."""

    def __init__(
        self, gateway: Gateway, show: Show, key: str, wait_s: float, *, given: bool, output: Path | None
    ) -> None:
        self._gateway = gateway
        self._show = show
        self._key = key
        self._given = given
        self._wait_s = wait_s
        self._until_s = monotonic_s() + wait_s
        self._told = False
        self._id = ""
        self._patience = Patience(show.note)
        self._output = output
        self._headers: dict[str, str] = {}
        self._sending_s = 0.0
        self._unsure = False
        """A request of this call may have arrived without its answer: the operation of that key may be its own."""

    def describe(self, fields: dict[str, Any], blob: Blob) -> None:
        """The input is a file: the order goes in a header (P391)."""
        self._headers = {
            "mesh-start": json.dumps(fields),
            "content-type": blob.content_type or OCTETS,
            "content-length": str(blob.size),
            "content-digest": digest_field(blob.sha256),
        }
        self._sending_s = blob.size / SLOWEST_BYTES_PER_S

    def run(self, body: bytes | Blob) -> None:
        """Raises Problem for every end but success, Ctrl-C among them."""
        try:
            self._run(body)
        except KeyboardInterrupt:
            raise self._interrupted() from None

    def _interrupted(self) -> Problem:
        detail, mend = "interrupted; it may be under way", f"Repeat with --key {self._key}: it is the same operation."
        if self._id:
            detail = f"interrupted; operation {self._id} goes on"
            mend = f"`mesh operation watch {self._id}` shows how, `mesh operation cancel {self._id}` ends it."
        extra = {"operation_id": self._id, "idempotency_key": self._key}
        return Problem(detail, mend, exit_code=Exit.INTERRUPTED, code="interrupted", extra=extra)

    def _run(self, body: bytes | Blob) -> None:
        reply = self._start(body)
        record = reply.json()
        self._id = record["id"]
        replayed = reply.headers.get("idempotency-replayed") == "true"
        if reply.status == 202 and self._wait_s > 0:  # noqa: PLR2004
            # The 202 says least; what is told of an operation that still runs is worth one more look.
            self._say_why(record)
            record = self._wait(record["id"]) or self._look(record)
        if replayed and self._given and not self._unsure:
            self._show.note(f"the key was used before: this is the operation of that time, {record['id']}")
        finish(self._gateway, self._show, record, waited_s=self._wait_s, output=self._output)

    def _start(self, body: bytes | Blob) -> Reply:
        """Accepted, or a refusal. A lost answer is asked for again: the key makes that safe."""
        wait_s = self._patience.poll_s(min(self._wait_s, POLL_S))
        patience = f"wait={max(1, round(wait_s))}" if wait_s > 0 else "respond-async"
        headers = {**self._headers, "idempotency-key": self._key, "prefer": patience}
        timeout_s = min(self._wait_s, POLL_S) + POLL_GRACE_S + self._sending_s
        while True:
            try:
                return self._gateway.ask("POST", "/v1/operations", body=body, headers=headers, timeout_s=timeout_s)
            except (Unavailable, TooMany) as error:
                if (isinstance(error, Unreached) and not error.sent and not self._told) or self._over():
                    raise self._with_key(error) from None
                self._unsure |= not isinstance(error, Unreached) or error.sent
                self._again(error)

    def _wait(self, operation_id: str) -> dict[str, Any] | None:
        """The record once the operation ended, or None when the wait is over."""
        while (left_s := self._until_s - monotonic_s()) > 0:
            wait_s = self._patience.poll_s(min(left_s, POLL_S))
            try:
                reply = self._gateway.ask(
                    "GET",
                    f"/v1/operations/{operation_id}/result",
                    query={"wait": f"{wait_s:.3f}"},
                    headers={"range": "bytes=0-0"},  # of a large result, a byte is enough to know that it is there
                    timeout_s=wait_s + POLL_GRACE_S,
                )
                if reply.status != 202:  # noqa: PLR2004
                    return self._gateway.get(f"/v1/operations/{operation_id}")
                self._say_why(reply.json())
            except Unavailable as error:
                if self._over():
                    raise self._with_key(error) from None
                self._again(error)
        return None

    def _look(self, record: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._gateway.get(f"/v1/operations/{record['id']}")
        except Unavailable:
            return record

    def _say_why(self, record: dict[str, Any]) -> None:
        """After a while, a line about what it waits for."""
        if self._patience.due(seen := cast("Record", record)):
            self._patience.look(cast("Record", self._look(record)) if lacks_failure(seen) else seen)

    def _over(self) -> bool:
        return monotonic_s() + REPEAT_S >= self._until_s

    def _again(self, error: MeshError) -> None:
        if not self._told:
            self._show.note(f"{error.detail}; asking again")
            self._told = True
        pause(REPEAT_S)

    def _with_key(self, error: MeshError) -> MeshError:
        if isinstance(error, Unreached) and not error.sent and not self._told:
            return error
        return type(error)(f"{error.detail}. Repeat with --key {self._key}: it is the same operation", **_sent(error))


def _sent(error: MeshError) -> dict[str, Any]:
    return {"sent": error.sent} if isinstance(error, Unreached) else {"code": error.code}


def finish(
    gateway: Gateway, show: Show, record: dict[str, Any], *, waited_s: float, output: Path | None = None
) -> None:
    """Print what became of an operation. Raises Problem (exit 1 or 5) unless it succeeded or nobody waited."""
    state, operation_id = record["state"], record["id"]
    if state == "succeeded":
        result_path = f"/v1/operations/{operation_id}/result"
        written = gateway.download(result_path, output) if output is not None else 0
        if not show.json(record):
            took = between(record["created_at"], record["closed_at"])
            attempts = "" if record["attempt"] == 1 else f", attempt {record['attempt']}"
            show.note(f"succeeded in {took}{attempts}: operation {operation_id}")
            if output is not None:
                show.note(f"{written} bytes written to {output}")
            else:
                put_out(gateway, show, result_path, int(record.get("result_dataref", {"bytes": 0})["bytes"]), None)
        return
    if record["closed_at"] is not None:
        show.json(record)
        words = f"operation {operation_id} {state.replace('_', ' ')}: {story(record.get('failure'))}"
        raise Problem(words, exit_code=Exit.FAILED, code=f"operation_{state}", extra={"operation_id": operation_id})
    if waited_s <= 0:
        if not show.json(record):
            print(operation_id)
            at = record.get("starts_at", "")
            begins = f"it begins at {at} ({soon(at)})" if at else "under way"
            show.note(f"durable, {begins}; `mesh operation watch {operation_id}` shows how it goes")
        return
    show.json(record)
    why = _why(gateway, record)
    last = record.get("last_failure")
    tried = f" (attempt {last['attempt']} failed: {last['message']})" if last else ""
    still = f"is still {state.replace('_', ' ')} after {span(waited_s * 1000)}{why}{tried}"
    raise Problem(
        f"operation {operation_id} {still}; it goes on",
        f"`mesh operation watch {operation_id}` waits for its end.",
        exit_code=Exit.UNAVAILABLE,
        code="still_running",
        extra={"operation_id": operation_id},
    )


def _why(gateway: Gateway, record: dict[str, Any]) -> str:
    """What it waits for, in words; of a version that nobody runs, which ones there are."""
    if not record.get("blocked"):
        return ""
    why = f": {why_waits(cast('Record', record))}"
    if record["blocked"] == "no_version":
        try:
            found = gateway.get(f"/v1/endpoints/{quote_segment(record['endpoint'])}/versions")
        except MeshError:
            return why
        there = [one["version"] for one in found["items"] if is_live(one)]
        why += f" (there {'is' if len(there) == 1 else 'are'} {', '.join(there)})" if there else ""
    return why


def story(failure: Any) -> str:
    """The messages of a Nexus Failure and its causes, each once."""
    told: list[str] = []
    while isinstance(failure, dict) and len(told) < CAUSES_SHOWN_MAX:
        fields = cast("dict[str, Any]", failure)
        message = fields.get("message")
        if isinstance(message, str) and message and message not in told:
            told.append(message)
        failure = fields.get("cause")
    return ": ".join(told) or "no reason given"
