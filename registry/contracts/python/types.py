"""JSON Schemas as Python types: pydantic models for objects with properties, expressions for all else.

What Python's types cannot say is left out and the type is wider for it; the gateway checks every input against the
whole schema anyway. Pure.
"""

from __future__ import annotations

import builtins
import json
import keyword
import re
from typing import Any, Final, cast

from pydantic import BaseModel

from mesh.blob import is_blob_schema
from registry.contracts.dialect import Place, Schema, every, modern, normal, targets

FORMATS: Final = {"date-time": "datetime", "date": "date", "time": "time", "uuid": "UUID"}
BOUNDS: Final = {
    "minimum": "ge", "maximum": "le", "exclusiveMinimum": "gt", "exclusiveMaximum": "lt", "multipleOf": "multiple_of",
    "minLength": "min_length", "maxLength": "max_length", "pattern": "pattern", "minItems": "min_length",
    "maxItems": "max_length",
}  # fmt: skip
_SIMPLE: Final = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}
_NUMBERS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_FOR: Final = {
    "string": ("minLength", "maxLength", "pattern"),
    "integer": _NUMBERS,
    "number": _NUMBERS,
    "array": ("minItems", "maxItems"),
}
DOC_CHARS_MAX: Final = 1_000
_TAKEN: Final = frozenset((*dir(builtins), *keyword.kwlist, *keyword.softkwlist))
_words: Final = re.compile(r"[A-Za-z0-9]+").findall


def class_name(text: str) -> str:
    """`order line` -> `OrderLine`."""
    joined = "".join(word[:1].upper() + word[1:] for word in _words(text)) or "Value"
    return (
        joined
        if joined[0].isalpha() and joined not in _TAKEN
        else f"_{joined}"
        if joined[0].isalpha()
        else f"T{joined}"
    )


def variable_name(text: str) -> str:
    """`Order-Line` -> `order_line`; never a keyword."""
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text)
    joined = "_".join(word.lower() for word in _words(split)) or "value"
    joined = f"n{joined}" if joined[0].isdigit() else joined
    return f"{joined}_" if keyword.iskeyword(joined) else joined


