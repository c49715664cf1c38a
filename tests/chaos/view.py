"""Histories and the store's final state, indexed once for all rules; and the vocabulary in which rules speak. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple

import msgspec

from gateway.outcomes import failure_of
from mesh.machine import State
from mesh.wire import failure_json
from tests.chaos.history import Kind, Line, What, digest
from tests.chaos.snapshot import Snapshot, Stored

FOREVER_NS: Final = 1 << 62
EVIDENCE_MAX: Final = 8
"""Lines of evidence that one finding shows."""


@dataclass(frozen=True)
class Promise:
    """What the run must keep beyond the invariants themselves.

    takeover_ms_max    from the kill of a gateway to the next step of an operation that it held
    deadline_slack_ms  how much later than its deadline an operation may end, store outages included
    in_flight_min      operations in flight at every fault
    ok_share_min       share of the calls sent in every fault phase that must be ok, and at least `calls_min` of them
    callback_age_s_max how old the signed timestamp of a callback may be on arrival
    """

    takeover_ms_max: int = 5_000
    deadline_slack_ms: int = 8_000
    in_flight_min: int = 0
    ok_share_min: float = 0.3
    calls_min: int = 20
    callback_age_s_max: int = 10


class Finding(NamedTuple):
    """One breach: a sentence, and the lines that show it."""

    text: str
    evidence: tuple[Line | Stored | str, ...] = ()


class Call(NamedTuple):
    """An invoke with its outcome; without one it is unknown and may take effect for ever."""

    invoke: Line
    outcome: Line | None

    @property
    def kind(self) -> Kind:
        return Kind.UNKNOWN if self.outcome is None else self.outcome.kind

    @property
    def ok(self) -> bool:
        return self.kind is Kind.OK

    @property
    def begun_ns(self) -> int:
        return self.invoke.at_ns

    @property
    def ended_ns(self) -> int:
        return FOREVER_NS if self.outcome is None else self.outcome.at_ns

    @property
    def lines(self) -> tuple[Line, ...]:
        return (self.invoke,) if self.outcome is None else (self.invoke, self.outcome)

    @property
    def op(self) -> str:
        return (self.outcome.op if self.outcome is not None else "") or self.invoke.op


def content_of(endpoint: str, service: str, operation: str, input_digest: str, callback_url: str) -> str:
    """`Line.content`: what must be equal for two starts to be the same request."""
    return digest(*[part.encode() for part in (endpoint, service, operation, input_digest, callback_url)])


def mark_of(body: bytes) -> str:
    """The mark in a result: which execution of which handler made it; "" for what has none."""
    try:
        found = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        return msgspec.json.decode(found["mark"], type=str)
    except (msgspec.MsgspecError, KeyError, UnicodeDecodeError):
        return ""


@dataclass
class View:
    """The run. `calls` by what, in order of their beginning; `infos` likewise; `stored` the final operations."""

    lines: list[Line]
    snapshot: Snapshot
    promise: Promise = field(default_factory=Promise)

    @property
    def stored(self) -> dict[str, Stored]:
        return self.snapshot.operations

    @cached_property
    def calls(self) -> dict[What, list[Call]]:
        outcomes = {line.call: line for line in self.lines if line.call and line.kind not in (Kind.INVOKE, Kind.INFO)}
        found: dict[What, list[Call]] = defaultdict(list)
        for line in self.lines:
            if line.kind is Kind.INVOKE:
                found[line.what].append(Call(line, outcomes.get(line.call)))
        return found

    @cached_property
    def infos(self) -> dict[What, list[Line]]:
        found: dict[What, list[Line]] = defaultdict(list)
        for line in self.lines:
            if line.kind is Kind.INFO:
                found[line.what].append(line)
        return found

    @cached_property
    def starts(self) -> dict[str, list[Call]]:
        """Starts by key."""
        found: dict[str, list[Call]] = defaultdict(list)
        for call in self.calls[What.START]:
            found[call.invoke.key].append(call)
        return found

    @cached_property
    def acked(self) -> dict[str, list[Call]]:
        """Acknowledged starts by the operation that they name."""
        found: dict[str, list[Call]] = defaultdict(list)
        for call in self.calls[What.START]:
            if call.ok:
                found[call.op].append(call)
        return found

    @cached_property
    def asked(self) -> dict[str, list[Call]]:
        """Everything callers asked of an operation, starts included, by operation."""
        found: dict[str, list[Call]] = defaultdict(list)
        for what in (What.START, What.READ, What.RESULT, What.CANCEL):
            for call in self.calls[what]:
                if call.op:
                    found[call.op].append(call)
        return found

    @cached_property
    def by_key(self) -> dict[str, list[Stored]]:
        """Stored operations by the caller's key."""
        found: dict[str, list[Stored]] = defaultdict(list)
        for one in self.stored.values():
            found[one.request.idempotency_key].append(one)
        return found

    def of_operation(self, what: What) -> dict[str, list[Line]]:
        """Infos by operation."""
        found: dict[str, list[Line]] = defaultdict(list)
        for line in self.infos[what]:
            found[line.op].append(line)
        return found


def stored_content(one: Stored) -> str:
    """`Line.content` of what the store holds."""
    request = one.request
    return content_of(request.endpoint, request.service, request.operation, one.input, request.callback_url)


def stored_digest(one: Stored) -> str:
    """`Line.digest` that every read of the result must show; "" while there is none."""
    if one.outcome is None:
        return ""
    if one.state is State.SUCCEEDED:
        return digest(one.outcome.body)
    return digest(failure_json(failure_of(one.state, one.outcome)))


Rule = Callable[[View], Iterator[Finding]]

RULES: dict[str, Rule] = {}


def rule(invariant: str) -> Callable[[Rule], Rule]:
    """Register a rule under the invariant that it checks (docs/why/invariants.md)."""

    def register(check: Rule) -> Rule:
        assert invariant not in RULES, f"two rules for {invariant}"
        RULES[invariant] = check
        return check

    return register


def evidence(lines: Iterable[Line | Stored | str]) -> tuple[Line | Stored | str, ...]:
    """The first lines of a long list."""
    return tuple(lines)[:EVIDENCE_MAX]
