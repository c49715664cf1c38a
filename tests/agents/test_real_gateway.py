"""Both ends of the SDK through the real gateway: the documented lines, long work, and SIGKILL on either side."""

from __future__ import annotations

import os
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
from mesh.client import patience
from tests.agents.serving import serving, until
from tests.agents.test_registration import ROOT, example, process
from tests.agents.workshop import Order, Receipt, Shop, ShopHandler
from tests.ports import lasting_port


class Dev:
    """`mesh dev` on a directory and a port of its own; killed and started again as the test likes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = lasting_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "gateway.cli.main", "dev"]
        command += ["--data", str(self.directory), "--port", str(self.port)]
        env = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
        self.child = subprocess.Popen(command, cwd=ROOT, env=env | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
        until(self.ready)

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.wait()

    def stop(self) -> None:
        if self.child is not None:
            self.child.terminate()
            assert self.child.wait(20) is not None


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    dev = Dev(tmp_path_factory.mktemp("dev") / "data")
    dev.start()
    yield dev
    dev.stop()


@pytest.fixture(scope="module")
def shop(dev: Dev) -> Iterator[ShopHandler]:
    """The workshop, registered."""
    handler = ShopHandler()
    port = lasting_port()
    agent = Agent(
        "shop", [handler], gateway=dev.url, url=f"http://127.0.0.1:{port}", lease_ms=2000, answer_within_ms=100,
        drain_s=0.2,
    )  # fmt: skip
    with serving(agent, port=port):
        until(lambda: httpx.get(f"{dev.url}/v1/endpoints/shop", trust_env=False).status_code == 200)
        with mesh.SyncClient(dev.url) as client:
            assert client.call("shop", Shop.count, 1, timeout_s=20) == 2
        yield handler


@pytest.fixture
def client(dev: Dev, shop: ShopHandler) -> Iterator[mesh.SyncClient]:
    with mesh.SyncClient(dev.url) as client:
        yield client


class TestDocumentation:
    def test_five_lines_and_three(self, dev: Dev, tmp_path: Path) -> None:
        """What `import mesh` shows, as two scripts."""
        agent, call = tmp_path / "agent.py", tmp_path / "call.py"
        agent.write_text(example("An agent"))
        call.write_text(example("A call"))
        assert (len(agent.read_text().splitlines()), len(call.read_text().splitlines())) == (5, 3)
        with process([sys.executable, str(agent)], MESH_URL=dev.url), mesh.SyncClient(dev.url) as client:
            until(lambda: known(client, "greeter"))
            env = os.environ | {"PYTHONPATH": str(ROOT), "MESH_URL": dev.url}
            said = subprocess.run([sys.executable, str(call)], env=env, capture_output=True, timeout=30, check=True)
        assert said.stdout == b"Hello, Ada!\n"


def known(client: mesh.SyncClient, endpoint: str, operation: str = "greet", value: object = "x") -> bool:
    """Whether a call of that endpoint is refused no more."""
    try:
        client.start(endpoint, endpoint, operation, value, schedule_to_close_ms=100)
    except mesh.Refusal:
        return False
    return True


class TestThrough:
    def test_values(self, client: mesh.SyncClient) -> None:
        assert client.call("shop", Shop.order, Order(item="tea", howMany=2)) == Receipt("2 tea", 14)
        assert client.call("shop", Shop.blob, b"abc\xff") == b"\xffcba"
        assert client.call("shop", Shop.nothing) is None
        assert client.call("shop", Shop.echo, {"a": [1.5, None]}) == {"a": [1.5, None]}

    def test_what_the_handler_knows(self, client: mesh.SyncClient) -> None:
        handle = client.start("shop", Shop.seen, headers={"x-mine": "a"})
        seen = handle.result()
        context = seen["context"]
        assert (context["operation_id"], context["run"], context["attempt"]) == (handle.id, 1, 1)
        assert context["namespace"] == "default"
        assert seen["request_id"] == f"{handle.id}.1"
        assert seen["headers"]["x-mine"] == "a"

    def test_long_work_is_leased_and_completed(self, client: mesh.SyncClient) -> None:
        handle = client.start("shop", Shop.slow, 3.0)
        types = [event.type for event in handle.watch()]
        assert types == ["accepted", "dispatched", "started", "succeeded"]
        assert handle.result() == "done"

    @pytest.mark.parametrize("operation", [Shop.deaf, Shop.slow, Shop.thread])
    def test_cancel(self, client: mesh.SyncClient, operation: Any) -> None:
        handle = client.start("shop", operation, None if operation is Shop.deaf else 60.0)
        until(lambda: handle.get()["state"] == "started")
        handle.cancel()
        with pytest.raises(mesh.OperationCanceled):
            handle.result(timeout_s=30)

    def test_failures(self, client: mesh.SyncClient) -> None:
        with pytest.raises(mesh.OperationFailed, match="top: middle: 'deep'"):
            client.call("shop", Shop.error, "chain")
        with pytest.raises(mesh.OperationFailed, match="as asked"):
            client.call("shop", Shop.error, "BAD_REQUEST")
        with pytest.raises(mesh.OperationTimedOut):
            client.call("shop", Shop.slow, 60.0, schedule_to_close_ms=500)

    def test_a_passing_error_after_the_201_is_tried_again(self, client: mesh.SyncClient, shop: ShopHandler) -> None:
        shop.gate.clear()
        handle = client.start("shop", Shop.late_error, "UNAVAILABLE")
        until(lambda: handle.get()["state"] == "started")
        threading.Timer(1.0, shop.gate.set).start()
        until(lambda: handle.get()["attempt"] >= 2)
        handle.cancel()

    def test_the_same_key(self, client: mesh.SyncClient) -> None:
        first, again = (client.start("shop", Shop.count, 4, idempotency_key="k") for _ in range(2))
        assert (first.id, again.replayed) == (again.id, True)
        with pytest.raises(mesh.Refusal) as caught:
            client.start("shop", Shop.count, 5, idempotency_key="k")
        assert caught.value.status == 422

    def test_refusals(self, client: mesh.SyncClient) -> None:
        with pytest.raises(mesh.Refusal, match="nope"):
            client.call("nope", "S", "op")
        with pytest.raises(mesh.Refusal, match="item"):
            client.call("shop", "Shop", "order", {"item": 3})

    def test_why_nothing_comes(
        self, dev: Dev, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """P420: nobody serves it; the caller's log says so, and so does the error when its patience ends."""
        monkeypatch.setattr(patience, "QUIET_S", 1.0)
        registered = {"target": {"kind": "pull"}}
        assert httpx.put(f"{dev.url}/v1/endpoints/absent", json=registered, trust_env=False).status_code == 201
        waits = pytest.raises(mesh.StillRunning, match="waits: no instance of 'absent' is alive")
        with mesh.SyncClient(dev.url) as client, waits as caught:
            client.call("absent", "absent", "op", timeout_s=1.5)
        (said,) = [one.getMessage() for one in caplog.records if one.name == "mesh.client"]
        assert caught.value.operation_id in said
        assert "no instance of 'absent' is alive; it is kept and goes on by itself" in said

    def test_list(self, client: mesh.SyncClient) -> None:
        handle = client.start("shop", Shop.count, 1, labels={"who": "me"}, wait_s=5)
        assert handle.record["state"] == "succeeded"
        assert [each["id"] for each in client.list(labels={"who": "me"}, state="succeeded").items] == [handle.id]


