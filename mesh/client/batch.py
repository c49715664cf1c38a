"""Many starts in few requests, as steps (flow.py): which go together, what is repeated, what became of each.

Every start has its key, so a batch whose answer broke off is sent again as it was. Does no I/O.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec

from mesh.agent.codec import BYTES, Undecodable
from mesh.client.asking import REPEATED, RETRY_FIRST_S, RETRY_MAX_S, Answer, Ask, Flow, Pause, exchange
from mesh.client.errors import refusal
from mesh.client.flow import Placed, start_fields
from mesh.client.order import Order, Record
from mesh.clock import monotonic_s
from mesh.errors import ConfigError, MeshError, Unavailable

LINES_MAX: Final = 10_000
BYTES_MAX: Final = 32 << 20
TIMEOUT_S: Final = 60.0


def start_many(orders: Sequence[Order], retry_for_s: float) -> Flow[list[Placed | MeshError]]:
    """For each order what became of it. Raises ConfigError before anything is sent."""
    if any(order.headers != orders[0].headers for order in orders):
        message = "headers and links are those of the whole batch: give all its starts the same"
        raise ConfigError(message)
    lines = [_line(order) for order in orders]
    found: list[Placed | MeshError | None] = [None] * len(orders)
    left = list(range(len(orders)))
    give_up_s = monotonic_s() + retry_for_s
    delay_s = RETRY_FIRST_S
    while left:
        for group in _groups(left, lines):
            headers = {**orders[0].headers, "content-type": "application/x-ndjson"}
            ask = Ask("POST", "/v1/operations/batch", headers, b"".join([lines[one] for one in group]), TIMEOUT_S)
            answer = yield from exchange(ask, retry_for_s)
            for one in group:
                found[one] = Unavailable("the answer says nothing of this line", code="outcome_unknown")
            for place, outcome in _outcomes(answer):
                if place < len(group):
                    found[group[place]] = _placed(orders[group[place]], outcome)
        left = [one for one in left if _worth_repeating(found[one])]
        if monotonic_s() + delay_s > give_up_s:
            break
        if left:
            yield Pause(delay_s)
            delay_s = min(delay_s * 2, RETRY_MAX_S)
    return cast("list[Placed | MeshError]", found)


def _line(order: Order) -> bytes:
    try:
        media_type, body = order.called.input.encode(order.value)
    except Undecodable as error:
        message = f"the input is not what {order.called.operation} takes: {error}"
        raise ConfigError(message, code="input_invalid") from None
    if media_type == BYTES:
        message = "an input of bytes is no JSON and cannot be part of a batch; start it by itself"
        raise ConfigError(message)
    return msgspec.json.encode(start_fields(order, media_type, body) | {"idempotency_key": order.key}) + b"\n"


def _groups(left: Sequence[int], lines: Sequence[bytes]) -> list[list[int]]:
    groups: list[list[int]] = [[]]
    size = 0
    for one in left:
        size += len(lines[one])
        if groups[-1] and (len(groups[-1]) == LINES_MAX or size > BYTES_MAX):
            groups.append([])
            size = len(lines[one])
        groups[-1].append(one)
    return groups


def _outcomes(answer: Answer) -> list[tuple[int, dict[str, Any]]]:
    """Each with the place of its line, from 0; what cannot be read is left out."""
    found: list[tuple[int, dict[str, Any]]] = []
    for text in answer.body.splitlines():
        try:
            outcome = json.loads(text)
            found.append((int(outcome["line"]) - 1, outcome))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _placed(order: Order, outcome: dict[str, Any]) -> Placed | MeshError:
    status = outcome.get("status")
    problem = outcome.get("problem")
    if isinstance(problem, dict) or not isinstance(outcome.get("id"), str):
        return refusal(status if isinstance(status, int) else 500, json.dumps(problem).encode(), 0)
    known = {name: value for name, value in outcome.items() if name not in ("line", "status", "replayed")}
    called = {"endpoint": order.endpoint, "service": order.called.service, "operation": order.called.operation}
    return Placed(outcome["id"], cast("Record", called | known), {}, outcome.get("replayed") is True)


def _worth_repeating(one: Placed | MeshError | None) -> bool:
    return isinstance(one, MeshError) and getattr(one, "status", 0) in REPEATED
