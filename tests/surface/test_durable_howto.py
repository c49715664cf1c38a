"""docs/how-to/durable-agents.md: its two agents and its commands, as they stand there, through a real gateway."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import mesh
from tests.agents.serving import until
from tests.surface.gateways import ROOT, Gateway

TEXT = (ROOT / "docs" / "how-to" / "durable-agents.md").read_text()
BLOCKS = re.findall(r"^```([a-z]+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
MESH = f"{sys.executable} -m gateway.cli.main"


def test_its_agents_and_its_commands(keyless: Gateway, tmp_path: Path) -> None:
    """P225, P231: the review has its steps, hears of its child, and sleeps for a day."""
    coder = next(text for kind, text in BLOCKS if kind == "python")
    linter = next(text for kind, text in BLOCKS if kind == "text")
    background, commands = next(text for kind, text in BLOCKS if kind == "sh").split("\n", 1)
    (tmp_path / "coder.py").write_text(coder)
    (tmp_path / "linter.py").write_text(linter)
    env = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    env |= {"MESH_URL": keyless.url(), "PYTHONPATH": str(ROOT)}
    names = re.findall(r"python (\w+\.py) &", background)
    agents = [subprocess.Popen([sys.executable, name], env=env, cwd=tmp_path) for name in names]
    try:
        script = re.sub(r"\bmesh ", f"{MESH} ", commands) + "echo $ID\n"
        command = ["sh", "-ec", script]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=90)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(agents) == 2
        operation = done.stdout.split()[-1]
        events = f"{keyless.url()}/v1/operations/{operation}/events"
        with mesh.SyncClient(keyless.url()) as client:
            until(lambda: any(one["type"] == "timer" for one in httpx.get(events, trust_env=False).json()["items"]), 60)
            client.cancel(operation)
            with pytest.raises(mesh.OperationCanceled):
                client.result(operation, timeout_s=60)
    finally:
        for agent in agents:
            agent.terminate()
            agent.wait(20)