def literal(value: Any) -> str:
    """A JSON value as Python writes it."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) and value.isprintable() else repr(value)


class Models:
    """The classes of one module. Equal schemas of one name are one class."""

    def __init__(self, taken: set[str]) -> None:
        self.classes: list[str] = []
        self.aliases: list[str] = []
        self.names: set[str] = set()
        """What the module must import, such as `datetime`, `Literal`, `Field`."""
        self.taken = taken
        self._known: dict[tuple[str, str], str] = {}

    def of(self, schema: Schema | None, name: str) -> str:
        """The type of an input or output; `name` for a class that has none of its own."""
        if schema is None:
            self.names.add("Any")
            return "Any"
        if is_blob_schema(schema):
            self.names.add("Blob")
            return "Blob"
        return _Document(self, modern(schema)).type_at((), name)

    def name_of(self, wanted: str, content: Any) -> tuple[str, bool]:
        """The name of a class with this content, and whether it is still to be written."""
        text = json.dumps(content, sort_keys=True)
        base = class_name(wanted)
        if (base, text) in self._known:
            return self._known[base, text], False
        found, number = base, 2
        while found in self.taken:
            found, number = f"{base}{number}", number + 1
        self.taken.add(found)
        self._known[base, text] = found
        return found, True


class _Document:
    def __init__(self, models: Models, schema: Schema) -> None:
        self._models = models
        self._places = dict(every(schema))
        self._targets = targets(self._places.items())
        self._named: dict[Place, str] = {}
        self._inside: list[Place] = []

    def type_at(self, place: Place, name: str) -> str:
        """The type of what stands at `place`; `name` for a class that has none of its own."""
        schema = self._places[place]
        if isinstance(schema, bool):
            return self._use("Any")
        if isinstance(reference := schema.get("$ref"), str):
            target = self._targets[normal(reference)]
            return self._target(target, str(target[-1]) if target else name)
        if "const" in schema or "enum" in schema:
            return self._literals([schema["const"]] if "const" in schema else schema["enum"])
        word = next((word for word in ("anyOf", "oneOf") if word in schema), "")
        if word:
            return self._union([self.type_at((*place, word, number), name) for number in range(len(schema[word]))])
        return self._merged(place, schema, name) if "allOf" in schema else self._kinds(place, schema, name)

    def _kinds(self, place: Place, schema: dict[str, Any], name: str) -> str:
        kinds = schema.get("type", "object" if "properties" in schema else [])
        listed = [kinds] if isinstance(kinds, str) else [str(kind) for kind in cast("list[Any]", kinds)]
        return self._union([self._of_kind(place, schema, kind, name) for kind in listed])

    def _use(self, word: str) -> str:
        self._models.names.add(word)
        return word

    def _target(self, place: Place, name: str) -> str:
        """What a reference leads to; a type that contains itself without being a class gets a name."""
        if place in self._named:
            return self._named[place]
        schema = self._places[place]
        if isinstance(schema, dict) and _is_model(schema):
            return self.type_at(place, name)
        if place in self._inside:
            self._named[place], _ = self._models.name_of(name, self._content(place))
            return self._named[place]
        self._inside.append(place)
        found = self.type_at(place, name)
        self._inside.pop()
        if place not in self._named:
            return found
        self._use("TypeAliasType")
        alias = self._named[place]
        self._models.aliases.append(f"{alias} = TypeAliasType({alias!r}, {found!r})")
        return alias

    def _content(self, place: Place) -> list[Any]:
        """What a type is made of: its schema and all that it refers to."""
        seen: dict[str, Any] = {}
        waiting: list[Schema] = [self._places[place]]
        while waiting:
            for _, one in every(waiting.pop()):
                reference = one.get("$ref") if isinstance(one, dict) else None
                if isinstance(reference, str) and reference not in seen:
                    seen[reference] = self._places[self._targets[normal(reference)]]
                    waiting.append(seen[reference])
        return [self._places[place], seen]

    # Kinds --------------------------------------------------------------------------------------------------------

    def _of_kind(self, place: Place, schema: dict[str, Any], kind: str, name: str) -> str:
        if kind == "object":
            return self._object(place, schema, name)
        if kind == "array":
            found = self._array(place, schema, name)
        elif kind == "string" and schema.get("format") in FORMATS:
            return self._use(FORMATS[schema["format"]])
        else:
            found = _SIMPLE[kind]
        bounds = {BOUNDS[word]: schema[word] for word in _FOR.get(kind, ()) if word in schema}
        if not bounds or found.startswith("tuple["):
            return found
        self._use("Annotated")
        self._use("Field")
        told = ", ".join(f"{word}={literal(value)}" for word, value in bounds.items())
        return f"Annotated[{found}, Field({told})]"

    def _array(self, place: Place, schema: dict[str, Any], name: str) -> str:
        first = len(schema.get("prefixItems", ()))
        rest = schema.get("items", True)
        if first and (rest is False or schema.get("maxItems") == first) and schema.get("minItems", 0) >= first:
            parts = [
                self.type_at((*place, "prefixItems", number), f"{name}Item{number + 1}") for number in range(first)
            ]
            return f"tuple[{', '.join(parts)}]"
        if first or rest is True:
            return f"list[{self._use('Any')}]"
        return f"list[{self.type_at((*place, 'items'), f'{name}Item')}]"

    def _object(self, place: Place, schema: dict[str, Any], name: str) -> str:
        if not _is_model(schema):
            more = schema.get("additionalProperties", True)
            if more is True or "patternProperties" in schema:
                return f"dict[str, {self._use('Any')}]"
            return f"dict[str, {self.type_at((*place, 'additionalProperties'), f'{name}Value')}]"
        members: list[tuple[Place, str]] = [((*place, "properties", one), one) for one in schema["properties"]]
        return self._model(place, str(schema.get("title") or name), schema, members, set(schema.get("required", ())))

    def _merged(self, place: Place, schema: dict[str, Any], name: str) -> str:
        """allOf: one alone is itself; objects with properties are one class together; all else is anything."""
        count = len(schema["allOf"])
        if count == 1 and not {"properties", "type"} & schema.keys():
            return self.type_at((*place, "allOf", 0), name)
        members: dict[str, Place] = {}
        required: set[str] = set()
        waiting: list[Place] = [place]
        while waiting:
            at = waiting.pop()
            one = self._places[at]
            if isinstance(one, bool) or any(word in one for word in ("anyOf", "oneOf", "enum", "const")):
                return self._use("Any")
            members = {key: (*at, "properties", key) for key in one.get("properties", ())} | members
            required |= set(one.get("required", ()))
            waiting += [(*at, "allOf", number) for number in range(len(one.get("allOf", ())))]
            waiting += [self._targets[normal(one["$ref"])]] if "$ref" in one else []
        if not members:
            return self._use("Any")
        listed = [(at, key) for key, at in members.items()]
        return self._model(place, str(schema.get("title") or name), schema, listed, required)

    # Classes ------------------------------------------------------------------------------------------------------

    def _model(
        self, place: Place, name: str, schema: dict[str, Any], members: list[tuple[Place, str]], required: set[str]
    ) -> str:
        if place in self._named:
            return self._named[place]
        found, new = self._models.name_of(name, self._content(place))
        self._named[place] = found
        if not new:
            return found
        position = len(self._models.classes)
        fields = _Fields(self._models.names, self._models.taken)
        for at, key in members:
            fields.add(key, self.type_at(at, f"{name}_{key}"), self._places[at], required=key in required)
        more = schema.get("additionalProperties")
        extra = "forbid" if more is False else "allow" if more is True else ""
        text = _class(found, str(schema.get("description") or ""), extra, fields.lines)
        self._models.classes.insert(position, text)
        return found

    def _literals(self, values: list[Any]) -> str:
        if not values or not all(one is None or isinstance(one, (str, int)) for one in values):
            return self._use("Any")
        if values == [None]:
            return "None"
        self._use("Literal")
        return f"Literal[{', '.join(literal(one) for one in values)}]"

    def _union(self, parts: list[str]) -> str:
        if "Any" in parts:
            return "Any"
        return " | ".join(dict.fromkeys(parts)) or self._use("Any")


def _is_model(schema: dict[str, Any]) -> bool:
    return bool(schema.get("properties")) and schema.get("type", "object") == "object" and "$ref" not in schema


class _Fields:
    """The lines of one class."""

    def __init__(self, names: set[str], taken: set[str]) -> None:
        self.lines: list[str] = []
        self._names = names
        self._taken = taken
        self._used: set[str] = set()

    def add(self, key: str, kind: str, schema: Schema, *, required: bool) -> None:
        name = self._name(key)
        options: list[str] = []
        if not required:
            default = schema.get("default") if isinstance(schema, dict) else None
            if default is None or isinstance(default, (dict, list)) or not _fits(default, kind):
                kind = kind if kind == "Any" or "None" in kind.split(" | ") else f"{kind} | None"
                default = None
            options.append(f"default={literal(default)}")
        if name != key:
            options += [f"validation_alias={literal(key)}", f"serialization_alias={literal(key)}"]
        if options[:1] and len(options) == 1:
            self.lines.append(f"{name}: {kind} = {options[0].removeprefix('default=')}")
        elif options:
            self._names.add("Field")
            self.lines.append(f"{name}: {kind} = Field({', '.join(options)})")
        else:
            self.lines.append(f"{name}: {kind}")

    def _name(self, key: str) -> str:
        found = key if key.isidentifier() and key.isascii() and not key.startswith("_") else variable_name(key)
        # A default would stand for the type of its name: `date: date | None = None`.
        shadows = found in _TAKEN or found in self._taken
        if shadows or hasattr(BaseModel, found) or found.startswith("model_"):
            found = f"{found}_"
        while found in self._used:
            found = f"{found}_"
        self._used.add(found)
        return found


def _fits(default: Any, kind: str) -> bool:
    """Whether a default may be written beside the type, for a checker of types."""
    bare = kind.partition("[")[2].partition(",")[0] if kind.startswith("Annotated[") else kind
    wanted = {bool: "bool", int: "int", float: "float", str: "str"}[type(default)]
    return wanted in bare.split(" | ") or (bare.startswith("Literal[") and literal(default) in bare)


def _class(name: str, description: str, extra: str, fields: list[str]) -> str:
    lines = [f"class {name}(Model):"]
    if description:
        lines += [*doc(description, "    "), ""]
    if extra:
        lines += [f'    model_config = ConfigDict(extra="{extra}")', ""]
    lines += [f"    {one}" for one in fields] or ["    pass"]
    return "\n".join(lines)


def doc(text: str, indent: str) -> list[str]:
    """A docstring."""
    plain = text.strip()[:DOC_CHARS_MAX].replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    plain = "".join(one if one.isprintable() or one == "\n" else " " for one in plain)
    if plain.endswith('"'):
        plain += " "
    first, *rest = plain.splitlines() or [""]
    if not rest:
        return [f'{indent}"""{first}"""']
    return [
        f'{indent}"""{first}',
        *(f"{indent}{line.rstrip()}" if line.strip() else "" for line in rest),
        f'{indent}"""',
    ]
