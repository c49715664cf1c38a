"""`mesh operation`: list, show, watch and cancel durable operations, and have their results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from gateway.cli.exits import Exit, Problem
from gateway.cli.options import ApiKey, Json, Labels, Url, one_of, pairs
from gateway.cli.outcome import finish
from gateway.cli.results import put_out_step, step_of
from gateway.cli.show import Show, ago, between, large, plain, soon, word
from gateway.cli.timeline import children, event_line, timeline
from gateway.cli.wire import Gateway
from mesh.client.errors import story
from mesh.clock import from_rfc3339, monotonic_s, now_ms, pause, to_rfc3339
from mesh.errors import Unavailable
from mesh.machine import State
from mesh.wire import quote_segment
from mesh.words import counted

RETRY_FOR_S: Final = 60.0
EVENTS_PER_PAGE: Final = 1000
CHILDREN_PER_PAGE: Final = 500
RESULT_CHARS_SHOWN: Final = 2000
STATES: Final = (*(state.word for state in State), "running")
"""`running` stands for those that are not terminal."""
_UNITS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_back = re.compile(r"(\d{1,9})([smhd])").fullmatch

app = typer.Typer(no_args_is_help=True, help="Durable operations: list, show, watch, cancel; their results.")

Id = Annotated[str, typer.Argument(metavar="ID", help="Operation id, as `mesh call --async` prints it.")]


def _when(text: str | None, option: str) -> str | None:
    """An RFC 3339 time, or `15m` for that long ago, as RFC 3339. Raises Problem."""
    if text is None:
        return None
    if match := _back(text):
        return to_rfc3339(now_ms() - int(match[1]) * _UNITS[match[2]])
    try:
        return to_rfc3339(from_rfc3339(text))
    except ValueError:
        raise Problem(f"{option} {text!r} is neither a time such as 2026-11-22T10:00:00Z nor one such as 15m") from None


@app.command("list")
def list_(
    state: Annotated[
        str | None,
        typer.Option(help="One or more of: scheduled,backing_off,started,succeeded,failed,canceled,timed_out."),
    ] = None,
    endpoint: Annotated[str | None, typer.Option()] = None,
    service: Annotated[str | None, typer.Option()] = None,
    operation: Annotated[str | None, typer.Option()] = None,
    label: Labels = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="RFC 3339, or such as 15m, 2h, 7d.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500)] = 50,
    cursor: Annotated[str | None, typer.Option(help="Where the last page ended.")] = None,
    *,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """List your namespace's operations, newest first.

    \b
    Examples:
      mesh operation list --state failed,timed_out --since 1h
      mesh operation list --label review=42 --json
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    one_of(state, STATES, "--state", several=True)
    query = {
        "state": state,
        "endpoint": endpoint,
        "service": service,
        "operation": operation,
        "since": _when(since, "--since"),
        "until": _when(until, "--until"),
        "cursor": cursor,
        **{f"label.{name}": value for name, value in pairs(label, "--label").items()},
    }
    with Gateway(url, api_key) as gateway:
        page = gateway.page("/v1/operations", query, limit)
    if show.json(page):
        return
    rows = [
        (
            plain(one["id"]),
            word(one["state"]) + _why(one),
            plain(f"{one['endpoint']} {one['service']}/{one['operation']}"),
            str(one["attempt"]),
            ago(one["created_at"]),
            between(one["created_at"], one["closed_at"]),
        )
        for one in page["items"]
    ]
    show.page(("id", "state", "operation", "attempt", "accepted", "took"), rows, "operations", page["next_cursor"])


def _why(record: dict[str, Any]) -> str:
    return f" ({plain(record['blocked'])})" if record.get("blocked") else ""


