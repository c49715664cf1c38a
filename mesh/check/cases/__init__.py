"""All conformance cases, by number: the numbers that code and tests cite. The language is mesh/check/case.py.

bodies  names  starts  timeouts  headers  errors  replies (client side)  cancels  callbacks and their trouble (out)
completions (in)  limits
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from mesh.check.case import Case
from mesh.check.cases import (
    bodies,
    callbacks,
    cancels,
    completions,
    errors,
    headers,
    limits,
    names,
    replies,
    starts,
    timeouts,
    trouble,
)

CASES: Final[tuple[Case, ...]] = tuple(
    sorted(
        (
            case
            for room in (
                *(bodies, names, starts, timeouts, headers, errors, replies, cancels, callbacks, trouble),
                *(completions, limits),
            )
            for case in room.CASES
        ),
        key=lambda case: case.number,
    )
)


def chosen(numbers: Collection[int] = (), rules: Collection[str] = (), groups: Collection[str] = ()) -> list[Case]:
    """The cases that are named by number, by a rule or by their group; all of them when nothing is named."""
    if not numbers and not rules and not groups:
        return list(CASES)
    return [
        case
        for case in CASES
        if case.number in numbers or case.group in groups or {case.rule, *case.rules.values()} & set(rules)
    ]
