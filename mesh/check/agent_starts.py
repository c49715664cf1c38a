"""Probes of an agent's starts: repeats, lost requests and replies, later attempts, completions that overtake."""

from __future__ import annotations

import asyncio
from typing import Final

from mesh.check.agent_answers import Answer, Breach, Skip
from mesh.check.agent_kit import NO_JOURNALS, Kit, Order, Sample
from mesh.check.agent_probes import probe
from mesh.check.agent_wire import Line

COMPLETE: Final = (
    "Post the outcome of what you answered 201 to the callback URL; if the work takes longer than this check waits,"
    " give a longer --patience."
)
ARRIVE_S: Final = 0.05
"""What a request on its way may need to be read before its connection is cut."""


@probe(
    "S1", "a start is answered", "P200",
    expected="every operation given is answered 200, 201 or 424; what was answered 201 is completed",
    reason="everything else is built on it",
)  # fmt: skip
async def answered(kit: Kit) -> str | None:
    if not kit.settings.samples:
        message = "no operation was given: --service, --operation and --input name one"
        raise Skip(message)
    for sample in kit.settings.samples:
        order = kit.order(sample)
        answer = await kit.start(order)
        if answer.refused is not None:
            raise Breach(
                f"{sample} was answered {answer}: {answer.refused.message}",
                "Give the check an operation that works, with an input that it takes.",
            )
        if not answer.token:
            kit.quick = kit.quick or sample
            continue
        try:
            done = await kit.completion(order, 1, COMPLETE)
        except Skip:
            kit.durable = kit.durable or sample
            continue
        except Breach:
            kit.long = kit.long or sample
            raise
        kit.long = kit.long or sample
        kit.took_s = kit.took_s or max(done.at_s - order.at_s, 0.001)
    if kit.durable is None:
        return None
    if kit.quick is None and kit.long is None:
        raise Skip(NO_JOURNALS.format(kit.durable))
    return f"Not tried beyond its 201: {NO_JOURNALS.format(kit.durable)}."


@probe(
    "S2", "the same start again, later", "P201",
    expected="the same token, or the same outcome",
    reason="a gateway that did not get the answer asks again with the same Nexus-Request-Id",
)  # fmt: skip
async def again_later(kit: Kit) -> str | None:
    for sample in _both(kit):
        order = kit.order(sample)
        first = await kit.start(order)
        await kit.start(order)
        await _settled(kit, order, first)
        await kit.start(order)
        kit.one_execution(order)
    return None


@probe(
    "S3", "the same start many times at once", "P201",
    expected="one execution: one token, one outcome, however many ask at the same time",
    reason="two gateways may take over the same work, and a load balancer may repeat a request",
)  # fmt: skip
async def at_once(kit: Kit) -> str | None:
    for sample in _both(kit):
        order = kit.order(sample)
        answers = await asyncio.gather(*(kit.start(order) for _ in range(kit.settings.at_once)))
        await _settled(kit, order, *answers)
        kit.one_execution(order)
    return None


@probe(
    "S4", "the reply is lost, then the start comes again", "P202",
    expected="the work goes on without the connection; the repeat finds it",
    reason="a gateway may be killed while it waits for you",
)  # fmt: skip
async def lost_reply(kit: Kit) -> str | None:
    for sample in _both(kit):
        for wait_for_reply in (False, True):
            order = kit.order(sample)
            async with await Line.open(kit.target) as line:
                await line.send(kit.start_bytes(order))
                # Cut before the agent answers, and cut between its answer and our reading of it.
                await (line.first_byte(kit.settings.answer_s) if wait_for_reply else kit.rest(ARRIVE_S))
            answer = await kit.start(order)
            await _settled(kit, order, answer)
            kit.one_execution(order)
    return None


