"""Endpoints as users read them: flat JSON records, filters, pages. Pure but for the numbers handed in."""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from mesh.clock import to_rfc3339
from mesh.errors import Malformed
from registry.catalog import Catalog, Endpoint
from registry.health import Health, Judgement
from registry.instances import FOREVER_MS, FORGET_MS, Instance, StoreTime
from registry.routing import Router
from registry.spec import TARGET

LIMIT: Final = 50
LIMIT_MAX: Final = 200


class Filters(NamedTuple):
    """`service` and `operation` as registered; `labels` name -> value, or None for any value.

    `search`: words that must all be found, in any case, in its name, description, labels, services or operations.
    """

    service: str = ""
    operation: str = ""
    labels: Mapping[str, str | None] = MappingProxyType({})
    search: str = ""

    def match(self, endpoint: Endpoint) -> bool:
        for name, value in self.labels.items():
            if name not in endpoint.labels or value not in (None, endpoint.labels[name]):
                return False
        if self.search and not _found(endpoint, self.search.casefold().split()):
            return False
        if not self.service and not self.operation:
            return True
        for name, operations in (endpoint.services or {}).items():
            if self.service in ("", name) and (not self.operation or self.operation in (operations or {})):
                return True
        return False


def _found(endpoint: Endpoint, words: list[str]) -> bool:
    texts = [endpoint.name, endpoint.spec.description]
    texts += [f"{name}={value}" for name, value in endpoint.labels.items()]
    for service in endpoint.spec.services or ():
        texts += [service.name, service.description]
        texts += [text for one in service.operations for text in (one.name, one.description)]
    text = "\n".join(texts).casefold()
    return all(word in text for word in words)


class Page(NamedTuple):
    items: list[Endpoint]
    next_cursor: str | None


def page(catalog: Catalog, namespace: str, filters: Filters, cursor: str = "", limit: int = LIMIT) -> Page:
    """What `namespace` may see, by name, behind `cursor`. Raises Malformed `cursor_invalid`."""
    after = _read_cursor(cursor) if cursor else ""
    found = [one for one in catalog.visible(namespace) if one.name > after and filters.match(one)]
    rest = found[limit:]
    return Page(found[:limit], _cursor(found[limit - 1].name) if rest else None)


def _cursor(name: str) -> str:
    return base64.urlsafe_b64encode(b"n" + name.encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> str:
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        raw = ""
    if not raw.startswith("n"):
        raise Malformed("the cursor is not one that this gateway gave out", code="cursor_invalid")
    return raw[1:]


def endpoint_record(
    endpoint: Endpoint, router: Router, load: tuple[int, int], viewer: str, *, instances: bool = True
) -> dict[str, Any]:
    """One endpoint; `load` is (running, waiting) operations. Addresses are shown to the owner only."""
    view = router.view(endpoint)
    own = viewer == endpoint.owner
    spec = endpoint.spec
    target: dict[str, Any] = {"kind": spec.target.kind}
    if own and spec.target.url is not None:
        target["url"] = spec.target.url
    rests = spec.policy.breaker
    breaker: dict[str, Any] = {
        "state": view.breaker,
        "since": to_rfc3339(view.since_ms) if view.since_ms else None,
        "failures": view.failures,
        "failures_max": rests.failures,
        "open_ms": view.open_ms,
        "open_ms_max": rests.open_ms_max,
    }
    if view.retry_at_ms:
        breaker["retry_at"] = to_rfc3339(view.retry_at_ms)
    shown = [pair for pair in view.instances if _worth_showing(*pair, router.time)]
    counted = Counter(judgement.health for _, judgement in shown)
    record: dict[str, Any] = {
        "id": endpoint.id,
        "name": endpoint.name,
        "owner": endpoint.owner,
        "version": endpoint.version,
        "contract": endpoint.contract,
        "description": spec.description,
        "target": target,
        "services": [one.model_dump(exclude_unset=True) for one in spec.services] if spec.services else [],
        "policy": spec.policy.seen_by(viewer if not own else None),
        "allow": spec.allow,
        "labels": endpoint.labels,
        "paused": endpoint.paused,
        **_health(view.judgement),
        "breaker": breaker,
        "running": load[0],
        "waiting": load[1],
        "instance_counts": {health.value: counted[health] for health in Health},
        "created_at": to_rfc3339(endpoint.created_at_ms),
        "updated_at": to_rfc3339(endpoint.updated_at_ms),
    }
    if instances:
        record["instances"] = [instance_record(endpoint, one, judged, router.time, own=own) for one, judged in shown]
    return record


def instance_record(
    endpoint: Endpoint, instance: Instance, judged: Judgement, time: StoreTime, *, own: bool
) -> dict[str, Any]:
    """One instance; `own`: the viewer owns the endpoint and may see the address.

    `contract` as that of the endpoint when it registered; `behind`: another one has been registered since.
    """
    record: dict[str, Any] = {"id": instance.id, "kind": "http" if instance.url else "pull"}
    if own and instance.url:
        record["url"] = instance.url
    record |= {"version": instance.version, "weight": instance.weight, **_health(judged)}
    if instance.id != TARGET:
        record["ttl_ms"] = instance.ttl_ms
        if instance.contract:
            record |= {"contract": instance.contract, "behind": instance.contract < endpoint.contract}
    if instance.lease_end_ms != FOREVER_MS:
        record["lease_until"] = to_rfc3339(time.wall(instance.lease_end_ms))
    if instance.url:
        record["in_flight"] = instance.reach.in_flight
    if instance.checks:
        record["checks"] = {
            kind: {
                "state": "failing" if check.failing else "passing",
                "since": to_rfc3339(check.since_ms),
                "at": to_rfc3339(check.at_ms),
                "why": check.why,
            }
            for kind, check in instance.checks.items()
        }
    return record


def _health(judged: Judgement) -> dict[str, Any]:
    return {
        "health": judged.health,
        "health_why": judged.why,
        "health_since": to_rfc3339(judged.since_ms),
    }


def _worth_showing(instance: Instance, judged: Judgement, time: StoreTime) -> bool:
    """Not what left by itself and is gone, nor what has been gone for long."""
    if judged.health is not Health.OFFLINE:
        return True
    left = instance.draining and not (instance.drain is not None and instance.drain.told)
    return not left and time.wall(time.now()) - judged.since_ms < FORGET_MS
