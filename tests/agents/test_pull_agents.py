"""Agents in pull mode through the real gateway: the same handlers and answers, and SIGKILL on either side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

import mesh
from mesh.agent import Agent
from mesh.clock import monotonic_s, pause
from tests.agents import test_real_gateway as pushed
from tests.agents.serving import serving, until
from tests.agents.test_real_gateway import Dev
from tests.agents.test_registration import ROOT
from tests.agents.workshop import Shop, ShopHandler
from tests.ports import lasting_port


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    dev = Dev(tmp_path_factory.mktemp("dev") / "data")
    dev.start()
    yield dev
    dev.stop()


@pytest.fixture(scope="module")
def shop(dev: Dev) -> Iterator[ShopHandler]:
    """The workshop, asking for its work."""
    handler = ShopHandler()
    agent = Agent("shop", [handler], mode="pull", gateway=dev.url, lease_ms=2000, drain_s=0.2)
    with serving(agent):
        with mesh.SyncClient(dev.url) as client:
            until(lambda: _serves(client, "shop"))
        yield handler


def _serves(client: mesh.SyncClient, name: str) -> bool:
    try:
        return client.call(name, Shop.count, 1, timeout_s=10) == 2
    except (mesh.Refusal, mesh.StillRunning):
        return False


@pytest.fixture
def client(dev: Dev, shop: ShopHandler) -> Iterator[mesh.SyncClient]:
    with mesh.SyncClient(dev.url) as client:
        yield client


def types(dev: Dev, handle: Any) -> list[str]:
    """The history so far."""
    events = httpx.get(f"{dev.url}/v1/operations/{handle.id}/events", trust_env=False).json()
    return [event["type"] for event in events["items"]]


class TestTheSame(pushed.TestThrough):
    """Every test of an agent that is sent its work, with one that asks for it."""

    def test_long_work_is_leased_and_completed(self, client: mesh.SyncClient) -> None:
        """P281: started as it is handed out; heartbeats keep it."""
        handle = client.start("shop", Shop.slow, 3.0)
        assert [event.type for event in handle.watch()] == ["accepted", "started", "succeeded"]
        assert (handle.result(), handle.get()["attempt"]) == ("done", 1)


class TestTheOtherMode:
    @pytest.mark.parametrize("modes", [("pull", "push"), ("push", "pull")])
    def test_who_comes_last_says_how_the_endpoint_is_reached(self, dev: Dev, modes: tuple[str, str]) -> None:
        """An agent that left leaves the endpoint's entry behind; the next one of that name may work the other way."""
        name = f"first-{modes[0]}"
        with mesh.SyncClient(dev.url) as client:
            for mode in modes:
                port = lasting_port()
                how: dict[str, Any] = {"mode": mode} if mode == "pull" else {"url": f"http://127.0.0.1:{port}"}
                with serving(Agent(name, [ShopHandler()], gateway=dev.url, drain_s=0.2, **how), port=port):
                    until(lambda: _serves(client, name))
                kind = httpx.get(f"{dev.url}/v1/endpoints/{name}", trust_env=False).json()["target"]["kind"]
                assert kind == ("pull" if mode == "pull" else "http")


