"""How the kit for agents reads an answer to a start, and when it calls something a breach.

Pure. Knows no probe and no connection beyond the `Reply` it is given.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final, TypeAlias, cast

from mesh.check.agent_wire import Reply
from mesh.errors import ReplyInvalid
from mesh.wire import HandlerFailure, parse_handler_failure, parse_operation_error, parse_started

Outcome: TypeAlias = tuple[str, str, bytes]
"""State, media type, body."""


class Breach(Exception):
    """What was seen is not what a gateway needs. `advice`: what the agent's author has to change, one sentence."""

    def __init__(self, seen: str, advice: str) -> None:
        super().__init__(seen)
        self.seen = seen
        self.advice = advice


class Skip(Exception):
    """The probe says nothing about this agent; the text says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the reply to a start says: it runs under `token`, it ended with `outcome`, or it was `refused`."""

    reply: Reply
    token: str = ""
    outcome: Outcome | None = None
    refused: HandlerFailure | None = None

    def __str__(self) -> str:
        if self.token:
            return f"201 with token {self.token[:60]!r}"
        if self.outcome is not None:
            return f"{self.reply.status} {shown(self.outcome)}"
        return f"{self.reply.status} {self.refused.type if self.refused else ''}"


ONE_EXECUTION: Final = (
    "Run the work once per Nexus-Request-Id: write id -> operation token down before the work begins, and answer every"
    " repeat from there."
)
ONE_OUTCOME: Final = (
    "Keep the first outcome of a Nexus-Request-Id and give it to every later repeat, in answers and completions alike."
)
REPEAT_REFUSED: Final = (
    "Answer a repeated Nexus-Request-Id like the first request; a repeat is a gateway that did not hear you, not a"
    " conflict."
)


def read_answer(reply: Reply) -> Answer:
    """What the reply to a start says. Raises Breach for one that no gateway can use (P43)."""
    status, headers = reply.status, reply.raw_headers
    if status == 200:  # noqa: PLR2004
        return Answer(reply, outcome=("succeeded", reply.header("content-type"), reply.body))
    if status == 201:  # noqa: PLR2004
        try:
            return Answer(reply, token=parse_started(headers, reply.body))
        except ReplyInvalid as error:
            raise Breach(
                error.detail, 'Answer 201 with application/json: {"token": "...", "state": "running"}.'
            ) from None
    if status == 424:  # noqa: PLR2004
        found = parse_operation_error(headers, reply.body)
        if found is None:
            raise Breach(
                "a 424 that says neither failed nor canceled",
                'Put the state into the 424\'s Failure (details: {"state": "failed"}) and into Nexus-Operation-State.',
            )
        return Answer(reply, outcome=(found.state, reply.header("content-type"), reply.body))
    if status < 400:  # noqa: PLR2004
        raise Breach(
            f"the start was answered {status}",
            "Answer a start with 200, 201, 424 or a handler error; gateways follow no redirect.",
        )
    return Answer(reply, refused=parse_handler_failure(status, headers, reply.body))


def same(one: Outcome, other: Outcome) -> bool:
    """Whether two outcomes agree: the state, and of a success the value. Failures come in two shapes."""
    if one[0] != other[0]:
        return False
    return one[0] != "succeeded" or one[2] == other[2] or _value(one[2]) == _value(other[2])


def _value(body: bytes) -> object:
    try:
        return cast("object", json.loads(body))
    except ValueError:
        return body


def shown(outcome: Outcome) -> str:
    state, _, body = outcome
    return f"{state} {body[:80].decode('utf-8', 'replace')!r}"


def listed(tokens: set[str]) -> str:
    return ", ".join(sorted(token[:40] for token in tokens)[:4])
