"""What this gateway counts, in Prometheus form; label sets are closed: endpoint ids, namespaces, states, fixed words.

Ids of endpoints, not names: whoever may read the figures need not know what other teams registered. Names are in one
family (queues.py), for whom they are for.
Counting is one addition to a dict; the exposition is made by prometheus_client when somebody asks.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric

from mesh.machine import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


_FAMILIES: Final = {
    "mesh_operations_started": ("Start requests by outcome", ["outcome"]),
    "mesh_operations_ended": ("Operations that this gateway saw end", ["state"]),
    "mesh_attempts": ("Start requests sent to agents", ["endpoint", "outcome"]),
    "mesh_callbacks": ("Tries to deliver a callback", ["outcome"]),
    "mesh_steps": ("What running attempts said: journal, stream, suspend", ["verb", "status"]),
}

_WORDS: Final = {state: state.word for state in State}


class Metrics:
    """Counters and gauges of one gateway process."""

    def __init__(self) -> None:
        self._counts: defaultdict[tuple[str, ...], int] = defaultdict(int)  # a Counter takes twice as long
        self._registry = CollectorRegistry()
        self._registry.register(self)  # pyright: ignore[reportArgumentType] - anything with `collect` is a collector

    def start(self, outcome: str) -> None:
        """A start request: accepted, replayed, key_reused."""
        self._counts["mesh_operations_started", outcome] += 1

    def ended(self, state: State, count: int = 1) -> None:
        """So many operations reached `state` through this gateway."""
        self._counts["mesh_operations_ended", _WORDS[state]] += count

    def attempt(self, endpoint_id: str, outcome: str, count: int = 1) -> None:
        """So many tries to start at an agent."""
        self._counts["mesh_attempts", endpoint_id, outcome] += count

    def callback(self, outcome: str) -> None:
        """One try of a callback."""
        self._counts["mesh_callbacks", outcome] += 1

    def step(self, verb: str, status: str) -> None:
        """One task of /v1/tasks/{journal,emit,suspend}."""
        self._counts["mesh_steps", verb, status] += 1

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A value that is read when somebody asks."""
        Gauge(name, text, registry=self._registry).set_function(read)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """For prometheus_client."""
        for name, (text, labels) in _FAMILIES.items():
            family = CounterMetricFamily(name, text, labels=labels)
            for (counted, *values), count in list(self._counts.items()):
                if counted == name:
                    family.add_metric(values, count)
            yield family

    def render(self, families: Sequence[Metric] = ()) -> bytes:
        """The exposition text, `families` last."""
        more = CollectorRegistry()
        for family in families:
            more.register(_Read(family))  # pyright: ignore[reportArgumentType] - as above
        return generate_latest(self._registry) + generate_latest(more)


class _Read:
    """A family that was read already, as a collector."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family
