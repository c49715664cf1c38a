"""Identity and chance for the whole project: the only file that draws random numbers.

An operation id is `{partition}-{20 characters}`: the partition tag in front tells where the record lives without
an index (decision 3), the rest is 100 random bits in Crockford's base 32, so ids cannot be guessed.
"""

from __future__ import annotations

import random
import secrets

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
PARTITION = "00"
"""The one partition of a single store (decision 11)."""

_chance = random.SystemRandom()


def _letters(count: int) -> str:
    value = secrets.randbits(count * 5)
    return "".join(ALPHABET[(value >> shift) & 31] for shift in range(0, count * 5, 5))


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
