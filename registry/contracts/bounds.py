"""What checking a value against a schema can cost at most; refuses schemas whose cost no size of value bounds.

A schema comes from another team and its input from a third one, and both may be written to stall whoever checks them:
references that double, recursion through alternatives, patterns with many states, uniqueItems, thousands of properties.
Here the schema alone is judged, once; check.py puts the size of a value into the result. Pure but for compiling
patterns.
"""

from __future__ import annotations

import contextlib
from itertools import islice
from typing import Any, Final, NamedTuple, cast

import msgspec

from registry.contracts.dialect import (
    NOT_SUPPORTED,
    PART_MAP,
    PART_ONE,
    SAME_MANY,
    SAME_ONE,
    UNEVALUATED,
    Place,
    Schema,
    every,
    normal,
    pointer,
    targets,
)
from registry.contracts.validator import AUTOMATON_BYTES_MAX, validator

SCHEMA_BYTES_MAX: Final = 64 * 1024
DEPTH_MAX: Final = 64
SUBSCHEMAS_MAX: Final = 1_500
REACH_MAX: Final = 200
"""Subschemas that may follow one from another, references included."""
SAME_NS_MAX: Final = 20_000_000
"""What one value alone may cost: its ways through allOf, anyOf, oneOf, not, if and references double quickly."""
PATTERNS_MAX: Final = 50
"""Different patterns of one schema."""
PATTERN_NS: Final = {
    4 << 10: 1_500,
    8 << 10: 2_000,
    16 << 10: 4_000,
    64 << 10: 12_000,
    AUTOMATON_BYTES_MAX: 22_000,
}
"""Bytes of a pattern's automaton -> what a character can cost."""
AUTOMATA_BYTES_MAX: Final = 1 << 20

# Measured with the worst values found for each keyword; see tests/unit/test_contract_bounds.py.
_VALUE_NS: Final = 150
_KEYWORD_NS: Final = 40
_NUMBER_NS: Final = 2_000
_FINE_NS: Final = 60_000
"""multipleOf a number as small as FINE."""
_FINE: Final = 1e-9
_ENTRY_NS: Final = 300
_NAME_NS: Final = 30
_ITEM_NS: Final = 250
_ANNOTATIONS: Final = frozenset(
    ("$schema", "$id", "$comment", "$defs", "definitions", "$anchor", "title", "description", "default", "examples")
)  # fmt: skip
_LIMITS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


class Unusable(Exception):
    """Why a schema cannot be applied, in words; `place` is where, as a JSON Pointer into it."""

    def __init__(self, why: str, place: Place | None = None) -> None:
        where = f" at {pointer(place) or '/'}" if place is not None else ""
        super().__init__(why + where)


class Cost(NamedTuple):
    """At most so many nanoseconds per value, per object and per byte of an input.

    `numbers`: numbers are compared, which costs a thousand times as much with the oddest ones.
    """

    value_ns: int = 0
    object_ns: int = 0
    byte_ns: int = 0
    numbers: bool = False

    def plus(self, *others: Cost) -> Cost:
        value_ns, object_ns, byte_ns, numbers = self
        for one in others:
            value_ns, object_ns, byte_ns = value_ns + one[0], object_ns + one[1], byte_ns + one[2]
            numbers = numbers or one[3]
        return Cost(value_ns, object_ns, byte_ns, numbers)

    def or_(self, *others: Cost) -> Cost:
        """The most of each."""
        value_ns, object_ns, byte_ns, numbers = self
        for one in others:
            value_ns, object_ns = max(value_ns, one[0]), max(object_ns, one[1])
            byte_ns, numbers = max(byte_ns, one[2]), numbers or one[3]
        return Cost(value_ns, object_ns, byte_ns, numbers)


NOTHING: Final = Cost()


def bound(schema: Schema) -> Cost:
    """The cost of `schema`, which is 2020-12. Raises Unusable for one that is too large or without a bound."""
    if len(msgspec.json.encode(schema)) > SCHEMA_BYTES_MAX:
        raise Unusable(f"the schema is larger than {SCHEMA_BYTES_MAX} bytes")
    if isinstance(schema, bool):
        return NOTHING
    if _depth(schema) > DEPTH_MAX:
        raise Unusable(f"the schema is nested deeper than {DEPTH_MAX} levels")
    try:
        return _Walk(schema).cost()
    except RecursionError:
        raise Unusable("too many subschemas follow one from another") from None


def _depth(value: Any) -> int:
    depth = 0
    level: list[Any] = [value]
    while level:
        depth += 1
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner += cast("dict[str, Any]", one).values()
            elif isinstance(one, list):
                inner += cast("list[Any]", one)
        level = [one for one in inner if isinstance(one, (dict, list))]
    return depth


