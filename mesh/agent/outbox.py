"""Answers on their way to the mesh: from all runs of an agent, through any of its gateways. No I/O.

An answer leaves with whichever request goes next and comes back when it is not surely booked.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

import msgspec

from mesh.agent.outcome import Outcome
from mesh.agent.tasks import answer_of, released

FRAME_ANSWERS_MAX: Final = 500
FRAME_BYTES_MAX: Final = 1 << 20
"""Of answers in one request; gateways take 2 MiB in all."""


class Answer(msgspec.Struct, frozen=True, gc=False):
    """One answer; `body` is its JSON. `outcome` is kept of a large one, which travels alone as it is."""

    token: str
    body: bytes
    outcome: Outcome | None = None


class Outbox:
    """`news` is set whenever something was put in, and by who wants everybody to look."""

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self._answers: deque[Answer] = deque()

    def __len__(self) -> int:
        return len(self._answers)

    def put(self, token: str, outcome: Outcome) -> None:
        """How a run ended."""
        if outcome.blob is not None or len(outcome.body) > FRAME_BYTES_MAX:
            self._answers.append(Answer(token, b"", outcome))
        else:
            self._answers.append(Answer(token, answer_of(token, outcome)))
        self.news.set()

    def give_back(self, token: str, reason: str) -> None:
        """Somebody else shall have the task."""
        self._answers.append(Answer(token, released(token, reason)))
        self.news.set()

    def back(self, answers: list[Answer]) -> None:
        """They are not surely booked."""
        self._answers.extendleft(reversed(answers))
        if answers:
            self.news.set()

    def take(self) -> list[Answer]:
        """What one request carries: many small ones, or a single large one."""
        answers = self._answers
        taken: list[Answer] = []
        size = 0
        while answers and len(taken) < FRAME_ANSWERS_MAX:
            answer = answers[0]
            size += len(answer.body)
            if taken and (answer.outcome is not None or size > FRAME_BYTES_MAX):
                break
            taken.append(answers.popleft())
            if answer.outcome is not None:
                break
        return taken
