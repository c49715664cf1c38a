"""Who gets what: polls that wait at this gateway, starts that find one of them, and the line of those that did not.

A start is promised a seat first and goes into the store with it, so that one call accepts, starts and leases it. What
found no seat waits in the endpoint's line in the store; a message wakes the gateways where its agents poll, and each
takes what it has seats for. Messages are hints: the ticker tells of lines as well. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from gateway.pull.frames import CancelBody, task_json
from gateway.pull.untold import Untold
from gateway.pull.window import Poll, Window, Wish
from gateway.start_request import TOKEN_LIFE_S
from mesh.clock import monotonic_s, now_ms
from mesh.errors import MeshError
from mesh.machine import State
from mesh.store.pulls import Released
from mesh.store.verbs import Seat
from mesh.tokens import Claim

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence
    from typing import Any

    from gateway.courier import Session
    from gateway.metrics import Metrics
    from gateway.waiters import Waiters
    from mesh.store.keys import Keys
    from mesh.store.pulls import PullStore
    from mesh.store.subscriber import Subscriber
    from mesh.store.verbs import Pulled, Work
    from mesh.tokens import CompletionTokens
    from registry.catalog import Catalog, Endpoint
    from registry.routing import Router

IDLE_S: Final = 60.0
"""How long an endpoint is listened to after its last poll here: its agents may be busy, and hear of cancels later."""
LOOK_SEATS_MAX: Final = 256
HANDED_MAX: Final = 4_096
"""Tasks whose tokens are known without a look at their MAC; with more, all are forgotten."""
GONE: Final = "poller_gone"
SILENT: Final = "silent"
"""In a message of an endpoint's channel: the lease of an attempt that this instance has ended."""

_log = logging.getLogger(__name__)


