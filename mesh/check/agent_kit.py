"""What probes of an agent work with: orders, starts and cancels as a gateway sends them, and what came back.

Owns the form of requests and the reading of answers. Which answer is right in which case is the probes'.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

from mesh.check.agent_answers import (
    ONE_EXECUTION,
    ONE_OUTCOME,
    REPEAT_REFUSED,
    Answer,
    Breach,
    Skip,
    listed,
    read_answer,
    same,
    shown,
)
from mesh.check.agent_receiver import CALLBACK, Receiver, Say, Try
from mesh.check.agent_wire import Header, Line, Reply, request
from mesh.clock import monotonic_s, sleep
from mesh.ids import operation_id, short_id
from mesh.pool import Target
from mesh.wire import format_duration, quote_segment

ANSWER_S: Final = 10.0
PATIENCE_S: Final = 30.0
QUIET_S: Final = 3.0
AT_ONCE: Final = 8
PARALLEL: Final = 4
TRACE: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


NO_JOURNALS: Final = (
    "{} keeps a journal at its gateway, which this check has not; give it an operation without one as well, and test"
    " durable ones with mesh.testing"
)


@dataclass(frozen=True, slots=True)
class Sample:
    """An operation the kit may start as often as it likes. `input`: its bytes, JSON unless said; None is null."""

    service: str
    operation: str
    input: bytes | None = None
    content_type: str = "application/json"

    @property
    def path(self) -> str:
        """`/{service}/{operation}`, encoded."""
        return f"/{quote_segment(self.service)}/{quote_segment(self.operation)}"

    def __str__(self) -> str:
        return f"{self.service}/{self.operation}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How an agent is checked.

    samples       operations to start; one that takes a while, and is answered 201, says most
    host, port    where the callback receiver listens; port 0 is a free one
    callback_url  base URL under which the agent reaches the receiver; default: where it listens
    headers       sent with every start and cancel
    answer_s      what an answer may take; also the `Request-Timeout` of starts
    patience_s    what a completion, or its repetition after a fault, may take
    quiet_s       how long a completion that was refused or taken is watched for further tries
    at_once       requests with one id at the same time
    parallel      probes at the same time
    only          numbers of probes; empty for all
    """

    samples: Sequence[Sample] = ()
    host: str = "127.0.0.1"
    port: int = 0
    callback_url: str = ""
    headers: Sequence[Header] = ()
    answer_s: float = ANSWER_S
    patience_s: float = PATIENCE_S
    quiet_s: float = QUIET_S
    at_once: int = AT_ONCE
    parallel: int = PARALLEL
    only: frozenset[str] = frozenset()


@dataclass(slots=True)
class Order:
    """One start, as a gateway identifies it. `token` is the completion token of the present attempt."""

    sample: Sample
    id: str = field(default_factory=operation_id)
    token: str = field(default_factory=lambda: short_id("check"))
    attempt: int = 1
    at_s: float = field(default_factory=monotonic_s)
    answers: list[Answer] = field(default_factory=list["Answer"])

    @property
    def request_id(self) -> str:
        """The same on every attempt."""
        return f"{self.id}.1"


