"""Which of the coroutines that a context gave out were never begun. Knows no journal; forgets what has begun.

Nobody owes what a source of a gather was given that came too late: its thread may ask even after the code has ended.
"""

from __future__ import annotations

from collections.abc import Coroutine
from inspect import CORO_CREATED, getcoroutinestate
from typing import Any, Final, NamedTuple, TypeVar

from mesh.agent.durable.branch import Branch, branch
from mesh.errors import ConfigError

T = TypeVar("T")

ROOM_MIN: Final = 64
SHOWN_MAX: Final = 5


class Given(NamedTuple):
    """One coroutine. `key`: in the journal, scope in front; `source`: of the gather that it is part of."""

    method: str
    key: str
    coroutine: Coroutine[Any, Any, Any]
    source: Branch | None

    @property
    def shown(self) -> str:
        return f"{self.method} {self.key}" if self.method in ("step", "call") else self.key

    @property
    def cure(self) -> str:
        """What to write instead."""
        name = self.key.rpartition("#")[0].rpartition("/")[2]
        return f'await ctx.step("{name}", ...)' if self.method == "step" else f"await ctx.{self.method}(...)"


class Owed:
    """What one run of the code was given and has to await."""

    def __init__(self) -> None:
        self._given: list[Given] = []
        self._room = ROOM_MIN

    def give(self, method: str, key: str, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """`coroutine`, remembered until it was begun or closed. `method` of the context that was called."""
        self._given.append(Given(method, key, coroutine, branch.get()))
        if len(self._given) > self._room:
            self._given = self._unbegun()
            self._room = max(ROOM_MIN, 2 * len(self._given))
        return coroutine

    def check(self) -> None:
        """At the end of the code. Raises ConfigError: what was never awaited was never done."""
        left = [each for each in self.close() if each.source is None or not each.source.given_up]
        if not left:
            return
        names = ", ".join(each.shown for each in left[:SHOWN_MAX]) + (", ..." if len(left) > SHOWN_MAX else "")
        message = f"the handler ended without awaiting {names}, which therefore never happened: write `{left[0].cure}`"
        raise ConfigError(message)

    def close(self) -> list[Given]:
        """The code has ended: what was never begun will not be. Gives it, closed."""
        left = self._unbegun()
        for each in left:
            each.coroutine.close()
        return left

    def _unbegun(self) -> list[Given]:
        return [each for each in self._given if getcoroutinestate(each.coroutine) == CORO_CREATED]
