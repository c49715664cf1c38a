"""What the attempts of a process say to gateways, over real HTTP: batches, failover, repeats, refusals, lost leases.

Rules P267 and P271 of specs/protocol.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.agent.arrivals import BLOB_BYTES_MAX, Arrivals
from mesh.agent.durable import hub, watching
from mesh.agent.durable.holding import Hold, Pulse
from mesh.agent.durable.lines import HttpLink, Lines
from mesh.agent.durable.link import Ack, ChildOrder
from mesh.clock import sleep
from mesh.errors import Conflict, NotFound
from mesh.pool import Pool, Target
from tests.agents.serving import Request, Response, Scripted, answer, serving


class Store(Scripted):
    """A gateway that keeps journals by token; `script` first, when it has something to say."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.url = ""
        self.journals: dict[str, list[Any]] = {}
        self.lost: set[str] = set()
        self.first: list[Response | None] = []
        self.held = asyncio.Event()
        self.held.set()

    async def _answer(self, request: Request) -> Response:
        while not self.held.is_set():
            await sleep(0.005)
        if self.first and (response := self.first.pop(0)) is not None:
            return response
        if request.path == "/v1/tasks/read":
            tasks = [self._page(task) for task in request.json["tasks"]]
        else:
            tasks = [self._task(task) for task in request.json["tasks"]]
        return answer({"now_ms": 1_900_000_000_000, "tasks": tasks})

    def _task(self, task: dict[str, Any]) -> dict[str, Any]:
        if task["token"] in self.lost:
            return {"status": "lost", "length": 0}
        if "lease_ms" in task:
            return {"status": "cancel" if task["token"] == "unwanted" else "ok"}
        journal = self.journals.setdefault(task["token"], [])
        if task["at"] != len(journal):
            return {"status": "grown", "length": len(journal)}
        journal += task.get("entries", [])
        return {"status": "ok", "length": len(journal)}

    def _page(self, task: dict[str, Any]) -> dict[str, Any]:
        journal = self.journals.setdefault(task["token"], [])
        return {"status": "ok", "entries": journal[task["after"] :], "length": len(journal), "stream": 0}


class Address:
    def __init__(self, token: str, gateway: Target) -> None:
        self.token = token
        self.gateway = gateway


def entry(n: int) -> bytes:
    return b'{"kind":"step","name":"s","n":%d}' % n


@pytest.fixture
def stores() -> Iterator[tuple[Store, Store]]:
    first, second = Store(), Store()
    with serving(first) as first.url, serving(second) as second.url:
        yield first, second


@pytest.fixture
async def lines(stores: tuple[Store, Store], tmp_path: Path) -> AsyncIterator[Lines]:
    pool = Pool()
    arrivals = Arrivals("lines", BLOB_BYTES_MAX, tmp_path, 1 << 20)
    lines = Lines(pool, [Target.parse(store.url) for store in stores], "secret", arrivals)
    yield lines
    await lines.close()
    await pool.close()


def link_of(lines: Lines, token: str, url: str) -> tuple[HttpLink, Address]:
    address = Address(token, Target.parse(url))
    return HttpLink(lines, address, lambda _: None, Hold(Pulse(60_000))), address


async def test_what_comes_while_a_request_is_out_leaves_together(lines: Lines, stores: tuple[Store, Store]) -> None:
    store = stores[0]
    links = [link_of(lines, f"t{n}", store.url)[0] for n in range(50)]
    store.held.clear()
    first = [link.append(0, [entry(1)]) for link in links[:2]]
    await sleep(0.05)
    rest = [link.append(0, [entry(1)]) for link in links[2:]]
    await sleep(0.05)
    store.held.set()
    acks = await asyncio.gather(*first, *rest)
    assert {(ack.status, ack.length) for ack in acks} == {("ok", 1)}
    assert [len(request.json["tasks"]) for request in store.requests] == [2, 48]
    assert abs(lines.clock.now_ms() - 1_900_000_000_000) < 5000, "the mesh's time is in every answer"


async def test_another_gateway_is_asked_when_one_does_not_answer(lines: Lines, stores: tuple[Store, Store]) -> None:
    gone = Target.parse("http://127.0.0.1:9")
    link = HttpLink(lines, Address("t", gone), lambda _: None, Hold(Pulse(60_000)))
    assert (await link.append(0, [entry(1)])).status == "ok"
    assert len(stores[0].requests) == 1, "the first of those that are configured"
    page = await link.read(0, 10)
    assert (page.status, page.length, len(page.entries)) == ("ok", 1, 1)


@pytest.mark.parametrize("status", [500, 502, 503, 404])
async def test_an_answer_that_is_none_is_asked_again(lines: Lines, stores: tuple[Store, Store], status: int) -> None:
    first, second = stores
    first.first = second.first = [Response(status), Response(status), Response(status)]
    link, _ = link_of(lines, "t", first.url)
    assert (await link.append(0, [entry(1)])).length == 1
    bodies = {request.body for request in [*first.requests, *second.requests]}
    assert len(bodies) == 1, "the same bytes each time"


