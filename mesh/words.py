"""Numbers with their nouns, as messages say them. Pure; knows nothing of what is counted."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 operation`, `2 operations`; `plural` where it is not the noun with an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or f'{noun}s'}"
