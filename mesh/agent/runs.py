"""Executions and the memory of them: one per request id while it runs, its answer for a while after.

Owns the tables and their caps. Knows no HTTP and decides no outcome: host.py does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
from nexusrpc.handler import StartOperationContext

from mesh.agent.context import Call, Cancellation, Home
from mesh.agent.inbound import Callback, StartHead, number_of
from mesh.agent.outcome import Outcome
from mesh.agent.routes import Route
from mesh.clock import monotonic_s
from mesh.ids import short_id

if TYPE_CHECKING:
    from mesh.agent.durable.attempt import Attempt
    from mesh.agent.durable.holding import Hold

REMEMBER_S: Final = 60.0
"""How long an answer is repeated to the same request id; covers the repeats of one attempt, not of an operation."""
REMEMBERED_MAX: Final = 10_000
REMEMBERED_BYTES_MAX: Final = 32 << 20
TOKEN_PREFIX: Final = "mesh"  # noqa: S105 - what our tokens begin with
"""Our own operation tokens, told from those that handlers mint."""


class Sink(Protocol):
    """Who fetched the tasks of runs."""

    def ended(self, run: Run) -> None:
        """Its task is over; `run.outcome` None: there is nothing to report."""

    def canceled(self, run: Run) -> None:
        """A cancel came after the handler had answered with a token of its own."""


class Waiting(Protocol):
    """A request that holds its connection for a run."""

    def tell(self) -> None:
        """The run ended or was detached."""


class Run(msgspec.Struct, eq=False):
    """One execution of a handler.

    key        names route and request id; empty when the caller sent none
    token      the host's operation token, empty until a 201 left
    outcome    None while the handler runs
    waiting    requests that hold their connection for the outcome
    doubt      set while the lease is lost and the attempt that has it may still come here; stops the work when it fires
    expiry     set while the Operation-Timeout runs; stops the work when it fires
    lost       the work is nobody's or another's: nothing is to be reported
    leased     a mesh confirmed the lease: silence makes it send the work again
    inner      the handler's own token, when it answered 201 itself; else empty
    durable    the attempt of a durable handler while it runs
    hold       what is known of the lease of a durable handler's attempt
    detached   the run goes on by itself: no request needs to be held for its outcome
    leaving    the run may have been handed back already: a later attempt is other work
    callback   of the latest attempt that came here; `head` is the first one's
    call       what `current()` gives in the handler, once it asked
    sink       who fetched the task and is told of its end; None: a request brought it, which is answered
    """

    route: Route
    key: str
    fingerprint: int
    head: StartHead
    home: Home
    callback: Callback | None
    attempt: int
    started_at_ms: int
    cancellation: Cancellation
    ctx: StartOperationContext | None = None
    call: Call | None = None
    task: asyncio.Task[None] | None = None
    outcome: Outcome | None = None
    doubt: asyncio.TimerHandle | None = None
    expiry: asyncio.TimerHandle | None = None
    token: str = ""
    inner: str = ""
    waiting: list[Waiting] = []
    lost: bool = False
    leased: bool = False
    detached: bool = False
    leaving: bool = False
    durable: Attempt | None = None
    hold: Hold | None = None
    sink: Sink | None = None

    def end(self, outcome: Outcome | None) -> None:
        """Set the outcome and answer everybody who waits for it."""
        self.outcome = outcome
        self._tell()

    def detach(self) -> None:
        """Let go of the requests that wait."""
        self.detached = True
        if self.waiting:
            # Not within this turn: what detaches may end right after, and that is the better answer.
            asyncio.get_running_loop().call_soon(self._tell)

    def current(self) -> Call:
        """As context.Running."""
        if self.call is None:
            head, route = self.head, self.route
            headers, timeout_ms = head.headers(), head.operation_timeout_ms
            request_id = self.ctx.request_id if self.ctx is not None else ""
            self.call = Call(
                self.home.endpoint, route.service, route.operation, headers.get("mesh-operation-id"),
                number_of(headers.get("mesh-run", "1")), head.attempt, headers.get("mesh-namespace"), request_id,
                headers, None if timeout_ms is None else self.started_at_ms + timeout_ms, self.cancellation,
            )  # fmt: skip
        return self.call

    def leave(self, leaving: int) -> None:
        self.leaving = leaving > 0

    def _tell(self) -> None:
        while self.waiting:
            self.waiting.pop().tell()


class Ended(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A run that is over, as far as repeats of its request must know."""

    fingerprint: int
    attempt: int
    outcome: Outcome


