"""What the attempts of one process say to the mesh, together: one request carries the entries of many.

While a request is out, what comes in gathers for the next. A request that no gateway answers goes to the next gateway
and is repeated until somebody answers or nobody waits any more; that is safe, since every append names the length it
builds on. Knows tokens and gateways, no entries and no code.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any, Final, Protocol, cast

import msgspec

from mesh.agent.durable.link import Ack, Status
from mesh.clock import now_ms, sleep
from mesh.errors import PeerFault
from mesh.ids import jittered
from mesh.pool import POOL_CLOSED, Pool, Reply, Target
from mesh.wire import RawHeader

TASKS_MAX: Final = 500
BODY_BYTES_MAX: Final = 1 << 20
"""A request ends here, unless its first task alone is larger; the gateway takes twice that."""
REPLY_BYTES_MAX: Final = 1 << 20
TIMEOUT_S: Final = 10.0
IN_FLIGHT_MAX: Final = 2
"""Requests of one verb to one gateway: while one is at the disk, the next is on its way."""
RETRY_FIRST_MS: Final = 50
RETRY_MAX_MS: Final = 2000
RETRY_SPREAD: Final = 0.3
LOST_GRACE_S: Final = 1.0
"""A later attempt of the same run may be on its way to this very process, with a token that counts."""
REFUSED: Final = frozenset({400, 413, 422})
STATUSES: Final = frozenset({"ok", "grown", "lost", "ended", "unknown", "invalid", "full"})
CANCEL: Final = "cancel"
"""A heartbeat's way to say "ok", and that the caller wants the operation to end."""
JSON_HEADER: Final[RawHeader] = (b"content-type", b"application/json")

logger: Final = logging.getLogger("mesh.agent")


class Address(Protocol):
    """Where an attempt's requests go: its task token, its gateway. Both change when a later attempt comes here."""

    @property
    def token(self) -> str: ...
    @property
    def gateway(self) -> Target: ...


class _Answer(msgspec.Struct):
    status: str
    length: int = 0
    cancel: bool = False


class _Answers(msgspec.Struct):
    tasks: list[_Answer]
    now_ms: int = 0


class _Problem(msgspec.Struct):
    detail: str = ""


_read: Final = msgspec.json.Decoder(_Answers).decode
_read_problem: Final = msgspec.json.Decoder(_Problem).decode


class Clock:
    """The mesh's time, as its answers tell it."""

    def __init__(self) -> None:
        self._ahead_ms = 0

    def told(self, mesh_ms: int) -> None:
        if mesh_ms:
            self._ahead_ms = mesh_ms - now_ms()

    def now_ms(self) -> int:
        return now_ms() + self._ahead_ms


class Item:
    """One task of a request: `fields` is the JSON after its token."""

    __slots__ = ("address", "done", "fields", "token")

    def __init__(self, address: Address, fields: bytes) -> None:
        self.address = address
        self.fields = fields
        self.done: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        self.token = ""


