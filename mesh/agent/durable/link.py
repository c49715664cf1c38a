"""The port between an attempt and the mesh: what it is given, what it asks for. Pure declarations.

The HTTP side is hub.py, the test kit has one in memory (mesh/testing). Futures of a Link do not fail for faults of the
line: they are repeated until they are answered or the attempt is closed. Nothing here knows how a task arrived.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from mesh.agent.durable.attempt import Attempt
    from mesh.agent.durable.blobs import Reference
    from mesh.blob import Blob

MARK: Final = "__mesh_durable__"
"""Where a decorated function carries what `durable` has read of it."""

Status: TypeAlias = Literal["ok", "grown", "lost", "ended", "unknown", "invalid", "full"]


class Ack(NamedTuple):
    """`length`: entries (or chunks) stored by now. `cancel`: the caller wants the operation to end."""

    status: Status
    length: int
    cancel: bool = False
    detail: str = ""


class Page(NamedTuple):
    """Entries after those asked for; `length` of the whole journal."""

    status: Status
    entries: Sequence[bytes]
    length: int
    cancel: bool = False


class ChildOrder(NamedTuple):
    """A child operation: `parent_key` is its name in the parent's journal, `key` its idempotency key, `body` JSON.

    `keep`: it goes on when the parent has ended.
    """

    key: str
    parent_key: str
    endpoint: str
    service: str
    operation: str
    body: bytes | None
    timeout_ms: int | None
    labels: Mapping[str, str]
    keep: bool


class Child(NamedTuple):
    """A started child. `blocked`: why nothing is sent to it now."""

    id: str
    blocked: str | None = None


@dataclass(slots=True)
class Task:
    """One attempt of a durable operation, however it arrived.

    journal            entries recorded before it
    cancel_requested   the caller has asked for the end already
    detach             called once, at the first journaled action: whoever holds a request open for the answer need not
    """

    operation_id: str
    run: int
    attempt: int
    namespace: str
    headers: Mapping[str, str]
    deadline_at_ms: int | None
    journal: int
    cancel_requested: bool
    detach: Callable[[], None]


class Link(Protocol):
    """One attempt's line to the mesh."""

    def now_ms(self) -> int:
        """The mesh's time."""
        ...

    def sure(self) -> bool:
        """Whether the lease is known to hold now, without asking. Also from threads."""
        ...

    def renew(self) -> asyncio.Future[Ack]:
        """Ask the mesh to renew the lease: "ok" when it holds."""
        ...

    def append(self, at: int, entries: Sequence[bytes]) -> asyncio.Future[Ack]:
        """Append entries that follow the first `at`."""
        ...

    def read(self, after: int, limit: int) -> asyncio.Future[Page]: ...

    def watch(self, after: int, *, cancel: bool) -> asyncio.Future[Ack]:
        """Done when the journal has more than `after` entries, there is other news, or after a while without any.

        `cancel`: that its end is wanted is known, and no news.
        """
        ...

    def suspend(self, at: int, wake_at_ms: int | None, *, cancel: bool) -> asyncio.Future[Ack]:
        """Hand the operation back, to be woken then, by a child's end or a cancel. `cancel`: its end is known."""
        ...

    def emit(self, at: int, chunks: Sequence[bytes]) -> asyncio.Future[Ack]: ...

    def put_off(self, kind: str, message: str) -> asyncio.Future[Ack]:
        """The attempt is over: what it needs cannot be had now. The next one comes later, and this counts for none."""
        ...

    async def keep(self, blob: Blob, told: Callable[[str], None]) -> dict[str, Any] | None:
        """Keep bytes outside the journal, durably: what an entry has in their place; None: no mesh that does.

        `told` hears why it takes long. Raises TooLarge; Malformed for a file that changes; another Refusal: lost.
        """
        ...

    async def fetch(self, ref: Reference, *, as_file: bool) -> Blob:
        """Bytes that were kept, checked. Raises Unavailable: not to be had now; TooLarge; another Refusal: lost."""
        ...

    async def start_child(self, order: ChildOrder) -> Child:
        """Start a child, or find the one started before with this key. Raises Refusal."""
        ...

    async def cancel_child(self, operation_id: str) -> None:
        """Ask for a child's end; never raises."""
        ...


class Hosted(NamedTuple):
    """What a host gives to the durable handler it calls. `attached` gets the attempt, to cancel or end it."""

    task: Task
    link: Link
    tools: Tools
    attached: Callable[[Attempt], None]


hosted: ContextVar[Hosted | None] = ContextVar("mesh_hosted", default=None)
"""For the handler that this code is about to call."""


@dataclass(slots=True)
class Tools:
    """What an attempt uses of its process.

    executor    threads for plain `def` steps
    handlers    threads for plain `def` handlers; others, since a handler's thread waits for its steps'
    linger_ms   how long an attempt that only waits stays in memory before it suspends
    settle_s    how long all must be quiet before that is looked at
    begins      called with the key before each call of a step's function; for the test kit
    blocked     called with 1 when a handler's thread begins to wait for the loop, with -1 after; for the test kit
    """

    executor: Executor | None = None
    handlers: Executor | None = None
    linger_ms: int = 500
    settle_s: float = 0.005
    begins: Callable[[str], None] | None = None
    blocked: Callable[[int], None] | None = None
