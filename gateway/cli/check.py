"""`mesh check`: the conformance cases against any URL, and the kit for agents' authors beside them.

Owns how a report is shown and how `mesh check URL` is told from `mesh check agent URL`. What is checked is mesh/check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import unquote

import typer
from typer.core import TyperGroup

from gateway.cli.exits import Exit, Problem
from gateway.cli.options import Json, pairs, read_json
from gateway.cli.show import Show, plain, word

if TYPE_CHECKING:
    from mesh.check.case import Case
    from mesh.check.report import Report, Result
    from mesh.check.run import Checked

DEFAULT: Final = "url"
KINDS: Final = ("gateway", "agent")
CHOICE: Final = "Which cases"
AGENT: Final = "An agent"


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
    target: Annotated[str, typer.Argument(metavar="URL", help="What to check.", show_default=False)] = "",
    kind: Annotated[
        str, typer.Option("--kind", metavar="gateway|agent", help="What the URL is; found out by itself if left out.")
    ] = "",
    rules: Annotated[
        list[str] | None, typer.Option("--rule", metavar="P15", help="Only cases of this rule.", rich_help_panel=CHOICE)
    ] = None,
    numbers: Annotated[
        list[int] | None, typer.Option("--case", metavar="17", help="Only this case.", rich_help_panel=CHOICE)
    ] = None,
    groups: Annotated[
        list[str] | None,
        typer.Option("--group", metavar="errors", help="Only cases of this group.", rich_help_panel=CHOICE),
    ] = None,
    api_key: Annotated[
        str, typer.Option("--api-key", envvar="MESH_KEY", help="Key of a namespace, for a gateway that asks for one.")
    ] = "",
    operations: Annotated[
        list[str] | None,
        typer.Option(
            "--operation",
            metavar="ROLE=SERVICE/OPERATION",
            help="An operation of the agent that does what the contract's ROLE does (any, echo, sum, seen, odd, act,"
            " task, runs); names percent-encoded. `any`: one that takes --input and answers 200 or 201. Named ones"
            " replace the contract.",
            rich_help_panel=AGENT,
        ),
    ] = None,
    input_: Annotated[
        str, typer.Option("--input", metavar="JSON", help="Input of `any`: JSON, @FILE or -.", rich_help_panel=AGENT)
    ] = "",
    running_max: Annotated[
        int,
        typer.Option("--running-max", help="How much it runs at once, so that case 90 applies.", rich_help_panel=AGENT),
    ] = 0,
    headers: Annotated[
        list[str] | None,
        typer.Option("--header", metavar="NAME=VALUE", help="Sent with every request to it.", rich_help_panel=AGENT),
    ] = None,
    here: Annotated[
        str, typer.Option("--here", metavar="HOST", help="How the target reaches this machine, when not by loopback.")
    ] = "",
    *,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show only what failed.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show of every case what is expected and why.")
    ] = False,
    listed: Annotated[bool, typer.Option("--list", help="List the cases and ask nobody.")] = False,
    as_json: Json = False,
) -> None:
    """Run the conformance cases against a URL (`mesh check URL` is short for this).

    Of a [bold]gateway[/] nothing is needed: for each case it gets an endpoint whose handler and callback receiver are
    listeners of this command, so it must be able to reach this machine (--here, and an egress rule outside of
    development). The endpoints are deleted, what was started is ended; records stay for the retention.

    An [bold]agent[/] is asked by the service of specs/conformance.nexusrpc.yaml, hosted beside its own on a test
    instance. Without it, name what it has: --operation any=SERVICE/OPERATION is enough for names, methods, timeouts
    and links; the cases that need more are shown as not applicable, with the operation they need.

    Exit codes: 0 nothing failed, 1 a case failed or none applied, 2 wrong arguments or a target that cannot be asked,
    5 nobody answers.

    \b
    Examples:
      mesh check http://127.0.0.1:7411
      mesh check http://127.0.0.1:7411 --rule P15 --json
      mesh check --kind agent http://127.0.0.1:9000/nexus
      mesh check --kind agent http://127.0.0.1:9000 --operation any=greeter/greet --input '"Ada"'
      mesh check --list --group cancel
    """  # noqa: D301 - \b keeps the lines of an example
    from mesh.check.cases import chosen  # noqa: PLC0415 - `mesh --help` is quick

    show = Show(as_json)
    cases = chosen(numbers or (), [one.upper() for one in rules or ()], groups or ())
    if not cases:
        raise Problem("no case has such a number, rule or group", "`mesh check --list` shows them all.")
    if listed:
        _list(show, cases)
        raise typer.Exit(Exit.OK)
    if not target.startswith(("http://", "https://")):
        raise Problem(f"{target!r} is not a URL", "Give one such as http://127.0.0.1:7411.")
    if kind and kind not in KINDS:
        raise Problem(f"--kind {kind!r} is neither gateway nor agent")
    agent_options = (operations, read_json(input_, "--input")[0] if input_ else None, running_max, headers)
    result = _run(target, kind, cases, api_key, agent_options, here)
    raise typer.Exit(show_report(show, result, quiet=quiet, verbose=verbose))


def _run(target: str, kind: str, cases: list[Case], key: str, agent: tuple[Any, ...], here: str) -> Report:
    import asyncio  # noqa: PLC0415 - as above

    from mesh.check.run import report  # noqa: PLC0415 - as above
    from mesh.check.targets import Unfit, look_at  # noqa: PLC0415 - as above

    where = {"bind": "0.0.0.0", "here": here} if here else {}  # noqa: S104 - the user asks to be reached from elsewhere

    async def run() -> Report:
        found = kind or await look_at(target)
        return await report(cases, _target(found, target, key, *agent), **where)

    try:
        return asyncio.run(run())
    except Unfit as unfit:
        code = Exit.UNAVAILABLE if unfit.silent else Exit.USAGE
        raise Problem(str(unfit), exit_code=code, code="target_unfit") from None


def _target(
    kind: str,
    target: str,
    key: str,
    operations: list[str] | None,
    given: bytes | None,
    running_max: int,
    headers: list[str] | None,
) -> Checked:
    from mesh.check.targets import OPERATIONS, Agent, Gateway  # noqa: PLC0415 - as above

    if kind == "gateway":
        return Gateway(target, key)
    options: dict[str, Any] = {}
    named = pairs(operations, "--operation")
    for role, path in named.items():
        service, sign, operation = path.partition("/")
        if role not in OPERATIONS or not sign or not service or not operation:
            known = ", ".join(OPERATIONS)
            raise Problem(f"--operation {role}={path} is not ROLE=SERVICE/OPERATION", f"Roles are {known}.")
        options.setdefault("operations", {})[role] = (unquote(service), unquote(operation))
    if given is not None and "any" not in named:
        raise Problem("--input is for the operation `any`", "Name it: --operation any=SERVICE/OPERATION.")
    sent = tuple(pairs(headers, "--header").items())
    return Agent(target, input=given, limit=running_max, headers=sent, **options)


def _list(show: Show, cases: list[Case]) -> None:
    from mesh.check.case import TARGETS  # noqa: PLC0415 - as above
    from mesh.check.report import rule_number  # noqa: PLC0415 - as above

    rules = {case.number: {kind: case.rule_for(kind) for kind in TARGETS if case.trial(kind)} for case in cases}
    rows = [
        {
            "number": case.number,
            "name": case.name,
            "group": case.group,
            "rules": rules[case.number],
            "expected": case.expected,
            "reason": case.reason,
            "advice": case.advice,
            "not_applicable": dict(case.skips),
        }
        for case in cases
    ]
    if not show.json(rows):
        lines = {number: " ".join(sorted(set(each.values()), key=rule_number)) for number, each in rules.items()}
        table = [(str(case.number), case.group, lines[case.number], plain(case.name)) for case in cases]
        show.table(("case", "group", "rules", "name"), table, "no cases")


def show_report(show: Show, report: Report, *, quiet: bool = False, verbose: bool = False) -> Exit:
    """Print a report, by rule with the reasons of what failed; the command's exit code.

    `quiet`: what failed alone; `verbose`: the reasons of what passed, too.
    """
    if not show.json(report.as_json()):
        for rule, results in report.by_rule().items():
            shown = [result for result in results if not quiet or result.verdict == "fail"]
            if shown:
                show.line(f"[bold]{plain(rule or 'the wire')}[/]")
            for result in shown:
                _tell(show, result, verbose=verbose)
        show.line("")
        color = "green" if report.ok else "red"
        show.line(f"[{color}]{plain(report.summary())}[/]  {plain(report.kind)} {plain(report.url)}")
    return Exit.OK if report.ok else Exit.FAILED


def _tell(show: Show, result: Result, *, verbose: bool) -> None:
    show.line(
        f"  {word(result.verdict)}{' ' * (8 - len(result.verdict))}{plain(result.number):>4}  {plain(result.name)}"
    )
    if result.verdict == "skipped":
        show.line(f"                {plain(result.seen)}")
    if result.verdict == "pass" and result.advice:
        show.line(f"                {'hint:':<10}{plain(result.advice)}")
    lines = {"expected": result.expected, "seen": result.seen, "why": result.reason, "mend": result.advice}
    told = {"fail": tuple(lines), "pass": ("expected", "why") if verbose else (), "skipped": ()}[result.verdict]
    for label in told:
        if lines[label]:
            show.line(f"                {label + ':':<10}{plain(lines[label])}")