class Verb:
    """One verb of /v1/tasks towards one gateway: what waits, what is out.

    gateways   base URLs as configured, asked when the one that sent the work does not answer
    """

    def __init__(self, name: str, pool: Pool, clock: Clock, gateway: Target, gateways: Sequence[Target]) -> None:
        self._path = f"/v1/tasks/{name}".encode()
        self._pool = pool
        self._clock = clock
        self._targets = [gateway, *(each for each in gateways if each.origin != gateway.origin)]
        self._waiting: deque[Item] = deque()
        self._out: set[asyncio.Task[None]] = set()
        self._soon = False
        self._loop = asyncio.get_running_loop()

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._out

    def put(self, item: Item) -> asyncio.Future[Ack]:
        """Done with the answer; cancel it when nobody waits any more."""
        self._waiting.append(item)
        if not self._soon and len(self._out) < IN_FLIGHT_MAX:
            self._soon = True
            self._loop.call_soon(self._send)
        return item.done

    def _send(self) -> None:
        self._soon = False
        while self._waiting and len(self._out) < IN_FLIGHT_MAX:
            items: list[Item] = []
            size = 0
            while self._waiting and len(items) < TASKS_MAX:
                size += len(self._waiting[0].fields)
                if items and size > BODY_BYTES_MAX:
                    break
                item = self._waiting.popleft()
                if not item.done.done():
                    items.append(item)
            if items:
                self._spawn(self._deliver(items))

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._out.discard(task)
        self._send()

    async def _deliver(self, items: list[Item]) -> None:
        """Until everybody has an answer."""
        delay_ms, trouble = RETRY_FIRST_MS, ""
        while items:
            for target in self._targets:
                why = await self._ask(target, items)
                if not why:
                    return
                if why != trouble:
                    trouble = why  # said when it changes: a gateway that is away for an hour is one line
                    logger.warning("%s is not taken yet: %s", self._path.decode(), trouble)
            await sleep(jittered(delay_ms, RETRY_SPREAD) / 1000)
            delay_ms = min(delay_ms * 2, RETRY_MAX_MS)
            items = [item for item in items if not item.done.done()]

    async def _ask(self, target: Target, items: list[Item]) -> str:
        """One request; why it must be repeated, or "" when everybody has an answer or somebody else cares for it."""
        for item in items:
            item.token = item.address.token
        tasks = b",".join([b'{"token":"%b",%b}' % (item.token.encode("latin-1"), item.fields) for item in items])
        body = b'{"tasks":[%b]}' % tasks
        path = target.under(self._path)
        try:
            reply = await self._pool.post(
                target, path, [JSON_HEADER], body, timeout_s=TIMEOUT_S, reply_bytes_max=REPLY_BYTES_MAX
            )
        except PeerFault as fault:
            if fault.code == POOL_CLOSED:
                for item in items:
                    item.done.cancel()  # the agent has ended, and with it everybody who waits
                return ""
            return fault.detail
        if reply.status in REFUSED:
            self._refused(items, reply)
        elif reply.status != 200:  # noqa: PLR2004
            return f"{target.origin} answered {reply.status}"
        elif not self._answered(items, reply):
            return f"{target.origin} answered something else"
        return ""

    def _answered(self, items: list[Item], reply: Reply) -> bool:
        """Give everybody their answer; False when these are none."""
        try:
            answers = _read(reply.body)
        except msgspec.MsgspecError:
            return False
        if len(answers.tasks) != len(items):
            return False
        self._clock.told(answers.now_ms)
        for item, answer in zip(items, answers.tasks, strict=True):
            if answer.status == "lost":
                self._spawn(self._lost(item))
            elif not item.done.done():
                cancel = answer.cancel or answer.status == CANCEL
                item.done.set_result(Ack(_status(answer.status), answer.length, cancel))
        return True

    def _refused(self, items: list[Item], reply: Reply) -> None:
        """The body as a whole is not taken: each goes alone, and the one that is to blame hears of it."""
        if len(items) > 1:
            for item in items:
                self._spawn(self._deliver([item]))
            return
        try:
            detail = _read_problem(reply.body).detail
        except msgspec.MsgspecError:
            detail = ""
        if not items[0].done.done():
            items[0].done.set_result(Ack("full", 0, detail=detail or f"the mesh answered {reply.status}"))

    async def _lost(self, item: Item) -> None:
        """The attempt was given up, unless the next one comes to this very process and goes on with its work."""
        give_up_s = self._loop.time() + LOST_GRACE_S
        while not item.done.done():
            if item.address.token != item.token:
                await self._deliver([item])
            elif self._loop.time() < give_up_s:
                await sleep(LOST_GRACE_S / 20)
            else:
                item.done.set_result(Ack("lost", 0, detail="another attempt has the operation"))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._out.add(task)
        task.add_done_callback(self._sent)


def _status(word: str) -> Status:
    """A word that a later gateway may say and this code does not know ends the attempt here, as a lost lease does."""
    return cast("Status", word) if word in STATUSES else "ok" if word == CANCEL else "invalid"
