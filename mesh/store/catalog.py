"""The registry's rows in the store: endpoints and instances, one typed method per verb."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from mesh.errors import Conflict, NotFound, PreconditionFailed, TooMany
from mesh.ids import PARTITION
from mesh.store.functions import Functions, Refused
from mesh.store.link import Link
from mesh.store.queues import Queue, read_queues
from mesh.store.verbs import Check, EndpointRow, InstanceRow, Share

UNKNOWN_ENDPOINT: Final = "unknown_endpoint"


class _Instance(msgspec.Struct, array_like=True):
    document: str
    expires_at: int
    since: int
    draining: int
    arrivals: list[int] = []
    checks: dict[str, Check] | list[int] | int = 0
    """Lua cannot tell an empty table from an empty array, so none is 0."""
    contract: int = 0


_instance = msgspec.msgpack.Decoder(_Instance, strict=False).decode
_versions = msgspec.msgpack.Decoder(dict[str, Share], strict=False).decode
_outages = msgspec.msgpack.Decoder(list[tuple[int, int]]).decode
_change = msgspec.msgpack.Decoder(tuple[int, int, str]).decode


PINS_LOOK: Final = 64
KEPT_MS: Final = 7 * 86_400_000


class CatalogStore(Functions):
    """Rows only; what a document means is the registry's business."""

    def __init__(self, link: Link, partition: str = PARTITION) -> None:
        super().__init__(link, partition)

    async def version(self) -> int:
        """Moves with every change that routing must see."""
        return int(await self.link.call(b"GET", self.keys.registry_version) or 0)

    async def endpoint_put(
        self, name: str, namespace: str, candidate_id: str, document: bytes, *, if_match: str, max_concurrency: int,
        rate_per_s: float, pull: bool = False, retry: str = "", change: bytes = b"", limits: Sequence[str] = (),
    ) -> tuple[str, str, int]:  # fmt: skip
        """(`created` | `replaced` | `same`, id, version). Raises Conflict `name_taken`, PreconditionFailed.

        `retry`: initial_ms, factor, max_ms and jitter of its policy in one text, for the store to count by. `change`:
        what changes in its contract, as JSON, kept with the version. `limits`: namespace or `*`, then its `rate
        concurrency weight cap later`, and so on. `if_match` "new": there must be none.
        """
        arguments = {
            "name": name, "ns": namespace, "id": candidate_id, "if_match": if_match, "max": max_concurrency,
            "rate": rate_per_s, "pull": int(pull), "retry": retry, "limits": list(limits),
        }  # fmt: skip
        try:
            word, _, endpoint_id, version = await self.fcall("mesh1_endpoint_put", arguments, document, change)
        except Refused as refused:
            if refused.word == "NAME_TAKEN":
                detail = f"endpoint {name!r} belongs to another namespace; choose another name"
                raise Conflict(detail, code="name_taken") from None
            raise stale_endpoint(name, refused.about) from None
        return word.decode(), endpoint_id.decode(), version

    async def endpoint_delete(self, name: str, namespace: str, if_match: str, *, kept_ms: int = KEPT_MS) -> None:
        """What is left of it is kept for `kept_ms`, and while work waits. Raises NotFound, PreconditionFailed."""
        arguments = {"name": name, "ns": namespace, "if_match": if_match, "kept_ms": kept_ms}
        try:
            await self.fcall("mesh1_endpoint_delete", arguments)
        except Refused as refused:
            if refused.word == "STALE_VERSION":
                raise stale_endpoint(name, refused.about) from None
            raise unknown_endpoint(name) from None

    async def endpoint_pause(self, name: str, namespace: str, *, paused: bool) -> None:
        """Raises NotFound."""
        try:
            await self.fcall("mesh1_endpoint_pause", {"name": name, "ns": namespace, "paused": int(paused)})
        except Refused:
            raise unknown_endpoint(name) from None

    async def callers_seen(self, endpoint_id: str, seen: Sequence[str], kept_ms: int) -> None:
        """Note who called it: `seen` are texts of the caller's choice, forgotten after about `kept_ms`."""
        await self.fcall("mesh1_callers_seen", {"id": endpoint_id, "seen": list(seen), "kept_ms": kept_ms})

    async def callers(self, endpoint_id: str) -> dict[str, int]:
        """Text -> when it was last seen, ms."""
        raw = await self.link.call(b"HGETALL", self.keys.callers(endpoint_id))
        return {raw[position].decode(): int(raw[position + 1]) for position in range(0, len(raw), 2)}

    async def contract_changes(self, endpoint_id: str) -> list[tuple[int, int, str]]:
        """(version, when in ms, change as JSON), newest first."""
        raw = await self.link.call(b"LRANGE", self.keys.contract(endpoint_id), 0, -1)
        return [_change(one) for one in raw]

    async def endpoints(self) -> list[EndpointRow]:
        """All living endpoints, by name; one pipeline after the list of names."""
        raw = await self.link.call(b"HGETALL", self.keys.names)
        ids = [(raw[i].decode(), raw[i + 1].decode()) for i in range(0, len(raw), 2)]
        fields = (
            b"gone", b"owner", b"version", b"paused", b"run", b"created_at", b"updated_at", b"versions", b"contract",
        )  # fmt: skip
        calls = [
            (
                self.link.call(b"HMGET", self.keys.endpoint(one), *fields),
                self.link.call(b"HGET", self.keys.catalog, one),
                self.link.call(b"ZCARD", self.keys.waiting(one)),
            )
            for _, one in ids
        ]
        rows: list[EndpointRow] = []
        for (name, endpoint_id), (facts, document, waiting) in zip(ids, calls, strict=True):
            gone, owner, version, paused, run, created_at, updated_at, versions, contract = await facts
            body, line = await document, await waiting
            if gone == b"0" and body is not None:
                row = EndpointRow(
                    endpoint_id, name, owner.decode(), int(version), paused == b"1", int(run), line,
                    int(created_at), int(updated_at), body, versions or b"", int(contract or 0),
                )  # fmt: skip
                rows.append(row)
        return sorted(rows, key=lambda row: row.name)

    async def deleted(self, name: str, namespace: str) -> tuple[str, bytes] | None:
        """Id and last document of the endpoint that `namespace` had under `name` and deleted, while they are kept."""
        endpoint_id = await self.link.call(b"HGET", self.keys.names, name)
        if endpoint_id is None:
            return None
        facts = await self.link.call(b"HMGET", self.keys.endpoint(endpoint_id.decode()), b"gone", b"owner", b"last")
        gone, owner, last = facts
        if gone != b"1" or owner != namespace.encode() or not last:
            return None
        return endpoint_id.decode(), last

    async def loads(self, endpoint_ids: Sequence[str]) -> list[tuple[int, int]]:
        """(running, waiting) operations of each endpoint, in one pipeline, and another where some wait for versions."""
        calls = [
            (
                self.link.call(b"HGET", self.keys.endpoint(one), b"run"),
                self.link.call(b"ZCARD", self.keys.waiting(one)),
                self.link.call(b"SMEMBERS", self.keys.pins(one)),
            )
            for one in endpoint_ids
        ]
        loads: list[tuple[int, int]] = []
        for endpoint_id, (running, waiting, pins) in zip(endpoint_ids, calls, strict=True):
            pinned = await self._pinned(endpoint_id, await pins)
            loads.append((int(await running or 0), await waiting + sum(pinned.values())))
        return loads

    async def _pinned(self, endpoint_id: str, pins: Sequence[bytes]) -> dict[str, int]:
        lengths = [self.link.call(b"ZCARD", self.keys.waiting(f"{endpoint_id}|{pin.decode()}")) for pin in pins]
        return {pin.decode(): await length for pin, length in zip(pins, lengths, strict=True)}

    async def pins(self, endpoint_id: str, wanted: Sequence[str]) -> list[str]:
        """Those of `wanted` for which operations wait; of an endpoint with nothing to want, some of all."""
        key = self.keys.pins(endpoint_id)
        if not wanted:
            return [pin.decode() for pin in await self.link.call(b"SRANDMEMBER", key, PINS_LOOK)]
        found = await self.link.call(b"SMISMEMBER", key, *wanted)
        return [pin for pin, there in zip(wanted, found, strict=True) if there]

    async def pinned(self, endpoint_id: str) -> dict[str, int]:
        """Pin -> operations that wait for it."""
        return await self._pinned(endpoint_id, await self.link.call(b"SMEMBERS", self.keys.pins(endpoint_id)))

    async def running(self, endpoint_id: str) -> dict[str, int]:
        """Instance with a version -> its attempts that answered 201 and run."""
        raw = await self.link.call(b"HGETALL", self.keys.running(endpoint_id))
        return {raw[position].decode(): int(raw[position + 1]) for position in range(0, len(raw), 2)}

    async def version_set(
        self, name: str, namespace: str, version: str, *, weight: int | None = None, percent: float | None = None,
        draining: bool | None = None,
    ) -> None:  # fmt: skip
        """Change how a version shares in the work; None leaves it, -1 is the default. Raises NotFound, TooMany."""
        arguments = {"name": name, "ns": namespace, "version": version, "weight": weight, "percent": percent}
        arguments["draining"] = None if draining is None else int(draining)
        given = {field: value for field, value in arguments.items() if value is not None}
        try:
            await self.fcall("mesh1_version_set", given)
        except Refused as refused:
            if refused.word == "TOO_MANY_VERSIONS":
                detail = f"endpoint {name!r} has {refused.about} versions with a share of their own; reset some first"
                raise TooMany(detail, code="too_many_versions") from None
            raise unknown_endpoint(name) from None

    async def queues(self, endpoint_ids: Sequence[str]) -> tuple[int, list[Queue]]:
        """The store's time, and who waits and runs at each endpoint."""
        now, *rows = await self.fcall("mesh1_queue", {"endpoints": list(endpoint_ids)})
        return now, read_queues(rows)

    async def instance_put(
        self, name: str, namespace: str, instance: str, document: bytes, ttl_ms: int, *, fresh: bool = False
    ) -> tuple[str, int]:
        """(`created` | `renewed`, end of the lease ms); `fresh`: a new process. Raises NotFound, TooMany."""
        arguments = {"name": name, "ns": namespace, "instance": instance, "ttl_ms": ttl_ms, "fresh": int(fresh)}
        try:
            word, _, expires_at = await self.fcall("mesh1_instance_put", arguments, document)
        except Refused as refused:
            if refused.word == "TOO_MANY_INSTANCES":
                detail = f"endpoint {name!r} has {refused.about} instances, the most there can be; remove some first"
                raise TooMany(detail, code="too_many_instances") from None
            raise unknown_endpoint(name) from None
        return word.decode(), expires_at

    async def instance_drain(self, name: str, namespace: str, instance: str, draining: int) -> None:
        """1: it leaves by itself; 2: it is told to; 0: it serves again. Raises NotFound, Conflict `instance_left`."""
        arguments = {"name": name, "ns": namespace, "instance": instance, "draining": draining}
        try:
            await self.fcall("mesh1_instance_drain", arguments)
        except Refused as refused:
            if refused.word == "LEFT":
                detail = f"instance {instance!r} left by itself; it serves again when it registers again"
                raise Conflict(detail, code="instance_left") from None
            if refused.word == "NO_INSTANCE":
                detail = f"endpoint {name!r} has no instance {instance!r}"
                raise NotFound(detail, code="unknown_instance") from None
            raise unknown_endpoint(name) from None

    async def instances(self, endpoint_id: str) -> list[InstanceRow]:
        """All instances, expired ones included, by id."""
        raw = await self.link.call(b"HGETALL", self.keys.instances(endpoint_id))
        rows: list[InstanceRow] = []
        for position in range(0, len(raw), 2):
            one = _instance(raw[position + 1])
            checks = one.checks if isinstance(one.checks, dict) else {}
            row = InstanceRow(
                raw[position].decode(), one.document.encode(), one.expires_at, one.since, one.draining, one.arrivals,
                checks, one.contract,
            )  # fmt: skip
            rows.append(row)
        return sorted(rows, key=lambda row: row.id)

    async def outages(self) -> list[tuple[int, int]]:
        """From and to (ms) of the last times in which no gateway beat, oldest first: no lease could be renewed."""
        packed = await self.link.call(b"GET", self.keys.outages)
        return _outages(packed) if packed else []

    async def checks_claim(self, wanted: Sequence[tuple[str, str, str, int]]) -> list[int]:
        """For each (endpoint id, instance, kind, every_ms): 0, run it now; else ms until it is worth asking again."""
        return (await self.fcall("mesh1_checks_claim", {"wanted": wanted}))[1:]

    async def check_done(
        self, endpoint_id: str, instance: str, since_ms: int, kind: str, why: str, *, failures: int, successes: int,
        static: bool = False,
    ) -> str:  # fmt: skip
        """The result of a claimed check, `why` "" when it passed. Returns `noted`, `changed` or `gone`.

        `static`: of the target of a registration, which has no lease.
        """
        arguments = {
            "endpoint": endpoint_id, "instance": instance, "since": since_ms, "kind": kind, "ok": int(not why),
            "why": why, "failures": failures, "successes": successes, "static": int(static),
        }  # fmt: skip
        return (await self.fcall("mesh1_check_done", arguments))[0].decode()


def read_versions(packed: bytes) -> dict[str, Share]:
    """Of `EndpointRow.versions`."""
    return _versions(packed) if packed else {}


def unknown_endpoint(name: str) -> NotFound:
    """The one wording for an endpoint that is not there, or not there for this namespace."""
    detail = f"there is no endpoint {name!r}; `mesh endpoint list` shows those you may see"
    return NotFound(detail, code=UNKNOWN_ENDPOINT)


def stale_endpoint(name: str, version: str) -> PreconditionFailed:
    """`version`: the one that is there, "0" for none."""
    if version == "0":
        return PreconditionFailed(f"there is no endpoint {name!r} yet; leave If-Match out to create it")
    now = f'endpoint {name!r} is at registration {version}, ETag "v{version}"'
    return PreconditionFailed(f"{now}; read it again and repeat with that")
