"""An agent that polls, when the gateway does not say what became of its answers: they go again until it does (P287)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from mesh.agent import Agent
from mesh.clock import sleep
from tests.agents.serving import Gateway, Request, Response, answer, serving, until

TASK = {
    "task_token": "t-1", "operation_id": "00-abcdefghjkmnpqrstvwx", "service": "shop", "operation": "double",
    "run": 1, "attempt": 1, "lease_ms": 60_000, "input": 21,
}  # fmt: skip


async def double(number: int) -> int:
    return number * 2


class Pulled(Gateway):
    """Hands out a task, and another with the status of its answer.

    `unsure`: what the first poll with answers gets; None: nothing. `answers`: what came, with the path's last word.
    """

    def __init__(self, unsure: Callable[[], Response] | None) -> None:
        super().__init__()
        self.script = self._pulled
        self.unsure = unsure
        self.answers: list[tuple[str, dict[str, Any]]] = []
        self.over = threading.Event()
        self._tasks = [TASK | {"task_token": "t-2", "operation_id": "00-second"}, TASK]

    async def _pulled(self, request: Request) -> Response:
        poll = request.path.endswith("/poll")
        if not poll and request.path != "/v1/tasks/complete":
            return self._answer(request)
        came = request.json["answers" if poll else "tasks"]
        self.answers += [(request.path.rpartition("/")[2], one) for one in came]
        if not poll:
            return answer({"tasks": [{"status": "ok"}] * len(came)})
        if came and len(self.answers) == 1:
            if self.unsure is not None:
                return self.unsure()
        elif came or len(self._tasks) > 1:
            tasks = [self._tasks.pop()] if self._tasks else []
            return answer({"tasks": tasks, "answers": [{"status": "ok"}] * len(came)})
        while request.json["wait_ms"] and not self.over.is_set():
            await sleep(0.005)
        return answer({"tasks": []})


def _result(said: dict[str, Any]) -> tuple[str, Any]:
    return said["token"], said["result"]


@pytest.mark.parametrize(
    "unsure",
    [
        lambda: Response(chunks=[b"{", b""]),
        lambda: Response(503),
        lambda: Response(200, b"<html>"),
        lambda: answer({"tasks": [], "answers": []}),
        lambda: answer({"tasks": [], "answers": [{"status": "again"}]}),
    ],
    ids=["cut off", "503", "no frame", "no status", "again"],
)
def test_an_answer_goes_again_until_its_status_comes(unsure: Callable[[], Response]) -> None:
    """P287: the same words under the same token, once more and no oftener."""
    gateway = Pulled(unsure)
    with serving(gateway) as url, serving(Agent("shop", [double], mode="pull", gateway=url, drain_s=0.1)):
        until(lambda: len(gateway.answers) > 2)
        gateway.over.set()
    assert [_result(said) for _, said in gateway.answers[:3]] == [("t-1", 42), ("t-1", 42), ("t-2", 42)]
    assert "t-1" not in [said["token"] for _, said in gateway.answers[3:]]


def test_an_agent_that_stops_sends_again_what_it_has_no_word_of() -> None:
    """P287: its poll is under way with the answer when it stops; the answer comes once more, by its own route."""
    gateway = Pulled(None)
    with serving(gateway) as url:
        with serving(Agent("shop", [double], mode="pull", gateway=url, drain_s=0.1)):
            until(lambda: gateway.answers)
        gateway.over.set()
    assert [(path, *_result(said)) for path, said in gateway.answers] == [("poll", "t-1", 42), ("complete", "t-1", 42)]
