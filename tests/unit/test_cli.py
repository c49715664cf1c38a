"""The `mesh` command as people and scripts use it: real processes against a real gateway, exit codes, words.

One development gateway and one agent serve the whole file; what a test kills it starts for itself. Commands that end
soon are forked off a process that has loaded them once, for a tenth of the price; `Background` starts them anew.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from queue import Queue
from typing import Any, ClassVar, NamedTuple

import httpx
import pytest
import yaml
from rich.console import Console
from standardwebhooks.webhooks import Webhook
from typer.testing import CliRunner

from gateway.cli.endpoints import REGISTERED
from gateway.cli.exits import MEANINGS, Exit
from gateway.cli.main import app
from gateway.cli.show import Show
from mesh.client import patience
from mesh.clock import monotonic_s, pause
from mesh.ids import operation_id, short_id
from mesh.store.embedded import EmbeddedStore
from registry.spec import EndpointSpec
from tests.agents.serving import Scripted, answer, serving
from tests.ports import lasting_port

ROOT = Path(__file__).parents[2]
MESH = [sys.executable, "-m", "gateway.cli.main"]
NOWHERE = "http://127.0.0.1:9"

AGENT = """
from pathlib import Path
import mesh
from mesh.clock import sleep
from nexusrpc import OperationError, OperationErrorState

async def greet(name: str) -> str:
    return f"Hello, {name}!"

async def fail(why: str) -> str:
    raise OperationError(why, state=OperationErrorState.FAILED)

async def hold(path: str) -> str:
    while not Path(path).exists():
        await sleep(0.02)
    return "released"

async def blob() -> bytes:
    return bytes(range(256))

mesh.serve("greeter", [greet, fail, hold, blob], drain_s=0, lease_ms=4000, policy={"retry": {"initial_ms": 100}})
"""


FORKER = """
import json, os, sys
import httpx, rich.console, rich.table, yaml
import gateway.cli.checkup, mesh.client.events
from gateway.cli.main import main

