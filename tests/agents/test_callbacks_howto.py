"""docs/how-to/callbacks.md: its receiver and its commands, as they stand there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import mesh
from tests.agents.serving import until
from tests.agents.test_pull_howto import dev, environment, running
from tests.agents.test_real_gateway import Dev, known
from tests.agents.test_registration import ROOT
from tests.ports import lasting_port

__all__ = ["dev"]

TEXT = (ROOT / "docs" / "how-to" / "callbacks.md").read_text()
BLOCKS = re.findall(r"^```([a-z]+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
(RECEIVER,) = [text for kind, text in BLOCKS if kind == "python"]
_INSTALL, BEGIN, CALLS, CURL, DIE, MEND = [text for kind, text in BLOCKS if kind == "sh"]


@contextmanager
def receiving(dev: Dev, where: Path, port: int, secret: str) -> Iterator[Path]:
    """The page's receiver; the file of what it prints."""
    (where / "receiver.py").write_text(RECEIVER.replace("8000", str(port)))
    said = where / "said"
    with said.open("wb") as out:
        env = environment(dev) | {"WEBHOOK_SECRET": secret}
        child = subprocess.Popen([sys.executable, "receiver.py"], env=env, cwd=where, stdout=out)
    try:
        yield said
    finally:
        child.terminate()
        child.wait(20)


@pytest.mark.skipif(not shutil.which("curl"), reason="a reader of the page has curl; make and Python do not bring it")
def test_the_page(dev: Dev, tmp_path: Path) -> None:
    """P71, P72, P80 to P85: three formats verified, a dead letter, its reason, and that it comes under the same id."""
    port = lasting_port()
    tool = tmp_path / "bin" / "mesh"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m gateway.cli.main "$@"\n')
    tool.chmod(0o755)
    env = environment(dev) | {"PATH": f"{tool.parent}:{os.environ['PATH']}"}

    def shell(script: str) -> str:
        script = script.replace("localhost:8000", f"localhost:{port}")
        script = script.replace("localhost:7411", dev.url.removeprefix("http://"))
        command = ["sh", "-ec", script]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, (script, done.stdout, done.stderr)
        return done.stdout.decode()

    secret = shell(BEGIN.replace("python receiver.py &", "echo $WEBHOOK_SECRET")).strip()
    with (
        running([sys.executable, "-m", "examples.agent"], dev),
        receiving(dev, tmp_path, port, secret) as said,
        mesh.SyncClient(dev.url) as client,
    ):
        until(lambda: known(client, "greeter"))
        started = shell(CALLS).split()
        told = ["succeeded", *["mesh.operation.succeeded.v1"] * 2]
        until(lambda: len(said.read_text().splitlines()) == len(told))
        wanted = [f"{state} inbox/{one}.1" for state, one in zip(told, started, strict=True)]
        assert sorted(said.read_text().splitlines()) == sorted(wanted)
        assert (tmp_path / "inbox" / f"{started[0]}.1").read_text() == '"Hello, Ada!"'
        assert json.loads((tmp_path / "inbox" / f"{started[1]}.1").read_text())["data"]["result"] == "Hello, Bob!"
        assert json.loads((tmp_path / "inbox" / f"{started[2]}.1").read_text())["result"] == "Hello, Eve!"
        shown = re.findall(r"^(\S+) inbox/\S+$", TEXT, re.MULTILINE)
        assert shown == told

        operation = json.loads(shell(CURL))["id"]
        until((tmp_path / "inbox" / f"{operation}.1").exists)

        start, look, show = DIE.splitlines()
        operation = shell(f"{start}\necho $ID").strip()
        until(lambda: f"{operation}.1.callback" in shell(look))
        assert "404" in shell(f"ID={operation}\n{show}")
        assert shell(f"ID={operation}\n{MEND}") == f"callback of operation {operation} is due again\n"
        until(lambda: f"succeeded later/{operation}.1" in said.read_text())
