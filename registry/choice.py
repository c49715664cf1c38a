"""Among which instances the next request is chosen, and how: versions by their shares, then two by weight.

Pure but for chance. What is in the rotation is said by the roster and by what requests met; routing.py asks and counts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Final

import msgspec

from mesh.ids import pick_index
from mesh.store.verbs import Share
from registry.instance import Instance, StoreTime

SCALE: Final = 1_000
"""Parts of one percent that shares are reckoned in."""
VERSION: Final = "v"
"""Begins a pin to a version; the rest is its name."""
CANARY: Final = "c"
"""Begins a pin to one instance; the rest is its id."""


class Pool(msgspec.Struct, frozen=True):
    """Instances that may be chosen, with the running sums of their weights."""

    instances: tuple[Instance, ...]
    sums: tuple[int, ...]

    def choose(self) -> Instance:
        """The less loaded, for its weight, of two picked at random by weight."""
        if len(self.instances) == 1:
            return self.instances[0]
        total = self.sums[-1]
        first, second = divmod(pick_index(total * total), total)
        one = self.instances[bisect_right(self.sums, first)]
        other = self.instances[bisect_right(self.sums, second)]
        return one if one.reach.in_flight * other.weight <= other.reach.in_flight * one.weight else other


def pool(instances: Iterable[Instance]) -> Pool:
    found = tuple(instances)
    return Pool(found, tuple(accumulate(one.weight for one in found)))


class Rotation(msgspec.Struct, frozen=True):
    """Pools, one per version where versions have shares of their own, with the running sums of the shares."""

    pools: tuple[Pool, ...]
    sums: tuple[int, ...]

    def choose(self) -> Instance:
        """Not to be asked when there are no pools."""
        if len(self.pools) == 1:
            return self.pools[0].choose()
        return self.pools[bisect_right(self.sums, pick_index(self.sums[-1]))].choose()


NOBODY: Final = Rotation((), ())


def in_rotation(usable: Sequence[Instance], now: int, time: StoreTime) -> Sequence[Instance]:
    """Those that nothing speaks against, or all when something speaks against each: suspect is not dead.

    One that failed is tried again when its rest is over, for nothing but a request tells whether it is back.
    """
    healthy = [one for one in usable if _tried(one, now) or one.fault(now, time) is None]
    return healthy or usable


def _tried(one: Instance, now: int) -> bool:
    fails_here_alone = one.reach.rest_ms > 0 and not any(check.failing for check in one.checks.values())
    return fails_here_alone and not one.reach.resting(now)


def rotation(usable: Sequence[Instance], shares: Mapping[str, Share], now: int, time: StoreTime) -> Rotation:
    """What unpinned work is divided among."""
    if not any(share.weight >= 0 or share.percent >= 0 for share in shares.values()):
        return Rotation((pool(in_rotation(usable, now, time)),), (1,)) if usable else NOBODY
    open_ = [one for one in usable if _takes_unpinned(shares.get(one.version))]
    versions: dict[str, list[Instance]] = {}
    for one in in_rotation(open_, now, time):
        versions.setdefault(one.version, []).append(one)
    divided = divide({version: sum(one.weight for one in of) for version, of in versions.items()}, shares)
    kept = {version: part for version, part in divided.items() if part > 0}
    return Rotation(tuple(pool(versions[one]) for one in kept), tuple(accumulate(kept.values())))


def divide(weights: Mapping[str, int], shares: Mapping[str, Share]) -> dict[str, int]:
    """Parts of the unpinned work by version; `weights`: what the instances of each weigh together.

    A version with `percent` gets that part of all, the others divide the rest by weight. When only such are there, they
    divide all.
    """
    percents = {one: shares[one].percent for one in weights if one in shares and shares[one].percent >= 0}
    others = {one: _weight(weights[one], shares.get(one)) for one in weights if one not in percents}
    total = sum(others.values())
    rest = max(0.0, 100 - sum(percents.values())) if total else 0.0
    parts = {one: round(percent * SCALE) for one, percent in percents.items()}
    parts |= {one: round(weight * rest * SCALE / total) if total else 0 for one, weight in others.items()}
    return parts


def _weight(own: int, share: Share | None) -> int:
    return own if share is None or share.weight < 0 else share.weight


def _takes_unpinned(share: Share | None) -> bool:
    if share is None:
        return True
    return share.percent > 0 if share.percent >= 0 else share.weight != 0


def pinned(live: Sequence[Instance], pin: str) -> list[Instance]:
    """The live ones that a pin allows."""
    name = pin[1:]
    if pin.startswith(CANARY):
        return [one for one in live if one.id == name]
    return [one for one in live if one.version == name]
