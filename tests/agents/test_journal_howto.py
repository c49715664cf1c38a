"""docs/how-to/journal.md: its agent in shell, killed in the middle, and its call, as they stand there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

import mesh
from tests.agents.serving import until
from tests.agents.test_pull_howto import dev, environment, running
from tests.agents.test_real_gateway import Dev
from tests.agents.test_registration import ROOT

__all__ = ["dev"]

TEXT = (ROOT / "docs" / "how-to" / "journal.md").read_text()
BLOCKS = re.findall(r"^```([a-z]+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
AGENT, CALL = [text for kind, text in BLOCKS if kind == "sh"]
(SAID,) = [text for kind, text in BLOCKS if kind == "text"]


def ordered(client: mesh.SyncClient) -> str:
    """The id of the coffee, once somebody declared the endpoint."""
    try:
        return client.start("barista", "any", "coffee", idempotency_key="one-coffee").id
    except mesh.Refusal:
        return ""


@pytest.mark.skipif(not (shutil.which("jq") and shutil.which("bash") and shutil.which("curl")), reason="needs jq, curl")
def test_the_agent_in_shell(dev: Dev) -> None:
    """P220 to P225, P240, P241: one step, one wait, two agents of which the first is killed."""
    call = CALL.replace("mesh call", f"{sys.executable} -m gateway.cli.main call", 1)
    with mesh.SyncClient(dev.url) as client:
        with running(["bash", "-c", AGENT], dev):
            one = until(lambda: ordered(client), 10)
            assert next(event for event in client.watch(one) if event.type == "suspended")
        with running(["bash", "-c", AGENT], dev):
            said = subprocess.run(["bash", "-c", call], env=environment(dev), cwd=ROOT, capture_output=True, check=True)
        assert said.stdout.decode() == SAID
    shown = subprocess.run(
        [sys.executable, "-m", "gateway.cli.main", "operation", "show", one],
        env=environment(dev), cwd=ROOT, capture_output=True, check=True,
    ).stdout.decode()  # fmt: skip
    order = r"attempt 1\n(.*\n)*?.* step +grind#1 +\"18 g\"\n.* suspended +until .*\n(.* busy\n)?attempt 2\n"
    assert re.search(order, shown), shown
    assert len(re.findall(r"grind#1", shown)) == 1
