"""Headers over Nexus, what they may hold and how large things may be; callbacks at admission."""

from __future__ import annotations

import pytest

from tests.surface.actors import Actor, Reply
from tests.surface.checks import check_failure
from tests.surface.gateways import ASYNC, Caller, fresh
from tests.surface.wire import Connection, ask

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class TestHeaders:
    async def test_what_the_agent_gets(self, caller: Caller, agent: Actor) -> None:
        """P40, P42."""
        name = await caller.register(agent.url)
        await caller.nexus(
            name,
            headers=[
                ("nexus-request-id", "my-key"),
                ("operation-timeout", "1m"),
                ("request-timeout", "9s"),
                ("X-Mine", "a"),
                ("x-mine", "b"),
                ("accept", "text/x"),
                ("user-agent", "me"),
                ("traceparent", TRACE),
                ("tracestate", "a=1"),
                ("baggage", "k=v"),
                ("authorization", "Bearer secret"),
                ("cookie", "a=b"),
                ("prefer", "wait=5"),
                ("connection", "keep-alive, x-hop"),
                ("x-hop", "1"),
                ("x-forwarded-for", "1.2.3.4"),
                ("mesh-namespace", "other"),
                ("mesh-attempt", "7"),
                ("nexus-callback-x", "1"),
                ("nexus-operation-token", "t"),
            ],
        )
        (call,) = agent.calls
        gateway = caller.gateway.url()
        assert (call.method, call.path) == ("POST", "/svc/op")
        assert call.query == {"callback": [f"{gateway}/nexus/callback"]}
        assert call["nexus-request-id"] == f"{call.operation}.1"
        assert (call["mesh-run"], call["mesh-attempt"], call["mesh-namespace"]) == ("1", "1", "default")
        assert call["request-timeout"] == "30000ms"
        assert call["operation-timeout"] == "60000ms"
        assert (call.all("x-mine"), call["accept"], call["user-agent"]) == (["a", "b"], "text/x", "me")
        assert (call["traceparent"], call["tracestate"], call["baggage"]) == (TRACE, "a=1", "k=v")
        assert call["accept-encoding"] == "identity"
        kept = {name for name, _ in call.headers}
        assert not kept & {"authorization", "cookie", "prefer", "x-hop", "x-forwarded-for", "idempotency-key"}
        assert not kept & {"nexus-callback-x", "nexus-operation-token", "transfer-encoding"}

    async def test_the_agents_own_path_stays(self, caller: Caller, agent: Actor) -> None:
        """P40: the registered URL may have a path."""
        await caller.nexus(await caller.register(agent.url + "/base/"))
        assert agent.calls[0].path == "/base/svc/op"

    @pytest.mark.parametrize(
        "values",
        [
            ['<http://a/x?y=1%2C2>; type="a.B"', "<http://b/>; type=c"],
            ['<http://a/x?y=1%2C2>; type="a.B", <http://b/>; type=c'],
        ],
    )
    async def test_links_reach_the_agent(self, caller: Caller, agent: Actor, values: list[str]) -> None:
        """P18: repeated or comma-joined, they arrive one by one."""
        await caller.nexus(await caller.register(agent.url), headers=[("nexus-link", value) for value in values])
        assert agent.calls[0].all("nexus-link") == ['<http://a/x?y=1%2C2>; type="a.B"', '<http://b/>; type="c"']

    async def test_links_of_the_handler_come_back(self, caller: Caller, agent: Actor) -> None:
        """P18: behind the gateway's own."""
        agent.replies(Reply(200, b"1", [("content-type", "application/json"), ("nexus-link", '<http://a/>; type="b"')]))
        answer = await caller.nexus(await caller.register(agent.url))
        assert answer.all("nexus-link")[1:] == ['<http://a/>; type="b"']

    @pytest.mark.parametrize(
        "value", ["http://a/", "<http://a/>", '<http://a/>; type="x', "<>; type=a", '<a b>; type="x"']
    )
    async def test_bad_links(self, caller: Caller, agent: Actor, value: str) -> None:
        """P18."""
        answer = await caller.nexus(await caller.register(agent.url), headers={"nexus-link": value})
        check_failure(answer, 400, "BAD_REQUEST", "link_invalid")

    @pytest.mark.parametrize("name", ["operation-timeout", "request-timeout"])
    @pytest.mark.parametrize("value", ["5", "1h", "-1s", "1 s", "s", "1e3s", "9" * 40 + "s"])
    async def test_bad_timeouts(self, caller: Caller, agent: Actor, name: str, value: str) -> None:
        """P21."""
        answer = await caller.nexus(await caller.register(agent.url), headers={name: value})
        check_failure(answer, 400, "BAD_REQUEST", "timeout_invalid")
        assert agent.calls == []

    @pytest.mark.parametrize("value", ["wait=x", "wait=-1", "wait", "x" * 1025])
    async def test_bad_preferences(self, caller: Caller, agent: Actor, value: str) -> None:
        """P14."""
        answer = await caller.nexus(await caller.register(agent.url), headers={"prefer": value})
        check_failure(answer, 400, "BAD_REQUEST", "prefer_invalid")

    async def test_a_header_that_no_agent_could_get_ends_the_operation(self, caller: Caller, agent: Actor) -> None:
        """P98: and does not make the agent look unreachable to others."""
        name = await caller.register(agent.url)
        answer = await caller.nexus(name, headers={"x" * 300: "1"})
        assert (answer.status, answer["mesh-failure-source"]) in ((424, "gateway"), (400, "gateway"))
        assert (await caller.nexus(name)).status == 200


