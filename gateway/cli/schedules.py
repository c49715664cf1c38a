"""`mesh schedule`: operations that start by the clock, from the command line."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from gateway.cli.exits import Problem
from gateway.cli.options import ApiKey, Json, Labels, Url, check_seconds, if_match_header, one_of, pairs, read_json
from gateway.cli.show import Show, plain, soon, word
from gateway.cli.wire import Gateway
from mesh.wire import quote_segment

CATCH_UP_MIN_S = 10.0
OVERLAPS = ("skip", "queue", "allow", "cancel_previous")

app = typer.Typer(no_args_is_help=True, help="Operations that start by the clock: create, list, show, pause, backfill.")

Name = Annotated[str, typer.Argument(help="Name of the schedule.")]


@app.command()
def create(
    name: Name,
    cron: Annotated[str, typer.Argument(help="Minute, hour, day, month, weekday; or seconds in front as a sixth.")],
    endpoint: Annotated[str, typer.Argument(help="Registered name of the agent.")],
    service: Annotated[str, typer.Argument(help="Service of that agent.")],
    operation: Annotated[str, typer.Argument(help="Operation of that service.")],
    input_: Annotated[
        str | None, typer.Option("--input", "-i", metavar="JSON", help="JSON, @FILE, or - for standard input.")
    ] = None,
    timezone: Annotated[str, typer.Option("--timezone", "-z", metavar="ZONE", help="Such as Europe/Berlin.")] = "UTC",
    overlap: Annotated[
        str, typer.Option(metavar="|".join(OVERLAPS), help="What a time does while the last run goes on.")
    ] = OVERLAPS[0],
    catch_up: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="How late a time is still started after an outage. [3600]")
    ] = None,
    jitter: Annotated[float, typer.Option(metavar="SECONDS", help="Each time is put off by less than that.")] = 0,
    description: Annotated[str, typer.Option()] = "",
    label: Labels = None,
    if_match: Annotated[str | None, typer.Option(metavar="ETAG", help="Replace only this version: v3, or 3.")] = None,
    *,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Create a schedule, or replace it.

    \b
    Examples:
      mesh schedule create nightly '30 2 * * *' reports reports build -z Europe/Berlin --overlap queue
      mesh schedule create poll '*/5 * * * *' feeds feeds fetch -i '{"all": true}'
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    one_of(overlap, OVERLAPS, "--overlap")
    check_seconds(catch_up, "--catch-up", least=CATCH_UP_MIN_S)
    check_seconds(jitter, "--jitter")
    template: dict[str, Any] = {"endpoint": endpoint, "service": service, "operation": operation}
    if label:
        template["labels"] = pairs(label, "--label")
    fields: dict[str, Any] = {"cron": cron, "timezone": timezone, "overlap": overlap, "description": description}
    fields["jitter_ms"] = round(jitter * 1000)
    if catch_up is not None:
        fields["catch_up_ms"] = round(catch_up * 1000)
    head = json.dumps(template).encode()
    if input_ is not None:
        # The input byte for byte as it was given.
        head = head[:-1] + b', "input": ' + read_json(input_, "--input")[0] + b"}"
    body = json.dumps(fields).encode()[:-1] + b', "operation": ' + head + b"}"
    with Gateway(url, api_key) as gateway:
        headers = if_match_header(if_match)
        record = gateway.ask("PUT", _path(name), body=body, headers=headers).json()
    if not show.json(record):
        show.line(f"schedule [bold]{plain(name)}[/], version {record['version']}: next {_next(record)}")


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=200)] = 50,
    cursor: Annotated[str | None, typer.Option(help="Where the last page ended.")] = None,
    *,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """List your schedules.

    \b
    Example:
      mesh schedule list
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    with Gateway(url, api_key) as gateway:
        page = gateway.get("/v1/schedules", limit=limit, cursor=cursor)
    if show.json(page):
        return
    rows = [
        (
            plain(one["name"]),
            plain(f"{one['cron']} {one['timezone']}"),
            plain(f"{one['operation']['endpoint']} {one['operation']['service']}/{one['operation']['operation']}"),
            _next(one),
            _last(one),
        )
        for one in page["items"]
    ]
    show.table(("schedule", "times", "operation", "next", "last run"), rows, "no schedules")
    if page["next_cursor"]:
        show.note(f"more with --cursor {page['next_cursor']}")


