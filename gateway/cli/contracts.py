"""`mesh contract`: what endpoints promise, what a new version would break, typed Python for callers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.exits import Exit, Problem
from gateway.cli.options import ApiKey, Json, Url
from gateway.cli.show import Show, ago, plain
from gateway.cli.sources import Source, find_source, specs_of
from gateway.cli.wire import Gateway
from mesh.wire import quote_segment
from mesh.words import counted

app = typer.Typer(
    no_args_is_help=True,
    help="Contracts, what operations take and give: show, compare versions, generate typed clients.",
)

Named = Annotated[str, typer.Argument(metavar="ENDPOINT|FILE", help="An endpoint, or a file with services.")]


@app.command("show")
def show_(what: Named, *, url: Url = "", api_key: ApiKey = "", as_json: Json = False) -> None:
    """Show the operations of an endpoint with their types, who called them lately and what changed.

    Types are written as Python has them; --json shows the schemas.

    \b
    Examples:
      mesh contract show billing
      mesh contract show specs/checks.nexusrpc.yaml --json
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    with Gateway(url, api_key) as gateway:
        source = find_source(what, gateway)
        path = f"/v1/endpoints/{quote_segment(what)}/contract"
        found: dict[str, Any] = gateway.get(path) if source.version else {"services": source.services}
    if show.json(found):
        return
    from registry.contracts.python.types import Models  # noqa: PLC0415 - pydantic takes a while to load

    models = Models(set())
    for service in source.services:
        show.line(f"[bold]{plain(service['name'])}[/]  {plain(_first(service))}")
        for operation in service.get("operations") or ():
            given, got = (models.of(operation.get(side), f"{operation['name']} {side}") for side in ("input", "output"))
            show.line(
                f"  [bold]{plain(operation['name'])}[/]({plain(given)}) -> {plain(got)}  {plain(_first(operation))}"
            )
            callers = [one for one in source.callers if _calls(one, service["name"], operation["name"])]
            if callers:
                who = ", ".join(f"{one['namespace']} ({ago(one['last_seen'])})" for one in callers)
                show.line(f"    called lately by {plain(who)}")
        if not service.get("operations"):
            show.line("  any operation")
    if not source.services:
        show.line("any service and operation")
    for text in models.classes:
        show.line("")
        show.line(plain(text))
    for change in found.get("changes", ()):
        forced = ", forced" if change["forced"] and change["breaks"] else ""
        counted = f"{len(change['breaks'])} breaks, {len(change['unproven'])} not proven"
        show.line(f"registration {change['version']}, {ago(change['at'])}, by {plain(change['by'])}: {counted}{forced}")


def _first(one: dict[str, Any]) -> str:
    return str(one.get("description") or "").partition("\n")[0]


def _calls(caller: dict[str, Any], service: str, operation: str) -> bool:
    return caller["service"] == service and operation in ("", caller["operation"])


@app.command()
def diff(
    old: Annotated[str, typer.Argument(metavar="OLD", help="What callers know: an endpoint, or a file.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="What would replace it: an endpoint, or a file.")],
    *,
    strict: Annotated[bool, typer.Option("--strict", help="What is not proven to fit fails too.")] = False,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Compare two contracts as the gateway does when one replaces the other; ends with 1 when callers would break.

    \b
    Examples:
      mesh contract diff billing billing.nexusrpc.yaml
      mesh contract diff old.nexusrpc.yaml new.nexusrpc.yaml --strict
    """  # noqa: D301 - \b keeps the lines of an example
    from registry.compat import compare_services, record  # noqa: PLC0415 - pydantic takes a while to load

    show = Show(as_json)
    with Gateway(url, api_key) as gateway:
        before, after = find_source(old, gateway), find_source(new, gateway)
    changes = compare_services(specs_of(before), specs_of(after))
    told = [
        record(
            one,
            [
                {"namespace": caller["namespace"], "last_seen": caller["last_seen"]}
                for caller in before.callers
                if caller["service"] == one.service and one.operation in ("", caller["operation"])
            ],
        )
        for one in changes
    ]
    breaks = [one for one, change in zip(told, changes, strict=True) if change.breaks]
    unproven = [one for one, change in zip(told, changes, strict=True) if not change.breaks]
    if not show.json({"breaks": breaks, "unproven": unproven}):
        _tell(show, breaks, "[red]breaks[/]")
        _tell(show, unproven, "[yellow]not proven[/]")
        show.line(f"{len(breaks)} breaks, {len(unproven)} not proven" if told else "compatible")
    if breaks or (strict and unproven):
        raise typer.Exit(Exit.FAILED)


def _tell(show: Show, changes: list[dict[str, Any]], word: str) -> None:
    for one in changes:
        what = f"{one['service']}/{one['operation']}" if "operation" in one else one["service"]
        callers = ", ".join(caller["namespace"] for caller in one["callers"])
        who = f"  [bold]called lately by {plain(callers)}[/]" if callers else ""
        show.line(f"{word}  {plain(what)}: {plain(one['detail'])}  [dim]{plain(one['pointer'])}[/]{who}")


@app.command()
def generate(
    what: Named,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Left out: standard output.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Name to call, when it is made of a file.")] = None,
    service: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only these; may be repeated.")] = None,
    *,
    blocking: Annotated[bool, typer.Option("--sync", help="For mesh.SyncClient instead of mesh.Client.")] = False,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Write a Python module with the types of an endpoint's operations and a method for each.

    \b
    Examples:
      mesh contract generate billing --out billing.py
      mesh contract generate billing.nexusrpc.yaml --endpoint billing --sync
    """  # noqa: D301 - \b keeps the lines of an example
    from registry.contracts.python import generate as module  # noqa: PLC0415 - pydantic takes a while to load

    show = Show(as_json)
    with Gateway(url, api_key) as gateway:
        source = find_source(what, gateway)
    specs_of(source)
    services = _chosen(source, service)
    text = module(endpoint or source.name, services, version=source.version, blocking=blocking)
    if out is None:
        print(text, end="")
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as fault:
        raise Problem(f"--out: {out} cannot be written: {fault.strerror}") from None
    count = sum(len(one.get("operations") or ()) for one in services)
    if not show.json({"file": str(out), "operations": count}):
        show.line(f"{plain(str(out))}: {counted(count, 'operation')}")


def _chosen(source: Source, wanted: list[str] | None) -> list[dict[str, Any]]:
    names = [one["name"] for one in source.services]
    for name in wanted or ():
        if name not in names:
            raise Problem(f"{source.name} has no service {name!r}; it has {', '.join(names) or 'none listed'}")
    chosen = [one for one in source.services if not wanted or one["name"] in wanted]
    if not any(one.get("operations") for one in chosen):
        raise Problem(
            f"{source.name} lists no operations, so there is nothing to generate",
            "Register it with its operations: the SDK does, `mesh endpoint register --contract FILE` too.",
        )
    return chosen


@app.command()
def openapi(
    endpoint: Annotated[str, typer.Argument(help="Name of the endpoint.")],
    service: Annotated[str | None, typer.Option(metavar="NAME", help="Only this one.")] = None,
    *,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Print the OpenAPI 3.1 document of an endpoint.

    \b
    Example:
      mesh contract openapi billing > billing.openapi.json
    """  # noqa: D301 - \b keeps the lines of an example
    Show(as_json)  # it is JSON in any case; this is for how errors are told
    with Gateway(url, api_key) as gateway:
        document = gateway.get(f"/v1/endpoints/{quote_segment(endpoint)}/openapi.json", service=service)
    print(json.dumps(document, indent=2, ensure_ascii=False))
