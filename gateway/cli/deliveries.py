"""`mesh delivery`: what the mesh still owes, what died on the way, and sending it again."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from gateway.cli.options import ApiKey, Json, Url, one_of
from gateway.cli.show import Show, plain, soon, word
from gateway.cli.wire import Gateway
from mesh.machine import Delivery, Kind
from mesh.wire import quote_segment

STATES: Final = tuple(state.word for state in Delivery if state is not Delivery.NONE)
KINDS: Final = tuple(str(kind) for kind in Kind)

app = typer.Typer(no_args_is_help=True, help="Callbacks and other deliveries: list, send again.")


@app.command("list")
def list_(
    state: Annotated[str | None, typer.Option(help="pending, in_flight, delivered, dead or dropped.")] = None,
    kind: Annotated[str | None, typer.Option(help="start, cancel or callback; of starts there are most.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500)] = 50,
    cursor: Annotated[str | None, typer.Option(help="Where the last page ended.")] = None,
    *,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """List deliveries of your namespace's operations, newest operation first.

    \b
    Examples:
      mesh delivery list --state dead
      mesh delivery list --kind callback --json
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    one_of(state, STATES, "--state")
    one_of(kind, KINDS, "--kind")
    with Gateway(url, api_key) as gateway:
        page = gateway.page("/v1/deliveries", {"state": state, "kind": kind, "cursor": cursor}, limit)
    if show.json(page):
        return
    rows = [
        (
            plain(one["id"]),
            plain(one["kind"]),
            word(one["state"]),
            str(one["tries"]),
            plain(one.get("url") or one["endpoint"]),
            _about(one),
        )
        for one in page["items"]
    ]
    show.page(("id", "kind", "state", "tries", "to", ""), rows, "deliveries", page["next_cursor"])


def _about(one: dict[str, Any]) -> str:
    """When it is tried next, and what came of the last try."""
    due = f"next {soon(one['next_at'])}" if one.get("next_at") else ""
    return "; ".join(filter(None, (due, plain(one.get("why") or ""))))


@app.command()
def redeliver(
    delivery_id: Annotated[str, typer.Argument(metavar="ID", help="As `mesh delivery list` shows it.")],
    *,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Send a dead or delivered callback once more, under the same webhook-id.

    \b
    Example:
      mesh delivery redeliver 00-4m5k9q2r7t1v3w6x8y0z.1.callback
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    with Gateway(url, api_key) as gateway:
        row = gateway.ask("POST", f"/v1/deliveries/{quote_segment(delivery_id)}/redeliver").json()
    if not show.json(row):
        show.line(f"{plain(row['kind'])} of operation {plain(row['operation_id'])} is due again")


@app.command()
def secret(*, url: Url = "", api_key: ApiKey = "", as_json: Json = False) -> None:
    """Print the secret that signs your namespace's callbacks (Standard Webhooks).

    \b
    Example:
      export WEBHOOK_SECRET=$(mesh delivery secret)
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    with Gateway(url, api_key) as gateway:
        found = gateway.get("/v1/webhook-secret")
    if not show.json(found):
        print(found["secret"])
