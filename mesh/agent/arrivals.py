"""Large inputs on their way to handlers: where they are kept while they are used, and how pulled tasks get theirs.

Owns the directory, its bounds and what a killed agent left there. Knows no operation.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nexusrpc import HandlerError, HandlerErrorType

from mesh.agent.codec import Undecodable
from mesh.blob import Blob
from mesh.blobs.spool import SUFFIX, Spool, Spooled, Spooler
from mesh.clock import monotonic_s, now_ms, sleep
from mesh.errors import MeshError, ReplyInvalid, ReplyLost, TooLarge
from mesh.ids import jittered
from mesh.pool import Large, Pool, Reply, Target
from mesh.streams import Intake
from mesh.wire.digests import told_digest

if TYPE_CHECKING:
    from mesh.agent.routes import Route
    from mesh.agent.tasks import DataRef, Task

INLINE_BYTES: Final = 64 << 10
"""An input of a Blob up to this stays in memory."""
BLOB_BYTES_MAX: Final = 16 << 30
LIMIT: Final = "the limit of this agent (input_bytes_max)"
LEFT_MS: Final = 24 * 3_600_000
"""What is older belongs to no agent that lives, unless it works on one input for a day."""
FETCH_FOR_S: Final = 600.0
"""How long a pulled task waits for its input, under its lease, before its attempt fails."""
FETCH_TIMEOUT_S: Final = 30.0
FETCH_FIRST_MS: Final = 500
FETCH_MAX_MS: Final = 10_000
FETCH_SPREAD: Final = 0.2
SLOWEST_BYTES_PER_S: Final = 4 << 20
OK: Final = 200
GONE: Final = frozenset({401, 404, 410})
"""The operation is over, or was never ours: no repeat brings its input."""


class Arrivals:
    """The large inputs of one agent. `fetch_by` before tasks are pulled."""

    def __init__(
        self, endpoint: str, bytes_max: int, directory: str | os.PathLike[str] | None, input_bytes_max: int
    ) -> None:
        self._spooler: Spooler | None = None
        self._bytes_max = bytes_max
        self._directory = Path(directory) if directory is not None else Path(tempfile.gettempdir()) / f"mesh-{endpoint}"
        self.input_bytes_max = input_bytes_max
        self.pool: Pool
        self.gateways: Sequence[Target] = ()

    def fetch_by(self, pool: Pool, gateways: Sequence[Target]) -> None:
        """Where the inputs of pulled tasks are had from."""
        self.pool, self.gateways = pool, gateways

    def take(self, first: Mapping[bytes, bytes]) -> Spool:
        """An intake for a body with these headers. Raises TooLarge, TooMany, StorageFull, Malformed."""
        if self._spooler is None:
            limit = "the limit of this agent (blob_bytes_max)"
            self._spooler = Spooler(self._directory, bytes_max=self._bytes_max, limit=limit)
            self._sweep()
        length = first.get(b"content-length")
        return self._spooler.open(told=told_digest(first), length=None if length is None else int(length), sync=False)

    async def arrived(self, intake: Intake, first: Mapping[bytes, bytes]) -> Blob:
        """The input that `take` took. Raises StorageFull, Malformed `digest_mismatch`."""
        return self.blob(await intake.finish(), first.get(b"content-type"))

    @staticmethod
    def blob(spooled: Spooled, content_type: bytes | str | None) -> Blob:
        """What arrived, gone with the last reference to it."""
        spooled.hand_on()
        label = content_type.decode("latin-1") if isinstance(content_type, bytes) else content_type
        return Blob.owning(spooled.path, content_type=label, sha256=spooled.sha256)

    def pending(self, route: Route, task: Task, data: DataRef, gateway: Target) -> Pending:
        """The input of a task, to be fetched from any gateway, first from the one that handed the task out."""
        others = [one for one in self.gateways if one.origin != gateway.origin]
        return Pending(self, route, data, task.task_token, [gateway, *others])

    def _sweep(self) -> None:
        before_s = (now_ms() - LEFT_MS) / 1000
        with suppress(OSError):
            for left in self._directory.iterdir():
                with suppress(OSError):
                    if left.name.endswith(SUFFIX) and left.stat().st_mtime < before_s:
                        left.unlink()


class Pending:
    """An input that is not here yet. `sha256`: what tells it from others."""

    def __init__(
        self, arrivals: Arrivals, route: Route, data: DataRef, token: str, gateways: Sequence[Target]
    ) -> None:
        self._arrivals = arrivals
        self._codec = route.input
        self._data = data
        self._token = token
        self._gateways = gateways
        self.sha256 = data.digest

    async def get(self) -> Any:
        """The handler's input. Raises HandlerError: it cannot be read, is too large, or was not to be had."""
        limit = self._arrivals.input_bytes_max
        if not self._codec.blob and self._data.bytes > limit:
            message = f"the input has {self._data.bytes} bytes, and this agent takes {limit}, or more as a mesh.Blob"
            raise HandlerError(message, type=HandlerErrorType.BAD_REQUEST)
        until_s, delay_ms = monotonic_s() + FETCH_FOR_S, FETCH_FIRST_MS
        while True:
            trouble = ""
            for gateway in self._gateways:
                try:
                    return await self._from(gateway)
                except MeshError as fault:
                    trouble = fault.detail
            if monotonic_s() > until_s:
                raise HandlerError(f"the input could not be fetched: {trouble}", type=HandlerErrorType.UNAVAILABLE)
            await sleep(jittered(delay_ms, FETCH_SPREAD) / 1000)
            delay_ms = min(delay_ms * 2, FETCH_MAX_MS)

    async def _from(self, gateway: Target) -> Any:
        """The input from one gateway. Raises HandlerError where no repeat helps, else MeshError."""
        try:
            reply = await self._ask(gateway)
        except TooLarge as fault:
            raise HandlerError(fault.detail, type=HandlerErrorType.BAD_REQUEST) from None
        if reply.status in GONE:
            message = f"{gateway.origin} has no such input any more ({reply.status})"
            raise HandlerError(message, type=HandlerErrorType.UNAVAILABLE)
        if reply.status != OK:
            raise ReplyInvalid(f"{gateway.origin} answered {reply.status}")
        return await self._value(reply)

    async def _ask(self, gateway: Target) -> Reply:
        headers = [(b"mesh-task-token", self._token.encode("latin-1"))]
        inline = INLINE_BYTES if self._codec.blob else self._arrivals.input_bytes_max
        timeout_s = FETCH_TIMEOUT_S + self._data.bytes / SLOWEST_BYTES_PER_S
        path = gateway.under(self._data.url.encode("ascii"))
        large = Large(inline, self._arrivals.input_bytes_max, self._take)
        return await self._arrivals.pool.request(b"GET", gateway, path, headers, timeout_s=timeout_s, large=large)

    def _take(self, status: int, headers: list[tuple[bytes, bytes]]) -> Spool | None:
        return self._arrivals.take(dict(reversed(headers))) if status == OK and self._codec.blob else None

    async def _value(self, reply: Reply) -> Any:
        if reply.intake is not None:
            try:
                return self._arrivals.blob(await reply.intake.finish(), self._data.content_type)
            finally:
                reply.intake.abandon()
        if len(reply.body) != self._data.bytes:
            raise ReplyLost(f"{len(reply.body)} bytes of {self._data.bytes} came")
        try:
            return self._codec.decode(self._data.content_type, reply.body)
        except Undecodable as error:
            message = f"the input cannot be read: {error}"
            raise HandlerError(message, type=HandlerErrorType.BAD_REQUEST) from None
