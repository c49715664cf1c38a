"""The `mesh` command: which commands there are, and how any of them ends.

Commands load what they need when they run, so that `mesh --help` is quick.
"""

from __future__ import annotations

import sys
from typing import Final

import typer

from gateway.cli import (
    arrival,
    batch,
    bench,
    call,
    check,
    check_agent,
    contracts,
    deliveries,
    demo,
    doctor,
    endpoint,
    endpoints,
    operations,
    queue,
    schedules,
    serving,
    versions,
)
from gateway.cli.exits import MEANINGS, Exit, problem_of, tell, tell_bug
from gateway.cli.exits import Problem as CommandProblem
from gateway.cli.show import Show
from mesh.errors import MeshError

EXIT_CODES: Final = "\b\n" + "\n".join(
    ["[bold]Exit codes[/]", *(f"{code:>5}  {meaning}" for code, meaning in MEANINGS.items())]
)

app = typer.Typer(
    name="mesh",
    help="Durable RPC between agents: call across teams, lose nothing, get the answer however you like.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

RUN: Final = "Run a gateway"
CALL: Final = "Call and look"
ADMIN: Final = "Register and mend"

app.command(rich_help_panel=RUN)(serving.dev)
app.command(rich_help_panel=RUN)(serving.serve)
app.command(rich_help_panel=RUN)(demo.demo)
app.command(rich_help_panel=CALL)(call.call)
app.command(rich_help_panel=CALL)(batch.batch)
app.add_typer(operations.app, name="operation", rich_help_panel=CALL)
app.add_typer(schedules.app, name="schedule", rich_help_panel=CALL)
endpoints.app.command("show")(endpoint.show_)
endpoints.app.command("wait")(arrival.wait)
endpoints.app.command("queue")(queue.queue)
for one in (versions.versions, versions.share, versions.drain, versions.undrain, versions.watch):
    endpoints.app.command()(one)
app.add_typer(endpoints.app, name="endpoint", rich_help_panel=ADMIN)
app.add_typer(contracts.app, name="contract", rich_help_panel=ADMIN)
app.add_typer(deliveries.app, name="delivery", rich_help_panel=ADMIN)
app.command(rich_help_panel=ADMIN)(doctor.doctor)
check.app.command("agent")(check_agent.agent)
app.add_typer(check.app, name="check", rich_help_panel=ADMIN)
app.command(rich_help_panel=ADMIN, context_settings=bench.PASS_ON)(bench.bench)


def main() -> None:
    """Run the command line; ends the process with one of the exit codes of exits.py."""
    try:
        app()
    except CommandProblem as problem:
        sys.exit(tell(problem, as_json=Show.as_json))
    except MeshError as error:
        sys.exit(tell(problem_of(error), as_json=Show.as_json))
    except (KeyboardInterrupt, EOFError):
        sys.exit(Exit.INTERRUPTED)
    except BrokenPipeError:
        # `mesh ... | head`: whoever read has enough. Python would complain once more while it flushes.
        sys.stdout = None
        sys.exit(Exit.OK)
    except Exception as error:  # noqa: BLE001 - the last door: a person gets a sentence, not a traceback
        sys.exit(tell_bug(error, as_json=Show.as_json))


if __name__ == "__main__":
    main()
