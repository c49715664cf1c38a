"""Which of the coroutines that a context gave out were never begun. Knows no journal; forgets what has begun.

Nobody owes what a source of a gather was given that came too late: its thread may ask even after the code has ended.
"""

from __future__ import annotations

from collections.abc import Coroutine
from inspect import CORO_CREATED, getcoroutinestate
from typing import Any, Final, TypeVar

from mesh.agent.durable.branch import Branch, branch
from mesh.errors import ConfigError

T = TypeVar("T")

ROOM_MIN: Final = 64
SHOWN_MAX: Final = 5


class Owed:
    """What one run of the code was given and has to await."""

    def __init__(self) -> None:
        self._given: list[tuple[str, Coroutine[Any, Any, Any], Branch | None]] = []
        self._room = ROOM_MIN

    def give(self, what: str, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """`coroutine`, remembered as `what` until it was begun or closed."""
        self._given.append((what, coroutine, branch.get()))
        if len(self._given) > self._room:
            self._given = self._unbegun()
            self._room = max(ROOM_MIN, 2 * len(self._given))
        return coroutine

    def check(self) -> None:
        """At the end of the code. Raises ConfigError: what was never awaited was never done."""
        left = [what for what, _, source in self.close() if source is None or not source.given_up]
        if not left:
            return
        names = ", ".join(left[:SHOWN_MAX]) + (", ..." if len(left) > SHOWN_MAX else "")
        message = f"the handler ended without awaiting {names}, which therefore never happened: write `await ctx. ...`"
        raise ConfigError(message)

    def close(self) -> list[tuple[str, Coroutine[Any, Any, Any], Branch | None]]:
        """The code has ended: what was never begun will not be. Gives it, closed."""
        left = self._unbegun()
        for _, coroutine, _ in left:
            coroutine.close()
        return left

    def _unbegun(self) -> list[tuple[str, Coroutine[Any, Any, Any], Branch | None]]:
        return [each for each in self._given if getcoroutinestate(each[1]) == CORO_CREATED]
