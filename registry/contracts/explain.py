"""Where an input breaks its schema, and why, in words that never repeat the input.

The validator only says whether a value keeps a schema. From a value that does not, this walks down to the parts that
do not either, for a bounded time, and says what it found by then; the input is refused in any case. Knows no endpoint.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final, TypeAlias, cast

from mesh.clock import thread_s
from registry.contracts.dialect import UNEVALUATED, Place, Schema, every, normal, pointer, targets
from registry.contracts.validator import Beside, Validator, reference

Breach: TypeAlias = dict[str, str]
"""`pointer` (RFC 6901) and `detail`."""

BREACHES_MAX: Final = 20
"""Breaches that one answer lists."""
DETAIL_CHARS_MAX: Final = 300
SPEND_S: Final = 0.01
_VALUES_SHOWN: Final = 10
_SINGLY: Final = 64
"""Items up to which a list is looked through one by one."""


def cut(text: str) -> str:
    """`text`, or its beginning."""
    return text if len(text) <= DETAIL_CHARS_MAX else text[:DETAIL_CHARS_MAX] + "..."


def _one_of(values: list[Any]) -> str:
    shown = [json.dumps(one, ensure_ascii=False)[:100] for one in values[:_VALUES_SHOWN]]
    return ", ".join([*shown, "..."] if len(values) > _VALUES_SHOWN else shown)


def _type(wanted: str | list[str]) -> str:
    words = [wanted] if isinstance(wanted, str) else wanted
    return f"must be {' or '.join(words)}"


_WORDS: Final[dict[str, Callable[[Any], str]]] = {
    "type": _type,
    "enum": lambda values: f"must be one of {_one_of(values)}",
    "const": lambda value: f"must be {_one_of([value])}",
    "minimum": lambda least: f"must be at least {least}",
    "maximum": lambda most: f"must be at most {most}",
    "exclusiveMinimum": lambda bound: f"must be more than {bound}",
    "exclusiveMaximum": lambda bound: f"must be less than {bound}",
    "multipleOf": lambda step: f"must be a multiple of {step}",
    "minLength": lambda least: f"must have at least {least} characters",
    "maxLength": lambda most: f"must have at most {most} characters",
    "pattern": lambda pattern: f"must match {pattern}",
    "minItems": lambda least: f"must have at least {least} items",
    "maxItems": lambda most: f"must have at most {most} items",
    "uniqueItems": lambda _: "must not have equal items",
    "minProperties": lambda least: f"must have at least {least} properties",
    "maxProperties": lambda most: f"must have at most {most} properties",
}
"""What keywords demand that look at the value alone."""


class Explainer:
    """Of one schema in 2020-12 that was found usable. Validators of subschemas are kept once they were needed."""

    def __init__(self, schema: Schema) -> None:
        self._places = dict(every(schema))
        self._targets = targets(self._places.items())
        self._beside = Beside(schema)
        self._validators: dict[str, Validator] = {}
        self._until_s = 0.0

    def breaches(self, value: Any, prefix: str = "", spend_s: float = SPEND_S) -> list[Breach]:
        """The first BREACHES_MAX of a value that breaks the schema, found within about `spend_s`; never empty."""
        self._until_s = thread_s() + spend_s
        found: dict[tuple[str, str], None] = {}
        # A deep value may need more frames than Python has; what was found above it stands.
        with contextlib.suppress(RecursionError):
            for at, detail in self._look((), value, prefix):
                found[at, cut(detail)] = None
                if len(found) == BREACHES_MAX:
                    break
        return [{"pointer": at, "detail": detail} for at, detail in found] or [
            {"pointer": prefix, "detail": "this value breaks the schema"}
        ]

    def _holds(self, schema: dict[str, Any], value: Any) -> bool:
        """Whether `value` keeps a small schema, whose references begin with DOCUMENT."""
        key = json.dumps(schema)
        known = self._validators.get(key)
        if known is None:
            known = self._validators[key] = self._beside.validator(schema)
        return known.is_valid(value)

    def _keeps(self, place: Place, value: Any) -> bool:
        return self._holds(reference(place), value)

    @property
    def _spent(self) -> bool:
        return thread_s() > self._until_s

    def _look(self, place: Place, value: Any, at: str) -> Iterator[tuple[str, str]]:
        """Breaches of `value`, which breaks the schema at `place`; each walk down has checked that it does."""
        schema = self._places[place]
        if isinstance(schema, bool):
            yield at, "nothing is allowed here"
            return
        count = 0
        for breach in self._parts(place, schema, value, at):
            count += 1
            yield breach
            if self._spent:
                return
        if not count:
            open_ends = any(word in schema for word in UNEVALUATED)
            yield at, "has parts that no part of the schema allows" if open_ends else "this value breaks the schema"

    def _down(self, place: Place, value: Any, at: str) -> Iterator[tuple[str, str]]:
        if not self._spent and not self._keeps(place, value):
            yield from self._look(place, value, at)

    def _parts(self, place: Place, schema: dict[str, Any], value: Any, at: str) -> Iterator[tuple[str, str]]:
        for word, says in _WORDS.items():
            if word in schema and not self._holds({word: schema[word]}, value):
                yield at, says(schema[word])
        if isinstance(value, dict):
            yield from self._members(place, schema, cast("dict[str, Any]", value), at)
        elif isinstance(value, list):
            yield from self._items(place, schema, cast("list[Any]", value), at)
        yield from self._same(place, schema, value, at)

    def _same(self, place: Place, schema: dict[str, Any], value: Any, at: str) -> Iterator[tuple[str, str]]:
        """What other subschemas say of the same value."""
        if isinstance(reference := schema.get("$ref"), str):
            yield from self._down(self._targets[normal(reference)], value, at)
        for number in range(len(schema.get("allOf", ()))):
            yield from self._down((*place, "allOf", number), value, at)
        for word in ("anyOf", "oneOf"):
            if word in schema:
                yield from self._alternatives((*place, word), len(schema[word]), value, at)
        if "not" in schema and self._keeps((*place, "not"), value):
            yield at, "must not match what the schema excludes"
        if "if" in schema:
            word = "then" if self._keeps((*place, "if"), value) else "else"
            if word in schema:
                yield from self._down((*place, word), value, at)

    # Objects ------------------------------------------------------------------------------------------------------

    def _members(
        self, place: Place, schema: dict[str, Any], value: dict[str, Any], at: str
    ) -> Iterator[tuple[str, str]]:
        for name in schema.get("required", ()):
            if name not in value:
                yield at, f"must have the property {_one_of([name])}"
        for name, wanted in schema.get("dependentRequired", {}).items():
            if name in value and not all(one in value for one in wanted):
                yield at, f"must have {_one_of(wanted)} beside {_one_of([name])}"
        for name in (one for one in schema.get("properties", ()) if one in value):
            yield from self._down((*place, "properties", name), value[name], pointer([name], at))
        for name in (one for one in schema.get("dependentSchemas", ()) if one in value):
            yield from self._down((*place, "dependentSchemas", name), value, at)
        if {"patternProperties", "additionalProperties", "propertyNames"} & schema.keys():
            for name, one in value.items():
                yield from self._member(place, schema, name, one, pointer([name], at))

    def _member(
        self, place: Place, schema: dict[str, Any], name: str, value: Any, at: str
    ) -> Iterator[tuple[str, str]]:
        """What the name of a property brings about, or that no list has it."""
        if self._spent:
            return
        if "propertyNames" in schema and not self._keeps((*place, "propertyNames"), name):
            yield at, "this name is not allowed"
        patterns = schema.get("patternProperties", ())
        fitting = [pattern for pattern in patterns if self._holds({"pattern": pattern}, name)]
        for pattern in fitting:
            yield from self._down((*place, "patternProperties", pattern), value, at)
        if not fitting and "additionalProperties" in schema and name not in schema.get("properties", ()):
            if schema["additionalProperties"] is False:
                yield at, "this property is not known"
            else:
                yield from self._down((*place, "additionalProperties"), value, at)

    # Lists --------------------------------------------------------------------------------------------------------

    def _items(self, place: Place, schema: dict[str, Any], value: list[Any], at: str) -> Iterator[tuple[str, str]]:
        first = schema.get("prefixItems", ())
        for number, one in enumerate(islice(value, len(first))):
            yield from self._down((*place, "prefixItems", number), one, f"{at}/{number}")
        if "items" in schema:
            for number in self._failing((*place, "items"), value, len(first)):
                yield from self._look((*place, "items"), value[number], f"{at}/{number}")
        if "contains" in schema:
            counted = {word: schema[word] for word in ("minContains", "maxContains") if word in schema}
            if not self._holds({"contains": reference((*place, "contains")), **counted}, value):
                yield at, "must contain items of another kind, or another number of them"

    def _failing(self, place: Place, value: list[Any], start: int) -> Iterator[int]:
        """Positions of items that break the schema at `place`; long stretches that keep it are passed in one go."""
        whole = {"items": reference(place)}
        stretches = [(start, len(value))]
        while stretches and not self._spent:
            begin, end = stretches.pop()
            if end - begin <= _SINGLY:
                yield from (number for number in range(begin, end) if not self._keeps(place, value[number]))
            elif not self._holds(whole, value[begin:end]):
                middle = (begin + end) // 2
                stretches += [(middle, end), (begin, middle)]

    # Alternatives -------------------------------------------------------------------------------------------------

    def _alternatives(self, place: Place, count: int, value: Any, at: str) -> Iterator[tuple[str, str]]:
        kept = [number for number in range(count) if self._keeps((*place, number), value)]
        if kept:
            if place[-1] == "oneOf" and len(kept) > 1:
                yield at, f"must match one of {count} alternatives, and matches {len(kept)}"
            return
        meant = [number for number in range(count) if self._meant((*place, number), value)]
        if len(meant) == 1:
            yield from self._look((*place, meant[0]), value, at)
        else:
            yield at, f"must match one of {count} alternatives, and matches none"

    def _meant(self, place: Place, value: Any) -> bool:
        """Whether an alternative is probably what the value was meant to be: its type and its constants fit."""
        schema = self._places[place]
        while isinstance(schema, dict) and isinstance(reference := schema.get("$ref"), str):
            schema = self._places[self._targets[normal(reference)]]
        if isinstance(schema, bool):
            return schema
        if not self._fits(schema, ("type", "const", "enum"), value):
            return False
        members = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        listed: dict[str, Any] = schema.get("properties", {})
        return all(
            self._fits(cast("dict[str, Any]", one), ("const", "enum"), members[name])
            for name, one in listed.items()
            if name in members and isinstance(one, dict)
        )

    def _fits(self, schema: dict[str, Any], words: tuple[str, ...], value: Any) -> bool:
        return all(self._holds({word: schema[word]}, value) for word in words if word in schema)
