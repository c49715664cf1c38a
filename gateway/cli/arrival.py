"""`mesh endpoint wait`: until an agent is there, for scripts that start agents in the background."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from gateway.cli.exits import Exit, Problem
from gateway.cli.options import ApiKey, Json, Url
from gateway.cli.show import Show, plain, span
from gateway.cli.wire import Gateway
from mesh.clock import monotonic_s, pause
from mesh.errors import NotFound, TooMany, Unavailable
from mesh.wire import quote_segment

WAIT_S: Final = 30.0
ASK_S: Final = 0.05
ASK_MAX_S: Final = 0.5


def wait(
    name: Annotated[str, typer.Argument(help="Registered name of the agent.")],
    timeout: Annotated[float, typer.Option("--timeout", "-t", metavar="SECONDS", help="How long at most.")] = WAIT_S,
    *,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Wait until an endpoint is registered and an instance of it is healthy; also for the gateway itself to come up.

    \b
    Example:
      python agent.py & mesh endpoint wait greeter && mesh call greeter greeter greet -i '"Ada"'
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    begun_s = monotonic_s()
    with Gateway(url, api_key) as gateway:
        found = _until(gateway, name, begun_s + timeout)
    if not show.json(found):
        show.note(f"{plain(name)} is {found['health']} after {span((monotonic_s() - begun_s) * 1000)}")


def _until(gateway: Gateway, name: str, until_s: float) -> dict[str, Any]:
    """The endpoint once it is healthy. Raises Problem when the time is over first."""
    pause_s = ASK_S
    while True:
        try:
            found: dict[str, Any] = gateway.get(f"/v1/endpoints/{quote_segment(name)}")
            if found["health"] == "healthy":
                return found
            why = f"{name} is {found['health']}: {found.get('health_why') or 'no healthy instance'}"
        except (NotFound, TooMany, Unavailable) as error:
            why = error.detail
        if monotonic_s() + pause_s >= until_s:
            mend = (
                "Is the agent running, and does it register there? Its own log says whether the registry refused it:"
                " `contract_breaks`, say, or `name_taken`."
            )
            raise Problem(f"{name} did not come in time; {why}", mend, exit_code=Exit.UNAVAILABLE, code="not_there")
        pause(pause_s)
        pause_s = min(pause_s * 2, ASK_MAX_S)
