"""`mesh endpoint show`, and what an endpoint is in words. Knows no other command.

A `version` is an agent's; how often an endpoint was registered anew is called its registration.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, cast

import typer

from gateway.cli.options import ApiKey, Json, Url
from gateway.cli.show import Show, ago, plain, soon, span, word
from gateway.cli.wire import Gateway
from mesh.wire import quote_segment

Name = Annotated[str, typer.Argument(help="Name of the endpoint.")]


def endpoint_path(name: str) -> str:
    """Where it is."""
    return f"/v1/endpoints/{quote_segment(name)}"


def health_of(endpoint: dict[str, Any]) -> str:
    """State of an endpoint in a few words."""
    state = word("paused") if endpoint["paused"] else word(endpoint["health"])
    return state if endpoint["breaker"]["state"] == "closed" else f"{state} (breaker {endpoint['breaker']['state']})"


def _breaker(breaker: dict[str, Any]) -> str:
    if not breaker["failures_max"]:
        return "off"
    since = f" since {ago(breaker['since'])}" if breaker["since"] else ""
    failures = f"{breaker['failures']} of {breaker['failures_max']} requests in a row did not get through"
    if breaker["state"] == "closed":
        return f"{word('closed')}{since}" + (f", {failures}" if breaker["failures"] else "")
    probe = f"a probe {soon(breaker['retry_at'])}" if breaker.get("retry_at") else "one probe decides"
    rests = f"rests {span(breaker['open_ms'])}, at most {span(breaker['open_ms_max'])}"
    return f"{word(breaker['state'])}{since}, {failures}; {rests}; {probe}"


def services_of(endpoint: dict[str, Any]) -> str:
    """Its services with their operations, in a line."""
    return "; ".join(
        f"{one['name']}: {', '.join(operation['name'] for operation in one.get('operations') or ()) or 'any'}"
        for one in endpoint["services"]
    )


def show_(name: Name, *, url: Url = "", api_key: ApiKey = "", as_json: Json = False) -> None:
    """Show one endpoint: who may call it, its services, policy, instances and their health.

    \b
    Example:
      mesh endpoint show checks
    """  # noqa: D301 - \b keeps the lines of an example
    show = Show(as_json)
    with Gateway(url, api_key) as gateway:
        found = gateway.get(endpoint_path(name))
    if show.json(found):
        return
    registration = f"registration {found['version']}"
    why = plain(f": {found['health_why']}") if found.get("health_why") else ""
    show.fields(
        [
            ("endpoint", f"[bold]{plain(found['name'])}[/]  [dim]{plain(found['id'])}, {registration}[/]"),
            ("description", plain(found["description"])),
            ("state", f"{health_of(found)}{why}, since {ago(found['health_since'])}"),
            ("breaker", "" if found["target"]["kind"] == "pull" else _breaker(found["breaker"])),
            ("owner", plain(found["owner"])),
            ("may call", plain(", ".join(found["allow"]) or "the owner only")),
            ("target", plain(found["target"].get("url") or found["target"]["kind"])),
            ("services", plain(services_of(found) or "any")),
            ("contract", f"of registration {found['contract']}{_behind(found)}" if found.get("contract") else ""),
            *_policy(found["policy"]),
            ("labels", plain(", ".join(f"{key}={value}" for key, value in found["labels"].items()))),
            ("operations", f"{found['running']} running, {found['waiting']} waiting"),
        ]
    )
    show.line("")
    rows = [
        (
            plain(one["id"]),
            plain(one["version"]),
            f"{word(one['health'])} since {ago(one['health_since'])}",
            plain(one.get("health_why") or ""),
            plain(one.get("url") or one.get("kind", "")),
            f"{one['contract']}{' behind' if one['behind'] else ''}" if "contract" in one else "",
            str(one.get("weight", "")),
            str(one.get("in_flight", "")),
        )
        for one in found["instances"]
    ]
    columns = ("instance", "version", "state", "why", "url", "contract", "weight", "in flight")
    show.table(columns, rows, "no instances: work for it waits")


def _behind(found: dict[str, Any]) -> str:
    count = sum(bool(one.get("behind")) for one in found["instances"])
    return f", [yellow]{count} of its instances came before it[/] and get work as before" if count else ""


def _policy(policy: dict[str, Any]) -> list[tuple[str, str]]:
    """A line for each thing that is not the default; --json has all."""
    from registry.policy import NamespaceLimits, Policy  # noqa: PLC0415 - pydantic takes a while to load

    usual = Policy().model_dump()
    usual["limits"] = dict.fromkeys(policy.get("limits", {}), NamespaceLimits().model_dump())
    lines = list(_differing(policy, usual))
    return [("" if number else "policy", plain(line)) for number, line in enumerate(lines)] or [("policy", "defaults")]


def _differing(found: dict[str, Any], usual: dict[str, Any], within: str = "") -> Iterator[str]:
    for name, value in found.items():
        known = usual.get(name)
        if isinstance(value, dict):
            part, of = cast("dict[str, Any]", value), cast("dict[str, Any]", known if isinstance(known, dict) else {})
            yield from _differing(part, of, f"{within}{name}.")
        elif value is not None and value != known:
            yield f"{within}{name} {value if isinstance(value, str | int | float) else json.dumps(value)}"