class Runs:
    """All runs of one host: found by request id and by token, the finished ones forgotten in time.

    What is remembered of a finished run is nothing that the garbage collector looks at: thousands of Run objects would
    cost it 10 us per request.
    """

    def __init__(self, remember_s: float = REMEMBER_S) -> None:
        self.live: set[Run] = set()
        self._remember_s = remember_s
        self._by_key: dict[str, Run] = {}
        self._by_token: dict[str, Run] = {}
        self._answers: dict[str, Ended] = {}
        self._ended_tokens: set[str] = set()
        self._inner: dict[str, str] = {}
        self._outer: dict[str, str] = {}
        self._order: deque[tuple[float, str, str, int]] = deque()
        self._bytes = 0
        self._sweeper: asyncio.TimerHandle | None = None

    def find(self, key: str) -> Run | None:
        """The run that goes on under this key."""
        return self._by_key.get(key)

    def answer(self, key: str) -> Ended | None:
        """What is remembered of the run that ended under this key a while ago."""
        return self._answers.get(key)

    def by_token(self, token: str) -> Run | None:
        return self._by_token.get(token)

    def has_ended(self, token: str) -> bool:
        """Whether the run with this token is over, and remembered."""
        return token in self._ended_tokens

    def open(self, run: Run) -> None:
        self.live.add(run)
        if run.key:
            self._by_key[run.key] = run

    def name(self, run: Run) -> str:
        """The run's token, minted when first asked for."""
        if not run.token:
            run.token = short_id(TOKEN_PREFIX)
            self._by_token[run.token] = run
        return run.token

    def alias(self, token: str, inner: str) -> None:
        """The handler behind our `token` goes on under its own; kept longer than the run, which is over with that."""
        if len(self._inner) >= REMEMBERED_MAX:
            self._outer.pop(self._inner.pop(next(iter(self._inner))), None)
        self._inner[token] = inner
        self._outer[inner] = token

    def inner(self, token: str) -> str | None:
        return self._inner.get(token)

    def outer(self, inner: str) -> str:
        """The token that the caller was given for what its handler calls `inner`; mostly the same."""
        return self._outer.get(inner, inner)

    def close(self, run: Run) -> None:
        """The run is over; its answer stays for repeats unless it was an error worth repeating, or lost."""
        self.live.discard(run)
        self.forget(run)
        outcome = run.outcome
        if outcome is None or (outcome.state == "error" and outcome.retryable) or not (run.key or run.token):
            return
        now_s, key, token, size = monotonic_s(), run.key, run.token, len(outcome.body)
        if key:
            self._answers[key] = Ended(run.fingerprint, run.attempt, outcome)
        if token:
            self._ended_tokens.add(token)
        self._order.append((now_s + self._remember_s, key, token, size))
        self._bytes += size
        self._sweep(now_s)
        if self._sweeper is None:
            # As the handler's task ends: its context must not live on in the timer.
            loop = asyncio.get_running_loop()
            self._sweeper = loop.call_later(self._remember_s, self._sweep_later, context=Context())

    def forget(self, run: Run) -> None:
        """A later request with the same id is new work, from here on."""
        key = run.key
        if key and self._by_key.get(key) is run:
            del self._by_key[key]
        if run.token:
            self._by_token.pop(run.token, None)

    def clear(self) -> None:
        """Forget everything that is over."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._sweep(float("inf"))

    def _sweep(self, now_s: float) -> None:
        order = self._order
        while order and (order[0][0] <= now_s or len(order) > REMEMBERED_MAX or self._bytes > REMEMBERED_BYTES_MAX):
            _, key, token, size = order.popleft()
            self._bytes -= size
            self._answers.pop(key, None)
            self._ended_tokens.discard(token)

    def _sweep_later(self) -> None:
        self._sweeper = None
        now_s = monotonic_s()
        self._sweep(now_s)
        if self._order:
            delay_s = max(1.0, self._order[0][0] - now_s)
            self._sweeper = asyncio.get_running_loop().call_later(delay_s, self._sweep_later)