WORKER = """
import sys
import mesh
from mesh.clock import sleep

async def work(name: str) -> str:
    with open(sys.argv[1], "a") as file:
        print(sys.argv[2], file=file)
    await sleep(float(sys.argv[3]))
    return f"{name} by {sys.argv[2]}"

mesh.Agent("worker", [work], lease_ms=1000, ttl_ms=1000, answer_within_ms=100, drain_s=0.1).run()
"""


UNEVEN = """
import mesh

async def half(number: int) -> int:
    if number % 2:
        raise ArithmeticError(f"{number} is odd")
    return number // 2

mesh.Agent("uneven", [half]).run()
"""


class TestBadHandlers:
    def test_a_handler_that_raises_for_some_answers_the_others(self, dev: Dev, tmp_path: Path) -> None:
        """P115: six operations that fail again and again, then good ones: each answered at once."""
        script = tmp_path / "uneven.py"
        script.write_text(UNEVEN)
        with process([sys.executable, str(script)], MESH_URL=dev.url), mesh.SyncClient(dev.url) as client:
            until(lambda: known(client, "uneven", "half", 0))
            odd = [client.start("uneven", "uneven", "half", number) for number in range(1, 13, 2)]
            for handle in odd:
                until(lambda handle=handle: handle.get()["state"] == "backing_off")
            for number in range(2, 12, 2):
                assert client.call("uneven", "uneven", "half", number, timeout_s=3) == number // 2
            assert {handle.get()["state"] for handle in odd} <= {"backing_off", "scheduled"}
            for handle in odd:
                handle.cancel()


class TestKills:
    @pytest.fixture
    def own(self, tmp_path: Path) -> Iterator[Dev]:
        dev = Dev(tmp_path / "data")
        dev.start()
        yield dev
        dev.stop()

    def test_a_killed_agents_work_is_finished_by_another(self, own: Dev, tmp_path: Path) -> None:
        log = tmp_path / "log"
        with ExitStack() as stack, mesh.SyncClient(own.url) as client:
            first = stack.enter_context(Worker(own, log, "first", 60))
            handle = start_when_known(client)
            until(lambda: handle.get()["state"] == "started")
            first.kill()
            stack.enter_context(Worker(own, log, "second", 0.5))
            assert handle.result(timeout_s=20) == "job by second"
            assert handle.get()["attempt"] >= 2
        assert log.read_text().split() == ["first", "second"]

    def test_a_killed_gateway_is_waited_for(self, own: Dev, tmp_path: Path) -> None:
        """The handler runs on while the gateway is gone, is executed once, and its caller gets the answer."""
        log = tmp_path / "log"
        results: list[Any] = []
        with Worker(own, log, "only", 3), mesh.SyncClient(own.url) as client:
            handle = start_when_known(client)
            until(lambda: handle.get()["state"] == "started")
            waiting = threading.Thread(target=lambda: results.append(handle.result(timeout_s=30)))
            waiting.start()
            own.kill()
            own.start()
            waiting.join(30)
        assert results == ["job by only"]
        assert log.read_text().split() == ["only"]


def start_when_known(client: mesh.SyncClient) -> Any:
    """The job, once the worker has registered."""

    def attempt() -> Any:
        try:
            return client.start("worker", "worker", "work", "job")
        except mesh.Refusal:
            return None

    return until(attempt)


class Worker:
    """A worker process; `kill` is SIGKILL."""

    def __init__(self, dev: Dev, log: Path, name: str, seconds: float) -> None:
        env = os.environ | {"PYTHONPATH": str(ROOT), "MESH_URL": dev.url}
        command = [sys.executable, "-c", WORKER, str(log), name, str(seconds)]
        self.child = subprocess.Popen(command, cwd=ROOT, env=env)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.terminate()
        self.child.wait(20)

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()
