"""Whether places of two documents say the same, however their definitions are named and described. Pure."""

from __future__ import annotations

import json
from typing import Any, Final

from registry.contracts.dialect import STORED, Place, Schema, subschemas
from registry.contracts.side import LOCAL, Side

_FLAT: Final = frozenset((*LOCAL, "format", "minContains", "maxContains"))


class Equality:
    """Of the places of two sides."""

    def __init__(self, first: Side, second: Side) -> None:
        self._first = first
        self._second = second
        self._known: set[tuple[Place, Place]] = set()

    def same(self, place: Place, at: Place) -> bool:
        """Whether two subschemas say the same; a pair that is met again further down is taken to."""
        seen: set[tuple[Place, Place]] = set()
        waiting = [(place, at)]
        while waiting:
            pair = waiting.pop()
            if pair in seen or pair in self._known:
                continue
            seen.add(pair)
            inner = self._inner(*pair)
            if inner is None:
                return False
            waiting += inner
        self._known |= seen
        return True

    def under(self, place: Place, at: Place, *words: str) -> bool:
        """Whether two subschemas say the same as far as these keywords go."""
        first, second = self._first.places[place], self._second.places[at]
        if isinstance(first, bool) or isinstance(second, bool):
            return False
        subs = [dict(subschemas(_among(one, words))) for one in (first, second)]
        if subs[0].keys() != subs[1].keys() or _flat(_among(first, words)) != _flat(_among(second, words)):
            return False
        return all(self.same((*place, *sub), (*at, *sub)) for sub in subs[0])

    def _inner(self, place: Place, at: Place) -> list[tuple[Place, Place]] | None:
        """The pairs that must be the same for this one to be; None when it is not."""
        first, second = self._first.places[place], self._second.places[at]
        if isinstance(first, bool) or isinstance(second, bool):
            return [] if first is second else None
        leads, lead = self._first.target(first), self._second.target(second)
        subs, others = (_subs(one) for one in (first, second))
        if (leads is None) != (lead is None) or subs.keys() != others.keys() or _flat(first) != _flat(second):
            return None
        pairs: list[tuple[Place, Place]] = [((*place, *sub), (*at, *sub)) for sub in subs]
        return pairs if leads is None or lead is None else [*pairs, (leads, lead)]


def _subs(schema: dict[str, Any]) -> dict[Place, Schema]:
    return {place: one for place, one in subschemas(schema) if place[0] not in STORED}


def _among(schema: dict[str, Any], words: tuple[str, ...]) -> dict[str, Any]:
    return {word: one for word, one in schema.items() if word in words}


def _flat(schema: dict[str, Any]) -> str:
    # As JSON, for to Python 1 equals true.
    return json.dumps({word: schema[word] for word in sorted(_FLAT & schema.keys())}, sort_keys=True)