class TestAnswers:
    def test_a_handler_with_tokens_of_its_own(self, client: mesh.SyncClient, shop: ShopHandler) -> None:
        """It goes on after it has answered; somebody keeps up its lease until it reports."""
        assert client.call("shop", Shop.ticket, "one self") == "by itself"
        handle = client.start("shop", Shop.ticket, "held")
        until(lambda: "held" in shop.tickets)
        pause(2.5)
        assert (handle.get()["state"], handle.get()["attempt"]) == ("started", 1)
        handle.cancel()
        until(lambda: "ticket held" in shop.did.canceled)
        assert shop.did.canceled.count("ticket held") == 1

    def test_errors_worth_repeating_are_repeated(self, client: mesh.SyncClient, dev: Dev) -> None:
        """P288: at once, not by silence."""
        handle = client.start("shop", Shop.error, "UNAVAILABLE")
        failure = until(lambda: handle.get().get("last_failure"))
        assert (failure["type"], failure["message"]) == ("UNAVAILABLE", "as asked")
        assert "attempt_lost" not in types(dev, handle)
        handle.cancel()

    def test_an_operation_that_is_not_there(self, client: mesh.SyncClient) -> None:
        with pytest.raises(mesh.Refusal):
            client.call("shop", "Shop", "nope")

    def test_results_of_all_sizes(self, client: mesh.SyncClient) -> None:
        """A large one travels alone."""
        for size in (10, 600_000, 1_500_000):
            assert client.call("shop", Shop.echo, "x" * size, timeout_s=20) == "x" * size
        assert client.call("shop", Shop.blob, b"\x00" * 1_900_000, timeout_s=20) == b"\x00" * 1_900_000

    def test_a_crowd(self, client: mesh.SyncClient, dev: Dev) -> None:
        """Many callers at once, each with its own answer."""
        answers: dict[int, int] = {}

        def call(first: int) -> None:
            with mesh.SyncClient(dev.url) as mine:
                for number in range(first, first + 25):
                    answers[number] = mine.call("shop", Shop.count, number, timeout_s=30)

        threads = [threading.Thread(target=call, args=(first * 25,)) for first in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert answers == {number: number + 1 for number in range(200)}


WORKER = """
import sys, mesh
from mesh.clock import sleep

running = most = 0

def note(text):
    with open(sys.argv[1], "a") as file:
        print(text, file=file)

async def work(name: str) -> str:
    global running, most
    running += 1
    most = max(most, running)
    note(f"{name} at {sys.argv[2]} beside {running - 1}")
    try:
        await sleep(float(sys.argv[3]))
    finally:
        running -= 1
    note(f"{name} done at {sys.argv[2]}")
    return f"{name} by {sys.argv[2]}"

async def huge(size: int) -> str:
    return "x" * size

@mesh.durable
async def twice(ctx: mesh.Context, name: str) -> list:
    first = await ctx.step("first", work, f"{name}.1")
    await ctx.sleep(1.5)
    return [first, await ctx.step("second", work, f"{name}.2")]

mesh.pull(
    "worker", [work, huge, twice], gateway=sys.argv[4:], lease_ms=1000, drain_s=0.2, slots=2, linger_ms=100,
    instance=sys.argv[2],
)
"""


class Worker:
    """A worker process; `kill` is SIGKILL."""

    def __init__(self, log: Path, name: str, seconds: float, *gateways: str) -> None:
        env = {key: value for key, value in os.environ.items() if not key.startswith("MESH_")}
        command = [sys.executable, "-c", WORKER, str(log), name, str(seconds), *gateways]
        self.child = subprocess.Popen(command, cwd=ROOT, env=env | {"PYTHONPATH": str(ROOT)})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.send(signal.SIGCONT)
        self.child.terminate()
        self.child.wait(20)

    def send(self, number: signal.Signals) -> None:
        if self.child.poll() is None:
            self.child.send_signal(number)

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()


def begin(client: mesh.SyncClient, name: str = "job", operation: str = "work") -> Any:
    """Start the job, once the worker has declared the endpoint."""

    def attempt() -> Any:
        try:
            return client.start("worker", "worker", operation, name)
        except mesh.Refusal:
            return None

    return until(attempt)


def said(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


class TestKills:
    @pytest.fixture
    def own(self, tmp_path: Path) -> Iterator[Dev]:
        dev = Dev(tmp_path / "data")
        dev.start()
        yield dev
        dev.stop()

    def test_a_killed_agents_work_is_finished_by_another(self, own: Dev, tmp_path: Path) -> None:
        """P286: the next attempt, as soon as the lease is over."""
        log = tmp_path / "log"
        with ExitStack() as stack, mesh.SyncClient(own.url) as client:
            first = stack.enter_context(Worker(log, "first", 60, own.url))
            handle = begin(client)
            until(lambda: said(log) == ["job at first beside 0"])
            first.kill()
            stack.enter_context(Worker(log, "second", 0.2, own.url))
            begun_s = monotonic_s()
            assert handle.result(timeout_s=20) == "job by second"
            assert monotonic_s() - begun_s < 15
            assert (handle.get()["attempt"], handle.get()["instance"]) == (2, "second")

    def test_a_zombies_late_answer_counts_for_nothing(self, own: Dev, tmp_path: Path) -> None:
        """P286, P223: stopped for longer than its lease, it comes back and answers what another has answered."""
        log = tmp_path / "log"
        with ExitStack() as stack, mesh.SyncClient(own.url) as client:
            first = stack.enter_context(Worker(log, "first", 2.5, own.url))
            handle = begin(client)
            until(lambda: said(log))
            first.send(signal.SIGSTOP)
            stack.enter_context(Worker(log, "second", 0.1, own.url))
            assert handle.result(timeout_s=20) == "job by second"
            before = handle.get()
            first.send(signal.SIGCONT)
            other = begin(client, "other")
            assert other.result(timeout_s=20).startswith("other by")
            until(lambda: "refused" in types(own, handle) or "job done at first" in said(log))
            assert (handle.get()["result"], handle.get()["state"]) == (before["result"], "succeeded")

    def test_a_killed_gateway_is_waited_for(self, own: Dev, tmp_path: Path) -> None:
        """The handler runs on, is executed once, and its caller gets the answer."""
        log = tmp_path / "log"
        results: list[Any] = []
        with Worker(log, "only", 3, own.url), mesh.SyncClient(own.url) as client:
            handle = begin(client)
            until(lambda: said(log))
            waiting = threading.Thread(target=lambda: results.append(handle.result(timeout_s=30)))
            waiting.start()
            own.kill()
            own.start()
            waiting.join(30)
            assert results == ["job by only"]
            assert said(log) == ["job at only beside 0", "job done at only"]
            again = begin(client, "again")
            assert again.result(timeout_s=20) == "again by only"

    def test_sigterm_hands_over_at_once_and_at_no_cost(self, own: Dev, tmp_path: Path) -> None:
        """P289: nobody waits for a lease to end."""
        log = tmp_path / "log"
        with ExitStack() as stack, mesh.SyncClient(own.url) as client:
            first = stack.enter_context(Worker(log, "first", 60, own.url))
            handle = begin(client)
            until(lambda: said(log))
            stack.enter_context(Worker(log, "second", 0.1, own.url))
            until(lambda: len(instances(own)) == 2)
            first.send(signal.SIGTERM)
            assert first.child.wait(15) == 0
            assert handle.result(timeout_s=30) == "job by second"
            assert "attempt_lost" not in types(own, handle)
            assert "released" in types(own, handle)

    def test_a_durable_handler_sleeps_nowhere_and_is_finished_elsewhere(self, own: Dev, tmp_path: Path) -> None:
        """P224, P225, P285: it is suspended, its agent is killed, and another one goes on behind the first step."""
        log = tmp_path / "log"
        with ExitStack() as stack, mesh.SyncClient(own.url) as client:
            first = stack.enter_context(Worker(log, "first", 0.1, own.url))
            handle = begin(client, "job", "twice")
            until(lambda: handle.get().get("suspended"))
            first.kill()
            stack.enter_context(Worker(log, "second", 0.1, own.url))
            assert handle.result(timeout_s=20) == ["job.1 by first", "job.2 by second"]
        assert [line for line in said(log) if "beside" in line] == [
            "job.1 at first beside 0", "job.2 at second beside 0",
        ]  # fmt: skip


def instances(dev: Dev) -> list[dict[str, Any]]:
    found = httpx.get(f"{dev.url}/v1/endpoints/worker", trust_env=False)
    return found.json().get("instances", []) if found.status_code == 200 else []


class TestTooLarge:
    def test_a_result_too_large_for_a_frame(self, dev: Dev, tmp_path: Path) -> None:
        """P291, P390: it travels by itself, and is kept outside the record; the agent goes on."""
        with Worker(tmp_path / "log", "huge", 0.01, dev.url), mesh.SyncClient(dev.url) as client:
            assert begin(client).result(timeout_s=30) == "job by huge"
            assert client.call("worker", "worker", "huge", 3_000_000, timeout_s=20) == "x" * 3_000_000
            assert client.call("worker", "worker", "huge", 10, timeout_s=20) == "x" * 10


class TestSeats:
    @pytest.fixture
    def log(self, tmp_path: Path) -> Path:
        return tmp_path / "log"

    def test_never_more_at_once_than_slots(self, dev: Dev, log: Path) -> None:
        """P283: 2 here, of 8 that wait."""
        with Worker(log, "narrow", 0.2, dev.url), mesh.SyncClient(dev.url) as client:
            begin(client, "first").result(timeout_s=30)
            handles = [begin(client, f"job-{number}") for number in range(8)]
            for handle in handles:
                handle.result(timeout_s=20)
        beside = [int(line.rpartition(" ")[2]) for line in said(log) if "beside" in line]
        assert (len(beside), max(beside)) == (9, 1)

    def test_a_busy_agent_hears_of_a_cancel_within_two_seconds(self, dev: Dev, log: Path) -> None:
        """P290: all its seats are taken."""
        with Worker(log, "busy", 60, dev.url), mesh.SyncClient(dev.url) as client:
            handles = [begin(client, f"job-{number}") for number in range(2)]
            until(lambda: len(said(log)) == 2)
            took_s: list[float] = []
            for handle in handles:
                asked_s = monotonic_s()
                handle.cancel()
                with pytest.raises(mesh.OperationCanceled):
                    handle.result(timeout_s=20)
                took_s.append(monotonic_s() - asked_s)
            assert min(took_s) < 2, took_s  # the better one: a busy machine may be late with one

    def test_two_gateways_and_one_goes_away(self, log: Path, tmp_path: Path) -> None:
        """An agent knows both; the one that is left has all its seats."""
        with ExitStack() as stack:
            left, gone = Dev(tmp_path / "left"), Dev(tmp_path / "gone")
            for one in (left, gone):
                one.start()
                stack.callback(one.stop)
            # Two meshes with one agent show as well as two gateways of one mesh that the lines are apart.
            stack.enter_context(Worker(log, "only", 0.01, left.url, gone.url))
            client = stack.enter_context(mesh.SyncClient(left.url))
            assert begin(client).result(timeout_s=30) == "job by only"
            gone.kill()
            for number in range(4):
                assert begin(client, f"job-{number}").result(timeout_s=30) == f"job-{number} by only"
