"""JSON Schemas of operations: whether a schema can be applied at all, and whether a value keeps it.

Schemas come from other teams: nothing is fetched (references stay inside the schema), sizes are capped, and a schema
that would recurse without end is refused at registration. Knows no endpoint; dialect JSON Schema 2020-12.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from mesh.errors import Unprocessable
from mesh.wire import load_json

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator
    from jsonschema import ValidationError as JsonSchemaError

SCHEMA_BYTES_MAX: Final = 32 * 1024
BREACHES_MAX: Final = 20
"""Breaches that one answer lists."""
BREACH_CHARS_MAX: Final = 300
_REFERENCES: Final = ("$ref", "$dynamicRef")
_SAMPLES: Final[tuple[Any, ...]] = (None, {}, [], "", 0)


def pointer(parts: Iterable[str | int], prefix: str = "") -> str:
    """RFC 6901: `("a/b", 0)` -> `/a~1b/0`."""
    return prefix + "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


class _Unusable(Exception):
    """Why, in words."""


class Contract:
    """One schema. Compiled when it is first used, for most of a registry is never called through this gateway."""

    def __init__(self, schema: dict[str, Any] | bool) -> None:  # noqa: FBT001 - `true` is a JSON Schema
        self.schema = schema

    @cached_property
    def _validator(self) -> Draft202012Validator:
        # Imported here: 60 ms that a gateway without schemas need not spend before its first answer.
        from jsonschema import Draft202012Validator  # noqa: PLC0415
        from referencing import Registry  # noqa: PLC0415

        return Draft202012Validator(self.schema, registry=Registry())

    def why_unusable(self) -> str:
        """The reason why this schema cannot be applied, or "". Said at registration."""
        if len(msgspec.json.encode(self.schema)) > SCHEMA_BYTES_MAX:
            return f"the schema is larger than {SCHEMA_BYTES_MAX} bytes"
        references = _references(self.schema)
        outside = [one for one in references if not one.startswith("#")]
        if outside:
            return f"references to other documents are not followed: {_cut(outside[0])}"
        try:
            self._try(references)
        except _Unusable as error:
            return str(error)
        except RecursionError:
            return "the schema refers to itself without end, or is nested too deeply"
        except Exception as error:  # noqa: BLE001 - whatever a schema of somebody else's makes the validator do
            return f"the schema cannot be applied: {_cut(str(error))}"
        return ""

    def _try(self, references: list[str]) -> None:
        from jsonschema import Draft202012Validator, SchemaError  # noqa: PLC0415
        from referencing import Registry, Resource  # noqa: PLC0415
        from referencing.exceptions import Unresolvable  # noqa: PLC0415
        from referencing.jsonschema import DRAFT202012  # noqa: PLC0415

        try:
            Draft202012Validator.check_schema(self.schema)
        except SchemaError as error:
            where = pointer(error.absolute_path) or "/"
            raise _Unusable(f"not a JSON Schema (2020-12): {_cut(error.message)} at {where}") from None
        resource: Resource[Any] = Resource(contents=self.schema, specification=DRAFT202012)
        empty: Registry[Any] = Registry()
        resolver = empty.with_resource("", resource).resolver()
        try:
            for reference in references:
                resolver.lookup(reference)
        except Unresolvable as error:
            raise _Unusable(f"a reference leads nowhere: {_cut(str(error))}") from None
        for sample in _SAMPLES:
            self.breaches_of(sample)

    def breaches(self, value: Any, prefix: str = "") -> list[dict[str, str]]:
        """What in `value` breaks the schema, as `{pointer, detail}`; empty when nothing does."""
        try:
            found = self.breaches_of(value)
        except RecursionError:
            return [{"pointer": prefix, "detail": "nested too deeply for its schema"}]
        return [{"pointer": pointer(one.absolute_path, prefix), "detail": _cut(one.message)} for one in found]

    def breaches_of(self, value: Any) -> list[JsonSchemaError]:
        """As jsonschema finds them, the first BREACHES_MAX. Raises RecursionError."""
        found = self._validator.iter_errors(value)  # pyright: ignore[reportUnknownMemberType]
        return list(islice(found, BREACHES_MAX))

    def check(self, body: bytes, prefix: str = "") -> None:
        """Raise Unprocessable `schema_breach` unless the JSON text keeps the schema; `b""` counts as null.

        Raises Malformed when it is no strict JSON. Pointers are put behind `prefix`.
        """
        found = self.breaches(load_json(body) if body else None, prefix)
        if found:
            where = found[0]["pointer"]
            detail = f"the input breaks the registered schema{f' at {where}' if where else ''}: {found[0]['detail']}"
            raise Unprocessable(detail, code="schema_breach", errors=list(found))


def _references(node: Any) -> list[str]:
    found: list[str] = []
    level: list[Any] = [node]
    while level:
        one = level.pop()
        if isinstance(one, dict):
            fields = cast("dict[str, Any]", one)
            found += [value for key in _REFERENCES if isinstance(value := fields.get(key), str)]
            level += fields.values()
        elif isinstance(one, list):
            level += cast("list[Any]", one)
    return found


def _cut(text: str) -> str:
    return text if len(text) <= BREACH_CHARS_MAX else text[:BREACH_CHARS_MAX] + "..."