for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if not pid:
        os.environ.clear()
        os.environ.update(order["env"])
        for number, (path, flags) in enumerate(order["files"]):
            os.dup2(os.open(path, flags, 0o600), number)
        sys.stdin, sys.argv = open(0, closefd=False), ["mesh", *order["arguments"]]
        code = 99
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def until(look: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    deadline_s = monotonic_s() + seconds
    while not (found := look()):
        assert monotonic_s() < deadline_s, f"not within {seconds} s: {what}"
        pause(0.02)
    return found


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    return {**kept, "PYTHONUNBUFFERED": "1", "COLUMNS": "120", **more}


class Forker:
    """Runs commands to their end; one process each, forked."""

    def __init__(self, directory: Path) -> None:
        self._files = [directory / name for name in ("in", "out", "err")]
        self._process = subprocess.Popen(
            [sys.executable, "-c", FORKER], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def run(self, arguments: Sequence[str], stdin: str, env: dict[str, str]) -> Done:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        given, out, err = self._files
        given.write_text(stdin)
        write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        files = [(str(given), os.O_RDONLY), (str(out), write), (str(err), write)]
        print(json.dumps({"arguments": arguments, "env": env, "files": files}), file=self._process.stdin, flush=True)
        done = Done(int(self._process.stdout.readline()), out.read_text(), err.read_text())
        assert "Traceback" not in done.err, done.err
        return done

    def end(self) -> None:
        self._process.communicate(timeout=20)


@pytest.fixture(scope="module", autouse=True)
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    global _forker  # noqa: PLW0603 - `mesh(...)` reads like the command line, without a fixture in between
    _forker = Forker(tmp_path_factory.mktemp("forker"))
    yield
    _forker.end()


_forker: Forker


def mesh(*arguments: str, url: str = NOWHERE, stdin: str = "", **env: str) -> Done:
    """Run a command to its end."""
    return _forker.run(arguments, stdin, environment(MESH_URL=url, **env))


class Background:
    """A command that goes on; its standard output line by line."""

    started: ClassVar[list[Background]] = []

    def __init__(self, *arguments: str, command: Sequence[str] = MESH, **env: str) -> None:
        self.process = subprocess.Popen(
            [*command, *arguments],
            cwd=ROOT,
            env=environment(**env),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._lines: Queue[str] = Queue()
        self._err: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self._lines.put), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stderr, self._err.append), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self.started.append(self)

    def _read(self, stream: Any, keep: Callable[[str], None]) -> None:
        with stream:
            for line in stream:
                keep(line)
        keep("")

    def line(self, within_s: float = 20.0) -> str:
        """The next line, "" after the last one."""
        return self._lines.get(timeout=within_s)

    def wait(self, within_s: float = 40.0) -> Done:
        """Until it ends by itself; the lines that nobody has asked for."""
        self.process.wait(within_s)
        for reader in self._readers:
            reader.join(within_s)
        return Done(self.process.returncode, "".join(self._lines.queue), "".join(self._err))

    def end(self, number: signal.Signals = signal.SIGTERM, within_s: float = 15.0) -> Done:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait(within_s)


@pytest.fixture(autouse=True)
def nothing_goes_on() -> Iterator[None]:
    """What a test started ends with it, also when it failed."""
    before = len(Background.started)
    yield
    for one in Background.started[before:]:
        one.end(signal.SIGKILL)


class Place(NamedTuple):
    """A gateway with its agent."""

    gateway: Background
    url: str
    data: Path

    def __call__(self, *arguments: str, stdin: str = "", **env: str) -> Done:
        return mesh(*arguments, url=self.url, stdin=stdin, **env)


def start_gateway(data: Path, *more: str) -> Place:
    gateway = Background("dev", "--data", str(data), "--json", *(more or ("--port", str(lasting_port()))))
    line = gateway.line()
    assert line, gateway.end().err
    return Place(gateway, json.loads(line)["url"], data)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("cli")
    found = start_gateway(directory / "data")
    (directory / "agent.py").write_text(AGENT)
    agent = Background(command=[sys.executable, str(directory / "agent.py")], MESH_URL=found.url)
    until(lambda: httpx.get(f"{found.url}/v1/endpoints/greeter").status_code == 200, "the agent is registered")
    yield found
    agent.end()
    assert found.gateway.end().code == 0


@pytest.fixture
def receiver() -> Iterator[Any]:
    """A callback receiver: `statuses` are answered in turn, the last one for ever; `got` is what came."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            server.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(server.statuses.pop(0) if len(server.statuses) > 1 else server.statuses[0])
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            return

    class Server(ThreadingHTTPServer):
        got: list[tuple[dict[str, str], bytes]]
        statuses: list[int]
        url: str

    server = Server(("127.0.0.1", 0), Handler)
    server.got, server.statuses = [], [200]
    server.url = f"http://127.0.0.1:{server.server_address[1]}/done"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def started(place: Place, operation: str = "hold", value: str = "/nonexistent", *more: str) -> str:
    done = place("call", "greeter", "greeter", operation, "-i", json.dumps(value), "--async", *more)
    assert done.code == Exit.OK, done.err
    return done.out.strip()


# Help ---------------------------------------------------------------------------------------------------------------


class TestHelp:
    def test_it_loads_nothing_heavy(self) -> None:
        script = "import sys; import gateway.cli.main; print(*sys.modules)"
        loaded = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True, check=True, timeout=30
        ).stdout.split()
        assert {"fastapi", "httpx", "pydantic", "nexusrpc", "uvicorn", "redis", "rich"} & set(loaded) == set()

    def test_it_tells_every_command_and_exit_code(self) -> None:
        shown = mesh("--help").out
        words = ["dev", "serve", "demo", "call", "operation", "endpoint", "contract", "delivery", "doctor", "bench"]
        for word in words:
            assert re.search(rf"│ {word} ", shown)
        for code, meaning in MEANINGS.items():
            assert re.search(rf"{code:d} +{re.escape(meaning)}", shown)

    @pytest.mark.parametrize(
        "command",
        [
            *(["dev"], ["serve"], ["demo"], ["call"], ["doctor"], ["bench"]),
            *(["operation", verb] for verb in ("list", "show", "watch", "cancel")),
            *(["endpoint", verb] for verb in ("register", "list", "show", "pause", "resume", "remove")),
            *(["contract", verb] for verb in ("show", "diff", "generate", "openapi")),
            *(["delivery", verb] for verb in ("list", "redeliver", "secret")),
        ],
        ids=" ".join,
    )
    def test_every_command_has_an_example_and_json(self, command: list[str]) -> None:
        done = mesh(*command, "--help")
        assert done.code == 0
        assert f"mesh {' '.join(command)}" in done.out or command == ["delivery", "secret"]
        assert re.search(r"Examples?:", done.out)
        assert "--json" in done.out

    def test_a_slip_is_a_usage_error(self) -> None:
        for arguments in (["cal"], ["call"], ["call", "a", "b", "c", "--nonesuch"], ["dev", "--port", "x"]):
            assert mesh(*arguments).code == Exit.USAGE


# Gateways -----------------------------------------------------------------------------------------------------------


class TestDev:
    def test_it_says_what_it_is_where_the_data_lies_and_what_to_do_next(self, tmp_path: Path) -> None:
        gateway = Background("dev", "--data", str(tmp_path / "data"), "--port", "0")
        text = ""
        while "curl" not in text:
            line = gateway.line()
            assert line, gateway.end().err
            text += line
        url = re.search(r"http://127\.0\.0\.1:\d+", text)
        assert url
        assert httpx.get(f"{url[0]}/readyz").status_code == 200
        assert str(tmp_path / "data") in text
        for command in ("-m gateway.demo.agents retrieval", "call retrieval retrieval search", "curl http"):
            assert command in text
        done = gateway.end()
        assert (done.code, done.out.strip(), done.err) == (0, "", "")

    def test_a_second_one_on_the_same_data_is_refused_in_one_line(self, place: Place) -> None:
        done = mesh("dev", "--data", str(place.data), "--port", "0")
        assert done.code == Exit.REFUSED
        assert done.err.count("\n") == 1
        assert str(place.data) in done.err
        assert "in use" in done.err

    def test_a_port_that_is_taken_is_refused_in_one_line(self, place: Place, tmp_path: Path) -> None:
        port = place.url.rpartition(":")[2]
        done = mesh("dev", "--data", str(tmp_path), "--port", port)
        assert done.code != 0
        assert f"cannot listen on 127.0.0.1:{port}" in done.err
        assert done.err.count("\n") == 1

    def test_without_keys_it_listens_on_loopback_only(self, tmp_path: Path) -> None:
        done = mesh("dev", "--data", str(tmp_path), "--host", "0.0.0.0", "--port", "0")
        assert done.code == Exit.USAGE
        assert "--host: 0.0.0.0 can be reached by others" in done.err
        assert "add --namespace NAME" in done.err

    def test_teams_are_remembered_with_their_keys_and_strangers_learn_nothing(self, tmp_path: Path) -> None:
        data = tmp_path / "data"
        first = start_gateway(data, "--port", "0", "--namespace", "quality", "--namespace", "research=0123456789abcdef")
        teams = {
            team["name"]: team["keys"][0]
            for team in tomllib.loads((data / "namespaces.toml").read_text())["namespaces"]
        }
        assert teams["research"] == "0123456789abcdef"
        assert stat.S_IMODE((data / "namespaces.toml").stat().st_mode) == 0o600
        assert first("operation", "list").code == Exit.REFUSED
        assert "MESH_KEY" in first("operation", "list").err
        assert first("operation", "list", MESH_KEY=teams["quality"]).code == 0
        first.gateway.end()
        again = start_gateway(data)
        assert again("endpoint", "list", MESH_KEY=teams["quality"]).code == 0
        assert again("endpoint", "list", "--api-key", "f" * 16).code == Exit.REFUSED
        assert again.gateway.end().code == 0

    @pytest.mark.parametrize("team", ["quality=short", "quality=with a blank in it", "no/name"])
    def test_a_team_that_cannot_be_is_refused_before_it_is_remembered(self, tmp_path: Path, team: str) -> None:
        done = mesh("dev", "--data", str(tmp_path / "data"), "--port", "0", "--namespace", team)
        assert (done.code, done.err.count("\n")) == (Exit.USAGE, 1)
        assert f"--namespace {team.partition('=')[0]}: a " in done.err
        assert not (tmp_path / "data" / "namespaces.toml").exists()

    def test_broken_memory_of_teams_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "namespaces.toml").write_text("[[namespaces")
        done = mesh("dev", "--data", str(tmp_path), "--port", "0")
        assert (done.code, "namespaces.toml" in done.err) == (Exit.USAGE, True)


class TestServe:
    @pytest.mark.usefixtures("link")  # which empties the store: it refuses to serve one with work of nobody it knows
    async def test_it_serves_a_given_store(self, embedded: EmbeddedStore, tmp_path: Path) -> None:
        await asyncio.to_thread(self._serves, embedded, tmp_path)

    def _serves(self, embedded: EmbeddedStore, tmp_path: Path) -> None:
        config = tmp_path / "mesh.toml"
        config.write_text('[gateway]\nport = 0\n[[namespaces]]\nname = "quality"\nkeys = ["0123456789abcdef"]\n')
        env = {"MESH_STORE_URL": str(embedded.address), "MESH_TOKEN_SECRET": "0" * 32}
        gateway = Background("serve", "--config", str(config), "--json", **env)
        line = gateway.line()
        assert line, gateway.end().err
        url = json.loads(line)["url"]
        assert mesh("endpoint", "list", url=url, MESH_KEY="0123456789abcdef").code == 0
        assert gateway.end().code == 0

    def test_settings_that_cannot_work_are_told_in_one_line(self, tmp_path: Path) -> None:
        config = tmp_path / "mesh.toml"
        config.write_text("[gateway]\nprot = 1\n")
        for file, word in ((tmp_path / "none.toml", "none.toml"), (config, "gateway.prot")):
            done = mesh("serve", "--config", str(file))
            assert (done.code, done.err.count("\n")) == (Exit.USAGE, 1)
            assert word in done.err

    def test_a_store_that_is_not_there_is_told_in_one_line(self, tmp_path: Path) -> None:
        config = tmp_path / "mesh.toml"
        config.write_text('[gateway]\nport = 0\n[[namespaces]]\nname = "quality"\nkeys = ["0123456789abcdef"]\n')
        env = {"MESH_STORE_URL": "redis://127.0.0.1:9/0", "MESH_TOKEN_SECRET": "0" * 32}
        done = mesh("serve", "--config", str(config), **env)
        assert done.code == Exit.UNAVAILABLE, done.err
        assert done.err.count("\n") == 1


# Calls --------------------------------------------------------------------------------------------------------------


class TestCall:
    def test_the_result_alone_goes_to_standard_output(self, place: Place) -> None:
        done = place("call", "greeter", "greeter", "greet", "--input", '"Ada"')
        assert (done.code, json.loads(done.out)) == (0, "Hello, Ada!")
        assert re.search(r"succeeded in .* operation 00-\w+", done.err)

    def test_json_is_the_record(self, place: Place) -> None:
        done = place(
            "call", "greeter", "greeter", "greet", "-i", '"Ada"', "--json", "--label", "a=b", "--deadline", "60"
        )
        record = done.json
        assert (record["state"], record["result"], record["labels"]) == ("succeeded", "Hello, Ada!", {"a": "b"})
        assert record["deadline"]
        assert done.err == ""

    def test_input_comes_from_a_file_or_a_pipe(self, place: Place, tmp_path: Path) -> None:
        (tmp_path / "in.json").write_text('"Grace"')
        assert "Grace" in place("call", "greeter", "greeter", "greet", "-i", f"@{tmp_path}/in.json").out
        assert "Alan" in place("call", "greeter", "greeter", "greet", "-i", "-", stdin='"Alan"').out

    def test_a_result_of_bytes_comes_out_as_it_is(self, place: Place) -> None:
        done = subprocess.run(
            [*MESH, "call", "greeter", "greeter", "blob"],
            cwd=ROOT,
            env=environment(MESH_URL=place.url),
            capture_output=True,
            check=True,
            timeout=30,
        )
        assert done.stdout == bytes(range(256)) + b"\n"

    def test_a_failure_is_one_sentence_and_exit_1(self, place: Place) -> None:
        done = place("call", "greeter", "greeter", "fail", "-i", '"out of paper"')
        assert (done.code, done.out) == (Exit.FAILED, "")
        assert re.fullmatch(r"mesh: operation 00-\w+ failed: .*out of paper.*\n", done.err)
        told = place("call", "greeter", "greeter", "fail", "-i", '"out of paper"', "--json")
        assert told.code == Exit.FAILED
        assert told.json["state"] == "failed"
        assert json.loads(told.err)["error"] == "operation_failed"

    def test_async_prints_the_id_and_watch_brings_the_result(self, place: Place, tmp_path: Path) -> None:
        operation = started(place, "hold", str(tmp_path / "go"))
        watch = Background("operation", "watch", operation, MESH_URL=place.url)
        assert "accepted" in watch.line()
        (tmp_path / "go").touch()
        done = watch.wait()
        assert done.code == 0, done.err
        assert "succeeded" in done.out
        assert json.loads(done.out.splitlines()[-1]) == "released"

    def test_a_wait_that_is_over_leaves_the_operation_going(self, place: Place, tmp_path: Path) -> None:
        done = place("call", "greeter", "greeter", "hold", "-i", json.dumps(str(tmp_path / "go")), "--wait", "1")
        assert (done.code, done.out) == (Exit.UNAVAILABLE, "")
        operation = re.search(r"00-\w+", done.err)
        assert operation
        assert "goes on" in done.err
        (tmp_path / "go").touch()
        assert place("operation", "watch", operation[0]).code == 0

    def test_the_same_key_is_the_same_operation_and_other_content_is_refused(self, place: Place) -> None:
        call = ("call", "greeter", "greeter", "greet", "--key", short_id("key"), "--json", "-i")
        first, again, other = place(*call, '"Ada"'), place(*call, '"Ada"'), place(*call, '"Grace"')
        assert first.json["id"] == again.json["id"]
        assert (other.code, other.out) == (Exit.REFUSED, "")
        assert json.loads(other.err) | {"error": "key_reused", "operation_id": first.json["id"]} == json.loads(
            other.err
        )
        assert "used before" in place(*call[:-2], "-i", '"Ada"').err
        told = place(*call[:-2], "-i", '"Grace"').err
        assert ("use a new key" in told, "Use another --key" in told) == (True, False)

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (["nonesuch", "s", "o"], Exit.MISSING, "mesh endpoint list"),
            (["greeter", "nonesuch", "greet"], Exit.MISSING, "nonesuch"),
            (["greeter", "greeter", "nonesuch"], Exit.MISSING, "greet"),
            (["greeter", "greeter", "greet", "-i", "5"], Exit.REFUSED, "/input"),
            (["greeter", "greeter", "greet", "-i", "Ada"], Exit.USAGE, "--input '\"Ada\"'"),
            (["greeter", "greeter", "greet", "-i", "{"], Exit.USAGE, "not JSON"),
            (["greeter", "greeter", "greet", "-i", "@/nonexistent"], Exit.USAGE, "/nonexistent"),
            (["greeter", "greeter", "greet", "--wait", "1", "--async"], Exit.USAGE, "exclude"),
            (["greeter", "greeter", "greet", "--label", "a"], Exit.USAGE, "NAME=VALUE"),
            (["greeter", "greeter", "greet", "--wait", "-1"], Exit.USAGE, "--wait -1"),
            (["greeter", "greeter", "greet", "--deadline", "-3"], Exit.USAGE, "--deadline -3"),
            (["greeter", "greeter", "greet", "--deadline", "0"], Exit.USAGE, "--deadline 0"),
            (["greeter", "greeter", "greet", "--callback-format", "x"], Exit.USAGE, "cloudevents"),
            (["greeter", "greeter", "greet", "-i", '""', "--callback", "ftp://x"], Exit.USAGE, "URL"),
        ],
    )
    def test_what_cannot_be_is_one_sentence_with_the_mend(
        self, place: Place, arguments: list[str], code: Exit, words: str
    ) -> None:
        done = place("call", *arguments)
        assert (done.code, done.out) == (code, "")
        assert words in done.err
        assert done.err.count("\n") == 1
        assert done.err.startswith("mesh: ")

    def test_no_gateway_is_told_at_once(self) -> None:
        begun_s = monotonic_s()
        done = mesh("call", "greeter", "greeter", "greet", "-i", '"Ada"')
        assert (done.code, "mesh dev" in done.err) == (Exit.UNAVAILABLE, True)
        assert monotonic_s() - begun_s < 10
        assert mesh("operation", "list", url="gateway").code == Exit.USAGE
        assert json.loads(mesh("endpoint", "list", "--json").err)["exit"] == Exit.UNAVAILABLE

    def test_something_else_at_the_url_is_told(self, receiver: Any) -> None:
        done = mesh("endpoint", "list", url=receiver.url)
        assert done.code == Exit.UNAVAILABLE
        assert done.err.count("\n") == 1

    def test_a_call_and_a_watch_outlive_the_gateway(self, tmp_path: Path) -> None:
        first = start_gateway(tmp_path / "data")
        port = first.url.rpartition(":")[2]
        (tmp_path / "agent.py").write_text(AGENT)
        agent = Background(command=[sys.executable, str(tmp_path / "agent.py")], MESH_URL=first.url)
        until(lambda: httpx.get(f"{first.url}/v1/endpoints/greeter").status_code == 200, "the agent is registered")
        value = json.dumps(str(tmp_path / "go"))
        call = Background("call", "greeter", "greeter", "hold", "-i", value, MESH_URL=first.url)
        operation = until(lambda: first("operation", "list", "--json").json["items"], "it is accepted")[0]["id"]
        watch = Background("operation", "watch", operation, "--json", MESH_URL=first.url)
        assert json.loads(watch.line())["seq"] == 1
        first.gateway.process.kill()
        first.gateway.end()
        again = start_gateway(tmp_path / "data", "--port", port)
        (tmp_path / "go").touch()
        done = call.wait()
        assert (done.code, json.loads(done.out)) == (0, "released"), done.err
        assert "used before" not in done.err  # it was this call that used it
        done = watch.wait()
        assert done.code == 0, done.err
        events = [json.loads(line) for line in done.out.splitlines()]
        assert [event["seq"] for event in events] == list(range(2, len(events) + 2))
        assert "succeeded" in {event["type"] for event in events}
        agent.end()
        again.gateway.end()

    def test_ctrl_c_is_quiet(self, place: Place) -> None:
        watch = Background("operation", "watch", started(place), MESH_URL=place.url)
        assert "accepted" in watch.line()
        done = watch.end(signal.SIGINT)
        assert (done.code, "Traceback" in done.err) == (Exit.INTERRUPTED, False)


# Looking ------------------------------------------------------------------------------------------------------------


    def test_ctrl_c_tells_how_to_come_back(self) -> None:
        def reply(_: Any) -> Any:
            return answer({"id": "00-x", "state": "started", "attempt": 1}, 202)

        with serving(gateway := Scripted(reply)) as url:
            asking = Background("call", "a", "s", "o", "--url", url)
            until(lambda: [one for one in gateway.requests if one.path.startswith("/v1/operations/00-x/")], "a wait")
            done = asking.end(signal.SIGINT)
        assert (done.code, "Traceback" in done.err) == (Exit.INTERRUPTED, False)
        assert "operation 00-x goes on" in done.err

    def test_why_it_waits_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """P420: as the SDK does."""
        monkeypatch.setattr(patience, "QUIET_S", 0.0)
        waits = {"id": "00-x", "state": "backing_off", "attempt": 2, "closed_at": None}
        whole = waits | {"last_failure": {"attempt": 2, "message": "no such door"}}

        def reply(request: Any) -> Any:
            return answer(whole) if request.path == "/v1/operations/00-x" else answer(waits, 202)

        with serving(Scripted(reply)) as url:
            done = CliRunner().invoke(app, ["call", "a", "s", "o", "--wait", "0.5", "--url", url])
        (said,) = [line for line in done.output.splitlines() if line.startswith("operation 00-x waits, for ")]
        assert "s now: attempt 2 failed: no such door; the next one is at" in said

    @pytest.mark.parametrize("key", ["", "ü", "a\n"])
    def test_a_key_that_is_none(self, key: str) -> None:
        done = mesh("call", "a", "s", "o", "--key", key)
        assert (done.code, "visible ASCII" in done.err) == (Exit.USAGE, True)
        done = mesh("call", "a", "s", "o", "--api-key", key or "x y")
        assert (done.code, "MESH_KEY" in done.err) == (Exit.USAGE, True)


class TestOperation:
    def test_list_filters_and_pages(self, place: Place) -> None:
        label = f"batch={short_id('b')}"
        ids = [started(place, "greet", "Ada", "--label", label) for _ in range(3)]
        page = place("operation", "list", "--label", label, "--limit", "2", "--json").json
        rest = place("operation", "list", "--label", label, "--cursor", page["next_cursor"], "--json").json
        assert [one["id"] for one in page["items"] + rest["items"]] == ids[::-1]
        assert place("operation", "list", "--label", label, "--state", "failed", "--json").json["items"] == []
        assert len(place("operation", "list", "--label", label, "--since", "1h", "--json").json["items"]) == 3
        assert place("operation", "list", "--label", label, "--until", "1h", "--json").json["items"] == []
        text = place("operation", "list", "--label", label).out
        assert all(one in text for one in ids)
        assert "no operations" in place("operation", "list", "--endpoint", "nonesuch").err

    def test_a_list_is_cut_to_the_terminal_and_what_is_copied_stays_whole(self) -> None:
        show, out = Show(as_json=False), StringIO()
        show._console = Console(file=out, width=60)
        identity = operation_id()
        row = (identity, "started", "endpoint/" * 9, "because " * 9)
        show.table(("id", "state", "operation", "why"), [row], "none")
        head, *rows = out.getvalue().splitlines()
        assert all(len(line) <= 60 for line in (head, *rows))
        assert identity in rows[0]
        assert "started" in rows[0]
        assert "".join(rows).count("endpoint") == 1
        assert "".join(rows).count("because") == 9

    def test_show_has_the_record_and_the_whole_history(self, place: Place) -> None:
        operation = place("call", "greeter", "greeter", "greet", "-i", '"[red]Ada"', "--json").json["id"]
        shown = place("operation", "show", operation)
        for words in (operation, "succeeded", "greeter/greet", '"Hello, [red]Ada!"', "accepted", "dispatched"):
            assert words in shown.out
        assert re.search(r"instance +127\.0\.0\.1-\d+", shown.out)
        told = place("operation", "show", operation, "--json").json
        assert [event["seq"] for event in told["history"]] == list(range(1, told["events"] + 1))

    def test_show_tells_why_it_goes_on_and_what_becomes_of_the_callback(self, place: Place, receiver: Any) -> None:
        name = short_id("busy")
        receiver.statuses = [500]
        place("endpoint", "register", name, "-t", receiver.url, "--policy", '{"retry": {"initial_ms": 60000}}')
        args = ("call", name, "any", "thing", "--callback", receiver.url, "--key", name)
        operation = place(*args, "--async", "--json").json["id"]
        until(lambda: place("operation", "show", operation, "--json").json["state"] == "backing_off", "it backs off")
        shown = place("operation", "show", operation).out
        assert re.search(r"next attempt +in (\d\d\.?\d* s|1 min)", shown), shown
        assert re.search(r"last failure +attempt 1 at target, .* ago: INTERNAL: 500", shown), shown
        assert re.search(r"callback +not owed yet: it is owed once the operation ends +" + receiver.url, shown), shown
        waited = place(*args, "--wait", "0.1").err
        assert re.search(r"still backing off after 100 ms \(attempt 1 failed: 500.*\); it goes on", waited), waited
        listed = place("delivery", "list", "--kind", "start", "--state", "pending").out
        assert re.search(r"next in (\d\d\.?\d* s|1 min)", listed), listed
        place("operation", "cancel", operation)

    def test_cancel_ends_it_and_may_be_repeated(self, place: Place) -> None:
        operation = started(place)
        until(lambda: place("operation", "show", operation, "--json").json["state"] == "started", "it runs")
        assert place("operation", "cancel", operation).code == 0
        done = place("operation", "watch", operation)
        assert (done.code, "canceled" in done.err) == (Exit.FAILED, True)
        assert "is canceled" in place("operation", "cancel", operation).out
        assert place("operation", "cancel", operation, "--json").json["state"] == "canceled"
        assert place("operation", "watch", operation, "--json").code == Exit.FAILED

    @pytest.mark.parametrize("verb", ["show", "watch", "cancel"])
    def test_what_is_not_there_is_exit_3(self, place: Place, verb: str) -> None:
        for operation in ("00-00000000000000000000", "../../readyz", "nonesuch"):
            done = place("operation", verb, operation)
            assert (done.code, done.err.count("\n")) == (Exit.MISSING, 1)

    @pytest.mark.parametrize("verb", ["show", "watch", "cancel"])
    def test_an_empty_id_is_told(self, verb: str) -> None:
        done = mesh("operation", verb, "")
        assert (done.code, "id is empty" in done.err) == (Exit.USAGE, True)

    def test_times_and_states_are_checked(self, place: Place) -> None:
        assert place("operation", "list", "--since", "yesterday").code == Exit.USAGE
        done = place("operation", "list", "--state", "nonesuch")
        assert (done.code, "succeeded" in done.err) == (Exit.USAGE, True)
        assert place("operation", "list", "--state", "running,failed", "--limit", "1").code == 0
        done = place("delivery", "list", "--state", "nonesuch")
        assert (done.code, "dead" in done.err) == (Exit.USAGE, True)
        assert place("delivery", "list", "--kind", "nonesuch").code == Exit.USAGE


class TestPages:
    def test_a_list_with_filters_looks_on(self) -> None:
        """P69: pages may be empty and go on; only a missing cursor is the end."""
        pages: list[dict[str, Any]] = []
        one = {"id": operation_id(), "kind": "callback", "state": "dead", "tries": 3, "endpoint": "x"}
        stub = Scripted(lambda _: answer(pages.pop(0)))
        with serving(stub) as url:
            pages += [{"items": [], "next_cursor": "a"}, {"items": [one], "next_cursor": None}]
            found = mesh("delivery", "list", "--state", "dead", url=url)
            assert (found.code, one["id"] in found.out, found.err) == (0, True, "")
            assert ["cursor=a" in request.path for request in stub.requests] == [False, True]
            pages += [{"items": [], "next_cursor": "b"}] * 10
            none = mesh("operation", "list", "--label", "a=b", url=url)
            assert (none.code, none.out) == (0, "")
            assert none.err == "none of the operations looked at so far\nlook further with --cursor b\n"

    def test_what_no_repeat_mends_is_refused(self, place: Place) -> None:
        name = short_id("often")
        place("schedule", "create", name, "* * * * *", "greeter", "greeter", "greet", "-i", '"Ada"')
        done = place("schedule", "backfill", name, "--from", "2026-01-01T00:00:00Z", "--until", "2026-01-02T00:00:00Z")
        assert (done.code, "1000" in done.err) == (Exit.REFUSED, True), done.err
        assert place("schedule", "remove", name, "--yes").code == Exit.OK


class TestEndpoint:
    def test_its_whole_life(self, place: Place, tmp_path: Path) -> None:
        name = short_id("billing")
        made = place(
            "endpoint", "register", name, "-t", NOWHERE, "--service", "invoices=create,send", "--service", "any"
        )
        assert (made.code, "registered, registration 1" in made.out) == (0, True)
        shown = place("endpoint", "show", name, "--json").json
        assert shown["target"] == {"kind": "http", "url": NOWHERE}
        assert [one["name"] for one in shown["services"]] == ["invoices", "any"]
        file = tmp_path / "billing.yaml"
        file.write_text(yaml.safe_dump({"target": {"kind": "http", "url": NOWHERE}, "labels": {"tier": "1"}}))
        args = ("endpoint", "register", name, "--file", str(file), "--if-match")
        changed = place(*args, f'"v{shown["version"]}"', "--policy", '{"max_concurrency": 2}')
        assert "changed, registration 2" in changed.out
        assert place(*args, f'"v{shown["version"]}"').code == Exit.REFUSED
        found = place("endpoint", "list", "--label", "tier=1", "--json").json["items"]
        assert [(one["name"], one["policy"]["max_concurrency"]) for one in found] == [(name, 2)]
        assert "is paused" in place("endpoint", "pause", name).out
        waits = place("call", name, "any", "thing", "--wait", "1", "--json")
        assert (waits.code, waits.json["blocked"]) == (Exit.UNAVAILABLE, "paused")
        assert "paused" in place("endpoint", "list").out
        assert "dispatches" in place("endpoint", "resume", name).out
        assert place("endpoint", "remove", name, "--yes").code == 0
        assert place("endpoint", "show", name).code == Exit.MISSING
        gone = place("endpoint", "remove", name)
        assert (gone.code, "[y/N]" in gone.out + gone.err) == (Exit.MISSING, False), "nobody is asked about it"

    def test_one_whose_agents_ask_for_their_work(self, place: Place) -> None:
        name = short_id("laptop")
        assert place("endpoint", "register", name, "--pull").code == 0
        assert place("endpoint", "show", name, "--json").json["target"] == {"kind": "pull"}
        body = {"instance": "mine", "wait_ms": 0}
        assert httpx.post(f"{place.url}/v1/endpoints/{name}/poll", json=body).json() == {"tasks": []}
        shown = place("endpoint", "show", name).out
        assert ("mine" in shown, "\nbreaker" in shown) == (True, False)
        both = place("endpoint", "register", name, "--pull", "-t", NOWHERE)
        assert (both.code, "exclude each other" in both.err) == (Exit.USAGE, True)

    def test_an_etag_that_lost_its_quotes_to_the_shell_is_still_one(self, place: Place) -> None:
        name = short_id("tagged")
        assert place("endpoint", "register", name, "--pull").code == Exit.OK
        again = ("endpoint", "register", name, "--pull", "--description", "new", "--if-match")
        refused = place(*again, "v9")
        assert (refused.code, 'registration 1, ETag "v1"; read it again and repeat with that' in refused.err) == (
            Exit.REFUSED, True,
        )  # fmt: skip
        assert "changed, registration 2" in place(*again, "v1").out
        assert "unchanged, registration 2" in place(*again, "2").out

    def test_a_version_that_nobody_runs(self, place: Place) -> None:
        """It may be prepared; a slip in its name must not look like that."""
        name = short_id("released")
        unseen = ("--policy", '{"probe": {"every_ms": 0}}')
        assert place("endpoint", "register", name, "-t", NOWHERE, *unseen).code == Exit.OK
        mine = {"url": NOWHERE, "version": "3", "ttl_ms": 60_000}
        assert httpx.put(f"{place.url}/v1/endpoints/{name}/instances/mine", json=mine).status_code == 201
        share = ("endpoint", "share", name, "--version", "9")
        shared = place(*share, "--percent", "5")
        assert re.search(r"^9 +5 % \(no instance\) ", shared.out, re.MULTILINE), shared.out
        assert "no instance of version 9 is alive; there are 3. It holds once one is" in shared.err
        waits = place("call", name, "any", "thing", "--version", "9", "--wait", "1", "--deadline", "60")
        assert waits.code == Exit.UNAVAILABLE
        assert "no live instance of version '9' takes work; it goes out when one does (there is 3)" in waits.err
        drained = place("endpoint", "drain", name, "--version", "8")
        assert f"`mesh endpoint undrain {name} --version 8` forgets it" in drained.err
        assert place("endpoint", "undrain", name, "--version", "8").code == Exit.OK
        place("operation", "cancel", waits.err.split("operation ")[1].split()[0])
        forgotten = place(*share)
        assert (re.findall(r"^(\d+) ", forgotten.out, re.MULTILINE), forgotten.err) == (["3"], "")
        assert place(*share, "--percent", "5", "--weight", "2").code == Exit.USAGE

    def test_an_agent_that_does_not_come(self, place: Place) -> None:
        done = place("endpoint", "wait", "nobody", "--timeout", "0.2")
        assert (done.code, "Its own log says whether the registry refused it" in done.err) == (Exit.UNAVAILABLE, True)
        assert done.err.count("mesh endpoint list") == 1
        assert place("endpoint", "show", "nobody").err.count("mesh endpoint list") == 1

    def test_register_keeps_what_is_not_named(self, place: Place) -> None:
        """Said of `--allow`, it must not open the list of operations or drop a limit; --replace forgets the rest."""
        name = short_id("billing")
        args = ("endpoint", "register", name)
        policy = '{"max_concurrency": 2}'
        place(*args, "-t", NOWHERE, "--service", "invoices=create", "--policy", policy, "--label", "a=b")
        before = place("endpoint", "show", name, "--json").json
        assert place(*args, "--allow", "research").code == 0
        after = place("endpoint", "show", name, "--json").json
        kept = [field for field in REGISTERED if field != "allow"]
        assert after["allow"] == ["research"]
        assert {field: after[field] for field in kept} == {field: before[field] for field in kept}
        assert place(*args, "--allow", "quality", "--if-match", f'"v{before["version"]}"').code == Exit.REFUSED
        assert place(*args, "-t", NOWHERE, "--replace").code == 0
        bare = place("endpoint", "show", name, "--json").json
        assert (bare["allow"], bare["services"], bare["labels"]) == ([], [], {})
        assert bare["policy"]["max_concurrency"] is None
        place("endpoint", "remove", name, "--yes")

    def test_a_namespace_that_nobody_knows_is_told(self, place: Place) -> None:
        done = place("endpoint", "register", short_id("billing"), "-t", NOWHERE, "--allow", "*", "--allow", "resaerch")
        assert (done.code, "/allow/1: this gateway knows no namespace 'resaerch'" in done.err) == (0, True)

    def test_all_that_a_registration_has_is_kept(self) -> None:
        assert set(REGISTERED) == set(EndpointSpec.model_fields)

    def test_show_tells_people_about_instances(self, place: Place) -> None:
        text = place("endpoint", "show", "greeter").out
        assert re.search(r"127\.0\.0\.1-\d+ +healthy", text)
        assert "greet" in text

    def test_show_tells_people_about_the_breaker(self, place: Place, receiver: Any) -> None:
        assert re.search(r"breaker +closed", place("endpoint", "show", "greeter").out)
        receiver.statuses = [503]
        name = short_id("away")
        policy = json.dumps({"breaker": {"failures": 1, "open_ms": 90_000}})
        place("endpoint", "register", name, "-t", receiver.url, "--policy", policy)
        operation = place("call", name, "any", "thing", "--wait", "0", "--json").json["id"]
        until(lambda: place("operation", "show", operation, "--json").json.get("blocked") == "breaker", "it rests")
        shown = place("endpoint", "show", name).out
        assert re.search(r"breaker +open since .* ago, 1 of 1 requests in a row did not get through", shown), shown
        assert "rests 2 min, at most 2 min; a probe in " in shown
        assert "(breaker open)" in place("endpoint", "list").out
        off = json.dumps({"breaker": {"failures": 0}})
        place("endpoint", "register", name, "-t", receiver.url, "--policy", off)
        assert re.search(r"breaker +off", place("endpoint", "show", name).out)

    def test_remove_asks_first(self, place: Place) -> None:
        done = place("endpoint", "remove", "greeter", stdin="n\n")
        assert done.code != 0
        assert place("endpoint", "show", "greeter").code == 0

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            ([], Exit.USAGE, "--target"),
            (["-t", "not a url"], Exit.USAGE, "URL"),
            (["--policy", "{}", "--file", "/nonexistent"], Exit.USAGE, "/nonexistent"),
            (["-t", NOWHERE, "--policy", "nonesuch"], Exit.USAGE, "--policy"),
            (["-t", NOWHERE, "--policy", '{"max_concurrency": 0}'], Exit.REFUSED, "/policy/max_concurrency"),
            (["-t", NOWHERE, "--policy", '{"nonesuch": 0}'], Exit.REFUSED, "/policy/nonesuch"),
        ],
    )
    def test_bad_registrations_are_told(self, place: Place, arguments: list[str], code: Exit, words: str) -> None:
        done = place("endpoint", "register", "billing", *arguments)
        assert (done.code, done.err.count("\n")) == (code, 1)
        assert words in done.err


class TestDelivery:
    def test_a_dead_callback_is_listed_and_sent_again_under_the_same_id(self, place: Place, receiver: Any) -> None:
        receiver.statuses = [400, 200]
        operation = started(place, "greet", "Ada", "--callback", receiver.url)
        dead = until(lambda: place("delivery", "list", "--state", "dead", "--json").json["items"], "it is dead")
        assert [(one["operation_id"], one["kind"], one["url"]) for one in dead] == [
            (operation, "callback", receiver.url)
        ]
        assert dead[0]["id"] in place("delivery", "list", "--state", "dead").out
        assert "is due again" in place("delivery", "redeliver", dead[0]["id"]).out
        until(lambda: len(receiver.got) == 2, "it came again")
        assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
        until(lambda: not place("delivery", "list", "--state", "dead", "--json").json["items"], "nothing is dead")

    def test_the_secret_verifies_a_cloudevent(self, place: Place, receiver: Any) -> None:
        secret = place("delivery", "secret").out.strip()
        operation = started(place, "greet", "Ada", "--callback", receiver.url, "--callback-format", "cloudevents")
        until(lambda: receiver.got, "the callback")
        headers, body = receiver.got[0]
        told: Any = Webhook(secret).verify(body, headers)
        assert (told["subject"], told["data"]["result"]) == (operation, "Hello, Ada!")

    def test_what_was_never_owed_is_not_sent(self, place: Place) -> None:
        assert place("delivery", "redeliver", "nonesuch").code == Exit.MISSING
        operation = started(place, "greet", "Ada")
        assert place("delivery", "redeliver", f"{operation}.1.callback").code == Exit.REFUSED


# Doctor and bench ---------------------------------------------------------------------------------------------------


class TestDoctor:
    def test_a_sound_place_is_all_well(self, place: Place) -> None:
        done = place("doctor", "--data", str(place.data), "--json")
        findings = {finding["check"]: finding for finding in done.json["findings"]}
        assert (done.code, done.json["ok"]) == (0, True), findings
        assert "on the store's disk" in findings["durability"]["detail"]
        assert str(place.gateway.process.pid) in findings["data lock"]["detail"]
        assert {"python", "store server", "disk", "gateway", "clock", "access"} <= set(findings)
        assert "all well" in place("doctor", "--data", str(place.data)).out

    def test_what_is_wrong_has_a_mend_and_exit_1(self, place: Place, tmp_path: Path) -> None:
        done = mesh("doctor", "--data", str(tmp_path))
        assert (done.code, "mesh dev" in done.out) == (Exit.FAILED, True)
        (tmp_path / "mesh-store.json").write_text("{")
        done = place("doctor", "--data", str(tmp_path), "--json")
        bad = [finding for finding in done.json["findings"] if finding["state"] == "bad"]
        assert (done.code, [finding["check"] for finding in bad]) == (Exit.FAILED, ["data"])
        assert place("doctor", "--data", f"{tmp_path}/mesh-store.json/x").code == Exit.FAILED

    def test_it_leaves_nothing_behind(self, tmp_path: Path) -> None:
        mesh("doctor", "--data", str(tmp_path / "data"))
        assert list(tmp_path.iterdir()) == []


class TestBench:
    def test_it_runs_the_one_of_the_source_tree(self, tmp_path: Path) -> None:
        done = mesh("bench", "--source", str(tmp_path))
        assert (done.code, "make bench" in done.err) == (Exit.MISSING, True)
        (tmp_path / "bench").mkdir()
        (tmp_path / "bench" / "__main__.py").write_text("import sys\nprint(sys.argv[1:])\nsys.exit(7)\n")
        done = mesh("bench", "--source", str(tmp_path), "--seconds", "2", "--json")
        assert (done.code, done.out.strip()) == (7, "['--seconds', '2', '--json', '-']")


# The README's examples ----------------------------------------------------------------------------------------------


class TestExamples:
    def test_the_agent_the_call_and_the_walk_work_as_written(self, tmp_path: Path) -> None:
        here = start_gateway(tmp_path / "data")
        agent = Background(command=[sys.executable, "examples/agent.py"], MESH_URL=here.url)
        until(lambda: httpx.get(f"{here.url}/v1/endpoints/greeter").status_code == 200, "the agent is registered")
        call = Background(command=[sys.executable, "examples/call.py"], MESH_URL=here.url)
        done = call.wait()
        assert (done.code, done.out) == (0, "Hello, Ada!\n"), done.err
        if shutil.which("curl"):
            walk = Background(command=["sh", "examples/walk.sh"], MESH_URL=here.url)
            done = walk.wait()
            assert (done.code, done.err) == (0, "")
            for words in ("idempotency-replayed: true", "422", '"key_reused"', "event: end", '"Hello, Ada!"'):
                assert words in done.out
            assert done.out.count("HTTP/1.1 200") == 6
        agent.end()
        assert here.gateway.end().code == 0

    def test_they_are_as_short_as_the_readme_says(self) -> None:
        def lines(name: str) -> int:
            code = (ROOT / "examples" / name).read_text().partition('"""\n\n')[2]
            return sum(bool(line.strip()) for line in code.splitlines())

        assert (lines("agent.py"), lines("call.py")) == (4, 3)
