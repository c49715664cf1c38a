"""docs/how-to/versions-and-health.md: its agents, its policy and its commands, as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

import mesh
from tests.agents.serving import until
from tests.agents.test_real_gateway import Dev
from tests.agents.test_registration import ROOT

TEXT = (ROOT / "docs" / "how-to" / "versions-and-health.md").read_text()
BLOCKS = re.findall(r"^```([a-z]+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
FILES = {body.splitlines()[0].removeprefix("# "): body for kind, body in BLOCKS if kind == "python"}
FILES["looked-after.json"] = next(body for kind, body in BLOCKS if kind == "json")
SHELL = [line for kind, body in BLOCKS if kind == "sh" for line in body.splitlines()]


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Dev]:
    dev = Dev(tmp_path / "data")
    dev.start()
    yield dev
    dev.stop()


@contextmanager
def process(arguments: list[str], directory: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, cwd=directory, env=env, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.terminate()


def test_every_command_of_the_page(dev: Dev, tmp_path: Path) -> None:
    """P315, P316: in order; what each prints says what the page says of it. A watcher sees it all."""
    env = os.environ | {"MESH_URL": dev.url, "PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1"}
    for name, body in FILES.items():
        (tmp_path / name).write_text(body)
    said: dict[str, list[str]] = {}
    with ExitStack() as stack:
        follow = ["-m", "gateway.cli.main", "endpoint", "watch", "--json"]
        watcher = stack.enter_context(process(follow, tmp_path, env))
        client = stack.enter_context(mesh.SyncClient(dev.url))
        for line in SHELL:
            words = shlex.split(line)
            if words[0] == "python":
                stack.enter_context(process(words[1:-1], tmp_path, env))
                continue
            if words[2:3] == ["versions"] and line not in said:
                until(lambda: len(rows(dev, "proofreader")) == 2, 20)
            done = subprocess.run(
                [sys.executable, "-m", "gateway.cli.main", *words[1:]], cwd=tmp_path, env=env, capture_output=True,
                text=True, check=True,
            )  # fmt: skip
            said.setdefault(line, []).append(done.stdout)
        before, drained = said["mesh endpoint versions proofreader"]
        assert re.search(r"^ *3 +50 %", before, re.MULTILINE), before
        assert re.search(r"^ *3 +draining since ", drained, re.MULTILINE), drained
        assert "proofreader" in said["mesh endpoint list --tag team=quality --search faults"][0]
        assert "healthy since" in said["mesh endpoint show proofreader"][0]
        (called,) = [out for line, (out, *_) in said.items() if line.startswith("mesh call")]
        assert "says version 4" in called
        assert client.call("proofreader", "proofreader", "lint", "b.py", version="3").endswith("version 3")
        rest = client.call("proofreader", "proofreader", "lint", "b.py")
        assert rest.endswith("version 4"), "it takes 100 % of the rest"
        until(lambda: all("canary:proofreader" in one.get("checks", {}) for one in instances(dev, "proofreader")), 20)
        watcher.terminate()
        seen = watcher.stdout.read() if watcher.stdout is not None else ""
        assert '"draining"' in seen
        assert '"cursor"' in seen


def rows(dev: Dev, name: str) -> list[dict[str, object]]:
    return httpx.get(f"{dev.url}/v1/endpoints/{name}/versions", trust_env=False).json().get("items", [])


def instances(dev: Dev, name: str) -> list[dict[str, dict[str, object]]]:
    return httpx.get(f"{dev.url}/v1/endpoints/{name}", trust_env=False).json()["instances"]
