"""Probes and canaries: those of one team do not stop those of another, and none goes where work may not go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from mesh.clock import monotonic_s, sleep
from tests.surface.actors import Actor, Call, Reply, as_json, started
from tests.surface.checks import check_problem
from tests.surface.gateways import ALPHA, BETA, KEYLESS, Caller, Gateway, fresh

INSTANCES = 70
CANARY = {"service": "svc", "operation": "op", "every_ms": 500, "timeout_ms": 60_000}
PROBE = {"every_ms": 500, "timeout_ms": 300, "failures": 2}
STUCK = {"every_ms": 500, "timeout_ms": 60_000}


async def until(holds: Callable[[], Awaitable[Any]], within_s: float = 30.0) -> None:
    end_s = monotonic_s() + within_s
    while not await holds():
        assert monotonic_s() < end_s, "it never came true"
        await sleep(0.02)


async def drips(call: Call, writer: asyncio.StreamWriter) -> Reply | None:
    """Canaries get their 201 and no outcome. Probes get a head without an end; a write fails once the asker is gone."""
    if call.method == "POST":
        return started()
    writer.write(b"HTTP/1.1 200 X\r\n")
    while True:
        writer.write(b"x: y\r\n")
        await writer.drain()
        await sleep(0.2)


async def test_checks_of_one_team_stop_none_of_another(teams: Gateway, actor: Callable[[], Awaitable[Actor]]) -> None:
    """P317: hanging probes and canaries without end, more than there are places; then their endpoint is deleted."""
    red, blue = Caller(teams, ALPHA), Caller(teams, BETA)
    hangs, victim = await actor(), await actor()
    hangs.script = hangs.probed = drips
    healthy = True

    async def answers(call: Call, _writer: asyncio.StreamWriter) -> Reply:
        return as_json(None, 200 if healthy or call.method == "POST" else 500)

    victim.script = victim.probed = answers
    hanger = await red.register(None, policy={"probe": STUCK, "canaries": [CANARY]})
    for number in range(INSTANCES):
        body = {"url": hangs.url, "ttl_ms": 60_000}
        assert (await red.ask("PUT", f"/v1/endpoints/{hanger}/instances/i{number}", (), body)).status in (200, 201)

    async def taken() -> bool:
        return sum(call.method == "POST" for call in hangs.calls) >= 60

    await until(taken)
    # Its one canary: work that is answered (P302) would make probes needless.
    watched = await blue.register(victim.url, policy={"probe": PROBE, "canaries": [CANARY | {"every_ms": 60_000}]})

    async def target() -> dict[str, Any]:
        return (await blue.get(f"/v1/endpoints/{watched}")).json["instances"][0]

    async def tested() -> bool:
        return (await target()).get("checks", {}).get("canary:svc", {}).get("state") == "passing"

    async def suspected() -> bool:
        return (await target())["health"] == "suspect"

    await until(tested)
    healthy = False
    await until(suspected)

    async def hanging() -> bool:
        return hangs.open > 0

    await until(hanging)
    assert (await red.ask("DELETE", f"/v1/endpoints/{hanger}")).status == 204

    async def over() -> bool:
        return hangs.open == 0

    await until(over)
    assert (await blue.ask("DELETE", f"/v1/endpoints/{watched}")).status == 204


async def test_a_canary_is_bounded(alpha: Caller) -> None:
    """P306: nobody waits for one for an hour."""
    spec = {"policy": {"canaries": [CANARY | {"timeout_ms": 60_001}]}}
    answer = await alpha.ask("PUT", f"/v1/endpoints/{fresh('agent')}", (), spec)
    check_problem(answer, 422, "body_invalid")
    [error] = answer.json["errors"]
    assert (error["pointer"], "60000" in error["detail"]) == ("/policy/canaries/0/timeout_ms", True)


async def test_checks_go_where_work_may_go_only(own_gateway: Callable[..., Gateway], agent: Actor) -> None:
    """P302: what was registered before the rules were narrower is not asked any more, and shows why."""
    gateway = own_gateway()
    caller = Caller(gateway)
    names: dict[str, str] = {}
    for kind in ("http", "tcp"):
        # Of a probe of its own path nobody else can be the asker.
        probe = PROBE | {"kind": kind, "path": f"/{fresh('well')}"}
        names[kind] = await caller.register(agent.url, policy={"probe": probe, "canaries": []})
        if kind == "http":
            path = probe["path"]

    async def check(kind: str) -> dict[str, Any]:
        [instance] = (await caller.get(f"/v1/endpoints/{names[kind]}")).json["instances"]
        return instance.get("checks", {}).get("probe", {})

    for kind in names:
        await until(lambda kind=kind: _has(check(kind), "state", "passing"), 40.0)
    assert any(call.path == path for call in agent.calls)
    assert await asyncio.to_thread(gateway.stop) == 0
    gateway.settings_file.write_text(json.dumps(KEYLESS | {"egress": {"allow_loopback": False}}))
    before = len(agent.calls)
    await asyncio.to_thread(gateway.start)
    for kind in names:
        await until(lambda kind=kind: _has(check(kind), "state", "failing"), 40.0)
        assert "leads to an address that is not public" in (await check(kind))["why"]
    assert not [call for call in agent.calls[before:] if call.path == path]
    refused = await caller.ask("PUT", f"/v1/endpoints/{fresh('agent')}", (), {"target": {"url": agent.url}})
    check_problem(refused, 400, "url_forbidden")


async def _has(found: Awaitable[dict[str, Any]], key: str, value: str) -> bool:
    return (await found).get(key) == value
