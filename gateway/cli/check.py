"""`mesh check`: the conformance cases against any URL, and the kit for agents' authors beside them.

Owns how a report is shown and how `mesh check URL` is told from `mesh check agent URL`. What is checked is mesh/check.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from gateway.cli.exits import Exit, Problem
from gateway.cli.options import Json
from gateway.cli.show import Show, plain, word
from mesh.check.report import Report, Result

DEFAULT: Final = "url"


class UrlOrCommand(TyperGroup):
    """`mesh check URL ...` is `mesh check url URL ...`: the first word is a command only if it names one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=UrlOrCommand,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Check a gateway or an agent against the rules of the wire: `mesh check URL`, `mesh check agent URL`.",
)


@app.command(DEFAULT)
def url(
    target: Annotated[str, typer.Argument(metavar="URL", help="What to check.")],
    kind: Annotated[str, typer.Option("--kind", help="What the URL is: gateway or agent.")] = "gateway",
    *,
    as_json: Json = False,
) -> None:
    """Run the conformance cases against a URL (`mesh check URL` is short for this)."""
    Show(as_json)
    if kind not in ("gateway", "agent"):
        raise Problem(f"--kind {kind!r} is neither gateway nor agent")
    raise Problem(f"there are no cases for {target} yet")


def show_report(show: Show, report: Report, *, quiet: bool = False) -> Exit:
    """Print a report, by rule with the reasons of what failed; the command's exit code. `quiet`: what failed alone."""
    if not show.json(report.as_json()):
        for rule, results in report.by_rule().items():
            shown = [result for result in results if not quiet or result.verdict == "fail"]
            if shown:
                show.line(f"[bold]{plain(rule or 'the wire')}[/]")
            for result in shown:
                _tell(show, result)
        show.line("")
        color = "green" if report.ok else "red"
        show.line(f"[{color}]{plain(report.summary())}[/]  {plain(report.kind)} {plain(report.url)}")
    return Exit.OK if report.ok else Exit.FAILED


def _tell(show: Show, result: Result) -> None:
    show.line(f"  {word(result.verdict)}  {plain(result.number):>4}  {plain(result.name)}")
    if result.verdict == "skipped":
        show.line(f"              {plain(result.seen)}")
    if result.verdict != "fail":
        return
    lines: dict[str, Any] = {
        "expected": result.expected,
        "seen": result.seen,
        "why": result.reason,
        "mend": result.advice,
    }
    for label, text in lines.items():
        if text:
            show.line(f"              {label + ':':<10}{plain(text)}")
