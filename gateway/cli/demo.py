"""`mesh demo`: see gateway/demo/scenario.py for what happens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.exits import Exit
from gateway.cli.options import Json
from gateway.cli.show import Show


def demo(
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the operations and logs here instead of a temporary directory."),
    ] = None,
    tree: Annotated[str, typer.Option(metavar="NAME", help="What is reviewed: stdlib, or an installed package.")] = (
        "stdlib"
    ),
    *,
    as_json: Json = False,
) -> None:
    """See it work: agents of two teams do real work, are killed, and nothing is lost. Takes half a minute.

    Starts a gateway, four agents and a webhook receiver as processes of their own; kills two of the agents and the
    gateway with SIGKILL while they work; checks at the end that every operation ended once. Exit code 0: all held.

    \b
    Examples:
      mesh demo
      mesh demo --tree rich --json
    """  # noqa: D301 - \b keeps the lines of an example
    from gateway.demo.scenario import run  # noqa: PLC0415 - loads the SDK

    Show(as_json)
    raise typer.Exit(Exit.OK if run(data=data, tree=tree, as_json=as_json) else Exit.FAILED)
