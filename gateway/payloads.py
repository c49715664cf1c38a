"""Large inputs and results of one gateway: into its blob store, out of it, and how they show on the wire (P390).

Owns what counts as large and where that goes; without a store nothing is large, and bodies end at `body_bytes_max`.
Knows no states: who stores a reference, and when, is operations.py and starts.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec.structs import replace

from mesh.blobs.local import LocalBlobs
from mesh.blobs.s3 import S3Blobs
from mesh.blobs.spool import Spool, Spooled, Spooler
from mesh.blobs.store import BlobStore, Stored, missing
from mesh.blobs.sweep import Sweeper
from mesh.clock import sleep
from mesh.errors import BlobMissing, Malformed, TooLarge, Unavailable
from mesh.ids import short_id
from mesh.machine import State
from mesh.pool import Large
from mesh.seats import Seats
from mesh.store.durable import JOURNAL
from mesh.store.layout import DataRef
from mesh.wire.digests import CONTENT_DIGEST, REPR_DIGEST, digest_field, mismatch, told_digest

if TYPE_CHECKING:
    from gateway.settings import BlobSettings
    from mesh.edge import Answer, Headers, Request
    from mesh.store.store import Store

LIMIT: Final = "the limit of this gateway ([blobs] bytes_max)"
SLOWEST_BYTES_PER_MS: Final = 4 << 10
"""A large input has its time for being sent on top of a request's timeout: 1 s for each 4 MiB."""
INPUTS_MAX: Final = 64
"""Inputs under way in one gateway."""
EACH_INPUTS_MAX: Final = 32
"""Of one namespace: none takes the seats of all the others."""
REPLIES_MAX: Final = 64
"""Results in replies to starts, under way in one gateway."""
EACH_REPLIES_MAX: Final = 32
COMPLETIONS_MAX: Final = 32
"""Results that come with the token of an attempt, which does not say whose it is; starts cannot take their seats."""
STEPS_MAX: Final = 64
"""Results of steps, which come with such a token too."""
EACH_STEPS_MAX: Final = 8
"""Of one operation."""
STEPS_PART: Final = 4
"""A further one only to who has fewer than a fourth of those that are free: a token tells of which operation it is, not
whose that is, and a few operations of one namespace would take the places of all others."""
OTHER_PLACE: Final = (
    "large payloads are kept in another place here than by the gateway that began: what is kept there is missing here;"
    " give all gateways of a mesh the same [blobs] url, and move a place with all that is in it"
)
OK: Final = 200
DIGESTS: Final = frozenset((CONTENT_DIGEST, REPR_DIGEST))
"""Headers that say what a body has to be."""
_log = logging.getLogger(__name__)
PAGE: Final = 1_000
_digests: Final = re.compile(rb"/blobs\\?/([0-9a-f]{64})").findall
"""In the URLs of an entry, wherever they stand in it; JSON may escape a slash."""
_range: Final = re.compile(r"bytes=([0-9]{0,15})-([0-9]{0,15})").fullmatch


def transfer_ms(data: DataRef | None) -> int:
    """What a start request may take longer because of its body."""
    return 0 if data is None else data.size // SLOWEST_BYTES_PER_MS


def dataref(url: str, data: DataRef, content_type: str | None) -> dict[str, Any]:
    """How a large payload shows in a record (P392)."""
    return {"url": url, "digest": digest_field(data.sha256), "bytes": data.size, "content_type": content_type}


def blob_url(operation_id: str, sha256: str) -> str:
    """Where what an operation has is read by its digest (P412)."""
    return f"/v1/operations/{operation_id}/blobs/{sha256}"