@app.command("show")
def show_(name: Name, *, url: Url = "", api_key: ApiKey = "", as_json: Json = False) -> None:
    """Show one schedule: its next times, the last run, and what went wrong.

    \b
    Example:
      mesh schedule show nightly
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    with Gateway(url, api_key) as gateway:
        found = gateway.get(_path(name))
    if show.json(found):
        return
    template, failure, missed = found["operation"], found["last_failure"], found["last_missed"]
    counts = ", ".join(f"{number} {what}" for what, number in found["counts"].items())
    show.fields(
        [
            ("schedule", f"[bold]{plain(found['name'])}[/]  [dim]{plain(found['id'])}, version {found['version']}[/]"),
            ("description", plain(found["description"])),
            ("times", plain(f"{found['cron']} in {found['timezone']}")),
            ("overlap", plain(found["overlap"])),
            ("what", plain(f"{template['endpoint']}: {template['service']}/{template['operation']}")),
            ("next", _next(found)),
            ("then", plain(", ".join(found["upcoming"][1:]))),
            ("queued", str(found["queued"] or "")),
            ("runs", counts),
            ("last run", _last(found)),
            ("last failure", plain(f"{failure['at']}: {failure['code']}: {failure['detail']}") if failure else ""),
            ("last missed", plain(f"{missed['from']} to {missed['until']}") if missed else ""),
        ]
    )


@app.command()
def runs(
    name: Name,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 50,
    cursor: Annotated[str | None, typer.Option(help="Where the last page ended.")] = None,
    *,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """List the runs of a schedule, newest time first.

    \b
    Example:
      mesh schedule runs nightly
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    with Gateway(url, api_key) as gateway:
        page = gateway.get(f"{_path(name)}/runs", limit=limit, cursor=cursor)
    if show.json(page):
        return
    rows = [
        (one["scheduled_at"], plain(one["operation"]["id"]), word(one["operation"]["state"])) for one in page["items"]
    ]
    show.table(("time", "id", "state"), rows, "no runs yet")
    if page["next_cursor"]:
        show.note(f"more with --cursor {page['next_cursor']}")


@app.command()
def pause(name: Name, *, url: Url = "", api_key: ApiKey = "", as_json: Json = False) -> None:
    """Start nothing more; what runs goes on.

    \b
    Example:
      mesh schedule pause nightly
    """  # noqa: D301 - \b keeps the lines of an example
    _post(name, "pause", url, api_key, Show(as_json))


@app.command()
def resume(name: Name, *, url: Url = "", api_key: ApiKey = "", as_json: Json = False) -> None:
    """Go on with the next time; what came meanwhile is left out (`mesh schedule backfill`).

    \b
    Example:
      mesh schedule resume nightly
    """  # noqa: D301 - \b keeps the lines of an example
    _post(name, "resume", url, api_key, Show(as_json))


def _post(name: str, verb: str, url: str, api_key: str, show: Show) -> None:
    with Gateway(url, api_key) as gateway:
        found = gateway.ask("POST", f"{_path(name)}/{verb}").json()
    if not show.json(found):
        show.line(f"schedule [bold]{plain(name)}[/]: {_next(found)}")


@app.command()
def backfill(
    name: Name,
    from_: Annotated[str, typer.Option("--from", metavar="TIME", help="First time, RFC 3339.")],
    until: Annotated[str, typer.Option("--until", metavar="TIME", help="Last time, RFC 3339; not in the future.")],
    overlap: Annotated[str, typer.Option(metavar="queue|allow", help="One after the other, or all at once.")] = "queue",
    *,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Run the times of a span now. What ran at a time already is not run again.

    \b
    Example:
      mesh schedule backfill nightly --from 2026-11-20T00:00:00Z --until 2026-11-23T00:00:00Z
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    one_of(overlap, ("queue", "allow"), "--overlap")
    body = json.dumps({"from": from_, "until": until, "overlap": overlap}).encode()
    with Gateway(url, api_key) as gateway:
        found = gateway.ask("POST", f"{_path(name)}/backfill", body=body).json()
    if show.json(found):
        return
    if not found["times"]:
        raise Problem(f"schedule {name} has no time from {from_} to {until}")
    turns = f", {found['queued']} of them one after the other" if overlap == "queue" and found["queued"] else ""
    show.line(f"{len(found['times'])} times will run{turns}")


@app.command()
def remove(
    name: Name,
    if_match: Annotated[str | None, typer.Option(metavar="ETAG", help="Remove only this version: v3, or 3.")] = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Remove a schedule. Its runs go on.

    \b
    Example:
      mesh schedule remove nightly --yes
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    if not yes and not as_json:
        typer.confirm(f"Remove schedule {name}?", abort=True)
    with Gateway(url, api_key) as gateway:
        gateway.ask("DELETE", _path(name), headers=if_match_header(if_match))
    if not show.json({"name": name, "removed": True}):
        show.line(f"schedule [bold]{plain(name)}[/] removed")


def _next(record: dict[str, Any]) -> str:
    if record["paused"]:
        return word("paused")
    return f"{record['next_at']}, {soon(record['next_at'])}" if record["next_at"] else "never"


def _last(record: dict[str, Any]) -> str:
    run = record["last_run"]
    return f"{run['scheduled_at']} {word(run['state'] or 'past retention')}" if run else ""


def _path(name: str) -> str:
    return f"/v1/schedules/{quote_segment(name)}"
