"""docs/how-to/durable-agents.md is true: its code is run, its tests are passed, its README section is the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from mesh import testing
from mesh.errors import NotFound

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "durable-agents.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
TESTS = next(block for block in BLOCKS if "def test_" in block)


@pytest.fixture(scope="module")
def page() -> Any:
    """The page as a module, without its tests."""
    module = types.ModuleType("durable_agents_page")
    sys.modules[module.__name__] = module
    for block in BLOCKS:
        if block == TESTS:
            continue
        exec(compile(block, "durable-agents.md", "exec"), module.__dict__)  # noqa: S102 - the page is ours
    return module


def test_its_tests_pass(tmp_path: Path) -> None:
    """As files beside each other, where nothing else is known."""
    (tmp_path / "coder.py").write_text(BLOCKS[0])
    (tmp_path / "test_coder.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_coder.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_its_gather_and_its_cancel(page: Any) -> None:
    children = {**dict.fromkeys(("wiki/Source/ask", "mail/Source/ask"), "here"), "tickets/Source/ask": NotFound("gone")}
    found = testing.run(page.retrieve, "q", children=children)
    assert found.result["found"] == {"wiki": "here", "mail": "here"}
    assert found.result["states"].pop("tickets") in ("failed", "late"), "two are enough"
    assert set(found.result["states"].values()) == {"succeeded"}
    booked = testing.run(page.book, "paris", children={"payments/Payments/charge": None})
    assert booked.result == "PARIS"


def test_every_name_of_mesh_that_it_mentions_is_there() -> None:
    import mesh  # noqa: PLC0415 - its names are looked up

    for name in set(re.findall(r"\bmesh\.([A-Za-z]+)\b", PAGE)) - {"md"}:
        assert hasattr(mesh, name), name
