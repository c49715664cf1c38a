"""Where a command finds a contract: a file of one of three kinds, or an endpoint of the gateway.

Files: `*.nexusrpc.yaml`, a registration (JSON or YAML with `services`), or what `mesh endpoint show --json` printed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from gateway.cli.exits import Exit, Problem
from mesh.errors import Malformed, MeshError
from mesh.wire import quote_segment

if TYPE_CHECKING:
    from gateway.cli.wire import Gateway

FILE_ENDINGS: Final = (".yaml", ".yml", ".json")


class Source(NamedTuple):
    """A contract. `version` and `callers` are those of an endpoint, empty for a file."""

    name: str
    services: list[dict[str, Any]]
    version: str = ""
    callers: list[dict[str, Any]] = []  # noqa: RUF012 - read only


def find_source(text: str, gateway: Gateway) -> Source:
    """What `text` names: a file where it looks like one, else an endpoint. Raises Problem, MeshError."""
    path = Path(text)
    if text.endswith(FILE_ENDINGS) or "/" in text or path.is_file():
        return Source(_stem(path), read_services(path))
    found = gateway.get(f"/v1/endpoints/{quote_segment(text)}/contract")
    return Source(text, found["services"], str(found["version"]), found.get("callers", []))


def read_services(*paths: Path) -> list[dict[str, Any]]:
    """The services that files declare. Raises Problem."""
    from registry.contracts.idl import SUFFIXES, read_contracts  # noqa: PLC0415 - only for files

    idl = [path for path in paths if path.name.endswith(SUFFIXES) or "nexusrpc" in _read_mapping(path)]
    try:
        found = read_contracts(*idl)
    except Malformed as error:
        raise Problem(error.detail) from None
    for path in paths:
        if path not in idl:
            services = _read_mapping(path).get("services")
            if not isinstance(services, list):
                raise Problem(
                    f"{path} declares no services",
                    "It is a *.nexusrpc.yaml file, or a registration with a list `services`.",
                )
            found += cast("list[dict[str, Any]]", services)
    return found


def _read_mapping(path: Path) -> dict[str, Any]:
    import yaml  # noqa: PLC0415 - only for files; YAML reads JSON too

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise Problem(f"{path} cannot be read: {fault.strerror}", exit_code=Exit.USAGE) from None
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise Problem(f"{path} is neither JSON nor YAML: {' '.join(str(fault).split())}") from None
    if not isinstance(found, dict):
        raise Problem(f"{path} does not hold an object")
    return cast("dict[str, Any]", found)


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]


def specs_of(source: Source) -> list[Any]:
    """The services as the registry reads them. Raises Problem, which says where and why."""
    from registry.contracts import Contract  # noqa: PLC0415 - pydantic takes a while to load
    from registry.gate import schemas  # noqa: PLC0415 - as above
    from registry.spec import EndpointSpec, read_spec  # noqa: PLC0415 - as above

    try:
        spec = read_spec(EndpointSpec, {"services": source.services})
    except MeshError as error:
        raise Problem(f"{source.name}: {error.detail}") from None
    for at, schema in schemas(spec):
        if why := Contract(schema).why_unusable():
            raise Problem(f"{source.name}: the schema at {at} cannot be applied: {why}")
    return spec.services or []
