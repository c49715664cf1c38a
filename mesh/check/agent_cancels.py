"""Probes of an agent's cancel route: unknown tokens, every moment of an operation, twice."""

from __future__ import annotations

from typing import Final

from mesh.check.agent_answers import Breach, Skip
from mesh.check.agent_kit import Kit, Order
from mesh.check.agent_probes import probe
from mesh.check.agent_starts import ARRIVE_S, COMPLETE
from mesh.check.agent_wire import Line, Reply
from mesh.ids import short_id
from mesh.wire import parse_handler_failure

ACCEPTED: Final = 202
NOT_IMPLEMENTED: Final = 501
ACCEPT: Final = (
    "Answer a cancel of a token that you gave out with 202 and no body, also when it comes twice or too late."
)
END: Final = (
    "Let a canceled operation end and report how it did: a completion with state canceled, or with the outcome it came"
    " to all the same."
)
UNKNOWN: Final = (
    "Answer a cancel of a token that you never gave out with 404: the gateway asks every instance, and believes the"
    " first 2xx."
)


@probe(
    "X1", "cancel of an unknown token", "P211",
    expected="404 (or 501, where nothing can be canceled)",
    reason="a gateway asks all instances of an agent at once; one that agrees is believed",
)  # fmt: skip
async def unknown(kit: Kit) -> str | None:
    for token in (short_id("unknown"), "with space", "x" * 200):
        reply = await kit.cancel(kit.sample, token)
        if reply.status < 400:  # noqa: PLR2004
            raise Breach(f"answered {reply.status}", UNKNOWN)
        _for_good(reply, "cancel of an unknown token", UNKNOWN)
    return None


@probe(
    "X2", "cancel without a token", "P211",
    expected="400",
    reason="nothing says what is meant; a repeat will say no more",
)  # fmt: skip
async def without(kit: Kit) -> str | None:
    reply = await kit.cancel(kit.sample, "")
    advice = "Answer a cancel without Nexus-Operation-Token and without ?token= with 400 BAD_REQUEST."
    if reply.status < 400:  # noqa: PLR2004
        raise Breach(f"answered {reply.status}", advice)
    _for_good(reply, "cancel without a token", advice)
    return None


@probe(
    "X3", "cancel while the work runs", "P210",
    expected="202 without a body; then a completion, in whatever state",
    reason="the caller gave up and waits to hear how it ended",
)  # fmt: skip
async def running(kit: Kit) -> str | None:
    order = kit.order(kit.lasting)
    answer = await kit.running(order)
    early = not kit.tries(order)
    reply = await kit.cancel(order.sample, answer.token)
    _accepted(reply, "while the work runs")
    done = await kit.completion(order, 1, END)
    kit.one_execution(order)
    # Well below 1: what the whole work takes was measured once, perhaps in a busier moment.
    if early and done.outcome[0] == "succeeded" and done.at_s - order.at_s > kit.took_s * 0.6:
        return "The cancel was taken and changed nothing: watch for it in long work, and stop."
    return None


@probe(
    "X4", "cancel at the very moment of the start", "P210",
    expected="202 as soon as the token is known, by header and by query, and again",
    reason="the caller's cancel may have waited for the token; nothing may fall between start and work",
)  # fmt: skip
async def at_once(kit: Kit) -> str | None:
    for query in (False, True):
        order = kit.order(kit.lasting)
        answer = await kit.running(order)
        for when in ("at the very start", "a second time"):
            _accepted(await kit.cancel(order.sample, answer.token, query=query), when)
        await kit.completion(order, 1, END)
        await kit.stays_quiet(order, 1, ACCEPT)
    return None


@probe(
    "X5", "cancel before the start was answered", "P211",
    expected="a token that is not known yet is refused, and does no harm to the start that is on its way",
    reason="a cancel and a start go over different connections",
)  # fmt: skip
async def before(kit: Kit) -> str | None:
    order = kit.order(kit.lasting)
    async with await Line.open(kit.target) as line:
        await line.send(kit.start_bytes(order))
        early = await kit.cancel(order.sample, short_id("unknown"))
        if early.status < 400:  # noqa: PLR2004
            raise Breach(f"a cancel of a made-up token was answered {early.status}", UNKNOWN)
        answer = kit.read(order, await line.reply(kit.settings.answer_s))
    if answer.refused is not None:
        raise Breach(
            f"the start was answered {answer} because of a cancel that was not meant for it",
            "Cancel only the operation whose token is named.",
        )
    done = await _end(kit, order)
    if done is not None and done == "canceled":
        raise Breach(
            "the operation was canceled by a cancel with another token",
            "Cancel only the operation whose token is named.",
        )
    return None


@probe(
    "X6", "cancel after the start's reply was lost", "P210",
    expected="the repeat of the start gives the token, and the cancel reaches the work that runs",
    reason="a gateway that is restarted learns the token again and still owes the cancel",
)  # fmt: skip
async def after_a_lost_reply(kit: Kit) -> str | None:
    order = kit.order(kit.lasting)
    async with await Line.open(kit.target) as line:
        await line.send(kit.start_bytes(order))
        await kit.rest(ARRIVE_S)
    answer = await kit.running(order)
    _accepted(await kit.cancel(order.sample, answer.token), "after a lost reply")
    await kit.completion(order, 1, END)
    kit.one_execution(order)
    return None


@probe(
    "X7", "cancel after the end", "P210",
    expected="202, twice; nothing changes and nothing is sent",
    reason="a cancel and a completion cross on their way",
)  # fmt: skip
async def after_the_end(kit: Kit) -> str | None:
    order = kit.order(kit.lasting)
    answer = await kit.running(order)
    await kit.completion(order, 1, COMPLETE)
    for when in ("after the end", "after the end, twice"):
        _accepted(await kit.cancel(order.sample, answer.token), when)
    advice = "Leave an operation that ended alone: a late cancel is answered 202 and changes nothing."
    await kit.stays_quiet(order, 1, advice)
    return None


def _accepted(reply: Reply, when: str) -> None:
    if reply.status == NOT_IMPLEMENTED:
        message = "the operation says that it cannot be canceled (501)"
        raise Skip(message)
    if reply.status != ACCEPTED:
        raise Breach(f"a cancel {when} was answered {reply.status}", ACCEPT)
    if reply.body:
        raise Breach(f"a cancel {when} was answered 202 with a body", ACCEPT)


def _for_good(reply: Reply, what: str, advice: str) -> None:
    """A refusal that the gateway does not repeat."""
    failure = parse_handler_failure(reply.status, reply.raw_headers, reply.body)
    if failure.retryable:
        raise Breach(f"{what} was answered {reply.status} {failure.type}, which is repeated", advice)


async def _end(kit: Kit, order: Order) -> str | None:
    """The state in which an order ended."""
    last = order.answers[-1]
    if last.outcome is not None:
        return last.outcome[0]
    return (await kit.completion(order, 1, COMPLETE)).outcome[0]
