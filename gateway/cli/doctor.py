"""`mesh doctor`: what could keep Mesh from working here, each finding with its mend."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.exits import Exit
from gateway.cli.options import ApiKey, Json, Url
from gateway.cli.serving import DATA
from gateway.cli.show import Show, plain, word


def doctor(
    data: Annotated[
        Path, typer.Option("--data", envvar="MESH_DATA", metavar="DIR", help="The data directory of `mesh dev`.")
    ] = DATA,
    *,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Check this machine, the data directory and the gateway. Changes nothing.

    \b
    Examples:
      mesh doctor
      mesh doctor --url http://gateway:7411 --json
    """  # noqa: D301 - \b keeps the lines of an example
    from gateway.cli.checkup import examine  # noqa: PLC0415 - loads the store's side

    show = Show(as_json)
    findings = examine(data, url, api_key)
    bad = sum(finding.state == "bad" for finding in findings)
    if not show.json({"ok": not bad, "findings": [finding._asdict() for finding in findings]}):
        for finding in findings:
            show.line(f"{word(finding.state):<14} [bold]{plain(finding.check)}[/]: {plain(finding.detail)}")
            if finding.mend:
                show.line(f"        {plain(finding.mend)}")
        show.line("")
        show.line("[green]all well[/]" if not bad else f"[red]{bad} to mend[/]")
    raise typer.Exit(Exit.FAILED if bad else Exit.OK)
