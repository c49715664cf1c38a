"""The validator behind every check: jsonschema-rs, with nothing fetched and patterns in linear time.

The one file that knows the library, which is loaded with the first schema: a gateway without schemas needs it not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from registry.contracts.dialect import fragment

if TYPE_CHECKING:
    import jsonschema_rs

    from registry.contracts.dialect import Place, Schema

DOCUMENT: Final = "urn:mesh:schema"
"""Base of references into a whole schema from a small one beside it."""
AUTOMATON_BYTES_MAX: Final = 256 << 10
"""Of one pattern."""
DFA_BYTES_MAX: Final = 1 << 20


def reference(place: Place) -> dict[str, str]:
    """To a place of the whole schema, from a small one beside it."""
    return {"$ref": f"{DOCUMENT}#{fragment(place)}"}


class Validator(Protocol):
    """Says yes or no; what else it could say copies the value once per error."""

    def is_valid(self, instance: Any) -> bool: ...


def validator(schema: Schema, *, automaton_bytes: int = AUTOMATON_BYTES_MAX) -> Validator:
    """Raises ValueError for what cannot be applied."""
    import jsonschema_rs  # noqa: PLC0415 - the rule of this file

    limits = jsonschema_rs.RegexOptions(size_limit=automaton_bytes, dfa_size_limit=DFA_BYTES_MAX)
    return jsonschema_rs.Draft202012Validator(schema, validate_formats=False, pattern_options=limits, offline=True)


class Beside:
    """Validators of small schemas that refer to parts of `document` by DOCUMENT."""

    def __init__(self, document: Schema) -> None:
        import jsonschema_rs  # noqa: PLC0415 - as above

        self._registry: jsonschema_rs.Registry = jsonschema_rs.Registry([(DOCUMENT, document)])

    def validator(self, schema: dict[str, Any]) -> Validator:
        import jsonschema_rs  # noqa: PLC0415 - as above

        limits = jsonschema_rs.RegexOptions(size_limit=AUTOMATON_BYTES_MAX, dfa_size_limit=DFA_BYTES_MAX)
        return jsonschema_rs.Draft202012Validator(
            schema, registry=self._registry, validate_formats=False, pattern_options=limits, offline=True
        )


def why_no_schema(schema: Schema) -> tuple[str, list[str | int]] | None:
    """Why `schema` is no JSON Schema (2020-12), and the path to where; None when it is one."""
    import jsonschema_rs  # noqa: PLC0415 - as above

    try:
        jsonschema_rs.meta.validate(schema)
    except jsonschema_rs.ValidationError as error:
        return error.message, error.instance_path
    return None
