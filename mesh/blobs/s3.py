"""Blobs as objects of an S3-compatible store: `{prefix}/{owner}/{sha256}`. Needs the extra `s3` (obstore).

A body is spooled to a local file first, so that its digest is known before the first byte leaves, and then uploaded in
parts. What is there under its name is complete: an object appears as a whole. Credentials come from where AWS's own
tools have them (AWS_ACCESS_KEY_ID and so on), never from a URL.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from mesh.blobs.local import PLACE, sweep_parts
from mesh.blobs.spool import Spooled
from mesh.blobs.store import OWNERS_PAGE, missing
from mesh.errors import BlobMissing, ConfigError, Unavailable
from mesh.ids import is_operation_id

if TYPE_CHECKING:
    from obstore.store import S3Store

PART_BYTES: Final = 8 << 20
PARTS_AT_ONCE: Final = 2
"""With PART_BYTES what an upload holds in memory."""
PIECE_BYTES: Final = 256 << 10
RETRIES_MAX: Final = 3
RETRY_S: Final = 20
LISTED: Final = 1_000
WHY_CHARS_MAX: Final = 300

_said: Final = re.compile(r"<Error>.*?<Code>([^<]*)</Code>\s*<Message>([^<]*)</Message>", re.DOTALL).search


class S3Blobs:
    """A BlobStore in a bucket: `url` is s3://BUCKET/PREFIX, `endpoint` where it is if not at AWS."""

    place = "s3"

    def __init__(self, url: str, namespace: str, *, endpoint: str, region: str, parts: Path) -> None:
        """`parts`: a local directory for bodies on their way in. Raises ConfigError without the extra."""
        self._api, exceptions, store = _library()
        self._missing = (exceptions.NotFoundError, FileNotFoundError)
        self._trouble = exceptions.BaseError
        self.parts = parts
        split = urlsplit(url)
        self._prefix = "/".join(one for one in (split.path.strip("/"), namespace) if one)
        self._where = f"s3://{split.netloc}/{self._prefix}"
        options: dict[str, Any] = {"region": region} if region else {}
        if endpoint:
            # Not every compatible store has hosts by bucket, or deletes many at once.
            options |= {"endpoint": endpoint, "virtual_hosted_style_request": False, "disable_bulk_delete": True}
        self._store: S3Store = store(
            split.netloc,
            client_options={"allow_http": endpoint.startswith("http://")},
            retry_config={"max_retries": RETRIES_MAX, "retry_timeout": timedelta(seconds=RETRY_S)},
            **options,
        )

    async def check(self, candidate: str) -> str:
        probe, name = f"{self._prefix}/.probe", f"{self._prefix}/{PLACE}"
        try:
            await self._api.put_async(self._store, probe, candidate.encode())
            await self._api.delete_async(self._store, probe)
            try:
                found = await self._api.get_async(self._store, name)
            except self._missing:
                await self._api.put_async(self._store, name, candidate.encode())
                found = await self._api.get_async(self._store, name)
            return bytes(await found.bytes_async()).decode()
        except (self._trouble, OSError) as fault:
            mend = "mend [blobs] url, endpoint or credentials"
            raise ConfigError(f"large payloads cannot be kept at {self._where}: {_why(fault)}; {mend}") from None

    async def close(self) -> None:
        """Nothing is held."""

    async def put(self, owner: str, spooled: Spooled) -> None:
        name = self._name(owner, spooled.sha256)
        try:
            await self._api.put_async(
                self._store, name, spooled.path, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
            )
        except (self._trouble, OSError) as fault:
            raise self._unavailable(fault) from None

    async def read(self, owner: str, sha256: str, start: int, count: int) -> AsyncIterator[bytes]:
        options: Any = {"range": (start, start + count)} if count else {}
        try:
            found = await self._api.get_async(self._store, self._name(owner, sha256), options=options)
        except self._missing:
            raise missing(owner) from None
        except (self._trouble, OSError) as fault:
            raise self._unavailable(fault) from None
        return self._pieces(found)

    async def _pieces(self, found: Any) -> AsyncIterator[bytes]:
        try:
            async for piece in found.stream(min_chunk_size=PIECE_BYTES):
                yield bytes(piece)
        except (self._trouble, OSError) as fault:
            raise self._unavailable(fault) from None

    async def size(self, owner: str, sha256: str) -> int | None:
        try:
            found = await self._api.head_async(self._store, self._name(owner, sha256))
        except self._missing:
            return None
        except (self._trouble, OSError) as fault:
            raise self._unavailable(fault) from None
        return int(found["size"])

    async def drop(self, owner: str) -> None:
        try:
            async for page in self._api.list(self._store, prefix=f"{self._prefix}/{owner}", chunk_size=LISTED):
                for one in page:
                    await self._api.delete_async(self._store, one["path"])
        except self._missing:
            return
        except (self._trouble, OSError) as fault:
            raise self._unavailable(fault) from None

    async def drop_others(self, owner: str, kept: frozenset[str], before_ms: int) -> int:
        dropped = 0
        try:
            async for page in self._api.list(self._store, prefix=f"{self._prefix}/{owner}", chunk_size=LISTED):
                for one in page:
                    aged = one["last_modified"].timestamp() * 1000 < before_ms
                    if aged and one["path"].rpartition("/")[2] not in kept:
                        await self._api.delete_async(self._store, one["path"])
                        dropped += 1
        except self._missing:
            return dropped
        except (self._trouble, OSError) as fault:
            raise self._unavailable(fault) from None
        return dropped

    async def owners(self, before_ms: int) -> AsyncIterator[list[tuple[str, int]]]:
        newest: dict[str, float] = {}
        try:
            async for page in self._api.list(self._store, prefix=self._prefix, chunk_size=LISTED):
                for one in page:
                    owner = one["path"].removeprefix(f"{self._prefix}/").partition("/")[0]
                    if is_operation_id(owner):
                        at_ms = one["last_modified"].timestamp() * 1000
                        newest[owner] = max(newest.get(owner, 0.0), at_ms)
                # Keys come in order, so only the last owner of a page may have more on the next one.
                if len(newest) > OWNERS_PAGE:
                    last, at_ms = newest.popitem()
                    yield [(owner, int(seen_ms)) for owner, seen_ms in newest.items() if seen_ms < before_ms]
                    newest = {last: at_ms}
        except (self._trouble, OSError) as fault:
            raise self._unavailable(fault) from None
        yield [(owner, int(seen_ms)) for owner, seen_ms in newest.items() if seen_ms < before_ms]

    async def sweep_parts(self, before_ms: int) -> int:
        return await asyncio.get_running_loop().run_in_executor(None, sweep_parts, self.parts, before_ms)

    def _name(self, owner: str, sha256: str) -> str:
        return f"{self._prefix}/{owner}/{sha256}"

    def _unavailable(self, fault: BaseException) -> Unavailable | BlobMissing:
        detail = f"large payloads cannot be had from {self._where}: {_why(fault)}"
        return Unavailable(detail, code="blob_storage_failed")


def _why(fault: BaseException) -> str:
    """What the store itself said, where it did: code and message of its answer; else the library's first line."""
    text = str(fault)
    found = _said(text)
    return (f"{found[1]}: {found[2]}" if found else text.partition("\n")[0])[:WHY_CHARS_MAX]


def _library() -> tuple[Any, Any, Any]:
    try:
        import obstore  # noqa: PLC0415 - an extra that most gateways do not need
        from obstore import exceptions  # noqa: PLC0415 - as above
        from obstore.store import S3Store  # noqa: PLC0415 - as above
    except ImportError:
        message = "[blobs] url of s3:// needs obstore: pip install 'agent-mesh[gateway,s3]'"
        raise ConfigError(message) from None
    return obstore, exceptions, S3Store
