"""JSON Schema as documents of other teams have it: which dialect, where its subschemas are, what its references mean.

Everything here works on 2020-12; `modern` brings drafts 6 and 7 and 2019-09 there. Nothing is fetched, nothing is
validated. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeAlias, cast
from urllib.parse import quote, unquote

Schema: TypeAlias = dict[str, Any] | bool
Place: TypeAlias = tuple[str | int, ...]
"""Where a subschema stands in its document: the parts of a JSON Pointer."""

DRAFT_2020: Final = "https://json-schema.org/draft/2020-12/schema"
OLDER: Final = frozenset(
    {
        "https://json-schema.org/draft/2019-09/schema",
        "http://json-schema.org/draft-07/schema",
        "http://json-schema.org/draft-06/schema",
    }
)
DRAFT_7: Final = "http://json-schema.org/draft-07/schema#"

SAME_ONE: Final = ("not", "if", "then", "else")
"""Keywords whose subschema sees the same value."""
SAME_MANY: Final = ("allOf", "anyOf", "oneOf")
PART_ONE: Final = (
    "items", "additionalProperties", "propertyNames", "contains", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
"""Keywords whose subschema sees parts of the value."""
PART_MAP: Final = ("properties", "patternProperties")
STORED: Final = ("$defs", "definitions")
"""Where schemas wait to be referred to."""
UNEVALUATED: Final = ("unevaluatedItems", "unevaluatedProperties")
NOT_SUPPORTED: Final = {
    "$dynamicRef": "use $ref",
    "$dynamicAnchor": "use $anchor",
    "$recursiveRef": "use $ref",
    "$recursiveAnchor": "leave it out",
    "$vocabulary": "leave it out",
}


_ONE: Final = frozenset((*SAME_ONE, *PART_ONE))
_LISTS: Final = frozenset((*SAME_MANY, "prefixItems"))
_MAPS: Final = frozenset((*PART_MAP, "dependentSchemas", *STORED))


def pointer(parts: Iterable[str | int], prefix: str = "") -> str:
    """RFC 6901: `("a/b", 0)` -> `/a~1b/0`."""
    return prefix + "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def fragment(place: Place) -> str:
    """A place as it stands behind `#` in a reference."""
    return quote(pointer(place), safe="/~!$&'()*+,;=:@")


def dialect_of(schema: Schema) -> str:
    """What `$schema` names, without an empty fragment; 2020-12 when it names nothing."""
    named = schema.get("$schema") if isinstance(schema, dict) else None
    return named.removesuffix("#") if isinstance(named, str) else DRAFT_2020


def subschemas(schema: dict[str, Any]) -> Iterator[tuple[Place, Schema]]:
    """The subschemas of one object and where each stands in it; one level down."""
    for keyword in _ONE & schema.keys():
        yield from _schemas([((keyword,), schema[keyword])])
    for keyword in _LISTS & schema.keys():
        if isinstance(many := schema[keyword], list):
            yield from _schemas(((keyword, at), one) for at, one in enumerate(cast("list[Any]", many)))
    for keyword in _MAPS & schema.keys():
        if isinstance(named := schema[keyword], dict):
            yield from _schemas(((keyword, name), one) for name, one in cast("dict[str, Any]", named).items())


def _schemas(found: Iterable[tuple[Place, Any]]) -> Iterator[tuple[Place, Schema]]:
    for place, one in found:
        if isinstance(one, (dict, bool)):
            yield place, cast("Schema", one)


def every(schema: Schema) -> Iterator[tuple[Place, Schema]]:
    """All subschemas of a document, itself first."""
    waiting: list[tuple[Place, Schema]] = [((), schema)]
    while waiting:
        place, one = waiting.pop()
        yield place, one
        if isinstance(one, dict):
            waiting += [(place + more, sub) for more, sub in subschemas(one)]


def targets(places: Iterable[tuple[Place, Schema]]) -> dict[str, Place]:
    """What `$ref` may name among the subschemas of a document: `#`, `#/pointer` of each, `#anchor`."""
    found: dict[str, Place] = {}
    for place, one in places:
        found["#" + pointer(place)] = place
        if isinstance(one, dict) and isinstance(anchor := one.get("$anchor"), str):
            found["#" + anchor] = place
    return found


def normal(reference: str) -> str:
    """A reference as `targets` spells it: percent-decoded."""
    return unquote(reference)


# Older drafts -----------------------------------------------------------------------------------------------------


def modern(schema: Schema, draft: str = "") -> Schema:
    """The same schema in 2020-12, for drafts 6, 7 and 2019-09 (`draft`, else what `$schema` says); else as it is.

    `items` lists, `additionalItems`, `dependencies`, and the neighbours of `$ref`, which drafts 6 and 7 pass over.
    """
    dialect = draft.removesuffix("#") or dialect_of(schema)
    return schema if dialect not in OLDER else _modern(schema, alone="draft-0" in dialect)


def _modern(schema: Any, *, alone: bool) -> Any:
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in cast("dict[str, Any]", schema).items() if key != "$schema"}
    if alone and isinstance(kept.get("$ref"), str):
        kept = {key: value for key, value in kept.items() if key in ("$ref", *STORED)}
    for place, one in list(subschemas(kept)):
        put(kept, place, _modern(one, alone=alone))
    rest = kept.pop("additionalItems", None)
    if isinstance(items := kept.get("items"), list):
        first = [_modern(one, alone=alone) for one in cast("list[Any]", items)]
        kept |= {"prefixItems": first} if first else {}
        del kept["items"]
        kept |= {"items": _modern(rest, alone=alone)} if rest is not None else {}
    if isinstance(dependencies := kept.pop("dependencies", None), dict):
        for name, wanted in cast("dict[str, Any]", dependencies).items():
            word = "dependentRequired" if isinstance(wanted, list) else "dependentSchemas"
            kept.setdefault(word, {})[name] = _modern(wanted, alone=alone)
    return kept


def put(schema: dict[str, Any], place: Place, value: Schema) -> None:
    """Set the subschema at `place`, at most two steps down, in a copy of the list or object on the way."""
    keyword, *rest = place
    held: Any = schema[str(keyword)]
    if rest:
        held = list(cast("list[Any]", held)) if isinstance(held, list) else dict(held)
        held[rest[0]] = value
    schema[str(keyword)] = held if rest else value
