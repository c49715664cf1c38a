"""Two teams behind one gateway: keys, who may call whom, and that nothing of one is seen by the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

import pytest

from mesh.clock import monotonic_s, sleep
from tests.surface.actors import Actor, started
from tests.surface.checks import check_failure, check_problem
from tests.surface.gateways import ALPHA, ASYNC, Caller, Gateway
from tests.surface.wire import ask


class TestKeys:
    @pytest.mark.parametrize(
        "headers",
        [
            [],
            [("authorization", "Bearer wrong-key-0123456789")],
            [("authorization", f"Basic {ALPHA}")],
            [("authorization", ALPHA)],
            [("authorization", "Bearer")],
            [("authorization", f"Bearer {ALPHA}x")],
            [("authorization", f"Bearer {ALPHA}"), ("authorization", f"Bearer {ALPHA}")],
            [("authorization", "Bearer " + "x" * 5_000)],
        ],
    )
    async def test_401_everywhere(self, teams: Gateway, headers: list[tuple[str, str]]) -> None:
        """P5: with a challenge; nothing is said about what exists."""
        for method, target in (
            ("POST", "/v1/operations"), ("GET", "/v1/operations"), ("GET", "/v1/operations/x"),
            ("GET", "/v1/operations/x/result"), ("GET", "/v1/operations/x/events"), ("POST", "/v1/operations/x/cancel"),
            ("GET", "/v1/deliveries"), ("POST", "/v1/deliveries/x/redeliver"), ("GET", "/v1/webhook-secret"),
            ("GET", "/v1/endpoints"), ("PUT", "/v1/endpoints/some"), ("GET", "/v1/endpoints/some"),
        ):  # fmt: skip
            answer = await ask(teams.port, method, target, headers, b"" if method == "GET" else b"{}")
            assert (answer.status, answer["content-type"]) == (401, "application/problem+json"), (target, answer)
            assert answer["www-authenticate"].startswith('Bearer realm="mesh"')
        for method, path in (
            ("POST", ""),
            ("POST", "/cancel?token=x"),
            ("GET", "?token=x"),
            ("GET", "/result?token=x"),
        ):
            answer = await ask(teams.port, method, f"/nexus/endpoints/e/services/s/o{path}", headers)
            check_failure(answer, 401, "UNAUTHENTICATED")
            assert answer["www-authenticate"].startswith("Bearer")

    async def test_the_scheme_is_known_in_any_case(self, teams: Gateway) -> None:
        """P5."""
        answer = await ask(teams.port, "GET", "/v1/operations", {"authorization": f"bEARER  {ALPHA}"})
        assert answer.status == 200

    async def test_open_without_a_key(self, teams: Gateway) -> None:
        """P5, P110."""
        for target in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
            assert (await ask(teams.port, "GET", target)).status == 200


class TestKeyless:
    @pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost@evil", "10.0.0.1"])
    async def test_other_hosts_are_refused(self, keyless: Gateway, host: str) -> None:
        """P5: a page that rebinds its name to this machine."""
        for target in ("/v1/operations", "/v1/endpoints"):
            check_problem(await ask(keyless.port, "GET", target, {"host": host}), 403, "host_not_allowed")
        check_failure(
            await ask(keyless.port, "POST", "/nexus/endpoints/e/services/s/o", {"host": host}), 403, "UNAUTHORIZED"
        )

    @pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil"])
    async def test_other_origins_are_refused(self, keyless: Gateway, origin: str) -> None:
        """P5."""
        answer = await ask(keyless.port, "POST", "/v1/operations", {"origin": origin}, b"{}")
        check_problem(answer, 403, "origin_not_allowed")

    @pytest.mark.parametrize("headers", [{"host": "localhost"}, {"host": "127.0.0.1:1"}, {"host": "[::1]:80"},
                                         {"origin": "http://localhost:3000"}])  # fmt: skip
    async def test_this_machine_is_welcome(self, keyless: Gateway, headers: dict[str, str]) -> None:
        """P5."""
        assert (await ask(keyless.port, "GET", "/v1/operations", headers)).status == 200


class TestApart:
    async def test_only_whom_the_owner_allows_may_call(self, alpha: Caller, beta: Caller, agent: Actor) -> None:
        """P22: others cannot tell it from an endpoint that does not exist."""
        own = await alpha.register(agent.url)
        shared = await alpha.register(agent.url, allow=["beta"])
        everybody = await alpha.register(agent.url, allow=["*"])
        check_failure(await beta.nexus(own), 404, "NOT_FOUND", "unknown_endpoint")
        check_problem(await beta.v1(own), 404, "unknown_endpoint")
        missing = await beta.v1("nobody")
        assert (await beta.v1(own)).json["detail"].replace(own, "nobody") == missing.json["detail"]
        assert agent.calls == []
        for name in (shared, everybody):
            assert (await beta.nexus(name)).status == 200
        assert {call["mesh-namespace"] for call in agent.calls} == {"beta"}
        assert (await alpha.nexus(own)).status == 200

    async def test_operations_belong_to_the_caller(
        self, alpha: Caller, beta: Caller, agent: Actor, receiver: Actor
    ) -> None:
        """P6: every route answers 404 to others, the endpoint's owner included."""
        agent.replies(started())
        name = await alpha.register(agent.url, allow=["beta"])
        operation = await beta.begin(name, callback=receiver.url)
        await beta.until(operation, state="started")
        for suffix in ("", "/result", "/events"):
            check_problem(await alpha.get(f"/v1/operations/{operation}{suffix}"), 404, "unknown_operation")
        stream = await alpha.get(f"/v1/operations/{operation}/events", {"accept": "text/event-stream"})
        check_problem(stream, 404, "unknown_operation")
        check_problem(await alpha.cancel(operation), 404, "unknown_operation")
        route = f"/nexus/endpoints/{name}/services/svc/op"
        check_failure(await alpha.post(f"{route}/cancel?token={operation}"), 404, "NOT_FOUND")
        check_failure(await alpha.get(f"{route}/result?token={operation}"), 404, "NOT_FOUND")
        check_failure(await alpha.get(f"{route}?token={operation}"), 404, "NOT_FOUND")
        assert operation not in (await alpha.get("/v1/operations?limit=500")).body.decode()
        assert "cancel_requested" not in await beta.record(operation)
        await (await agent.until(1)).complete()
        await beta.until_delivery(operation, "delivered")
        assert operation not in (await alpha.get("/v1/deliveries?limit=500")).body.decode()
        answer = await alpha.post(f"/v1/deliveries/{operation}.1.callback/redeliver")
        check_problem(answer, 404, "unknown_delivery")
        assert len(receiver.calls) == 1

    async def test_keys_of_two_teams_do_not_meet(self, alpha: Caller, beta: Caller, agent: Actor) -> None:
        """P15: the same key in two namespaces is two operations."""
        agent.replies(started())
        name = await alpha.register(agent.url, allow=["*"])
        key = [("nexus-request-id", "k")]
        first, second = await alpha.begin(name, key), await beta.begin(name, key, body=b"other")
        assert first != second
        assert (await alpha.record(first))["namespace"] == "alpha"

    async def test_each_has_its_own_webhook_secret(self, alpha: Caller, beta: Caller) -> None:
        """P84."""
        first, second = await asyncio.gather(*[one.get("/v1/webhook-secret") for one in (alpha, beta)])
        assert first.json != second.json
        assert second.json["secret"].startswith("whsec_")

    async def test_a_completion_needs_no_key_but_its_token(self, alpha: Caller, agent: Actor) -> None:
        """P52: agents answer with what they were given."""
        agent.replies(started())
        operation = await alpha.begin(await alpha.register(agent.url))
        assert (await (await agent.until(1)).complete()).status == 200
        assert (await alpha.result(operation)).status == 200

    async def test_settings_bound_the_wait(self, alpha: Caller, agent: Actor) -> None:
        """P14, P61: 100 ms by default and 1 s at most here."""
        gate = agent.holds()
        name = await alpha.register(agent.url)
        answer = await asyncio.wait_for(alpha.nexus(name), 8)
        assert answer.status == 201
        capped = await asyncio.wait_for(alpha.v1(name, [("prefer", "wait=30")]), 12)
        assert (capped.status, capped["preference-applied"]) == (202, "wait=1")
        gate.set()
        assert (await alpha.v1(name, [ASYNC])).status == 202


