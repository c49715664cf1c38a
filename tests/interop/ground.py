"""Real processes of Temporal for a test: a server with both directions of Nexus opened, and its workers.

Owns how they are started, told what to do, and ended. What they do is worker.py; where they are installed,
environment.py.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from mesh.clock import monotonic_s, pause, sleep
from tests.ports import lasting_port
from tests.surface.gateways import fresh

WORKER = Path(__file__).with_name("worker.py")
DYING_WITH_US = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
"""PR_SET_PDEATHSIG: a killed test run leaves no server behind."""
START_TIMEOUT_S = 30.0
START_TRIES_MAX = 3
ASK_TIMEOUT_S = 30.0


def free_ports(count: int) -> list[int]:
    """Ports that nobody has at this moment: Temporal's server must be told its own."""
    return [lasting_port() for _ in range(count)]


def server_command(temporal: Path, port: int, http_port: int, callbacks_to: str) -> list[str]:
    """`temporal server start-dev` as docs/how-to/temporal.md has it; `callbacks_to`: host:port it may call back."""
    http = f"http://127.0.0.1:{http_port}"
    allowed = [{"Pattern": callbacks_to, "AllowInsecure": True}]
    template = f"{http}/namespaces/{{{{.NamespaceName}}}}/nexus/callback"
    # Each under the name of the new engine and of the older one: the server reads the one of its operation's engine.
    settings = {
        "nexusoperation.callback.endpoint.template": template,
        "component.nexusoperations.callback.endpoint.template": template,
        "callback.allowedAddresses": allowed,
        "component.callbacks.allowedAddresses": allowed,
        "nexusoperation.enableStandalone": True,
    }
    words = [
        word for name, value in settings.items() for word in ("--dynamic-config-value", f"{name}={json.dumps(value)}")
    ]
    address = ["--ip", "127.0.0.1", "--port", str(port), "--http-port", str(http_port)]
    return [
        sys.executable,
        "-c",
        DYING_WITH_US,
        str(temporal),
        "server",
        "start-dev",
        "--headless",
        "--log-level",
        "warn",
        *address,
        *words,
    ]


