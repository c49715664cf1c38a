"""Time: beats the session, fires due timers, moves waiting lines, gives back what nobody here works on.

Each duty is a `step` that a test can call; `run` paces them. Several gateways do this side by side without a leader:
claims are leases, so doing it twice is harmless.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from mesh.clock import boot_s, monotonic_s, sleep
from mesh.errors import ConfigError, StoreUnsafe, Unavailable
from mesh.ids import short_id
from mesh.store.starting import NoSession
from mesh.store.verbs import LOOK

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.courier import Courier, Session
    from gateway.payloads import Payloads
    from gateway.pull.desk import Desk
    from mesh.store.store import Store
    from registry.catalog import Catalog, Endpoint
    from registry.routing import Router

BEAT_S: Final = 0.5
TAKEOVER_S: Final = 0.02
"""Between two beats while dead sessions still hold something: other calls of the store go in between."""
HELD_S: Final = 1.0
CLAIM_S: Final = 0.25
CLAIM_COUNT: Final = 64
BUSY_MAX: Final = 2_000
"""Tries under way above which nothing more is claimed; a start that a caller waits for is still sent."""
LINE_COUNT: Final = 64
HELD_LOOK: Final = 4_000
RELABEL_S: Final = 1.0
RELABEL_MAX: Final = 64
"""Lines in one go that are told why they do not move: those that do move come first."""

_log = logging.getLogger(__name__)


class Ticker:
    """The clockwork of one gateway."""

    def __init__(
        self,
        *,
        name: str,
        exclusive: bool,
        store: Store,
        courier: Courier,
        desk: Desk,
        catalog: Catalog,
        router: Router,
        session: Session,
        recheck: Callable[[], Awaitable[None]],
        payloads: Payloads,
    ) -> None:
        """`recheck` raises StoreUnsafe when the store is no longer the one that was joined."""
        self._name = name
        self._exclusive = exclusive
        self._store = store
        self._courier = courier
        self._desk = desk
        self._catalog = catalog
        self._router = router
        self._session = session
        session.ask = self.beat
        self._recheck = recheck
        self._payloads = payloads
        self._claim_now = asyncio.Event()
        self._joining = asyncio.Lock()
        self._lines: set[str] = set()
        self._strangers: set[str] = set()
        self._relabel_at_s = 0.0
        self._held_at_s = 0.0
        self._claim_at_s = 0.0
        self._left = 0
        self._tasks: list[asyncio.Task[None]] = []
        self.sessions = 0
        """Gateways alive at the last beat, this one included."""
        self.beat_at_s = 0.0

    def wake(self, line: str) -> None:
        """Look now: a slot became free, a timer was set before the next look (LOOK), or `line` has work."""
        if line:
            if line == LOOK:
                self._claim_at_s = 0.0
            else:
                self._lines.add(line)
            self._claim_now.set()

    async def join(self) -> None:
        """Enter the store's list of sessions under a new name; the earlier sessions of this gateway are dead."""
        if self._session.name:
            await self._recheck()
        name = f"{self._name}.{short_id('s')}"
        sent_at_s = boot_s()
        beat = await self._store.beat(name, join=True, replaces=f"{self._name}." if self._exclusive else "")
        self._session.name = name
        self._session.answered(sent_at_s)
        self.sessions = beat.sessions
        self._strangers.clear()
        await self._catalog.refresh(beat.registry_version, beat.at_ms)

    async def rejoin(self, lost: str) -> None:
        """Join anew unless somebody has done so since `lost` was refused: two sessions would share the work here."""
        async with self._joining:
            if self._session.name == lost:
                await self.join()

    async def beat(self) -> None:
        """Stay alive, learn of registry changes, take over, and give back leases that nobody here works on."""
        name, sent_at_s = self._session.name, boot_s()
        beat = await self._store.beat(name)
        if not beat.alive:
            _log.warning("session %s was taken for dead; joining anew", name)
            await self.rejoin(name)
            return
        self._session.answered(sent_at_s)
        self.sessions = beat.sessions
        self.beat_at_s = monotonic_s()
        self._left = beat.left
        await self._catalog.refresh(beat.registry_version, beat.at_ms)
        self._desk.dismiss()
        if self.beat_at_s - self._held_at_s < HELD_S:
            return
        self._held_at_s = self.beat_at_s
        # A lease whose reply was lost (the store was killed in between) is known to the store alone. Seen twice, a
        # second apart, it is no longer a call on its way.
        held = await self._store.held(self._session.name, HELD_LOOK)
        strangers = {*held} - self._courier.in_flight
        orphans = strangers & self._strangers
        self._strangers = strangers
        if orphans:
            await self._store.hand_back(self._session.name, sorted(orphans))

    async def claim(self) -> float:
        """Fire what is due; seconds until the next look."""
        room = BUSY_MAX - self._courier.busy
        if room <= 0:
            return CLAIM_S
        claimed = await self._store.claim(self._session.name, min(room, CLAIM_COUNT))
        self._courier.take(claimed.works)
        self._lines.update(claimed.lines)
        if len(claimed.works) >= CLAIM_COUNT:
            return 0.0
        if claimed.next_at_ms is None:
            return CLAIM_S
        return min(max((claimed.next_at_ms - claimed.at_ms) / 1000, 0.005), CLAIM_S)

    async def move_lines(self) -> None:
        """Send the heads of waiting lines whose endpoint can be reached; correct what the others show."""
        lines, self._lines = self._lines, set()
        # That a lease ended, as the last claim may have done, is told in a message: who fell silent gets nothing of it.
        await self._desk.caught_up()
        relabel = monotonic_s() >= self._relabel_at_s
        if relabel:
            self._relabel_at_s = monotonic_s() + RELABEL_S
        stuck: list[tuple[str, str, Endpoint | None]] = []
        for line in await self._with_pins(lines, relabel=relabel):
            endpoint_id, _, pin = line.partition("|")
            endpoint = self._catalog.by_id(endpoint_id)
            if endpoint is not None and endpoint.pulls:
                self._desk.wake(endpoint_id, pin)
                if relabel:
                    reason = self._desk.reason(endpoint, pin)
                    await self._store.unblock(endpoint_id, self._session.name, LINE_COUNT, reason, pin=pin)
                continue
            room = min(LINE_COUNT, BUSY_MAX - self._courier.busy)
            capacity = min(room, self._router.capacity(endpoint, pin)) if endpoint is not None else 0
            if capacity > 0:
                probe = endpoint is not None and self._router.probing(endpoint)
                works, stopped = await self._store.unblock(
                    endpoint_id, self._session.name, capacity, probe=probe, pin=pin
                )
                self._courier.take(works, from_line=True)
                if len(works) == LINE_COUNT:
                    self.wake(line)
                elif works or stopped == "rate":
                    # A line that moves is looked at again by itself: of very many, the store tells of some at a time.
                    self._lines.add(line)
            else:
                stuck.append((endpoint_id, pin, endpoint))
        for endpoint_id, pin, endpoint in stuck[:RELABEL_MAX] if relabel else ():
            reason = self._router.hindrance(endpoint, pin) if endpoint is not None else "endpoint_deleted"
            if reason:
                await self._store.unblock(endpoint_id, self._session.name, LINE_COUNT, reason, pin=pin)

    async def _with_pins(self, lines: set[str], *, relabel: bool) -> list[str]:
        """The lines to look at, with those of pins that some instance satisfies; what waits for others can wait."""
        found = [line for line in lines if not line.endswith("|")]
        for line in lines - set(found):
            endpoint = self._catalog.by_id(line[:-1])
            wanted = self._router.pins(endpoint) if endpoint is not None else []
            pins = await self._catalog.waiting_pins(line[:-1], wanted) if endpoint is None or wanted else []
            if endpoint is not None and endpoint.pulls and relabel:
                # Agents who were at work are gone: what waits for them shows it.
                pins = list({*pins, *await self._catalog.waiting_pins(line[:-1], [])})
            found += [line + pin for pin in pins]
        return found

    def start(self) -> None:
        """Run until `stop`."""
        self._tasks = [
            asyncio.create_task(self._run("beat", self._beat_once), name="mesh-beat"),
            asyncio.create_task(self._run("claim", self._claim_once), name="mesh-claim"),
            asyncio.create_task(self._catalog.run(), name="mesh-catalog"),
            asyncio.create_task(self._run("sweep", self._sweep_once), name="mesh-sweep"),
        ]

    async def stop(self) -> None:
        """Stop looking and beating."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks = []

    async def _beat_once(self) -> None:
        await self.beat()
        await sleep(TAKEOVER_S if self._left else BEAT_S)

    async def _sweep_once(self) -> None:
        await self._payloads.sweep_once(self._store)

    async def _claim_once(self) -> None:
        name = self._session.name
        try:
            # A line that moves fires no timer: under load that would be a look for every slot that becomes free.
            if (now_s := monotonic_s()) >= self._claim_at_s:
                self._claim_at_s = now_s + CLAIM_S
                pause_s = await self.claim()
                self._claim_at_s = min(self._claim_at_s, now_s + pause_s)
            await self.move_lines()
            pause_s = self._claim_at_s - monotonic_s()
        except NoSession:
            await self.rejoin(name)
            return
        if pause_s > 0:
            try:
                async with asyncio.timeout(pause_s):
                    await self._claim_now.wait()
            except TimeoutError:
                pass
        self._claim_now.clear()

    async def _run(self, duty: str, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await step()
            except (Unavailable, StoreUnsafe, ConfigError) as error:
                _log.warning("%s: %s", duty, error)
                await sleep(CLAIM_S)
            except Exception:  # noqa: BLE001 - time must go on whatever one step ran into
                _log.exception("%s failed", duty)
                await sleep(CLAIM_S)
