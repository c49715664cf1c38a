"""`mesh dev` and `mesh serve`: gateways in the foreground. What a gateway is made of is gateway/server.py.

Owns the banner, the logging of a gateway process and the namespaces that a development directory remembers.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gateway.cli.exits import Problem
from gateway.cli.options import Json
from gateway.cli.show import Show
from mesh.errors import ConfigError
from mesh.gateways import GATEWAY

if TYPE_CHECKING:
    from gateway.settings import Settings

DATA: Final = Path(".mesh")
NAMESPACES_FILE: Final = "namespaces.toml"
KEY_BYTES: Final = 24
_NO_FILE: Final = "settings: "
"""How settings that came from no file begin their errors."""
_NAMESPACE: Final = re.compile(r"namespaces\[(\d+)\]")

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log more than trouble.")]


def dev(
    data: Annotated[
        Path,
        typer.Option("--data", envvar="MESH_DATA", metavar="DIR", help="Where operations are kept; made if missing."),
    ] = DATA,
    host: Annotated[str, typer.Option(help="Address to listen on; without keys loopback only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any free one.", min=0, max=65535)] = 7411,
    namespace: Annotated[
        list[str] | None,
        typer.Option(
            "--namespace",
            metavar="NAME[=KEY]",
            help="A team, with a key of its own; made up and kept in the data directory if left out. May be repeated.",
        ),
    ] = None,
    public_url: Annotated[
        str | None, typer.Option("--public-url", help="URL that agents reach this gateway at, if not this address.")
    ] = None,
    *,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run a gateway with its own store, for development: one command, nothing else to install.

    Operations are durable: each is on the disk, below --data, before it is acknowledged. Ctrl-C ends everything; the
    next start on the same directory goes on where this one stopped.

    \b
    Examples:
      mesh dev
      mesh dev --data ~/mesh-data --port 8000
      mesh dev --namespace quality --namespace research=a-key-of-16-or-more
    """  # noqa: D301 - \b keeps the lines of an example
    from gateway import server  # noqa: PLC0415 - half a second that other commands do not have
    from gateway.settings_file import load  # noqa: PLC0415 - as above

    show = Show(as_json)
    _log_to_stderr(verbose=verbose)
    data = data.expanduser().resolve()
    file = data / NAMESPACES_FILE
    known = _known(file)
    tables = _namespaces(known, namespace or ())
    overrides = {"gateway": {"host": host, "port": port or _free_port(host), "public_url": public_url}}
    try:
        settings = load(overrides=overrides, namespaces=tables)
    except ConfigError as error:
        raise ConfigError(_by_flag(error.detail, tables)) from None
    if tables != known:
        _write(file, "".join(_toml(one["name"], one["keys"]) for one in tables))
    bound = settings.bound(host, settings.gateway.port)
    server.dev(bound, data, ready=lambda: _banner(show, bound, data, tables))


def serve(
    config: Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="Settings, as TOML.")],
    host: Annotated[str | None, typer.Option(help="Instead of the file's.")] = None,
    port: Annotated[int | None, typer.Option(help="Instead of the file's.", min=0, max=65535)] = None,
    *,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run a gateway against a given store (Valkey >= 8 or Redis >= 7). Any number of them may share one store.

    MESH_STORE_URL stands for store.url in the file, MESH_TOKEN_SECRET for one completion key. A store that would lose
    acknowledged work is refused, with the reason.

    \b
    Examples:
      mesh serve --config deploy/mesh.toml
      MESH_STORE_URL=redis://db:6379/0 mesh serve -c mesh.toml --port 7412
    """  # noqa: D301 - \b keeps the lines of an example
    from gateway import server  # noqa: PLC0415 - half a second that other commands do not have
    from gateway.settings_file import load  # noqa: PLC0415 - as above

    show = Show(as_json)
    _log_to_stderr(verbose=verbose)
    settings = load(config, serve=True, overrides={"gateway": {"host": host, "port": port}})
    bound = settings.bound(settings.gateway.host, settings.gateway.port or _free_port(settings.gateway.host))

    def ready() -> None:
        if not show.json({"url": bound.gateway.public_url, "pid": os.getpid(), "config": str(config)}):
            print(f"Mesh serves at {bound.gateway.public_url}  (settings {config}, process {os.getpid()})", flush=True)

    server.serve(bound, ready=ready)


def _free_port(host: str) -> int:
    """A port for `--port 0`, known before the gateway has it, so that the banner can name it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, 0), family=family) as probe:
            port: int = probe.getsockname()[1]
            return port
    except OSError as fault:
        raise Problem(f"cannot listen on {host}: {fault.strerror}", "Name an address of this machine.") from None


