"""Both caller clients against scripted gateways on real sockets: what they send, repeat, do not repeat, and raise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import nexusrpc
import pytest
from msgspec.json import decode, encode

import mesh
from mesh import errors
from mesh.client import patience
from mesh.client.events import EventReader
from mesh.clock import monotonic_s
from mesh.machine import BLOCKED_REASONS
from tests.agents.serving import Request, Response, Scripted, answer, serving
from tests.agents.workshop import Order, Receipt, Shop
from tests.ports import lasting_port

ID = "00-0123456789abcdefghjk"
BROKEN = Response(chunks=[b"{", b""], headers={"content-length": "99"})


def record(state: str = "succeeded", **fields: Any) -> dict[str, Any]:
    return {"id": ID, "state": state, **fields}


class Caller:
    """One of the two clients, its verbs awaitable."""

    def __init__(self, kind: str, url: str | list[str], **options: Any) -> None:
        self.sync = mesh.SyncClient(url, **options) if kind == "sync" else None
        self.client = mesh.Client(url, **options)

    async def do(self, verb: str, *args: Any, **options: Any) -> Any:
        if self.sync is not None:
            return await asyncio.to_thread(getattr(self.sync, verb), *args, **options)
        return await getattr(self.client, verb)(*args, **options)

    async def watch(self, operation_id: str) -> list[mesh.Event]:
        if self.sync is not None:
            return await asyncio.to_thread(lambda: list(self.sync.watch(operation_id)))  # type: ignore[union-attr]
        return [event async for event in self.client.watch(operation_id)]

    async def close(self) -> None:
        if self.sync is not None:
            self.sync.close()
        await self.client.close()


class Stage:
    """A scripted gateway. `replies` are given in order, the last one for ever."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.replies: list[Response | Callable[[Request], Response]] = []
        self.app = Scripted(self._reply)
        self.url = ""
        self.callers: list[Caller] = []

    def _reply(self, _request: Request) -> Response:
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        return reply if isinstance(reply, Response) else reply(_request)

    def caller(self, *replies: Response | Callable[[Request], Response], url: Any = None, **options: Any) -> Caller:
        self.replies = list(replies)
        self.callers.append(Caller(self.kind, url or self.url, **options))
        return self.callers[-1]

    @property
    def requests(self) -> list[Request]:
        return self.app.requests


@pytest.fixture(params=["async", "sync"])
async def stage(request: pytest.FixtureRequest) -> Any:
    stage = Stage(request.param)
    with serving(stage.app) as stage.url:
        yield stage
        for caller in stage.callers:
            await caller.close()


class TestMany:
    async def test_what_is_worth_repeating_is_repeated(self, stage: Stage) -> None:
        """P368: a line that the store could not take, with the same key, and nothing else."""
        busy = {"status": 503, "code": "store_unavailable", "detail": "away", "retryable": True}
        begun: dict[str, Any] = {"line": 1, "status": 202, "id": ID, "state": "scheduled"}
        first = [begun, {"line": 2, "status": 503, "problem": busy}]
        second = [begun | {"id": f"{ID}2", "replayed": True}]
        caller = stage.caller(*(Response(chunks=[b"\n".join(map(encode, one))]) for one in (first, second)))
        orders = [caller.client.prepare("shop", "shop", "order", 1, idempotency_key=f"k-{one}") for one in (1, 2)]
        found = await caller.do("start_many", orders)
        assert [(one.id, one.replayed) for one in found] == [(ID, False), (f"{ID}2", True)]
        lines = [[decode(line) for line in request.body.splitlines()] for request in stage.requests]
        assert [[line["idempotency_key"] for line in lines_] for lines_ in lines] == [["k-1", "k-2"], ["k-2"]]
        called = {"endpoint": "shop", "service": "shop", "operation": "order", "input": 1}
        assert lines[0][0] == called | {"idempotency_key": "k-1"}

    async def test_one_set_of_headers(self, stage: Stage) -> None:
        """P365: a header of one line alone would silently be lost."""
        caller = stage.caller(answer({}))
        orders = [caller.client.prepare("shop", "shop", "order", 1, headers={"x": str(number)}) for number in (1, 2)]
        with pytest.raises(errors.ConfigError):
            await caller.do("start_many", orders)
        assert stage.requests == []


