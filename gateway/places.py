"""How a bounded number of places is shared, so that nobody takes those of all others. Pure.

Knows what a namespace and an endpoint are called, and nothing of what is done in a place.
"""

from __future__ import annotations

from collections import Counter


class Places:
    """`most` places. Whoever comes finds some free, though nobody is held to a small share while others want none.

    A namespace gets one more while it holds fewer than are free, an endpoint while it holds fewer than its namespace
    may still get: one endpoint alone has a third of them, one namespace alone half.
    """

    def __init__(self, most: int) -> None:
        self._free = most
        self._namespaces: Counter[str] = Counter()
        self._endpoints: Counter[str] = Counter()

    @property
    def idle(self) -> bool:
        """Whether nobody holds one."""
        return not (self._namespaces or self._endpoints)

    def take(self, namespace: str, endpoint: str) -> bool:
        """Whether it got one, which is to be given back. `endpoint`: its id."""
        # A Counter does not keep what is only read, so that nothing is left of those who get none.
        if self._endpoints[endpoint] >= self._free - self._namespaces[namespace]:
            return False
        self._free -= 1
        self._namespaces[namespace] += 1
        self._endpoints[endpoint] += 1
        return True

    def give_back(self, namespace: str, endpoint: str) -> None:
        """One that `take` gave."""
        self._free += 1
        for held, name in ((self._namespaces, namespace), (self._endpoints, endpoint)):
            held[name] -= 1
            if not held[name]:
                del held[name]
