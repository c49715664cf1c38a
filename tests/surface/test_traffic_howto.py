"""docs/how-to/traffic.md: its commands, as they stand there, against a gateway with its three namespaces."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.surface.gateways import ROOT, TOKENS, Gateway

TEXT = (ROOT / "docs" / "how-to" / "traffic.md").read_text()
COMMANDS = re.findall(r"^```bash\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
KEYS = {name: f"{name}-key-0123456789" for name in ("research", "blue", "red")}
SETTINGS = {"tokens": TOKENS, "namespaces": [{"name": name, "keys": [key]} for name, key in KEYS.items()]}


@pytest.mark.skipif(not (shutil.which("bash") and shutil.which("curl")), reason="needs bash and curl")
def test_the_page(own_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
    """P330 to P336: what it says is what is seen."""
    gateway = own_gateway(SETTINGS)
    command = tmp_path / "mesh"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m gateway.cli.main "$@"\n')
    command.chmod(0o755)
    env = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    env |= {name.upper(): key for name, key in KEYS.items()} | {
        "MESH_URL": gateway.url(), "MESH_KEY": KEYS["research"], "PYTHONPATH": str(ROOT),
        "PATH": f"{tmp_path}:{env['PATH']}",
    }  # fmt: skip

    def run(script: str) -> str:
        ran = subprocess.run(
            ["bash", "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    limit, flood, look, poll = COMMANDS
    run(limit)
    refused = run(flood).replace("\r", "")
    (shown,) = re.findall(r"^```http\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    for line in shown.splitlines():
        assert line.split(" ", 1)[1] in refused, (line, refused)
    said = run(look)
    begin = said.index("{")
    queue, end = json.JSONDecoder().raw_decode(said, begin)
    table, metrics = said[:begin], said[end:]
    assert (queue["waiting"], {one["namespace"]: one["waiting"] for one in queue["namespaces"]}) == (
        6, {"blue": 5, "red": 1}
    )  # fmt: skip
    assert re.search(r"blue +\S* *5 of 5", table), table
    assert re.search(r'namespace="blue"} 5\.0', metrics), metrics
    assert sorted(run(poll).split()) == ['"namespace":"blue"', '"namespace":"red"']
