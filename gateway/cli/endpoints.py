"""`mesh endpoint`: the registry from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final, cast

import typer

from gateway.cli.endpoint import Name, endpoint_path, health_of, services_of
from gateway.cli.exits import Problem
from gateway.cli.options import ApiKey, Json, Labels, Url, check_url, if_match_header, pairs, read_json
from gateway.cli.show import Show, plain
from gateway.cli.sources import read_services
from gateway.cli.wire import Gateway, Reply
from mesh.errors import NotFound
from mesh.words import counted

REGISTERED: Final = ("description", "target", "services", "policy", "allow", "labels")
"""The fields of a registration, which a record shows among others; a test compares them with the registry's."""

app = typer.Typer(
    no_args_is_help=True, help="Endpoints, the registered agents: what they are, who waits, which versions run."
)


@app.command()
def register(
    name: Name,
    target: Annotated[
        str | None, typer.Option("--target", "-t", metavar="URL", help="Where the agent answers Nexus requests.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="The whole registration, JSON or YAML.")
    ] = None,
    service: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=OP,OP]", help="A service and its operations; left out: any. May be repeated."),
    ] = None,
    contract: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Services and their schemas: *.nexusrpc.yaml, or with `services`. Repeatable."
        ),
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(metavar="NAMESPACE", help="Who may call beside you; * for all.")
    ] = None,
    description: Annotated[str | None, typer.Option()] = None,
    policy: Annotated[
        str | None, typer.Option(metavar="JSON", help="Timeouts, retries, limits; JSON, @FILE or -.")
    ] = None,
    label: Labels = None,
    if_match: Annotated[str | None, typer.Option(metavar="ETAG", help="Change only this one: v3, or 3.")] = None,
    *,
    pull: Annotated[bool, typer.Option("--pull", help="Its agents ask for their work; there is no URL.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Forget what is not named here.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also when callers of the present contract break.")] = False,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Create an endpoint or change it. Agents made with the SDK register themselves; this is for all others.

    What is not named stays as it is, unless --replace is given or --file, which holds the whole registration.

    \b
    Examples:
      mesh endpoint register billing --target http://127.0.0.1:9000
      mesh endpoint register billing -t http://127.0.0.1:9000 --service invoices=create,send
      mesh endpoint register laptop --pull
      mesh endpoint register billing --contract billing.nexusrpc.yaml
      mesh endpoint register billing --allow research --allow quality
      mesh endpoint register billing --file billing.yaml --if-match v3
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    spec = _from_file(file) if file is not None else {}
    check_url(target, "--target")
    if pull or target is not None:
        spec["target"] = _target(target, pull=pull)
    if service or contract:
        spec["services"] = _services_of(service or [], contract or [])
    if allow:
        spec["allow"] = allow
    if description is not None:
        spec["description"] = description
    if policy is not None:
        spec["policy"] = read_json(policy, "--policy")[1]
    if label:
        spec["labels"] = pairs(label, "--label")
    if not spec:
        raise Problem("nothing to register", "Give --target URL, --pull, --contract FILE, or --file FILE.")
    with Gateway(url, api_key) as gateway:
        present, etag = _present(gateway, name)
        whole = replace or file is not None
        headers = if_match_header(if_match or ("" if whole else etag))
        query = {"force": "true"} if force else {}
        body = json.dumps(spec if whole else present | spec).encode()
        reply = gateway.ask("PUT", endpoint_path(name), query=query, body=body, headers=headers)
    if not show.json(reply.json()):
        _tell_put(show, name, reply, etag)


def _tell_put(show: Show, name: str, reply: Reply, before: str) -> None:
    changed = "unchanged" if before and before == reply.headers.get("etag") else "changed"
    done = "registered" if reply.status == 201 else changed  # noqa: PLR2004
    show.line(f"endpoint [bold]{plain(name)}[/] {done}, registration {reply.json()['version']}")
    for one in reply.json().get("warnings", ()):
        show.note(f"{one['pointer']}: {one['detail']}")
    for one in reply.json().get("contract_change", {}).get("unproven", ()):
        show.note(f"not proven to fit: {one['service']}/{one.get('operation', '')}: {one['detail']}")


def _target(url: str | None, *, pull: bool) -> dict[str, Any]:
    if pull and url is not None:
        raise Problem("--pull and --target exclude each other", "Who asks for work is not sent any.")
    return {"kind": "pull"} if pull else {"kind": "http", "url": url}


def _services_of(listed: list[str], files: list[Path]) -> list[dict[str, Any]]:
    if listed and files:
        raise Problem("--service and --contract exclude each other", "A contract lists the services.")
    return read_services(*files) if files else [_service(text) for text in listed]


