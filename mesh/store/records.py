"""Reading operations: plain commands, no function; nothing changes here and no transition begins with it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mesh.store.functions import Functions
from mesh.store.layout import decode_content, decode_events, decode_head, decode_line, decode_links, decode_outcome
from mesh.store.verbs import Record


class Records(Functions):
    """The records of one partition. Raises as Store does."""

    async def read(self, operation_id: str, *, events: bool = False) -> Record | None:
        """The record, or None. Reads only; state changes never start with it."""
        return (await self.read_many([operation_id], events=events))[0]

    async def read_many(self, operation_ids: Sequence[str], *, events: bool = False) -> list[Record | None]:
        """Records in the order of the ids, in one pipeline.

        `events` are those that came while the journal had no more than the `journal` entries that the record names.
        """
        # The length first: an event that came after it says so by the length that it names.
        lengths = [self.link.call(b"LLEN", self.keys.journal(one)) for one in operation_ids] if events else []
        fields = (b"h", b"q", b"r", b"b", b"l")
        calls = [self.link.call(b"HMGET", self.keys.operation(one), *fields) for one in operation_ids]
        records: list[Record | None] = []
        for operation_id, call in zip(operation_ids, calls, strict=True):
            values = await call
            if values[0] is None:
                records.append(None)
                continue
            head = decode_head(values[0])
            outcome = decode_outcome(values[2]) if values[2] is not None else None
            beat = decode_line(values[3]) if values[3] is not None else None
            links = decode_links(values[4]) if values[4] is not None else ()
            entries = decode_events(head) if events else []
            request = decode_content(values[1]).request
            records.append(Record(operation_id, head, request, outcome, entries, 0, beat, links))
        return await self._with_journals(records, lengths)

    async def _with_journals(
        self, records: list[Record | None], lengths: list[asyncio.Future[int]]
    ) -> list[Record | None]:
        """`lengths` for all of them, or to be asked for where there is a journal."""
        known = dict(enumerate(lengths)) or {
            number: self.link.call(b"LLEN", self.keys.journal(record.id))
            for number, record in enumerate(records)
            if record is not None and record.head.journal
        }
        for number, call in known.items():
            record, length = records[number], await call
            if record is not None:
                seen = [event for event in record.events if event.journal <= length]
                records[number] = record._replace(journal=length, events=seen)
        return records

    async def input(self, operation_id: str) -> bytes | None:
        """The input's bytes; None when the operation is unknown or its input is empty."""
        apart, content = await self.link.call(b"HMGET", self.keys.operation(operation_id), b"i", b"q")
        return apart or (content and decode_content(content).input) or None

    async def page(
        self,
        namespace: str,
        *,
        before: tuple[int, str] | None,
        since_ms: int,
        until_ms: int,
        limit: int,
        parent: str = "",
    ) -> list[tuple[str, int]]:
        """Ids with their acceptance time, newest first, strictly older than the cursor `before` (time, id).

        With `parent` the operations that its handler started, of any namespace.
        """
        key = self.keys.children(parent) if parent else self.keys.index(namespace)
        top = min(until_ms, before[0]) if before else until_ms
        # Several operations may share the cursor's millisecond; they come in reverse id order, and those at or after
        # the cursor's id were on earlier pages.
        found: list[tuple[str, int]] = []
        offset = 0
        while len(found) < limit:
            raw = await self.link.call(
                b"ZRANGE", key, top, since_ms, b"BYSCORE", b"REV", b"LIMIT", offset, limit, b"WITHSCORES"
            )
            rows = [(raw[i].decode(), int(float(raw[i + 1]))) for i in range(0, len(raw), 2)]
            found += [row for row in rows if before is None or (row[1], row[0]) < before]
            offset += len(rows)
            if len(rows) < limit:
                break
        return found[:limit]

    async def outcome(self, operation_id: str) -> bytes:
        """An operation's packed outcome; empty while it runs, and when it is gone."""
        return await self.link.call(b"HGET", self.keys.operation(operation_id), b"r") or b""