@app.command("show")
def show_(operation_id: Id, *, url: Url = "", api_key: ApiKey = "", as_json: Json = False) -> None:
    """Show one operation: record, result or failure, its attempts with all that was done in them, and its children.

    \b
    Example:
      mesh operation show 00-4m5k9q2r7t1v3w6x8y0z
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    path = _path(operation_id)
    with Gateway(url, api_key) as gateway:
        record = gateway.get(path)
        events = _all(gateway, f"{path}/events", limit=EVENTS_PER_PAGE)
        asked = record.get("journal") is not None
        calls = _all(gateway, "/v1/operations", parent=record["id"], limit=CHILDREN_PER_PAGE) if asked else []
    if show.json({**record, "history": events, **({"children": calls} if asked else {})}):
        return
    closed = record["closed_at"]
    took = f", took {between(record['created_at'], closed)}" if closed else ""
    show.fields(
        [
            ("operation", plain(record["id"])),
            ("state", word(record["state"]) + _why(record) + took),
            ("what", plain(f"{record['endpoint']}: {record['service']}/{record['operation']}")),
            ("namespace", plain(record["namespace"])),
            ("run, attempt", f"{record['run']}, {record['attempt']}"),
            ("accepted", f"{record['created_at']}, {ago(record['created_at'])}"),
            ("starts", _begins(record)),
            ("deadline", record.get("deadline") or ""),
            ("suspended", _suspended(record.get("suspended"))),
            ("heartbeat", _heartbeat(record.get("heartbeat"))),
            ("journal", counted(record["journal"], "entry", "entries") if "journal" in record else ""),
            ("parent", plain(f"{record['parent']} ({record['parent_key']})" if "parent" in record else "")),
            ("instance", plain(record.get("instance", ""))),
            ("next attempt", soon(record.get("next_attempt_at"))),
            ("last failure", _failed(record.get("last_failure"))),
            ("callback", _callback(record.get("callback"))),
            ("labels", plain(", ".join(f"{name}={value}" for name, value in record["labels"].items()))),
            ("key", plain(record.get("idempotency_key", ""))),
            *[(f"link of the {one['by']}", plain(f"{one['url']} ({one['type']})")) for one in record.get("links", [])],
            ("trace", plain(record.get("trace", {}).get("traceparent", ""))),
            ("input", plain(large(record.get("input_dataref")))),
            ("failure", plain(story(record["failure"])) if record.get("failure") else ""),
            ("result", plain(_result(record))),
        ]
    )
    show.line("")
    for line in timeline(events, record["created_at"]):
        show.line(line)
    if calls:
        show.line("\n[bold]children[/]")
        for line in children(calls):
            show.line(line)


@app.command("result")
def result_(
    operation_id: Id,
    step: Annotated[
        str | None, typer.Option(metavar="KEY", help="Of this step or child, as `operation show` calls it: clone#1.")
    ] = None,
    output_file: Annotated[
        Path | None, typer.Option("--output-file", "-o", metavar="FILE", help="Write the result to this file.")
    ] = None,
    *,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Print the result of an operation that has ended, or of one of its steps; or write it to a file, of any size.

    \b
    Examples:
      mesh operation result 00-4m5k9q2r7t1v3w6x8y0z
      mesh operation result 00-4m5k9q2r7t1v3w6x8y0z --step render#1 --output-file page.pdf
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    path = _path(operation_id)
    with Gateway(url, api_key) as gateway:
        if step is not None:
            event = step_of(_all(gateway, f"{path}/events", limit=EVENTS_PER_PAGE), step)
            if output_file is not None or not as_json:
                put_out_step(gateway, show, event, output_file)
            show.json(event)
            return
        record = gateway.get(path)
        if record["closed_at"] is None:
            raise Problem(
                f"operation {record['id']} has no result yet: it is {record['state'].replace('_', ' ')}",
                f"`mesh operation watch {record['id']}` waits for its end.",
                exit_code=Exit.UNAVAILABLE,
                code="still_running",
            )
        finish(gateway, show, record, waited_s=0, output=output_file)


def _suspended(suspended: dict[str, Any] | None) -> str:
    if not suspended:
        return ""
    until = f"until {suspended['until']}, {soon(suspended['until'])}" if suspended["until"] else "until a child ends"
    return f"{until}; since {ago(suspended['since'])}"


def _heartbeat(beat: dict[str, Any] | None) -> str:
    return plain(f"{ago(beat['at'])}: {json.dumps(beat['details'], ensure_ascii=False)}") if beat else ""


def _begins(record: dict[str, Any]) -> str:
    at = record.get("starts_at")
    if not at:
        return ""
    return f"{at}, {soon(at) if from_rfc3339(at) > now_ms() else ago(at)}"


def _failed(failure: dict[str, Any] | None) -> str:
    if not failure:
        return ""
    at = f" at {failure['instance']}" if failure.get("instance") else ""
    return plain(f"attempt {failure['attempt']}{at}, {ago(failure['at'])}: {failure['type']}: {failure['message']}")


def _callback(callback: dict[str, Any] | None) -> str:
    if not callback:
        return ""
    state = str({"none": "not owed yet", "dropped": "not sent"}.get(callback["state"], callback["state"]))
    tries = f", {counted(callback['tries'], 'try', 'tries')}" if callback.get("tries") else ""
    following = f", next {soon(callback['next_at'])}" if callback.get("next_at") else ""
    why = f": {callback['why']}" if callback.get("why") else ""
    return f"{word(state)}{plain(f'{tries}{following}{why}')}  [dim]{plain(callback['url'])}[/]"


def _result(record: dict[str, Any]) -> str:
    if "result" not in record:
        return large(record.get("result_dataref")) or record.get("result_type") or ""
    text = json.dumps(record["result"], ensure_ascii=False)
    return text if len(text) <= RESULT_CHARS_SHOWN else f"{text[:RESULT_CHARS_SHOWN]}… ({len(text)} characters)"


def _all(gateway: Gateway, path: str, **query: Any) -> list[dict[str, Any]]:
    """The items of all pages."""
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = gateway.get(path, cursor=cursor, **query)
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


@app.command()
def watch(
    operation_id: Id,
    after: Annotated[int, typer.Option(help="Only events after this sequence number.", min=0)] = 0,
    *,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Follow an operation until it is over; a broken stream is taken up where it ended.

    Prints one event a line (with --json one object a line), then the result. The exit code tells how it ended.

    \b
    Example:
      mesh operation watch 00-4m5k9q2r7t1v3w6x8y0z
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    path = _path(operation_id)
    with Gateway(url, api_key) as gateway:
        start = gateway.get(path)["created_at"]
        for event in _stream(gateway, show, f"{path}/events", after):
            if as_json:
                print(json.dumps(event), flush=True)
            else:
                show.line(event_line(event, start))
        record = gateway.get(path)
        if as_json:
            if record["state"] != "succeeded":
                raise typer.Exit(Exit.FAILED)
            return
        finish(gateway, show, record, waited_s=0)


def _stream(gateway: Gateway, show: Show, path: str, after: int) -> Any:
    """Events as they happen, each once."""
    from mesh.client.events import EventReader  # noqa: PLC0415 - only who watches reads streams

    reader, give_up_s, told = EventReader(after), monotonic_s() + RETRY_FOR_S, False
    while not reader.ended:
        reader.begin()
        headers = {"accept": "text/event-stream", "last-event-id": str(reader.last_seq)}
        try:
            with gateway.stream(path, headers) as chunks:
                for chunk in chunks:
                    give_up_s, told = monotonic_s() + RETRY_FOR_S, False
                    for event in reader.feed(chunk):
                        yield event.data
        except Unavailable as error:
            if monotonic_s() > give_up_s:
                raise
            if not told:
                show.note(f"{error.detail}; asking again")
                told = True
        if not reader.ended:
            pause(reader.retry_ms / 1000)


@app.command()
def cancel(operation_id: Id, *, url: Url = "", api_key: ApiKey = "", as_json: Json = False) -> None:
    """Ask for the end of an operation. One that is over stays as it is; repeats are fine.

    \b
    Example:
      mesh operation cancel 00-4m5k9q2r7t1v3w6x8y0z
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    with Gateway(url, api_key) as gateway:
        record = gateway.ask("POST", f"{_path(operation_id)}/cancel").json()
    if show.json(record):
        return
    closed = record["closed_at"] is not None
    told = f"is {record['state'].replace('_', ' ')}" if closed else "is asked to end; its agent decides how"
    show.line(f"operation {plain(record['id'])} {told}")


def _path(operation_id: str) -> str:
    if not operation_id.strip():
        raise Problem("the operation's id is empty", "`mesh operation list` shows the operations of your namespace.")
    return f"/v1/operations/{quote_segment(operation_id)}"