class Payloads:
    """The blob store of one gateway, if it has one. `inline_bytes_max`: what is longer is large."""

    def __init__(self, settings: BlobSettings, body_bytes_max: int, namespace: str) -> None:
        """`namespace`: the identity of the store of operations, so that two meshes may share one place."""
        self._settings = settings
        self.body_bytes_max = body_bytes_max
        self.store: BlobStore | None = None
        self.spooler: Spooler | None = None
        self.warning = ""
        self.inline_bytes_max = sys.maxsize
        self._inputs = Seats(INPUTS_MAX, EACH_INPUTS_MAX)
        self._completions = Seats(COMPLETIONS_MAX, COMPLETIONS_MAX)
        self._steps = Seats(STEPS_MAX, EACH_STEPS_MAX, part=STEPS_PART)
        self._small_steps = Seats(STEPS_MAX, EACH_STEPS_MAX, part=STEPS_PART)
        """Of bodies that came in memory: what stalls on its way keeps none of them out."""
        self._reply_seats = Seats(REPLIES_MAX, EACH_REPLIES_MAX)
        self._replies: dict[str, Large] = {}
        """By namespace, of which settings have few."""
        if settings.url:
            self.store, parts = place_of(settings, namespace)
            self._sweeper = Sweeper(self.store, settings.grace_ms)
            self.spooler = Spooler(
                parts, bytes_max=settings.bytes_max, limit=LIMIT, free_bytes_min=settings.free_bytes_min
            )
            self.inline_bytes_max = min(settings.inline_bytes_max, body_bytes_max - 1)

    async def start(self, operations: Store) -> None:
        """Raises ConfigError when the place cannot be used."""
        if self.store is None:
            return
        place = await self.store.check(short_id("place"))
        if await operations.secret("payload_place", place) != place:
            self.warning = OTHER_PLACE
            _log.warning("%s", OTHER_PLACE)

    @property
    def facts(self) -> dict[str, Any]:
        """For /readyz."""
        if self.store is None:
            return {"place": "none"}
        bounds = {"inline_bytes_max": self.inline_bytes_max, "bytes_max": self._settings.bytes_max}
        return {"place": self.store.place, **bounds, **({"warning": self.warning} if self.warning else {})}

    async def close(self) -> None:
        if self.store is not None:
            await self.store.close()
        if self.spooler is not None:
            self.spooler.close()

    # In -----------------------------------------------------------------------------------------------------------

    def take_input(self, request: Request, namespace: str) -> Spool | None:
        """An intake for the body of a start by `namespace`. Raises TooLarge, TooMany, StorageFull."""
        return self._open(request.first, self._inputs, namespace)

    def take_result(self, request: Request) -> Spool | None:
        """The same for the result of an attempt, from whoever has its token."""
        return self._open(request.first, self._completions, "")

    def take_step(self, request: Request, operation_id: str) -> Spool:
        """For what a running attempt of this operation keeps. Raises Unavailable `blob_storage_off` too."""
        spool = self._open(request.first, self._steps, operation_id)
        if spool is None:
            raise _off()
        return spool

    def replies(self, namespace: str) -> Large | None:
        """For replies to starts by `namespace`."""
        large = self._replies.get(namespace)
        if large is None and self.spooler is not None:
            take = partial(self._take_reply, namespace)
            large = self._replies[namespace] = Large(self.inline_bytes_max, self.body_bytes_max, take)
        return large

    def _take_reply(self, namespace: str, status: int, headers: Headers) -> Spool | None:
        return self._open(dict(reversed(headers)), self._reply_seats, namespace) if status == OK else None

    def _open(self, first: Mapping[bytes, bytes], seats: Seats, whose: str) -> Spool | None:
        if self.spooler is None:
            return None
        length = first.get(b"content-length")
        told, bytes_told = told_digest(first), None if length is None else int(length)
        return self.spooler.open(told=told, length=bytes_told, seats=seats, whose=whose)

    async def keep(self, owner: str, spooled: Spooled) -> DataRef:
        """The body is the operation's from now on, durably. Raises StorageFull, Unavailable."""
        if self.store is None:
            raise _off()
        await self.store.put(owner, spooled)
        return DataRef(self.store.place, spooled.sha256, spooled.size)

    async def keep_bytes(self, owner: str, body: bytes, namespace: str) -> DataRef:
        """As `keep`, of an input by `namespace` that came in memory. Raises TooMany too."""
        return await self._keep_bytes(owner, body, self._inputs, namespace)

    async def keep_step(self, owner: str, body: bytes) -> DataRef:
        """As `keep`, of a small one that came in memory, for `take_step`."""
        return await self._keep_bytes(owner, body, self._small_steps, owner)

    async def _keep_bytes(self, owner: str, body: bytes, seats: Seats, whose: str) -> DataRef:
        if self.spooler is None:
            raise _off()
        spool = self.spooler.open(length=len(body), seats=seats, whose=whose)
        try:
            spool.feed(body)
            return await self.keep(owner, await spool.finish())
        finally:
            spool.abandon()

    async def drop(self, owner: str) -> None:
        """Nobody will ever refer to what was kept for this id."""
        if self.store is not None:
            await self.store.drop(owner)

    # Out ----------------------------------------------------------------------------------------------------------

    def stored(self, owner: str, data: DataRef, start: int = 0, count: int | None = None) -> Stored:
        """A payload, or a span of it, to be sent. Raises BlobMissing when it is kept in another kind of place."""
        if self.store is None or self.store.place != data.place:
            here = "keeps none" if self.store is None else f"keeps its own at {self.store.place}"
            detail = f"operation {owner} has a payload at {data.place}, and this gateway {here}: give all gateways"
            raise BlobMissing(f"{detail} of the mesh the same [blobs] url", retry_after_s=5)
        return Stored(self.store, owner, data.sha256, data.size, start=start, count=count)

    async def find(self, owner: str, sha256: str) -> DataRef:
        """What was kept for an operation under this digest. Raises BlobMissing."""
        if self.store is None:
            detail = f"operation {owner} may have a payload, and this gateway keeps none: give all gateways of the mesh"
            raise BlobMissing(f"{detail} the same [blobs] url", retry_after_s=5)
        size = await self.store.size(owner, sha256)
        if size is None:
            raise missing(owner)
        return DataRef(self.store.place, sha256, size)

    async def read(self, owner: str, data: DataRef, bytes_max: int) -> bytes:
        """All of a payload. Raises TooLarge, BlobMissing, BlobCorrupt."""
        if data.size > bytes_max:
            raise TooLarge(f"the payload has {data.size} bytes, and {bytes_max} at most can be read here")
        return b"".join([piece async for piece in self.stored(owner, data).chunks()])

    async def answering(self, answer: Answer, request: Request, owner: str, data: DataRef) -> Answer:
        """`answer` with the payload as its body, or the span that `Range` asks for. Raises BlobMissing, Malformed."""
        headers: Headers = [*answer.headers, (b"accept-ranges", b"bytes")]
        headers.append((b"repr-digest", digest_field(data.sha256).encode()))
        span = _span(request.first.get(b"range"), data.size) if request.method == "GET" else None
        stored = self.stored(owner, data, *(span or ()))
        if span is not None:
            last = span[0] + span[1] - 1
            headers.append((b"content-range", b"bytes %d-%d/%d" % (span[0], last, data.size)))
            answer = replace(answer, status=206)
        # What is not there is said now, while there is still a status to say it with.
        return replace(answer, headers=headers, stream=_Begun(stored.size, await stored.begin()))

    # Sweeping -----------------------------------------------------------------------------------------------------

    async def sweep(self, store: Store) -> int:
        """Delete what no operation refers to; how many operations' payloads went."""
        if self.store is None:
            return 0
        return await self._sweeper.round(store.exist, lambda one: _kept(store, one))

    async def sweep_once(self, store: Store) -> None:
        """One turn of the clockwork."""
        await sleep(self._settings.sweep_ms / 1000)
        await self.sweep(store)


