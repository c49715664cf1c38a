"""docs/how-to/contracts.md: its agent, its file, its requests and its caller, as they stand there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import mesh
from tests.agents.serving import until
from tests.agents.test_pull_howto import dev
from tests.agents.test_real_gateway import Dev, known
from tests.agents.test_registration import ROOT

__all__ = ["dev"]

TEXT = (ROOT / "docs" / "how-to" / "contracts.md").read_text()
BLOCKS = re.findall(r"^```([a-z]+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
MESH = f"{sys.executable} -m gateway.cli.main"


def block(kind: str, number: int = 0) -> str:
    return [text for known_kind, text in BLOCKS if known_kind == kind][number]


def shell(dev: Dev, where: Path, command: str) -> tuple[int, str]:
    """Exit status and standard output of a block, run in `where`."""
    command = command.replace("localhost:7411", dev.url.removeprefix("http://"))
    command = re.sub(r"^mesh ", f"{MESH} ", command, flags=re.MULTILINE)
    env = os.environ | {"MESH_URL": dev.url, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], env=env, cwd=where, check=False, capture_output=True, timeout=60)
    assert not done.stderr, done.stderr.decode()
    return done.returncode, done.stdout.decode()


def test_the_page(dev: Dev, tmp_path: Path) -> None:
    """P175, P182 to P184, in the order of the page."""
    (tmp_path / "agent.py").write_text(block("python"))
    env = os.environ | {"MESH_URL": dev.url, "PYTHONPATH": str(ROOT)}
    agent = subprocess.Popen([sys.executable, "agent.py"], env=env, cwd=tmp_path)
    try:
        with mesh.SyncClient(dev.url) as client:
            until(lambda: known(client, "billing", "create", {"customer": "ada", "amount": 1}), 10)
        answer = json.loads(shell(dev, tmp_path, block("sh", 1))[1])
        told = json.loads(block("json"))
        assert {field: answer[field] for field in told} == told

        (tmp_path / "parcels.nexusrpc.yaml").write_text(block("yaml"))
        assert shell(dev, tmp_path, block("sh"))[0] == 0
        with mesh.SyncClient(dev.url) as client:
            client.start("parcels", "parcels", "send", {"to": "Ada"})
        stricter = block("yaml").replace("required: [to]", "required: [to, grams]")
        (tmp_path / "parcels-2.nexusrpc.yaml").write_text(stricter)
        assert shell(dev, tmp_path, block("sh", 2)) == (1, block("text"))

        assert shell(dev, tmp_path, block("sh", 3))[0] == 0
        (tmp_path / "caller.py").write_text(block("python", 1))
        assert shell(dev, tmp_path, f"{sys.executable} caller.py") == (0, "42\n")
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.wait(20)
