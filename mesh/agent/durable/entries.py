"""The journal's entries: what stands in them and how they are written. Pure: bytes in, values out.

An entry is one JSON object with a `kind`. What the SDK writes and reads back:

    step      name n args? result | result_base64 | result_dataref | error, tries, ms, started_at      a step that ended
    try       name n args? tries error until_ms                                      a try that failed, repeated then
    call      name n args? id endpoint service operation | error                     a child was started, or refused
    child     key id state result | result_base64 result_type | result_dataref | failure     its end; by the store
    timer     name n until_ms                                                        a sleep
    fired     name n                                                                 that time has come
    value     name n value                                                           now, random, uuid
    gathering name n until_ms                                                        a gather's deadline
    gather    name n sources                                                         a gather's decision
    progress  name n message? percent? data?                                         for those who watch
    emitted   n length                                                               chunks of the handler itself so far

`name` and `n` (the occurrence of that name in this run, from 1) make the key `clone#1`, under which an entry is found
again, wherever it stands. Unknown kinds and fields are passed over.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, Final

import msgspec
from pydantic_core import PydanticSerializationError, to_json

from mesh.agent.codec import BYTES, Codec
from mesh.errors import ConfigError, TooLarge

ENTRY_BYTES_MAX: Final = 1 << 20
NAME_CHARS_MAX: Final = 200
ARGS_CHARS_MAX: Final = 200
"""Longer arguments are kept as their beginning and a digest of them all."""
MESSAGE_CHARS_MAX: Final = 2000
_DIGEST_CHARS: Final = 24
_NOTHING: Final = msgspec.Raw(b"")


class Trouble(msgspec.Struct, omit_defaults=True):
    """An error as it is recorded: its text, the name of its class, whether repeating it may help."""

    message: str = ""
    type: str = "Exception"
    retryable: bool = False


class Entry(msgspec.Struct, omit_defaults=True):
    """Any entry. What a kind does not use stays at its default and is not written."""

    kind: str
    name: str = ""
    n: int = 0
    key: str = ""
    args: str | None = None
    id: str = ""
    endpoint: str = ""
    service: str = ""
    operation: str = ""
    state: str = ""
    result: msgspec.Raw = _NOTHING
    result_base64: str | None = None
    result_type: str | None = None
    """Of a step: its result was a mesh.Blob. Of a child: the type of what is no JSON."""
    result_dataref: dict[str, Any] | None = None
    error: Trouble | None = None
    failure: msgspec.Raw = _NOTHING
    tries: int = 0
    ms: int = 0
    started_at: str = ""
    until_ms: int = 0
    value: msgspec.Raw = _NOTHING
    sources: dict[str, Any] | None = None
    message: str | None = None
    percent: float | None = None
    data: msgspec.Raw = _NOTHING
    step: str = ""
    length: int = 0


class _Head(msgspec.Struct):
    kind: str
    name: str = ""
    n: int = 0
    key: str = ""


_encode: Final = msgspec.json.Encoder().encode
_decode_head: Final = msgspec.json.Decoder(_Head).decode
_decode: Final = msgspec.json.Decoder(Entry).decode


def key_of(name: str, n: int) -> str:
    return f"{name}#{n}"


def head_of(raw: bytes | memoryview | msgspec.Raw) -> tuple[str, str]:
    """Kind and key of an entry; of one that cannot be read, both empty."""
    try:
        head = _decode_head(raw)
    except msgspec.MsgspecError:
        return "", ""
    return head.kind, head.key or key_of(head.name, head.n)


def read(raw: bytes) -> Entry:
    return _decode(raw)


def write(entry: Entry) -> bytes:
    """Raises TooLarge: one entry has a bound, and what was meant to stand in it is not lost but refused."""
    raw = _encode(entry)
    if len(raw) > ENTRY_BYTES_MAX:
        message = (
            f"{key_of(entry.name, entry.n)} would take {len(raw)} bytes of the journal; an entry has"
            f" {ENTRY_BYTES_MAX} at most: keep large data outside and record where it is, or give the mesh a place for"
            " large payloads ([blobs] url), where large results of steps go by themselves"
        )
        raise TooLarge(message, code="entry_too_large")
    return raw


def check_name(name: str) -> str:
    """A step's, call's or gather's name. Raises ConfigError."""
    if not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
        message = f"a name is 1 to {NAME_CHARS_MAX} printable characters, not {name[:40]!r}"
        raise ConfigError(message)
    return name


def pack(media_type: str | None, body: bytes) -> dict[str, Any]:
    """The fields of an entry that hold an encoded value: `result`, or `result_base64` for bytes."""
    if media_type == BYTES:
        return {"result_base64": b64encode(body).decode()}
    return {"result": msgspec.Raw(body or b"null")}


def unpack(codec: Codec, entry: Entry) -> Any:
    """The value that stands in an entry, as the type has it. Raises mesh.agent.codec.Undecodable."""
    if entry.result_base64 is not None:
        return codec.decode(BYTES, b64decode(entry.result_base64))
    body = bytes(entry.result)
    return codec.decode("application/json", body) if body else codec.check(None)


def fingerprint(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """The arguments of a step or call as text, to tell whether the code still asks the same; None without arguments.

    What JSON has no form for counts by its type's name alone: a client object is the same client on every attempt.
    """
    if not args and not kwargs:
        return None
    plain = [_ordered(each) for each in args]
    whole: Any = [*plain, {name: _ordered(value) for name, value in kwargs.items()}] if kwargs else plain
    try:
        text = to_json(whole, fallback=_by_type, inf_nan_mode="strings", bytes_mode="base64").decode()
    except (PydanticSerializationError, UnicodeDecodeError, ValueError, RecursionError):
        return None
    if len(text) <= ARGS_CHARS_MAX:
        return text
    digest = sha256(text.encode()).hexdigest()[:_DIGEST_CHARS]
    return f"{text[: ARGS_CHARS_MAX - _DIGEST_CHARS - 10]}… sha256:{digest}"


def trouble_of(error: BaseException, *, retryable: bool) -> Trouble:
    return Trouble(str(error)[:MESSAGE_CHARS_MAX], type(error).__name__, retryable)


def _ordered(value: Any) -> Any:
    # Sets of strings iterate in another order in every process.
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    # pydantic would write what an iterator gives, and leave an empty one to the step.
    return _by_type(value) if isinstance(value, Iterator) else value  # pyright: ignore[reportUnknownArgumentType]


def _by_type(value: Any) -> str:
    return f"<{type(value).__name__}>"
