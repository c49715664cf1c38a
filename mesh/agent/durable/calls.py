"""`ctx.call`: another operation as a child of this one, started once and waited for without holding anything.

The child is started under a key derived from this operation, so a start that is repeated after a crash finds it again.
Its end is written into this operation's journal by the store, which also wakes this operation. A child started with
`parent_close="cancel"` (the default) ends with its parent; one with "keep" goes on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from mesh.agent.codec import JSON, Codec, Undecodable
from mesh.agent.durable.attempt import Attempt
from mesh.agent.durable.branch import SourceBlocked, begin_within_branch, branch
from mesh.agent.durable.entries import Entry, fingerprint, key_of, trouble_of
from mesh.agent.durable.errors import CallRefused, LeaseLost
from mesh.agent.durable.large import received
from mesh.agent.durable.link import ChildOrder
from mesh.client.errors import UNSUCCESSFUL, OperationFailed
from mesh.client.order import Called
from mesh.errors import ConfigError, Refusal


class Call(NamedTuple):
    """One occurrence of a call, as the code asks for it."""

    name: str
    n: int
    endpoint: str
    called: Called
    value: Any
    timeout_ms: int | None
    labels: dict[str, str]
    keep: bool
    strict: bool


async def run_call(attempt: Attempt, call: Call) -> Any:
    """The child's result. Raises OperationUnsuccessful, CallRefused, SourceBlocked, JournalMismatch.

    Suspended, when a result that is recorded cannot be had now; the child is never started again.
    """
    attempt.resting.begin()
    key = key_of(call.name, call.n)
    try:
        asked = f"a call of {call.endpoint}/{call.called.service}/{call.called.operation}"
        args = fingerprint((call.value,), {}) if call.value is not None else None
        known = {entry.kind: entry for entry in await attempt.find(key, "call", asked, args, strict=call.strict)}
        fresh = "call" not in known
        started = await _started(attempt, call, key, args) if fresh else known["call"]
        if started.error is not None:
            raise CallRefused(key, started.error.message, started.error.type)
        if "child" not in known:
            if not call.keep:
                attempt.adopt(key, started.id, fresh=fresh)
            known["child"] = await _ended(attempt, key, started.id)
        if known["child"].state == "canceled" and not call.keep:
            # A child that was canceled with this operation: what an interrupted attempt was told, this one is told.
            attempt.check_cancel()
        return await _result(attempt, call, key, started.id, known["child"])
    finally:
        attempt.live_children.pop(key, None)
        attempt.resting.end()


async def _started(attempt: Attempt, call: Call, key: str, args: str | None) -> Entry:
    """Start the child; its entry, which is on its way. Raises SourceLate."""
    begin_within_branch(key)
    await attempt.ready()
    task = attempt.task
    order = ChildOrder(
        f"{task.operation_id}.{task.run}/{key}",
        key,
        call.endpoint,
        call.called.service,
        call.called.operation,
        None if call.value is None else _json(call.called.input, call.value, key),
        call.timeout_ms,
        call.labels,
        call.keep,
    )
    entry = Entry(
        "call", call.name, call.n, args=args,
        endpoint=call.endpoint, service=order.service, operation=order.operation,
    )  # fmt: skip
    try:
        child = await attempt.ask(attempt.link.start_child(order))
    except Refusal as refusal:
        if refusal.code == "lease_lost":
            attempt.stop(LeaseLost(refusal.detail))
            attempt.check()
        entry.error = trouble_of(refusal, retryable=False)
        return await attempt.record(entry)
    entry.id = child.id
    source = branch.get()
    if source is not None:
        source.blocked = child.blocked
    # Not waited for: a start that is repeated after a crash finds the same child.
    attempt.exchange.put(entry)
    return entry


async def _ended(attempt: Attempt, key: str, operation_id: str) -> Entry:
    """Wait for the child's end; the entry that tells it. Raises SourceBlocked."""
    source = branch.get()
    if source is not None:
        source.children[key] = operation_id
        if source.blocked in source.skipped:
            raise SourceBlocked(f"call {key}: nothing is sent now ({source.blocked})", source.blocked or "")
    while True:
        for entry in await attempt.find(key, "call", "", strict=False):
            if entry.kind == "child":
                return entry
        await attempt.ready()
        await attempt.park(attempt.exchange.child(key), None)


async def _result(attempt: Attempt, call: Call, key: str, operation_id: str, entry: Entry) -> Any:
    if entry.state == "succeeded":
        try:
            return await received(attempt, key, call.called.output, entry)
        except Undecodable as error:
            failure = {"message": f"its result cannot be had as {call.called.output.name}: {error}"}
            raise OperationFailed(operation_id, failure) from None
    failure = msgspec.json.decode(entry.failure) if bytes(entry.failure) else {"message": "no reason given"}
    raise UNSUCCESSFUL.get(entry.state, OperationFailed)(operation_id, failure)


def _json(codec: Codec, value: Any, key: str) -> bytes:
    """Raises ConfigError, Undecodable."""
    media_type, body = codec.encode(value)
    if media_type != JSON:
        message = f"call {key}: a child's input is JSON, not bytes: pass text, or where the bytes are"
        raise ConfigError(message)
    return body
