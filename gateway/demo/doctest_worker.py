"""The checks agent's other tool: runs the doctests of modules that are installed, in a process of its own.

    python -m gateway.demo.doctest_worker MODULE ...

The report is one JSON object on standard output. Knows no mesh.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import json
import sys
from collections.abc import Sequence
from typing import Any

from gateway.demo.lint_worker import die_with_parent


def run(names: Sequence[str]) -> dict[str, Any]:
    """The fields of `DoctestReport`. A module that is not there is `missing`."""
    examples = failures = 0
    failed: list[str] = []
    missing: list[str] = []
    for name in names:
        # What doctests print is their business; standard output carries the report.
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                module = importlib.import_module(name)
            except ImportError:
                missing.append(name)
                continue
            result = doctest.testmod(module)
        examples += result.attempted
        failures += result.failed
        if result.failed:
            failed.append(name)
    return {
        "modules": len(names) - len(missing),
        "examples": examples,
        "failures": failures,
        "failed": failed,
        "missing": missing,
    }


if __name__ == "__main__":
    die_with_parent()
    json.dump(run(sys.argv[1:]), sys.stdout)