def _banner(show: Show, settings: Settings, data: Path, teams: Sequence[dict[str, Any]]) -> None:
    url = settings.gateway.public_url
    if show.json({"url": url, "pid": os.getpid(), "data": str(data), "namespaces": list(teams)}):
        return
    bold, dim = ("\033[1m", "\033[2m") if sys.stdout.isatty() else ("", "")
    off = "\033[0m" if bold else ""
    asks = f" -H 'Authorization: Bearer {teams[0]['keys'][0]}'" if teams else ""
    exports = f"export MESH_URL={url}\n  " if url != GATEWAY else ""
    exports += f"export MESH_KEY={teams[0]['keys'][0]}\n  " if teams else ""
    lines = [
        f"{bold}Mesh{off}: durable calls between agents. This gateway and its store run until Ctrl-C.",
        "",
        f"  {bold}URL{off}    {url}   {dim}(API pages: {url}/docs){off}",
        f"  {bold}Data{off}   {data}   {dim}(on disk before it is acknowledged){off}",
        *(f"  {bold}Team{off}   {team['name']}, key {team['keys'][0]}" for team in teams),
        "",
        "Next, in another terminal:",
        "",
        f"  {exports}{_python()} -m gateway.demo.agents retrieval   {dim}# an agent: searches Python's docs{off}",
        f'  {_mesh()} call retrieval retrieval search --input \'{{"question": "wait for several tasks"}}\'',
        f"  curl{asks} {url}/v1/operations",
        "",
    ]
    print("\n".join(lines), flush=True)


def _python() -> str:
    """How this Python is called from a shell here."""
    found = shutil.which("python")
    return "python" if found and Path(found).samefile(sys.executable) else sys.executable


def _mesh() -> str:
    return "mesh" if shutil.which("mesh") else f"{_python()} -m gateway.cli.main"


def _by_flag(detail: str, tables: Sequence[dict[str, Any]]) -> str:
    """What is wrong with a setting, by the option that gave it: `mesh dev` has no file of settings."""
    if not detail.startswith(_NO_FILE):
        return detail
    key, _, what = detail.removeprefix(_NO_FILE).partition(": ")
    if given := _NAMESPACE.match(key):
        return f"--namespace {tables[int(given[1])]['name']}: {what}"
    table, _, option = key.rpartition(".")
    what = what.replace("add [[namespaces]] with keys", "add --namespace NAME")
    return f"--{option.replace('_', '-')}: {what}" if table == "gateway" else f"{key}: {what}"


def _known(file: Path) -> list[dict[str, Any]]:
    """The teams that a development directory remembers.

    Operations belong to a team, so a directory that forgot its teams would hide them.
    """
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8")).get("namespaces", [])
        return [{"name": str(table["name"]), "keys": list(table["keys"])} for table in tables]
    except FileNotFoundError:
        return []
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as fault:
        mend = "Mend or delete the file; deleting it gives up the teams' keys."
        raise Problem(f"{file} cannot be read: {fault}", mend) from None


def _namespaces(known: Sequence[dict[str, Any]], given: Sequence[str]) -> list[dict[str, Any]]:
    """The known teams and those given now."""
    from mesh.ids import secret_bytes  # noqa: PLC0415 - not for `mesh --help`

    tables: dict[str, list[str]] = {one["name"]: one["keys"] for one in known}
    for text in given:
        name, sign, key = text.partition("=")
        if sign:
            tables[name] = [key]
        elif name not in tables:
            tables[name] = [secret_bytes(KEY_BYTES).hex()]
    return [{"name": name, "keys": keys} for name, keys in tables.items()]


def _toml(name: str, keys: list[str]) -> str:
    return f"[[namespaces]]\nname = {json.dumps(name)}\nkeys = {json.dumps(keys)}\n\n"


def _write(file: Path, text: str) -> None:
    """Keys are for this user's eyes only, from the first byte on."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = file.with_suffix(".new")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
            out.write(text)
        draft.replace(file)
    except OSError as fault:
        raise Problem(f"{file} cannot be written: {fault.strerror}", "Name another directory with --data.") from None


def _log_to_stderr(*, verbose: bool) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)-7s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