class Desk:
    """The pull side of one gateway. `wake`: an endpoint's line may move (the ticker's)."""

    def __init__(
        self,
        *,
        store: PullStore,
        keys: Keys,
        subscriber: Subscriber,
        catalog: Catalog,
        router: Router,
        tokens: CompletionTokens,
        waiters: Waiters,
        session: Session,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._keys = keys
        self._subscriber = subscriber
        self._catalog = catalog
        self._router = router
        self._tokens = tokens
        self._waiters = waiters
        self._session = session
        self._metrics = metrics
        self._windows: dict[str, Window] = {}
        self._untold = Untold()
        self.handed: dict[str, Claim] = {}
        """By the tokens of tasks: what they speak for, until they are answered. Forgotten, a token is as good."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = False

    @property
    def count(self) -> int:
        """Polls that wait, for metrics."""
        return sum(len(window.all) for window in self._windows.values())

    @property
    def promised(self) -> int:
        """Seats promised to starts and looks on their way, for metrics."""
        return sum(poll.held for window in self._windows.values() for poll in window.all)

    # Polls --------------------------------------------------------------------------------------------------------

    def open(
        self, endpoint: Endpoint, instance: str, count: int, lease_ms: int, services: Sequence[str], version: str,
        *, booked: bool,
    ) -> Poll:  # fmt: skip
        """A poll begins to wait, to be closed with `close`. `booked`: it brought no answers."""
        window = self._windows.get(endpoint.id)
        if window is None:
            window = self._windows[endpoint.id] = Window(endpoint.id)
            self._subscriber.subscribe(
                self._keys.pull_channel(endpoint.id), lambda message: self._heard(endpoint.id, message)
            )
            self._sweep()
        poll = Poll(window, instance, count, lease_ms, frozenset(services), version, booked=booked)
        window.add(poll)
        poll.cancels += self._untold.take(endpoint.id, instance)
        if self._ended:
            poll.over()
        elif count and window.may_have(poll):
            self._look(window)
        return poll

    def close(self, poll: Poll, *, gone: bool) -> None:
        """It is answered, or its caller has `gone` and nothing that it was to get reached anybody."""
        poll.finish()
        window = poll.window
        window.remove(poll)
        window.idle_since_s = monotonic_s()
        if poll.claims:
            self._metrics.attempt(window.endpoint_id, "fetched", len(poll.claims))
        if gone:
            self._give_back(poll.claims)
            for cancel in poll.cancels:
                self._untold.keep(window.endpoint_id, poll.instance, cancel)

    def end(self) -> None:
        """The gateway drains: polls are answered now, and later ones at once."""
        self._ended = True
        for window in self._windows.values():
            for poll in list(window.all):
                poll.over()

    async def close_down(self, within_s: float) -> None:
        """Wait for what is being given back."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within_s)

    # Starts -------------------------------------------------------------------------------------------------------

    def reserve(self, endpoint: Endpoint, service: str, size: int, pin: str = "") -> Poll | None:
        """A seat for a start on its way into the store; then `hand` or `Poll.let_go`, whatever comes of it."""
        window = self._windows.get(endpoint.id)
        if window is None:
            return None
        self._dismiss(window)
        return window.reserve(service, size, pin)

    def reason(self, endpoint: Endpoint, pin: str = "") -> str:
        """Why a start has to wait when no seat is free here."""
        if self._router.attended(endpoint, pin):
            return "busy"
        return "no_version" if pin else "no_instance"

    def hand(self, poll: Poll, work: Work, at_ms: int) -> None:
        """The attempt is `poll.instance`'s in the store: put it into the poll's frame. `at_ms` is the store's time.

        A gateway that stood still gives it back, which is nothing where somebody has it already (P475).
        """
        head = work.head
        operation, run, attempt = work.id, head.run, head.attempt
        claim = Claim(operation, run, attempt)
        token = self._tokens.mint(operation, run, attempt, now_ms() // 1000 + TOKEN_LIFE_S)
        handed = self.handed
        if len(handed) >= HANDED_MAX:
            handed.clear()
        handed[token] = claim
        if not self._session.known(poll.lease_ms / 1000):
            poll.let_go()
            self._give_back([claim])
        elif not poll.hand(claim, task_json(work, token, poll.lease_ms, at_ms)):
            self._give_back([claim])

    # The line -----------------------------------------------------------------------------------------------------

    def wake(self, endpoint_id: str, pin: str = "") -> None:
        """The endpoint's line in the store may have work, or that of a pin."""
        window = self._windows.get(endpoint_id)
        if window is not None:
            window.news(pin)
            self._look(window)

    def dismiss(self) -> None:
        """Answer the polls of instances that drain, which are told so."""
        for window in self._windows.values():
            self._dismiss(window)

    def _dismiss(self, window: Window) -> None:
        roster = self._router.roster(window.endpoint_id)
        if roster is window.roster:
            return
        window.roster = roster
        drained = {one.id for one in roster.instances if one.draining}
        for poll in list(window.all) if drained else ():
            if poll.instance in drained:
                poll.drains = True
                poll.close()
                poll.over()

    async def caught_up(self) -> None:
        """Hear what the store has told of polls and lines so far, where there are polls."""
        if self._windows:
            await self._subscriber.caught_up()

    def look_again(self) -> None:
        """Messages may have been missed."""
        for window in self._windows.values():
            window.news()
            self._look(window)

    def _look(self, window: Window) -> None:
        if not window.looking and not self._ended and next(window.offered(), None) is not None:
            window.looking = True
            self._spawn(self._look_through(window))

    async def _look_through(self, window: Window) -> None:
        """Take from the line until it is empty or no seat is left; one such task per endpoint."""
        try:
            while not self._ended:
                wanted = window.wanted()
                if not wanted:
                    return  # the next poll looks
                for wish, polls in wanted.items():
                    window.looking_for(wish)
                    if await self._take(window, polls, wish):
                        window.left(wish)
        finally:
            window.looking = False

    async def _take(self, window: Window, polls: list[Poll], wish: Wish) -> bool:
        """One group of polls with the same wish; whether the line may have more for them."""
        skip = 0
        while True:
            self._dismiss(window)
            # Half of a poll's seats, unless more are known to wait: starts that arrive meanwhile shall find the others,
            # instead of queueing up as well.
            share = 1 if window.backlog and not wish.pin else 2
            promised = [(poll, -(-poll.free // share)) for poll in polls if poll.open and poll.free > 0]
            if not promised:
                return True
            for poll, count in promised:
                poll.promise(count)
            pulled = await self._pull(window, promised, wish, skip)
            if pulled is None:
                return False  # the ticker tells of the line again
            if not wish.pin:
                window.backlog = pulled.more
            elif pulled.stopped:
                window.stopped(wish)
            if pulled.stopped or not pulled.more:
                return False
            skip = pulled.skip

    async def _pull(
        self, window: Window, promised: Sequence[tuple[Poll, int]], wish: Wish, skip: int
    ) -> Pulled | None:
        """Have what there is for promised seats handed out; None: the store does not answer."""
        left = {id(poll): count for poll, count in promised}
        try:
            seats = [
                Seat(poll.instance, min(count, LOOK_SEATS_MAX), poll.lease_ms, poll.pin[1:])
                for poll, count in promised
            ]
            services = sorted(wish.services)
            pulled = await self._store.pull(window.endpoint_id, seats, services, skip=skip, pin=wish.pin)
            for work, instance in pulled.works:
                poll = next(poll for poll, _ in promised if poll.instance == instance and left[id(poll)] > 0)
                left[id(poll)] -= 1
                self.hand(poll, work, pulled.at_ms)
                self._waiters.tell(work.id)
        except MeshError as error:
            _log.warning("the line of endpoint %s cannot be looked at: %s", window.endpoint_id, error)
            return None
        finally:
            for poll, _ in promised:
                if left[id(poll)]:
                    poll.let_go(left[id(poll)])
        return pulled

    # Cancels ------------------------------------------------------------------------------------------------------

    def _heard(self, endpoint_id: str, message: bytes) -> None:
        """A message of the endpoint's channel (mesh/store/lua/pulling.lua)."""
        if not message or message[:1] == b"|":
            self.wake(endpoint_id, message[1:].decode())
            return
        instance, *rest = message.decode().split(" ")
        if rest == [SILENT]:
            self._silent(endpoint_id, instance)
            return
        operation, run, attempt, state = rest
        word = State(int(state)).word if State(int(state)).terminal else "canceling"
        self._tell(endpoint_id, instance, CancelBody(operation, int(run), int(attempt), word))

    def _silent(self, endpoint_id: str, instance: str) -> None:
        """Its lease ended: one that lives asks again at once, one that does not is handed nothing more."""
        window = self._windows.get(endpoint_id)
        for poll in list(window.all) if window is not None else ():
            if poll.instance == instance:
                poll.over()

    def _tell(self, endpoint_id: str, instance: str, cancel: CancelBody) -> None:
        window = self._windows.get(endpoint_id)
        poll = None if window is None else window.of(instance)
        if poll is not None:
            poll.tell(cancel)
        else:
            self._untold.keep(endpoint_id, instance, cancel)

    # What was handed to nobody ----------------------------------------------------------------------------------------

    def _give_back(self, claims: Iterable[Claim]) -> None:
        answers = [Released(*claim, GONE) for claim in claims]
        if answers:
            self._spawn(self._release(answers))

    async def _release(self, answers: list[Released]) -> None:
        try:
            await self._store.answers(answers, session=self._session.name, alone=False)
        except MeshError as error:
            _log.warning("%d attempts reached nobody; their leases will end: %s", len(answers), error)
        for answer in answers:
            self._waiters.tell(answer.id)

    def _sweep(self) -> None:
        """Stop listening to endpoints that nobody polled for a while."""
        before_s = monotonic_s() - IDLE_S
        for endpoint_id, window in list(self._windows.items()):
            if not window.all and window.idle_since_s and window.idle_since_s < before_s:
                del self._windows[endpoint_id]
                self._subscriber.unsubscribe(self._keys.pull_channel(endpoint_id))
                self._untold.forget(endpoint_id)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            # Leases repair what one broken step left undone.
            _log.error("the desk failed", exc_info=fault)
