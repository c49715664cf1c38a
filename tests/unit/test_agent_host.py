"""The handler side of Nexus, over real sockets: the case numbers are those of mesh/check/cases."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from math import inf, nan
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ConfigDict

from mesh import Agent, current
from mesh.agent.codec import Codec, Undecodable
from mesh.agent.context import Cancellation
from mesh.clock import monotonic_s, now_ms, sleep
from mesh.errors import ConfigError
from mesh.wire import HANDLER_ERRORS
from tests.agents.serving import serving, until
from tests.agents.workshop import ShopHandler

JSON = {"content-type": "application/json"}
ECHO = "/Shop/echo%2F%C3%BC%20%25"


class Shop:
    """The workshop behind a server, and a caller."""

    def __init__(self, handler: ShopHandler, url: str) -> None:
        self.handler = handler
        self.did = handler.did
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=10, trust_env=False)

    def post(self, path: str, content: Any = b"", **headers: str) -> httpx.Response:
        return self.http.post(path, content=content, headers={k.replace("_", "-"): v for k, v in headers.items()})

    def order(self, path: str, value: str = "", **headers: str) -> httpx.Response:
        """Post JSON text; none is Nexus null."""
        return self.post(path, value.encode(), **(JSON if value else {}), **headers)


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    handler = ShopHandler()
    with serving(Agent("shop", [handler], register=False, input_bytes_max=100_000)) as url:
        shop = Shop(handler, url)
        yield shop
        shop.http.close()


class Measure(BaseModel):
    value: float


class Spoken(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="strings")
    value: float
    other: float | None = None


def failure(response: httpx.Response, error_type: str) -> dict[str, Any]:
    """The body of a handler error, after checking what every handler error must have."""
    status, retryable = HANDLER_ERRORS[error_type]
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["nexus-request-retryable"] == str(retryable).lower()
    body = response.json()
    assert body["metadata"]["type"] == "nexus.HandlerError"
    assert body["details"]["type"] == error_type
    return body


class TestValues:
    def test_json_in_and_out(self, shop: Shop) -> None:
        """Case 1: aliases on both sides, the type without parameters, the state header of the spec."""
        response = shop.order("/Shop/order", '{"item":"tea","howMany":3}')
        assert (response.status_code, response.json()) == (200, {"text": "3 tea", "total": 21})
        assert response.headers["content-type"] == "application/json"
        assert response.headers["nexus-operation-state"] == "succeeded"

    def test_an_empty_chunked_body_is_null(self, shop: Shop) -> None:
        """Cases 2 and 3."""
        response = shop.http.post("/Shop/nothing", content=iter([b""]))
        assert (response.status_code, response.content) == (200, b"")
        assert response.headers["content-length"] == "0"
        assert "content-type" not in response.headers

    def test_bytes_travel_as_they_are(self, shop: Shop) -> None:
        """Case 4."""
        response = shop.post("/Shop/blob", b"\x00\xffabc", content_type="application/octet-stream")
        assert (response.content, response.headers["content-type"]) == (b"cba\xff\x00", "application/octet-stream")

    @pytest.mark.parametrize(
        "content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON"]
    )
    def test_json_null_is_null(self, shop: Shop, content_type: str) -> None:
        """Cases 5 and 9."""
        assert shop.post("/Shop/nothing", b"null", content_type=content_type).content == b""

    @pytest.mark.parametrize(
        ("content_type", "body"),
        [
            ("text/plain", b'{"item":"tea"}'),  # case 6
            ("application/octet-stream", b'{"item":"tea"}'),
            ("application/json", b"{"),  # case 7
            ("application/json", b""),
            ("application/json", b"\xff"),
            ("application/json", b'{"item":3}'),  # case 8
            ("application/json", b'{"item":"tea","howMany":0}'),
            ("", b'{"item":"tea"}'),
            ("", b""),
        ],
    )
    def test_what_cannot_be_read_is_bad_request(self, shop: Shop, content_type: str, body: bytes) -> None:
        """Cases 6 to 8: never 422, never retried, and what was sent is not in the answer."""
        headers = {"content_type": content_type} if content_type else {}
        message = failure(shop.post("/Shop/order", body, **headers), "BAD_REQUEST")["message"]
        assert "input" in message
        assert "tea" not in message

    def test_a_breach_is_named_by_place(self, shop: Shop) -> None:
        message = failure(shop.order("/Shop/order", '{"item":"tea","howMany":0}'), "BAD_REQUEST")["message"]
        assert "/howMany: Input should be greater than or equal to 1" in message

    def test_an_encoded_body_is_refused(self, shop: Shop) -> None:
        failure(shop.order("/Shop/order", "{}", content_encoding="gzip"), "BAD_REQUEST")

    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_body_over_the_limit_is_bad_request(self, shop: Shop, *, chunked: bool) -> None:
        """Case 85."""
        body = iter([b"x" * 60_000, b"x" * 60_000]) if chunked else b"x" * 100_001
        assert "100000 bytes" in failure(shop.post("/Shop/blob", body), "BAD_REQUEST")["message"]

    def test_a_body_in_pieces_is_put_together(self, shop: Shop) -> None:
        response = shop.http.post("/Shop/count", content=iter([b"1", b"2", b"3"]), headers=JSON)
        assert response.json() == 124

    def test_a_result_of_another_type_is_the_handlers_fault(self, shop: Shop) -> None:
        """And no attempt would end otherwise: it is not to be repeated."""
        response = shop.order("/Shop/wrong")
        assert (response.status_code, response.headers["nexus-request-retryable"]) == (500, "false")
        message = response.json()["message"]
        assert message.startswith("the result of Shop/wrong is not the declared int: value: Input should be")
        assert "secret" not in response.text

    @pytest.mark.parametrize(
        ("type_", "value", "place"),
        [
            (float, nan, "value: nan"),
            (Any, {"a": [1, inf]}, "/a/1: inf"),
            (dict[str, float], {"x": 1.0, "y": -inf}, "/y: -inf"),
            (Measure, Measure(value=nan), "/value: nan"),
            (list[Measure], [Measure(value=1), {"value": nan}], "/1/value: nan"),
        ],
    )
    def test_what_json_has_no_number_for_is_refused_by_place(self, type_: Any, value: Any, place: str) -> None:
        """P189."""
        with pytest.raises(Undecodable, match=f"{place} has no form in JSON"):
            Codec(type_).encode(value)

    def test_nothing_and_words_are_no_numbers(self) -> None:
        assert Codec(Any).encode({"a": None, "b": "NaN Infinity"})[1] == b'{"a":null,"b":"NaN Infinity"}'
        assert Codec(Spoken).encode(Spoken(value=nan))[1] == b'{"value":"NaN","other":null}'


class TestPaths:
    @pytest.mark.parametrize("path", [ECHO, "/%53hop/echo%2f%c3%bc%20%25"])
    def test_names_are_decoded_once_from_the_raw_path(self, shop: Shop, path: str) -> None:
        """Case 10."""
        assert shop.order(path, '["x"]').json() == ["x"]

    @pytest.mark.parametrize(
        "path",
        ["/Nope/order", "/Shop/nope", "/Shop", "/", "/Shop/order/more", "/Shop/order/cancel/more", "/Shop//cancel"],
    )
    def test_unknown_names_and_shapes(self, shop: Shop, path: str) -> None:
        """Cases 11, 12, 15."""
        failure(shop.order(path, "1"), "NOT_FOUND")

    def test_a_bad_escape(self, shop: Shop) -> None:
        """Case 13, raw: HTTP clients mend such paths."""
        host, port = shop.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(b"POST /Shop/ord%2 HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            reply = b"".join(iter(lambda: raw.recv(65536), b""))
        assert reply.startswith(b"HTTP/1.1 400 ")
        assert b"BAD_REQUEST" in reply

    def test_a_prefix(self) -> None:
        """Case 14."""
        agent = Agent("shop", [ShopHandler()], register=False, prefix="/teams/a/")
        with serving(agent) as url, httpx.Client(trust_env=False) as http:
            assert http.post(f"{url}/teams/a/Shop/count", content=b"1", headers=JSON).json() == 2
            assert http.get(f"{url}/teams/a/healthz").status_code == 200
            failure(http.post(f"{url}/Shop/count", content=b"1", headers=JSON), "NOT_FOUND")

    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
    def test_other_methods(self, shop: Shop, method: str) -> None:
        """Case 16."""
        failure(shop.http.request(method, "/Shop/order"), "BAD_REQUEST")

    def test_health(self, shop: Shop) -> None:
        assert shop.http.get("/healthz").text == "ok"


class TestHeaders:
    def test_what_a_handler_sees(self, shop: Shop) -> None:
        """Cases 20 and 27: a request id is made up; content and callback headers are hidden, names in lower case."""
        seen = shop.order("/Shop/seen", "null", X_Mine="a", nexus_callback_token="t").json()
        assert seen["headers"]["x-mine"] == "a"
        assert not [name for name in seen["headers"] if name.startswith(("content-", "nexus-callback-"))]
        assert seen["request_id"]
        assert seen["context"] == {
            "endpoint": "shop", "service": "Shop", "operation": "seen",
            "operation_id": None, "run": 1, "attempt": 1, "namespace": None,
        }  # fmt: skip

    def test_what_a_mesh_says(self, shop: Shop) -> None:
        said = {"mesh_operation_id": "00-a", "mesh_run": "2", "mesh_attempt": "3", "mesh_namespace": "team"}
        seen = shop.order("/Shop/seen", nexus_request_id="00-a.2", operation_timeout="60s", **said).json()
        assert seen["request_id"] == "00-a.2"
        assert (
            seen["context"] | {"operation_id": "00-a", "run": 2, "attempt": 3, "namespace": "team"} == seen["context"]
        )
        assert abs(seen["deadline_at_ms"] - now_ms() - 60_000) < 30_000

    @pytest.mark.parametrize(("text", "seconds"), [("1.5s", 1.5), ("2m", 120), ("2500ms", 2.5)])
    def test_the_request_timeout_is_the_handlers_deadline(self, shop: Shop, text: str, seconds: float) -> None:
        """Case 24."""
        asked_ms = now_ms()
        deadline = datetime.fromisoformat(shop.order("/Shop/seen", request_timeout=text).json()["deadline"])
        assert asked_ms - 10 <= deadline.timestamp() * 1000 - seconds * 1000 <= now_ms() + 10

    def test_with_a_callback_the_operation_timeout_is_the_deadline(self, shop: Shop) -> None:
        """The work outlives its request, so the request's timeout is not the handler's affair."""
        path = "/Shop/seen?callback=http%3A%2F%2F127.0.0.1%3A9"
        asked_ms = now_ms()
        seen = shop.order(path, request_timeout="25s", operation_timeout="60s", nexus_callback_token="t").json()
        deadline_ms = datetime.fromisoformat(seen["deadline"]).timestamp() * 1000
        assert asked_ms - 10 <= deadline_ms - 60_000 <= now_ms() + 10
        assert seen["callback"] == ["http://127.0.0.1:9", {"token": "t"}]
        assert shop.order(path, request_timeout="5s").json()["deadline"] is None

    @pytest.mark.parametrize("name", ["request_timeout", "operation_timeout"])
    @pytest.mark.parametrize("text", ["5", "1h", "-1s", "1 s", "s"])
    def test_bad_timeouts(self, shop: Shop, name: str, text: str) -> None:
        """Cases 25 and 26."""
        failure(shop.order("/Shop/seen", **{name: text}), "BAD_REQUEST")

    def test_an_empty_timeout_is_none(self, shop: Shop) -> None:
        """Case 25."""
        assert shop.order("/Shop/seen", request_timeout="").json()["deadline"] is None

    def test_links_in(self, shop: Shop) -> None:
        """Cases 28 and 31."""
        one, two, three = ('<http://a/1%2C2>; type="a.B"', '<http://b>; type="b"', '<http://c?x=y>; type="c"')
        links = [("nexus-link", f"{one}, {two}"), ("nexus-link", three)]
        seen = shop.http.post("/Shop/seen", headers=links).json()
        assert seen["links"] == [["http://a/1%2C2", "a.B"], ["http://b", "b"], ["http://c?x=y", "c"]]

    @pytest.mark.parametrize("link", ["<http://a>", '<http://a>; type="a b"', "http://a; type=a"])
    def test_bad_links(self, shop: Shop, link: str) -> None:
        """Case 29."""
        failure(shop.order("/Shop/seen", nexus_link=link), "BAD_REQUEST")

    def test_links_out(self, shop: Shop) -> None:
        """Case 30, the 200."""
        assert (
            shop.order("/Shop/linked", "0").headers["nexus-link"] == '<http://shop/order?id=1%2C2>; type="shop.Order"'
        )

    @pytest.mark.parametrize("callback", ["ftp%3A%2F%2Fa", "http%3A%2F%2Fu%3Ap%40a", "nowhere"])
    def test_a_callback_that_cannot_be_called(self, shop: Shop, callback: str) -> None:
        failure(shop.order(f"/Shop/seen?callback={callback}"), "BAD_REQUEST")

    def test_reserved_callback_headers(self, shop: Shop) -> None:
        response = shop.order("/Shop/seen?callback=http%3A%2F%2Fa", nexus_callback_content_length="7")
        failure(response, "BAD_REQUEST")


class TestErrors:
    @pytest.mark.parametrize("error_type", HANDLER_ERRORS)
    def test_every_handler_error(self, shop: Shop, error_type: str) -> None:
        """Cases 32 to 42."""
        body = failure(shop.order("/Shop/error", f'"{error_type}"'), error_type)
        assert body["message"] == "as asked"
        assert "retryableOverride" not in body["details"]

    @pytest.mark.parametrize(("asked", "retryable"), [("BAD_REQUEST+", True), ("UNAVAILABLE-", False)])
    def test_overrides_are_said_twice(self, shop: Shop, asked: str, *, retryable: bool) -> None:
        """Case 43."""
        response = shop.order("/Shop/error", f'"{asked}"')
        assert response.json()["details"]["retryableOverride"] is retryable
        assert response.headers["nexus-request-retryable"] == str(retryable).lower()

    @pytest.mark.parametrize("state", ["failed", "canceled"])
    def test_operation_errors(self, shop: Shop, state: str) -> None:
        """Cases 44 and 45."""
        response = shop.order("/Shop/error", f'"{state}"')
        assert (response.status_code, response.headers["nexus-operation-state"]) == (424, state)
        assert response.json() == {
            "message": f"it {state}", "metadata": {"type": "nexus.OperationError"}, "details": {"state": state},
        }  # fmt: skip

    def test_causes_are_kept(self, shop: Shop) -> None:
        """Case 46."""
        top = shop.order("/Shop/error", '"chain"').json()
        middle = top["cause"]
        assert (top["message"], middle["message"], middle["cause"]["message"]) == ("top", "middle", "'deep'")
        assert middle["details"]["type"] == "UNAVAILABLE"
        assert middle["cause"]["metadata"]["type"] == "KeyError"

    def test_a_bug_is_not_told_but_logged(self, shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
        """Case 47."""
        told = failure(shop.order("/Shop/error", '"bug"'), "INTERNAL")
        assert "secret" not in str(told)
        assert told["message"] == "the handler raised RuntimeError; the agent's log has the rest"
        assert "a secret of the house" in caplog.text

    def test_a_type_the_spec_does_not_know(self, shop: Shop) -> None:
        response = shop.order("/Shop/error", '"TEAPOT"')
        assert (response.status_code, response.json()["details"]) == (500, {"type": "TEAPOT"})


class TestOnce:
    def test_the_same_id_at_the_same_time(self, shop: Shop) -> None:
        """Case 18, with what comes after: one execution, one answer."""
        with ThreadPoolExecutor(50) as threads:
            calls = [threads.submit(shop.order, "/Shop/slow", "0.3", nexus_request_id="same") for _ in range(50)]
            assert {(call.result().status_code, call.result().text) for call in calls} == {(200, '"done"')}
        assert shop.order("/Shop/slow", "0.3", nexus_request_id="same").text == '"done"'
        assert shop.did.starts.count("same") == 1

    def test_another_input_is_a_conflict(self, shop: Shop) -> None:
        """Case 19, while it runs and after."""
        with ThreadPoolExecutor(1) as threads:
            first = threads.submit(shop.order, "/Shop/slow", "0.3", nexus_request_id="other")
            until(lambda: "other" in shop.did.starts)
            failure(shop.order("/Shop/slow", "0.4", nexus_request_id="other"), "CONFLICT")
            assert first.result().status_code == 200
        failure(shop.order("/Shop/slow", "0.4", nexus_request_id="other"), "CONFLICT")

    def test_the_id_belongs_to_its_operation(self, shop: Shop) -> None:
        assert shop.order("/Shop/count", "1", nexus_request_id="shared").json() == 2
        assert shop.order("/Shop/order", '{"item":"x"}', nexus_request_id="shared").json()["total"] == 7

    def test_outcomes_are_repeated_and_passing_errors_are_not(self, shop: Shop) -> None:
        for asked, executions in (("failed", 1), ("BAD_REQUEST", 1), ("UNAVAILABLE", 2)):
            statuses = {shop.order("/Shop/error", f'"{asked}"', nexus_request_id=asked).status_code for _ in range(2)}
            assert len(statuses) == 1
            assert shop.did.starts.count(asked) == executions

    def test_an_id_too_long(self, shop: Shop) -> None:
        failure(shop.order("/Shop/seen", nexus_request_id="x" * 256), "BAD_REQUEST")


class TestTimeouts:
    def test_nobody_waits_longer_than_the_request_timeout(self, shop: Shop) -> None:
        """Case 23. Without an id nobody can ask again: the handler is stopped."""
        before, began_s = len(shop.did.canceled), monotonic_s()
        failure(shop.order("/Shop/slow", "30", request_timeout="100ms"), "REQUEST_TIMEOUT")
        assert 0.1 <= monotonic_s() - began_s < 15
        until(lambda: len(shop.did.canceled) > before)

    def test_with_an_id_the_answer_can_be_fetched(self, shop: Shop) -> None:
        failure(shop.order("/Shop/slow", "0.3", request_timeout="50ms", nexus_request_id="again"), "REQUEST_TIMEOUT")
        assert shop.order("/Shop/slow", "0.3", request_timeout="5s", nexus_request_id="again").text == '"done"'
        assert shop.did.starts.count("again") == 1


class TestCancel:
    def test_a_handlers_own_token(self, shop: Shop) -> None:
        """Cases 17, 21, 22, 54 to 56, 59, 63."""
        first, again = (shop.order("/Shop/ticket", '"a"', nexus_request_id="ticket") for _ in range(2))
        assert first.status_code == again.status_code == 201
        assert first.json() == again.json() == {"token": "ticket a", "state": "running"}
        assert first.headers["content-type"] == "application/json"
        assert shop.did.starts.count("ticket") == 1
        for _ in range(2):
            response = shop.order("/Shop/ticket/cancel", nexus_operation_token="ticket a")
            assert (response.status_code, response.content) == (202, b"")
        assert shop.order("/Shop/ticket/cancel?token=ticket%20a").status_code == 202
        assert shop.order("/Shop/ticket/cancel?token=nope", nexus_operation_token="ticket a").status_code == 202
        assert shop.did.canceled.count("ticket a") == 4

    def test_no_token(self, shop: Shop) -> None:
        """Case 57."""
        failure(shop.order("/Shop/ticket/cancel"), "BAD_REQUEST")

    def test_unknown_tokens(self, shop: Shop) -> None:
        """Case 58: one of the handler's, one of ours."""
        failure(shop.order("/Shop/ticket/cancel?token=ticket+b"), "NOT_FOUND")
        failure(shop.order("/Shop/slow/cancel?token=mesh-0123456789ab"), "NOT_FOUND")

    def test_nothing_to_cancel(self, shop: Shop) -> None:
        """Case 62."""
        failure(shop.order("/Shop/slow/cancel?token=anything"), "NOT_IMPLEMENTED")

    def test_of_an_unknown_operation(self, shop: Shop) -> None:
        failure(shop.order("/Shop/nope/cancel?token=x"), "NOT_FOUND")


