"""Pages over operations and deliveries: filters, cursors, and a bound on how much one request looks at.

An index by acceptance time is all the store keeps; filters are applied to the records of a page at a time, so a page
may come back short with a cursor that goes on.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from gateway.details import trouble_of
from gateway.outcomes import known_fields
from mesh.clock import to_rfc3339
from mesh.errors import Malformed, NotFound, Refusal
from mesh.ids import is_operation_id
from mesh.machine import Delivery, Kind, State
from mesh.store.store import deliveries
from registry.choice import CANARY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mesh.store.store import Store
    from mesh.store.verbs import Record

SCAN_MAX: Final = 2_000
"""Records that one list request looks at before it hands back a cursor."""
SCAN_PAGE: Final = 200
LIMIT_DEFAULT: Final = 50
LIMIT_MAX: Final = 500
BEHIND_ALL: Final = "~"
"""Sorts behind every character of an id."""
Place: TypeAlias = tuple[int, str]
"""Where something stands in an index: its time, and the id of an operation or a delivery."""
_run: Final = re.compile(r"[1-9][0-9]{0,8}").fullmatch


class Filters(NamedTuple):
    """List filters; empty means any. Times in ms, `until_ms` inclusive."""

    states: frozenset[State] = frozenset()
    endpoint: str = ""
    service: str = ""
    operation: str = ""
    labels: dict[str, str] = {}  # noqa: RUF012 - read only
    since_ms: int = 0
    until_ms: int = 1 << 53
    parent: str = ""
    """The operation whose handler started them."""
    canary: bool = False
    """Those of the mesh itself, which test instances, instead of the callers'."""

    def match(self, record: Record) -> bool:
        """Whether the record passes."""
        request = record.request
        return (
            (record.head.pin[:1] == CANARY) == self.canary
            and (not self.states or record.state in self.states)
            and self.endpoint in ("", request.endpoint)
            and self.service in ("", request.service)
            and self.operation in ("", request.operation)
            and all(request.labels.get(name) == value for name, value in self.labels.items())
        )


def encode_cursor(at_ms: int, one_id: str) -> str:
    """Opaque to callers: where the last page ended, by time and id of an operation or a delivery."""
    return base64.urlsafe_b64encode(f"{at_ms}.{one_id}".encode()).decode().rstrip("=")


def decode_cursor(text: str) -> Place:
    """Raises Malformed."""
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii")
        at_ms, _, operation_id = raw.partition(".")
        cursor = int(at_ms), operation_id
    except (binascii.Error, ValueError):
        raise Malformed("the cursor is not one that this gateway gave out", code="cursor_invalid") from None
    if not is_operation_id(cursor[1].partition(".")[0]):
        raise Malformed("the cursor is not one that this gateway gave out", code="cursor_invalid")
    return cursor


