"""Who called which operation lately: noted in memory with every start, written to the store at most once a minute each.

A note costs the hot path one look into a set. Written by the catalog's own clockwork, in one call per endpoint; what a
killed gateway had not written yet is at most a few seconds of calls. Knows no contract.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from mesh.clock import monotonic_s, now_ms
from mesh.store.catalog import CatalogStore

SEEN_FOR_MS: Final = 7 * 86_400_000
"""How long a caller counts as one that is still there."""
AGAIN_S: Final = 60.0
NOTED_MAX: Final = 20_000
"""Different notes between two writings of the same; what is over is not noted."""
BATCH_MAX: Final = 500

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(tuple[str, str, str]).decode


class Caller(NamedTuple):
    """A namespace that called an operation, and when last (ms of the store's clock)."""

    service: str
    operation: str
    namespace: str
    at_ms: int


class Callers:
    """Of all endpoints, as far as this gateway takes starts for them."""

    def __init__(self, store: CatalogStore) -> None:
        self._store = store
        self._noted: set[tuple[str, str, str, str]] = set()
        self._fresh: list[tuple[str, str, str, str]] = []
        self._until_s = monotonic_s() + AGAIN_S

    def note(self, endpoint_id: str, service: str, operation: str, namespace: str) -> None:
        """A start was accepted."""
        one = (endpoint_id, service, operation, namespace)
        if one not in self._noted and len(self._noted) < NOTED_MAX:
            self._noted.add(one)
            self._fresh.append(one)

    async def write(self) -> None:
        """Write what was noted since the last time. Raises StoreUnavailable, OutcomeUnknown; nothing is lost then."""
        fresh = self._fresh
        by_endpoint: dict[str, list[str]] = {}
        for endpoint_id, *called in fresh:
            by_endpoint.setdefault(endpoint_id, []).append(_encode(called).decode())
        for endpoint_id, seen in by_endpoint.items():
            for begin in range(0, len(seen), BATCH_MAX):
                await self._store.callers_seen(endpoint_id, seen[begin : begin + BATCH_MAX], SEEN_FOR_MS)
        self._fresh = self._fresh[len(fresh) :]
        if monotonic_s() >= self._until_s:
            self._until_s = monotonic_s() + AGAIN_S
            self._noted = set(self._fresh)

    async def of(self, endpoint_id: str) -> list[Caller]:
        """Who was seen calling an endpoint, what this gateway noted a moment ago included; by operation and name."""
        await self.write()
        since_ms = now_ms() - SEEN_FOR_MS
        found = [Caller(*_decode(text), at_ms) for text, at_ms in (await self._store.callers(endpoint_id)).items()]
        return sorted(one for one in found if one.at_ms >= since_ms)