class Kit:
    """One check of one agent. What S1 learns stands in `long`, `quick`, `durable` and `took_s` for those after it."""

    def __init__(self, target: Target, settings: Settings, receiver: Receiver) -> None:
        self.target = target
        self.settings = settings
        self.receiver = receiver
        self.orders: list[Order] = []
        self.long: Sample | None = None
        self.quick: Sample | None = None
        self.durable: Sample | None = None
        """One that keeps a journal at its gateway, and so ends nowhere else."""
        self.took_s = 0.0
        """From the start of `long` to its completion; 0 while none came."""

    @property
    def sample(self) -> Sample:
        """Some operation; the quick one, if there is one."""
        found = self.quick or self.long or self.durable
        if found is None:
            message = "needs an operation that can be started"
            raise Skip(message)
        return found

    @property
    def lasting(self) -> Sample:
        """An operation that is answered 201 and completed later."""
        if self.long is None and self.durable is not None:
            raise Skip(NO_JOURNALS.format(self.durable))
        if self.long is None:
            message = "needs an operation that takes a while: none of those given was answered 201"
            raise Skip(message)
        if not self.took_s:
            message = "needs an operation that is completed, and none was"
            raise Skip(message)
        return self.long

    # -- asking

    def order(self, sample: Sample, *says: Say) -> Order:
        """A new order. Its completions will be answered with `says`, and 200 after that."""
        order = Order(sample)
        self.orders.append(order)
        self.receiver.scripts[order.token] = deque(says)
        return order

    def start_bytes(
        self,
        order: Order,
        *,
        headers: Sequence[Header] = (),
        chunks: Sequence[bytes] | None = None,
        path: str = "",
        callback: str | None = CALLBACK,
        request_timeout_s: float = 0.0,
    ) -> bytes:
        """The request of a start, as a gateway writes it (P40). `callback` None: without one."""
        sample = order.sample
        given: list[Header] = [
            ("nexus-request-id", order.request_id),
            ("request-timeout", format_duration((request_timeout_s or self.settings.answer_s) * 1000)),
            ("mesh-operation-id", order.id),
            ("mesh-run", "1"),
            ("mesh-attempt", str(order.attempt)),
            ("mesh-namespace", "check"),
            ("nexus-link", f'<nexus-operation://check/{order.id}>; type="mesh.Operation"'),
            ("traceparent", TRACE),
            *self.settings.headers,
        ]
        query = ""
        if callback is not None:
            given.append(("nexus-callback-token", order.token))
            query = f"callback={quote(self.receiver.url + callback, safe='')}"
        names = {name.lower() for name, _ in headers}
        given = [*(each for each in given if each[0] not in names), *headers]
        if sample.input is not None and "content-type" not in names:
            given.append(("content-type", sample.content_type))
        where = self.target.under((path or sample.path).encode(), query.encode()).decode()
        return request(self.target, where, given, sample.input or b"", chunks=chunks)

    async def start(self, order: Order, data: bytes | None = None) -> Answer:
        """Send a start on a connection of its own and read the answer. Raises NoAnswer, Breach."""
        async with await Line.open(self.target) as line:
            await line.send(self.start_bytes(order) if data is None else data)
            return self.read(order, await line.reply(self.settings.answer_s))

    def read(self, order: Order, reply: Reply) -> Answer:
        """What the reply to a start says. Raises Breach for one that no gateway can use (P43)."""
        answer = read_answer(reply)
        order.answers.append(answer)
        return answer

    async def running(self, order: Order) -> Answer:
        """Start, and insist on a 201. Raises Skip: the operation was quicker this time."""
        answer = await self.start(order)
        if answer.refused is not None:
            raise Breach(f"the start was answered {answer}", "Answer every start alike while you are not overloaded.")
        if not answer.token:
            raise Skip(f"the operation ended at once this time ({answer})")
        return answer

    async def cancel(
        self, sample: Sample, token: str, *, path: str = "", query: bool = False, headers: Sequence[Header] = ()
    ) -> Reply:
        """Send a cancel for `token`; empty: without one."""
        given = [*self.settings.headers, *headers]
        if token and not query:
            given.append(("nexus-operation-token", token))
        asked = f"token={quote(token, safe='')}" if query else ""
        where = self.target.under((path or f"{sample.path}/cancel").encode(), asked.encode()).decode()
        async with await Line.open(self.target) as line:
            await line.send(request(self.target, where, given))
            return await line.reply(self.settings.answer_s)

    # -- what came

    def tries(self, *orders: Order) -> list[Try]:
        """Every try of the completions of these orders, in order of arrival."""
        found = [each for order in orders for each in self.receiver.tries.get(order.token, [])]
        return sorted(found, key=lambda each: each.at_s)

    async def completion(self, order: Order, number: int, advice: str, *, within_s: float = 0.0) -> Try:
        """The `number`th try (from 1) of the order's completion. Raises Breach with `advice` when none comes."""
        within_s = within_s or self.settings.patience_s
        came_or_never = lambda: len(self.tries(order)) >= number or self.keeps_journal(order)  # noqa: E731
        if await self.receiver.until(came_or_never, within_s) and self.keeps_journal(order):
            raise Skip(NO_JOURNALS.format(order.sample))
        if len(self.tries(order)) < number:
            came = len(self.tries(order))
            what = f"{came} of {number} tries came" if came else "no completion came"
            raise Breach(f"{what} within {within_s:g} s", advice)
        return self.tries(order)[number - 1]

    def keeps_journal(self, order: Order) -> bool:
        """Whether the order's operation turned out to be a durable one."""
        return order.token in self.receiver.durable

    async def stays_quiet(self, order: Order, after: int, advice: str) -> None:
        """Watch that no more than `after` tries of the completion come. Raises Breach."""
        if await self.receiver.until(lambda: len(self.tries(order)) > after, self.settings.quiet_s):
            status = self.tries(order)[after - 1].say.status if after else 0
            said = f"after its completion was answered {status}" if after else "although nothing was to be completed"
            raise Breach(f"another try came {said}", advice)

    async def rest(self, seconds: float) -> None:
        """Let time pass on purpose: what is watched for has no sign of its own."""
        await sleep(seconds)

    def one_execution(self, order: Order, *others: Order) -> None:
        """Whether all that is known of an order fits one execution. Raises Breach."""
        tries = self.tries(order, *others)
        tokens = {answer.token for answer in order.answers if answer.token} | {each.token for each in tries}
        tokens.discard("")
        if len(tokens) > 1:
            raise Breach(f"one Nexus-Request-Id, {len(tokens)} operation tokens: {listed(tokens)}", ONE_EXECUTION)
        taken = sum(each.say.taken for each in self.tries(order))
        if taken > 1:
            raise Breach(f"one Nexus-Request-Id was completed {taken} times, each time taken", ONE_EXECUTION)
        outcomes = [answer.outcome for answer in order.answers if answer.outcome is not None]
        outcomes += [each.outcome for each in tries]
        for other in outcomes[1:]:
            if not same(outcomes[0], other):
                raise Breach(f"one Nexus-Request-Id, two outcomes: {shown(outcomes[0])}; {shown(other)}", ONE_OUTCOME)
        for answer in order.answers:
            if answer.refused is not None:
                raise Breach(f"a repeated start was answered {answer}", REPEAT_REFUSED)
