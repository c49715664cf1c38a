"""docs/how-to/teams.md: its gateway, its agent and its commands, as they stand there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.settings import Settings
from tests.agents.test_registration import ROOT
from tests.ports import lasting_port

TEXT = (ROOT / "docs" / "how-to" / "teams.md").read_text()
BLOCKS = re.findall(r"^```([a-z]+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
DEV, CALL, LOOK = [text for kind, text in BLOCKS if kind == "bash"]
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")} | {"PYTHONPATH": str(ROOT)}


@contextmanager
def ending(child: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(20)
        if child.stdout is not None:
            child.stdout.close()


def teams(gateway: subprocess.Popen[str]) -> dict[str, str]:
    """The keys that `mesh dev` prints, as the variables of the page."""
    assert gateway.stdout is not None
    keys: dict[str, str] = {}
    for line in gateway.stdout:
        if found := re.match(r" +Team +(\w+), key (\S+)$", line):
            keys[found[1].upper()] = found[2]
        if line.startswith("Next"):
            break
    return keys


def test_the_page(tmp_path: Path) -> None:
    """P5, P6, P22, P422: what the other team may call, and what it is told of the rest."""
    tool = tmp_path / "bin" / "mesh"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m gateway.cli.main "$@"\n')
    tool.chmod(0o755)
    port = lasting_port()
    env = PLAIN | {"PATH": f"{tool.parent}:{PLAIN['PATH']}", "MESH_URL": f"http://127.0.0.1:{port}"}

    def shell(script: str) -> tuple[str, str]:
        command = ["sh", "-c", script]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
        return done.stdout, done.stderr

    command = [str(tool), *DEV.split()[1:], "--port", str(port), "--data", str(tmp_path / "data")]
    with ending(subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True)) as gateway:
        env |= teams(gateway)
        (agent,) = [text for kind, text in BLOCKS if kind == "python"]
        (tmp_path / "linter.py").write_text(agent)
        background, rest = CALL.split("\n", 1)
        assert background == "MESH_KEY=$QUALITY python linter.py &"
        linter = [sys.executable, "linter.py"]
        with ending(subprocess.Popen(linter, env=env | {"MESH_KEY": env["QUALITY"]}, cwd=tmp_path, text=True)):
            said, remarks = shell(rest)
            assert f"```text\n{said}```" in TEXT, (said, remarks)
            said, remarks = shell(LOOK)
        listed = said[said.index("endpoint  state") :]
        assert "linter" in listed
        assert "vault" not in listed
        no_agent, no_operation, not_owner, taken = [line for line in remarks.splitlines() if line.startswith("mesh: ")]
        assert "there is no endpoint 'vault'" in no_agent
        assert "there is no operation '" in no_operation
        assert "only its owner" in not_owner
        assert "belongs to another namespace" in taken


def test_its_settings() -> None:
    """What it shows of a settings file is one."""
    (shown,) = [text for kind, text in BLOCKS if kind == "toml"]
    (team,) = Settings.model_validate(tomllib.loads(shown)).namespaces
    assert (team.name, len(team.digests)) == ("quality", 2)
