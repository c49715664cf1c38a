"""docs/how-to/temporal.md, word by word: its commands in order, its outputs, its links; only the ports are others."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from mesh.clock import monotonic_s, pause
from tests.interop.environment import LOCK
from tests.interop.ground import free_ports
from tests.surface.gateways import ROOT

PAGE = ROOT / "docs" / "how-to" / "temporal.md"
TEXT = PAGE.read_text()


class Block(NamedTuple):
    """`kind`: `sh` to run, `sh terminal` to keep running, `sh install`, or `text`: what the one before printed."""

    kind: str
    text: str


BLOCKS = [Block(kind, text) for kind, text in re.findall(r"^```([a-z ]+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)]


class Reader:
    """Somebody who follows the page, with ports of their own."""

    def __init__(self, bin_directory: Path, home: Path) -> None:
        self._bin = bin_directory
        self._home = home
        self._terminals: list[subprocess.Popen[bytes]] = []
        self.mesh, self.http, self.grpc = free_ports(3)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "TEMPORAL_"))}
        self._env = clean | {
            "MESH_URL": f"http://127.0.0.1:{self.mesh}",
            "TEMPORAL_ADDRESS": f"127.0.0.1:{self.grpc}",
            "PYTHONPATH": str(ROOT),
        }

    def mine(self, text: str) -> str:
        """The commands with this reader's ports and environments."""
        mesh = f"{sys.executable} -m gateway.cli.main"
        instead = {
            ".venv/bin/mesh dev": f"{mesh} dev --port {self.mesh} --data {self._home}/data",
            ".venv/bin/mesh": mesh,
            ".venv/bin/python": sys.executable,
            "start-dev --http-port 7243": f"start-dev --headless --port {self.grpc} --http-port {self.http}",
            ".temporal/bin": str(self._bin),
            "127.0.0.1:7411": f"127.0.0.1:{self.mesh}",
            "127.0.0.1:7243": f"127.0.0.1:{self.http}",
        }
        return re.sub("|".join(map(re.escape, instead)), lambda match: instead[match[0]], text)

    def open_terminal(self, text: str) -> None:
        with (self._home / "terminals.log").open("ab") as log:
            self._terminals.append(
                subprocess.Popen(
                    ["bash", "-c", self.mine(text)],
                    cwd=ROOT,
                    env=self._env,
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
        # What a person sees on the screen before going on.
        if "start-dev" in text:
            self._until(f"{self._bin}/temporal operator nexus endpoint list")
        elif "mesh dev" in text:
            self._until_ok("/readyz", "ready")
            self._look_at_temporal()
        elif "agent.py" in text:
            self._until_ok("/v1/endpoints/greeter", "healthy")

    def _look_at_temporal(self) -> None:
        """Its server sometimes panics while it starts (ground.py says why); a person starts it again, and so do we."""
        server, again = self._terminals[0], next(block.text for block in BLOCKS if "start-dev" in block.text)
        if server.poll() is not None:
            self.open_terminal(again)
            self._terminals.insert(0, self._terminals.pop())

    def run(self, text: str) -> str:
        """What a block of commands prints. Variables live on in the next one."""
        state = self._home / "variables"
        keep = f"declare -p ID OPERATION > {state} 2> {state}.none || true"
        done = subprocess.run(
            ["bash", "-c", f"touch {state}; source {state}; set -euo pipefail; {self.mine(text)}\n{keep}"],
            cwd=ROOT, env=self._env, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}\n{self.log()}"
        return done.stdout

    def log(self) -> str:
        return (self._home / "terminals.log").read_text(errors="replace")[-3000:]

    def close(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for terminal in reversed(self._terminals):
                if terminal.poll() is None:
                    os.killpg(terminal.pid, number)
                    try:
                        terminal.wait(10)
                    except subprocess.TimeoutExpired:
                        continue

    def _until(self, command: str) -> None:
        end_s = monotonic_s() + 40
        while subprocess.run(command.split(), env=self._env, capture_output=True, check=False).returncode:
            assert monotonic_s() < end_s, self.log()
            pause(0.05)

    def _until_ok(self, path: str, word: str) -> None:
        end_s = monotonic_s() + 40
        while True:
            try:
                reply = httpx.get(f"http://127.0.0.1:{self.mesh}{path}", trust_env=False)
                if reply.status_code == 200 and word in reply.text:
                    return
            except httpx.TransportError:
                pass
            assert monotonic_s() < end_s, self.log()
            pause(0.05)


@pytest.fixture
def reader(installed: Path, tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(installed, tmp_path)
    yield reader
    reader.close()


def squeezed(text: str) -> set[str]:
    """Its lines, whatever the white space."""
    return {" ".join(line.split()) for line in text.splitlines()}


@pytest.mark.timeout(240)
def test_word_by_word(reader: Reader) -> None:
    said: dict[str, str] = {}
    printed = ""
    for block in BLOCKS:
        if block.kind == "sh terminal":
            reader.open_terminal(block.text)
        elif block.kind == "sh":
            if "curl" in block.text and shutil.which("curl") is None:
                break
            printed = said[block.text] = reader.run(block.text)
        elif block.kind == "text":
            assert squeezed(block.text) <= squeezed(printed), printed
    (listed,) = (text for command, text in said.items() if "operation list" in command)
    assert "greeter/greet" in listed
    assert "succeeded" in listed
    (decided,) = (text for command, text in said.items() if "workflow signal" in command)
    assert "order 17: approved" in decided
    (canceled,) = (text for command, text in said.items() if "operation cancel" in command)
    assert "it was canceled" in canceled
    shown = reader.run(".venv/bin/mesh operation show $OPERATION")
    assert re.search(r"link of the agent +temporal:///namespaces/default/workflows/approval-18/", shown), shown


def test_what_it_installs_is_what_is_tested() -> None:
    (install,) = (block.text for block in BLOCKS if block.kind == "sh install")
    packages = install.partition("pip install ")[2].split()
    assert len(packages) == 2
    for package in packages:
        assert re.search(rf"^{package}==", LOCK.read_text(), re.MULTILINE)
    assert "\ninstall:" in (ROOT / "Makefile").read_text()
    # `make clean` and git know the environment that it makes.
    assert "/.temporal/" in (ROOT / ".gitignore").read_text().splitlines()


def test_its_links_lead_somewhere() -> None:
    lines = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    headings = {re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-") for line in lines}
    links = re.findall(r"\]\(([^)]+)\)", " ".join(TEXT.split("\n")))
    assert len(links) >= 4
    for link in links:
        target, _, anchor = link.partition("#")
        if target:
            assert (PAGE.parent / target).exists(), link
        else:
            assert anchor in headings, (link, headings)
