"""Versions of an endpoint as users read them: shares, instances, what runs at each and what waits for each. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from mesh.clock import to_rfc3339
from mesh.store.verbs import Share
from registry.choice import VERSION, divide, in_rotation
from registry.endpoint import Endpoint
from registry.health import Health, Judgement
from registry.instance import Instance
from registry.records import instance_record
from registry.routing import Router


def version_records(
    endpoint: Endpoint, router: Router, running: Mapping[str, int], pinned: Mapping[str, int], *, own: bool
) -> list[dict[str, Any]]:
    """One record per version that an instance has, that something was said of, or that work waits for; by name.

    `running`: attempts that answered 201, by instance; `pinned`: waiting operations, by pin.
    """
    view = router.view(endpoint).instances
    parts = _parts(endpoint, router, [one for one, judged in view if _takes_work(one, judged)])
    total = sum(parts.values())
    waiting = {pin[1:]: count for pin, count in pinned.items() if pin.startswith(VERSION)}
    names = {one.version for one, _ in view if one.version} | set(endpoint.shares) | set(waiting)
    records: list[dict[str, Any]] = []
    for name in sorted(names):
        share = endpoint.shares.get(name, Share())
        mine = [(one, judged) for one, judged in view if one.version == name]
        health = Counter(judged.health for _, judged in mine)
        record: dict[str, Any] = {
            "version": name,
            "weight": share.weight if share.weight >= 0 else None,
            "percent": share.percent if share.percent >= 0 else None,
            "draining_since": to_rfc3339(share.draining_since_ms) if share.draining_since_ms else None,
            "share_percent": None if endpoint.pulls else _percent(parts.get(name, 0), total),
            "running": sum(running.get(one.id, 0) for one, _ in mine),
            "in_flight": sum(one.reach.in_flight for one, _ in mine),
            "waiting": waiting.get(name, 0),
            "instance_counts": {one.value: health[one] for one in Health},
            "instances": [
                instance_record(endpoint, one, judged, router.time, own=own) | {"running": running.get(one.id, 0)}
                for one, judged in mine
            ],
        }
        records.append(record)
    return records


def _percent(part: int, total: int) -> float:
    return round(100 * part / total, 2) if total else 0.0


def _takes_work(one: Instance, judged: Judgement) -> bool:
    return judged.health in (Health.HEALTHY, Health.SUSPECT) and bool(one.url)


def _parts(endpoint: Endpoint, router: Router, live: list[Instance]) -> dict[str, int]:
    now = router.time.now()
    weights: dict[str, int] = {}
    for one in in_rotation([one for one in live if one.reach.usable(now)], now, router.time):
        weights[one.version] = weights.get(one.version, 0) + one.weight
    return divide(weights, endpoint.shares)