class TestWatchers:
    async def test_one_namespace_cannot_take_the_places_of_another(self, alpha: Caller, beta: Caller) -> None:
        """P119: 32 streams of a namespace; the next is refused, another namespace's is not; a place is free again."""
        path = "/v1/endpoints?watch=true"
        name = await alpha.register("http://127.0.0.1:9", allow=["beta"])
        async with AsyncExitStack() as stack:
            for _ in range(31):
                await anext(await stack.enter_async_context(alpha.stream(path)))
            async with alpha.stream(path) as last:
                await anext(last)
                check_problem(await alpha.get(path), 429, "too_many_watchers")
                async with beta.stream(path) as other:
                    assert await shows(other, name)
            end_s = monotonic_s() + 5
            while not await watches(alpha, path):
                assert monotonic_s() < end_s
                await sleep(0.05)


async def shows(events: AsyncIterator[dict[str, str]], name: str) -> bool:
    """Whether the stream comes to speak of that endpoint, in time."""
    async with asyncio.timeout(5):
        async for event in events:
            if f'"{name}"' in event.get("data", ""):
                return True
    return False


async def watches(caller: Caller, path: str) -> bool:
    """Whether one more stream is opened, which is closed at once."""
    with suppress(AssertionError):
        async with caller.stream(path) as events:
            return bool(await anext(events))
    return False
