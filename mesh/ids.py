"""Identity and chance for the whole project: the only file that draws random numbers.

An operation id is `{partition}-{20 characters}`: the partition tag in front tells where the record lives without
an index (decision 3), the rest is 100 random bits in Crockford's base 32, so ids cannot be guessed.
"""

from __future__ import annotations

import os
import random
import secrets
from base64 import b32encode
from typing import Final

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
PARTITION = "00"
"""The one partition of a single store (decision 11)."""

_chance = random.SystemRandom()


_BLOCK: Final = 15 * 256
_TO_OURS: Final = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", ALPHABET.encode())
_drawn = bytearray()


def _letters(count: int) -> str:
    """`count` (at most 24) characters of 5 random bits each; the system is asked for a block at a time."""
    if len(_drawn) < 15:  # noqa: PLR2004 - 15 bytes are 24 characters
        _drawn.extend(secrets.token_bytes(_BLOCK))
    text = b32encode(_drawn[-15:])[:count].translate(_TO_OURS).decode()
    del _drawn[-15:]
    return text


def operation_id(partition: str = PARTITION) -> str:
    """A new operation id, 23 characters, legal in a path, a header and a key."""
    return f"{partition}-{_letters(20)}"


def is_operation_id(text: str) -> bool:
    """Whether `text` has the form of an operation id; says nothing of its existence."""
    return len(text) == 23 and text[2] == "-" and text[:2].isdigit() and set(text[3:]) <= set(ALPHABET)  # noqa: PLR2004


def partition_of(operation: str) -> str:
    """The partition tag of an operation id."""
    return operation[:2]


def short_id(prefix: str) -> str:
    """`{prefix}-{12 characters}` for sessions, endpoints and instances."""
    return f"{prefix}-{_letters(12)}"


def secret_bytes(count: int) -> bytes:
    """Key material."""
    return secrets.token_bytes(count)


def jittered(value_ms: float, spread: float) -> int:
    """`value_ms` moved by a random share in [-spread, +spread], in whole milliseconds."""
    return round(value_ms * (1 + _chance.uniform(-spread, spread)))


def pick_index(count: int) -> int:
    """A uniform index below `count` (>= 1)."""
    return _chance.randrange(count)


os.register_at_fork(after_in_child=_drawn.clear)  # a forked child must not draw what its parent draws
