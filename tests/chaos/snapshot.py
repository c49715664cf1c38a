"""Everything that a store holds, as plain values: what checker.py compares the histories with.

`take` reads it over a link of its own; the types are for whoever judges. Judges nothing.
"""

from __future__ import annotations

from collections import defaultdict
from math import inf
from typing import Any

import msgspec

from mesh.events import EventKind
from mesh.ids import PARTITION
from mesh.machine import State
from mesh.store.keys import SUFFIXES, Keys
from mesh.store.layout import Entry, Head, Outcome, Request, decode_content
from mesh.store.link import Link
from mesh.store.store import Store
from tests.chaos.history import digest

SCAN_COUNT = 1000
NEVER_MS = 10**15
"""A timer from here on is none (library.LIMITS)."""
READ_BATCH = 500


class Stored(msgspec.Struct):
    """One operation as stored; `input` is the digest of its input's bytes, `key` that of its scoped idempotency key."""

    id: str
    head: Head
    request: Request
    outcome: Outcome | None
    events: list[Entry]
    input: str = ""
    key: str = ""

    @property
    def state(self) -> State:
        return State(self.head.state)

    def __str__(self) -> str:
        """For reports: what is not zero, and the history as `word@ms#attempt`."""
        head = {name: value for name in self.head.__struct_fields__[1:] if (value := getattr(self.head, name))}
        events = [
            f"{EventKind(event.code).word}@{event.after_ms}#{event.attempt}"
            + (f"({event.detail})" if event.detail else "")
            for event in self.events
        ]
        request = f"{self.request.service}/{self.request.operation} key={self.request.idempotency_key}"
        return f"{self.id} {self.state.word} {request}: {' '.join(events)} {head} outcome={self.outcome}"


class Snapshot(msgspec.Struct):
    """The store. Times are milliseconds of its clock; timers without end are `inf`.

    due         operation id -> time of its timer, operations that no session holds
    held        session -> the same for what it holds
    sessions    session -> last beat
    index       namespace -> operation ids
    waiting     endpoint id -> blocked operation ids
    dead        namespace -> ids of dead deliveries
    keys        digest of a scoped idempotency key -> operation id
    running     endpoint id -> operations counted against its limit
    strays      keys that belong to no known family
    """

    operations: dict[str, Stored] = {}
    at_ms: int = 0
    due: dict[str, float] = {}
    held: dict[str, dict[str, float]] = {}
    sessions: dict[str, int] = {}
    index: dict[str, list[str]] = {}
    waiting: dict[str, list[str]] = {}
    dead: dict[str, list[str]] = {}
    keys: dict[str, str] = {}
    running: dict[str, int] = {}
    strays: list[str] = []


def _scores(flat: list[bytes]) -> dict[str, float]:
    at = {flat[i].decode(): float(flat[i + 1]) for i in range(0, len(flat), 2)}
    return {one: inf if score >= NEVER_MS else score for one, score in at.items()}


async def _scan(link: Link) -> list[str]:
    found: set[bytes] = set()
    cursor = b"0"
    while True:
        cursor, keys = await link.call(b"SCAN", cursor, b"COUNT", SCAN_COUNT)
        found.update(keys)
        if cursor == b"0":
            return sorted(key.decode() for key in found)


async def take(link: Link) -> Snapshot:
    """The whole store; meant for one at rest, for it is read key by key."""
    keys, store = Keys(PARTITION), Store(link)
    root = keys.root.decode()
    families: dict[str, list[str]] = defaultdict(list)
    strays: list[str] = []
    # Longest first: `:waits` is not a member of the family `:wait:`.
    names = sorted(SUFFIXES, key=lambda name: -len(SUFFIXES[name]))
    for key in await _scan(link):
        rest = key.removeprefix(root)
        family = next((name for name in names if _belongs(rest, SUFFIXES[name])), None)
        if family is None or not key.startswith(root):
            strays.append(key)
        else:
            families[family].append(rest.removeprefix(SUFFIXES[family]))
    seconds, micros = await link.call(b"TIME")
    zset = {
        family: {one: _scores(await _zset(link, root, family, one)) for one in families[family]}
        for family in ("held", "index", "waiting", "dead")
    }
    endpoints: dict[str, Any] = {
        one: await link.call(b"HGET", keys.endpoint(one), b"run") for one in families["endpoint"]
    }
    return Snapshot(
        operations=await _operations(link, store, families["operation"]),
        at_ms=int(seconds) * 1000 + int(micros) // 1000,
        due=_scores(await link.call(b"ZRANGE", keys.due, 0, -1, b"WITHSCORES")),
        held=zset["held"],
        sessions={
            one: int(at) for one, at in _scores(await link.call(b"ZRANGE", keys.sessions, 0, -1, b"WITHSCORES")).items()
        },
        index={one: list(members) for one, members in zset["index"].items()},
        waiting={one: list(members) for one, members in zset["waiting"].items()},
        dead={one: list(members) for one, members in zset["dead"].items()},
        keys={one: await _text(link, _key(root, "idempotency", one)) for one in families["idempotency"]},
        running={one: int(count or 0) for one, count in endpoints.items()},
        strays=strays,
    )


def _belongs(rest: str, suffix: str) -> bool:
    return rest.startswith(suffix) if suffix.endswith(":") else rest == suffix


def _key(root: str, family: str, one: str) -> bytes:
    return (root + SUFFIXES[family] + one).encode()


async def _zset(link: Link, root: str, family: str, one: str) -> list[bytes]:
    return await link.call(b"ZRANGE", _key(root, family, one), 0, -1, b"WITHSCORES")


async def _text(link: Link, key: bytes) -> str:
    return (await link.call(b"GET", key)).decode()


async def _operations(link: Link, store: Store, ids: list[str]) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    for at in range(0, len(ids), READ_BATCH):
        batch = ids[at : at + READ_BATCH]
        records = await store.read_many(batch, events=True)
        inputs = [await store.input(one) for one in batch]
        asked = [await link.call(b"HGET", store.keys.operation(one), b"q") for one in batch]
        for one, record, body, packed in zip(batch, records, inputs, asked, strict=True):
            if record is not None:
                sent, key = digest(body or b""), decode_content(packed).key
                found[one] = Stored(one, record.head, record.request, record.outcome, record.events, sent, key)
    return found
