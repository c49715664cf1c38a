"""`mesh check agent` as people and scripts use it: real processes, exit codes, words."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from gateway.cli.exits import Exit
from tests.agents.serving import serving
from tests.conformance.bad_agents import Forgetful
from tests.conformance.bad_manners import Ignoring
from tests.conformance.plain_agents import Plain, Street

COMMAND = [sys.executable, "-m", "gateway.cli.main", "check", "agent"]
QUICKLY = ["--quiet", "0.3", "--patience", "3"]


@pytest.fixture(scope="module")
def street() -> Iterator[str]:
    with serving(Street([Plain, Forgetful, Ignoring])) as url:
        yield url


def check(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], check=False, capture_output=True, text=True, timeout=60)


def test_a_good_agent(street: str) -> None:
    operations = ["-s", "work", "-o", "quick", "-i", "1", "-o", "lasting", "-i", "0.2"]
    done = check(f"{street}/Plain", *operations, *QUICKLY, "--only", "S1", "--only", "S3", "--only", "L1")
    assert done.returncode == Exit.OK, done.stderr
    assert "2 passed, 0 failed, 1 not applicable" in done.stdout
    assert "promises no heartbeats" in done.stdout
    assert "a start is answered" in done.stderr


def test_a_bad_agent_is_told_what_to_change(street: str) -> None:
    done = check(
        f"{street}/Forgetful", "-s", "work", "-o", "lasting", "-i", "0.2", *QUICKLY, "--only", "S2", "--failed"
    )
    assert done.returncode == Exit.FAILED
    assert "mend:     Run the work once per Nexus-Request-Id" in done.stdout
    assert "P201" in done.stdout


def test_a_hint_is_no_failure(street: str) -> None:
    done = check(f"{street}/Ignoring", "-s", "work", "-o", "lasting", "-i", "0.5", *QUICKLY, "--only", "X3")
    assert done.returncode == Exit.OK
    assert "hint:     The cancel was taken and changed nothing" in done.stdout


def test_json(street: str) -> None:
    done = check(f"{street}/Plain", "-s", "work", "-o", "lasting", "-i", "0.2", *QUICKLY, "--only", "X2", "--json")
    told = json.loads(done.stdout)
    assert (told["ok"], told["kind"], told["results"][0]["number"], done.stderr) == (True, "agent", "X2", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "the URL is not absolute"),
        (["http://127.0.0.1:9", "--only", "Q9"], "'Q9' is no probe"),
        (["http://127.0.0.1:9", "-o", "quick"], "--operation needs --service"),
        (
            ["http://127.0.0.1:9", "-s", "a", "-s", "b", "-o", "quick"],
            "2 services and 0 inputs do not fit 1 operation",
        ),
        (["http://127.0.0.1:9", "-s", "work", "-o", "quick", "-i", "{"], "--input is not JSON"),
        (["http://127.0.0.1:9", "-s", "work", "-o", ".."], "cannot be '.' or '..'"),
        (["http://127.0.0.1:9", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
    ],
)
def test_what_cannot_be_checked(words: list[str], said: str) -> None:
    done = check(*words)
    assert done.returncode == Exit.USAGE, done.stdout
    assert said in done.stderr


def test_nobody_there_is_one_line() -> None:
    done = check("http://127.0.0.1:9", "-s", "work", "-o", "quick", "--only", "S1")
    assert (done.returncode, done.stdout) == (Exit.UNAVAILABLE, "")
    assert "nobody answers at http://127.0.0.1:9" in done.stderr
