"""Results of steps and children too large for an entry: outside the journal, had again when their step is asked for.

What a replay is given is what the first run was given: the bytes, by their digest. One that is not to be had is waited
for; its step, or its child, is recorded, so it never runs again. How bytes travel is the Link's. A child's result stays
where the child has it, and the mesh keeps it there until this operation has ended (P440).
"""

from __future__ import annotations

import asyncio
import logging
from base64 import b64decode
from collections.abc import Mapping
from typing import Any, Final

from mesh.agent.codec import BYTES, JSON, Codec, Undecodable
from mesh.agent.durable.attempt import Attempt
from mesh.agent.durable.blobs import RESULT_BYTES_MAX, Reference
from mesh.agent.durable.entries import ENTRY_BYTES_MAX, Entry, pack, unpack
from mesh.agent.durable.errors import LeaseLost
from mesh.blob import OCTETS, Blob
from mesh.errors import BlobMissing, Malformed, Refusal, TooLarge, Unavailable
from mesh.ids import jittered
from mesh.wire.headers import is_json_type

LARGE_BYTES: Final = 256 << 10
"""Longer results stand outside the journal, where the mesh keeps large payloads."""
INLINE_BYTES: Final = 64 << 10
"""Of a Blob: in base64 it takes more."""
MISSED_FIRST_MS: Final = 1_000
MISSED_MAX_MS: Final = 30_000
MISSED_SPREAD: Final = 0.2

logger: Final = logging.getLogger("mesh.agent")


async def packed(attempt: Attempt, key: str, codec: Codec, value: Any) -> tuple[dict[str, Any], Blob | None]:
    """The fields of the entry of step `key` that stand for its result; and the bytes, where these are elsewhere.

    Raises Undecodable, TooLarge, and Malformed for a file that changes.
    """
    if isinstance(value, Blob) and codec.takes_blobs:
        return await _packed_blob(attempt, key, value)
    media_type, body = codec.encode(value)
    if len(body) <= LARGE_BYTES:
        return pack(media_type, body), None
    if len(body) > RESULT_BYTES_MAX:
        message = f"its result has {len(body)} bytes, {RESULT_BYTES_MAX} at most go through memory: give a mesh.Blob"
        raise TooLarge(message)
    local = Blob(data=body, content_type=media_type)
    dataref = await _kept(attempt, key, local)
    if dataref is None:
        return pack(media_type, body), None  # whether an entry can take it, writing it will tell
    return {"result_dataref": dataref}, local


async def unpacked(attempt: Attempt, key: str, codec: Codec, entry: Entry, local: Blob | None) -> Any:
    """The value that an entry stands for, as the type has it; `local`: its bytes, where they are still here.

    Raises Undecodable. Suspended, when what is recorded cannot be had now: the mesh asks again later.
    """
    as_blob = codec.blob or (codec.takes_blobs and entry.result_type is not None)
    if entry.result_dataref is None:
        if as_blob and entry.result_base64 is not None:
            return local or Blob(data=b64decode(entry.result_base64), content_type=entry.result_type or OCTETS)
        return unpack(codec, entry)
    blob = local or await _fetched(attempt, key, entry.result_dataref, as_file=as_blob)
    return blob if as_blob else codec.decode(blob.content_type, blob.read())


async def received(attempt: Attempt, key: str, codec: Codec, entry: Entry) -> Any:
    """The result of the child under `key`, as the type has it. Raises as `unpacked`."""
    if entry.result_dataref is None:
        if codec.blob and entry.result_base64 is not None:
            return Blob(data=b64decode(entry.result_base64), content_type=entry.result_type or OCTETS)
        return unpack(codec, entry)
    blob = await _fetched(attempt, key, entry.result_dataref, as_file=codec.blob)
    # As in an entry: JSON is the value it stands for, all else is bytes.
    return blob if codec.blob else codec.decode(JSON if _is_json(blob.content_type) else BYTES, blob.read())


def _is_json(content_type: str | None) -> bool:
    return is_json_type((content_type or "").encode("latin-1", "replace"))


async def _packed_blob(attempt: Attempt, key: str, value: Blob) -> tuple[dict[str, Any], Blob]:
    local = await value.taken()
    if local.size > INLINE_BYTES:
        dataref = await _kept(attempt, key, local)
        if dataref is not None:
            return {"result_dataref": dataref, "result_type": local.content_type or OCTETS}, local
        if local.size > ENTRY_BYTES_MAX:
            message = f"its Blob has {local.size} bytes, and the mesh keeps no large payloads: give it a [blobs] url"
            raise TooLarge(message, code="entry_too_large")
    body = await asyncio.get_running_loop().run_in_executor(None, local.read)
    return {**pack(BYTES, body), "result_type": local.content_type or OCTETS}, local


async def _kept(attempt: Attempt, key: str, blob: Blob) -> dict[str, Any] | None:
    """What refers to it; None where the mesh keeps nothing of the kind. Raises TooLarge, Malformed."""

    def told(why: str) -> None:
        attempt.exchange.put(Entry("progress", step=key, message=f"its result of {blob.size} bytes waits: {why}"))

    try:
        return await attempt.ask(attempt.link.keep(blob, told))
    except (TooLarge, Malformed):
        raise
    except Refusal as why:
        attempt.stop(LeaseLost(why.detail))
        attempt.check()
        raise


async def _fetched(attempt: Attempt, key: str, dataref: Mapping[str, Any], *, as_file: bool) -> Blob:
    """What is recorded outside, however long it takes until it can be had."""
    try:
        ref = Reference.of(dataref)
    except Malformed as why:
        raise Undecodable(why.detail) from None
    ours = ref.url.startswith(f"/v1/operations/{attempt.task.operation_id}/")
    delay_ms = min(MISSED_FIRST_MS * 2 ** min(attempt.task.attempt, 16), MISSED_MAX_MS)
    while True:
        attempt.fetching += 1
        try:
            return await attempt.ask(attempt.link.fetch(ref, as_file=as_file))
        except TooLarge as why:
            raise Undecodable(why.detail) from None
        except (Refusal, Unavailable) as why:
            if ours and isinstance(why, Refusal):
                attempt.stop(LeaseLost(why.detail))
                attempt.check()
                raise
            # Of another operation a refusal says nothing of our lease: what it had is not to be had.
            code = why.code if isinstance(why, Unavailable) else BlobMissing.code
            told = f"the recorded result of {key} ({ref.size} bytes) cannot be had: {why.detail}"
        finally:
            attempt.fetching -= 1
        logger.warning("%s: %s", attempt.task.operation_id, told)
        await attempt.ready()
        # What else runs goes on; when all waits, the attempt ends without counting and says why.
        attempt.resting.missed[key] = (code.upper(), told)
        try:
            wait_ms = jittered(delay_ms, MISSED_SPREAD)
            await attempt.park(attempt.loop.create_future(), attempt.link.now_ms() + wait_ms)
        finally:
            attempt.resting.missed.pop(key, None)
