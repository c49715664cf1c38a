"""P378: docs/how-to/schedules-and-batches.md: its commands and its program, as they stand there (P360 to P377)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.surface.gateways import ROOT, Gateway

TEXT = (ROOT / "docs" / "how-to" / "schedules-and-batches.md").read_text()
BLOCKS = re.findall(r"^```([a-z]+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
MESH = f"{sys.executable} -m gateway.cli.main"


def run(gateway: Gateway, where: Path, *command: str) -> str:
    env = os.environ | {"MESH_URL": gateway.url(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, cwd=where, check=False, capture_output=True, timeout=60)
    said = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == 0, said
    return said


def test_the_page(keyless: Gateway, tmp_path: Path) -> None:
    said: list[str] = []
    for kind, text in BLOCKS:
        if kind == "python":
            said.append(run(keyless, tmp_path, sys.executable, "-c", text))
            continue
        command = re.sub(r"^mesh ", f"{MESH} ", text, flags=re.MULTILINE)
        command = command.replace("localhost:7411", f"127.0.0.1:{keyless.port}")
        said.append(run(keyless, tmp_path, "bash", "-ec", command))
    _, later, many, clock, python = said
    assert '"starts_at":"2027-02-02T05:00:00.000Z"' in later
    assert "3 accepted, 0 refused" in many
    assert "3 accepted, 3 of them before, 0 refused" in many
    assert '{"line":3,"status":202' in many
    assert "2 times will run\n" in clock
    assert "30 2 * * * in Europe/Berlin" in clock
    assert "schedule nightly: paused" in clock
    assert python.split() == ["scheduled", "3", "False", "5"]
