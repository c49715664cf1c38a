"""`*.nexusrpc.yaml`: services and their types as nexus-rpc-gen writes them, brought to the form of a registration.

`nexusrpc: 1.x.y`, `services` with operations, `types` in JSON Schema draft 7. References lead to
`#/types/Name` or into another such file beside this one; nothing else is read. Every operation gets the types it uses.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, cast

from mesh.errors import Malformed
from registry.contracts.dialect import DRAFT_7, modern, pointer, put, subschemas

SUFFIXES: Final = (".nexusrpc.yaml", ".nexusrpc.yml", ".nexusrpc.json")
FILE_BYTES_MAX: Final = 4 << 20
FILES_MAX: Final = 50
_TYPES: Final = "/types/"
_LANGUAGES: Final = ("$pythonRef", "$goRef", "$javaRef", "$csharpRef", "$typescriptRef")
"""Types of one language in place of a schema; `$ref` beside them is what everybody else reads."""
_version: Final = re.compile(r"1\.\d+\.\d+").fullmatch

Kind = tuple[Path, str]
"""A type: the file it is in, and its name there."""


def read_contracts(*paths: Path) -> list[dict[str, Any]]:
    """The services of all files, as in a registration. Raises Malformed with the file, the place and the mend."""
    reader = _Reader()
    services: list[dict[str, Any]] = []
    for path in paths:
        for service in reader.services(path.resolve()):
            if any(one["name"] == service["name"] for one in services):
                raise Malformed(f"{path}: the service {service['name']!r} is in another file already")
            services.append(service)
    return services


class _Reader:
    def __init__(self) -> None:
        self._documents: dict[Path, dict[str, Any]] = {}

    def services(self, path: Path) -> list[dict[str, Any]]:
        document = self._document(path)
        found: list[dict[str, Any]] = []
        for name, service in _mapping(document, "services", path, ()).items():
            at = ("services", name)
            fields = _known(service, ("description", "operations"), path, at)
            operations = _mapping(fields, "operations", path, at)
            listed = [self._operation(path, (*at, "operations", one), one, operations[one]) for one in operations]
            found.append({"name": str(name), **_described(fields), "operations": listed})
        return found

    def _operation(self, path: Path, at: tuple[str, ...], name: str, operation: Any) -> dict[str, Any]:
        fields = _known(operation or {}, ("description", "input", "output"), path, at)
        found: dict[str, Any] = {"name": str(name), **_described(fields)}
        for side in ("input", "output"):
            # An absent input or output is null on the wire (P17).
            schema = self._schema(path, (*at, side), fields[side]) if side in fields else {"type": "null"}
            if schema is not None:
                found[side] = schema
        return found

    def _schema(self, path: Path, at: tuple[str, ...], schema: Any) -> Any:
        """A schema with all types it needs as `$defs`, in 2020-12; None where only one language knows the type."""
        used: dict[Kind, str] = {}
        made = self._moved(path, at, schema, used)
        if not isinstance(made, dict):
            return made
        done: dict[str, Any] = {}
        while len(done) < len(used):
            (file, name), label = next((kind, one) for kind, one in used.items() if one not in done)
            place = ("types", name)
            types = _mapping(self._document(file), "types", file, ())
            if name not in types:
                raise Malformed(f"{file}: there is no type {name!r}, which {path}#{pointer(at)} refers to")
            done[label] = self._moved(file, place, types[name], used) or {}
        return modern({**cast("dict[str, Any]", made), **({"$defs": done} if done else {})}, DRAFT_7)

    def _moved(self, path: Path, at: tuple[str, ...], schema: Any, used: dict[Kind, str]) -> Any:
        """`schema` with references to its `$defs`; notes in `used` which types those must be."""
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise Malformed(f"{path}#{pointer(at)}: a schema is an object, true or false")
        found: dict[str, Any] = {
            key: one for key, one in cast("dict[str, Any]", schema).items() if key not in (*_LANGUAGES, "$schema")
        }
        if not found and schema:
            return None
        if isinstance(reference := found.get("$ref"), str):
            found["$ref"] = f"#/$defs/{self._name(path, at, reference, used)}"
        for (keyword, *rest), sub in list(subschemas(found)):
            moved = self._moved(path, (*at, str(keyword), *(str(one) for one in rest)), sub, used)
            put(found, (keyword, *rest), True if moved is None else moved)
        return found

    def _name(self, path: Path, at: tuple[str, ...], reference: str, used: dict[Kind, str]) -> str:
        file, sign, place = reference.partition("#")
        if not sign or not place.startswith(_TYPES) or "/" in place.removeprefix(_TYPES) or "://" in file:
            raise Malformed(
                f"{path}#{pointer(at)}: {reference!r} is no reference to a type; write '#/types/Name', or"
                " 'other.nexusrpc.yaml#/types/Name' for one in a file beside this one"
            )
        target = (path.parent / file).resolve() if file else path
        name = place.removeprefix(_TYPES).replace("~1", "/").replace("~0", "~")
        kind = (target, name)
        if kind not in used:
            label, number = name, 2
            while label in used.values():
                label, number = f"{name}{number}", number + 1
            used[kind] = label
        return pointer((used[kind],))[1:]

    def _document(self, path: Path) -> dict[str, Any]:
        if path not in self._documents:
            if len(self._documents) >= FILES_MAX:
                raise Malformed(f"{path}: more than {FILES_MAX} files refer to each other")
            self._documents[path] = _read(path)
        return self._documents[path]


def _read(path: Path) -> dict[str, Any]:
    import yaml  # noqa: PLC0415 - only who reads such a file needs it; it reads JSON too

    try:
        raw = path.read_bytes()
        if len(raw) > FILE_BYTES_MAX:
            raise Malformed(f"{path} is larger than {FILE_BYTES_MAX} bytes")
        document = yaml.safe_load(raw.decode())
    except OSError as fault:
        raise Malformed(f"{path} cannot be read: {fault.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise Malformed(f"{path} is neither YAML nor JSON: {' '.join(str(fault).split())}") from None
    fields = _known(document, ("nexusrpc", "services", "types"), path, ())
    if not _version(str(fields.get("nexusrpc", ""))):
        raise Malformed(f"{path}: `nexusrpc` says the version, such as 1.0.0; this Mesh reads 1.x.y")
    return fields


def _known(value: Any, names: tuple[str, ...], path: Path, at: tuple[str, ...]) -> dict[str, Any]:
    """`value` as an object of these fields. Raises Malformed."""
    where = f"{path}#{pointer(at)}" if at else str(path)
    if not isinstance(value, dict):
        raise Malformed(f"{where}: expected an object with {', '.join(names)}")
    fields = cast("dict[str, Any]", value)
    strange = [str(name) for name in fields if name not in names]
    if strange:
        raise Malformed(f"{where}: {strange[0]!r} is not known here; it has {', '.join(names)}")
    return fields


def _mapping(fields: dict[str, Any], name: str, path: Path, at: tuple[str, ...]) -> dict[str, Any]:
    found: Any = fields.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Malformed(f"{path}#{pointer((*at, name))}: expected names and what they stand for")
    return cast("dict[str, Any]", found)


def _described(fields: dict[str, Any]) -> dict[str, str]:
    return {"description": str(fields["description"])} if fields.get("description") else {}
