"""Every defect is found by its probe, with the advice that mends it.

P200, P201, P202, P203, P204, P205, P206, P207, P208, P209, P210, P211, P212, P213, P214, P215, P216: each has a probe
or more, and each probe an agent here that breaks its rule and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from mesh.check.agent import ordered
from mesh.check.report import Result
from tests.agents.serving import serving
from tests.conformance.bad_agents import BAD
from tests.conformance.bad_manners import unread
from tests.conformance.kit_checks import LASTING, QUICK, SLOW, SLOWER, by_number, checked, raw
from tests.conformance.plain_agents import Plain, Street

SAMPLES = {"D1": SLOW, "D2": SLOW, "D3": SLOWER, "L1": SLOW, "L2": SLOW, "X3": SLOWER}
AT_ONCE = 12


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, Result]]:
    """What each agent's probe says, by the agent's name; they are examined side by side."""

    async def examine(base: str) -> dict[str, Result]:
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(agent: type[Plain], probe: str) -> Result:
            # The last probes look back at what the others left behind.
            only = {probe, "S4", "S5"} if probe.startswith("Z") else {probe}
            async with gate:
                report = await checked(
                    f"{base}/{agent.__name__}", QUICK, SAMPLES.get(probe, LASTING), only=frozenset(only), patience_s=4.0
                )
            return by_number(report)[probe]

        results = await asyncio.gather(*(one(agent, probe) for agent, probe, _ in BAD))
        return {agent.__name__: result for (agent, _, _), result in zip(BAD, results, strict=True)}

    with serving(Street(agent for agent, _, _ in BAD)) as base:
        yield asyncio.run(examine(base))


@pytest.mark.parametrize(("agent", "probe", "advice"), BAD, ids=[agent.__name__ for agent, _, _ in BAD])
def test_a_defect_is_caught(agent: type[Plain], probe: str, advice: str, found: dict[str, Result]) -> None:
    result = found[agent.__name__]
    assert advice in result.advice, result
    # What is legal and a waste is a hint.
    legal = "Legal" in (agent.__doc__ or "")
    assert (result.verdict, bool(result.seen)) == (("pass", False) if legal else ("fail", True))


async def test_a_body_left_unread() -> None:
    async with raw(unread) as url:
        found = by_number(await checked(url, QUICK, only=frozenset({"R7"})))["R7"]
    assert (found.verdict, "Read a request's body to its end" in found.advice) == ("fail", True)


def test_every_probe_has_its_bad_agent() -> None:
    assert {probe for _, probe, _ in BAD} | {"R7"} == {each.number for each in ordered()}