class _Walk:
    def __init__(self, schema: dict[str, Any]) -> None:
        self._places: dict[Place, Schema] = dict(islice(every(schema), SUBSCHEMAS_MAX + 1))
        if len(self._places) > SUBSCHEMAS_MAX:
            raise Unusable(f"the schema has more than {SUBSCHEMAS_MAX} subschemas")
        self._targets = targets(self._places.items())
        self._patterns: dict[str, int] = {}
        self._automata_bytes = 0
        self._same: dict[Place, Cost] = {}
        self._below: dict[tuple[Place, bool], Cost] = {}
        self._open: list[Place] = []
        self._again: set[Place] = set()
        """Where recursion comes back to: the validator checks these once per value and remembers."""
        for place, one in self._places.items():
            if isinstance(one, dict):
                self._supported(place, one)
        for place, one in self._places.items():
            if isinstance(one, dict) and any(word in one for word in UNEVALUATED) and self._recurs(place):
                raise Unusable("unevaluated... cannot be checked in a schema that refers to itself", place)

    def cost(self) -> Cost:
        """Of the whole."""
        most = self._most((), adding=False)
        return most.plus(*(self._most(place, adding=True) for place in sorted(self._again, key=pointer)))

    def _supported(self, place: Place, one: dict[str, Any]) -> None:
        for keyword, instead in NOT_SUPPORTED.items():
            if keyword in one:
                raise Unusable(f"{keyword} is not supported; {instead}", place)
        if place and ("$id" in one or "$schema" in one):
            raise Unusable("$id and $schema stand at the top of a schema only", place)
        reference = one.get("$ref")
        if isinstance(reference, str):
            if not reference.startswith("#"):
                raise Unusable(f"references to other documents are not followed: {reference[:200]}", place)
            if normal(reference) not in self._targets:
                raise Unusable(f"a reference leads to no schema: {reference[:200]}", place)
        for pattern in _patterns(one):
            self._know(pattern, place)

    def _know(self, pattern: str, place: Place) -> None:
        if pattern in self._patterns:
            return
        if len(self._patterns) >= PATTERNS_MAX:
            raise Unusable(f"the schema has more than {PATTERNS_MAX} different patterns", place)
        size = _automaton_bytes(pattern, place)
        self._automata_bytes += size
        if self._automata_bytes > AUTOMATA_BYTES_MAX:
            raise Unusable("the patterns of the schema are too large together; simplify some", place)
        self._patterns[pattern] = PATTERN_NS[size]

    # What is applied where ----------------------------------------------------------------------------------------

    def _beside(self, place: Place) -> list[Place]:
        """Subschemas of the same value."""
        one = self._places[place]
        if isinstance(one, bool):
            return []
        found: list[Place] = [(*place, word) for word in SAME_ONE if word in one]
        found += [(*place, word, number) for word in SAME_MANY for number in range(len(one.get(word, ())))]
        found += [(*place, "dependentSchemas", name) for name in one.get("dependentSchemas", ())]
        if isinstance(reference := one.get("$ref"), str):
            found.append(self._targets[normal(reference)])
        return found

    def _within(self, place: Place) -> list[Place]:
        """Subschemas of parts of the value."""
        one = self._places[place]
        if isinstance(one, bool):
            return []
        found: list[Place] = [(*place, word) for word in PART_ONE if word in one]
        found += [(*place, word, name) for word in PART_MAP for name in one.get(word, ())]
        return found + [(*place, "prefixItems", number) for number in range(len(one.get("prefixItems", ())))]

    def _recurs(self, start: Place) -> bool:
        seen: set[Place] = set()
        waiting = [*self._beside(start), *self._within(start)]
        while waiting:
            place = waiting.pop()
            if place == start:
                return True
            if place not in seen:
                seen.add(place)
                waiting += [*self._beside(place), *self._within(place)]
        return False

    # Costs --------------------------------------------------------------------------------------------------------

    def _at_once(self, place: Place) -> Cost:
        """Of everything that sees the value at hand, counted once for every way it is reached."""
        if place in self._same:
            return self._same[place]
        if place in self._open:
            raise Unusable("the schema refers to itself without end", place)
        self._enter(place)
        beside = self._beside(place)
        found = self._own(place)
        if beside:
            found = found.plus(*[self._at_once(one) for one in beside])
        self._open.pop()
        if found.value_ns > SAME_NS_MAX:
            raise Unusable("one value would be checked in too many ways: references or alternatives multiply", place)
        self._same[place] = _again(self._places[place], found)
        return self._same[place]

    def _enter(self, place: Place) -> None:
        if len(self._open) >= REACH_MAX:
            raise Unusable(f"more than {REACH_MAX} subschemas follow one from another", place)
        self._open.append(place)

    def _own(self, place: Place) -> Cost:
        one = self._places[place]
        if isinstance(one, bool):
            return Cost(_KEYWORD_NS)
        value_ns = _KEYWORD_NS * sum(word not in _ANNOTATIONS for word in one)
        numbers = False
        if "enum" in one or "const" in one:
            listed_ns = [_compare_ns(value) for value in (*one.get("enum", ()), one.get("const", ""))]
            value_ns += sum(listed_ns)
            numbers = max(listed_ns) >= _NUMBER_NS
        for word in _LIMITS:
            if word in one:
                value_ns, numbers = value_ns + _NUMBER_NS, True
        if "multipleOf" in one:
            value_ns, numbers = value_ns + (_FINE_NS if one["multipleOf"] < _FINE else 2 * _NUMBER_NS), True
        if one.get("uniqueItems"):
            value_ns += _ITEM_NS
        names = len(one.get("required", ())) + len(one.get("dependentRequired", ()))
        byte_ns = self._patterns[one["pattern"]] if "pattern" in one else bool(one.get("uniqueItems"))
        return Cost(value_ns, _NAME_NS * names, int(byte_ns), numbers)

    def _most(self, place: Place, *, adding: bool) -> Cost:
        """At the most expensive place in a value; `adding`: at all levels of it together."""
        here, below = self._at_once(place), self._parts(place, adding=adding)
        return here.plus(below) if adding else here.or_(below)

    def _parts(self, place: Place, *, adding: bool) -> Cost:
        if (place, adding) in self._below:
            return self._below[place, adding]
        if place in self._open:
            self._again.add(place)
            return Cost(_KEYWORD_NS)
        self._enter(place)
        parts = {one[len(place) :]: self._most(one, adding=adding) for one in self._within(place)}
        beside = [self._parts(one, adding=adding) for one in self._beside(place)]
        self._open.pop()
        found = _joined(parts, self._patterns) if parts else NOTHING
        if beside:
            found = found.plus(*beside)
        self._below[place, adding] = _again(self._places[place], found)
        return self._below[place, adding]


