"""One side of a comparison: what holds at a place of its document, all together, and what follows for parts of a value.

References and allOf are resolved into one list of nodes; anyOf and oneOf are split by compare.py. Leaving something out
here only makes more possible than really is, which is the safe side. Pure.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias, cast

from registry.contracts.cover import beside, movable, part
from registry.contracts.dialect import Place, Schema, every, normal, targets
from registry.contracts.validator import Beside, Validator, reference

TYPES: Final = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
LOCAL: Final = (
    "type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength",
    "maxLength", "pattern", "minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties", "required",
    "dependentRequired",
)  # fmt: skip
"""Keywords that look at the value alone."""
WHOLE: Final = (
    "not", "if", "dependentSchemas", "contains", "propertyNames", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
"""Keywords that are not walked through: equal, or asked about as they are."""


class Node(NamedTuple):
    """One subschema that holds. `mark`: what tells it from the whole of the subschema at `place`."""

    schema: dict[str, Any]
    place: Place
    mark: str = ""

    def without(self, word: str) -> Node:
        rest = {key: one for key, one in self.schema.items() if key != word}
        return Node(rest, self.place, f"{self.mark}-{word}")


Nodes: TypeAlias = tuple[Node, ...]
Key: TypeAlias = frozenset[tuple[Place, str]]


def key_of(nodes: Nodes) -> Key:
    return frozenset((node.place, node.mark) for node in nodes)


def only(kind: str) -> Node:
    """The restriction to one type."""
    return Node({"type": kind}, (), f":{kind}")


def types_of(nodes: Nodes) -> frozenset[str]:
    """JSON types that are possible; `integer` always beside `number`."""
    found = TYPES
    for node in nodes:
        named = node.schema.get("type")
        if named is not None:
            words = {named} if isinstance(named, str) else set(cast("list[str]", named))
            found &= words | ({"integer"} if "number" in words else set[str]())
    return found


class Rest(NamedTuple):
    """Properties beyond those that are declared or match a pattern: whether there may be some, and what they hold.

    `assumed`: nothing forbids them, but nothing speaks of them either.
    """

    possible: bool
    places: tuple[Place, ...] = ()
    assumed: bool = False


class Side:
    """A document and its places."""

    def __init__(self, document: Schema) -> None:
        self.places = dict(every(document))
        self._targets = targets(self.places.items())
        self._movable = movable(document)
        self._beside = Beside(document)
        self._validators: dict[Place | str, Validator] = {}

    def target(self, schema: dict[str, Any]) -> Place | None:
        """Where the reference of a subschema leads."""
        found = schema.get("$ref")
        return self._targets[normal(found)] if isinstance(found, str) else None

    def admits(self, place: Place, value: Any) -> bool:
        """Whether the subschema at `place` admits a value."""
        if place not in self._validators:
            self._validators[place] = self._beside.validator(reference(place))
        return self._validators[place].is_valid(value)

    def matches(self, pattern: str, name: str) -> bool:
        """Whether a property's name matches."""
        if pattern not in self._validators:
            self._validators[pattern] = self._beside.validator({"pattern": pattern})
        return self._validators[pattern].is_valid(name)

    def nodes(self, *places: Place) -> Nodes | None:
        """All that holds at `places` together; None where that is nothing."""
        found: dict[Place, Node] = {}
        waiting = [*places]
        while waiting:
            place = waiting.pop(0)
            one = self.places[place]
            if one is False:
                return None
            if isinstance(one, dict) and place not in found:
                found[place] = Node(one, place)
                leads = self.target(one)
                waiting += [leads] if leads is not None else []
                waiting += [(*place, "allOf", number) for number in range(len(one.get("allOf", ())))]
        return tuple(found.values())

    def values(self, nodes: Nodes) -> list[Any] | None:
        """All values there are, where an enum or const lists them."""
        for node in nodes:
            if "enum" in node.schema or "const" in node.schema:
                listed = [node.schema["const"]] if "const" in node.schema else node.schema["enum"]
                return [value for value in listed if all(one.mark or self.admits(one.place, value) for one in nodes)]
        return None

    # Schemas of their own -----------------------------------------------------------------------------------------

    def local(self, nodes: Nodes) -> dict[str, Any]:
        """What the nodes demand of a value alone."""
        return {"allOf": [{word: node.schema[word] for word in LOCAL if word in node.schema} for node in nodes] or [{}]}

    def whole(self, nodes: Nodes) -> dict[str, Any]:
        """All they demand."""
        parts = [
            node.schema if node.mark.startswith(":") else _among(part(self._movable, node.place), tuple(node.schema))
            for node in nodes
        ]
        return beside(self._movable, *(parts or [{}]))

    def words(self, place: Place, *words: str) -> dict[str, Any]:
        """Some keywords of one place."""
        return beside(self._movable, _among(part(self._movable, place), words))

    # Parts of objects and lists -----------------------------------------------------------------------------------

    def declared(self, nodes: Nodes) -> dict[str, None]:
        """Names of properties, in order."""
        return {name: None for node in nodes for name in node.schema.get("properties", ())}

    def patterns(self, nodes: Nodes) -> list[tuple[str, Place]]:
        """Patterns of names, and what the properties hold that match."""
        return [
            (pattern, (*node.place, "patternProperties", pattern))
            for node in nodes
            for pattern in node.schema.get("patternProperties", ())
        ]

    def member(self, nodes: Nodes, name: str) -> tuple[Place, ...]:
        """What the property `name` holds."""
        found: list[Place] = []
        for node in nodes:
            listed: list[Place] = (
                [(*node.place, "properties", name)] if name in node.schema.get("properties", ()) else []
            )
            listed += [place for pattern, place in self.patterns((node,)) if self.matches(pattern, name)]
            if not listed and "additionalProperties" in node.schema:
                listed = [(*node.place, "additionalProperties")]
            found += listed
        return tuple(found)

    def rest(self, nodes: Nodes) -> Rest:
        """What other properties hold."""
        others = [node for node in nodes if "additionalProperties" in node.schema]
        if any(node.schema["additionalProperties"] is False for node in others):
            return Rest(possible=False)
        if any(node.schema.get("unevaluatedProperties") is False for node in nodes):
            return Rest(possible=False)
        if others:
            return Rest(possible=True, places=tuple((*node.place, "additionalProperties") for node in others))
        if any("unevaluatedProperties" in node.schema for node in nodes):
            return Rest(possible=True)
        return Rest(possible=not self.declared(nodes) and not self.patterns(nodes), assumed=True)

    def item(self, nodes: Nodes, number: int | None) -> tuple[Place, ...]:
        """What item `number` holds, or with None those behind all prefixItems."""
        found: list[Place] = []
        for node in nodes:
            if number is not None and number < len(node.schema.get("prefixItems", ())):
                found.append((*node.place, "prefixItems", number))
            elif "items" in node.schema:
                found.append((*node.place, "items"))
        return tuple(found)


def _among(schema: dict[str, Any], words: tuple[str, ...]) -> dict[str, Any]:
    return {word: schema[word] for word in words if word in schema and word not in ("$defs", "definitions")}
