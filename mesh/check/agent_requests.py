"""Probes of an agent's manners: deadlines that a start names, and requests that are odd but legal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mesh.check.agent_answers import Answer, Breach, Skip, read_answer
from mesh.check.agent_kit import Kit, Sample
from mesh.check.agent_probes import probe
from mesh.check.agent_wire import Header, Line, NoAnswer, request
from mesh.clock import monotonic_s
from mesh.ids import short_id
from mesh.wire import format_duration

SHORT_S: Final = 0.5
"""A deadline that lasting work does not meet by itself."""
SLACK_S: Final = 0.3
"""What the way back may take beyond it."""
LATE_S: Final = 1.0
"""So much after its Operation-Timeout, work that still ends well did not look at it."""
TIMEOUT_TYPES: Final = ("REQUEST_TIMEOUT", "UPSTREAM_TIMEOUT", "UNAVAILABLE")
DEADLINE: Final = (
    "Answer before Request-Timeout is over: 201 when the work goes on, 408 REQUEST_TIMEOUT when it cannot; the gateway"
    " hangs up then and sends the start again."
)
PIECES_MAX: Final = 64


@probe(
    "D1", "Request-Timeout, with a callback", "P212",
    expected="200, 201, 424, 408 or 520 before the time is over",
    reason="later the gateway is gone, and the start is repeated",
)  # fmt: skip
async def request_timeout(kit: Kit) -> str | None:
    order = kit.order(_slow(kit))
    await _in_time(kit, kit.start_bytes(order, request_timeout_s=SHORT_S))
    return None


@probe(
    "D2", "Request-Timeout, without a callback", "P212",
    expected="200, 201, 424, 408 or 520 before the time is over",
    reason="a caller without a callback waits on the line, but not for ever",
)  # fmt: skip
async def no_callback(kit: Kit) -> str | None:
    order = kit.order(_slow(kit))
    await _in_time(kit, kit.start_bytes(order, request_timeout_s=SHORT_S, callback=None))
    await kit.stays_quiet(order, 0, "Send no completion where the start names no callback.")
    return None


@probe(
    "D3", "Operation-Timeout", "P213",
    expected="the work ends by itself when the time is over",
    reason="the operation has timed out then, and its outcome is refused (409)",
)  # fmt: skip
async def operation_timeout(kit: Kit) -> str | None:
    order = kit.order(_slow(kit))
    timeout_s = max(SHORT_S, kit.took_s / 2)
    answer = await kit.start(
        order, kit.start_bytes(order, headers=[("operation-timeout", format_duration(timeout_s * 1000))])
    )
    if answer.refused is not None and answer.refused.type not in TIMEOUT_TYPES:
        raise Breach(
            f"a start with Operation-Timeout was answered {answer}",
            "Read Operation-Timeout as a number with ms, s or m; decimals are allowed.",
        )
    await kit.receiver.until(lambda: bool(kit.tries(order)), kit.took_s + LATE_S)
    tries = kit.tries(order)
    late = [each for each in tries if each.at_s - order.at_s > timeout_s + LATE_S]
    if late and late[0].outcome[0] == "succeeded":
        return (
            f"Stop when Operation-Timeout is over: the work ended {late[0].at_s - order.at_s - timeout_s:.1f} s later,"
            " for nobody."
        )
    return None


@probe(
    "R1", "a body in pieces, without a length", "P214",
    expected="Transfer-Encoding: chunked is read like any other body",
    reason="Temporal and many HTTP clients send it",
)  # fmt: skip
async def chunked(kit: Kit) -> str | None:
    sample = kit.sample
    body = sample.input or b""
    size = max(1, len(body) // PIECES_MAX)
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    order = kit.order(sample)
    answer = await kit.start(order, kit.start_bytes(order, chunks=chunks))
    _like_before(answer, "a chunked body", "Read bodies with Transfer-Encoding: chunked, in pieces of any size.")
    return None


@probe(
    "R2", "null as input: no body, no type", "P214",
    expected="an answer; 400 where the operation needs an input",
    reason="null is a value of the wire: Content-Length: 0, or a chunked body of nothing",
)  # fmt: skip
async def null(kit: Kit) -> str | None:
    empty: list[bytes] = []
    for chunks in (None, empty):
        order = kit.order(Sample(kit.sample.service, kit.sample.operation))
        answer = await kit.start(order, kit.start_bytes(order, chunks=chunks))
        how = "an empty chunked body" if chunks is not None else "an empty body without a type"
        _not_repeated(answer, how, "Take an empty body without Content-Type for null; answer 400 BAD_REQUEST if the"
                                   " operation needs an input.")  # fmt: skip
    return None


@probe(
    "R3", "input that cannot be read", "P214",
    expected="400 BAD_REQUEST, not retryable",
    reason="422 and 500 are repeated until the operation's time is over",
)  # fmt: skip
async def unreadable(kit: Kit) -> str | None:
    order = kit.order(Sample(kit.sample.service, kit.sample.operation, b'{"half": '))
    _not_repeated(
        await kit.start(order), "broken JSON", "Answer input that you cannot read with 400 and type BAD_REQUEST, never"
        " 422 or 500: what is wrong stays wrong.",
    )  # fmt: skip
    return None


@probe(
    "R4", "names are percent-encoded", "P214",
    expected="every spelling of a name is the name; %2F is a letter of it, not a separator",
    reason="names may hold any character; a router that decodes too early mistakes one operation for another",
)  # fmt: skip
async def names(kit: Kit) -> str | None:
    sample = kit.sample
    spelled = f"/{_encoded(sample.service)}/{_encoded(sample.operation)}"
    order = kit.order(sample)
    answer = await kit.start(order, kit.start_bytes(order, path=spelled))
    advice = "Match names on the raw path: split at '/', then decode each segment once."
    _like_before(answer, f"the same names as {spelled[:60]}", advice)
    for path in (f"/{_encoded(sample.service)}%2F{_encoded(sample.operation)}", f"{sample.path}%2Fcancel"):
        reply = await _post(kit, path, [("nexus-operation-token", short_id("unknown"))], sample)
        if reply.refused is None or reply.refused.type != "NOT_FOUND":
            raise Breach(f"{path[:80]} was answered {reply}", advice)
    return None


@probe(
    "R5", "an operation that is not there", "P214",
    expected="404",
    reason="whatever else is repeated as if you were ill",
)  # fmt: skip
async def not_there(kit: Kit) -> str | None:
    for path in (f"/{short_id('nowhere')}/nothing", "/only"):
        answer = await _post(kit, path, [], Sample("", "", b"1"))
        if answer.refused is None or answer.refused.type != "NOT_FOUND":
            raise Breach(f"{path} was answered {answer}", "Answer unknown services and operations with 404 NOT_FOUND.")
    return None


@probe(
    "R6", "headers that nobody knows", "P214",
    expected="they change nothing",
    reason="callers' own headers, tracing and proxies add what they like",
)  # fmt: skip
async def headers(kit: Kit) -> str | None:
    strange: list[Header] = [(f"X-Check-{number}", "a, b; c=d") for number in range(30)]
    strange += [("Nexus-Unheard-Of", "1"), ("Mesh-Unheard-Of", "1"), ("X-Check-1", "twice"), ("User-Agent", "")]
    strange += [("Nexus-Link", f'<http://127.0.0.1/{number}?x=%2C>; type="check.Link"') for number in range(3)]
    strange += [("Accept", "*/*"), ("Baggage", "a=b"), ("Tracestate", "mesh=1")]
    if kit.sample.input is not None and kit.sample.content_type == "application/json":
        strange.append(("Content-Type", "application/json; charset=utf-8"))
    order = kit.order(kit.sample)
    answer = await kit.start(order, kit.start_bytes(order, headers=strange))
    _like_before(answer, "a start with unknown headers", "Pass over headers that you do not know, repeated ones and"
                         " parameters of a media type too.")  # fmt: skip
    return None


@probe(
    "R7", "a refusal, then a start on the same connection", "P214",
    expected="the second request is served like any other",
    reason="gateways keep connections; a body that was left unread becomes the next request",
)  # fmt: skip
async def same_connection(kit: Kit) -> str | None:
    order = kit.order(kit.sample)
    where = kit.target.under(f"/{short_id('nowhere')}/nothing".encode()).decode()
    filler = b"[" + b"1," * 20_000 + b"1]"
    advice = "Read a request's body to its end before the next one, or close the connection and say so."
    async with await Line.open(kit.target) as line:
        await line.send(request(kit.target, where, [("content-type", "application/json")], filler))
        first = await line.reply(kit.settings.answer_s)
        if first.header("connection").lower() == "close":
            return None
        try:
            await line.send(kit.start_bytes(order))
            answer = kit.read(order, await line.reply(kit.settings.answer_s))
        except NoAnswer as fault:
            raise Breach(f"after a refusal: {fault}", advice) from None
    _like_before(answer, "a start after a refusal on the same connection", advice)
    return None


def _slow(kit: Kit) -> Sample:
    """An operation whose work takes longer than the deadlines that are tried."""
    sample = kit.lasting
    if kit.took_s < SHORT_S + SLACK_S:
        message = f"needs an operation that takes longer than {SHORT_S + SLACK_S:g} s"
        raise Skip(message)
    return sample


async def _in_time(kit: Kit, data: bytes) -> None:
    async with await Line.open(kit.target) as line:
        began_s = monotonic_s()
        await line.send(data)
        answer = read_answer(await line.reply(kit.settings.answer_s))
        took_s = monotonic_s() - began_s
    if took_s > SHORT_S + SLACK_S:
        raise Breach(f"Request-Timeout: {format_duration(SHORT_S * 1000)} was answered after {took_s:.2f} s", DEADLINE)
    if answer.refused is not None and answer.refused.type not in TIMEOUT_TYPES:
        raise Breach(f"Request-Timeout: {format_duration(SHORT_S * 1000)} was answered {answer}", DEADLINE)


async def _post(kit: Kit, path: str, headers: Sequence[Header], sample: Sample) -> Answer:
    order = kit.order(sample)
    return await kit.start(order, kit.start_bytes(order, path=path, headers=headers))


def _like_before(answer: Answer, what: str, advice: str) -> None:
    """The operation was started before, so it is started now."""
    if answer.refused is not None:
        raise Breach(f"{what} was answered {answer}", advice)


def _not_repeated(answer: Answer, what: str, advice: str) -> None:
    if answer.refused is not None and answer.refused.retryable:
        raise Breach(f"{what} was answered {answer}, which is repeated", advice)


def _encoded(name: str) -> str:
    return "".join(f"%{byte:02X}" for byte in name.encode())
