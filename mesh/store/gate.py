"""The start-up gate: may this store be trusted with acknowledged work? Asked on every new connection.

Owns the server, role and settings a store must have; whether it is the right store is identity.py. Refusals
are StoreUnsafe: the reason and the mend. Must not know operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from mesh.clock import now_ms
from mesh.errors import StoreUnsafe
from mesh.store.binary import supported
from mesh.store.connection import Call, StoreLoading, StoreReply
from mesh.store.identity import PARTITIONS, Memory, identify
from mesh.store.keys import SCHEMA
from mesh.store.marker import Server

SKEW_MS_MAX: Final = 60_000
LISTPACK_BYTES: Final = 1024
"""One longer field turns a whole record into a hash table of twice the size."""
_SETTINGS: Final = ("appendonly", "appendfsync", "maxmemory-policy", "hash-max-listpack-value")


class Durability(StrEnum):
    """What the operator asks of the store.

    ALWAYS: fsync before every answer, checked. EVERYSEC: may lose the last seconds, checked. DECLARED: it is
    durable by means that cannot be seen from here (a managed store), so not checked.
    """

    ALWAYS = "always"
    EVERYSEC = "everysec"
    DECLARED = "declared"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate found, and accepted. `fsync` is `always`, `everysec` or `declared` (not seen)."""

    server: Server
    run_id: str
    durability: Durability
    fsync: str
    incarnation: str
    schema: int
    partitions: int
    compact_records: bool
    skew_ms: int
    warnings: tuple[str, ...]


class Gate:
    """The link's `on_reconnect` hook. Remembers the identity while it runs, and in `memory` beyond."""

    def __init__(self, declared: Durability = Durability.ALWAYS, memory: Memory | None = None) -> None:
        self.verdict: Verdict | None = None
        """Of the last connection that was accepted."""
        self._declared = declared
        self._memory = memory
        self._known = ""

    async def __call__(self, call: Call) -> None:
        known = self._known or (self._memory.recall() if self._memory else "")
        self.verdict = await inspect(call, declared=self._declared, known=known)
        self._known = self.verdict.incarnation
        if self._memory and self._known != known:
            self._memory.remember(self._known)

    def explain(self, fault: str) -> str:
        """`fault`, of a store that is away, with what is known of the reason."""
        trouble = self._memory.trouble() if self._memory else ""
        return f"{fault}; {trouble}" if trouble else fault


_MEANS: Final = {
    "always": "on the store's disk",
    "everysec": "in the store's memory, on its disk seconds later",
    "declared": "what the store's owner declares; not checked",
}


def durability_facts(verdict: Verdict) -> dict[str, Any]:
    """For /readyz: what an acknowledgement of this store is worth, in JSON types."""
    return {
        "server": str(verdict.server),
        "durability": verdict.durability.value,
        "fsync": verdict.fsync,
        "acknowledged_means": _MEANS[verdict.fsync],
        "incarnation": verdict.incarnation,
        "schema": verdict.schema,
        "partitions": verdict.partitions,
        "compact_records": verdict.compact_records,
        "clock_skew_ms": verdict.skew_ms,
        "warnings": list(verdict.warnings),
    }


async def inspect(call: Call, *, declared: Durability, known: str = "") -> Verdict:
    """Check one connection; `known` is the identity this gateway served before, "" for none.

    Raises StoreUnsafe, StoreUnavailable while the store loads, StoreReply for what no store should answer.
    """
    info = await _info(call)
    server = _check_server(info)
    _check_role(info)
    settings = await _settings(call, declared)
    fsync = _check_durability(info, settings, declared)
    skew_ms = _skew_ms(await call("TIME"))
    meta = await identify(call, known)
    warnings: list[str] = []
    if abs(skew_ms) > SKEW_MS_MAX:
        warnings.append(f"the store's clock, which decides, is {abs(skew_ms) // 1000} s away from ours")
    if fsync != Durability.ALWAYS:
        warnings.append(f"durability is {fsync}: acknowledged work may be lost in a crash of the store")
    return Verdict(
        server=server,
        run_id=info.get("run_id", ""),
        durability=declared,
        fsync=fsync,
        incarnation=meta["incarnation"],
        schema=SCHEMA,
        partitions=PARTITIONS,
        compact_records=await _compact_records(call, settings),
        skew_ms=skew_ms,
        warnings=tuple(warnings),
    )