@probe(
    "S5", "half a request, then the whole", "P202",
    expected="a request that did not arrive whole starts nothing; the whole one is served as if it were the first",
    reason="a gateway may be killed while it sends",
)  # fmt: skip
async def half_a_request(kit: Kit) -> str | None:
    sample = kit.sample
    if not sample.input:
        message = "needs an operation with an input"
        raise Skip(message)
    advice = "Begin only when the whole body is there (Content-Length bytes), not when the connection ends."
    cut = kit.order(kit.long or sample)
    if cut.sample.input:
        data = kit.start_bytes(cut)
        async with await Line.open(kit.target) as line:
            await line.send(data[: -((len(cut.sample.input) + 1) // 2)])
            await kit.rest(ARRIVE_S)
    order = kit.order(sample)
    async with await Line.open(kit.target) as line:
        await line.send(kit.start_bytes(order)[: -((len(sample.input) + 1) // 2)])
        await kit.rest(ARRIVE_S)
    answer = await kit.start(order)
    if answer.refused is not None:
        raise Breach(f"after half a request the whole one was answered {answer}", advice)
    begun = lambda: bool(kit.tries(cut)) or kit.keeps_journal(cut)  # noqa: E731
    if await kit.receiver.until(begun, kit.took_s + kit.settings.quiet_s):
        raise Breach("half a request was carried out: its completion came", advice)
    return None


@probe(
    "S6", "the next attempt while the first one runs", "P203",
    expected="the work that runs is joined: same token; its outcome is reported with a completion token of either",
    reason="a gateway that lost sight of you sends the next attempt: same Nexus-Request-Id, new Nexus-Callback-Token",
)  # fmt: skip
async def next_attempt(kit: Kit) -> str | None:
    order = kit.order(kit.lasting)
    first = await kit.running(order)
    later = kit.order(order.sample)
    later.id, later.attempt = order.id, 2
    second = await kit.start(later)
    if not await kit.receiver.until(lambda: bool(kit.tries(order, later)), kit.settings.patience_s):
        raise Breach("no completion came after the second attempt", COMPLETE)
    await kit.rest(min(kit.settings.quiet_s, kit.took_s))
    order.answers.append(second)
    kit.one_execution(order, later)
    if second.token and second.token == first.token and not kit.tries(later):
        return "Complete with the token of the latest attempt: where work is leased, an earlier one is refused (409)."
    return None


@probe(
    "S7", "the completion overtakes the start's reply", "P204",
    expected="the completion names the operation (Nexus-Operation-Token, -Start-Time); the reply that is read after it"
    " agrees",
    reason="connections have no order between them: a completion may be there first",
)  # fmt: skip
async def overtaking(kit: Kit) -> str | None:
    order = kit.order(kit.lasting)
    async with await Line.open(kit.target) as line:
        await line.send(kit.start_bytes(order))
        done = await kit.completion(order, 1, COMPLETE)
        answer = kit.read(order, await line.reply(kit.settings.answer_s))
    if not done.token or not done.header("nexus-operation-start-time"):
        raise Breach(
            "a completion without Nexus-Operation-Token or Nexus-Operation-Start-Time",
            "Send Nexus-Operation-Token and Nexus-Operation-Start-Time with every completion: it may arrive before"
            " your 201 does.",
        )
    if answer.token and answer.token != done.token:
        raise Breach(
            f"the 201 says token {answer.token[:40]!r}, the completion {done.token[:40]!r}",
            "Give the completion the same Nexus-Operation-Token as the 201.",
        )
    await kit.start(order)
    kit.one_execution(order)
    return None


def _both(kit: Kit) -> list[Sample]:
    """A quick operation and a lasting one, as far as they are there."""
    found = [kit.quick, kit.long if kit.took_s else None]
    return [sample for sample in found if sample is not None] or [kit.sample]


async def _settled(kit: Kit, order: Order, *answers: Answer) -> None:
    """Wait for the completion of what was answered 201, then as long again for that of a second execution."""
    if any(answer.token for answer in answers):
        await kit.completion(order, 1, COMPLETE)
        await kit.rest(min(kit.settings.quiet_s, kit.took_s + ARRIVE_S))
