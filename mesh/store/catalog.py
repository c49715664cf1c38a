"""The registry's rows in the store: endpoints and instances, one typed method per verb."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from mesh.errors import Conflict, NotFound, PreconditionFailed, TooMany
from mesh.ids import PARTITION
from mesh.store.functions import Functions, Refused
from mesh.store.link import Link
from mesh.store.verbs import EndpointRow, InstanceRow

_instance = msgspec.msgpack.Decoder(tuple[str, int, int, int]).decode
_change = msgspec.msgpack.Decoder(tuple[int, int, str]).decode


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
        rate_per_s: float, pull: bool = False, retry: str = "", change: bytes = b"",
    ) -> tuple[str, str, int]:  # fmt: skip
        """(`created` | `replaced` | `same`, id, version). Raises Conflict `name_taken`, PreconditionFailed.

        `retry`: initial_ms, factor, max_ms and jitter of its policy in one text, for the store to count by. `change`:
        what changes in its contract, as JSON, kept with the version. `if_match` "new": there must be none.
        """
        arguments = {
            "name": name, "ns": namespace, "id": candidate_id, "if_match": if_match, "max": max_concurrency,
            "rate": rate_per_s, "pull": int(pull), "retry": retry,
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
        fields = (b"gone", b"owner", b"version", b"paused", b"run", b"created_at", b"updated_at")
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
            gone, owner, version, paused, run, created_at, updated_at = await facts
            body, line = await document, await waiting
            if gone == b"0" and body is not None:
                row = EndpointRow(
                    endpoint_id, name, owner.decode(), int(version), paused == b"1", int(run), line,
                    int(created_at), int(updated_at), body,
                )  # fmt: skip
                rows.append(row)
        return sorted(rows, key=lambda row: row.name)

    async def loads(self, endpoint_ids: Sequence[str]) -> list[tuple[int, int]]:
        """(running, waiting) operations of each endpoint, in one pipeline."""
        calls = [
            (self.link.call(b"HGET", self.keys.endpoint(one), b"run"), self.link.call(b"ZCARD", self.keys.waiting(one)))
            for one in endpoint_ids
        ]
        return [(int(await running or 0), await waiting) for running, waiting in calls]

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

    async def instance_delete(self, name: str, namespace: str, instance: str) -> None:
        """Drain. Raises NotFound."""
        try:
            await self.fcall("mesh1_instance_delete", {"name": name, "ns": namespace, "instance": instance})
        except Refused as refused:
            if refused.word == "NO_INSTANCE":
                detail = f"endpoint {name!r} has no instance {instance!r}"
                raise NotFound(detail, code="unknown_instance") from None
            raise unknown_endpoint(name) from None

    async def instances(self, endpoint_id: str) -> list[InstanceRow]:
        """All instances, expired ones included, by id."""
        raw = await self.link.call(b"HGETALL", self.keys.instances(endpoint_id))
        rows: list[InstanceRow] = []
        for position in range(0, len(raw), 2):
            document, expires_at, since, draining = _instance(raw[position + 1])
            rows.append(InstanceRow(raw[position].decode(), document.encode(), expires_at, since, bool(draining)))
        return sorted(rows)


def unknown_endpoint(name: str) -> NotFound:
    """The one wording for an endpoint that is not there, or not there for this namespace."""
    detail = f"there is no endpoint {name!r}; `mesh endpoint list` shows those you may see"
    return NotFound(detail, code="unknown_endpoint")


def stale_endpoint(name: str, version: str) -> PreconditionFailed:
    """`version`: the one that is there, "0" for none."""
    if version == "0":
        return PreconditionFailed(f"there is no endpoint {name!r} yet; leave If-Match out to create it")
    detail = f"endpoint {name!r} is at version {version}; read it again and repeat with its ETag"
    return PreconditionFailed(detail)