class TestSizes:
    async def test_body_over_the_limit(self, caller: Caller, agent: Actor) -> None:
        """P2: BAD_REQUEST on this surface where no payload belongs (P390); the limit itself is fine."""
        name = await caller.register(agent.url)
        limit = 2 * 1024 * 1024
        over = await caller.post(f"/nexus/endpoints/{name}/services/s/o/cancel", b"x" * (limit + 1))
        check_failure(over, 400, "BAD_REQUEST", "too_large")
        assert agent.calls == []
        assert (await caller.nexus(name, b"x" * limit)).status == 200
        assert len(agent.calls[0].body) == limit

    async def test_a_chunked_body_over_the_limit(self, caller: Caller, agent: Actor) -> None:
        """P2: answered while it still comes."""
        name = await caller.register(agent.url)
        async with await Connection.open(caller.gateway.port) as connection:
            target = f"/nexus/endpoints/{name}/services/s/o/cancel"
            connection.send("POST", target, {"transfer-encoding": "chunked"})
            chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
            for _ in range(33):
                connection.writer.write(chunk)
            check_failure(await connection.answer(), 400, "BAD_REQUEST", "too_large")

    async def test_headers_over_the_limit(self, caller: Caller, agent: Actor) -> None:
        """P2: 32 KiB and 200 lines in all, 8 KiB for the agent, 8 KiB for the callback; 64 KiB end the connection."""
        name = await caller.register(agent.url)
        many = [(f"x-{number}", "1") for number in range(201)]
        check_failure(
            await caller.nexus(name, headers={"cookie": "x" * 33_000}), 400, "BAD_REQUEST", "headers_too_large"
        )
        check_failure(await caller.nexus(name, headers=many), 400, "BAD_REQUEST", "headers_too_large")
        check_failure(await caller.nexus(name, headers={"x-a": "x" * 8192}), 400, "BAD_REQUEST", "header_too_large")
        callback = {"nexus-callback-a": "x" * 8192}
        check_failure(
            await caller.nexus(name, headers=callback, callback="http://127.0.0.1:9/"),
            400,
            "BAD_REQUEST",
            "header_too_large",
        )
        answer = await ask(caller.gateway.port, "POST", "/nexus/endpoints/a/services/s/o", {"x": "x" * 70_000})
        assert answer.status == 431
        assert agent.calls == []

    async def test_a_compressed_body_is_refused(self, caller: Caller, agent: Actor) -> None:
        """P2."""
        name = await caller.register(agent.url)
        answer = await caller.nexus(name, headers={"content-encoding": "gzip"})
        check_failure(answer, 400, "BAD_REQUEST", "encoding_not_supported")

    @pytest.mark.parametrize(
        "head",
        [
            "content-length: 1\r\ntransfer-encoding: chunked\r\n",
            "content-length: 1\r\ncontent-length: 2\r\n",
            "content-length: +1\r\n",
            "content-length : 1\r\n",
            "x: a\r\n b\r\n",
            "transfer-encoding: gzip, chunked\r\n",
        ],
    )
    async def test_framing_tricks(self, caller: Caller, agent: Actor, head: str) -> None:
        """P2: nothing two readers could read differently."""
        name = await caller.register(agent.url)
        async with await Connection.open(caller.gateway.port) as connection:
            line = f"POST /nexus/endpoints/{name}/services/s/o HTTP/1.1\r\nhost: localhost\r\n"
            connection.writer.write(f"{line}{head}\r\nx0\r\n\r\n".encode())
            assert (await connection.answer()).status == 400
        assert agent.calls == []


