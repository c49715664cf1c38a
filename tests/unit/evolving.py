"""Schemas as they grow, and values for them: what the property test of the compatibility gate draws from.

Objects say of themselves whether they have other properties, so that what a schema admits is what is meant by it.
"""

from __future__ import annotations

import copy
from random import Random
from typing import Any

LEAVES: list[Any] = [
    {"type": "string"}, {"type": ["integer", "null"]}, {"type": "number"}, {"enum": [1, "a", None]}, {"const": "ab"},
    {"type": "integer", "minimum": 1}, {"maximum": 2}, {"type": "string", "maxLength": 1}, {"pattern": "^a"},
    {"minItems": 2}, {"uniqueItems": True}, True, {}, {"exclusiveMaximum": 2}, {"multipleOf": 2}, {"type": "null"},
    {"type": "boolean"}, {"const": 1},
]  # fmt: skip


def _object(r: Random, depth: int) -> dict[str, Any]:
    one: dict[str, Any] = {"type": "object"} if r.random() < 0.8 else {}
    one["properties"] = {name: grown(r, depth + 1) for name in r.sample("abk", r.randint(1, 3))}
    one["additionalProperties"] = r.choice([False, False, False, True, {"type": "integer"}])
    if r.random() < 0.4:
        one["properties"]["k"] = {"const": r.choice("xy")}
    if r.random() < 0.5:
        one["required"] = r.sample("abk", r.randint(1, 2))
    if r.random() < 0.15:
        one["patternProperties"] = {r.choice(["^b", "c|d"]): grown(r, depth + 1)}
    more = {"dependentRequired": {"a": ["b"]}, "maxProperties": 1, "propertyNames": {"maxLength": 1}}
    return one | {word: more[word] for word in more if r.random() < 0.1}


def _array(r: Random, depth: int) -> dict[str, Any]:
    one: dict[str, Any] = {"type": "array"}
    if r.random() < 0.8:
        one["items"] = grown(r, depth + 1)
    if r.random() < 0.3:
        one["prefixItems"] = [grown(r, depth + 1) for _ in range(r.randint(1, 2))]
    if r.random() < 0.3:
        one["maxItems"] = r.randint(0, 2)
    if r.random() < 0.1:
        one["contains"] = grown(r, depth + 1)
    return one


def grown(r: Random, depth: int = 0) -> Any:
    """A schema of some depth that may refer to the definitions M and N."""
    kind = r.random()
    if depth > 2 or kind < 0.3:
        return copy.deepcopy(r.choice(LEAVES))
    if kind < 0.62:
        return _object(r, depth)
    if kind < 0.72:
        return _array(r, depth)
    if kind < 0.9:
        word, kinds = r.choice(["anyOf", "anyOf", "oneOf"]), r.choice(["object", "string", ["integer", "null"]])
        many = [grown(r, depth + 1) for _ in range(r.randint(1, 3))]
        return {word: many, "type": kinds} if r.random() < 0.2 else {word: many}
    rare = [{"allOf": [grown(r, depth + 1), grown(r, depth + 1)]}, {"not": grown(r, depth + 1)}]
    rare.append({"if": grown(r, depth + 1), "then": grown(r, depth + 1)})
    return {"$ref": "#/$defs/" + r.choice("MN")} if kind < 0.95 else r.choice(rare)


def document(r: Random) -> dict[str, Any]:
    top = grown(r)
    return {"$defs": {"M": grown(r), "N": grown(r)}, **(top if isinstance(top, dict) else {"allOf": [top]})}


def _nodes(schema: Any) -> list[dict[str, Any]]:
    if isinstance(schema, list):
        return [node for one in schema for node in _nodes(one)]
    if not isinstance(schema, dict):
        return []
    found = [schema]
    for word, one in schema.items():
        if word in ("properties", "$defs", "patternProperties"):
            found += [node for each in one.values() for node in _nodes(each)]
        elif word not in ("enum", "const", "required", "dependentRequired", "type"):
            found += _nodes(one)
    return found


def changed(r: Random, schema: dict[str, Any]) -> dict[str, Any]:
    """A next version: one or two places are another."""
    schema = copy.deepcopy(schema)
    for _ in range(r.randint(1, 2)):
        one = r.choice(_nodes(schema))
        what = r.random()
        if "properties" in one and what < 0.5:
            if what < 0.2:
                one["properties"][r.choice("abc")] = grown(r, 2)
            elif what < 0.35:
                one["required"] = sorted({*one.get("required", ()), r.choice("ab")})
            else:
                one.pop("required", None)
        elif "anyOf" in one:
            one["anyOf"] = [*one["anyOf"], grown(r, 2)] if what < 0.5 or len(one["anyOf"]) == 1 else one["anyOf"][1:]
        elif "enum" in one:
            one["enum"] = [*one["enum"], "zz"] if what < 0.5 else one["enum"][:-1]
        elif "minimum" in one or "maxLength" in one:
            word = "minimum" if "minimum" in one else "maxLength"
            one[word] = max(0, one[word] + r.choice([-1, 1]))
        elif "additionalProperties" in one:
            one["additionalProperties"] = r.choice([True, False, {"type": "integer"}])
        else:
            one["type"] = r.choice(["string", ["string", "null", "object", "array", "integer"], "number"])
    return schema


def value(r: Random, depth: int = 0) -> Any:
    kind = r.random()
    if depth > 3 or kind < 0.4:
        return r.choice([None, True, False, 0, 1, 2, 3, -1, 0.5, "", "a", "ab", "b", 4, 1.0, "x", "y", "zz"])
    if kind < 0.6:
        return [value(r, depth + 1) for _ in range(r.randint(0, 3))]
    names = r.sample(["a", "b", "c", "k", "d"], r.randint(0, 3))
    return {name: r.choice("xy") if name == "k" and r.random() < 0.7 else value(r, depth + 1) for name in names}
