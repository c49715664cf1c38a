"""Heartbeats for long work: which runs are leased, and what the mesh answers about each (P103, P104).

One beat carries many runs; a third of the lease passes between beats; with nothing leased nothing runs. The answers
come back through three functions: `cancel` (the caller wants it), `lose` (another attempt has the lease) and `stop`
(the operation is over). Knows no handler.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from typing import Final

import msgspec

from mesh.agent.inbound import Callback
from mesh.agent.runs import Run
from mesh.clock import boot_s, sleep
from mesh.errors import PeerFault
from mesh.ids import jittered
from mesh.pool import Pool, Target
from mesh.wire import RawHeader

LEASE_MS_MIN: Final = 1000
BEATS_PER_LEASE: Final = 3
BEAT_SPREAD: Final = 0.1
BATCH_MAX: Final = 500
REPLY_BYTES_MAX: Final = 1 << 20
TROUBLES_MAX: Final = 16
PATH: Final = b"/v1/tasks/heartbeat"

logger: Final = logging.getLogger("mesh.agent")


class _Verdict(msgspec.Struct):
    status: str


class _Verdicts(msgspec.Struct):
    tasks: list[_Verdict]


_read: Final = msgspec.json.Decoder(_Verdicts).decode
_write: Final = msgspec.json.Encoder().encode


class Leases:
    """The leased runs of one host.

    gateways   base URLs of the mesh as configured, asked when the gateway that sent a run does not answer
    key        the agent's API key, sent to configured gateways only: a run's callback URL is whatever its caller wrote
    """

    def __init__(
        self,
        pool: Pool,
        gateways: Sequence[Target],
        *,
        lease_ms: int,
        key: str | None,
        cancel: Callable[[Run], None],
        lose: Callable[[Run], None],
        stop: Callable[[Run], None],
    ) -> None:
        self._pool = pool
        self._gateways = gateways
        self._trusted = {(target.origin, target.path) for target in gateways}
        self._key = key
        self._lease_ms = lease_ms
        self._cancel = cancel
        self._lose = lose
        self._stop = stop
        self._held: set[Run] = set()
        self._task: asyncio.Task[None] | None = None
        self._troubles: set[str] = set()
        self.header: RawHeader = (b"mesh-lease-ms", b"%d" % lease_ms)
        """On a 201: the caller may count on a heartbeat within that time."""

    def add(self, run: Run) -> None:
        """Heartbeat for `run`, whose 201 carries `header`, until `discard`."""
        self._held.add(run)
        if self._task is None:
            # In a context of its own: it beats for many, and must not keep what belongs to the first one's handler.
            self._task = asyncio.get_running_loop().create_task(self._beat_while_held(), context=Context())

    def discard(self, run: Run) -> None:
        self._held.discard(run)

    async def close(self) -> None:
        """Stop beating."""
        self._held.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _beat_while_held(self) -> None:
        try:
            while True:
                await sleep(jittered(self._lease_ms / BEATS_PER_LEASE, BEAT_SPREAD) / 1000)
                if not self._held:
                    return
                await self.step()
        finally:
            self._task = None

    async def step(self) -> None:
        """One beat for everything that is held."""
        batches: dict[tuple[str, bytes], list[tuple[Run, Callback]]] = {}
        targets: dict[tuple[str, bytes], Target] = {}
        for run in self._held:
            callback = run.callback
            if callback is not None and callback.gateway is not None:
                where = (callback.gateway.origin, callback.gateway.path)
                targets[where] = callback.gateway
                batches.setdefault(where, []).append((run, callback))
        await asyncio.gather(
            *(
                self._beat(targets[where], entries[at : at + BATCH_MAX])
                for where, entries in batches.items()
                for at in range(0, len(entries), BATCH_MAX)
            )
        )

    async def _beat(self, gateway: Target, entries: list[tuple[Run, Callback]]) -> None:
        body = _write({"tasks": [{"token": callback.token, "lease_ms": self._lease_ms} for _, callback in entries]})
        others = [each for each in self._gateways if each.origin != gateway.origin]
        for target in [gateway, *others]:
            asked_s = boot_s()
            verdicts = await self._ask(target, body)
            if verdicts is not None and len(verdicts) == len(entries):
                self._apply(zip(entries, verdicts, strict=True), asked_s)
                return

    async def _ask(self, target: Target, body: bytes) -> list[_Verdict] | None:
        headers: list[RawHeader] = [(b"content-type", b"application/json")]
        if self._key is not None and (target.origin, target.path) in self._trusted:
            headers.append((b"authorization", f"Bearer {self._key}".encode("latin-1")))
        try:
            reply = await self._pool.post(
                target,
                target.under(PATH),
                headers,
                body,
                timeout_s=self._lease_ms / BEATS_PER_LEASE / 1000,
                reply_bytes_max=REPLY_BYTES_MAX,
            )
            if reply.status == 200:  # noqa: PLR2004
                verdicts = _read(reply.body).tasks
                self._troubles.clear()
                return verdicts
            trouble = f"{target.origin} answered {reply.status}"
        except PeerFault as fault:
            trouble = fault.detail
        except msgspec.MsgspecError:
            trouble = f"{target.origin} answered something else"
        if trouble not in self._troubles and len(self._troubles) < TROUBLES_MAX:
            # Said when it changes: gateways that are down for an hour, asked in turn, are a line each.
            self._troubles.add(trouble)
            logger.warning("no heartbeat: %s", trouble)
        return None

    def _apply(self, answers: Iterable[tuple[tuple[Run, Callback], _Verdict]], asked_s: float) -> None:
        for (run, callback), verdict in answers:
            # While the beat was away the run may have ended, or a later attempt may have brought it another token.
            if run not in self._held or run.callback is not callback:
                continue
            status = verdict.status
            if run.hold is not None and status in ("ok", "cancel"):
                run.hold.renewed(asked_s)
            if status == "ok":
                run.leased = True
            elif status == "cancel":
                run.leased = True
                self._cancel(run)
            elif status in ("lost", "ended"):
                self._held.discard(run)
                run.leased = False
                (self._lose if status == "lost" else self._stop)(run)
            else:
                # The token is not known there, or we do not know the answer: the work goes on, its completion decides.
                logger.warning("a heartbeat was answered with %r; no more are sent for it", status[:40])
                self._held.discard(run)
                run.leased = False
