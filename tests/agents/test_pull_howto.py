"""docs/how-to/pull-agents.md: its worker in shell, its worker in Python and its call, as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import mesh
from tests.agents.serving import until
from tests.agents.test_real_gateway import Dev, known
from tests.agents.test_registration import ROOT

TEXT = (ROOT / "docs" / "how-to" / "pull-agents.md").read_text()
BLOCKS = re.findall(r"^```([a-z]+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def block(kind: str, number: int = 0) -> str:
    return [text for known_kind, text in BLOCKS if known_kind == kind][number]


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    dev = Dev(tmp_path_factory.mktemp("dev") / "data")
    dev.start()
    yield dev
    dev.stop()


def environment(dev: Dev) -> dict[str, str]:
    return os.environ | {"MESH_URL": dev.url, "PYTHONPATH": str(ROOT)}


@contextmanager
def running(command: list[str], dev: Dev) -> Iterator[subprocess.Popen[bytes]]:
    """A process and all that it started, gone with the block."""
    child = subprocess.Popen(command, env=environment(dev), cwd=ROOT, start_new_session=True)
    try:
        yield child
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(20)


@pytest.mark.skipif(not (shutil.which("jq") and shutil.which("bash") and shutil.which("curl")), reason="needs jq, curl")
def test_the_worker_in_shell(dev: Dev) -> None:
    """P280, P286 to P288, P291: five requests, and the call that the page shows."""
    worker = block("bash")
    assert len(re.findall(r"\bcurl\b", worker)) == 5
    with running(["bash", "-c", worker], dev), mesh.SyncClient(dev.url) as client:
        until(lambda: known(client, "shout", "thing", "x"), 10)
        mesh_command = f"{sys.executable} -m gateway.cli.main"
        call = block("sh").replace("mesh call", f"{mesh_command} call", 1)
        said = subprocess.run(["bash", "-c", call], env=environment(dev), cwd=ROOT, capture_output=True, check=True)
        assert said.stdout.decode() == block("text")
        with pytest.raises(mesh.OperationFailed, match="the input is no text"):
            client.call("shout", "any", "thing", 7, timeout_s=20)
        dev.kill()
        dev.start()  # the gateway was away: the worker asks again
        assert client.call("shout", "any", "thing", "again", timeout_s=30) == "AGAIN"


def test_the_worker_in_python(dev: Dev, tmp_path: Path) -> None:
    """As it stands on the page; nothing of the gateway's extra is needed."""
    script = tmp_path / "agent.py"
    script.write_text(block("python"))
    with running([sys.executable, str(script)], dev), mesh.SyncClient(dev.url) as client:
        until(lambda: known(client, "laptop"), 10)
        assert client.call("laptop", "laptop", "greet", "Ada", timeout_s=20) == "Hello, Ada!"
