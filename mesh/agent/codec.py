"""Values and bytes: one codec per operation's input or output type, pydantic inside. Used by host and client.

Nexus media types (P17): JSON is `application/json`, bytes are `application/octet-stream`, null is no type and
no body. Types are what pydantic takes: models, dataclasses, TypedDicts, builtins, unions of them.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from mesh.errors import ConfigError

JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"
FAULTS_SHOWN_MAX: Final = 5


class Undecodable(ValueError):
    """Bytes that are no value of the type; the text says where and why, never what was sent."""


class Codec:
    """Encoding and decoding of one type; built once, used for every call."""

    __slots__ = ("_adapter", "_any", "_bytes", "_dump", "_load", "type")

    def __init__(self, type_: Any) -> None:
        """Raises ConfigError when pydantic cannot describe `type_`."""
        self.type = type_
        self._bytes = type_ is bytes or type_ is bytearray
        self._any = type_ is Any or type_ is object
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(Any if self._any else type_)
        except PydanticUserError as error:
            message = f"{type_!r} cannot be an operation's input or output: {error.message}"
            raise ConfigError(message) from error
        self._load = self._adapter.validate_json
        self._dump = self._adapter.dump_json

    def decode(self, content_type: str | None, body: bytes) -> Any:
        """The value of a body. Raises Undecodable."""
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
        """Media type and bytes; `(None, b"")` for None. Raises Undecodable for a value that is not of the type."""
        if value is None:
            return None, b""
        if (self._bytes or self._any) and isinstance(value, (bytes, bytearray)):
            return BYTES, bytes(value)
        return JSON, self.dump(value)

    def dump(self, value: Any) -> bytes:
        """JSON of `value`, None included. Raises Undecodable."""
        try:
            return self._dump(value, by_alias=True, warnings="error")
        except PydanticSerializationError as error:
            trouble = str(error)
        # A dict where a model is promised, say: what reads as the type may be sent as the type.
        try:
            return self._dump(self.check(value), by_alias=True, warnings="error")
        except PydanticSerializationError:
            raise Undecodable(trouble) from None

    def schema(self, *, output: bool) -> dict[str, Any] | None:
        """JSON Schema for the registry; None where it would say nothing, or where the wire carries no JSON."""
        if self._bytes or self._any or self.type is None or self.type is type(None):
            return None
        try:
            return self._adapter.json_schema(mode="serialization" if output else "validation", by_alias=True) or None
        except PydanticUserError:
            return None  # valid but not describable, such as a custom class with validators of its own


def _explain(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    shown = [
        f"{'/'.join(['', *(str(part) for part in fault['loc'])]) or 'value'}: {fault['msg']}"
        for fault in faults[:FAULTS_SHOWN_MAX]
    ]
    if len(faults) > FAULTS_SHOWN_MAX:
        shown.append(f"and {len(faults) - FAULTS_SHOWN_MAX} more")
    return "; ".join(shown)
