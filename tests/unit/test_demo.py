"""The demo does real work, heals, judges honestly, and leaves nothing behind.

Its parts are tested one by one, the whole as a newcomer runs it: `mesh demo` in a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx
import pytest
from nexusrpc import HandlerError
from standardwebhooks.webhooks import Webhook

from gateway.demo import fleet as fleets
from gateway.demo import specs
from gateway.demo.agents import listening_address
from gateway.demo.checks import journal_of, tree_root
from gateway.demo.fleet import Fleet, free_ports
from gateway.demo.lint_rules import RULES, lint
from gateway.demo.lint_worker import journaled, run, source_files
from gateway.demo.passages import Index, words
from gateway.demo.receiver import Ledger, Receiver, read_ledger
from gateway.demo.timeline import DOWN, WAITING, WORKING, Row, below_parents, draw, row_of
from gateway.demo.verdict import Evidence, Steps, judge
from mesh.clock import monotonic_s, now_ms, pause, to_rfc3339
from mesh.tokens import new_webhook_secret

ROOT = Path(__file__).parents[2]


def until(look: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    deadline_s = monotonic_s() + seconds
    while not (found := look()):
        assert monotonic_s() < deadline_s, f"not within {seconds} s: {what}"
        pause(0.02)
    return found


# The linter ---------------------------------------------------------------------------------------------------------

BREACHES = {
    "bare-except": "try:\n    f()\nexcept:\n    g()\n",
    "swallowed-exception": "try:\n    f()\nexcept Exception:\n    pass\n",
    "mutable-default": "def f(a=[]):\n    return a\n",
    "none-comparison": "a = 1\nb = a == None\n",
    "unreachable": "def f():\n    return 1\n    g()\n",
    "duplicate-key": "a = {1: 2, 1: 3}\n",
    "empty-fstring": "a = f'nothing'\n",
    "assert-on-tuple": "assert (1, 'message')\n",
    "unused-import": "import os\n",
    "too-complex": "def f(a):\n" + "".join(f"    if a == {n}:\n        return {n}\n" for n in range(40)),
    "compiler-warning": "a = 1\nb = a is 5\n",
    "mixed-indentation": "if True:\n\tif True:\n        \tpass\n",
    "syntax-error": "def f(:\n",
}
FINE = """
import os
from __future__ import annotations

def f(a=None, *, width=3):
    try:
        return f"{a:>{width}} {os.sep:02d}"
    except ValueError:
        return {1: 2, "1": 3, True is None: 4}
