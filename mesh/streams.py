"""Bytes that are too many for memory: how they come (`Source`) and where they go (`Intake`). Shapes only.

What sends and what receives (mesh/edge, mesh/pool) knows these two; what is behind them is mesh/blobs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from mesh.errors import MeshError


class Source(Protocol):
    """Bytes of a known number, to be read from the beginning as often as it takes."""

    @property
    def size(self) -> int: ...

    def chunks(self) -> AsyncIterator[bytes]:
        """All of them, in pieces. Raises a MeshError in place of a piece when they cannot be had."""
        ...


class Intake(Protocol):
    """Takes a body while it arrives."""

    def watch(self, room: Callable[[], None], fault: Callable[[MeshError], None]) -> None:
        """Whom to tell that there is room again, or that nothing more can be taken."""
        ...

    def feed(self, chunk: bytes) -> bool:
        """Take a piece, whatever its size. False: hold the sender back until there is room."""
        ...

    async def finish(self) -> Any:
        """All of it is there: what was made of it. Raises a MeshError, and keeps nothing then."""
        ...

    def abandon(self) -> None:
        """It is not wanted any more: keep nothing. Nothing happens to what was handed on."""
        ...
