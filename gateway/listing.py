"""Pages over operations and deliveries: filters, cursors, and a bound on how much one request looks at.

An index by acceptance time is all the store keeps; filters are applied to the records of a page at a time, so a page
may come back short with a cursor that goes on.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gateway.outcomes import record_fields
from mesh.clock import to_rfc3339
from mesh.errors import Malformed, NotFound, Refusal
from mesh.ids import is_operation_id
from mesh.machine import Delivery, Kind, State
from mesh.store.store import deliveries

if TYPE_CHECKING:
    from mesh.store.store import Store
    from mesh.store.verbs import Record

SCAN_MAX: Final = 2_000
"""Records that one list request looks at before it hands back a cursor."""
SCAN_PAGE: Final = 200
LIMIT_DEFAULT: Final = 50
LIMIT_MAX: Final = 500
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

    def match(self, record: Record) -> bool:
        """Whether the record passes."""
        request = record.request
        return (
            (not self.states or record.state in self.states)
            and self.endpoint in ("", request.endpoint)
            and self.service in ("", request.service)
            and self.operation in ("", request.operation)
            and all(request.labels.get(name) == value for name, value in self.labels.items())
        )


def encode_cursor(at_ms: int, operation_id: str) -> str:
    """Opaque to callers: where the last page ended."""
    return base64.urlsafe_b64encode(f"{at_ms}.{operation_id}".encode()).decode().rstrip("=")


def decode_cursor(text: str) -> tuple[int, str]:
    """Raises Malformed."""
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii")
        at_ms, _, operation_id = raw.partition(".")
        cursor = int(at_ms), operation_id
    except (binascii.Error, ValueError):
        raise Malformed("the cursor is not one that this gateway gave out", code="cursor_invalid") from None
    if not is_operation_id(cursor[1]):
        raise Malformed("the cursor is not one that this gateway gave out", code="cursor_invalid")
    return cursor


class Listing:
    """Reads only."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def _scan(
        self, namespace: str, filters: Filters, cursor: str, limit: int, *, events: bool = False
    ) -> tuple[list[Record], str | None]:
        before = decode_cursor(cursor) if cursor else None
        found: list[Record] = []
        looked = 0
        while True:
            rows = await self._store.page(
                namespace, before=before, since_ms=filters.since_ms, until_ms=filters.until_ms, limit=SCAN_PAGE
            )
            records = await self._store.read_many([one for one, _ in rows], events=events)
            for (operation_id, at_ms), record in zip(rows, records, strict=True):
                looked += 1
                before = (at_ms, operation_id)
                if record is not None and filters.match(record):
                    found.append(record)
                    if len(found) == limit:
                        return found, encode_cursor(*before)
            if len(rows) < SCAN_PAGE:
                return found, None
            if looked >= SCAN_MAX and before is not None:
                return found, encode_cursor(*before)

    async def operations(self, namespace: str, filters: Filters, cursor: str, limit: int) -> dict[str, Any]:
        """`{items, next_cursor}` of records without results, newest first."""
        found, following = await self._scan(namespace, filters, cursor, limit)
        items = [record_fields(one.id, one.head, one.request, None) for one in found]
        return {"items": items, "next_cursor": following}

    async def deliveries(
        self, namespace: str, state: Delivery | None, kind: Kind | None, cursor: str, limit: int
    ) -> dict[str, Any]:
        """`{items, next_cursor}` of deliveries. Dead ones have an index; the others are read off the operations."""
        if state is Delivery.DEAD:
            rows = await self._store.dead(namespace, limit)
            ids = [delivery_id.partition(".")[0] for delivery_id, _ in rows]
            records = [one for one in await self._store.read_many(ids) if one is not None]
            following = None
        else:
            records, following = await self._scan(namespace, Filters(), cursor, limit)
        items = [
            item
            for record in records
            for item in delivery_rows(record)
            if (state is None or item["state"] == state.word) and kind in (None, item["kind"])
        ]
        return {"items": items, "next_cursor": following}


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
