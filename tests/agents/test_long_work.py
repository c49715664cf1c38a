"""Slow handlers: 201 by the host, completion later, leases in between, and the end of the process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx
import pytest

import mesh
from mesh.agent import Agent
from mesh.clock import from_rfc3339, monotonic_s, now_ms, pause
from mesh.errors import NotSent
from mesh.wire import parse_http_date
from tests.agents.serving import Gateway, Response, Scripted, serving, until
from tests.agents.workshop import ShopHandler

LEASE_MS = 1000


class Stage:
    """A scripted mesh and an agent that answers 201 after 50 ms."""

    def __init__(self, gateway: Gateway, handler: ShopHandler, url: str) -> None:
        self.gateway = gateway
        self.handler = handler
        self.did = handler.did
        self.http = httpx.Client(base_url=url, timeout=10, trust_env=False)

    def start(
        self, operation: str, value: str = "", *, attempt: int = 1, to: str = "", **headers: str
    ) -> httpx.Response:
        """As a mesh calls; `id` names the operation."""
        name = headers.pop("id", operation)
        sent = {
            "nexus-request-id": f"{name}.1",
            "nexus-callback-token": f"{name}/{attempt}",
            "mesh-operation-id": name,
            "mesh-run": "1",
            "mesh-attempt": str(attempt),
            **({"content-type": "application/json"} if value else {}),
            **{key.replace("_", "-"): text for key, text in headers.items()},
        }
        callback = quote(to or f"{self.gateway.url}/nexus/callback", safe="")
        return self.http.post(f"/Shop/{operation}?callback={callback}", content=value, headers=sent)

    def beats(self) -> list[str]:
        """Tokens of all heartbeats so far."""
        return [task["token"] for request in self.gateway.at("heartbeat") for task in request.json["tasks"]]


@contextmanager
def staged(**options: Any) -> Iterator[Stage]:
    gateway, handler = Gateway(), ShopHandler()
    with serving(gateway) as gateway.url:
        options = {"answer_within_ms": 50, "lease_ms": LEASE_MS, "register": False, "drain_s": 0.5} | options
        with serving(Agent("shop", [handler], gateway=gateway.url, **options)) as url:
            stage = Stage(gateway, handler, url)
            yield stage
            stage.http.close()


@pytest.fixture
def stage() -> Iterator[Stage]:
    with staged() as stage:
        yield stage


def token_of(response: httpx.Response) -> str:
    """The token of a 201."""
    assert response.status_code == 201, response.text
    body = response.json()
    assert body["state"] == "running"
    assert response.headers["content-type"] == "application/json"
    return body["token"]


class TestTakeOver:
    def test_quick_work_is_answered_at_once(self, stage: Stage) -> None:
        assert stage.start("slow", "0.01").text == '"done"'
        assert not stage.gateway.requests

    def test_slow_work_is_completed_later(self, stage: Stage) -> None:
        """Cases 64 to 66."""
        began_ms = now_ms()
        token = token_of(stage.start("slow", "0.2", nexus_callback_x_mine='{"a": "b"}'))
        (completion,) = stage.gateway.completed()
        headers = completion.headers
        assert (completion.method, completion.path, completion.body) == ("POST", "/nexus/callback", b'"done"')
        assert headers["content-type"] == "application/json"
        assert (headers["token"], headers["x-mine"]) == ("slow/1", '{"a": "b"}')
        assert (headers["nexus-operation-token"], headers["nexus-operation-state"]) == (token, "succeeded")
        assert abs(parse_http_date(headers["nexus-operation-start-time"]) - began_ms) < 10_000
        assert 150 < from_rfc3339(headers["nexus-operation-close-time"]) - began_ms < 10_000

    def test_half_of_the_request_timeout_is_enough(self) -> None:
        with staged(answer_within_ms=60_000) as stage:
            began_s = monotonic_s()
            token_of(stage.start("slow", "3", request_timeout="2s"))
            assert 1.0 <= monotonic_s() - began_s < 2.0
            stage.gateway.completed()

    def test_always_201_when_asked(self) -> None:
        with staged(answer_within_ms=0) as stage:
            token_of(stage.start("count", "1"))
            assert stage.gateway.completed()[0].body == b"2"

    def test_plain_functions_too(self, stage: Stage) -> None:
        token_of(stage.start("thread", "0.2"))
        assert stage.gateway.completed()[0].body == b'"done"'

    def test_null_and_links(self, stage: Stage) -> None:
        """Case 30, the 201, and case 66."""
        response = stage.start("linked", "0.2")
        token_of(response)
        (completion,) = stage.gateway.completed()
        assert (completion.body, completion.headers.get("content-type")) == (b"", None)
        link = '<http://shop/order?id=1%2C2>; type="shop.Order"'
        assert response.headers["nexus-link"] == completion.headers["nexus-link"] == link

    @pytest.mark.parametrize("asked", ["failed", "canceled", "BAD_REQUEST"])
    def test_failures(self, stage: Stage, asked: str) -> None:
        """Case 67. A handler error has no form of its own there: failed, with it as the cause."""
        token_of(stage.start("late_error", f'"{asked}"'))
        stage.handler.gate.set()
        (completion,) = stage.gateway.completed()
        state = "canceled" if asked == "canceled" else "failed"
        assert completion.headers["nexus-operation-state"] == state
        assert completion.headers["content-type"] == "application/json"
        assert completion.json["details"] == {"state": state}
        if asked == "BAD_REQUEST":
            assert completion.json["cause"]["details"] == {"type": "BAD_REQUEST"}

    def test_a_plain_nexus_caller_gets_no_lease(self, stage: Stage) -> None:
        callback = quote(f"{stage.gateway.url}/some/where?a=b%26c", safe="")
        response = stage.http.post(
            f"/Shop/slow?callback={callback}", content="0.2", headers={"content-type": "application/json"}
        )
        token_of(response)
        assert "mesh-lease-ms" not in response.headers
        (completion,) = until(lambda: stage.gateway.at("/some/where"))
        assert completion.path == "/some/where?a=b%26c"
        assert not stage.beats()


class TestRepeats:
    def test_one_execution_one_token(self, stage: Stage) -> None:
        """Case 17."""
        first, again = token_of(stage.start("slow", "0.3")), token_of(stage.start("slow", "0.3"))
        assert first == again
        stage.gateway.completed()
        assert len(stage.did.starts) == 1

    def test_a_later_attempt_brings_the_token_that_counts(self, stage: Stage) -> None:
        token_of(stage.start("slow", "0.4"))
        token_of(stage.start("slow", "0.4", attempt=3))
        token_of(stage.start("slow", "0.4", attempt=2))  # delayed on the way
        (completion,) = stage.gateway.completed()
        assert completion.headers["token"] == "slow/3"
        assert len(stage.did.starts) == 1

    def test_after_the_end_the_answer_itself_is_repeated(self, stage: Stage) -> None:
        token_of(stage.start("slow", "0.1"))
        stage.gateway.completed()
        assert until(lambda: stage.start("slow", "0.1", attempt=2)).text == '"done"'

    @pytest.mark.parametrize("status", [500, 503, 429, 408])
    def test_a_completion_is_repeated(self, stage: Stage, status: int) -> None:
        """Case 68."""
        stage.gateway.statuses = [status]
        token_of(stage.start("slow", "0.1"))
        first, second = stage.gateway.completed(2)
        assert (first.body, first.headers) == (second.body, second.headers)

    @pytest.mark.parametrize("status", [204, 401, 409, 410])
    def test_an_answer_for_good_ends_it(self, stage: Stage, status: int) -> None:
        """Cases 69 and 70."""
        stage.gateway.statuses = [status]
        token_of(stage.start("slow", "0.1"))
        stage.gateway.completed()
        pause(0.4)
        assert len(stage.gateway.completions) == 1

    def test_another_gateway_takes_the_completion_of_a_dead_one(self, stage: Stage) -> None:
        with serving(Scripted()) as gone:
            pass
        token_of(stage.start("slow", "0.1", to=f"{gone}/nexus/callback"))
        assert stage.gateway.completed()[0].headers["token"] == "slow/1"

    def test_what_another_gateway_does_not_know_is_not_final(self) -> None:
        """P206: the one that asked is away for a moment, the configured one is of another mesh."""
        down = [Response(503), Response(200)]
        with serving(asker := Scripted(lambda _: down.pop(0))) as url, staged() as stage:
            stage.gateway.statuses = [401] * 9
            token_of(stage.start("slow", "0.1", to=f"{url}/nexus/callback"))
            until(lambda: len(asker.requests) == 2)
            assert len(stage.gateway.completed()) == 1


class TestOperationTimeout:
    """P213."""

    def test_a_plain_caller_is_told(self, stage: Stage) -> None:
        token_of(stage.start("slow", "30", to=f"{stage.gateway.url}/some/nexus/callback/x", operation_timeout="200ms"))
        request = until(lambda: stage.gateway.at("/some/"))[0]
        assert request.json["cause"]["details"] == {"type": "REQUEST_TIMEOUT"}
        assert stage.did.canceled == ["the Operation-Timeout is over"]

    def test_a_mesh_knows_by_itself(self, stage: Stage) -> None:
        token_of(stage.start("slow", "30", operation_timeout="200ms"))
        until(lambda: stage.did.canceled)
        pause(0.2)
        assert not stage.gateway.completions

    def test_whoever_waits_on_the_line_is_answered(self, stage: Stage) -> None:
        sent = {"content-type": "application/json", "operation-timeout": "200ms"}
        assert stage.http.post("/Shop/slow", content="30", headers=sent).status_code == 408

    def test_work_that_is_done_before_is_left_alone(self, stage: Stage) -> None:
        token_of(stage.start("slow", "0.1", operation_timeout="1500ms"))
        assert stage.gateway.completed()[0].body == b'"done"'
        pause(1.6)
        assert not stage.did.canceled


class TestLeases:
    def test_heartbeats_while_it_runs(self, stage: Stage) -> None:
        response = stage.start("slow", "0.9")
        assert response.headers["mesh-lease-ms"] == str(LEASE_MS)
        token_of(response)
        stage.gateway.completed()
        beats = stage.gateway.at("heartbeat")
        assert 1 <= len(beats) <= 3
        assert beats[0].json == {"tasks": [{"token": "slow/1", "lease_ms": LEASE_MS}]}
        pause(0.5)
        assert len(stage.gateway.at("heartbeat")) == len(beats)

    def test_one_beat_carries_all(self, stage: Stage) -> None:
        with ThreadPoolExecutor(20) as threads:
            list(threads.map(lambda number: token_of(stage.start("slow", "1.5", id=f"op{number}")), range(20)))
        until(lambda: any(len(beat.json["tasks"]) == 20 for beat in stage.gateway.at("heartbeat")))

    def test_another_gateway_takes_the_heartbeat_of_a_dead_one(self, stage: Stage) -> None:
        with serving(Scripted()) as gone:
            pass
        token_of(stage.start("slow", "0.6", to=f"{gone}/nexus/callback"))
        until(stage.beats)

    def test_cancel_by_heartbeat(self, stage: Stage) -> None:
        stage.gateway.verdicts["deaf/1"] = "cancel"
        token_of(stage.start("deaf"))
        (completion,) = stage.gateway.completed()
        assert completion.headers["nexus-operation-state"] == "canceled"
        assert completion.json["details"] == {"state": "canceled"}

    @pytest.mark.parametrize("verdict", ["lost", "ended"])
    def test_lost_work_is_stopped_and_not_reported(
        self, stage: Stage, verdict: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mesh.agent.work.LOST_GRACE_S", 0.2)
        stage.gateway.verdicts["slow/1"] = verdict
        token_of(stage.start("slow", "30"))
        until(lambda: stage.did.canceled)
        pause(0.2)
        assert not stage.gateway.completions
        # The operation came back to this agent after all: new work, since the old was stopped.
        token_of(stage.start("slow", "30", attempt=2))
        assert len(stage.did.starts) == 2

    def test_lost_work_goes_on_for_the_next_attempt(self, stage: Stage) -> None:
        """A gateway that was away for longer than the lease does not cost the work that is done."""
        stage.gateway.verdicts["slow/1"] = "lost"
        token = token_of(stage.start("slow", "1.5"))
        until(stage.beats)
        pause(0.1)
        assert token_of(stage.start("slow", "1.5", attempt=2)) == token
        (completion,) = stage.gateway.completed()
        assert (completion.headers["token"], completion.body) == ("slow/2", b'"done"')
        assert len(stage.did.starts) == 1
        assert "slow/2" in stage.beats()

    def test_what_lost_work_came_to_is_kept_for_the_next_attempt(self, stage: Stage) -> None:
        stage.gateway.verdicts["slow/1"] = "lost"
        token_of(stage.start("slow", "0.8"))
        until(lambda: stage.did.ended)
        pause(0.1)
        assert not stage.gateway.completions
        assert stage.start("slow", "0.8", attempt=2).text == '"done"'
        assert len(stage.did.starts) == 1

    def test_lost_work_that_will_not_stop_is_no_longer_ours(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mesh.agent.work.LOST_GRACE_S", 0.0)
        stage.gateway.verdicts["stubborn/1"] = "lost"
        token_of(stage.start("stubborn"))
        until(stage.beats)
        pause(0.1)
        token_of(stage.start("stubborn", attempt=2))
        assert len(stage.did.starts) == 2
        (completion,) = stage.gateway.completed()
        assert completion.headers["token"] == "stubborn/2"

    @pytest.mark.parametrize("verdict", ["unknown", "invalid", "something new"])
    def test_a_verdict_that_says_nothing_changes_nothing(self, stage: Stage, verdict: str) -> None:
        stage.gateway.verdicts["slow/1"] = verdict
        token_of(stage.start("slow", "0.9"))
        assert stage.gateway.completed()[0].body == b'"done"'
        assert len(stage.beats()) == 1

    def test_a_passing_error_is_left_to_the_next_attempt(self, stage: Stage) -> None:
        token_of(stage.start("late_error", '"UNAVAILABLE"'))
        until(stage.beats)
        stage.handler.gate.set()
        pause(0.6)
        assert not stage.gateway.completions
        beats = len(stage.beats())
        pause(0.5)
        assert len(stage.beats()) == beats
        assert stage.start("late_error", '"UNAVAILABLE"', attempt=2).status_code == 503

    def test_without_a_lease_a_passing_error_is_final(self, stage: Stage) -> None:
        token_of(stage.start("late_error", '"UNAVAILABLE"'))
        stage.handler.gate.set()
        assert stage.gateway.completed()[0].json["cause"]["details"] == {"type": "UNAVAILABLE"}

    def test_the_key_goes_to_the_configured_gateway_only(self) -> None:
        stranger = Gateway()
        with serving(stranger) as stranger.url, staged(key="secret") as stage:
            token_of(stage.start("slow", "0.6", id="own"))
            token_of(stage.start("slow", "0.6", id="strange", to=f"{stranger.url}/nexus/callback"))
            until(lambda: stage.beats() and stranger.at("heartbeat"))
            assert stage.gateway.at("heartbeat")[0].headers["authorization"] == "Bearer secret"
            assert "authorization" not in stranger.at("heartbeat")[0].headers
            assert "authorization" not in stage.gateway.completed()[0].headers


class TestCancel:
    def cancel(self, stage: Stage, operation: str, token: str) -> None:
        response = stage.http.post(f"/Shop/{operation}/cancel", headers={"nexus-operation-token": token})
        assert (response.status_code, response.content) == (202, b"")

    def test_a_handler_that_does_not_watch(self, stage: Stage) -> None:
        token = token_of(stage.start("slow", "30"))
        self.cancel(stage, "slow", token)
        (completion,) = stage.gateway.completed()
        assert completion.headers["nexus-operation-state"] == "canceled"
        assert stage.did.canceled == ["canceled by the caller"]
        self.cancel(stage, "slow", token)  # cases 59 and 60
        assert len(stage.gateway.completions) == 1

    def test_a_handler_that_watches_ends_as_it_likes(self, stage: Stage) -> None:
        self.cancel(stage, "patient", token_of(stage.start("patient")))
        (completion,) = stage.gateway.completed()
        assert (completion.headers["nexus-operation-state"], completion.body) == ("succeeded", b'"half of it"')

    def test_a_plain_function_that_watches(self, stage: Stage) -> None:
        self.cancel(stage, "thread", token_of(stage.start("thread", "30")))
        assert stage.gateway.completed()[0].json["message"] == "stopped in order"

    def test_a_token_of_another_operation(self, stage: Stage) -> None:
        token = token_of(stage.start("slow", "0.3"))
        response = stage.http.post("/Shop/thread/cancel", headers={"nexus-operation-token": token})
        assert response.status_code == 404
        assert stage.gateway.completed()[0].body == b'"done"'

    def test_a_handler_with_tokens_of_its_own_that_was_slow(self, stage: Stage) -> None:
        token = token_of(stage.start("ticket", '"slow"'))
        assert token != "ticket slow"
        until(lambda: stage.did.ended)
        self.cancel(stage, "ticket", token)
        assert stage.did.canceled == ["ticket slow"]


class TestComplete:
    def test_work_that_was_slow_to_start_is_completed_under_the_token_of_the_201(self, stage: Stage) -> None:
        """P205."""
        token = token_of(stage.start("ticket", '"slow self"'))
        (completion,) = stage.gateway.completed()
        assert (completion.json, completion.headers["nexus-operation-token"]) == ("by itself", token)

    def test_by_the_handlers_own_hand(self, stage: Stage) -> None:
        assert token_of(stage.start("ticket", '"a"')) == "ticket a"
        ctx = stage.handler.tickets["a"]
        assert ctx.callback_url
        stage.gateway.statuses = [503]
        sent = mesh.complete(ctx.callback_url, ctx.callback_headers["token"], {"x": 1}, operation_token="ticket a")
        asyncio.run(sent)
        _, completion = stage.gateway.completions
        assert completion.json == {"x": 1}
        assert completion.headers["token"] == "ticket/1"
        assert completion.headers["nexus-operation-token"] == "ticket a"

    def test_the_token_may_stand_in_the_headers(self, stage: Stage) -> None:
        asyncio.run(mesh.complete(f"{stage.gateway.url}/nexus/callback", "", headers={"token": "t", "x-mine": "1"}))
        (completion,) = stage.gateway.completions
        assert (completion.headers["token"], completion.headers["x-mine"]) == ("t", "1")

    def test_never_before_retry_after(self) -> None:
        """P206: jitter makes it later, not earlier."""
        times: list[float] = []

        def busy(_: Any) -> Response:
            times.append(monotonic_s())
            return Response(200 if len(times) > 1 else 503, headers={"retry-after": "1"})

        for _ in range(3):
            times.clear()
            with serving(Scripted(busy)) as url:
                asyncio.run(mesh.complete(f"{url}/nexus/callback", "t"))
            assert times[1] - times[0] >= 1

    def test_it_does_not_outlive_its_agent(self) -> None:
        """Whoever reports on being interrupted must not keep the process from ending."""
        with staged() as ended:
            token_of(ended.start("ticket", '"interrupted"'))
            (task,) = ended.handler.tasks
        assert isinstance(task.exception(), NotSent)

    @pytest.mark.parametrize(("status", "error"), [(401, "unauthenticated"), (409, "conflict"), (410, "gone")])
    def test_a_refusal_is_raised(self, stage: Stage, status: int, error: str) -> None:
        stage.gateway.statuses = [status]
        with pytest.raises(mesh.MeshError) as caught:
            asyncio.run(mesh.complete(f"{stage.gateway.url}/nexus/callback", "t", b"bytes"))
        assert caught.value.code == error
        assert stage.gateway.completions[0].headers["content-type"] == "application/octet-stream"

    def test_an_error_instead_of_a_result(self, stage: Stage) -> None:
        import nexusrpc  # noqa: PLC0415 - one use

        error = nexusrpc.OperationError("no stock", state=nexusrpc.OperationErrorState.FAILED)
        asyncio.run(mesh.complete(f"{stage.gateway.url}/nexus/callback", "t", error=error))
        (completion,) = stage.gateway.completions
        assert (completion.headers["nexus-operation-state"], completion.json["message"]) == ("failed", "no stock")

    def test_it_gives_up(self) -> None:
        with serving(Scripted(lambda _: Response(500))) as url, pytest.raises(mesh.MeshError, match="answered 500"):
            asyncio.run(mesh.complete(f"{url}/nexus/callback", "t", retry_for_s=0.3))


class TestEnd:
    def test_work_that_ends_in_time_is_reported(self) -> None:
        with staged(drain_s=5) as stage:
            token_of(stage.start("slow", "0.5"))
        assert stage.gateway.completions[0].body == b'"done"'

    def test_work_without_a_lease_is_told_off(self) -> None:
        with staged(drain_s=0.1) as stage:
            token_of(stage.start("slow", "30"))
        (completion,) = stage.gateway.completions
        assert completion.json["cause"]["details"] == {"type": "UNAVAILABLE"}
        assert stage.did.canceled == ["the agent is stopping"]

    def test_leased_work_goes_to_the_next_agent(self) -> None:
        with staged(drain_s=0.1) as stage:
            token_of(stage.start("slow", "30"))
            until(stage.beats)
        assert not stage.gateway.completions
        assert stage.did.canceled == ["the agent is stopping"]

    def test_no_more_than_it_can_take(self) -> None:
        with staged(running_max=1) as stage:
            token_of(stage.start("slow", "0.5"))
            response = stage.start("slow", "0.5", id="second")
            assert (response.status_code, response.headers["retry-after"]) == (429, "1")
            assert response.json()["details"] == {"type": "RESOURCE_EXHAUSTED"}
            assert stage.start("slow", "0.5").status_code == 201
