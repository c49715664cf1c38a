"""Attempts that agents fetch, and what agents say about them: one function call for many.

The verbs of endpoints of kind pull; everything else about operations is store.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from mesh.ids import PARTITION
from mesh.machine import Event
from mesh.store.functions import Functions, Refused, meaning
from mesh.store.layout import encode
from mesh.store.link import Link, StoreReply
from mesh.store.merging import of_all, of_one
from mesh.store.parcels import answers_parts, complete_arguments, read_completed, read_work, refused_completion
from mesh.store.verbs import Completed, Pulled, Seat

ANSWERS_MAX: Final = 1_000
"""Answers in one call: it is one turn of the store's only thread."""


class Ended(msgspec.Struct, frozen=True, gc=False):
    """The attempt's outcome (packed `Outcome`); `answered`: the caller's first request is open and gets it."""

    id: str
    run: int
    attempt: int
    event: Event
    outcome: bytes
    answered: bool


class Retried(NamedTuple):
    """The attempt failed and is worth repeating; `outcome` when it was the last. `chance`: -1 to 1, for jitter.

    `free` 1: it counts against no limit.
    """

    id: str
    run: int
    attempt: int
    detail: str
    outcome: bytes
    least_ms: int
    chance: float
    free: int = 0


class Released(NamedTuple):
    """Somebody else shall have it."""

    id: str
    run: int
    attempt: int
    reason: str


PULL_BYTES: Final = 4 << 20

Answer: TypeAlias = Ended | Retried | Released


class Taken(NamedTuple):
    """What became of a retry or release: `ok`, `same`, `lost`, `ended`, `canceled`, `unknown`, `broken`.

    `line` is an endpoint with waiting operations, or ''.
    """

    verdict: str
    line: str = ""


class PullStore(Functions):
    """The operations of one partition, as those who poll see them. Raises as Store does."""

    def __init__(self, link: Link, partition: str = PARTITION) -> None:
        super().__init__(link, partition)

    @staticmethod
    def seat(instance: str, lease_ms: int, version: str = "") -> tuple[bytes, ...]:
        """The arguments by which a start is handed to a poller."""
        if version:
            return instance.encode(), b"%d" % lease_ms, b"1"
        return instance.encode(), b"%d" % lease_ms

    async def pull(
        self,
        endpoint_id: str,
        seats: Sequence[Seat],
        services: Sequence[str],
        *,
        skip: int = 0,
        bytes_max: int = PULL_BYTES,
        pin: str = "",
    ) -> Pulled:
        """Hand out the head of an endpoint's line; `services`: only these, if any; `skip` as the last reply says.

        `pin`: what waits for that version, which every seat has.
        """
        arguments = {
            "endpoint": endpoint_id, "seats": seats, "services": services, "skip": skip, "bytes": bytes_max, "pin": pin
        }  # fmt: skip
        now, works, instances, stopped, following, more = await self.fcall("mesh1_pull", arguments)
        pairs = [(read_work(work), instance.decode()) for work, instance in zip(works, instances, strict=True)]
        return Pulled(now, pairs, stopped.decode(), following, more == 1)

    async def answers(self, answers: Sequence[Answer], *, session: str, alone: bool) -> list[Completed | Taken]:
        """Book many answers in one step, each by itself: one that is refused keeps none of the others."""
        asked = [(answer, _VERBS[type(answer)], _arguments(answer, session, alone=alone)) for answer in answers]
        replies = await self.called("mesh1_answers", *answers_parts(asked))
        found: list[Completed | Taken] = []
        said, kind = None, None
        for answer, reply in zip(answers, of_all(replies), strict=True):
            # Most replies to a frame are one and the same: it is read once.
            if reply is said and type(answer) is kind:
                found.append(found[-1])
            else:
                said, kind = reply, type(answer)
                found.append(_read(answer, reply))
        return found


_VERBS: Final = {Ended: "mesh1_complete", Retried: "mesh1_retry", Released: "mesh1_release"}


def _arguments(answer: Answer, session: str, *, alone: bool) -> tuple[bytes, ...]:
    """Arguments and payload of one answer."""
    if isinstance(answer, Ended):
        arguments = complete_arguments(
            answer.run, answer.attempt, answer.event, session, "", answered=answer.answered, alone=alone
        )
        return arguments, answer.id.encode(), answer.outcome
    if isinstance(answer, Retried):
        fields = answer._asdict()
        outcome = fields.pop("outcome")
        return encode(fields), outcome
    return encode({**answer._asdict(), "session": "", "fetched": 1}), b""


def _read(answer: Answer, reply: list[Any]) -> Completed | Taken:
    try:
        word = of_one(reply)[0].decode()
    except StoreReply as fault:
        error = meaning(fault)
        if not isinstance(error, Refused):
            return Taken("broken")
        return refused_completion(error) if isinstance(answer, Ended) else Taken("unknown")
    if isinstance(answer, Ended):
        return read_completed(reply)
    # Where a transition took place the last field is a line that may move; else it is the state.
    return Taken(word, reply[-1].decode() if isinstance(reply[-1], bytes) and len(reply) > 1 else "")
