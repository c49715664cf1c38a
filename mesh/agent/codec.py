"""Values and bytes: one codec per operation's input or output type, pydantic inside. Used by host and client.

Nexus media types (P17): JSON is `application/json`, bytes are `application/octet-stream`, null is no type and
no body. Types are what pydantic takes: models, dataclasses, TypedDicts, builtins, unions of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any, Final, cast, get_args

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, SchemaSerializer, SchemaValidator

from mesh.blob import SCHEMA, Blob
from mesh.errors import ConfigError

JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"
FAULTS_SHOWN_MAX: Final = 5


class Undecodable(ValueError):
    """Bytes that are no value of the type; the text says where and why, never what was sent."""


class Codec:
    """Encoding and decoding of one type; built once, used for every call.

    NaN and the infinities have no form in JSON: Undecodable names where they are, instead of null in their place. A
    model that writes them as text (`ser_json_inf_nan="strings"`) may have them.
    """

    __slots__ = ("_adapter", "_any", "_bytes", "_dump", "_load", "blob", "type")

    def __init__(self, type_: Any) -> None:
        """Raises ConfigError when pydantic cannot describe `type_`."""
        self.type = type_
        self._bytes = type_ is bytes or type_ is bytearray
        self._any = type_ is Any or type_ is object
        self.blob = type_ is Blob
        """The value is the body itself, of any type and size."""
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(Any if self._any or self.blob else type_)
        except PydanticUserError as error:
            message = f"{type_!r} cannot be an operation's input or output: {error.message}"
            raise ConfigError(message) from error
        checks, writes = self._adapter.validator, self._adapter.serializer
        # Past the adapter's wrappers, which hand on sixteen arguments; unless the type is not complete yet.
        self._load = checks.validate_json if type(checks) is SchemaValidator else self._adapter.validate_json
        self._dump = writes.to_json if type(writes) is SchemaSerializer else self._adapter.dump_json

    @property
    def takes_blobs(self) -> bool:
        """Whether a Blob is of the type."""
        return self.blob or self._any

    @property
    def name(self) -> str:
        """The type as its author wrote it, for messages."""
        return self.type.__name__ if isinstance(self.type, type) and not get_args(self.type) else repr(self.type)

    def decode(self, content_type: str | None, body: bytes) -> Any:
        """The value of a body. Raises Undecodable."""
        if self.blob:
            return Blob(data=body, content_type=content_type)
        if content_type != JSON:
            if not content_type:
                if body:
                    message = "the body has no Content-Type"
                    raise Undecodable(message)
                return self.check(None)
            media_type = content_type.partition(";")[0].strip().lower()
            if media_type == BYTES and (self._bytes or self._any):
                return body
            if media_type != JSON and not media_type.endswith("+json"):
                raise Undecodable(f"Content-Type {content_type[:100]!r} cannot be read here")
        try:
            return self._load(body)
        except ValidationError as error:
            raise Undecodable(_explain(error)) from None

    def check(self, value: Any) -> Any:
        """`value` as the type has it: what a plain JSON value stands for. Raises Undecodable."""
        try:
            return self._adapter.validate_python(value)
        except ValidationError as error:
            raise Undecodable(_explain(error)) from None

    def encode(self, value: Any) -> tuple[str | None, bytes]:
        """Media type and bytes; `(None, b"")` for None. Raises Undecodable for a value that is not of the type.

        A Blob is no value to encode: it is streamed by whoever can.
        """
        if self.blob or isinstance(value, Blob):
            found = type(value).__name__
            raise Undecodable(f"{found} given: a mesh.Blob is declared as mesh.Blob, and nothing else is")
        if value is None:
            return None, b""
        if (self._bytes or self._any) and isinstance(value, (bytes, bytearray)):
            return BYTES, bytes(value)
        return JSON, self.dump(value)

    def dump(self, value: Any) -> bytes:
        """JSON of `value`, None included. Raises Undecodable."""
        try:
            body = self._dump(value, by_alias=True, warnings="error")
        except PydanticSerializationError as error:
            trouble = str(error)
            # A dict where a model is promised, say: what reads as the type may be sent as the type.
            value = self.check(value)
            try:
                body = self._dump(value, by_alias=True, warnings="error")
            except PydanticSerializationError:
                raise Undecodable(trouble) from None
        # Most bodies have none of these words, and cost no second look. (`in` would cost 2,000 instructions each.)
        if body.find(b"null") >= 0 or body.find(b"NaN") >= 0 or body.find(b"Infinity") >= 0:
            plain = self._adapter.dump_python(value, by_alias=True, warnings=False)
            for place, number in _not_finite(plain, json.loads(body), ""):
                raise Undecodable(f"{place or 'value'}: {number} has no form in JSON: send None, or text")
        return body

    def schema(self, *, output: bool) -> dict[str, Any] | None:
        """JSON Schema for the registry; None where it would say nothing, or where the wire may carry no JSON.

        A Blob's says what callers give and get; nothing is checked by it.
        """
        if self.blob:
            return dict(SCHEMA)
        if self._bytes or self._any or self.type is None or self.type is type(None):
            return None
        try:
            return self._adapter.json_schema(mode="serialization" if output else "validation", by_alias=True) or None
        except PydanticUserError:
            return None  # valid but not describable, such as a custom class with validators of its own


def _not_finite(value: Any, sent: Any, place: str) -> Iterator[tuple[str, float]]:
    """The floats of `value` that JSON has no number for, unless they were `sent` as text; with their places."""
    if isinstance(value, float):
        if not isfinite(value) and not isinstance(sent, str):
            yield place, value
    elif isinstance(value, Mapping) and isinstance(sent, dict):
        # In their order: a key that is no text is sent as one.
        pairs = zip(cast("Mapping[Any, Any]", value).values(), cast("dict[str, Any]", sent).items(), strict=False)
        for each, (name, part) in pairs:
            yield from _not_finite(each, part, f"{place}/{name}")
    elif isinstance(value, (list, tuple, set, frozenset)) and isinstance(sent, list):
        parts = zip(cast("list[Any]", value), cast("list[Any]", sent), strict=False)
        for i, (each, part) in enumerate(parts):
            yield from _not_finite(each, part, f"{place}/{i}")


def _explain(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    shown = [
        f"{'/'.join(['', *(str(part) for part in fault['loc'])]) or 'value'}: {fault['msg']}"
        for fault in faults[:FAULTS_SHOWN_MAX]
    ]
    if len(faults) > FAULTS_SHOWN_MAX:
        shown.append(f"and {len(faults) - FAULTS_SHOWN_MAX} more")
    return "; ".join(shown)