async def _kept(store: Store, operation_id: str) -> frozenset[str] | None:
    """What its record and its journal refer to; None while it runs, when it is no more, or cannot be read.

    Until it ended an entry may come that refers to what was put long before; after that none is taken any more.
    """
    try:
        record = await store.read(operation_id)
    except (msgspec.MsgspecError, ValueError):
        return None
    if record is None or not State(record.head.state).terminal:
        return None
    outcome = record.outcome
    data = (record.request.data, outcome.data if outcome is not None else None)
    found = {one.sha256 for one in data if one is not None}
    at = 0
    while at < record.journal:
        lines = (await store.lines(operation_id, JOURNAL, at, PAGE)).lines
        if not lines:
            return None
        at += len(lines)
        found.update(digest.decode() for line in lines if line.child is None for digest in _digests(line.body))
    return frozenset(found)


def _off() -> Unavailable:
    return Unavailable("this gateway keeps no large payloads: give it a [blobs] url", code="blob_storage_off")


def place_of(settings: BlobSettings, namespace: str) -> tuple[BlobStore, Path]:
    """The store that settings name, and the directory for bodies on their way in. Raises ConfigError."""
    split = urlsplit(settings.url)
    if split.scheme == "file":
        local = LocalBlobs(Path(unquote(split.path)) / namespace)
        return local, local.parts
    parts = settings.spool or Path(tempfile.gettempdir()) / "mesh-parts" / namespace
    return S3Blobs(settings.url, namespace, endpoint=settings.endpoint, region=settings.region, parts=parts), parts


class _Begun:
    """A mesh.streams.Source that can be read once."""

    def __init__(self, size: int, pieces: AsyncIterator[bytes]) -> None:
        self.size = size
        self._pieces = pieces

    def chunks(self) -> AsyncIterator[bytes]:
        return self._pieces


def check_told(first: Mapping[bytes, bytes], body: bytes) -> None:
    """A body in memory is what its sender said it is. Raises Malformed `digest_mismatch`, `digest_invalid`."""
    told = told_digest(first)
    if told is not None:
        found = hashlib.sha256(body).hexdigest()
        if found != told:
            raise mismatch(told, found)


async def file_bytes(path: Path) -> bytes:
    """All of a file."""
    return await asyncio.get_running_loop().run_in_executor(None, path.read_bytes)


def _span(value: bytes | None, size: int) -> Sequence[int] | None:
    """First byte and number of bytes that a `Range` of one span asks for; None: all of it. Raises Malformed."""
    asked = _range(value.decode("latin-1").replace(" ", "")) if value is not None else None
    if asked is None or asked[0] == "bytes=-":
        return None  # RFC 9110 section 14.2: what is not understood is ignored
    first, last = asked[1], asked[2]
    if not first:
        count = min(int(last), size)
        start = size - count
    else:
        start = int(first)
        count = (min(int(last), size - 1) if last else size - 1) - start + 1
    if count <= 0 or start >= size:
        raise Malformed(f"there are {size} bytes, and none of them in that range", code="range_invalid")
    return start, count
