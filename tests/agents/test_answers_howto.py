"""docs/how-to/answers.md: its commands, as they stand there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest

import mesh
from tests.agents.serving import until
from tests.agents.test_pull_howto import dev, environment, running
from tests.agents.test_real_gateway import Dev, known
from tests.agents.test_registration import ROOT

__all__ = ["dev"]

TEXT = (ROOT / "docs" / "how-to" / "answers.md").read_text()
GIVEN, AT_ONCE, LATER, LONG_POLL, WATCH, RESUME = re.findall(r"^```sh\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def events(text: str) -> list[tuple[str, str]]:
    """Number and type of each; the last has no number."""
    found: list[tuple[str, str]] = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if "event" in fields:
            found.append((fields.get("id", ""), fields["event"]))
    return found


@pytest.mark.skipif(not shutil.which("curl"), reason="a reader of the page has curl; make and Python do not bring it")
def test_the_page(dev: Dev) -> None:
    """P60, P66 to P68: at once, later, by long-poll, and as events that resume behind the last one seen."""
    given = GIVEN.replace("localhost:7411", dev.url.removeprefix("http://"))

    def shell(script: str) -> str:
        command = ["sh", "-ec", given + script.replace("python3", sys.executable)]
        done = subprocess.run(command, env=environment(dev), capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, (script, done.stdout, done.stderr)
        return done.stdout

    with running([sys.executable, "-m", "examples.agent"], dev), mesh.SyncClient(dev.url) as client:
        until(lambda: known(client, "greeter"))
        assert json.loads(shell(AT_ONCE))["result"] == "Hello, Ada!"
        accepted = json.loads(shell(LATER))
        behind = f"ID={accepted['id']}\n"
        assert shell(behind + LONG_POLL) == '"Hello, Ada!"'
        assert json.loads(shell(f"curl -s $M/v1/operations/{accepted['id']}"))["state"] == "succeeded"
        seen = events(shell(behind + WATCH))
        assert [number for number, _ in seen] == [*(str(one) for one in range(1, len(seen))), ""]
        assert seen[-1][1] == "end"
        assert events(shell(behind + RESUME)) == seen[2:]
