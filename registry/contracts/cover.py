"""Whether every value that one schema admits is admitted by another: yes, no, or not to be proven.

The proof is jsonschema-rs's canonical form of both. It knows no recursion beyond equality and takes objects as open, so
compare.py walks through whole schemas and asks here about what stands at one place. Schemas of other teams may take it
long: the gateway asks in the examiner's process.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final, cast

from registry.contracts.dialect import Place, Schema, every, fragment, normal, put, subschemas, targets
from registry.contracts.validator import AUTOMATON_BYTES_MAX, DFA_BYTES_MAX

_KEPT: Final = "document"
"""Where a whole schema is kept beside parts of it that refer into it."""


class Verdict(StrEnum):
    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


def movable(schema: Schema, base: str = f"#/$defs/{_KEPT}") -> Schema:
    """The document with its references as they must be once it stands at `base` of another."""
    known = targets(every(schema))

    def moved(one: Any) -> Any:
        if not isinstance(one, dict):
            return one
        found = {key: value for key, value in cast("dict[str, Any]", one).items() if key != "$anchor"}
        if isinstance(reference := found.get("$ref"), str):
            found["$ref"] = f"{base}{fragment(known[normal(reference)])}"
        for place, sub in list(subschemas(found)):
            put(found, place, moved(sub))
        return found

    return moved(schema)


def beside(document: Schema, *parts: dict[str, Any]) -> dict[str, Any]:
    """A schema of all `parts` of a movable document, which they refer into."""
    return {"allOf": list(parts), "$defs": {_KEPT: document}}


def part(document: Schema, place: Place) -> Any:
    """What stands at `place` of a movable document."""
    found: Any = document
    for step in place:
        found = found[step]
    return found


def covers(wide: Schema, narrow: Schema) -> Verdict:
    """Whether `wide` admits all that `narrow` admits; `format` is a remark."""
    import jsonschema_rs  # noqa: PLC0415 - as in validator.py

    limits = jsonschema_rs.RegexOptions(size_limit=AUTOMATON_BYTES_MAX, dfa_size_limit=DFA_BYTES_MAX)
    try:
        first, second = (
            jsonschema_rs.canonicalize(
                one, draft=jsonschema_rs.Draft202012, validate_formats=False, pattern_options=limits, offline=True
            )
            for one in (wide, narrow)
        )
        return Verdict(first.covers(second).value)
    except ValueError:  # jsonschema-rs: all its canonical errors are; what it cannot model it cannot prove
        return Verdict.UNKNOWN