def _joined(parts: dict[Place, Cost], patterns: dict[str, int]) -> Cost:
    """Of the subschemas that can see one and the same part."""
    by_word: dict[str, list[tuple[Place, Cost]]] = {}
    for place, cost in parts.items():
        by_word.setdefault(str(place[0]), []).append((place, cost))

    def most(*words: str) -> Cost:
        return NOTHING.or_(*(cost for word in words for _, cost in by_word.get(word, ())))

    named = by_word.get("patternProperties", ())
    tried = Cost(_KEYWORD_NS * len(named), byte_ns=sum(patterns[str(place[1])] for place, _ in named))
    members = most("properties").plus(*(cost for _, cost in named)).or_(most("additionalProperties"))
    members = members.plus(tried, most("propertyNames"), most("unevaluatedProperties"))
    items = most("prefixItems", "items").plus(most("contains"), most("unevaluatedItems"))
    return members.or_(items).plus(Cost(_VALUE_NS))


def _again(schema: Schema, cost: Cost) -> Cost:
    """To know what was not evaluated, the validator goes through the alternatives once more."""
    if isinstance(schema, bool) or not any(word in schema for word in UNEVALUATED):
        return cost
    return NOTHING.plus(*[cost] * (1 + 2 * sum(word in schema for word in UNEVALUATED)))


def _patterns(schema: dict[str, Any]) -> list[str]:
    pattern, named = schema.get("pattern"), schema.get("patternProperties")
    found = [pattern] if isinstance(pattern, str) else []
    return found + list(cast("dict[str, Any]", named)) if isinstance(named, dict) else found


def _compare_ns(value: Any) -> int:
    """What comparing with an entry of enum or const can cost."""
    if isinstance(value, (dict, list)):
        inner = cast("dict[str, Any]", value).values() if isinstance(value, dict) else cast("list[Any]", value)
        return _ENTRY_NS + max((_compare_ns(one) for one in inner), default=0)
    return _NUMBER_NS if isinstance(value, (int, float)) and not isinstance(value, bool) else _NAME_NS


def _automaton_bytes(pattern: str, place: Place) -> int:
    """The smallest of PATTERN_NS that holds `pattern`. Raises Unusable."""
    for size in PATTERN_NS:
        with contextlib.suppress(ValueError):
            validator({"pattern": pattern}, automaton_bytes=size)
            return size
    raise Unusable(
        f"the pattern {pattern[:100]!r} cannot be matched in linear time within {AUTOMATON_BYTES_MAX >> 10} KiB: it is"
        " no regular expression, looks around, refers back, or repeats too much",
        place,
    )
