"""docs/how-to/large-payloads.md: its agent, its call, its commands, as they stand there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.settings import Settings
from tests.agents.test_blobs import numbers, wait_for
from tests.agents.test_pull_howto import dev, environment, running
from tests.agents.test_real_gateway import Dev
from tests.agents.test_registration import ROOT

__all__ = ["dev"]

TEXT = (ROOT / "docs" / "how-to" / "large-payloads.md").read_text()
BLOCKS = re.findall(r"^```([a-z]+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


@pytest.mark.skipif(not (shutil.which("jq") and shutil.which("bash") and shutil.which("curl")), reason="needs jq, curl")
def test_the_page(dev: Dev, tmp_path: Path) -> None:
    """P390 to P395, P402."""
    agent, call = [text for kind, text in BLOCKS if kind == "python"]
    mesh_call = f"{sys.executable} -m gateway.cli.main call"
    shell = [text.replace("mesh call", mesh_call) for kind, text in BLOCKS if kind == "sh"]
    (tmp_path / "copier.py").write_text(agent)
    (tmp_path / "call.py").write_text(call)
    numbers(tmp_path / "input.bin", 3 << 20)
    with running([sys.executable, str(tmp_path / "copier.py")], dev):
        wait_for(dev, "copier")
        for command in (f"{sys.executable} call.py", *shell):
            done = subprocess.run(
                ["bash", "-ec", command], env=environment(dev), cwd=tmp_path, capture_output=True, check=False,
                timeout=60,
            )  # fmt: skip
            assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert done.stdout.decode().endswith("the same\n")
    for name in ("saved.bin", "written.bin", "output.bin"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "input.bin").read_bytes(), name


def test_the_settings_and_limits_of_the_page() -> None:
    """P390: what the page says of settings is so."""
    import tomllib  # noqa: PLC0415 - only here

    shown = [Settings.model_validate(tomllib.loads(text)).blobs for kind, text in BLOCKS if kind == "toml"]
    assert [one.url for one in shown] == ["file:///var/lib/mesh/blobs", "s3://payloads/mesh"]
    blobs = Settings().blobs
    assert (blobs.inline_bytes_max, blobs.bytes_max, blobs.free_bytes_min) == (256 << 10, 16 << 30, 256 << 20)
    assert all(f"`[blobs] {name}`" in TEXT for name in ("inline_bytes_max", "bytes_max", "free_bytes_min"))
