"""`mesh check`: what it prints, and how it ends."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest

from mesh.check.case import Ask
from mesh.check.cases import CASES
from mesh.check.targets import Agent
from mesh.check.wire import ask
from tests.agents.serving import Scripted, serving
from tests.surface.gateways import run, unused_port


def check(*words: str) -> tuple[int, str]:
    return run([sys.executable, "-m", "gateway.cli.main", "check", *words])


def report(*words: str) -> tuple[int, dict[str, Any]]:
    code, said = check(*words, "--json")
    return code, json.loads(said)


def test_a_gateway(sides: dict[str, Any]) -> None:
    """P151: it is recognised, the cases of a rule are chosen, all is well."""
    code, said = report(sides["gateway"].url, "--rule", "p30", "--case", "1")
    assert (code, said["ok"], said["kind"], said["failed"], said["skipped"]) == (0, True, "gateway", 0, 0)
    assert {one["number"] for one in said["results"]} >= {"1", "54", "59"}
    assert {one["rule"] for one in said["results"] if one["number"] != "1"} <= {"P30", "P133", "P150"}


async def test_what_it_leaves_behind(sides: dict[str, Any]) -> None:
    """P188: nothing runs, nothing is owed or dead, no endpoint is left; the records say whose they are."""
    url = sides["gateway"].url

    async def items(path: str) -> list[dict[str, Any]]:
        answer = await ask(url, "GET", f"/v1/{path}limit=200")
        assert answer.status == 200, answer
        return answer.json["items"]

    before = {one["id"] for one in await items("operations?")}
    chosen = ["10", "26", "55", "59", "61", "64", "68", "69"]
    code, said = await asyncio.to_thread(report, url, *[word for one in chosen for word in ("--case", one)])
    assert (code, said["passed"]) == (0, len(chosen)), said
    left = [one for one in await items("operations?") if one["id"] not in before]
    assert len(left) >= len(chosen)
    assert {one["endpoint"].partition("-")[0] for one in left} == {"check"}
    assert [one for one in left if one["closed_at"] is None] == []
    ours = {one["id"] for one in left}
    for state in ("dead", "pending", "in_flight"):
        assert [one for one in await items(f"deliveries?state={state}&") if one["operation_id"] in ours] == []
    assert [one["name"] for one in await items("endpoints?") if one["name"].startswith("check-")] == []


def test_in_words(sides: dict[str, Any]) -> None:
    """P151: by rule; why, when asked; listeners where the user says."""
    code, said = check(sides["gateway"].url, "--case", "1", "--case", "71", "--verbose", "--here", "localhost")
    lines = [line.strip() for line in said.splitlines()]
    assert (code, lines[0], lines[1].split()[:2]) == (0, "P17", ["pass", "1"]), said
    assert "why:      Temporal's SDKs cannot decode a result whose type has parameters" in lines
    assert "needs to kill and restart the target, which only who runs it can do" in lines
    assert lines[-1].startswith("1 passed, 0 failed, 1 not applicable")


def test_an_agent(sides: dict[str, Any]) -> None:
    """P151: all that is asked of an agent, the contract hosted."""
    code, said = report(sides["agent"].url, "--running-max", "16")
    assert (code, said["kind"], said["failed"]) == (0, "agent", 0), [
        one for one in said["results"] if one["verdict"] == "fail"
    ]
    assert [one["number"] for one in said["results"]] == [str(case.number) for case in CASES]
    asked = {case.number for case in CASES if case.agent is not None}
    assert {int(one["number"]) for one in said["results"] if one["verdict"] == "pass"} == asked


def test_an_agent_without_the_contract() -> None:
    """P151: who answers 200 to everything fails, and is told why; what needs more operations does not apply."""
    with serving(Scripted()) as url:
        code, said = check(url, "--operation", "any=a%2Fb/c", "--group", "names", "--group", "bodies")
        assert code == 1
        assert "P126" in said
        assert "expected: 404 NOT_FOUND as a Failure" in said
        assert "the status is 200, not 404 for NOT_FOUND" in said
        assert "mend:     Answer unknown services with 404" in said
        assert (
            "needs an operation like `sum` of specs/conformance.nexusrpc.yaml (--operation sum=SERVICE/OPERATION)"
            in said
        )
        code, said = check(url, "--kind", "agent")
        assert code == 1


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["nonsense"], 2, "is not a URL"),
        ([], 2, ""),
        (["http://127.0.0.1:9", "--kind", "client"], 2, "neither gateway nor agent"),
        (["http://127.0.0.1:9", "--rule", "X1"], 2, "`mesh check --list` shows them all"),
        (["http://127.0.0.1:9", "--kind", "agent", "--operation", "any"], 2, "NAME=VALUE"),
        (["http://127.0.0.1:9", "--kind", "agent", "--operation", "all=a/b"], 2, "Roles are any, echo"),
        (["http://127.0.0.1:9", "--kind", "agent", "--input", "1"], 2, "--operation any=SERVICE/OPERATION"),
    ],
)
def test_wrong_words(words: list[str], code: int, text: str) -> None:
    """P151."""
    found, said = check(*words)
    assert (found, text in said) == (code, True), said


def test_nobody_answers() -> None:
    """P151."""
    code, said = check(f"http://127.0.0.1:{asyncio.run(unused_port())}")
    assert (code, "ConnectionRefusedError" in said) == (5, True), said


def test_no_agent_answers_its_kit() -> None:
    """P151: a line, before any probe."""
    code, said = check("agent", f"http://127.0.0.1:{asyncio.run(unused_port())}")
    assert (code, "nobody answers at" in said, said.count("\n")) == (5, True, 1), said


def test_the_users_input_is_no_body_over_the_limit() -> None:
    """P135: case 85 sends what it is about, not the input that the user names for `any`."""
    target = Agent("http://127.0.0.1:9", operations={"any": ("s", "o")}, input=b'"Ada"')
    bodies = [b"x" * (2 << 20 | 1), b"1"]
    sent = [target.operation(Ask(role="any", path="{op}", body=body), {})[1].body for body in bodies]
    assert sent == [bodies[0], b'"Ada"']


def test_no_such_gateway(sides: dict[str, Any]) -> None:
    """P151: an agent is no gateway."""
    code, said = check("--kind", "gateway", sides["agent"].url)
    assert (code, "is this a Mesh gateway" in said) == (2, True), said
    with serving(Scripted(lambda _: (_ for _ in ()).throw(AssertionError))) as url:
        code, said = check("--kind", "agent", url)
        assert (code, "specs/conformance.nexusrpc.yaml" in said) == (2, True), said


def test_the_list() -> None:
    code, said = check("--list", "--json")
    assert (code, [one["number"] for one in json.loads(said)]) == (0, list(range(1, 96)))
    code, said = check("--list", "--group", "cancel")
    assert (code, "the token in the header" in said, "P30 P133 P150" in said) == (0, True, True)
