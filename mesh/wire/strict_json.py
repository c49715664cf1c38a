"""JSON as the mesh takes it in: one meaning for every reader behind us (docs/why/attacks.md S24).

Refused beyond RFC 8259: duplicate keys, NaN and Infinity, numbers that overflow to infinity, integers past
Python's digit limit, lone surrogates, NUL, a byte order mark, and more than JSON_DEPTH_MAX levels.

Small pieces cost most: 2 MiB of `[]` take a hundred times as long as 2 MiB of text, and no other thread runs
meanwhile. `reading_ns` says beforehand what a text may cost (P185); who must not be held up asks it.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, NoReturn

import msgspec

from mesh.errors import Malformed

JSON_DEPTH_MAX: Final = 200
KEY_SHOWN_MAX: Final = 64
READ_NS_MAX: Final = 10_000_000
"""What an event loop can spare for one text, by `reading_ns`."""
CHEAP_BYTES: Final = 16_384
"""No text of this length costs more than that, whatever is in it."""

# Measured with the dearest of each kind (values of a list, members of an object, lists and objects, escapes, digits).
_BYTE_NS: Final = 3
_VALUE_NS: Final = 140
_MEMBER_NS: Final = 400
_NESTED_NS: Final = 450
_ESCAPE_NS: Final = 60
_DIGIT_NS: Final = 20
_DIGITS: Final = b"0123456789"

_surrogate: Final = re.compile(rb"\\u[dD][89a-fA-F]").search
_HIGH: Final = rb"\\u[dD][89abAB][0-9a-fA-F]{2}"
_LOW: Final = rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_lone: Final = re.compile(rb"%b(?!%b)|(?<!%b)%b" % (_HIGH, _LOW, _HIGH, _LOW)).search
_ROUND: Final = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_runs: Final = re.compile(rb"\[+|\]+").findall
_OPEN: Final = ord("[")
_BACKSLASH: Final = ord("\\")
"""As a number: to look for bytes in bytes costs CPython ten times as much, an exception that nobody sees among it."""
_large: Final = re.compile(rb"[eE]\+?0*(?:30[89]|3[1-9][0-9]|[4-9][0-9]{2}|[1-9][0-9]{3})").search
_DIGITS_AS_ZERO: Final = bytes.maketrans(_DIGITS, b"0" * len(_DIGITS))
_DOUBLE_DIGITS: Final = 309
"""No integer of fewer digits is beyond all doubles."""
_write: Final = msgspec.json.Encoder().encode
_skip: Final = msgspec.json.Decoder(msgspec.Raw).decode


class _Refused(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names: set[str] = set()
        twice = next(name for name, _ in pairs if name in names or names.add(name))
        raise _Refused(f"the JSON has a duplicate key: {twice[:KEY_SHOWN_MAX]!r}")
    return value


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _Refused("the JSON has a number that no double holds")
    return value


def _constant(_name: str) -> NoReturn:
    raise _Refused("the JSON has NaN or Infinity")


_decode = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_constant=_constant).decode


def reading_ns(body: bytes) -> int:
    """About what reading `body` takes at most, whatever its strings hold; 0 for a short one."""
    if len(body) <= CHEAP_BYTES:
        return 0
    nested = body.count(b"[") + body.count(b"{")
    digits = len(body) - len(body.translate(None, _DIGITS))
    return (
        len(body) * _BYTE_NS
        + nested * _NESTED_NS
        + body.count(b",") * _VALUE_NS
        + body.count(b":") * _MEMBER_NS
        + body.count(b"\\") * _ESCAPE_NS
        + digits * _DIGIT_NS
    )


def costly(body: bytes) -> bool:
    """Whether reading `body` may hold up an event loop for longer than it can spare."""
    return len(body) > CHEAP_BYTES and reading_ns(body) > READ_NS_MAX


def many_digits(body: bytes, count: int) -> bool:
    """Whether `count` digits stand in a row somewhere."""
    # Searched as a text of zeros: a pattern would begin anew at every digit.
    return body.translate(_DIGITS_AS_ZERO).find(b"0" * count) >= 0


def _overflows(text: bytes) -> bool:
    return _large(text) is not None or many_digits(text, _DOUBLE_DIGITS)


def _outside(body: bytes) -> bytes:
    """The sound JSON text `body` without what its strings hold."""
    if b'"' not in body:
        return body
    if b"\\" in body:  # then first the quotes that are escaped
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(body.split(b'"')[::2])


def readable_json(body: bytes, depth_max: int = JSON_DEPTH_MAX) -> bool:
    """Whether `body` can stand in an answer as it is: a JSON text in UTF-8 that every reader gets through.

    Builds no values of a long one: 2 MiB of whatever are looked at, not read. Duplicate keys and NUL pass; a large
    number among so many values that reading them is costly counts as unreadable.
    """
    try:
        if len(body) <= CHEAP_BYTES:
            msgspec.json.decode(body)
        else:
            _skip(body)
            body.decode()
            if _overflows(body) and _overflows(_outside(body)):
                if costly(body):
                    return False
                msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return not nested_deeper(body, depth_max)


def nested_deeper(body: bytes, depth_max: int = JSON_DEPTH_MAX) -> bool:
    """Whether the sound JSON text `body` has more levels; looked at only where it has as many brackets."""
    if len(body) <= 2 * depth_max:
        return False
    if body.count(b"[") + body.count(b"{") <= depth_max:
        return False
    return _levels(_outside(body).translate(_ROUND, _NO_BRACKETS)) > depth_max


def _levels(brackets: bytes) -> int:
    """How deep `brackets`, all of them `[` and `]` and in pairs, are."""
    peeled = 0
    while brackets:
        # The innermost pairs go at once, while they are many; one level of what is left is gone then.
        inner = brackets.replace(b"[]", b"")
        peeled += 1
        many = len(inner) < 0.7 * len(brackets)
        brackets = inner
        if not many:
            break
    depth = deepest = 0
    for run in _runs(brackets):
        depth += len(run) if run[0] == _OPEN else -len(run)
        deepest = max(deepest, depth)
    return peeled + deepest


def _check_rest(body: bytes, depth_max: int) -> None:
    """What the decoder does not see; each is looked for only where the bytes give reason to."""
    if nested_deeper(body, depth_max):
        raise _Refused(f"the JSON is nested deeper than {depth_max}")
    if _BACKSLASH not in body or b"\\u" not in body:
        return
    # An odd run of backslashes makes the last one an escape; `\\u0000` is a backslash and four harmless digits.
    escapes = body.replace(b"\\\\", b"__")  # of the same length: nothing may come together that was apart
    if b"\\u0000" in escapes:
        raise _Refused("the JSON has a NUL character")
    if _surrogate(escapes) and _lone(escapes):
        raise _Refused("the JSON has a lone surrogate")


def load_json(body: bytes, depth_max: int = JSON_DEPTH_MAX, *, ns_max: int = 0) -> Any:
    """The value of a strict JSON text. Raises Malformed (code `json_invalid`) with the reason.

    `ns_max`: a text that may cost more (`reading_ns`) is refused unread; 0 = read whatever it costs.
    """
    if len(body) <= CHEAP_BYTES and _BACKSLASH not in body:
        # All that msgspec, three times as fast, lets pass of such a text is a key that is there twice and depth.
        try:
            value = msgspec.json.decode(body)
            written = _write(value)
            # A member whose key comes again is lost, and its colon with it; all others stand in strings, which stay.
            # Most are compact, and then it is the same text: quicker to see than to count, a byte at a time.
            whole = written == body or written.count(b":") == body.count(b":")
            if whole and not nested_deeper(body, depth_max):
                return value
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # what is wrong is said below
    return _read(body, depth_max, ns_max)


def _read(body: bytes, depth_max: int, ns_max: int) -> Any:
    if ns_max and reading_ns(body) > ns_max:
        detail = f"the JSON has too many values: reading its {len(body)} bytes could take over {ns_max // 1_000_000} ms"
        raise Malformed(detail, code="json_invalid")
    try:
        value = _decode(body.decode())
        _check_rest(body, depth_max)
    except UnicodeDecodeError:
        reason = "the JSON is not UTF-8"
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error}" if body.strip() else "not JSON: there is nothing"
    except _Refused as error:
        reason = str(error)
    except RecursionError:
        reason = f"the JSON is nested deeper than {depth_max}"
    except ValueError:
        reason = "the JSON has an integer with too many digits"
    else:
        return value
    raise Malformed(reason, code="json_invalid")


def check_json(body: bytes) -> None:
    """Raise Malformed unless `body` is a strict JSON text."""
    load_json(body)