class Temporal:
    """A Temporal server and its workers. `url`: its Nexus HTTP frontend; `calls` names an endpoint that leads out."""

    def __init__(self, bin_directory: Path, directory: Path, *, callbacks_to: str) -> None:
        self._bin = bin_directory
        self._directory = directory
        self._callbacks_to = callbacks_to
        self._numbers = itertools.count(1)
        self._answers: dict[int, Future[Any]] = {}
        self._server: subprocess.Popen[bytes] | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self.port = self.http_port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def cli(self, *words: str, within_s: float = ASK_TIMEOUT_S) -> tuple[int, str]:
        """Exit status and output of a `temporal` command."""
        command = [str(self._bin / "temporal"), *words, "--address", self.address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=within_s, check=False)
        return done.returncode, done.stdout + done.stderr

    def start(self) -> None:
        """Server and workers, ready for endpoints.

        The development server picks ports for its own parts, and now and then somebody else has one by the time it
        listens: it answers already, and then it panics. By when its workers are there, it would have.
        """
        for _ in range(START_TRIES_MAX):
            if self._start_server() and self._start_worker():
                return
            self.stop()
        raise AssertionError(f"Temporal's server did not start: {self.log()}")

    def _start_server(self) -> bool:
        self.port, self.http_port = free_ports(2)
        command = server_command(self._bin / "temporal", self.port, self.http_port, self._callbacks_to)
        with (self._directory / "server.log").open("ab") as log:
            self._server = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        end_s = monotonic_s() + START_TIMEOUT_S
        while self.cli("operator", "nexus", "endpoint", "list")[0]:
            if self._server.poll() is not None:
                return False
            assert monotonic_s() < end_s, self.log()
            pause(0.05)
        return True

    def _start_worker(self) -> bool:
        assert self._server is not None
        ready = self._answers[0] = Future()
        with (self._directory / "worker.log").open("ab") as log:
            self._worker = subprocess.Popen(
                [str(self._bin / "python"), str(WORKER), self.address],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        # A thread, not a task: the worker outlives the event loops of the tests that ask it.
        self._reader = threading.Thread(target=self._read, args=(self._worker,), daemon=True)
        self._reader.start()
        try:
            ready.result(START_TIMEOUT_S)
        except AssertionError:
            assert self._server.poll() is not None, self.log()
        return self._server.poll() is None

    def stop(self) -> None:
        if self._worker is not None:
            assert self._worker.stdin is not None
            self._worker.stdin.close()
            try:
                self._worker.wait(5)
            except subprocess.TimeoutExpired:
                self._worker.kill()
                self._worker.wait()
            self._worker = None
        if self._reader is not None:
            self._reader.join(5)
            self._reader = None
        if self._server is not None:
            self._server.kill()
            self._server.wait()

    def log(self) -> str:
        return "".join(file.read_text(errors="replace")[-3000:] for file in sorted(self._directory.glob("*.log")))

    def endpoint_to(self, url: str) -> str:
        """A Nexus endpoint of Temporal whose target is `url`; its name."""
        name = fresh("out")
        code, said = self.cli("operator", "nexus", "endpoint", "create", "--name", name, "--target-url", url)
        assert code == 0, said
        return name

    def endpoint_in(self, task_queue: str = "handlers") -> str:
        """A Nexus endpoint of Temporal whose target are its workers; the base URL at which HTTP callers reach it."""
        name = fresh("in")
        target = ["--target-namespace", "default", "--target-task-queue", task_queue]
        code, said = self.cli("operator", "nexus", "endpoint", "create", "--name", name, *target)
        assert code == 0, said
        code, said = self.cli("operator", "nexus", "endpoint", "get", "--name", name, "-o", "json")
        assert code == 0, said
        return f"{self.url}/nexus/endpoints/{json.loads(said)['id']}/services"

    async def ask(self, do: str, **fields: Any) -> Any:
        """One verb of worker.py's `Side`."""
        assert self._worker is not None
        assert self._worker.stdin is not None
        number = next(self._numbers)
        answer = self._answers[number] = Future()
        self._worker.stdin.write(json.dumps({"id": number, "do": do, **fields}).encode() + b"\n")
        self._worker.stdin.flush()
        return await asyncio.wait_for(asyncio.wrap_future(answer), ASK_TIMEOUT_S)

    async def call(self, endpoint: str, **call: Any) -> str:
        """Start a workflow that calls an operation; the workflow's id."""
        workflow = fresh("wf")
        await self.ask("start", workflow_id=workflow, call={"endpoint": endpoint, "schedule_to_close": 30, **call})
        return workflow

    async def result(self, workflow: str) -> Any:
        return await self.ask("result", workflow_id=workflow)

    async def events(self, workflow: str) -> list[str]:
        """The Nexus part of a workflow's history, types only."""
        history = await self.ask("history", workflow_id=workflow)
        return [kind.removeprefix("NEXUS_OPERATION_") for one in history if "NEXUS" in (kind := one["type"])]

    async def until(self, verb: str, wanted: Any, within_s: float = 30.0, **fields: Any) -> Any:
        """Ask until `wanted(value)` is true; that value."""
        end_s = monotonic_s() + within_s
        while not wanted(value := await self.ask(verb, **fields)):
            assert monotonic_s() < end_s, value
            await sleep(0.05)
        return value

    def _read(self, worker: subprocess.Popen[bytes]) -> None:
        assert worker.stdout is not None
        for line in worker.stdout:
            message = json.loads(line)
            answer = self._answers.pop(message["id"])
            if not answer.set_running_or_notify_cancel():
                continue
            if "error" in message:
                answer.set_exception(AssertionError(message["error"]))
            else:
                answer.set_result(message["value"])
        worker.stdout.close()
        for number in [*self._answers]:
            if (answer := self._answers.pop(number)).set_running_or_notify_cancel():
                answer.set_exception(AssertionError(f"Temporal's worker ended: {self.log()}"))
