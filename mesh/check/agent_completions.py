"""Probes of an agent's completions: what they carry, whether they are repeated, when the agent stops."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from mesh.check.agent_answers import Breach, same, shown
from mesh.check.agent_kit import Kit, Order
from mesh.check.agent_probes import probe
from mesh.check.agent_receiver import CALLBACK, Say, Try
from mesh.check.agent_starts import COMPLETE
from mesh.errors import Malformed
from mesh.wire import parse_completion

RETRY: Final = (
    "Repeat a completion until it is answered 2xx or refused for good: after 408, 429, 5xx, a timeout or a broken"
    " connection, with a growing pause."
)
REPEAT_AS_IT_WAS: Final = (
    "Build a completion once and send the same state, type, body, Token and times on every try: keep it, do not make"
    " it anew."
)
STOP: Final = (
    "Stop when a completion is refused for good (400, 401, 403, 404, 409, 410, 501): log it, and never change the"
    " outcome because of it."
)
TAKEN: Final = "Take any 2xx for a delivered completion, also one without a body, and send it no more."
RETRY_AFTER_S: Final = 1
EARLY_S: Final = 0.1
"""By how much a pause may be shorter than asked: clocks and rounding."""
QUERY: Final = "?check=a%2Fb&x=%20"
MARK: Final = 'a "quoted" {value}'


@probe(
    "C1", "what a completion carries", "P205",
    expected="POST to the URL as given, callback headers without their prefix, Nexus-Operation-State, -Token,"
    " -Start-Time (HTTP-date), -Close-Time (RFC 3339); the result with its type, or a Failure",
    reason="without the Token no gateway knows whose outcome it is",
)  # fmt: skip
async def content(kit: Kit) -> str | None:
    order = kit.order(kit.lasting)
    path = f"{CALLBACK}{QUERY}"
    data = kit.start_bytes(order, callback=path, headers=[("nexus-callback-x-check", MARK)])
    answer = await kit.start(order, data)
    lost = f"{COMPLETE} Send the header Token with it, as it came in Nexus-Callback-Token."
    done = await kit.completion(order, 1, lost)
    if done.method != "POST" or not done.path.endswith(path):
        raise Breach(f"{done.method} {done.path}", "POST to the callback URL as it was given, its query left as it is.")
    if done.header("x-check") != MARK:
        raise Breach(
            f"Nexus-Callback-X-Check came back as {done.header('x-check')!r}",
            "Replay every Nexus-Callback-* header of the start without that prefix, its value unchanged.",
        )
    try:
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in done.headers]
        read = parse_completion(headers, done.body)
    except Malformed as error:
        raise Breach(
            error.detail,
            "Send Nexus-Operation-State succeeded with the result, or failed or canceled with a Failure as"
            " application/json; start time as HTTP-date, close time as RFC 3339.",
        ) from None
    if read.operation_token != (answer.token or read.operation_token) or not read.operation_token:
        raise Breach(
            f"Nexus-Operation-Token is {read.operation_token[:40]!r}, the start was answered {answer}",
            "Send the token of your 201 as Nexus-Operation-Token with the completion.",
        )
    if read.started_at_ms is None or read.closed_at_ms is None:
        return (
            "Send Nexus-Operation-Start-Time and Nexus-Operation-Close-Time: else the time of arrival stands for both."
        )
    return None


@probe(
    "C2", "the receiver answers 500, then 503 with Retry-After, then 200", "P206",
    expected="three tries, the third not before Retry-After is over",
    reason="a gateway restarts, or its store is away for a moment; nobody else knows the outcome",
)  # fmt: skip
async def after_faults(kit: Kit) -> str | None:
    busy = Say(503, [("retry-after", str(RETRY_AFTER_S))])
    order = kit.order(kit.lasting, Say(500), busy)
    await kit.running(order)
    await kit.completion(order, 1, COMPLETE)
    for number in (2, 3):
        await kit.completion(order, number, RETRY)
    _, second, third = kit.tries(order)[:3]
    if third.at_s - second.at_s < RETRY_AFTER_S - EARLY_S:
        raise Breach(
            f"repeated {third.at_s - second.at_s:.2f} s after a 503 with Retry-After: {RETRY_AFTER_S}",
            "Wait at least Retry-After before the next try of a completion.",
        )
    _as_it_was(kit, order)
    return None


@probe(
    "C3", "the receiver breaks off without an answer", "P207",
    expected="the completion comes again: same token, state, type and bytes",
    reason="a broken connection says nothing of what was received; a repeat that differs is a conflict",
)  # fmt: skip
async def after_a_cut(kit: Kit) -> str | None:
    order = kit.order(kit.lasting, Say(cut=True), Say(cut=True))
    await kit.running(order)
    await kit.completion(order, 1, COMPLETE)
    for number in (2, 3):
        await kit.completion(order, number, RETRY)
    _as_it_was(kit, order)
    return None


@probe(
    "C4", "a completion that comes too late is refused: 409, 410", "P208",
    expected="no further try",
    reason="the operation ended otherwise, or is deleted; a repeat changes nothing and goes on for ever",
)  # fmt: skip
async def too_late(kit: Kit) -> str | None:
    await _refused(kit, [Say(409), Say(410)], STOP)
    return None


@probe(
    "C5", "a completion is refused: 400, 401, 403, 404", "P208",
    expected="no further try",
    reason="the receiver does not want it in this form; a repeat is no other form",
)  # fmt: skip
async def unwanted(kit: Kit) -> str | None:
    await _refused(kit, [Say(400), Say(401), Say(403), Say(404)], STOP)
    return None


@probe(
    "C6", "a completion is taken: 200, 202, 204", "P208",
    expected="no further try",
    reason="any 2xx says delivered",
)  # fmt: skip
async def taken(kit: Kit) -> str | None:
    await _refused(kit, [Say(200), Say(202), Say(204)], TAKEN)
    return None


@probe(
    "C7", "the receiver answers with a redirect", "P206",
    expected="it is not followed",
    reason="the completion and its token would go to whoever is named there",
)  # fmt: skip
async def redirect(kit: Kit) -> str | None:
    elsewhere = f"{kit.receiver.url}/elsewhere"
    order = kit.order(kit.lasting, Say(307, [("location", elsewhere)]))
    await kit.running(order)
    await kit.completion(order, 1, COMPLETE)
    await kit.receiver.until(lambda: len(kit.tries(order)) > 1, kit.settings.quiet_s)
    if any(each.path.endswith("/elsewhere") for each in kit.receiver.everything()):
        raise Breach("the redirect was followed", "Turn redirects off in the HTTP client that sends completions.")
    return None


@probe(
    "C8", "a cancel while the completion is on its way", "P209",
    expected="the outcome that was sent first stands, in every repeat and in the answer to a repeated start",
    reason="two outcomes of one operation are a conflict (409), and one of them is lost",
)  # fmt: skip
async def conflict(kit: Kit) -> str | None:
    held = Say(503, hold=asyncio.Event())
    order = kit.order(kit.lasting, held)
    try:
        answer = await kit.running(order)
        first = await kit.completion(order, 1, COMPLETE)
        await kit.cancel(order.sample, answer.token)
    finally:
        if held.hold is not None:
            held.hold.set()
    again = await kit.completion(order, 2, RETRY)
    advice = "Decide an outcome once: what was reported stays, whatever cancel or repeat comes after it."
    if not same(first.outcome, again.outcome):
        raise Breach(f"first {shown(first.outcome)}, then {shown(again.outcome)}", advice)
    await kit.start(order)
    kit.one_execution(order)
    return None


async def _refused(kit: Kit, says: Sequence[Say], advice: str) -> None:
    """An order for each answer; none may be asked twice."""
    orders = [kit.order(kit.lasting, say, say, say) for say in says]
    await asyncio.gather(*(kit.running(order) for order in orders))
    await asyncio.gather(*(kit.completion(order, 1, COMPLETE) for order in orders))
    await asyncio.gather(*(kit.stays_quiet(order, 1, advice) for order in orders))


def _as_it_was(kit: Kit, order: Order) -> None:
    """Whether all tries of a completion are one. Raises Breach."""
    first, *others = kit.tries(order)
    for other in others:
        for what, one, two in _compared(first, other):
            if one != two:
                raise Breach(f"the repeat has another {what}: {two!r} after {one!r}", REPEAT_AS_IT_WAS)


def _compared(one: Try, two: Try) -> list[tuple[str, object, object]]:
    names = ("nexus-operation-state", "content-type", "token", "nexus-operation-token", "nexus-operation-start-time",
             "nexus-operation-close-time")  # fmt: skip
    return [*((name, one.header(name), two.header(name)) for name in names), ("body", one.body[:80], two.body[:80])]
