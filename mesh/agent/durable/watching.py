"""Long-polls for news of journals: one request asks about many attempts, and is answered when one of them has any.

A few requests are out at most; who comes while all are out joins the next. An attempt asks only while it stays in
memory for a child, so nothing runs here for those that are suspended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from mesh.agent.durable.hub import JSON_HEADER, Address, Clock
from mesh.agent.durable.link import Ack, Status
from mesh.clock import sleep
from mesh.errors import PeerFault
from mesh.pool import Pool, Target

POLLS_MAX: Final = 8
TASKS_MAX: Final = 500
WAIT_MS: Final = 1000
GATHER_S: Final = 0.01
TIMEOUT_S: Final = 5.0
REST_S: Final = 0.5
"""After a fault; who asked is told that nothing is known, and asks again."""
REPLY_BYTES_MAX: Final = 64 << 20
"""Each journal with news sends one entry along, of 1 MiB at most."""
PATH: Final = b"/v1/tasks/read"

logger: Final = logging.getLogger("mesh.agent")


class _Page(msgspec.Struct):
    status: str
    length: int = 0
    cancel: bool = False


class _Pages(msgspec.Struct):
    tasks: list[_Page]
    now_ms: int = 0


_read: Final = msgspec.json.Decoder(_Pages).decode
_write: Final = msgspec.json.Encoder().encode


class _Asked(NamedTuple):
    address: Address
    after: int
    future: asyncio.Future[Ack]
    patient: bool


class Watch:
    """The long-polls of one process. Its own pool: they hold connections that entries must not wait for."""

    def __init__(self, clock: Clock, gateways: Sequence[Target]) -> None:
        self._pool = Pool(max_per_host=POLLS_MAX)
        self._clock = clock
        self._gateways = gateways
        self._waiting: list[_Asked] = []
        self._polls: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._soon: asyncio.TimerHandle | None = None

    def ask(self, address: Address, after: int, *, patient: bool) -> asyncio.Future[Ack]:
        """Done when the journal has more than `after`, when there is other news, or after a while without any.

        Not `patient`: done as soon as it was looked at. A wanted cancel is news to the gateway each time it is asked,
        and would answer for everybody who shares the question.
        """
        future: asyncio.Future[Ack] = self._loop.create_future()
        self._waiting.append(_Asked(address, after, future, patient))
        self._later()
        return future

    async def close(self) -> None:
        for task in tuple(self._polls):
            task.cancel()
        await asyncio.gather(*self._polls, return_exceptions=True)
        await self._pool.close()

    def _later(self) -> None:
        if self._soon is None and self._waiting and len(self._polls) < POLLS_MAX:
            self._soon = self._loop.call_later(GATHER_S, self._begin)

    def _begin(self) -> None:
        self._soon = None
        waiting = [each for each in self._waiting if not each.future.done()]
        self._waiting = []
        together: dict[tuple[str, bytes, bool], list[_Asked]] = {}
        for each in waiting:
            gateway = each.address.gateway
            together.setdefault((gateway.origin, gateway.path, each.patient), []).append(each)
        for asked in together.values():
            if len(self._polls) >= POLLS_MAX:
                self._waiting += asked
                continue
            self._waiting += asked[TASKS_MAX:]
            task = self._loop.create_task(self._poll(asked[:TASKS_MAX]))
            self._polls.add(task)
            task.add_done_callback(self._polled)
        self._later()

    def _polled(self, task: asyncio.Task[None]) -> None:
        self._polls.discard(task)
        self._later()

    async def _poll(self, asked: list[_Asked]) -> None:
        first = asked[0].address.gateway
        tasks = [{"token": each.address.token, "after": each.after, "limit": 1} for each in asked]
        body = _write({"tasks": tasks, "wait_ms": WAIT_MS if asked[0].patient else 0})
        pages: list[_Page] = []
        for target in [first, *(each for each in self._gateways if each.origin != first.origin)]:
            try:
                reply = await self._pool.post(
                    target,
                    target.under(PATH),
                    [JSON_HEADER],
                    body,
                    timeout_s=WAIT_MS / 1000 + TIMEOUT_S,
                    reply_bytes_max=REPLY_BYTES_MAX,
                )
                answer = _read(reply.body) if reply.status == 200 else None  # noqa: PLR2004
            except (PeerFault, msgspec.MsgspecError) as fault:
                logger.info("no news of journals: %s", fault)
                continue
            if answer is not None and len(answer.tasks) == len(asked):
                self._clock.told(answer.now_ms)
                pages = answer.tasks
                break
        if not pages:
            await sleep(REST_S)
            pages = [_Page("ok")] * len(asked)
        for each, page in zip(asked, pages, strict=True):
            if not each.future.done():
                # A lost lease is found by whatever is appended next, which knows what to do about it.
                status: Status = "ended" if page.status == "ended" else "ok"
                each.future.set_result(Ack(status, max(page.length, each.after), page.cancel))