def _present(gateway: Gateway, name: str) -> tuple[dict[str, Any], str]:
    """What is registered, as its registration would say it, and its ETag; nothing for an endpoint that is new."""
    try:
        reply = gateway.ask("GET", endpoint_path(name))
    except NotFound:
        return {}, ""
    record = reply.json()
    spec = {field: record[field] for field in REGISTERED if record.get(field)}
    return spec, reply.headers.get("etag", "")


def _from_file(path: Path) -> dict[str, Any]:
    import yaml  # noqa: PLC0415 - only for this option; YAML reads JSON too

    try:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise Problem(f"--file: {path} cannot be read: {fault.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise Problem(f"--file: {path} is neither JSON nor YAML: {' '.join(str(fault).split())}") from None
    if not isinstance(spec, dict):
        raise Problem(f"--file: {path} does not hold an object with the fields of an endpoint")
    return cast("dict[str, Any]", spec)


def _service(text: str) -> dict[str, Any]:
    name, sign, listed = text.partition("=")
    operations = [{"name": one.strip()} for one in listed.split(",")] if sign else []
    if any(not one["name"] for one in operations):
        raise Problem(f"--service {text!r} has an operation without a name", "Give NAME for any, or NAME=OP,OP.")
    return {"name": name, "operations": operations} if sign else {"name": name}


@app.command("list")
def list_(
    service: Annotated[str | None, typer.Option()] = None,
    operation: Annotated[str | None, typer.Option()] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", "--label", metavar="NAME=VALUE", help="May be given several times.")
    ] = None,
    search: Annotated[str | None, typer.Option(help="Words that name, description, tags or operations have.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 50,
    cursor: Annotated[str | None, typer.Option(help="Where the last page ended.")] = None,
    *,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """List the endpoints that you own or may call, with their health.

    \b
    Examples:
      mesh endpoint list
      mesh endpoint list --service checks --json
      mesh endpoint list --tag team=quality --search lint
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    query = {"service": service, "operation": operation, "search": search, "limit": limit, "cursor": cursor}
    query |= {f"label.{name}": value for name, value in pairs(tag, "--tag").items()}
    with Gateway(url, api_key) as gateway:
        page = gateway.ask("GET", "/v1/endpoints", query=query).json()
    if show.json(page):
        return
    rows = [
        (
            plain(one["name"]),
            health_of(one),
            plain(one["owner"]),
            plain(services_of(one) or "any"),
            str(one["running"]),
            str(one["waiting"]),
        )
        for one in page["items"]
    ]
    show.table(("endpoint", "state", "owner", "services", "running", "waiting"), rows, "no endpoints")
    if page["next_cursor"]:
        show.note(f"more with --cursor {page['next_cursor']}")


@app.command()
def pause(name: Name, *, url: Url = "", api_key: ApiKey = "", as_json: Json = False) -> None:
    """Keep new operations of an endpoint without dispatching them; what its agent has goes on.

    \b
    Example:
      mesh endpoint pause checks
    """  # noqa: D301 - \b keeps the lines of an example
    _post(name, "pause", url, api_key, Show(as_json))


@app.command()
def resume(name: Name, *, url: Url = "", api_key: ApiKey = "", as_json: Json = False) -> None:
    """Dispatch again what a paused endpoint kept.

    \b
    Example:
      mesh endpoint resume checks
    """  # noqa: D301 - \b keeps the lines of an example
    _post(name, "resume", url, api_key, Show(as_json))


def _post(name: str, verb: str, url: str, api_key: str, show: Show) -> None:
    with Gateway(url, api_key) as gateway:
        found = gateway.ask("POST", f"{endpoint_path(name)}/{verb}").json()
    if not show.json(found):
        wait = "waits" if found["waiting"] == 1 else "wait"
        waiting = f", {counted(found['waiting'], 'operation')} {wait}" if found["paused"] else ""
        show.line(f"endpoint [bold]{plain(name)}[/] {'is paused' if found['paused'] else 'dispatches'}{waiting}")


@app.command()
def remove(
    name: Name,
    if_match: Annotated[str | None, typer.Option(metavar="ETAG", help="Remove only this one: v3, or 3.")] = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Remove an endpoint. Work that waits for it stays until its own deadlines.

    \b
    Example:
      mesh endpoint remove billing --yes
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    with Gateway(url, api_key) as gateway:
        if not yes and not as_json:
            found = gateway.get(endpoint_path(name))  # nobody is asked about what is not there
            waits = f" {counted(found['waiting'], 'operation')} wait for it." if found.get("waiting") else ""
            typer.confirm(f"Remove endpoint {name} of {plain(found['owner'])}?{waits}", abort=True)
        gateway.ask("DELETE", endpoint_path(name), headers=if_match_header(if_match))
    if not show.json({"name": name, "removed": True}):
        show.line(f"endpoint [bold]{plain(name)}[/] removed")
