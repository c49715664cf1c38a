"""An agent finds its gateway, stays registered, leaves; and is started the ways that the documentation says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import mesh
from mesh.agent import Agent
from mesh.agent.registration import Registration
from mesh.agent.server import address, bind
from mesh.clock import monotonic_s, pause, sleep
from mesh.pool import Pool, Target
from tests.agents.greeter import greet
from tests.agents.serving import Gateway, serving, until
from tests.agents.workshop import ShopHandler
from tests.ports import lasting_port

ROOT = Path(__file__).parents[2]
URL = "http://127.0.0.1:9/base"
INSTANCE = "/v1/endpoints/shop/instances/127.0.0.1-9-base"


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    with serving(gateway) as gateway.url:
        yield gateway


@contextmanager
def agent(scripted: Gateway, /, **options: Any) -> Iterator[Agent]:
    options = {"gateway": scripted.url, "url": URL, "ttl_ms": 600} | options
    agent = Agent("shop", [ShopHandler()], **options)
    with serving(agent):
        yield agent


def lines(gateway: Gateway) -> list[str]:
    """What was asked, each once in a row."""
    said = [f"{each.method} {each.path}" for each in gateway.requests]
    return [line for line, before in zip(said, ["", *said], strict=False) if line != before]


class TestRegistry:
    def test_declare_heartbeat_leave(self, gateway: Gateway) -> None:
        with agent(gateway, key="secret", version="7", weight=3):
            until(lambda: len(gateway.at("/instances/", "PUT")) >= 3)
        assert lines(gateway) == [
            "GET /v1/endpoints/shop",
            "PUT /v1/endpoints/shop",
            f"PUT {INSTANCE}",
            f"DELETE {INSTANCE}",
        ]
        lease = {"url": URL, "ttl_ms": 600, "version": "7", "weight": 3}
        first, *later = [each.json for each in gateway.at(INSTANCE, "PUT")]
        # P117: only the first says that the process is new.
        assert first == lease | {"fresh": True}
        assert [*later] == [lease] * len(later)
        assert {each.headers["authorization"] for each in gateway.requests} == {"Bearer secret"}

    def test_heartbeats_come_three_to_a_lease(self, gateway: Gateway) -> None:
        with agent(gateway):
            until(lambda: gateway.at("/instances/", "PUT"))
            pause(0.9)
            assert 3 <= len(gateway.at("/instances/", "PUT")) <= 7

    def test_what_is_declared(self, gateway: Gateway) -> None:
        with agent(gateway, description="A shop", allow=["*"]):
            until(lambda: gateway.at("/instances/"))
        assert gateway.endpoint is not None
        ((services,), rest) = gateway.endpoint.pop("services"), gateway.endpoint
        assert rest == {"description": "A shop", "allow": ["*"], "target": {"kind": "http"}}
        assert services["name"] == "Shop"
        operations = {each["name"]: each for each in services["operations"]}
        order = operations["order"]
        assert order["description"] == "Order something."
        assert order["input"]["properties"]["howMany"]["minimum"] == 1
        assert order["output"]["properties"].keys() == {"text", "total"}
        # What the wire carries without JSON, or with any, has no schema.
        assert operations["echo/ü %"].keys() == operations["blob"].keys() == {"name", "description"}
        assert operations["nothing"].keys() == {"name", "description"}

    def test_what_the_author_did_not_set_stays(self, gateway: Gateway) -> None:
        with agent(gateway):
            until(lambda: gateway.at("/instances/"))
        assert gateway.endpoint is not None
        gateway.endpoint |= {
            "policy": {"max_concurrency": 3},
            "owner": "us",
            "labels": {"a": "b"},
            "description": "old",
        }
        with agent(gateway, labels={"c": "d"}, description="new"):
            until(lambda: gateway.endpoint and gateway.endpoint["description"] == "new")
        assert gateway.endpoint["policy"] == {"max_concurrency": 3}
        assert gateway.endpoint["labels"] == {"c": "d"}
        assert "owner" not in gateway.endpoint
        writes = [each for each in gateway.requests if each.method == "PUT" and each.path == "/v1/endpoints/shop"]
        assert [each.headers.get("if-match") for each in writes] == [None, '"1"']

    def test_a_restart_changes_nothing(self, gateway: Gateway) -> None:
        for _ in range(2):
            with agent(gateway, policy={"max_concurrency": 3}):
                until(lambda: gateway.requests and gateway.requests[-1].path == INSTANCE)
            assert gateway.requests[-1].method == "DELETE"
            assert gateway.etag == 1
            gateway.requests.clear()

    def test_a_wiped_registry_is_told_again(self, gateway: Gateway) -> None:
        with agent(gateway):
            until(lambda: gateway.at("/instances/"))
            gateway.endpoint = None
            until(lambda: gateway.etag == 2)

    def test_only_the_instance(self, gateway: Gateway) -> None:
        gateway.endpoint = {}
        with agent(gateway, register="instance", instance="mine"):
            until(lambda: gateway.at("/instances/mine"))
        assert lines(gateway) == ["PUT /v1/endpoints/shop/instances/mine", "DELETE /v1/endpoints/shop/instances/mine"]

    def test_not_at_all(self, gateway: Gateway) -> None:
        with agent(gateway, register=False, url=None):
            pause(0.2)
        assert not gateway.requests

    def test_a_gateway_that_comes_late(self) -> None:
        late = Gateway()
        port = lasting_port()
        late.url = f"http://127.0.0.1:{port}"
        with agent(late):
            pause(0.5)
            with serving(late, port=port):
                until(lambda: late.at("/instances/", "PUT"))

    def test_another_gateway_when_one_is_gone(self, gateway: Gateway) -> None:
        with serving(Gateway()) as gone:
            pass
        with agent(gateway, gateway=[gone, gateway.url]):
            until(lambda: gateway.at("/instances/", "PUT"))

    def test_soon_after_its_gateway(self) -> None:
        """Started together: whoever comes up last keeps the other waiting for no more than a moment."""
        gateway = Gateway()
        with serving(gateway) as gateway.url:
            pass
        port = int(gateway.url.rpartition(":")[2])
        with agent(gateway):
            pause(0.4)
            with serving(gateway, port=port):
                came_s = monotonic_s()
                until(lambda: gateway.at("/instances/", "PUT"))
                assert monotonic_s() - came_s < 5

    def test_several_that_are_down_are_a_line_each(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", "mesh.agent")
        gateway = Gateway()
        with serving(gateway) as gateway.url:
            pass
        port = int(gateway.url.rpartition(":")[2])
        with agent(gateway, gateway=f"http://127.0.0.1:9,{gateway.url}"):
            pause(0.6)
            with serving(gateway, port=port):
                until(lambda: gateway.at("/instances/", "PUT"))
                until(lambda: "is registered" in caplog.text)
        said = [record.getMessage().partition(" ")[2] for record in caplog.records]
        assert [line[:24] for line in said[:3]] == ["is not registered yet: C"] * 2 + ["is registered"]

    def test_soon_after_the_endpoint_that_another_declares(self, gateway: Gateway) -> None:
        gateway.refuse = (404, {"code": "unknown_endpoint", "detail": "no endpoint shop"})
        with agent(gateway, register="instance"):
            until(lambda: len(gateway.at("/instances/", "PUT")) >= 3, within_s=8)  # others: 10

    def test_a_refusal_is_said_once_with_its_reason(self, gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
        gateway.refuse = (409, {"code": "name_taken", "detail": "shop belongs to another namespace"})
        with agent(gateway):
            until(lambda: "name_taken" in caplog.text)
        assert "shop belongs to another namespace" in caplog.text
        assert caplog.text.count("cannot register") == 1

    def test_what_the_registry_remarks_is_said(self, gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
        gateway.remarks = {"warnings": [{"pointer": "/allow/0", "detail": "knows no namespace 'resaerch'"}]}
        with agent(gateway, allow=["resaerch"]):
            until(lambda: "is registered, but /allow/0: knows no namespace 'resaerch'" in caplog.text)

    def test_what_the_detail_has_is_not_said_again(self, gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
        faults = [{"pointer": "/allow/0", "detail": "X is no name"}, {"pointer": "/labels", "detail": "too many"}]
        detail = "the body is not right at /allow/0: X is no name (and 1 more)"
        gateway.refuse = (422, {"code": "body_invalid", "detail": detail, "errors": faults})
        with agent(gateway):
            until(lambda: "body_invalid" in caplog.text)
        assert "/allow/0: X is no name (and 1 more) (/labels: too many)" in caplog.text


REFUSAL: tuple[int, dict[str, Any]] = (
    409,
    {
        "code": "contract_breaks",
        "detail": "callers would break",
        "errors": [{"pointer": "/services/0/operations/1", "detail": "greet is gone"}],
    },
)
SERVES: dict[str, str] = {
    "serve": "import mesh; from tests.agents.greeter import greet; mesh.serve('shop', [greet])",
    "pull": "import mesh; from tests.agents.greeter import greet; mesh.pull('shop', [greet])",
    "run": "from mesh.agent import Agent; from tests.agents.greeter import greet; Agent('shop', [greet]).run()",
}


class TestRefusedForGood:
    """P187. What no waiting mends ends the process, so that its supervisor does not see a good deployment."""

    @pytest.mark.parametrize("form", SERVES)
    def test_the_process_ends_with_the_reason_in_a_line(self, gateway: Gateway, form: str) -> None:
        gateway.refuse = REFUSAL
        code, said = ended(SERVES[form], MESH_URL=gateway.url)
        last = said.splitlines()[-1]
        assert (code, "Traceback" in said, said.count("cannot register")) == (1, False, 1), said
        assert last.startswith("shop/")
        assert last.endswith("409 contract_breaks callers would break (/services/0/operations/1: greet is gone)")

    @pytest.mark.parametrize("status", [400, 403, 409, 422])
    async def test_final(self, status: int) -> None:
        assert await told(status) == [f"shop/one cannot register: the endpoint: {status} x no"]

    @pytest.mark.parametrize("status", [401, 404, 408, 412, 425, 429, 503])
    async def test_passing(self, status: int) -> None:
        assert await told(status) == []

    async def test_a_key_may_be_on_its_way_none_is_not(self) -> None:
        assert await told(401, key=None) == ["shop/one cannot register: the endpoint: 401 x no"]

    def test_under_a_foreign_server_it_is_tried_again(self, gateway: Gateway) -> None:
        gateway.refuse = REFUSAL
        with agent(gateway):
            until(lambda: len(gateway.requests) >= 3)
            gateway.refuse = None
            until(lambda: gateway.at("/instances/", "PUT"))

    def test_an_agent_that_was_taken_once_goes_on(self, gateway: Gateway) -> None:
        with process([sys.executable, "-c", SERVES["serve"]], MESH_URL=gateway.url) as child:
            until(lambda: len(gateway.at("/instances/", "PUT")) >= 2, 15)
            count = len(gateway.requests)
            gateway.refuse = REFUSAL
            until(lambda: len(gateway.requests) >= count + 2, 10)
            gateway.refuse = None
            assert child.poll() is None

    def test_a_port_in_use_is_a_line(self) -> None:
        with bind("127.0.0.1", 0) as listener:
            port = listener.getsockname()[1]
            code, said = ended(SERVES["serve"].replace(")", f", port={port})"))
        why = f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another port, or end what uses it"
        assert (code, said) == (1, f"agent shop: {why}\n")

    def test_a_lambda_is_refused_with_the_reason(self) -> None:
        code, said = ended("import mesh; mesh.serve('shop', [lambda x: x])")
        assert code == 1
        (line,) = said.splitlines()
        assert "a lambda has no name" in line
        assert "define it with def" in line


    @pytest.mark.parametrize(
        ("services", "said"),
        [
            ("print", "its services are a list, also of one: [print], not print"),
            ("object()", "its services are a list, also of one: [object], not object"),
            ("[]", "its list of services is empty: give functions, or instances of nexusrpc service handlers"),
        ],
    )
    def test_services_that_are_no_list(self, services: str, said: str) -> None:
        assert ended(f"import mesh; mesh.serve('shop', {services})") == (1, f"agent shop: {said}\n")


async def told(status: int, key: str | None = "k") -> list[str]:
    """What a registration that is answered `status` at first says of a final refusal."""
    said: list[str] = []
    gateway = Gateway()
    with serving(gateway) as gateway.url:
        gateway.refuse = (status, {"code": "x", "detail": "no"})
        pool = Pool()
        registration = Registration(
            pool, [Target.parse(gateway.url)], key=key, endpoint="shop", declared={"description": "d"},
            instance="one", lease={"url": URL, "ttl_ms": 600}, refused=said.append,
        )  # fmt: skip
        registration.begin()
        try:
            end_s = monotonic_s() + 5
            while not said and len(gateway.requests) < 2 and monotonic_s() < end_s:
                await sleep(0.01)
        finally:
            await registration.leave()
            await pool.close()
    return said


def ended(code: str, **environment: str) -> tuple[int, str]:
    """Exit status and stderr of a process that ends by itself."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=env | {"PYTHONPATH": str(ROOT)} | environment,
        stderr=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stderr.decode()