class TestCallbackAdmission:
    @pytest.mark.parametrize(
        "url",
        [
            "http://10.0.0.1/",
            "http://169.254.169.254/latest/",
            "https://192.168.1.1/",
            "https://user@example.com/",
            "https://good.com\\@127.0.0.1/",
            "http://0x7f000001/",
            "http://[::ffff:10.0.0.1]/",
            "ftp://127.0.0.1/",
            "//127.0.0.1/",
            "nonsense",
            "http://127.0.0.1/#x",
        ],
    )
    async def test_urls_that_the_policy_forbids(self, caller: Caller, agent: Actor, url: str) -> None:
        """P19: refused before anything is stored."""
        key = {"nexus-request-id": fresh("k")}
        name = await caller.register(agent.url)
        check_failure(await caller.nexus(name, headers=key, callback=url), 400, "BAD_REQUEST", "url_forbidden")
        assert (await caller.nexus(name, headers=key)).status == 200

    @pytest.mark.parametrize("path", ["/nexus/callback", "/nexus/endpoints/x/services/s/o"])
    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
    async def test_the_gateway_itself(self, caller: Caller, agent: Actor, host: str, path: str) -> None:
        """P19: a loop; at the latest it is refused when it would be sent."""
        gateway_url = f"http://{host}:{caller.gateway.port}{path}"
        answer = await caller.nexus(await caller.register(agent.url), headers=[ASYNC], callback=gateway_url)
        check_failure(answer, 400, "BAD_REQUEST", "url_forbidden")

    @pytest.mark.parametrize(
        "name",
        [
            *("host", "content-length", "content-type", "connection", "transfer-encoding", "accept-encoding", "te"),
            *("upgrade", "nexus-operation-state", "webhook-id", "ce-id", "mesh-operation-id", "proxy-x", "bad name"),
            "x" * 300,
        ],
    )
    async def test_callback_headers_that_are_not_the_callers(self, caller: Caller, agent: Actor, name: str) -> None:
        """P19."""
        answer = await caller.nexus(
            await caller.register(agent.url),
            headers={f"nexus-callback-{name}": "x"},
            callback="http://127.0.0.1:9/",
        )
        assert answer.status == 400, answer
        assert agent.calls == []

    async def test_a_query_given_twice(self, caller: Caller, agent: Actor) -> None:
        """P19."""
        name = await caller.register(agent.url)
        target = f"/nexus/endpoints/{name}/services/s/o?callback=http://127.0.0.1:9/&callback=http://127.0.0.1:8/"
        check_failure(await caller.post(target), 400, "BAD_REQUEST", "query_invalid")
