"""JSON as the mesh takes it in: one meaning for every reader behind us (docs/why/attacks.md S24).

Refused beyond RFC 8259: duplicate keys, NaN and Infinity, numbers that overflow to infinity, integers past
Python's digit limit, lone surrogates, NUL, a byte order mark, and more than JSON_DEPTH_MAX levels.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any, Final, NoReturn

from mesh.errors import Malformed

JSON_DEPTH_MAX: Final = 200

# An odd run of backslashes makes the last one an escape; `\\u0000` is a backslash and four harmless digits.
_nul = re.compile(rb"(?<!\\)(?:\\\\)*+\\u0000").search
_surrogate = re.compile(rb"\\u[dD][89a-fA-F]").search


class _Refused(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _Refused("the JSON has a duplicate key")
    return value


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _Refused("the JSON has a number that no double holds")
    return value


def _constant(_name: str) -> NoReturn:
    raise _Refused("the JSON has NaN or Infinity")


_decode = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_constant=_constant).decode


def _containers(values: Iterable[Any]) -> list[dict[str, Any] | list[Any]]:
    return [value for value in values if isinstance(value, (dict, list))]


def _depth(value: Any) -> int:
    """Levels of nesting, walked level by level so that depth costs no stack."""
    depth = 0
    level = _containers([value])
    while level:
        depth += 1
        level = _containers(
            child for node in level for child in (node.values() if isinstance(node, dict) else node)
        )
    return depth


def nested_deeper(body: bytes, value: Any, depth_max: int = JSON_DEPTH_MAX) -> bool:
    """Whether `value`, decoded from `body`, has more levels; walked only where the bytes have as many brackets."""
    return body.count(b"[") + body.count(b"{") > depth_max and _depth(value) > depth_max


def _check_rest(body: bytes, value: Any, depth_max: int) -> None:
    """What the decoder does not see; each is looked for only where the bytes give reason to."""
    if nested_deeper(body, value, depth_max):
        raise _Refused(f"the JSON is nested deeper than {depth_max}")
    if b"\\u" not in body:
        return
    if _nul(body):
        raise _Refused("the JSON has a NUL character")
    if _surrogate(body):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise _Refused("the JSON has a lone surrogate") from None


def load_json(body: bytes, depth_max: int = JSON_DEPTH_MAX) -> Any:
    """The value of a strict JSON text. Raises Malformed (code `json_invalid`) with the reason."""
    try:
        value = _decode(body.decode())
        _check_rest(body, value, depth_max)
    except UnicodeDecodeError:
        reason = "the JSON is not UTF-8"
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error}"
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
