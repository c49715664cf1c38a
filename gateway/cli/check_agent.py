"""`mesh check agent`: the kit for agents' authors on the command line. What is tried is mesh/check/agent.py's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

import typer

from gateway.cli.check import show_report
from gateway.cli.exits import Exit, Problem
from gateway.cli.options import Json, pairs, read_json
from gateway.cli.show import Show, span
from mesh.check.agent import PROBES, Sample, Settings, check_agent, ordered
from mesh.check.agent_kit import ANSWER_S, AT_ONCE, PARALLEL, PATIENCE_S, QUIET_S
from mesh.check.report import Result
from mesh.errors import Malformed
from mesh.wire import check_operation, check_service
from mesh.words import counted

WHAT = "What to start"
HOW = "How patiently"
WHERE = "Where completions go"


def agent(
    url: Annotated[str, typer.Argument(metavar="URL", help="The agent: what a gateway would be given as its URL.")],
    service: Annotated[
        list[str] | None,
        typer.Option(
            "--service",
            "-s",
            metavar="NAME",
            help="Its service; one for all operations, or one for each.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    operation: Annotated[
        list[str] | None,
        typer.Option(
            "--operation",
            "-o",
            metavar="NAME",
            help="An operation to start, often; may be given several times.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    input_: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "-i",
            metavar="JSON",
            help="Its input: JSON, @FILE, or - for standard input; empty is"
            " null. One for each operation, in the same order.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option("--header", metavar="NAME=VALUE", help="Sent with every start and cancel.", rich_help_panel=WHAT),
    ] = None,
    port: Annotated[int, typer.Option(help="Port of the receiver; 0: a free one.", rich_help_panel=WHERE)] = 0,
    host: Annotated[str, typer.Option(help="Address of the receiver.", rich_help_panel=WHERE)] = "127.0.0.1",
    callback_url: Annotated[
        str,
        typer.Option(metavar="URL", help="Base URL under which the agent reaches the receiver.", rich_help_panel=WHERE),
    ] = "",
    patience: Annotated[
        float, typer.Option(metavar="SECONDS", help="For a completion, and for its repetition.", rich_help_panel=HOW)
    ] = PATIENCE_S,
    quiet: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long to watch that nothing more comes.", rich_help_panel=HOW)
    ] = QUIET_S,
    answer: Annotated[
        float, typer.Option(metavar="SECONDS", help="For an answer; sent as Request-Timeout.", rich_help_panel=HOW)
    ] = ANSWER_S,
    parallel: Annotated[int, typer.Option(help="Probes at the same time.", rich_help_panel=HOW)] = PARALLEL,
    at_once: Annotated[int, typer.Option(help="Repeats of one start at once.", rich_help_panel=HOW)] = AT_ONCE,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NUMBER", help="Try this probe only; may be given several times.")
    ] = None,
    *,
    failed: Annotated[bool, typer.Option("--failed", help="Show what failed alone.")] = False,
    as_json: Json = False,
) -> None:
    """Play a gateway against an agent: repeats, lost replies, late and conflicting completions, cancel races.

    Says for each probe whether the agent stood it, and what its author has to change. The operations are really
    started, some fifty times each; one that takes one to five seconds says most, a quick one beside it the rest.

    \b
    Examples:
      mesh check agent http://127.0.0.1:8000 -s greeter -o greet -i '"Ada"'
      mesh check agent http://127.0.0.1:8000 -s jobs -o ping -i 1 -o report -i '{"days": 2}'
      mesh check agent http://127.0.0.1:8000 -s jobs -o report -i '{"days": 2}' --only S3 --only C2
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    unknown = sorted(set(only or ()) - set(PROBES))
    if unknown:
        raise Problem(
            f"--only {unknown[0]!r} is no probe", f"Probes are {', '.join(each.number for each in ordered())}."
        )
    settings = Settings(
        samples=_samples(service or [], operation or [], input_ or []),
        host=host,
        port=port,
        callback_url=callback_url,
        headers=list(pairs(header, "--header").items()),
        answer_s=answer,
        patience_s=patience,
        quiet_s=quiet,
        at_once=at_once,
        parallel=parallel,
        only=frozenset(only or ()),
    )
    try:
        report = asyncio.run(check_agent(url, settings, lambda result: _tell(show, result)))
    except Malformed as error:
        raise Problem(f"{url!r}: {error.detail}") from None
    except OSError as fault:
        raise Problem(
            f"the receiver cannot listen on {host}:{port}: {fault.strerror}", "Choose another --port."
        ) from None
    exit_code = show_report(show, report, quiet=failed)
    if exit_code is not Exit.OK:
        raise typer.Exit(exit_code)


def _samples(services: Sequence[str], operations: Sequence[str], inputs: Sequence[str]) -> list[Sample]:
    """Operations with their services and inputs. Raises Problem."""
    if (operations or inputs) and not services:
        raise Problem("--operation needs --service")
    if len(services) not in (0, 1, len(operations)) or len(inputs) > len(operations):
        raise Problem(
            f"{counted(len(services), 'service')} and {counted(len(inputs), 'input')} do not fit"
            f" {counted(len(operations), 'operation')}",
            "Give --service once, or once for each --operation, and --input in the same order.",
        )
    found: list[Sample] = []
    for number, name in enumerate(operations):
        text = inputs[number] if number < len(inputs) else ""
        raw = read_json(text, "--input")[0] if text else None
        try:
            sample = Sample(check_service(services[number % len(services)]), check_operation(name), raw)
        except Malformed as error:
            raise Problem(error.detail) from None
        found.append(sample)
    return found


def _tell(show: Show, result: Result) -> None:
    """How it goes, on standard error: a check takes a while."""
    show.note(f"{result.number:>3}  {result.verdict:<8}{span(result.took_ms):>8}  {result.name}")