async def _info(call: Call) -> dict[str, str]:
    try:
        text: bytes = await call("INFO")
    except StoreReply as refused:
        raise StoreUnsafe(
            f"the store forbids INFO ({refused.text}).",
            mend="Allow this user INFO, so that it can be checked.",
        ) from refused
    lines = text.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _check_server(info: Mapping[str, str]) -> Server:
    valkey = info.get("valkey_version")
    server = Server("valkey" if valkey else "redis", valkey or info.get("redis_version", "0"))
    if not supported(server):
        raise StoreUnsafe(f"the store is {server}.", mend="Mesh needs Valkey >= 8 or Redis >= 7.0.")
    return server


def _check_role(info: Mapping[str, str]) -> None:
    mode = info.get("redis_mode") or info.get("server_mode") or "standalone"
    if mode == "sentinel":
        raise StoreUnsafe(
            "this is a Sentinel, not a store.", mend="Name the primary itself; Sentinel comes later."
        )
    if mode == "cluster" or info.get("cluster_enabled") == "1":
        raise StoreUnsafe(
            "the store is a Cluster, which Mesh does not support yet.",
            mend="Use a single primary without cluster mode.",
        )
    if info.get("role") != "master":
        primary = f"{info.get('master_host')}:{info.get('master_port')}"
        raise StoreUnsafe("the store is a replica.", mend=f"Name its primary ({primary}) instead.")
    if info.get("loading") == "1":
        raise StoreLoading("the store is still loading its data")


async def _settings(call: Call, declared: Durability) -> dict[str, str] | None:
    try:
        flat: list[bytes] = await call("CONFIG", "GET", *_SETTINGS)
    except StoreReply as refused:
        if declared is Durability.DECLARED:
            return None
        raise StoreUnsafe(
            f"the store does not let its durability be checked ({refused.text}).",
            mend='Allow CONFIG GET, or state what its owner guarantees with durability="declared".',
        ) from refused
    words = [item.decode(errors="replace") for item in flat]
    return dict(zip(words[::2], words[1::2], strict=True))


def _check_durability(
    info: Mapping[str, str], settings: Mapping[str, str] | None, declared: Durability
) -> str:
    policy = (settings or {}).get("maxmemory-policy") or info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise StoreUnsafe(
            f"the store evicts keys when memory is short (maxmemory-policy {policy}).",
            mend="Set maxmemory-policy noeviction.",
        )
    if info.get("aof_last_write_status", "ok") != "ok":
        raise StoreUnsafe(
            "the store's last write to its append-only file failed.",
            mend="Free its disk and look at its log.",
        )
    if declared is Durability.DECLARED or settings is None:
        return Durability.DECLARED.value
    if settings.get("appendonly") != "yes" or info.get("aof_enabled", "1") != "1":
        raise StoreUnsafe(
            "the store keeps no append-only file: a restart loses work.",
            mend="Set appendonly yes and appendfsync always.",
        )
    fsync = settings.get("appendfsync", "")
    if fsync == "always" or (fsync == "everysec" and declared is Durability.EVERYSEC):
        return fsync
    mend = 'Set appendfsync always, or accept the loss of the last seconds with durability="everysec".'
    raise StoreUnsafe(
        f"the store answers before its disk has the write (appendfsync {fsync}).",
        mend=mend if fsync == "everysec" else "Set appendfsync always.",
    )


def _skew_ms(time: list[bytes]) -> int:
    return int(time[0]) * 1000 + int(time[1]) // 1000 - now_ms()


async def _compact_records(call: Call, settings: Mapping[str, str] | None) -> bool:
    """Records stay small only below this limit; a store that keeps its own is served at 1.2 times the memory."""
    if settings and int(settings.get("hash-max-listpack-value", "0")) >= LISTPACK_BYTES:
        return True
    try:
        await call("CONFIG", "SET", "hash-max-listpack-value", LISTPACK_BYTES)
    except StoreReply:
        return False
    return True
