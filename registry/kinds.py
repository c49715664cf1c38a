"""Whether an endpoint may become one of the other kind: not while agents of the present kind are at work for it.

Knows leases as this gateway last read them; neither the store nor who may change what.
"""

from __future__ import annotations

from typing import Final

from mesh.errors import Conflict
from registry.health import Health
from registry.instances import Roster, StoreTime
from registry.spec import TARGET

TOLD_MAX: Final = 5
"""Instances that a refusal names in its sentence; all of them are in its list, up to LISTED_MAX."""
LISTED_MAX: Final = 50


def check_kind(name: str, roster: Roster, time: StoreTime, *, pull: bool) -> None:
    """Raise Conflict `kind_in_use` while instances of the other kind than `pull` keep up their leases.

    Those that drain do not count: they were asked to go. Nor does a registered target, which the registration replaces.
    """
    now = time.now()
    live = [
        one
        for one in roster.instances
        if one.id != TARGET
        and bool(one.url) == pull
        and one.judge(now, time).health not in (Health.OFFLINE, Health.DRAINING)
    ]
    if not live:
        return
    new, how = ("pull", "are sent their work") if pull else ("http", "ask for their work")
    told = ", ".join(repr(one.id) for one in live[:TOLD_MAX]) + (", ..." if len(live) > TOLD_MAX else "")
    detail = (
        f"endpoint {name!r} cannot become one of kind {new} while {told} {how}: they would get none any more, silently."
        " Stop them first, or repeat with force=true"
    )
    errors = [{"pointer": "/target/kind", "detail": f"instance {one.id!r} is live"} for one in live[:LISTED_MAX]]
    raise Conflict(detail, code="kind_in_use", errors=errors)