"""


class TestLinter:
    def test_every_rule_has_its_breach_here(self) -> None:
        assert set(BREACHES) == set(RULES)

    @pytest.mark.parametrize("rule", BREACHES)
    def test_a_breach_is_found_in_its_line(self, rule: str) -> None:
        found = lint(BREACHES[rule].encode(), "module.py")
        assert rule in {finding.rule for finding in found}
        assert all(1 <= finding.line <= BREACHES[rule].count("\n") for finding in found)

    def test_clean_code_gives_no_findings(self) -> None:
        source = FINE.replace("from __future__ import annotations\n", "")
        assert lint(source.encode(), "module.py") == []

    def test_a_package_may_import_what_it_shows(self) -> None:
        assert lint(b"import os\n", "package/__init__.py") == []

    def test_bytes_that_are_no_python_are_a_finding_not_an_exception(self) -> None:
        for source in (b"\xff\xfe\x00", b"\x00", b"# coding: nonesuch\n"):
            assert [finding.rule for finding in lint(source, "module.py")] == ["syntax-error"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for number, source in enumerate(BREACHES.values()):
        file = root / f"package{number % 3}" / f"module{number}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    (root / "site-packages").mkdir()
    (root / "site-packages" / "other.py").write_text("import os\n")
    return root


class TestLintWorker:
    def test_the_report_counts_what_the_linter_found(self, tree: Path, tmp_path: Path) -> None:
        report = run(tree, tmp_path / "journal")
        assert (report["files"], report["resumed_files"]) == (len(BREACHES), 0)
        assert set(report["by_rule"]) == set(RULES)
        assert sum(report["by_rule"].values()) == report["findings"]

    def test_an_interrupted_job_is_carried_on_and_ends_with_the_same_report(self, tree: Path, tmp_path: Path) -> None:
        journal = tmp_path / "journal"
        whole = run(tree, journal)
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(lines[:5]) + lines[5][:20])  # killed while it wrote the sixth
        again = run(tree, journal)
        assert again == whole | {"resumed_files": 5}
        assert len(journaled(journal)) == len(BREACHES)

    def test_directories_of_others_are_not_looked_into(self, tree: Path) -> None:
        assert "other.py" not in {path.name for path in source_files(tree)}

    def test_it_ends_when_the_agent_that_started_it_is_gone(self, tmp_path: Path) -> None:
        stdlib = str(tree_root("stdlib"))
        command = [sys.executable, "-m", "gateway.demo.lint_worker", stdlib, "--journal", str(tmp_path / "journal")]
        worker = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert worker.stdin is not None
        until((tmp_path / "journal").exists, "the worker works")
        worker.stdin.close()
        assert worker.wait(timeout=20) == 3


class TestChecks:
    def test_a_tree_is_named_never_imported(self) -> None:
        assert tree_root("httpx") == Path(httpx.__file__).parent
        for name in ("nonesuch", "httpx._client", "/etc", "..", "", "sys"):
            with pytest.raises(HandlerError, match="no source tree"):
                tree_root(name)

    def test_a_journal_has_one_place_whatever_the_request_id_holds(self, tmp_path: Path) -> None:
        assert journal_of(tmp_path, "../../etc/passwd").parent == tmp_path
        assert journal_of(tmp_path, "a") == journal_of(tmp_path, "a") != journal_of(tmp_path, "b")

    def test_doctests_are_run_and_counted(self) -> None:
        command = [sys.executable, "-m", "gateway.demo.doctest_worker", "heapq", "nonesuch"]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
            assert worker.stdout is not None
            report = json.loads(worker.stdout.read())
        assert (report["modules"], report["missing"], report["failures"]) == (1, ["nonesuch"], 0)
        assert report["examples"] > 0


class TestRetrieval:
    def test_words_are_parts_of_names_without_endings(self) -> None:
        assert words("ThreadPoolExecutor.submit_all HTTPServer tasks waiting") == [
            *("thread", "pool", "executor", "submit", "all", "http", "server", "task", "wait"),
        ]

    def test_the_docstring_that_answers_comes_first(self, tmp_path: Path) -> None:
        (tmp_path / "queues.py").write_text(
            '"""Queues."""\nclass Queue:\n    """A first-in first-out queue."""\n'
            '    def get(self):\n        """Remove and return an item; wait when the queue is empty."""\n'
            '    def _hidden(self):\n        """Remove an item."""\n'
        )
        (tmp_path / "broken.py").write_text("def f(:\n")
        index = Index(tmp_path)
        assert [hit.docstring.title for hit in index.search("wait until an item can be removed", 1)] == [
            "queues.Queue.get"
        ]
        assert "queues.Queue._hidden" not in {found.title for found in index.docstrings}
        assert index.search("zebra", 3) == []


class TestAgents:
    @pytest.mark.parametrize(
        ("gateway", "host"),
        [
            ("http://127.0.0.1:7411", "127.0.0.1"),
            ("http://localhost", "127.0.0.1"),
            ("http://[::1]:7411", "127.0.0.1"),
            ("http://gateway:7411", "0.0.0.0"),
            ("https://10.0.0.7", "0.0.0.0"),
        ],
    )
    def test_an_agent_listens_where_its_gateway_can_reach_it(self, gateway: str, host: str) -> None:
        assert listening_address(gateway) == host

    def test_the_contracts_for_other_languages_are_those_of_the_code(self) -> None:
        for name, text in specs.files().items():
            assert (ROOT / "specs" / name).read_text() == text, f"run `python -m gateway.demo.specs specs` for {name}"


# The receiver -------------------------------------------------------------------------------------------------------


@pytest.fixture
def receive(tmp_path: Path) -> Iterator[Callable[..., tuple[str, Path, str]]]:
    """`receive(lose_first=...)` -> URL, ledger, secret of a running receiver."""
    running: list[Receiver] = []

    def start(*, lose_first: bool = False) -> tuple[str, Path, str]:
        secret, ledger = new_webhook_secret(), tmp_path / "ledger"
        server = Receiver(("127.0.0.1", 0), [new_webhook_secret(), secret], Ledger(ledger), lose_first=lose_first)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/", ledger, secret

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def deliver(url: str, secret: str, webhook_id: str, body: bytes = b'{"type": "t", "subject": "s"}') -> int:
    from datetime import UTC, datetime  # noqa: PLC0415 - what the package wants

    stamp_s = now_ms() // 1000
    signature = Webhook(secret).sign(webhook_id, datetime.fromtimestamp(stamp_s, UTC), body.decode())
    headers = {"webhook-id": webhook_id, "webhook-timestamp": str(stamp_s), "webhook-signature": signature}
    return httpx.post(url, content=body, headers=headers).status_code


class TestReceiver:
    def test_an_effect_happens_once_however_often_it_is_delivered(self, receive: Any) -> None:
        url, ledger, secret = receive()
        assert [deliver(url, secret, one) for one in ("a", "a", "b")] == [204, 204, 204]
        assert [(e["webhook_id"], e["verdict"]) for e in read_ledger(ledger)] == [
            ("a", "effect"),
            ("a", "repeat"),
            ("b", "effect"),
        ]
        assert Ledger(ledger).take("a", {}) == "repeat"  # after a restart too

    def test_what_is_not_signed_has_no_effect(self, receive: Any) -> None:
        url, ledger, secret = receive()
        assert deliver(url, new_webhook_secret(), "a") == 401
        assert httpx.post(url, content=b"{}").status_code == 401
        assert deliver(url, secret, "a") == 204
        assert [entry["verdict"] for entry in read_ledger(ledger)] == ["refused", "refused", "effect"]

    def test_a_lost_answer_is_lost_once_after_the_effect(self, receive: Any) -> None:
        url, ledger, secret = receive(lose_first=True)
        with pytest.raises(httpx.RemoteProtocolError):
            deliver(url, secret, "a")
        assert deliver(url, secret, "a") == 204
        assert [entry["verdict"] for entry in read_ledger(ledger)] == ["effect", "repeat"]


# Timeline and verdict -----------------------------------------------------------------------------------------------


def event(seq: int, at_ms: int, kind: str, attempt: int = 1) -> dict[str, Any]:
    return {"seq": seq, "at": to_rfc3339(at_ms), "type": kind, "attempt": attempt}


class TestTimeline:
    def test_children_are_below_who_called_them(self) -> None:
        accepted = {one: to_rfc3339(at_ms) for at_ms, one in enumerate(("child", "b", "a", "late"))}
        order = below_parents(accepted, {"child": "a", "late": "a", "b": "not shown"})
        assert order == ["b", "a", "child", "late"]

    def test_a_lost_attempt_waits_from_the_death_of_its_agent_on(self) -> None:
        events = [
            event(1, 1000, "accepted", 0),
            event(2, 1000, "dispatched"),
            event(3, 1500, "started"),
            event(4, 7000, "attempt_lost"),
            event(5, 7100, "dispatched", 2),
            event(6, 9000, "succeeded", 2),
        ]
        row = row_of("lint", events, killed_ms=4000)
        assert [row.at(at_ms) for at_ms in (2000, 5000, 8000)] == [WORKING, WAITING, WORKING]
        assert row.note == "2 attempts"

    def test_it_is_drawn_to_scale_and_what_is_short_is_seen(self) -> None:
        row = Row("gateway", [(0, WORKING), (5000, DOWN), (5001, WORKING)])
        scale, line, legend = draw([row], 0, 20_000, columns=80, unicode=False)
        assert scale.split() == ["0s", "5s", "10s", "15s"]
        assert line.count("x") == 1
        assert scale.index("5s") == len("".join(line.partition("[red]")[0].replace("[green]", "").replace("[/]", "")))
        assert legend.isascii()


GOOD = Evidence(
    acknowledged={"a": "lint", "b": "search"},
    histories={one: [event(1, 0, "accepted", 0), event(2, 1, "succeeded")] for one in "ab"},
    listed=["a", "b"],
    reads={"a": ["x", "x"], "b": ["y", "y"]},
    streamed=[1, 2],
    ledger=[
        {"webhook_id": "a.1", "verdict": "effect"},
        {"webhook_id": "a.1", "verdict": "repeat"},
        {"webhook_id": "a.1", "verdict": "refused"},
    ],
    owed=["a.1"],
    replay=("a", ["a", "a"]),
    conflict=["key_reused", "key_reused"],
    foreign="unknown_operation",
    resumed=(10, 10, 4),
    steps=Steps({f"s{n}#1": 1 + (n > 5) for n in range(14)}, {f"s{n}#1": 1 + (n == 6) for n in range(14)}, ["s0#1"]),
)
LIES: dict[str, list[Mapping[str, Any]]] = {
    "exactly once": [
        {"histories": {**GOOD.histories, "b": [event(1, 0, "accepted", 0)]}},
        {"histories": {**GOOD.histories, "b": [event(1, 0, "succeeded"), event(2, 0, "failed")]}},
        {"histories": {**GOOD.histories, "b": [event(1, 0, "accepted"), event(3, 0, "succeeded")]}},
        {"histories": {"a": GOOD.histories["a"]}},
    ],
    "none was invented": [
        {"listed": ["a", "b", "c"]},
        {"listed": ["a"]},
        {"listed": ["a", "b", "b"]},
        {"histories": {**GOOD.histories, "b": [event(1, 0, "accepted"), event(2, 0, "failed")]}},
    ],
    "byte for byte": [{"reads": {"a": ["x", "z"]}}, {"reads": {"a": ["x"]}}, {"reads": {}}],
    "carried on": [{"resumed": (10, 10, 0)}, {"resumed": (9, 10, 4)}, {"resumed": (10, 10, 10)}],
    "none that was recorded ran again": [
        {"steps": GOOD.steps._replace(kept=["s6#1"])},
        {"steps": GOOD.steps._replace(kept=[])},
        {"steps": GOOD.steps._replace(recorded={"s0#1": 1, "s1#1": 2})},
        {"steps": GOOD.steps._replace(recorded=dict.fromkeys(GOOD.steps.recorded, 1))},
        {"steps": GOOD.steps._replace(begun={**GOOD.steps.begun, "other#1": 1})},
    ],
    "is the same operation": [{"replay": ("a", ["a", "c"])}, {"replay": ("a", ["a"])}],
    "refused; so is": [{"conflict": ["accepted"]}, {"conflict": []}, {"foreign": ""}],
    "where it broke off": [{"streamed": [1, 3]}, {"streamed": [1, 2, 2]}, {"streamed": []}],
    "effect once": [
        {"ledger": GOOD.ledger[1:]},
        {"ledger": [*GOOD.ledger, GOOD.ledger[0]]},
        {"ledger": GOOD.ledger[:2]},
        {"ledger": [GOOD.ledger[0], GOOD.ledger[2]]},
        {"owed": ["a.1", "b.1"]},
    ],
}


class TestVerdict:
    def test_a_good_run_holds(self) -> None:
        assert [claim.text for claim in judge(GOOD) if not claim.held] == []

    @pytest.mark.parametrize(("claim", "change"), [(claim, change) for claim, many in LIES.items() for change in many])
    def test_a_breach_is_told(self, claim: str, change: Mapping[str, Any]) -> None:
        (judged,) = [one for one in judge(GOOD._replace(**change)) if claim in one.text]
        assert not judged.held


# Processes ----------------------------------------------------------------------------------------------------------


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


class TestFleet:
    def test_nothing_outlives_the_block_not_even_what_will_not_listen(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fleets, "STOP_S_MAX", 0.3)
        deaf = "import signal, sys; signal.signal(15, signal.SIG_IGN); print('up', flush=True); signal.pause()"
        with Fleet(tmp_path) as fleet:
            started = [fleet.start(name, ["-c", deaf]) for name in ("one", "two")]
            for process in started:
                until(lambda process=process: "up" in process.tail(), "it is up")
            pids = [process.pid for process in started]
            assert fleet.fallen() == []
            assert started[0].kill() == pids[0]
            assert fleet.fallen() == [started[0]]
        assert [pid for pid in pids if pid is not None and alive(pid)] == []

    @pytest.mark.skipif(sys.platform != "linux", reason="the leash is Linux's")
    def test_what_a_killed_demo_started_dies_with_it(self, tmp_path: Path) -> None:
        script = (
            "import signal, sys, pathlib; from gateway.demo.fleet import Fleet\n"
            "fleet = Fleet(pathlib.Path(sys.argv[1]))\n"
            "child = ['-c', 'import signal; print(1, flush=True); signal.pause()']\n"
            "print(fleet.start('child', child).pid, flush=True)\n"
            "signal.pause()"
        )
        demo = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
        assert demo.stdout is not None
        child = int(demo.stdout.readline())
        until((tmp_path / "child.log").read_text, "the child is up")
        demo.kill()
        demo.wait()
        demo.stdout.close()
        until(lambda: not alive(child), "the child is gone")

    def test_ports_are_free_and_different(self) -> None:
        ports = free_ports(5)
        assert len(set(ports)) == 5
        for port in ports:
            socket.create_server(("127.0.0.1", port)).close()


# The whole ----------------------------------------------------------------------------------------------------------


def children(pid: int) -> dict[int, str]:
    """Command lines of the processes below `pid`."""
    found: dict[int, str] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            found[int(directory.name)] = command
            found |= children(int(directory.name))
    return found


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a short name, as the unix socket of a store wants it; pytest's are long."""
    with tempfile.TemporaryDirectory(prefix="md-") as name:
        yield Path(name)


