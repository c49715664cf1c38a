"""`mesh endpoint queue`: who waits at an endpoint, by namespace, and what holds it up."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from gateway.cli.options import ApiKey, Json, Url
from gateway.cli.show import Show, plain, soon, span, word
from gateway.cli.wire import Gateway
from mesh.wire import quote_segment

NONE: Final = "-"


def queue(
    name: Annotated[str, typer.Argument(help="Name of the endpoint.")],
    *,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Show who waits at an endpoint and runs there, the limits of each, and the breakers.

    \b
    Examples:
      mesh endpoint queue checks
      mesh endpoint queue checks --json
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    with Gateway(url, api_key) as gateway:
        found = gateway.get(f"/v1/endpoints/{quote_segment(name)}/queue")
    if show.json(found):
        return
    limits, breaker = found["limits"], found["breaker"]
    oldest = f", the oldest for {span(found['oldest_waiting_ms'])}" if found["waiting"] else ""
    probe = f", a probe {soon(breaker['retry_at'])}" if breaker.get("retry_at") else ""
    show.fields(
        [
            ("endpoint", f"[bold]{plain(found['endpoint'])}[/]" + (" (paused)" if found["paused"] else "")),
            ("waiting", f"{found['waiting']}{oldest}"),
            ("running", f"{found['running']}{_of(limits['max_concurrency'])}"),
            ("rate", f"{limits['rate_per_s']:g} a second" if limits["rate_per_s"] else ""),
            ("breaker", f"{word(breaker['state'])}, {breaker['failures']} failures in a row{probe}"),
        ]
    )
    show.line("")
    rows = [_row(one) for one in found["namespaces"]]
    columns = ("namespace", "waiting", "next for", "running", "rate", "weight", "")
    show.table(columns, rows, "nobody waits here, and nothing runs that a limit counts")
    open_ = [one for one in found["instances"] if one["breaker"] != "closed"]
    for one in open_:
        again = f", tried again {soon(one['retry_at'])}" if one.get("retry_at") else ""
        show.line(f"instance {plain(one['id'])}: {word(one['breaker'])}{again}")


def _of(most: int | None) -> str:
    return f" of {most}" if most else ""


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    return (
        plain(one["namespace"]),
        f"{one['waiting']}{_of(one['max_waiting'])}",
        span(one["next_waiting_ms"]) if one["waiting"] else NONE,
        f"{one['running']}{_of(one['max_concurrency'])}",
        f"{one['rate_per_s']:g}/s" if one["rate_per_s"] else NONE,
        str(one["weight"]),
        "at its own limit" if one["at_own_limit"] else "",
    )
