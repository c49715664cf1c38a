"""What a gather gives: an outcome for each source. Values only; how they come about is gather.py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from mesh.agent.durable.errors import QuorumMissed

NAMED_MAX: Final = 5

State: TypeAlias = Literal["succeeded", "failed", "late", "skipped"]


@dataclass(slots=True)
class Source:
    """What became of one source.

    state   succeeded; failed; late: no answer when the gather was decided; skipped: known not to answer now, not asked
    ms      how long it took, or had taken
    error   of a failure: `{"message", "type"}`
    """

    state: State
    ms: int
    value: Any = None
    error: dict[str, str] | None = None


class Gathered(Mapping[str, Source]):
    """The outcome of every source, in the order they were given. `quorum`: how many were needed."""

    def __init__(self, sources: dict[str, Source], quorum: int, kept: dict[str, asyncio.Task[Any]]) -> None:
        self._sources = sources
        self._kept = kept
        self.quorum = quorum

    def __getitem__(self, name: str) -> Source:
        return self._sources[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    @property
    def results(self) -> dict[str, Any]:
        """The values of the sources that succeeded in time."""
        return {name: source.value for name, source in self._sources.items() if source.state == "succeeded"}

    @property
    def reached(self) -> bool:
        """Whether as many succeeded as were needed."""
        return len(self.results) >= self.quorum

    def require(self) -> Gathered:
        """Itself. Raises QuorumMissed when too few succeeded."""
        if not self.reached:
            raise QuorumMissed(self)
        return self

    async def late(self, name: str) -> Any:
        """Wait for a late source that was kept, and give its value. Raises what it raises; LookupError for others."""
        if name not in self._kept:
            message = f"source {name!r} is not waited for: it is {self._sources[name].state}"
            raise LookupError(message)
        return await asyncio.shield(self._kept[name])

    def story(self) -> str:
        """`9 of 12 needed answered; 2 failed (a, b), 1 late (c)`."""
        parts: list[str] = []
        for state in ("failed", "late", "skipped"):
            names = [name for name, source in self._sources.items() if source.state == state]
            if names:
                more = ", ..." if len(names) > NAMED_MAX else ""
                parts.append(f"{len(names)} {state} ({', '.join(names[:NAMED_MAX])}{more})")
        return f"{len(self.results)} of {self.quorum} needed answered; {', '.join(parts) or 'none missing'}"