async def test_one_that_is_refused_costs_the_others_nothing(lines: Lines, stores: tuple[Store, Store]) -> None:
    store = stores[0]
    refusal = answer({"detail": "entries/0: no kind", "code": "body_invalid"}, 422)
    store.first = [refusal, None, None, refusal]
    links = [link_of(lines, f"t{n}", store.url)[0] for n in range(3)]
    acks = await asyncio.gather(*[link.append(0, [entry(1)]) for link in links])
    assert sorted(ack.status for ack in acks) == ["full", "ok", "ok"]
    assert next(ack for ack in acks if ack.status == "full").detail == "entries/0: no kind"


async def test_a_lost_lease_goes_on_when_the_next_attempt_comes_here(
    lines: Lines, stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "LOST_GRACE_S", 0.3)
    store = stores[0]
    store.lost = {"old"}
    link, address = link_of(lines, "old", store.url)
    waiting = link.append(0, [entry(1)])
    await sleep(0.1)
    assert not waiting.done()
    address.token = "new"
    assert (await waiting).status == "ok"
    assert store.journals["new"] == [{"kind": "step", "name": "s", "n": 1}]
    address.token = "old"
    assert (await link.append(1, [entry(2)])).status == "lost"


def leased(lines: Lines, token: str, url: str) -> tuple[HttpLink, Hold]:
    hold = Hold(Pulse(60_000))
    return HttpLink(lines, Address(token, Target.parse(url)), lambda _: None, hold), hold


async def test_a_lease_that_is_not_known_to_hold_is_asked_for(lines: Lines, stores: tuple[Store, Store]) -> None:
    """P470, P471."""
    for token in ("wanted", "unwanted"):
        link, hold = leased(lines, token, stores[0].url)
        hold.lost()
        assert not link.sure()
        assert await link.renew() == Ack("ok", 0, token == "unwanted")
        assert link.sure()
    stores[0].lost.add("taken")
    link, hold = leased(lines, "taken", stores[0].url)
    hold.lost()
    assert (await link.renew()).status == "lost"
    assert not link.sure()


async def test_news_of_many_journals_is_asked_for_in_one_request(
    lines: Lines, stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "GATHER_S", 0.05)
    store = stores[0]
    store.journals = {"t0": [1, 2, 3]}
    links = [link_of(lines, f"t{n}", store.url)[0] for n in range(20)]
    news = await asyncio.gather(*[link.watch(0, cancel=False) for link in links])
    assert [ack.length for ack in news] == [3] + [0] * 19
    assert len(store.requests) == 1
    assert store.requests[0].json["wait_ms"] == watching.WAIT_MS
    await links[0].watch(0, cancel=True)
    assert store.requests[-1].json["wait_ms"] == 0, "a known cancel would answer for everybody"


class TestChildren:
    ORDER = ChildOrder("00-1.1/c#1", "c#1", "linter", "Lint", "run", b'{"a":1}', 5000, {"for": "me"}, keep=True)

    async def test_a_start_names_its_parent_and_is_repeated_under_its_key(
        self, lines: Lines, stores: tuple[Store, Store]
    ) -> None:
        first, second = stores
        first.first = [Response(503, headers={"retry-after": "0"}), answer({"id": "00-2", "blocked": "breaker"}, 202)]
        second.first = [Response(502)]
        link, _ = link_of(lines, "t", first.url)
        assert await link.start_child(self.ORDER) == ("00-2", "breaker")
        sent = first.requests[-1]
        assert sent.json == {
            "endpoint": "linter", "service": "Lint", "operation": "run", "input": {"a": 1}, "labels": {"for": "me"},
            "timeouts": {"schedule_to_close_ms": 5000}, "parent": {"token": "t", "key": "c#1", "on_close": "keep"},
        }  # fmt: skip
        assert sent.headers["idempotency-key"] == "00-1.1/c#1"
        assert sent.headers["authorization"] == "Bearer secret"
        assert len({request.body for request in [*first.requests, *second.requests]}) == 1

    async def test_the_key_is_not_shown_to_gateways_that_nobody_configured(
        self, lines: Lines, stores: tuple[Store, Store]
    ) -> None:
        foreign = Store()
        with serving(foreign) as foreign.url:
            stores[0].first = [answer({"id": "00-2"}, 200)]
            link, _ = link_of(lines, "t", foreign.url)
            await link.start_child(self.ORDER)
        assert foreign.requests == []

    async def test_refusals_are_raised(self, lines: Lines, stores: tuple[Store, Store]) -> None:
        store = stores[0]
        store.first = [answer({"detail": "no such endpoint"}, 404), answer({"code": "lease_lost", "detail": "x"}, 409)]
        link, _ = link_of(lines, "t", store.url)
        with pytest.raises(NotFound, match="no such endpoint"):
            await link.start_child(self.ORDER)
        with pytest.raises(Conflict) as caught:
            await link.start_child(self.ORDER)
        assert caught.value.code == "lease_lost"
