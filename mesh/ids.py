"""Identity and chance for the whole project: the only file that draws random numbers.

An operation id is `{partition}-{20 characters}`: the partition tag in front tells where the record lives without
an index, the rest is 80 random bits in hexadecimal, so ids cannot be guessed.
"""

from __future__ import annotations

import os
import random
import re
import secrets
from typing import Final

PARTITION = "00"
"""The one partition of a single store."""

_is_id = re.compile(r"[0-9]{2}-[0-9a-f]{20}").fullmatch
_chance = random.SystemRandom()

ID_CHARS: Final = 20
_BLOCK: Final = 256
_drawn: list[str] = []
os.register_at_fork(after_in_child=_drawn.clear)  # a forked child must not draw what its parent draws


def _letters() -> str:
    """20 characters, 80 random bits; the system is asked for a block at a time."""
    while True:
        try:
            return _drawn.pop()  # one atomic step: two threads never get the same
        except IndexError:
            block = secrets.token_hex(_BLOCK * ID_CHARS // 2)
            _drawn.extend(block[at : at + ID_CHARS] for at in range(0, len(block), ID_CHARS))


def operation_id(partition: str = PARTITION) -> str:
    """A new operation id, 23 characters, legal in a path, a header and a key."""
    return f"{partition}-{_letters()}"


def is_operation_id(text: str) -> bool:
    """Whether `text` has the form of an operation id; says nothing of its existence."""
    return _is_id(text) is not None


def partition_of(operation: str) -> str:
    """The partition tag of an operation id."""
    return operation[:2]


def short_id(prefix: str) -> str:
    """`{prefix}-{12 characters}` for sessions, endpoints and instances."""
    return f"{prefix}-{_letters()[:12]}"


def secret_bytes(count: int) -> bytes:
    """Key material."""
    return secrets.token_bytes(count)


def jittered(value_ms: float, spread: float) -> int:
    """`value_ms` moved by a random share in [-spread, +spread], in whole milliseconds."""
    return round(value_ms * (1 + _chance.uniform(-spread, spread)))


def pick_index(count: int) -> int:
    """A uniform index below `count` (>= 1)."""
    return _chance.randrange(count)
