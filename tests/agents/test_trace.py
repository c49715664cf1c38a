"""Trace context and links through the SDK: what a handler was called with goes on in what it calls, P160 to P165."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from nexusrpc import Link, OperationError, OperationErrorState
from nexusrpc.handler import StartOperationContext
from opentelemetry import baggage, context, trace

import mesh
from mesh.agent import Agent
from mesh.clock import sleep
from tests.agents.serving import Response, Scripted, serving, until
from tests.ports import lasting_port
from tests.surface.gateways import KEYLESS, Gateway

CONTEXT = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "vendor=1,other=2",
    "baggage": "team=blue",
}
TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path_factory.mktemp("gateway"), KEYLESS)
    gateway.start()
    yield gateway
    gateway.stop()


@pytest.fixture
def without_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program that never loaded it."""
    monkeypatch.delitem(sys.modules, "opentelemetry.trace", raising=False)


@contextmanager
def agent(gateway: Gateway, name: str, *functions: Any, **options: Any) -> Iterator[Agent]:
    """An agent that is registered and known to be in the rotation."""
    port = lasting_port()
    made = Agent(name, functions, gateway=gateway.url(), url=f"http://127.0.0.1:{port}", **options)
    with serving(made, port=port):
        until(lambda: made._registration is not None and made._registration.known.is_set())
        with mesh.SyncClient(gateway.url()) as client:
            assert client.call(name, name, "ready", timeout_s=20) is True
        yield made


async def ready() -> bool:
    return True


async def seen() -> dict[str, str]:
    """The trace context that this handler was called with."""
    headers = mesh.current().headers
    return {name: headers[name] for name in CONTEXT if name in headers}


@contextmanager
def chain(gateway: Gateway) -> Iterator[mesh.SyncClient]:
    """`outer` calls `inner` with the client, as any handler would; `span` says what OpenTelemetry sees."""

    async def outer(delay_s: float) -> dict[str, str]:
        await sleep(delay_s)
        async with mesh.Client(gateway.url()) as client:
            return await client.call("inner", "inner", "seen")

    def threaded() -> dict[str, str]:
        with mesh.SyncClient(gateway.url()) as client:
            return client.call("inner", "inner", "seen")

    async def span() -> list[Any]:
        found = trace.get_current_span().get_span_context()
        return [found.trace_id == TRACE_ID, found.is_remote, baggage.get_baggage("team")]

    with (
        agent(gateway, "inner", ready, seen),
        agent(gateway, "outer", ready, outer, threaded, span, answer_within_ms=50),
        mesh.SyncClient(gateway.url()) as client,
    ):
        yield client


class TestTraceContext:
    @pytest.mark.usefixtures("without_opentelemetry")
    def test_goes_on_in_what_a_handler_calls(self, gateway: Gateway) -> None:
        """P164: whole, from async handlers, from threads, and from work that was answered 201 meanwhile."""
        with chain(gateway) as client:
            assert client.call("outer", "outer", "outer", 0, headers=CONTEXT) == CONTEXT
            assert client.call("outer", "outer", "outer", 0.2, headers=CONTEXT) == CONTEXT
            assert client.call("outer", "outer", "threaded", headers=CONTEXT) == CONTEXT
            assert client.call("outer", "outer", "outer", 0) == {}

    @pytest.mark.usefixtures("without_opentelemetry")
    def test_of_the_call_itself_wins(self, gateway: Gateway) -> None:
        """P164: who names a `traceparent` gets no state of another trace beside it."""

        async def elsewhere() -> dict[str, str]:
            own = {"Traceparent": "00-11111111111111111111111111111111-2222222222222222-00"}
            async with mesh.Client(gateway.url()) as client:
                return await client.call("inner", "inner", "seen", headers=own)

        with (
            agent(gateway, "inner", ready, seen),
            agent(gateway, "elsewhere", ready, elsewhere),
            mesh.SyncClient(gateway.url()) as client,
        ):
            found = client.call("elsewhere", "elsewhere", "elsewhere", headers=CONTEXT)
        assert found == {"traceparent": "00-11111111111111111111111111111111-2222222222222222-00"}

    def test_is_opentelemetrys_where_that_is_loaded(self, gateway: Gateway) -> None:
        """P165: the current span leaves with a call, and the handler's spans are its children."""
        flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
        ours = trace.NonRecordingSpan(
            trace.SpanContext(TRACE_ID, 0xB7AD6B7169203331, is_remote=False, trace_flags=flags)
        )
        with chain(gateway) as client:
            token = context.attach(baggage.set_baggage("team", "blue", trace.set_span_in_context(ours)))
            try:
                found = client.call("outer", "outer", "outer", 0)
                assert (found["traceparent"], found["baggage"]) == (CONTEXT["traceparent"], "team=blue")
                assert client.call("outer", "outer", "span") == [True, True, "blue"]
            finally:
                context.detach(token)
            assert client.call("outer", "outer", "outer", 0) == {}

    def test_leaves_with_a_completion(self, gateway: Gateway) -> None:
        """P164: for callers that are no mesh: the callback is in the trace of the start."""
        receiver = Scripted(lambda _: Response())

        async def late() -> int:
            await sleep(0.2)
            return 7

        host = Agent("late", [late], register=False, answer_within_ms=20)
        with serving(receiver) as told, serving(host) as url:
            for headers in (CONTEXT, CONTEXT | {"nexus-callback-traceparent": "00-own"}):
                answer = httpx.post(f"{url}/late/late?callback={told}/done", headers=headers, trust_env=False)
                assert answer.status_code == 201
            until(lambda: len(receiver.requests) == 2)
        first, second = receiver.requests
        assert {name: first.headers[name] for name in CONTEXT} == CONTEXT
        assert second.headers["traceparent"] == "00-own"


class TestLinks:
    def test_of_a_handler_come_back_and_a_bad_one_costs_nothing(self, gateway: Gateway) -> None:
        """P161, P162: with a result, with a failure, and by completion."""

        async def work(ctx: StartOperationContext, how: str) -> str:
            ctx.outbound_links.append(Link(url="https://b.example/job/1", type="b.Job"))
            ctx.outbound_links.append(Link(url="not a url", type="b.Job"))
            if how == "late":
                await sleep(0.2)
            if how == "fails":
                raise OperationError("no", state=OperationErrorState.FAILED)
            return how

        with agent(gateway, "linked", ready, work, answer_within_ms=50), mesh.SyncClient(gateway.url()) as client:
            for how in ("quick", "late", "fails"):
                handle = client.start("linked", "linked", "work", how, wait_s=5)
                record = handle.get()
                assert record["state"] == ("failed" if how == "fails" else "succeeded")
                assert record.get("links") == [{"url": "https://b.example/job/1", "type": "b.Job", "by": "agent"}]

    def test_of_a_caller_reach_the_handler(self, gateway: Gateway) -> None:
        """P160."""

        async def given(ctx: StartOperationContext) -> list[str]:
            return [f"{link.type} {link.url}" for link in ctx.inbound_links]

        links = [Link(url="https://a.example/t?n=1,2", type="a.Ticket"), Link(url="temporal:///w", type="T")]
        with agent(gateway, "given", ready, given), mesh.SyncClient(gateway.url()) as client:
            handle = client.start("given", "given", "given", links=links, wait_s=5)
            assert handle.result() == ["a.Ticket https://a.example/t?n=1%2C2", "T temporal:///w"]
            assert [one["by"] for one in handle.get().get("links", [])] == ["caller", "caller"]
            with pytest.raises(mesh.MeshError, match="link"):
                client.start("given", "given", "given", links=[Link(url="no url", type="T")])