class TestCancellation:
    async def test_everybody_who_waits_is_told(self) -> None:
        cancellation = Cancellation()
        assert not cancellation.watched
        assert not cancellation.wait_until_cancelled_sync(0.01)
        waiting = asyncio.create_task(cancellation.wait_until_cancelled())
        thread = asyncio.create_task(asyncio.to_thread(cancellation.wait_until_cancelled_sync, 5))
        elsewhere = asyncio.create_task(asyncio.to_thread(asyncio.run, cancellation.wait_until_cancelled()))
        await sleep(0.05)
        assert not cancellation.is_cancelled()
        cancellation.set("why")
        cancellation.set("why else")
        async with asyncio.timeout(5):
            assert [await waiting, await thread, await elsewhere] == [None, True, None]
            await cancellation.wait_until_cancelled()  # late, and not kept waiting
        assert cancellation.wait_until_cancelled_sync()
        assert (cancellation.is_cancelled(), cancellation.cancellation_reason()) == (True, "why")

    def test_there_is_no_call_outside_of_one(self) -> None:
        with pytest.raises(LookupError, match="inside an operation handler"):
            current()


class TestMaking:
    def test_what_cannot_be_an_agent(self) -> None:
        async def two(a: int, b: int) -> int:
            return a + b

        class Opaque:
            pass

        async def opaque(value: Opaque) -> None: ...

        cases: list[tuple[Any, dict[str, Any]]] = [
            ([], {}),
            ([object()], {}),
            ([ShopHandler], {}),
            ([ShopHandler(), ShopHandler()], {}),
            ([two], {}),
            ([opaque], {}),
            ([ShopHandler()], {"gateway": "localhost:7411"}),
            ([ShopHandler()], {"lease_ms": 10}),
        ]
        for services, options in cases:
            with pytest.raises(ConfigError):
                Agent("shop", services, **options)
        with pytest.raises(ConfigError):
            Agent("no spaces", [ShopHandler()])
