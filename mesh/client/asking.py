"""One request of a client: the steps it consists of, its repeats and their bounds.

A step is an `Ask` (answered with an `Answer`, or with `Unreached` when no reply came) or a `Pause`. Does no I/O: aio.py
and sync.py do.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from typing import Final, NamedTuple, TypeAlias, TypeVar

from mesh.blob import Blob
from mesh.client.errors import GatewayUnreachable, refusal
from mesh.clock import monotonic_s
from mesh.errors import MeshError
from mesh.ids import jittered

RETRY_FIRST_S: Final = 0.1
RETRY_MAX_S: Final = 2.0
RETRY_SPREAD: Final = 0.2
RETRY_AFTER_MAX_S: Final = 30
REPEATED: Final = frozenset({429, 502, 503, 504})
"""Statuses that are repeated unless the answer itself says that it is no use."""
AWAY: Final = frozenset({502, 503, 504})
"""Of a gateway that another one may stand in for."""

T = TypeVar("T")


class Ask(NamedTuple):
    """One request. `path` has its query; `timeout_s` bounds the reply.

    `body` that is a Blob is streamed; `keep`: so is the reply, to a temporary file, if it is a 200.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: bytes | Blob
    timeout_s: float
    keep: bool = False


class Answer(NamedTuple):
    """A reply. Header names are in lower case. `blob`: the body, where it was to be kept."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    blob: Blob | None = None


class Unreached(NamedTuple):
    """No reply; the request may have arrived or not."""

    why: str


class Pause(NamedTuple):
    """Wait."""

    seconds: float


Flow: TypeAlias = Generator["Ask | Pause", "Answer | Unreached | None", T]


def exchange(ask: Ask, retry_for_s: float, *, also: tuple[int, ...] = (), any_status: bool = False) -> Flow[Answer]:
    """Ask until there is an answer for good; safe, since every start carries its key and all else is idempotent.

    Faults, REPEATED statuses and others from 500 up that are marked retryable are repeated for `retry_for_s`, never
    before `Retry-After`. Raises the refusal of any other status from 400 up, unless it is in `also`.
    """
    give_up_s = monotonic_s() + retry_for_s
    delay_s = RETRY_FIRST_S
    while True:
        answer = yield ask
        after_s = 0
        if isinstance(answer, Answer):
            after_s = _retry_after_s(answer)
            if not _repeated(answer) or (any_status and _of_operation(answer)):
                if answer.status < 400 or any_status or answer.status in also:  # noqa: PLR2004
                    return answer
                raise refusal(answer.status, answer.body, after_s)
            trouble: MeshError = refusal(answer.status, answer.body, after_s)
        else:
            trouble = GatewayUnreachable(answer.why if answer is not None else "no answer")
        pause_s = max(jittered(delay_s * 1000, RETRY_SPREAD) / 1000, min(after_s, RETRY_AFTER_MAX_S))
        if monotonic_s() + pause_s > give_up_s:
            raise trouble
        yield Pause(pause_s)
        delay_s = min(delay_s * 2, RETRY_MAX_S)


def _repeated(answer: Answer) -> bool:
    if answer.status not in REPEATED and answer.status < 500:  # noqa: PLR2004
        return False
    marked = _marked(answer)
    return answer.status in REPEATED if marked is None else marked


def _of_operation(answer: Answer) -> bool:
    """Whether it is how an operation ended, which the gateway passes on, and not the gateway's own."""
    headers = answer.headers
    return "mesh-operation-id" in headers and headers.get("mesh-failure-source") != "gateway"


def _marked(answer: Answer) -> bool | None:
    """What the answer says of its own repetition: `retryable` of a problem, or the header of Nexus answers."""
    if answer.headers.get("content-type", "").partition(";")[0] == "application/problem+json":
        try:
            said = json.loads(answer.body).get("retryable")
        except (ValueError, AttributeError):
            said = None
        return said if isinstance(said, bool) else None
    return {"true": True, "false": False}.get(answer.headers.get("nexus-request-retryable", "").lower())


def _retry_after_s(answer: Answer) -> int:
    text = answer.headers.get("retry-after", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 7 else 0  # noqa: PLR2004