class TestCall:
    async def test_what_is_sent(self, stage: Stage) -> None:
        caller = stage.caller(answer(record(result={"text": "3 tea", "total": 21})), key="secret")
        got = await caller.do(
            "call", "shop", Shop.order, Order(item="tea", howMany=3),
            labels={"a": "b"}, schedule_to_close_ms=9000, request_timeout_ms=10, callback="http://me",
            headers={"traceparent": "t"}, timeout_s=5,
        )  # fmt: skip
        assert got == Receipt("3 tea", 21)
        (request,) = stage.requests
        assert (request.method, request.path) == ("POST", "/v1/operations")
        assert request.json == {
            "endpoint": "shop", "service": "Shop", "operation": "order", "input": {"item": "tea", "howMany": 3},
            "labels": {"a": "b"}, "timeouts": {"schedule_to_close_ms": 9000, "request_timeout_ms": 10},
            "callback": {"url": "http://me"},
        }  # fmt: skip
        headers = request.headers
        assert (headers["authorization"], headers["traceparent"], headers["prefer"]) == ("Bearer secret", "t", "wait=5")
        assert len(headers["idempotency-key"]) == 32

    async def test_nan_is_refused_and_not_sent_as_null(self, stage: Stage) -> None:
        caller = stage.caller(answer(record(result=None)))
        with pytest.raises(errors.ConfigError, match=r"the input is not what op takes: /x: nan has no form in JSON"):
            await caller.do("call", "shop", "S", "op", {"x": float("nan")})
        assert not stage.requests

    @pytest.mark.parametrize(
        ("what", "sent"),
        [
            (("S", "op", 1), ("S", "op", 1)),
            (("S", "op"), ("S", "op", None)),
            ((Shop, "op", [None]), ("Shop", "op", [None])),
            ((Shop, Shop.echo, {"x": 1.5}), ("Shop", "echo/ü %", {"x": 1.5})),
            ((Shop.nothing, None), ("Shop", "nothing", None)),
        ],
    )
    async def test_ways_to_name_an_operation(self, stage: Stage, what: tuple[Any, ...], sent: tuple[Any, ...]) -> None:
        caller = stage.caller(answer(record(result=None)))
        assert await caller.do("call", "shop", *what) is None
        body = stage.requests[0].json
        assert (body["service"], body["operation"], body.get("input")) == sent
        assert ("input" in body) is (sent[2] is not None)

    @pytest.mark.parametrize(
        "what",
        [
            (),
            ("S",),
            (int, "op"),
            (nexusrpc.Operation(name="lonely", input_type=int, output_type=int), 1),
            ("S", "op", 1, 2),
        ],
    )
    async def test_ways_that_name_none(self, stage: Stage, what: tuple[Any, ...]) -> None:
        with pytest.raises(errors.ConfigError):
            await stage.caller(answer({})).do("call", "shop", *what)
        assert not stage.requests

    @pytest.mark.parametrize(("verb", "option"), [("call", "timeout"), ("call", "wait_s"), ("start", "timeout_s")])
    async def test_an_option_that_is_none(self, stage: Stage, verb: str, option: str) -> None:
        """P218: what would be passed over in silence is named, and nothing is sent."""
        with pytest.raises(TypeError, match=f"'{option}' is no option of a start; there are idempotency_key, callback"):
            await stage.caller(answer({})).do(verb, "shop", "S", "op", 1, **{option: 5})
        assert not stage.requests

    async def test_an_input_of_another_type(self, stage: Stage) -> None:
        with pytest.raises(errors.ConfigError, match="order"):
            await stage.caller(answer({})).do("call", "shop", Shop.order, {"item": 3})
        assert not stage.requests

    async def test_long_polls_until_the_end(self, stage: Stage) -> None:
        running = answer(record("started"), 202, **{"retry-after": "1"})
        caller = stage.caller(running, running, Response(200, b'"done"', {"content-type": "application/json"}))
        assert await caller.do("call", "shop", Shop.slow, 3.0) == "done"
        assert [each.path for each in stage.requests[1:]] == [f"/v1/operations/{ID}/result?wait=5.000"] * 2
        assert stage.requests[0].headers["prefer"] == "wait=5"

    async def test_why_it_waits_is_said_once(
        self, stage: Stage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """P420: after the first moments, at a new reason, and no request is made for it."""
        monkeypatch.setattr(patience, "QUIET_S", 0.0)
        waits = [
            answer(record("scheduled", endpoint="shop", blocked=reason), 202)
            for reason in ("no_instance", "no_instance", "paused", "")
        ]
        caller = stage.caller(*waits, Response(200, b"1", {"content-type": "application/json"}))
        assert await caller.do("call", "shop", "S", "op") == 1
        said = [one.getMessage() for one in caplog.records if one.name == "mesh.client"]
        assert [one.split(": ", 1)[1].split(";")[0] for one in said] == [
            "no instance of 'shop' is alive", "'shop' is paused"
        ]  # fmt: skip
        assert all(ID in one for one in said)
        assert [one.path for one in stage.requests] == [
            "/v1/operations", *[f"/v1/operations/{ID}/result?wait=20.000"] * 4
        ]  # fmt: skip

    async def test_nothing_is_said_in_the_first_moments(
        self, stage: Stage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(patience, "QUIET_S", 600.0)
        waits = answer(record("scheduled", endpoint="shop", blocked="no_instance"), 202)
        caller = stage.caller(waits, waits, Response(200, b"1", {"content-type": "application/json"}))
        got = await caller.do("call", "shop", "S", "op")
        assert (got, [one for one in caplog.records if one.name == "mesh.client"]) == (1, [])

    async def test_with_what_it_failed_is_said(
        self, stage: Stage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """P420: the answer about a result leaves it out, so the record is asked for, when a line is due and no more."""
        monkeypatch.setattr(patience, "QUIET_S", 0.0)
        waits = record("backing_off", attempt=4, next_attempt_at="2026-01-01T00:00:00Z")
        whole = waits | {"last_failure": {"attempt": 4, "message": "ValueError: no such door"}}

        def reply(request: Request) -> Response:
            return answer(waits, 202) if request.method == "POST" or "/result" in request.path else answer(whole)

        caller = stage.caller(reply)
        why = "attempt 4 failed: ValueError: no such door; the next one is at 2026"
        with pytest.raises(mesh.StillRunning, match=why):
            await caller.do("call", "shop", "S", "op", timeout_s=0.3)
        (said,) = [one.getMessage() for one in caplog.records if one.name == "mesh.client"]
        assert (ID in said, "no such door" in said) == (True, True)
        # One for the line in the log, one for the error.
        assert [one.path for one in stage.requests].count(f"/v1/operations/{ID}") == 2

    async def test_without_a_record_its_own_words_do(self, stage: Stage) -> None:
        def reply(request: Request) -> Response:
            waits = answer(record("backing_off", attempt=4), 202)
            return waits if request.method == "POST" or "/result" in request.path else answer({}, 503)

        with pytest.raises(mesh.StillRunning, match="waits: attempt 4 failed, the next one is at"):
            await stage.caller(reply).do("call", "shop", "S", "op", timeout_s=0.1)

    def test_every_reason_has_words(self) -> None:
        assert set(BLOCKED_REASONS) == set(patience.WHY)

    @pytest.mark.parametrize(
        ("reply", "value"),
        [
            (Response(200), None),
            (Response(200, b"\x00\xff", {"content-type": "application/octet-stream"}), b"\x00\xff"),
            (Response(200, b"[1]", {"content-type": "application/json; charset=utf-8"}), [1]),
        ],
    )
    async def test_results_that_the_record_does_not_hold(self, stage: Stage, reply: Response, value: Any) -> None:
        caller = stage.caller(answer(record(result_base64="AP8=")), reply)
        assert await caller.do("call", "shop", "S", "op") == value

    async def test_a_result_of_another_type(self, stage: Stage) -> None:
        with pytest.raises(errors.ReplyInvalid, match="contract"):
            await stage.caller(answer(record(result="no receipt"))).do("call", "shop", Shop.order, Order(item="x"))

    async def test_a_type_for_names(self, stage: Stage) -> None:
        caller = stage.caller(answer(record(result={"text": "", "total": 1})))
        assert await caller.do("call", "shop", "Shop", "order", {}, output=Receipt) == Receipt("", 1)

    async def test_bytes_go_by_the_nexus_surface(self, stage: Stage) -> None:
        started = answer({"token": ID, "state": "running"}, 201, **{"mesh-operation-id": ID})
        result = Response(200, b"cba", {"content-type": "application/octet-stream"})
        caller = stage.caller(started, answer(record("started")), result)
        got = await caller.do("call", "shop", Shop.blob, b"abc", callback="http://me?a=b", schedule_to_close_ms=500)
        assert got == b"cba"
        request = stage.requests[0]
        assert request.path == "/nexus/endpoints/shop/services/Shop/blob?callback=http%3A%2F%2Fme%3Fa%3Db"
        assert (request.body, request.headers["content-type"]) == (b"abc", "application/octet-stream")
        assert (request.headers["prefer"], request.headers["operation-timeout"]) == ("respond-async", "500ms")
        with pytest.raises(errors.ConfigError):
            await caller.do("call", "shop", Shop.blob, b"abc", labels={"a": "b"})

    async def test_own_patience(self, stage: Stage) -> None:
        caller = stage.caller(answer(record("started"), 202))
        began_s = monotonic_s()
        with pytest.raises(mesh.StillRunning) as caught:
            await caller.do("call", "shop", "S", "op", timeout_s=0.3)
        assert 0.3 <= monotonic_s() - began_s < 15
        assert caught.value.operation_id == ID
        assert isinstance(caught.value, TimeoutError)


class TestOutcomes:
    @pytest.mark.parametrize(
        ("state", "kind"),
        [
            ("failed", mesh.OperationFailed),
            ("canceled", mesh.OperationCanceled),
            ("timed_out", mesh.OperationTimedOut),
        ],
    )
    async def test_operations_without_a_result(self, stage: Stage, state: str, kind: type[mesh.MeshError]) -> None:
        failure = {"message": "top", "details": {"state": "failed"}, "cause": {"message": "below"}}
        caller = stage.caller(answer(record(state)), answer(failure, 424), answer(record(state)))
        with pytest.raises(kind, match="top: below") as caught:
            await caller.do("call", "shop", "S", "op")
        assert isinstance(caught.value, mesh.OperationUnsuccessful)
        assert (caught.value.failure, caught.value.operation_id, caught.value.state) == (failure, ID, state)

    async def test_what_fits_in_no_header(self, stage: Stage) -> None:
        caller = stage.caller(answer(record()))
        for key in ("ü", "", "a\n"):  # an empty one is none that was left out
            with pytest.raises(errors.Malformed, match=r"idempotency_key='.*': .* 1 to 255 visible ASCII") as caught:
                await caller.do("start", "shop", "S", "op", idempotency_key=key)
            assert caught.value.code == "idempotency_key_invalid"
        for value in ("Zoë", "a\nb"):
            with pytest.raises(errors.ConfigError, match="'x-who' has line breaks, or characters beyond ASCII"):
                await caller.do("start", "shop", "S", "op", headers={"x-who": value})
        for key in ("schlüssel", "a\n"):
            with pytest.raises(errors.ConfigError, match=r"the API key .* MESH_KEY"):
                Caller(stage.kind, stage.url, key=key)
        assert stage.requests == []

    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (400, errors.Malformed),
            (401, errors.Unauthenticated),
            (403, errors.Forbidden),
            (404, errors.NotFound),
            (409, errors.Conflict),
            (410, errors.Gone),
            (413, errors.TooLarge),
            (418, errors.Refusal),
            (422, errors.Unprocessable),
            (500, errors.Unavailable),
        ],
    )
    async def test_refusals(self, stage: Stage, status: int, kind: type[errors.Refusal]) -> None:
        problem = {"code": "why", "detail": "because", "errors": [{"pointer": "/input"}], "operation_id": ID}
        with pytest.raises(kind) as caught:
            await stage.caller(answer(problem, status)).do("call", "shop", "S", "op")
        assert (caught.value.code, caught.value.detail) == ("why", "because")
        assert len(stage.requests) == 1
        if 400 < status < 500 and status != 418:
            assert (caught.value.errors, caught.value.operation_id) == ([{"pointer": "/input"}], ID)

    async def test_what_a_proxy_says(self, stage: Stage) -> None:
        with pytest.raises(errors.NotFound, match="answered 404"):
            await stage.caller(Response(404, b"<h1>nginx</h1>")).do("get", ID)
        with pytest.raises(errors.ReplyInvalid):
            await stage.caller(Response(200, b"<h1>nginx</h1>")).do("get", ID)


class TestRepeats:
    async def test_faults_are_repeated_with_one_key(self, stage: Stage) -> None:
        caller = stage.caller(
            BROKEN, answer({}, 503, **{"retry-after": "0"}), answer({}, 429), answer(record(result=1))
        )
        assert await caller.do("call", "shop", "S", "op") == 1
        assert len(stage.requests) == 4
        assert len({each.headers["idempotency-key"] for each in stage.requests}) == 1
        assert len({each.body for each in stage.requests}) == 1

    async def test_a_key_of_ones_own(self, stage: Stage) -> None:
        caller = stage.caller(answer(record("scheduled"), 202, **{"idempotency-replayed": "true"}))
        handle = await caller.do("start", "shop", "S", "op", idempotency_key="mine")
        assert (handle.id, handle.replayed, handle.record["state"]) == (ID, True, "scheduled")
        assert stage.requests[0].headers["idempotency-key"] == "mine"
        assert stage.requests[0].headers["prefer"] == "respond-async"

    async def test_keys_differ(self, stage: Stage) -> None:
        caller = stage.caller(answer(record(result=1)))
        for _ in range(2):
            await caller.do("call", "shop", "S", "op")
        assert len({each.headers["idempotency-key"] for each in stage.requests}) == 2

    async def test_retry_after_is_kept(self, stage: Stage) -> None:
        began_s = monotonic_s()
        caller = stage.caller(answer({}, 429, **{"retry-after": "1"}), answer(record(result=1)))
        await caller.do("call", "shop", "S", "op")
        assert 1 <= monotonic_s() - began_s < 15

    @pytest.mark.parametrize(
        ("reply", "kind"),
        [
            (BROKEN, mesh.GatewayUnreachable),
            (answer({"detail": "full"}, 503, **{"retry-after": "7"}), errors.Unavailable),
            (answer({"detail": "full"}, 429, **{"retry-after": "7"}), errors.TooMany),
        ],
    )
    async def test_not_for_ever(self, stage: Stage, reply: Response, kind: type[errors.Unavailable]) -> None:
        began_s = monotonic_s()
        with pytest.raises(kind) as caught:
            await stage.caller(reply, retry_for_s=0.5).do("call", "shop", "S", "op")
        assert monotonic_s() - began_s < 6
        assert caught.value.retry_after_s == (1 if reply is BROKEN else 7)

    async def test_what_is_marked_retryable_is_repeated(self, stage: Stage) -> None:
        """P146."""
        kind = {"content-type": "application/problem+json"}
        failed = Response(500, b'{"code": "internal", "retryable": true}', kind)
        marked = Response(500, headers={"nexus-request-retryable": "true"})
        caller = stage.caller(failed, marked, answer(record(result=1)))
        assert await caller.do("call", "shop", "S", "op") == 1
        assert len({each.headers["idempotency-key"] for each in stage.requests}) == 1
        assert len(stage.requests) == 3

    @pytest.mark.parametrize(
        "reply",
        [
            Response(503, b'{"detail": "no use", "retryable": false}', {"content-type": "application/problem+json"}),
            Response(503, headers={"nexus-request-retryable": "false"}),
            Response(500, b'{"detail": "who knows"}', {"content-type": "application/problem+json"}),
            Response(500, b"[]", {"content-type": "application/problem+json"}),
        ],
    )
    async def test_what_is_marked_otherwise_is_not(self, stage: Stage, reply: Response) -> None:
        with pytest.raises(errors.Unavailable):
            await stage.caller(reply).do("call", "shop", "S", "op")
        assert len(stage.requests) == 1

    async def test_what_an_operation_ended_with_is_not_asked_for_again(self, stage: Stage) -> None:
        """A handler's own 503 comes through the Nexus surface as it is; the operation has ended."""
        refused = Response(503, headers={"mesh-operation-id": ID})
        failed = [answer(record("failed")), answer({"message": "no"}, 424), answer(record("failed"))]
        with pytest.raises(mesh.OperationFailed):
            await stage.caller(refused, *failed).do("call", "shop", "S", "op", b"bytes")
        assert [each.method for each in stage.requests] == ["POST", "GET", "GET", "GET"]

    async def test_no_longer_than_the_caller_waits(self, stage: Stage) -> None:
        """P146: the operation is accepted; then nobody answers, and it is the caller's patience that ends."""
        began_s = monotonic_s()
        caller = stage.caller(answer(record("started"), 202), answer({}, 503), retry_for_s=20)
        with pytest.raises(mesh.StillRunning) as caught:
            await caller.do("call", "shop", "S", "op", timeout_s=0.5)
        assert (caught.value.operation_id, monotonic_s() - began_s < 15) == (ID, True)
        assert isinstance(caught.value.__cause__, errors.Unavailable)

    async def test_nobody_there(self, stage: Stage) -> None:
        gone = f"http://127.0.0.1:{lasting_port()}"
        caller = stage.caller(answer(record()), url=gone, retry_for_s=0)
        with pytest.raises(mesh.GatewayUnreachable, match=rf"no gateway answers at {gone} .*`mesh dev`.*MESH_URL"):
            await caller.do("get", ID)

    async def test_the_next_gateway(self, stage: Stage) -> None:
        with serving(Scripted()) as gone:
            pass
        caller = stage.caller(answer(record()), url=[gone, stage.url])
        assert (await caller.do("get", ID))["id"] == ID


class TestReads:
    async def test_get_cancel_result(self, stage: Stage) -> None:
        caller = stage.caller(answer(record("started", attempt=2)))
        assert (await caller.do("get", ID))["attempt"] == 2
        assert (await caller.do("cancel", ID))["state"] == "started"
        assert [(each.method, each.path) for each in stage.requests] == [
            ("GET", f"/v1/operations/{ID}"),
            ("POST", f"/v1/operations/{ID}/cancel"),
        ]
        caller = stage.caller(answer({"text": "", "total": 2}))
        assert await caller.do("result", ID, output=Receipt) == Receipt("", 2)

    async def test_a_handle_shows_what_it_is_of(self, stage: Stage) -> None:
        caller = stage.caller(answer(record("scheduled", endpoint="shop", operation="op"), 202))
        shown = repr(await caller.do("start", "shop", "S", "op"))
        assert shown.endswith(f"OperationHandle {ID} state='scheduled' endpoint='shop' operation='op'>")
        assert repr(caller.client.handle(ID)) == f"<OperationHandle {ID}>"

    async def test_list(self, stage: Stage) -> None:
        caller = stage.caller(answer({"items": [record()], "next_cursor": "c"}))
        page = await caller.do("list", state="failed", limit=2, cursor=None, labels={"a b": "ü"})
        assert (page.items, page.next_cursor) == ([record()], "c")
        assert stage.requests[0].path == "/v1/operations?state=failed&limit=2&label.a+b=%C3%BC"


def event(seq: int, kind: str = "dispatched") -> bytes:
    return b'id: %d\nevent: %s\ndata: {"seq":%d}\n\n' % (seq, kind.encode(), seq)


END = b'event: end\ndata: {"state":"succeeded"}\n\n'


class TestWatch:
    async def test_once_each_over_broken_streams(self, stage: Stage) -> None:
        def stream(*chunks: bytes) -> Response:
            return Response(chunks=list(chunks), headers={"content-type": "text/event-stream"})

        caller = stage.caller(
            stream(b"retry: 10\n\n" + event(1), b": ping\n\n" + event(2) + event(3)[:9], b""),
            answer({}, 503),
            stream(event(2), event(3), b""),
            stream(event(4), END, event(5)),
        )
        events = await caller.watch(ID)
        assert [(each.seq, each.type, each.data) for each in events] == [
            (seq, "dispatched", {"seq": seq}) for seq in (1, 2, 3, 4)
        ]
        assert [each.headers.get("last-event-id") for each in stage.requests] == [None, "2", "2", "3"]
        assert {each.headers["accept"] for each in stage.requests} == {"text/event-stream"}

    async def test_an_unknown_operation(self, stage: Stage) -> None:
        with pytest.raises(errors.NotFound):
            await stage.caller(answer({}, 404)).watch(ID)

    async def test_it_gives_up(self, stage: Stage) -> None:
        with pytest.raises(errors.Unavailable):
            await stage.caller(answer({}, 503), retry_for_s=0.2).watch(ID)

    @pytest.mark.parametrize("cut", [1, 2, 7, 1000])
    def test_any_cut_reads_the_same(self, cut: int) -> None:
        text = (
            b"\xef: x\n\n" + event(1) + b'id: 2\r\nevent: b\r\ndata: {"a":\r\ndata: "\xe2\x80\xa8"}\r\n\r\n'
            b"id: x\ndata: {}\n\nid: 3\n\nretry: 20\n" + END
        )
        reader = EventReader()
        found = [each for at in range(0, len(text), cut) for each in reader.feed(text[at : at + cut])]
        assert [tuple(each) for each in found] == [(1, "dispatched", {"seq": 1}), (2, "b", {"a": "\u2028"})]
        assert (reader.ended, reader.last_seq, reader.retry_ms) == (True, 2, 20)

    def test_an_event_without_end(self) -> None:
        with pytest.raises(errors.ReplyInvalid):
            EventReader().feed(b"x" * (5 << 20))


class TestSettings:
    def test_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        app = Scripted(lambda _: answer(record()))
        with serving(app) as url:
            monkeypatch.setenv("MESH_URL", f"{url}/")
            monkeypatch.setenv("MESH_KEY", "from-env")
            monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
            with mesh.SyncClient() as client:
                client.get(ID)
        assert app.requests[0].path == f"/v1/operations/{ID}"
        assert app.requests[0].headers["authorization"] == "Bearer from-env"

    def test_not_a_url(self) -> None:
        with pytest.raises(errors.ConfigError):
            mesh.SyncClient("localhost:7411")

    def test_names_are_sorted_and_there(self) -> None:
        assert mesh.__all__ == sorted(mesh.__all__)
        assert all(getattr(mesh, name) is not None for name in mesh.__all__)
        with pytest.raises(AttributeError):
            _ = mesh.nothing_such
