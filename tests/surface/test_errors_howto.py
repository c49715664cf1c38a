"""docs/how-to/errors.md: its agent and its calls, and that what it tells of types and policies is so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import mesh
from mesh.wire.failures import HANDLER_ERRORS
from registry.policy import Retry
from tests.surface.gateways import ROOT, Gateway

TEXT = (ROOT / "docs" / "how-to" / "errors.md").read_text()
BLOCKS = re.findall(r"^```([a-z]+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
MESH = f"{sys.executable} -m gateway.cli.main"


def test_the_page(keyless: Gateway, tmp_path: Path) -> None:
    """P12, P13, P43, P92: said for good, refused, tried again, and never started."""
    block = dict(BLOCKS)
    (tmp_path / "till.py").write_text(block["python"])
    env = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    env |= {"MESH_URL": keyless.url(), "PYTHONPATH": str(ROOT)}
    script = re.sub(r"^mesh ", f"{MESH} ", block["sh"], flags=re.MULTILINE)
    agent = subprocess.Popen([sys.executable, "till.py"], env=env, cwd=tmp_path)
    try:
        command = ["sh", "-c", f"{MESH} endpoint wait till > {os.devnull} 2>&1; {script}"]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=90)
    finally:
        agent.terminate()
        agent.wait(20)
    said = re.sub(r"\b00-[0-9a-z]+", "ID", done.stderr).splitlines()
    missing = set(block["text"].splitlines()) - set(said)  # beside them there are remarks, where a call takes long
    assert not missing, said


def test_its_tables() -> None:
    """P43, P90: types that are worth repeating, the default policy, names of exceptions."""
    rows = [line for line in TEXT.splitlines() if "HandlerError` of type" in line]
    for row, again in zip(rows, (False, True), strict=True):
        told = set(re.findall(r"`([A-Z_]+)`", row))
        assert told == {name for name, (_, repeated) in HANDLER_ERRORS.items() if repeated is again}
    retry = Retry()
    assert (retry.initial_ms, retry.factor, retry.max_ms, retry.max_attempts) == (1_000, 2, 60_000, 20)
    waits_s = sum(retry.delay_ms(attempt) for attempt in range(1, retry.max_attempts)) / 1000
    assert 12 * 60 < waits_s < 18 * 60, "about a quarter of an hour"
    caught = {getattr(mesh, name) for name in re.findall(r"`(Operation(?:Failed|Canceled|TimedOut))`", TEXT)}
    assert len(caught) == 3
    assert all(issubclass(one, mesh.OperationUnsuccessful) for one in caught)
    for name in ("StillRunning", "Refusal", "Unavailable", "OperationUnsuccessful"):
        assert issubclass(getattr(mesh, name), mesh.MeshError)
        assert f"`{name}`" in TEXT