@pytest.fixture
def demo(short: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`demo(*arguments)` runs `mesh demo`; its temporary files go where the test can look."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "gateway.cli.main", "demo", *arguments]
        env = {**os.environ, "TMPDIR": str(short), "PYTHONUNBUFFERED": "1"}
        running.append(
            subprocess.Popen(
                command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
            )
        )
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def leftovers(short: Path) -> list[str]:
    return [path.name for path in short.glob("mesh-demo-*")]


@pytest.mark.timeout(180)
class TestDemo:
    def test_it_tells_its_story_and_the_verdict_holds(self, demo: Any, short: Path) -> None:
        process = demo("--data", str(short / "kept"))
        out, err = process.communicate(timeout=150)
        assert process.returncode == 0, out + err
        for word in ("KILL -9   checks agent", "KILL -9   coder", "KILL -9   gateway", "healed", "All held", "×"):
            assert word in out
        assert re.search(r"lint .* [2-9] attempts", out)  # 3 where the machine is too busy for a heartbeat
        assert "BROKEN" not in out
        assert err == ""
        assert max(len(line) for line in out.splitlines() if "kept" not in line) <= 110
        assert len(out.splitlines()) < 70, "one screen"
        lines = out.splitlines()
        for parent, count in (("mend ", 1), ("review ", 5)):
            below = next(number for number, line in enumerate(lines) if line.startswith(parent)) + 1
            hung = list(takewhile(lambda line: line.startswith("  └ "), lines[below:]))
            assert len(hung) == count, (parent, hung)
        assert leftovers(short) == []
        (kept,) = (short / "kept").iterdir()
        assert (kept / "data" / "appendonlydir").is_dir()

    def test_ctrl_c_ends_everything_it_started(self, demo: Any, short: Path) -> None:
        process = demo()
        until(lambda: "ready" in process.stdout.readline(), "the agents are up")
        below = children(process.pid)
        assert len(below) >= 7  # gateway, store, four agents, receiver
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert [command for pid, command in below.items() if alive(pid)] == []
        assert leftovers(short) == []
        assert "Traceback" not in process.stderr.read()

    def test_trouble_is_told_and_ends_with_a_bad_exit_code(self, demo: Any, short: Path) -> None:
        process = demo("--json")
        found = until(
            lambda: [pid for pid, command in children(process.pid).items() if "agents retrieval" in command], "agents"
        )
        os.kill(found[0], signal.SIGKILL)
        out, _ = process.communicate(timeout=60)
        told = json.loads(out)
        assert process.returncode == 1
        assert not told["ok"]
        assert "retrieval ended by itself" in told["story"][-1]["text"]
        assert leftovers(short) == []
