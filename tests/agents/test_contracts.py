"""Contracts from an agent's types to a caller's: the gate, the command line, generated code that runs."""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from pydantic import BaseModel, Field

import mesh
from mesh.agent import Agent
from tests.agents.serving import serving, until
from tests.agents.test_real_gateway import Dev
from tests.agents.test_registration import ROOT
from tests.ports import lasting_port


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    one = Dev(Path(tmp_path_factory.mktemp("dev")))
    one.start()
    yield one
    one.stop()


def agent(dev: Dev, greet: Callable[..., Any]) -> Agent:
    greet.__name__ = "greet"
    return Agent("hello", [greet], gateway=dev.url, url="http://127.0.0.1:9", instance="one", ttl_ms=600)


async def first(name: str) -> str:
    return f"Hello, {name}!"


async def second(name: str | None) -> str:
    return f"Hello, {name or 'you'}!"


async def third(name: int) -> str:
    return f"Hello, number {name}!"


def said(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_a_new_version_that_fits_is_taken_and_one_that_breaks_is_refused_until_it_is_forced(
    dev: Dev, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P178, P180."""
    caplog.set_level(logging.INFO, "mesh.agent")
    with mesh.SyncClient(dev.url) as client:
        for greet in (first, second):
            with serving(agent(dev, greet)):
                until(lambda: "hello/one is registered" in said(caplog, logging.INFO))
            caplog.clear()
        with serving(agent(dev, third)):
            (why,) = until(lambda: said(caplog, logging.ERROR))
        assert "hello/one cannot register: the endpoint: 409 contract_breaks" in why
        assert "hello/greet: input: is no longer taken when it is string (" in why
        assert "MESH_FORCE_CONTRACT=1" in why
        caplog.clear()
        monkeypatch.setenv("MESH_FORCE_CONTRACT", "1")
        with serving(agent(dev, third)):
            until(lambda: "hello/one is registered" in said(caplog, logging.INFO))
        with pytest.raises(mesh.Refusal) as error:
            client.call("hello", "hello", "greet", "Ada")
        assert error.value.code == "schema_breach"


class Line(BaseModel):
    text: str
    price: int = Field(default=0, ge=0)


class Bill(BaseModel):
    customer: str | None = None
    lines: list[Line] = []


class Sent(BaseModel):
    count: int
    total: int
    first: Line | None = None


async def total(bill: Bill) -> Sent:
    """Add it up."""
    lines = bill.lines
    return Sent(count=len(lines), total=sum(one.price for one in lines), first=lines[0] if lines else None)


async def spell(number: int) -> list[str]:
    return list(str(number))


@pytest.fixture(scope="module")
def billing(dev: Dev) -> Iterator[str]:
    port = lasting_port()
    one = Agent("billing", [total, spell], gateway=dev.url, url=f"http://127.0.0.1:{port}")
    with serving(one, port=port), mesh.SyncClient(dev.url) as client:
        until(lambda: httpx.get(f"{dev.url}/v1/endpoints/billing", trust_env=False).status_code == 200, 20)
        assert client.call("billing", "billing", "spell", 12, timeout_s=20) == ["1", "2"]
        yield "billing"


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run(dev: Dev, *arguments: str) -> Done:
    command = [sys.executable, "-m", "gateway.cli.main", *arguments]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    env |= {"PYTHONPATH": str(ROOT), "MESH_URL": dev.url}
    done = subprocess.run(command, cwd=ROOT, env=env, check=False, capture_output=True, text=True, timeout=60)
    return Done(done.returncode, done.stdout, done.stderr)


class TestGenerated:
    """P183: from the types of a running agent to typed calls of it."""

    def test_calls_run_against_a_live_gateway(
        self, dev: Dev, billing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "generated_billing.py"
        made = run(dev, "contract", "generate", billing, "--out", str(file), "--sync")
        assert (made.code, made.err) == (0, ""), made
        assert "2 operations" in made.out
        monkeypatch.syspath_prepend(tmp_path)
        module = importlib.import_module("generated_billing")
        with mesh.SyncClient(dev.url) as client:
            calls = module.Billing(client).billing
            bill = module.Bill(lines=[module.Line(text="a", price=3), module.Line(text="b")])
            sent = calls.total(bill, timeout_s=20)
            assert (sent.count, sent.total, sent.first) == (2, 3, module.Line(text="a", price=3))
            assert calls.start_spell(345, idempotency_key="once").result(timeout_s=20) == ["3", "4", "5"]
            with pytest.raises(mesh.Refusal) as error:
                client.call(billing, "billing", "total", {"lines": [{"text": "a", "price": -1}]})
            assert error.value.errors[0]["pointer"] == "/input/lines/0/price"

    async def test_and_without_blocking(
        self, dev: Dev, billing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "generated_async.py").write_text(run(dev, "contract", "generate", billing).out)
        monkeypatch.syspath_prepend(tmp_path)
        module = importlib.import_module("generated_async")
        async with mesh.Client(dev.url) as client:
            sent = await module.Billing(client).billing.total(module.Bill(customer="x"), timeout_s=20)
        assert (sent.count, sent.total, sent.first) == (0, 0, None)


CONTRACT = """
nexusrpc: 1.0.0
services:
  invoice: {operations: {create: {input: {$ref: '#/types/Order'}, output: {type: string}}}}
types:
  Order: {type: object, properties: {amount: {type: integer}%s}, required: [amount%s]}
"""


class TestCommands:
    """P182, P184."""

    def test_a_contract_is_registered_from_its_file_and_the_next_one_is_refused_until_forced(
        self, dev: Dev, tmp_path: Path
    ) -> None:
        old, new = tmp_path / "old.nexusrpc.yaml", tmp_path / "new.nexusrpc.yaml"
        old.write_text(CONTRACT % ("", ""))
        new.write_text(CONTRACT % (", vat: {type: string}", ", vat"))
        made = run(dev, "endpoint", "register", "filed", "--contract", str(old))
        assert (made.code, "registered" in made.out) == (0, True), made
        with mesh.SyncClient(dev.url) as client:
            client.start("filed", "invoice", "create", {"amount": 1})
        refused = run(dev, "endpoint", "register", "filed", "--contract", str(new))
        assert refused.code == 4, refused
        assert 'the property "vat" is required now (called lately by default)' in refused.err
        assert "--force" in refused.err
        compared = run(dev, "contract", "diff", "filed", str(new))
        assert compared.code == 1, compared
        assert 'invoice/create: input: the property "vat" is required now' in compared.out
        assert "called lately by default" in compared.out
        forced = run(dev, "endpoint", "register", "filed", "--contract", str(new), "--force", "--json")
        assert forced.json["contract_change"]["forced"] is True
        shown = run(dev, "contract", "show", "filed")
        assert "create(Order) -> str" in shown.out
        assert "called lately by default" in shown.out
        assert "1 breaks, 0 not proven, forced" in shown.out
        assert "openapi" in run(dev, "contract", "openapi", "filed").json

    def test_diff_of_two_files(self, dev: Dev, tmp_path: Path) -> None:
        old, new = tmp_path / "old.nexusrpc.yaml", tmp_path / "new.json"
        old.write_text(CONTRACT % ("", ""))
        order = {"type": "object", "properties": {"amount": {"type": "integer", "format": "int32"}}}
        service = {"name": "invoice", "operations": [{"name": "create", "input": order, "output": {"type": "string"}}]}
        new.write_text(json.dumps({"services": [service]}))
        same = run(dev, "contract", "diff", str(old), str(new))
        assert (same.code, same.out.strip()) == (0, "compatible"), same
        service["operations"][0]["input"]["properties"]["amount"] = {"type": "integer"}
        service["operations"][0]["output"] = {"type": "string", "pattern": "^a"}
        new.write_text(json.dumps({"services": [service]}))
        back = run(dev, "contract", "diff", str(new), str(old), "--json")
        assert (back.code, [one["code"] for one in back.json["breaks"]]) == (1, ["input_narrowed", "output_widened"])

    @pytest.mark.parametrize(
        ("arguments", "why"),
        [
            (("contract", "show", "nowhere.yaml"), "cannot be read"),
            (("contract", "show", "nobody"), "there is no endpoint"),
            (("contract", "generate", "{bad}"), "cannot be applied"),
            (("contract", "generate", "{empty}"), "nothing to generate"),
            (("endpoint", "register", "x", "--contract", "{bad}", "--service", "a"), "exclude each other"),
        ],
    )
    def test_mistakes_say_what_to_do(self, dev: Dev, tmp_path: Path, arguments: tuple[str, ...], why: str) -> None:
        bad, empty = tmp_path / "bad.json", tmp_path / "empty.json"
        bad.write_text(json.dumps({"services": [{"name": "s", "operations": [{"name": "o", "input": {"$ref": "#"}}]}]}))
        empty.write_text(json.dumps({"services": [{"name": "s"}]}))
        done = run(dev, *(one.format(bad=bad, empty=empty) for one in arguments))
        assert done.code in (2, 3), done
        assert why in done.err
