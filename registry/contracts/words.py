"""A difference between two schemas in a sentence, for those who send and for those who receive. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from registry.contracts.compare import Difference

_SHOWN_CHARS: Final = 80
_BOUNDS: Final = {
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMinimum": "more than",
    "exclusiveMaximum": "less than",
    "multipleOf": "a multiple of",
    "minLength": "of a length of at least",
    "maxLength": "of a length of at most",
    "minItems": "of a length of at least",
    "maxItems": "of a length of at most",
    "minProperties": "of at least so many properties:",
    "maxProperties": "of at most so many properties:",
    "pattern": "of the pattern",
}


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."


def _types(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _gone(one: Difference) -> str:
    """Types of the sender that the taker does not have; all others where the sender named none."""
    taken = _types(one.taken)
    has = {*taken, "integer"} if "number" in taken else set(taken)
    found = [word for word in _types(one.sent) if word not in has]
    return " or ".join(found) or f"other than {' or '.join(taken)}"


def _name(one: Difference) -> str:
    return _shown(one.taken[0])


def _before(one: Difference) -> str:
    return "" if one.sent is None else f", before {_shown(one.sent)}"


_INPUT: Final[dict[str, Callable[[Difference], str]]] = {
    "type": lambda one: f"is no longer taken when it is {_gone(one)}",
    "value": lambda one: f"the value {_shown(one.sent)} is no longer taken",
    "enum": lambda one: f"takes only {_shown(one.taken)} now",
    "const": lambda one: f"takes only {_shown(one.taken)} now",
    "required": lambda one: f"the property {_name(one)} is required now",
    "dependentRequired": lambda one: f"properties require others now: {_shown(one.taken)}",
    "uniqueItems": lambda _: "equal items are no longer taken",
    "property": lambda one: f"the property {_shown(one.sent)} is no longer taken",
    "closed": lambda _: "properties beyond the declared ones are refused now; whether any are sent is not known",
    "undeclared": lambda one: f"the property {_shown(one.sent)} is no longer declared; it may be passed over",
    "nothing": lambda _: "nothing is taken here any more",
    "anyOf": lambda one: f"values of the type {one.sent} may fit none of the {one.taken} alternatives now",
    "oneOf": lambda one: f"values of the type {one.sent} may fit none, or several, of the {one.taken} alternatives now",
    "format": lambda one: f"is of the format {_shown(one.taken)} now{_before(one)}",
}
_OUTPUT: Final[dict[str, Callable[[Difference], str]]] = {
    "type": lambda one: f"may be {_gone(one)} now",
    "value": lambda one: f"may be {_shown(one.sent)} now",
    "enum": lambda one: f"may be something else than {_shown(one.taken)} now",
    "const": lambda one: f"may be something else than {_shown(one.taken)} now",
    "required": lambda one: f"the property {_name(one)} may be missing now",
    "dependentRequired": lambda one: f"properties may be missing now beside others: {_shown(one.taken)}",
    "uniqueItems": lambda _: "may have equal items now",
    "property": lambda one: f"may have the property {_shown(one.sent)} now, where others were excluded",
    "closed": lambda _: "properties beyond the declared ones were excluded before",
    "absent": lambda one: f"the property {_shown(one.taken)} is gone",
    "nothing": lambda _: "may have a value now where there was none",
    "anyOf": lambda one: f"values of the type {one.sent} may be none of the {one.taken} alternatives before",
    "oneOf": lambda one: (
        f"values of the type {one.sent} may be none, or several, of the {one.taken} alternatives before"
    ),
    "format": lambda one: f"was of the format {_shown(one.taken)} before, now {_shown(one.sent)}",
}


def of_input(one: Difference) -> str:
    """What callers may send by the old schema and the new one does not take."""
    if one.word in _BOUNDS:
        return f"must be {_BOUNDS[one.word]} {_shown(one.taken)} now{_before(one)}"
    says = _INPUT.get(one.word)
    return says(one) if says else f"`{one.word}` takes less than before"


def of_output(one: Difference) -> str:
    """What the new schema may give and the old one did not."""
    if one.word in _BOUNDS:
        now = "unbounded" if one.sent is None else _shown(one.sent)
        return f"need not be {_BOUNDS[one.word]} {_shown(one.taken)} any more: {now}"
    says = _OUTPUT.get(one.word)
    return says(one) if says else f"`{one.word}` gives more than before"
