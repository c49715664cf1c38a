"""What moves: takes leased deliveries (start, cancel, callback) and sees that each is tried once, beside all others.

One try per leased delivery; the lease, the attempt number and the back-off live in the store. A try that the store
could not book leaves its lease: it ends, or the ticker gives it back, and somebody tries again.
Knows nothing of the wire: starts are starts.py, cancels and callbacks deliveries.py.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from gateway.deliveries import Deliveries
from gateway.starts import Starts
from mesh.clock import boot_s
from mesh.errors import ConfigError, StoreUnsafe, Unavailable
from mesh.machine import Kind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable

    from gateway.callbacks import CallbackPlan
    from gateway.carrying import Carried
    from gateway.egress import Egress
    from gateway.metrics import Metrics
    from gateway.orders import Attempt
    from gateway.payloads import Payloads
    from gateway.waiters import Waiters
    from mesh.pool import Pool
    from mesh.store.store import Store
    from mesh.store.verbs import Work
    from mesh.tokens import CompletionTokens
    from registry.catalog import Catalog, Endpoint
    from registry.routing import Admitted, Router

_log = logging.getLogger(__name__)

_START: Final = Kind.START
_CANCEL: Final = Kind.CANCEL

KNOWN_S: Final = 2.5
"""After a beat was sent that was answered: others take a gateway for dead after 3 s of silence (P114)."""


class Session:
    """The name under which this gateway holds leases; changes when the store took it for dead.

    `ask` beats. A gateway that stood still (SIGSTOP, a paused host) goes on where it stopped, with leases that others
    may have taken over: it asks before it sends (P475).
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.ask: Callable[[], Awaitable[None]] | None = None
        self._heard_s = 0.0
        self._asking = asyncio.Lock()

    def answered(self, sent_at_s: float) -> None:
        """The store had this name among the living when it answered a beat sent at `sent_at_s`, of `boot_s`."""
        self._heard_s = sent_at_s

    def known(self, within_s: float = KNOWN_S) -> bool:
        """Whether that was less than `within_s` ago; nobody can have taken this gateway for dead."""
        return boot_s() - self._heard_s < min(within_s, KNOWN_S)

    async def renew(self) -> None:
        """Ask, once for all that wait; afterwards `name` is another where this gateway was dead. Raises Unavailable."""
        async with self._asking:
            if self.ask is not None and not self.known():
                await self.ask()


class Courier:
    """Sends. `take` is for work that a store call leased; `start` for the fresh start of a request that waits here."""

    def __init__(
        self,
        *,
        store: Store,
        pool: Pool,
        egress: Egress,
        catalog: Catalog,
        router: Router,
        tokens: CompletionTokens,
        waiters: Waiters,
        session: Session,
        metrics: Metrics,
        payloads: Payloads,
        callback_plan: CallbackPlan,
        completion_url: str,
        wake: Callable[[str], None],
    ) -> None:
        self._catalog = catalog
        self._router = router
        self.wake = wake
        self._starts = Starts(
            store=store,
            pool=pool,
            egress=egress,
            router=router,
            tokens=tokens,
            waiters=waiters,
            session=session,
            metrics=metrics,
            payloads=payloads,
            completion_url=completion_url,
            take=self.take,
            wake=wake,
        )
        self._deliveries = Deliveries(
            store=store,
            pool=pool,
            egress=egress,
            catalog=catalog,
            router=router,
            waiters=waiters,
            metrics=metrics,
            payloads=payloads,
            callback_plan=callback_plan,
        )
        self.complete = self._starts.complete
        """Record an outcome: the one way for an operation to end well."""
        self._tasks: dict[asyncio.Task[Any], str] = {}

    @property
    def busy(self) -> int:
        """Tries under way."""
        return len(self._tasks)

    @property
    def in_flight(self) -> set[str]:
        """Operations this process is working on: what `held` in the store should say."""
        return {*self._tasks.values()}

    def sent_to(self, operation_id: str) -> str:
        """The instance that a start of the operation is out at, or ""."""
        return self._starts.out.get(operation_id, "")

    def take(self, works: Iterable[Work], *, from_line: bool = False) -> None:
        """Send each of them. `from_line`: taken from an endpoint's waiting line, which knows what to probe with."""
        for work in works:
            if work.kind is _START:
                self._take_start(work, from_line=from_line)
            elif work.kind is _CANCEL:
                self._spawn(work.id, self._deliveries.cancel(work))
            else:
                self._spawn(work.id, self._deliveries.callback(work))

    def _take_start(self, work: Work, *, from_line: bool) -> None:
        endpoint = self._catalog.by_id(work.head.endpoint)
        if endpoint is None:
            self._spawn(work.id, self._starts.release(work, "endpoint_deleted"))
            return
        # What failed before goes back in line when a breaker is to be probed: it would hold it open for all others.
        may_probe = from_line or work.head.attempt == 1
        admitted = self._router.admit(endpoint, work.head.pin, may_probe=may_probe)
        if isinstance(admitted, str):
            self._spawn(work.id, self._starts.release(work, admitted))
        else:
            self.start(work, endpoint, admitted)

    def start(self, work: Work, endpoint: Endpoint, admitted: Admitted) -> None:
        """Send a leased start to the admitted instance."""
        self._spawn(work.id, self._starts.send(work, endpoint, admitted))

    async def carry(self, attempt: Attempt, carried: Carried, task: asyncio.Task[Any]) -> bool:
        """As `start`, in the present `task`, which is its request's; whether the request has still to be answered."""
        work, endpoint, admitted = attempt
        self._tasks[task] = work.id
        try:
            await self._starts.send(work, endpoint, admitted)
        except Exception as fault:  # noqa: BLE001 - told, as of a task of its own: the request waits for other tries
            _tell(work.id, fault)
        finally:
            carried.end()
            del self._tasks[task]
        return not carried.late

    def send(self, attempt: Attempt, task: asyncio.Task[Any]) -> Coroutine[Any, Any, None]:
        """As `start`, in the present `task`, the request of which is answered."""
        work, endpoint, admitted = attempt
        return self._here(task, work.id, self._starts.send(work, endpoint, admitted))

    def call_back(self, work: Work, task: asyncio.Task[Any]) -> Coroutine[Any, Any, None]:
        """As `take` of a callback, in the present `task`, the request of which is answered."""
        return self._here(task, work.id, self._deliveries.callback(work))

    async def _here(self, task: asyncio.Task[Any], operation_id: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[task] = operation_id
        try:
            await work
        except Exception as fault:  # noqa: BLE001 - told, as of a task of its own
            _tell(operation_id, fault)
        finally:
            del self._tasks[task]

    async def drain(self, grace_s: float) -> None:
        """Wait for the tries under way."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)

    def _spawn(self, operation_id: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = operation_id
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        operation_id = self._tasks.pop(task)
        fault = None if task.cancelled() else task.exception()
        if fault is not None:
            _tell(operation_id, fault)


def _tell(operation_id: str, fault: BaseException) -> None:
    if isinstance(fault, (Unavailable, StoreUnsafe, ConfigError)):
        # The lease stays; when it ends, or when this gateway finds it among what it holds, the try is repeated.
        _log.warning("operation %s: not booked: %s", operation_id, fault)
    else:
        # One broken try must not take the others down; the lease repeats it.
        _log.error("operation %s: the courier failed", operation_id, exc_info=fault)
