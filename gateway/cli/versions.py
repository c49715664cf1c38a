"""`mesh endpoint versions | share | drain | undrain | watch`: who runs what, who gets work, and what changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Final

import typer

from gateway.cli.endpoint import Name, endpoint_path, health_of
from gateway.cli.exits import Problem
from gateway.cli.options import ApiKey, Json, Url
from gateway.cli.show import Show, ago, is_live, plain, word
from gateway.cli.wire import Gateway
from mesh.clock import monotonic_s, pause
from mesh.errors import Unavailable
from mesh.wire import quote_segment

RETRY_FOR_S: Final = 60.0
RETRY_S: Final = 1.0
NONE: Final = "-"

Version = Annotated[str | None, typer.Option("--version", metavar="VERSION", help="All instances of this version.")]
OneInstance = Annotated[str | None, typer.Option("--instance", metavar="ID", help="This instance.")]


def versions(name: Name, *, url: Url = "", api_key: ApiKey = "", as_json: Json = False) -> None:
    """Show who still runs which version: its share of new work, its instances, and what runs and waits there.

    \b
    Example:
      mesh endpoint versions checks
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    with Gateway(url, api_key) as gateway:
        found = gateway.get(f"{endpoint_path(name)}/versions")
    _tell(show, found)


def _tell(show: Show, found: dict[str, Any]) -> None:
    if show.json(found):
        return
    rows = [
        (
            plain(one["version"]),
            _share(one),
            str(one["running"]),
            str(one["in_flight"]),
            str(one["waiting"]),
            ", ".join(f"{plain(each['id'])} {word(each['health'])}" for each in one["instances"]) or "none",
        )
        for one in found["items"]
    ]
    columns = ("version", "new work", "running", "in flight", "waiting", "instances")
    show.table(columns, rows, "no instance says which version it is")


def _share(one: dict[str, Any]) -> str:
    if one["draining_since"]:
        return f"draining since {ago(one['draining_since'])}"
    if is_live(one):
        return "as it asks" if one["share_percent"] is None else f"{one['share_percent']:g} %"
    said = f"{one['percent']:g} %" if one["percent"] is not None else ""
    said = f"weight {one['weight']}" if not said and one["weight"] is not None else said
    return f"{said} (no instance)" if said else NONE


def _nobody_runs(show: Show, found: dict[str, Any], version: str, undo: str) -> None:
    """A slip in the version's name makes itself known by nothing but this."""
    if not any(one["version"] == version and is_live(one) for one in found["items"]):
        there = [one["version"] for one in found["items"] if is_live(one)]
        which = f"; there are {', '.join(there)}" if there else ""
        show.note(f"no instance of version {version} is alive{which}. It holds once one is; `{undo}` forgets it")


def share(
    name: Name,
    version: Annotated[str, typer.Option("--version", metavar="VERSION")],
    percent: Annotated[float | None, typer.Option(min=0, max=100, help="Of all work that is not pinned.")] = None,
    weight: Annotated[int | None, typer.Option(min=0, help="Relative to the other versions.")] = None,
    *,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Say how much of the work a version gets. Without --percent and --weight: what its instances weigh.

    \b
    Examples:
      mesh endpoint share checks --version 4 --percent 5
      mesh endpoint share checks --version 4
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    if percent is not None and weight is not None:
        raise Problem("--percent and --weight exclude each other", "A percentage is of all work, a weight of the rest.")
    body = json.dumps({"percent": percent, "weight": weight}).encode()
    with Gateway(url, api_key) as gateway:
        found = gateway.ask("PUT", f"{endpoint_path(name)}/versions/{quote_segment(version)}", body=body).json()
    _tell(show, found)
    if percent is not None or weight is not None:
        _nobody_runs(show, found, version, f"mesh endpoint share {name} --version {version}")


def drain(
    name: Name,
    version: Version = None,
    instance: OneInstance = None,
    *,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Give a version or an instance no new work; what it has it may finish. It holds until `undrain`.

    \b
    Examples:
      mesh endpoint drain checks --version 3
      mesh endpoint drain checks --instance 10.0.0.7-9000
    """  # noqa: D301 - \b keeps the lines of an example
    _drain(name, version, instance, "drain", Show(as_json), url, api_key)


def undrain(
    name: Name,
    version: Version = None,
    instance: OneInstance = None,
    *,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """The opposite of drain.

    \b
    Example:
      mesh endpoint undrain checks --version 3
    """  # noqa: D301 - \b keeps the lines of an example
    _drain(name, version, instance, "resume", Show(as_json), url, api_key)


def _drain(name: str, version: str | None, instance: str | None, verb: str, show: Show, url: str, api_key: str) -> None:
    if (version is None) == (instance is None):
        raise Problem("name one of --version and --instance")
    what = f"versions/{quote_segment(version)}" if version is not None else f"instances/{quote_segment(instance or '')}"
    with Gateway(url, api_key) as gateway:
        gateway.ask("POST", f"{endpoint_path(name)}/{what}/{verb}")
        found = gateway.get(f"{endpoint_path(name)}/versions")
    if show.json(found):
        return
    one = f"version {version}" if version is not None else f"instance {instance}"
    show.line(f"{plain(one)} of [bold]{plain(name)}[/] {'gets no new work' if verb == 'drain' else 'gets work again'}")
    if found["items"]:
        _tell(show, found)
    if version is not None and verb == "drain":
        _nobody_runs(show, found, version, f"mesh endpoint undrain {name} --version {version}")


def watch(
    search: Annotated[str | None, typer.Option(help="Words that name, description, tags or operations have.")] = None,
    cursor: Annotated[str | None, typer.Option(help="Go on behind what was seen before.")] = None,
    *,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Follow the endpoints that you own or may call; a broken stream is taken up where it ended. Ends with Ctrl-C.

    Prints a line for each endpoint and each change; with --json one object a line, `{event, data, cursor}`.

    \b
    Example:
      mesh endpoint watch --search lint
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    with Gateway(url, api_key) as gateway:
        for kind, data, behind in _events(gateway, show, search or "", cursor or ""):
            if as_json:
                print(json.dumps({"event": kind, "data": data, "cursor": behind}), flush=True)
            elif kind == "endpoint":
                each = ", ".join(f"{plain(one['id'])} {word(one['health'])}" for one in data["instances"])
                show.line(f"{plain(data['name'])}  {health_of(data)}: {plain(data['health_why'])}  {each}")
            elif kind == "removed":
                show.line(f"{plain(data['name'])}  removed")


def _events(gateway: Gateway, show: Show, search: str, cursor: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(kind, data, the cursor known so far), for ever; each change once as long as one gateway is asked."""
    path = f"/v1/endpoints?watch=true&search={quote_segment(search)}" if search else "/v1/endpoints?watch=true"
    give_up_s, told = monotonic_s() + RETRY_FOR_S, False
    while True:
        headers = {"accept": "text/event-stream"} | ({"last-event-id": cursor} if cursor else {})
        try:
            with gateway.stream(path, headers) as chunks:
                kind = ""
                for line in _lines(chunks):
                    give_up_s, told = monotonic_s() + RETRY_FOR_S, False
                    name, _, value = line.partition(": ")
                    if name == "id":
                        cursor = value
                    elif name == "event":
                        kind = value
                    elif name == "data":
                        yield kind, json.loads(value), cursor
        except Unavailable as error:
            if monotonic_s() > give_up_s:
                raise
            if not told:
                show.note(f"{error.detail}; asking again")
                told = True
        pause(RETRY_S)


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode()
