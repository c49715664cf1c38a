"""What stands outside a journal, to and from gateways: put under the token of the attempt, had again by its reference.

A request that nobody answers, or that cannot be taken now, is repeated until somebody does or nobody waits any more.
Knows tokens and gateways, no entries.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Final, NamedTuple

import msgspec

from mesh.agent.arrivals import Arrivals
from mesh.agent.durable.hub import LOST_GRACE_S, Address
from mesh.blob import OCTETS, Blob
from mesh.blobs.spool import Spool
from mesh.client.errors import refusal
from mesh.clock import monotonic_s, sleep
from mesh.errors import (
    BlobCorrupt,
    Malformed,
    MeshError,
    NotFound,
    PeerFault,
    Refusal,
    TooLarge,
    TooMany,
    Unavailable,
)
from mesh.ids import jittered
from mesh.pool import POOL_CLOSED, Large, Pool, Reply, Target
from mesh.wire import RawHeader
from mesh.wire.digests import CONTENT_DIGEST, digest_field, told_digest

PUT: Final = b"/v1/tasks/blobs"
AT_ONCE_MAX: Final = 8
"""Bodies of one process on their way, each way."""
RESULT_BYTES_MAX: Final = 64 << 20
"""Of a result that is read into memory; a Blob has the gateway's limit."""
HEAVY_BYTES: Final = 8 << 20
HEAVY_MAX: Final = 2
"""Of the bodies of one process on their way into its memory, so many are longer than that."""
TIMEOUT_S: Final = 30.0
SLOWEST_BYTES_PER_S: Final = 4 << 20
REPLY_BYTES_MAX: Final = 64 << 10
RETRY_FIRST_MS: Final = 200
RETRY_MAX_MS: Final = 10_000
RETRY_SPREAD: Final = 0.3
BROKEN_MAX: Final = 5
"""Answers that break off, or bodies that do not fit: then it is damaged where it is, for all one can tell."""
OFF: Final = "blob_storage_off"
OK: Final = 200
DAMAGED: Final = frozenset({"digest_mismatch", "digest_invalid"})

logger: Final = logging.getLogger("mesh.agent")


class Reference(NamedTuple):
    """A dataref that can be asked for (P411)."""

    url: str
    sha256: str
    size: int
    content_type: str

    @classmethod
    def of(cls, dataref: Mapping[str, Any]) -> Reference:
        """Raises Malformed: what stands in the entry is none."""
        url, size, content_type = dataref.get("url"), dataref.get("bytes"), dataref.get("content_type")
        sha256 = told_digest({CONTENT_DIGEST: str(dataref.get("digest")).encode()})
        if not isinstance(url, str) or not url.startswith("/v1/") or not isinstance(size, int) or sha256 is None:
            raise Malformed("it has no url, digest (sha-256) and bytes of what stands outside", code="dataref_invalid")
        return cls(url, sha256, size, content_type if isinstance(content_type, str) else OCTETS)


