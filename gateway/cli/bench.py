"""`mesh bench`: the figures. The benchmark lives in the source tree, not in the installed package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from gateway.cli.exits import Exit, Problem
from gateway.cli.options import Json
from gateway.cli.show import Show

PASS_ON: Final = {"allow_extra_args": True, "ignore_unknown_options": True}


def bench(
    context: typer.Context,
    source: Annotated[Path, typer.Option(metavar="DIR", help="The source tree of Mesh.")] = Path(),
    *,
    as_json: Json = False,
) -> None:
    """Measure this machine: throughput, latency, CPU, fsyncs and memory of durable calls.

    Further arguments go to the benchmark; `mesh bench --help-bench` is its own help.

    \b
    Examples:
      mesh bench
      mesh bench --source ~/src/mesh
    """  # noqa: D301 - \b keeps the lines of an example
    Show(as_json)
    if not (source / "bench" / "__main__.py").is_file():
        raise Problem(
            f"there is no benchmark in {source.resolve()}",
            "It lives in the source tree of Mesh: run this there, or `make bench`.",
            exit_code=Exit.MISSING,
            code="no_bench",
        )
    arguments = ["--help" if one == "--help-bench" else one for one in context.args]
    if as_json:
        arguments += ["--json", "-"]
    done = subprocess.run([sys.executable, "-m", "bench", *arguments], cwd=source, check=False)  # noqa: S603 - own module
    raise typer.Exit(done.returncode)
