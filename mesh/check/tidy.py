"""What a check leaves on a gateway, ended as far as its API goes: work that runs, callbacks and cancels still owed.

Done while the check's listeners are there to be told. A record cannot be deleted: it stays for the gateway's retention
under the name of its endpoint, which says whose it is. Knows no case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast
from urllib.parse import urlsplit

from mesh.check.case import Reply
from mesh.check.listener import Listener
from mesh.check.wire import Answer, Request, WireFault, ask
from mesh.clock import sleep

Say = Callable[[str, str], Awaitable[Answer]]
"""(method, path) -> the gateway's answer, for the check's namespace."""
WITHIN_S: Final = 3.0
"""A gateway that a trial has left ill is not waited for longer."""
POLL_S: Final = 0.02
OPERATIONS_MAX: Final = 500
"""A page, and more than any trial starts."""
OWED: Final = ("dead", "pending", "in_flight")
CANCELED: Final = (("nexus-operation-state", "canceled"), ("content-type", "application/json"))


async def tidy(say: Say, endpoint: str, handler: Listener, receiver: Listener) -> None:
    """End what runs under `endpoint`, and have its callbacks and cancels taken. Never raises for what it meets."""
    try:
        async with asyncio.timeout(WITHIN_S):
            found = _items(await say("GET", f"/v1/operations?endpoint={endpoint}&limit={OPERATIONS_MAX}"))
            if not found:
                return
            for listener, status in ((handler, 202), (receiver, 200)):
                for kind in ("start", "cancel"):
                    listener.script(kind, (Reply(status=status),))
                listener.let_go()
            for one in found:
                if one.get("closed_at") is None:
                    await _end(say, str(one.get("id")), handler)
            await _deliver(say, {str(one.get("id")) for one in found})
    except (TimeoutError, WireFault):
        return


async def _end(say: Say, operation: str, handler: Listener) -> None:
    """Cancel it; what its handler said goes on under a token of its own is completed in the handler's name."""
    await say("POST", f"/v1/operations/{operation}/cancel")
    for start in handler.ever:
        if start.get("mesh-operation-id") == operation and start.get("nexus-callback-token"):
            await _complete(start)


async def _complete(start: Request) -> None:
    callback, token = start.query.get("callback", ""), start.get("nexus-callback-token") or ""
    split = urlsplit(callback)
    if split.scheme:
        target = f"{split.path}?{split.query}" if split.query else split.path
        body = b'{"message": "the check is over"}'
        await ask(callback, "POST", target, [*CANCELED, ("token", token)], body, within_s=WITHIN_S)


async def _deliver(say: Say, ours: set[str]) -> None:
    """Send again what is owed, now that it is taken, until nothing is."""
    asked: set[str] = set()
    while True:
        owed = [one for kind in ("callback", "cancel") for state in OWED for one in _items(
            await say("GET", f"/v1/deliveries?state={state}&kind={kind}&limit={OPERATIONS_MAX}")
        ) if one.get("operation_id") in ours]  # fmt: skip
        if all(one.get("state") == "dead" and one.get("id") in asked for one in owed):
            return
        for one in owed:
            delivery = str(one.get("id"))
            if delivery not in asked and one.get("state") != "in_flight":
                asked.add(delivery)
                await say("POST", f"/v1/deliveries/{delivery}/redeliver")
        await sleep(POLL_S)


def _items(answer: Answer) -> list[dict[str, Any]]:
    """Of a list; none of whatever else was answered."""
    try:
        found: object = answer.json["items"] if answer.status == 200 else []  # noqa: PLR2004
    except (ValueError, LookupError, TypeError):
        return []
    listed = cast("list[object]", found) if isinstance(found, list) else []
    return [cast("dict[str, Any]", one) for one in listed if isinstance(one, dict)]
