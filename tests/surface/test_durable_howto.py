"""docs/how-to/durable-agents.md: its two agents and its commands, as they stand there, through a real gateway."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.clock import monotonic_s, sleep
from tests.surface.gateways import ROOT, Caller, Gateway

TEXT = (ROOT / "docs" / "how-to" / "durable-agents.md").read_text()
BLOCKS = re.findall(r"^```([a-z]+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
MESH = f"{sys.executable} -m gateway.cli.main"


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
async def test_its_agents_and_its_commands(keyless: Gateway, caller: Caller, tmp_path: Path) -> None:
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
        command = ["bash", "-ec", script]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=90)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(agents) == 2
        operation = done.stdout.split()[-1]
        end_s = monotonic_s() + 60
        while not any(one["type"] == "timer" for one in await caller.events(operation)):
            assert monotonic_s() < end_s, await caller.events(operation)
            await sleep(0.05)
        assert (await caller.cancel(operation)).status == 202
        await caller.until(operation, state="canceled")
    finally:
        for agent in agents:
            agent.terminate()
            agent.wait(20)
