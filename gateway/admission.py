"""What a caller is told of its room in an endpoint's line: while it waits, and when none is left (P334). Pure."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from mesh.errors import TooMany
from mesh.wire import DELAYED, WAITING, Quota, quota_headers
from mesh.words import counted

if TYPE_CHECKING:
    from mesh.edge import Headers
    from mesh.store.starting import BacklogFull
    from mesh.store.verbs import Accepted
    from registry.catalog import Endpoint

RETRY_AFTER_S: Final = 30
"""When nothing has left the line lately, so that nobody can tell."""
RETRY_AFTER_S_MAX: Final = 60


def backlog_full(refused: BacklogFull, endpoint: str, namespace: str) -> TooMany:
    """429, with the time in which about half of what waits goes, as fast as it went lately."""
    after_s = min(-(-refused.drain_ms // 1000), RETRY_AFTER_S_MAX) if refused.drain_ms else RETRY_AFTER_S
    wait = "waits" if refused.depth == 1 else "wait"
    detail = (
        f"{counted(refused.depth, 'operation')} of your namespace {wait} for endpoint {endpoint!r},"
        f" and {refused.cap} may; nothing was changed, repeat in {after_s} s with the same key."
        f" `mesh endpoint queue {endpoint}` shows who waits"
    )
    quota = Quota(WAITING, refused.cap, 0, namespace, after_s)
    return TooMany(detail, retry_after_s=after_s, code="backlog_full", headers=quota_headers(quota))


def delayed_full(refused: BacklogFull, endpoint: str, namespace: str) -> TooMany:
    """429, with the time at which the first of them begins, and so makes room."""
    after_s = min(max(-(-refused.drain_ms // 1000), 1), RETRY_AFTER_S_MAX)
    are = "is" if refused.depth == 1 else "are"
    detail = (
        f"{counted(refused.depth, 'operation')} of your namespace {are} accepted for later at endpoint {endpoint!r},"
        f" and {refused.cap} may be (`max_delayed`); nothing was changed, repeat in {after_s} s with the same key, or"
        " start it when it is to begin"
    )
    quota = Quota(DELAYED, refused.cap, 0, namespace, after_s)
    return TooMany(detail, retry_after_s=after_s, code="delayed_full", headers=quota_headers(quota))


def room(endpoint: Endpoint, namespace: str, reply: Accepted) -> Headers:
    """`RateLimit` of an accepted start; nothing where the namespace may wait as much as it wants."""
    most = _most(endpoint, namespace) if reply.room is not None else None
    return [] if most is None else quota_headers(Quota(WAITING, most, reply.room or 0, namespace))


@lru_cache(maxsize=4096)
def _most(endpoint: Endpoint, namespace: str) -> int | None:
    return endpoint.policy.share(namespace).max_waiting
