"""The fields of a JSON body: read into a struct, or each told that is wrong, by an RFC 6901 pointer.

Knows no body in particular. Pure.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar, get_args

import msgspec

from mesh.errors import Unprocessable
from mesh.wire.strict_json import CHEAP_BYTES

FAULTS_MAX: Final = 16
"""Told in one answer."""
MEMBER_CHARS_MAX: Final = 128
"""A name of a member that a pointer shows."""
_UNKNOWN: Final = "Object contains unknown field `{}`"
_KINDS: Final = {
    type(None): "null", bool: "bool", int: "int", float: "float", str: "str", list: "array", dict: "object"
}  # fmt: skip
"""What msgspec calls a value."""

Fields = TypeVar("Fields", bound=msgspec.Struct)
_decode_names: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def read_fields(
    body: bytes, decoder: msgspec.json.Decoder[Fields], what: str = "a start request"
) -> Fields:
    """The fields of strict JSON, as `decoder` has them; it should be `what`. Raises Unprocessable with pointers."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        faults = _faults(body, decoder.type) or [_pointer(str(error))]
        where = f" at {faults[0]['pointer']}" if faults[0]["pointer"] else ""
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise Unprocessable(
            f"the body is not {what}: {faults[0]['detail']}{where}{more}", code="body_invalid", errors=faults
        ) from None


def _faults(body: bytes, kind: type[msgspec.Struct]) -> list[dict[str, str]]:
    """All that is wrong with the fields, each by itself; empty when the whole is no object."""
    try:
        given = _decode_names(body)
    except msgspec.ValidationError:
        return []
    known = {one.encode_name: one for one in msgspec.structs.fields(kind)}
    unknown = sorted(given.keys() - known)
    faults = [{"pointer": "", "detail": _UNKNOWN.format(name)} for name in unknown[:FAULTS_MAX]]
    if faults:
        faults[0]["detail"] += f" (there are {', '.join(known)})"
    for name, field in known.items():
        if name not in given:
            if field.required:
                faults.append({"pointer": "", "detail": f"Object missing required field `{name}`"})
            continue
        try:
            msgspec.json.decode(given[name], type=field.type)
        except msgspec.ValidationError as error:
            entry = _pointer(str(error), given[name])
            if entry["detail"].startswith(_UNKNOWN[:-4]) and not entry["pointer"]:
                entry["detail"] += _there_are(field.type)
            faults.append({"pointer": f"/{name}{entry['pointer']}", "detail": entry["detail"]})
    return faults[:FAULTS_MAX]


def _there_are(kind: object) -> str:
    """The fields of the object that `kind`, or one of a union, is."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return f" (there are {', '.join(kind.__struct_encode_fields__)})"
    found: list[str] = [_there_are(part) for part in get_args(kind)]
    return "".join(found)


def body_invalid(pointer: str, detail: str) -> Unprocessable:
    """The refusal of one field."""
    return Unprocessable(detail, code="body_invalid", errors=[{"pointer": pointer, "detail": detail}])


def _pointer(message: str, given: bytes | msgspec.Raw = b"") -> dict[str, str]:
    """Msgspec says `... - at `$.callback.url``; make it an RFC 6901 pointer into `given`."""
    text, _, path = message.partition(" - at `$")
    above, any_member, below = path.rstrip("`").partition("[...]")
    member = _member(bytes(given), above, text) if any_member else ""
    below = below.replace("[...]", "").replace(".", "/")
    return {"pointer": above.replace(".", "/") + member + (below if member else ""), "detail": text}


def _kind(value: object) -> str:
    return next((word for kind, word in _KINDS.items() if type(value) is kind), "")


def _member(given: bytes, above: str, text: str) -> str:
    """Msgspec does not say which member of an object it means, only that it `got` such a value: the first such one."""
    if len(given) > CHEAP_BYTES:
        return ""
    value: Any = msgspec.json.decode(given)
    for name in above.split(".")[1:]:
        value = value[name]
    members: dict[str, object] = value
    for name, one in members.items():
        if text.endswith(f"got `{_kind(one)}`") and len(name) <= MEMBER_CHARS_MAX:
            return "/" + name.replace("~", "~0").replace("/", "~1")
    return ""
