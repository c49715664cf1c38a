"""What this gateway counts, in Prometheus form; label sets are closed (endpoint names, states, fixed words)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.machine import State


class Metrics:
    """Counters of one gateway process. Child objects are kept, so that counting costs one addition."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._starts = Counter(
            "mesh_operations_started_total", "Start requests by outcome", ["outcome"], registry=self.registry
        )
        self._ended = Counter(
            "mesh_operations_ended_total", "Operations that this gateway saw end", ["state"], registry=self.registry
        )
        self._attempts = Counter(
            "mesh_attempts_total", "Start requests sent to agents", ["endpoint", "outcome"], registry=self.registry
        )
        self._callbacks = Counter(
            "mesh_callbacks_total", "Tries to deliver a callback", ["outcome"], registry=self.registry
        )
        self._children: dict[tuple[str, ...], Counter] = {}

    def _count(self, family: Counter, *labels: str) -> None:
        key = (str(id(family)), *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = family.labels(*labels)
        child.inc()

    def start(self, outcome: str) -> None:
        """A start request: accepted, replayed, refused, key_reused."""
        self._count(self._starts, outcome)

    def ended(self, state: State) -> None:
        """An operation reached `state` through this gateway."""
        self._count(self._ended, state.word)

    def attempt(self, endpoint: str, outcome: str) -> None:
        """One try to start at an agent."""
        self._count(self._attempts, endpoint, outcome)

    def callback(self, outcome: str) -> None:
        """One try of a callback."""
        self._count(self._callbacks, outcome)

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A value that is read when somebody asks."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)
