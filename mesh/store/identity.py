"""Which store this is: `m:{00}:meta`, created once, compared on every connection ever after.

A store that lost its data looks healthy and empty; a gateway that took it for a new one would run all work
again. So the identity is created only where nothing can have been, and must then be there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from mesh.clock import now_ms
from mesh.errors import ConfigError, StoreUnsafe
from mesh.ids import PARTITION, short_id
from mesh.store.connection import Arg, Call, StoreReply
from mesh.store.keys import PREFIX, SCHEMA, Keys

PARTITIONS: Final = 1
_META: Final = Keys(PARTITION).meta
_FOUND: Final = """\
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('HSET', KEYS[1], unpack(ARGV)) end
return redis.call('HGETALL', KEYS[1])
"""
"""Atomic: of two gateways that begin on one unused store, both get the identity of the first."""


class Memory(Protocol):
    """Where a gateway remembers, outside the store, which store it served; it may know more of the store's host."""

    def recall(self) -> str: ...
    def remember(self, incarnation: str) -> None: ...
    def trouble(self) -> str:
        """Why the store may be away, with the mend; "" where nothing is known."""
        ...


class StateFile:
    """A Memory for a remote store: one small JSON file. Raises ConfigError when it cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def recall(self) -> str:
        try:
            return str(json.loads(self.path.read_bytes())["incarnation"])
        except FileNotFoundError:
            return ""
        except (OSError, ValueError, KeyError, TypeError) as fault:
            raise ConfigError(f"the state file {self.path} cannot be read: {fault}") from fault

    def remember(self, incarnation: str) -> None:
        draft = self.path.with_name(self.path.name + ".new")
        try:
            draft.write_text(json.dumps({"incarnation": incarnation}) + "\n")
            draft.replace(self.path)
        except OSError as fault:
            raise ConfigError(f"the state file {self.path} cannot be written: {fault.strerror}") from fault

    def trouble(self) -> str:
        return ""


async def identify(call: Call, known: str) -> dict[str, str]:
    """The store's meta hash, made now if it is unused; `known` is the incarnation served before, or "".

    Raises StoreUnsafe: emptied, another store, foreign keys, another schema.
    """
    meta = await _meta(call, "HGETALL", _META)
    if not meta and known:
        raise StoreUnsafe(
            f"the store is empty after data was there (it was {known}).",
            mend="Restore its data, or point Mesh at the store it served before. To give that work up, start"
            " with a fresh directory or state file.",
        )
    if not meta:
        await _check_unused(call)
        fresh = (
            "incarnation",
            short_id("store"),
            "schema",
            SCHEMA,
            "partitions",
            PARTITIONS,
            "created_at_ms",
            now_ms(),
        )
        meta = await _meta(call, "EVAL", _FOUND, 1, _META, *fresh)
    _check_meta(meta)
    if known and meta["incarnation"] != known:
        raise StoreUnsafe(
            f"this is another store: {meta['incarnation']}, while this gateway served {known}.",
            mend="Point Mesh at the store it served before, or use a fresh directory or state file.",
        )
    return meta


async def _meta(call: Call, *command: Arg) -> dict[str, str]:
    try:
        flat: list[bytes] = await call(*command)
    except StoreReply as reply:
        if reply.word != "WRONGTYPE":
            raise
        raise _foreign("its meta key is no hash") from reply
    words = [item.decode(errors="replace") for item in flat]
    return dict(zip(words[::2], words[1::2], strict=True))


async def _check_unused(call: Call) -> None:
    """Raise if there is a key of ours without an identity.

    SCAN shows every key that exists throughout, and a gateway that begins at the same time writes the
    identity before any other key; so nothing can slip between this look and the creation.
    """
    if await call("DBSIZE") == 0:
        return
    cursor: bytes = b"0"
    while True:
        cursor, keys = await call("SCAN", cursor, "MATCH", f"{PREFIX}*", "COUNT", 10_000)
        if any(key != _META for key in keys):
            raise StoreUnsafe(
                "the store has keys of Mesh but its identity is gone: part of its data was deleted.",
                mend="Restore it from a backup, or use an empty database.",
            )
        if cursor == b"0":
            return


def _check_meta(meta: Mapping[str, str]) -> None:
    schema, partitions = meta.get("schema", ""), meta.get("partitions", "")
    if not meta.get("incarnation") or not schema.isdecimal() or not partitions.isdecimal():
        raise _foreign("its meta key is not ours")
    if int(schema) > SCHEMA:
        raise StoreUnsafe(
            f"the store has schema {schema}, this Mesh reads {SCHEMA}.",
            mend="Upgrade this gateway to the store's version.",
        )
    if int(schema) < SCHEMA:
        raise StoreUnsafe(
            f"the store has the older schema {schema}, this Mesh needs {SCHEMA}.",
            mend="Let the version that wrote it finish its work, then start on an empty store.",
        )
    if int(partitions) != PARTITIONS:
        raise StoreUnsafe(
            f"the store is cut into {partitions} partitions, this Mesh serves {PARTITIONS}.",
            mend="Use the Mesh that wrote it, or an empty store.",
        )


def _foreign(why: str) -> StoreUnsafe:
    return StoreUnsafe(
        f"the store's keys m:* belong to something else ({why}).", mend="Give Mesh a database of its own."
    )
