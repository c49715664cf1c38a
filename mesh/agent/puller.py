"""Pull mode: asks gateways for tasks and answers many at once, over a few lanes to each.

At each gateway a poll waits for work; answers leave with it as it goes out, or with a poll that does not wait. Owns the
lanes and how seats are spread over them. What tasks mean is fetched.py's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from mesh.agent.booking import Booking
from mesh.agent.fetched import Fetched
from mesh.agent.outbox import Answer, Outbox
from mesh.agent.tasks import Frame, encode, read_frame
from mesh.clock import monotonic_s, sleep
from mesh.errors import PeerFault
from mesh.ids import jittered
from mesh.pool import Pool, Reply, Target
from mesh.wire import RawHeader, quote_segment

LANES: Final = 4
"""Polls to one gateway at once: one or two wait for work, of a busy agent all but one; the rest carry answers."""
BUSY_TASKS: Final = 4
"""Tasks in a frame that show that more are coming."""
BUSY_S: Final = 1.0
WAIT_MS: Final = 20_000
GRACE_S: Final = 10.0
REPLY_BYTES_MAX: Final = 64 << 20
"""Of a frame: 4 MiB of inputs as the gateway counts them, in base64 and with their heads."""
RETRY_FIRST_MS: Final = 100
RETRY_MAX_MS: Final = 2_000
REFUSED_RETRY_S: Final = 5.0
LAST_ANSWERS_S: Final = 5.0
TURNS: Final = 3
"""Turns of the event loop that quick handlers get, so that their answers leave with the next poll."""

logger: Final = logging.getLogger("mesh.agent")


class _Line:
    """One gateway, as the lanes to it see it."""

    __slots__ = ("busy_until_s", "delay_ms", "gateway", "path", "refused_until_s", "said", "seats", "waiting")

    def __init__(self, gateway: Target, endpoint: str) -> None:
        self.gateway = gateway
        self.path = gateway.under(f"/v1/endpoints/{quote_segment(endpoint)}/poll".encode())
        self.waiting = 0
        """Polls that wait for work, and how many tasks they ask for."""
        self.seats = 0
        self.busy_until_s = 0.0
        self.refused_until_s = 0.0
        """Polls are refused; answers still go out by their own route."""
        self.delay_ms = RETRY_FIRST_MS
        self.said = ""


class Puller:
    """The lanes of one agent."""

    def __init__(
        self,
        pool: Pool,
        gateways: Sequence[Target],
        fetched: Fetched,
        outbox: Outbox,
        *,
        endpoint: str,
        instance: str,
        key: str | None,
        lease_ms: int,
        offered: dict[str, Any],
        declared: asyncio.Event,
        redeclare: Callable[[], None],
    ) -> None:
        """`offered`: further fields of every poll; `declared`: the registry has the endpoint; `redeclare`: no more."""
        self._pool = pool
        self._lines = [_Line(gateway, endpoint) for gateway in gateways]
        self._fetched = fetched
        self._outbox = outbox
        self._declared = declared
        self._redeclare = redeclare
        self._booking = Booking(pool, gateways, outbox)
        self._what = f"{endpoint}/{instance}"
        self._headers: list[RawHeader] = [(b"content-type", b"application/json")]
        if key is not None:
            self._headers.append((b"authorization", f"Bearer {key}".encode("latin-1")))
        self._constant = encode({"instance": instance, "lease_ms": lease_ms, **offered})[1:]
        self._promised = 0
        self._tasks: list[asyncio.Task[None]] = []
        self.known = asyncio.Event()
        """Set once a gateway has taken a poll."""

    def begin(self) -> None:
        """Poll in the background."""
        self._start([self._lane(line) for line in self._lines for _ in range(LANES)])

    async def leave(self) -> None:
        """Ask for no more work; answers still go out. What waiting polls were to bring is given back by the gateway."""
        if self._tasks:
            await self._stop()
            self._start([self._flush()])

    async def end(self) -> None:
        """Let the last answers out, for a bounded time."""
        end_s = monotonic_s() + LAST_ANSWERS_S
        while (len(self._outbox) or self._booking.busy) and self._tasks and monotonic_s() < end_s:
            await sleep(RETRY_FIRST_MS / 1000)
        await self._stop()
        if len(self._outbox):
            logger.error("%s ends with %d answers that no gateway took", self._what, len(self._outbox))

    def _start(self, duties: Sequence[Any]) -> None:
        create = asyncio.get_running_loop().create_task
        self._tasks = [create(duty) for duty in duties]

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def _flush(self) -> None:
        while True:
            if not len(self._outbox):
                self._outbox.news.clear()
                await self._outbox.news.wait()
            if not await self._booking.book(self._outbox.take()):
                await sleep(RETRY_FIRST_MS / 1000)

    # Lanes

    async def _lane(self, line: _Line) -> None:
        await self._declared.wait()
        while True:
            try:
                await self._step(line)
            except PeerFault as fault:
                self._say(line, logging.WARNING, f"cannot poll {line.gateway.origin}: {fault.detail}")
                pause_ms, line.delay_ms = line.delay_ms, min(line.delay_ms * 2, RETRY_MAX_MS)
                await sleep(jittered(pause_ms, 0.2) / 1000)
            except Exception:  # a lane that ended would be missed by nobody
                logger.exception("%s: a poll failed", self._what)
                await sleep(RETRY_MAX_MS / 1000)

    async def _step(self, line: _Line) -> None:
        """One poll, or one look at whether there is anything to poll for."""
        answers = self._outbox.take()
        rest_s = line.refused_until_s - monotonic_s()
        if answers and (rest_s > 0 or answers[0].outcome is not None):
            await self._booking.book(answers)
            return
        seats = self._share()
        # A second poll waits when the first one went out while all seats were taken. Of many tasks several do, so that
        # gateway, store and agent are at work at once, each on frames of its own, instead of one after the other; one
        # of them comes with the answers to the last frame, and not an empty one before it.
        busy = line.busy_until_s > monotonic_s()
        more = (LANES - 1 if answers else LANES - 2) if busy else 0 if line.seats else 2
        waits = not line.waiting or (seats > 0 and line.waiting < more)
        if answers or (waits and rest_s <= 0):
            await self._poll(line, answers, seats, waits=waits)
            return
        self._outbox.news.clear()
        try:
            async with asyncio.timeout(rest_s if waits else None):
                await self._outbox.news.wait()
        except TimeoutError:
            return

    def _share(self) -> int:
        """Tasks that one more poll may ask for: half of what this gateway's part of the seats has left."""
        free = self._fetched.free - self._promised
        return -(-free // (2 * len(self._lines))) if free > 0 else 0

    async def _poll(self, line: _Line, answers: list[Answer], seats: int, *, waits: bool) -> None:
        wait_ms = (WAIT_MS if self.known.is_set() else 0) if waits else 0
        fresh = b"" if self.known.is_set() else b'"fresh":true,'
        body = b'{"max":%d,"wait_ms":%d,"answers":[%b],%b%b' % (
            seats, wait_ms, b",".join([answer.body for answer in answers]), fresh, self._constant
        )  # fmt: skip
        self._promised += seats
        if waits:
            line.waiting += 1
            line.seats += seats
        frame: Frame | None = None
        try:
            reply = await self._pool.post(
                line.gateway,
                line.path,
                self._headers,
                body,
                timeout_s=wait_ms / 1000 + GRACE_S,
                reply_bytes_max=REPLY_BYTES_MAX,
            )
            frame = self._read(line, reply)
        finally:
            self._promised -= seats
            if waits:
                line.waiting -= 1
                line.seats -= seats
            if frame is None:
                self._outbox.back(answers)
        if frame is not None:
            await self._take(line, frame, answers)

    def _read(self, line: _Line, reply: Reply) -> Frame | None:
        """The frame, or None when polls are refused here. Raises PeerFault for what may pass."""
        if reply.status == 200:  # noqa: PLR2004
            try:
                return read_frame(reply.body)
            except msgspec.MsgspecError as error:
                raise PeerFault(f"{line.gateway.origin} answered something else: {error}") from None
        detail = f"{line.gateway.origin} answered {reply.status} {reply.body[:300].decode('utf-8', 'replace')}"
        if reply.status in (408, 425, 429) or reply.status >= 500:  # noqa: PLR2004
            raise PeerFault(detail)
        if reply.status == 404:  # noqa: PLR2004
            self._redeclare()
        self._say(line, logging.ERROR, f"may not poll: {detail}")
        line.refused_until_s = monotonic_s() + REFUSED_RETRY_S
        return None

    async def _take(self, line: _Line, frame: Frame, answers: list[Answer]) -> None:
        self._booking.booked(answers, frame.answers)
        self._say(line, logging.INFO, f"asks {line.gateway.origin} for work")
        line.delay_ms = RETRY_FIRST_MS
        self.known.set()
        for cancel in frame.cancels:
            self._fetched.cancel(cancel)
        self._fetched.begin(frame.tasks, line.gateway)
        if len(frame.tasks) >= BUSY_TASKS:
            line.busy_until_s = monotonic_s() + BUSY_S
            if line.waiting < LANES - 2:
                self._outbox.news.set()
        if frame.draining:
            line.refused_until_s = monotonic_s() + REFUSED_RETRY_S
            why = "it was told to, its version was, or it was removed from the registry"
            self._say(line, logging.WARNING, f"drains: {why}; it gets no work until that is taken back")
        if frame.tasks:
            for _ in range(TURNS):
                await sleep(0)

    def _say(self, line: _Line, level: int, what: str) -> None:
        # Said when it changes: a gateway that is down for an hour is one line.
        if what != line.said:
            line.said = what
            logger.log(level, "%s %s", self._what, what)