class Listing:
    """Reads only."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def _walk(
        self, namespace: str, filters: Filters, before: Place | None
    ) -> AsyncIterator[tuple[Place, Record | None]]:
        """Places of the index, newest first, strictly behind `before`, with the record where it passes the filters."""
        while True:
            rows = await self._store.page(
                namespace,
                before=before,
                since_ms=filters.since_ms,
                until_ms=filters.until_ms,
                limit=SCAN_PAGE,
                parent=filters.parent,
            )
            records = await self._store.read_many([one for one, _ in rows])
            for (operation_id, at_ms), record in zip(rows, records, strict=True):
                before = (at_ms, operation_id)
                own = record is not None and record.head.namespace == namespace and filters.match(record)
                yield before, record if own else None
            if len(rows) < SCAN_PAGE:
                return

    async def operations(self, namespace: str, filters: Filters, cursor: str, limit: int) -> dict[str, Any]:
        """`{items, next_cursor}` of records without results, newest first."""
        items: list[dict[str, Any]] = []
        looked, last = 0, None
        async for place, record in self._walk(namespace, filters, decode_cursor(cursor) if cursor else None):
            if last is not None and (len(items) == limit or looked == SCAN_MAX):
                return {"items": items, "next_cursor": encode_cursor(*last)}
            looked, last = looked + 1, place
            if record is not None:
                items.append(known_fields(record._replace(outcome=None)))
        return {"items": items, "next_cursor": None}

    async def deliveries(
        self, namespace: str, state: Delivery | None, kind: Kind | None, cursor: str, limit: int
    ) -> dict[str, Any]:
        """`{items, next_cursor}` of deliveries. Dead ones have an index; the others are read off the operations."""
        before = decode_cursor(cursor) if cursor else None
        if state is Delivery.DEAD:
            return await self._dead(namespace, kind, before, limit)
        items: list[dict[str, Any]] = []
        after = ""
        if before is not None and "." in before[1]:
            # In the middle of an operation: its place is looked at once more, and what was given is passed over.
            after = before[1]
            before = (before[0], after.partition(".")[0] + BEHIND_ALL)
        looked, last = 0, None
        async for place, record in self._walk(namespace, Filters(), before):
            if last is not None and looked >= SCAN_MAX:
                return {"items": items, "next_cursor": encode_cursor(*last)}
            rows = delivery_rows(record) if record is not None else []
            ids = [row["id"] for row in rows]
            for row in rows[ids.index(after) + 1 if after in ids else 0 :]:
                if (state is None or row["state"] == state.word) and kind in (None, row["kind"]):
                    if len(items) == limit and last is not None:
                        return {"items": items, "next_cursor": encode_cursor(*last)}
                    items.append(row)
                last = (place[0], row["id"])
            looked, last = looked + 1, place
        return {"items": items, "next_cursor": None}

    async def _dead(self, namespace: str, kind: Kind | None, before: Place | None, limit: int) -> dict[str, Any]:
        count = SCAN_MAX
        while True:
            # Newest first. The store hands out the head of its list only, so a page further back costs the ones before.
            rows = await self._store.dead(namespace, count)
            wanted = [
                (at_ms, delivery_id)
                for delivery_id, at_ms in rows
                if (before is None or (at_ms, delivery_id) < before)
                and (kind is None or delivery_id.endswith(f".{kind}"))
            ]
            if len(wanted) > limit or len(rows) < count:
                break
            count *= 4
        page = wanted[:limit]
        ids = dict.fromkeys(delivery_id.partition(".")[0] for _, delivery_id in page)
        records = [one for one in await self._store.read_many(list(ids)) if one is not None]
        known = {row["id"]: row for record in records for row in delivery_rows(record)}
        items = [known[one] for _, one in page if one in known and known[one]["state"] == Delivery.DEAD.word]
        return {"items": items, "next_cursor": encode_cursor(*page[-1]) if len(wanted) > limit else None}


def delivery_rows(record: Record) -> list[dict[str, Any]]:
    """The deliveries of one record as JSON objects."""
    rows: list[dict[str, Any]] = []
    for kind, state, tries, at_ms in deliveries(record):
        if state is Delivery.NONE:
            continue
        row: dict[str, Any] = {
            "id": f"{record.id}.{record.head.run}.{kind}",
            "operation_id": record.id,
            "kind": str(kind),
            "state": state.word,
            "tries": tries,
            "endpoint": record.request.endpoint,
        }
        if kind is Kind.CALLBACK:
            row["url"] = record.request.callback_url
            row["format"] = record.request.callback_format
            row["webhook_id"] = f"{record.id}.{record.head.run}"
        if state in (Delivery.DUE, Delivery.LEASED):
            row["next_at" if state is Delivery.DUE else "lease_until"] = to_rfc3339(at_ms)
        why = trouble_of(record, kind, state)
        if why is not None:
            row["why"] = why
        rows.append(row)
    return rows


async def redeliver(store: Store, delivery_id: str, namespace: str) -> dict[str, Any]:
    """Make a dead or delivered callback (or a dead cancel) due again. Raises NotFound, Refusal `not_owed`."""
    operation_id, _, rest = delivery_id.partition(".")
    run, _, kind = rest.partition(".")
    if is_operation_id(operation_id) and _run(run) and kind in (Kind.CALLBACK, Kind.CANCEL):
        word = await store.redeliver(operation_id, int(run), Kind(kind), namespace)
        if word == "not_owed":
            detail = f"delivery {delivery_id} was never owed; there is nothing to send again"
            raise Refusal(detail, code="not_owed")
        if word != "unknown":
            return {"id": delivery_id, "operation_id": operation_id, "kind": kind, "state": "pending"}
    detail = f"there is no delivery {delivery_id[:80]!r} that can be sent again"
    raise NotFound(detail, code="unknown_delivery")