class TestStarting:
    def test_without_a_url(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As `uvicorn module:agent` does; the reason names every way out."""
        monkeypatch.delenv("MESH_AGENT_URL", raising=False)
        with pytest.raises(mesh.MeshError, match=r"Agent\(url=\.\.\.\).*MESH_AGENT_URL.*agent\.run.*register=False"):
            Agent("greeter", [greet]).begin()

    def test_its_own_address(self) -> None:
        plain = Agent("greeter", [greet], prefix="p", gateway="http://127.0.0.1:7411")
        for host in ("127.0.0.1", "0.0.0.0"):
            with bind(host, 0) as listener:
                assert address(plain, host, listener) == f"http://127.0.0.1:{listener.getsockname()[1]}/p"

    def test_uvicorn_with_the_address_from_the_environment(self, gateway: Gateway) -> None:
        port = lasting_port()
        url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "uvicorn", "tests.agents.greeter:agent", "--port", str(port)]
        with process(command, MESH_URL=gateway.url, MESH_AGENT_URL=url):
            until(lambda: gateway.at("/instances/"), 15)
            assert gateway.at("/instances/")[0].json["url"] == url
            assert say_hello(url) == "Hello, Ada!"
        assert gateway.requests[-1].method == "DELETE"

    def test_five_lines(self, gateway: Gateway, tmp_path: Path) -> None:
        """The lines of `import mesh`'s docstring are an agent."""
        code = example("An agent")
        assert len(code.splitlines()) == 5
        script = tmp_path / "agent.py"
        script.write_text(code)
        with process([sys.executable, str(script)], MESH_URL=gateway.url):
            put = until(lambda: gateway.at("/instances/"), 15)[0]
            assert put.path.startswith("/v1/endpoints/greeter/instances/127.0.0.1-")
            assert say_hello(put.json["url"]) == "Hello, Ada!"
        assert gateway.requests[-1].method == "DELETE"


def example(title: str) -> str:
    """The code below a title in mesh's docstring."""
    text = (mesh.__doc__ or "").split(title)[1].split("\n\n")[1]
    return "\n".join(line[4:] for line in text.splitlines())


def say_hello(url: str) -> str:
    headers = {"content-type": "application/json"}
    return httpx.post(f"{url}/greeter/greet", content='"Ada"', headers=headers, trust_env=False).json()


@contextmanager
def process(command: list[str], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A child in the tree's root; asked to end by SIGTERM, and it must."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    child = subprocess.Popen(command, cwd=ROOT, env=env | {"PYTHONPATH": str(ROOT)} | environment)
    try:
        yield child
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) in (0, -signal.SIGTERM)
    finally:
        child.kill()
        child.wait()