class Blobs:
    """`arrivals`: where files are kept while they are used."""

    def __init__(self, pool: Pool, gateways: Sequence[Target], arrivals: Arrivals) -> None:
        self._pool = pool
        self._gateways = gateways
        self._arrivals = arrivals
        self._puts = asyncio.Semaphore(AT_ONCE_MAX)
        self._gets = asyncio.Semaphore(AT_ONCE_MAX)
        self._heavy = asyncio.Semaphore(HEAVY_MAX)

    async def keep(self, address: Address, blob: Blob, told: Callable[[str], None]) -> dict[str, Any] | None:
        """What refers to it, once it is durable; None where no gateway keeps any. `told`: why it is not yet, if so.

        Raises TooLarge; Malformed for a file that changes while it is sent; another Refusal when the attempt is lost.
        """
        sha256 = await blob.digest()
        headers = [(b"content-type", (blob.content_type or OCTETS).encode("latin-1", "replace"))]
        headers.append((CONTENT_DIGEST, digest_field(sha256).encode()))
        tries = _Tries(told)
        while True:
            off = False
            for target in self._targets(address):
                kept = await self._put(address, target, headers, blob, tries)
                if isinstance(kept, dict):
                    return kept
                off = off or kept
            if off:
                return None
            await tries.rest()

    async def fetch(self, address: Address, ref: Reference, *, as_file: bool) -> Blob:
        """The bytes, which are those that were kept: in memory, or `as_file`.

        Raises Unavailable (`blob_missing`, `blob_corrupt`, ...) when they are not to be had now, a Refusal when the
        attempt is lost, TooLarge for more than memory is to take.
        """
        if not as_file and ref.size > RESULT_BYTES_MAX:
            raise TooLarge(f"it has {ref.size} bytes; {RESULT_BYTES_MAX} are read into memory, more as a mesh.Blob")
        heavy = self._heavy if not as_file and ref.size > HEAVY_BYTES else nullcontext()
        tries = _Tries()
        while True:
            missed: Unavailable | None = None
            for target in self._targets(address):
                token = address.token
                try:
                    async with heavy, self._gets:
                        return await self._from(target, token, ref, as_file=as_file)
                except TooMany as why:
                    tries.failed(why)
                except Refusal as why:
                    await self._given_up(address, token, why)
                except Unavailable as why:
                    tries.failed(why)
                    missed = why if why.code.startswith("blob_") else missed
                except PeerFault as why:
                    tries.failed(why)
                    if why.code == "reply_lost" and tries.lost(BROKEN_MAX):
                        detail = f"{ref.url} breaks off, again and again"
                        missed = BlobCorrupt(detail, retry_after_s=5)
            if missed is not None:
                raise missed
            await tries.rest()

    # -- inside

    async def _put(
        self, address: Address, target: Target, headers: list[RawHeader], blob: Blob, tries: _Tries
    ) -> dict[str, Any] | bool:
        """What refers to it; True: this gateway keeps none; False: not now. Raises as `keep`."""
        token = address.token
        try:
            async with self._puts:
                reply = await self._ask(b"PUT", target, PUT, token, headers, blob, blob.size)
            if reply.status == OK:
                return msgspec.json.decode(reply.body, type=dict[str, Any])
            raise refusal(reply.status, reply.body, 0)
        except TooLarge:
            raise
        except NotFound:
            return True  # it is older than P410
        except Refusal as why:
            if why.code in DAMAGED:
                tries.broke(why)
            elif isinstance(why, TooMany):
                tries.failed(why)
            else:
                await self._given_up(address, token, why)
        except Unavailable as why:
            if why.code == OFF:
                return True
            tries.failed(why)
        except (PeerFault, msgspec.MsgspecError) as why:
            tries.failed(why)
        return False

    async def _from(self, target: Target, token: str, ref: Reference, *, as_file: bool) -> Blob:
        def take(status: int, headers: list[tuple[bytes, bytes]]) -> Spool | None:
            return self._arrivals.take(dict(reversed(headers))) if status == OK and as_file else None

        inline = 0 if as_file else RESULT_BYTES_MAX
        large = Large(inline, RESULT_BYTES_MAX, take)
        reply = await self._ask(b"GET", target, ref.url.encode("ascii", "replace"), token, [], b"", ref.size, large)
        if reply.intake is not None:
            try:
                blob = Arrivals.blob(await reply.intake.finish(), ref.content_type)
            except Malformed as why:
                raise BlobCorrupt(why.detail) from None
            finally:
                reply.intake.abandon()
        elif reply.status == OK:
            blob = Blob(data=reply.body, content_type=ref.content_type)
        else:
            raise refusal(reply.status, reply.body, 0)
        if await blob.digest() != ref.sha256:
            detail = f"{ref.url} gave other bytes than were kept: {digest_field(blob.sha256)}"
            blob.close()
            raise BlobCorrupt(detail, retry_after_s=5)
        return blob

    async def _ask(
        self, method: bytes, target: Target, path: bytes, token: str, headers: list[RawHeader], body: bytes | Blob,
        size: int, large: Large | None = None,
    ) -> Reply:  # fmt: skip
        sent = [(b"mesh-task-token", token.encode("latin-1")), *headers]
        timeout_s = TIMEOUT_S + size / SLOWEST_BYTES_PER_S
        return await self._pool.request(
            method, target, target.under(path), sent, body, timeout_s=timeout_s, reply_bytes_max=REPLY_BYTES_MAX,
            large=large,
        )  # fmt: skip

    def _targets(self, address: Address) -> list[Target]:
        first = address.gateway
        return [first, *(each for each in self._gateways if each.origin != first.origin)]

    async def _given_up(self, address: Address, token: str, why: Refusal) -> None:
        """Raise `why`, unless a later attempt comes to this very process and goes on with its work (P267)."""
        give_up_s = monotonic_s() + LOST_GRACE_S
        while address.token == token:
            if monotonic_s() > give_up_s:
                raise why
            await sleep(LOST_GRACE_S / 20)


class _Tries:
    """How often one thing was tried, what went wrong, and how long to wait."""

    def __init__(self, told: Callable[[str], None] | None = None) -> None:
        self._told = told
        self._delay_ms = RETRY_FIRST_MS
        self._trouble = ""
        self._broken = self._lost = 0

    def failed(self, why: Exception) -> None:
        """Say it when it changes. Raises CancelledError when the agent has ended."""
        if isinstance(why, PeerFault) and why.code == POOL_CLOSED:
            raise asyncio.CancelledError
        trouble = why.detail if isinstance(why, MeshError) else "it answered something else"
        if trouble != self._trouble:
            self._trouble = trouble
            logger.warning("what is too large for a journal waits: %s", trouble)
            if self._told is not None and isinstance(why, Unavailable) and why.code.startswith("blob_"):
                self._told(trouble)
                self._told = None

    def broke(self, why: Refusal) -> None:
        self._broken += 1
        if self._broken >= BROKEN_MAX:
            raise why
        self.failed(why)

    def lost(self, most: int) -> bool:
        self._lost += 1
        return self._lost >= most

    async def rest(self) -> None:
        await sleep(jittered(self._delay_ms, RETRY_SPREAD) / 1000)
        self._delay_ms = min(self._delay_ms * 2, RETRY_MAX_MS)
