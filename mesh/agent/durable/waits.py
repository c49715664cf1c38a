"""What the context offers besides steps, calls and gathers: time, chance, and words to those who watch."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, TypeVar
from uuid import UUID

import msgspec

from mesh.agent.codec import Codec
from mesh.agent.durable.attempt import Attempt
from mesh.agent.durable.chunks import chunk_of
from mesh.agent.durable.entries import Entry, key_of
from mesh.agent.durable.steps import running_step
from mesh.errors import ConfigError
from mesh.ids import secret_bytes

T = TypeVar("T")

SLEEP_MS_MAX: Final = 10 * 366 * 86_400_000
_any: Final = Codec(Any)
_encode: Final = msgspec.json.Encoder().encode


async def sleep_for(attempt: Attempt, n: int, ms: float) -> None:
    """Raises ConfigError."""
    if not 0 <= ms <= SLEEP_MS_MAX:
        message = f"a sleep takes 0 to {SLEEP_MS_MAX} ms, not {ms}"
        raise ConfigError(message)
    attempt.resting.begin()
    try:
        key = key_of("sleep", n)
        until_ms = 0
        for entry in await attempt.find(key, "sleep", "a sleep"):
            if entry.kind == "fired":
                return
            until_ms = entry.until_ms
        await attempt.ready()
        if not until_ms:
            until_ms = attempt.link.now_ms() + round(ms)
            attempt.exchange.put(Entry("timer", "sleep", n, until_ms=until_ms))
        if until_ms > attempt.link.now_ms():
            await attempt.park(attempt.loop.create_future(), until_ms)
        # Another machine's clock may be behind: what has fired once has fired.
        attempt.exchange.put(Entry("fired", "sleep", n))
    finally:
        attempt.resting.end()


async def drawn(attempt: Attempt, kind: str, n: int, form: Callable[[Any], T]) -> T:
    """`now` in milliseconds, `random` in [0, 1), `uuid` as text: drawn once, stored before it is given in its form."""
    attempt.resting.begin()
    try:
        for entry in await attempt.find(key_of(kind, n), "value", f"a value ({kind})"):
            return form(msgspec.json.decode(entry.value))
        await attempt.ready()
        value: Any
        if kind == "now":
            value = attempt.link.now_ms()
        elif kind == "random":
            value = int.from_bytes(secret_bytes(7), "big") / (1 << 56)
        else:
            value = str(UUID(bytes=secret_bytes(16), version=4))
        entry = await attempt.record(Entry("value", kind, n, value=msgspec.Raw(_encode(value))))
        return form(msgspec.json.decode(entry.value))
    finally:
        attempt.resting.end()


async def tell_progress(attempt: Attempt, n: int, message: str | None, percent: float | None, data: Any) -> None:
    """On its way when this returns; a replay does not repeat it. `n` is 0 inside a step: it is told when executed."""
    step = running_step.get()
    if n and await attempt.find(key_of("progress", n), "progress", "a progress"):
        return
    await _going_on(attempt)
    entry = Entry("progress", "progress" if n else "", n, message=message, percent=percent)
    if step is not None:
        entry.step = step.name
    if data is not None:
        entry.data = msgspec.Raw(_any.dump(data))
    attempt.exchange.put(entry)
    while attempt.exchange.crowded:
        await attempt.wait(attempt.exchange.flush())


async def emit_chunk(attempt: Attempt, data: Any) -> None:
    """On its way when this returns. Raises TooLarge when it, or the stream, has grown too large; Undecodable."""
    exchange = attempt.exchange
    step = running_step.get()
    if step is not None:
        step.chunks += 1
        raw = chunk_of(data, step.name, step.chunks)
    else:
        chunks = exchange.chunks
        chunks.own += 1
        n = chunks.own
        while not exchange.ledger.complete and n > exchange.replay.emitted:
            await attempt.wait(exchange.page())
        if n <= exchange.replay.emitted:
            return
        raw = chunk_of(data, "", n)
    await _going_on(attempt)
    exchange.chunks.add(raw)
    exchange.pump()
    while exchange.crowded:
        await attempt.wait(exchange.flush())


async def _going_on(attempt: Attempt) -> None:
    if running_step.get() is None:
        await attempt.ready()
    else:
        attempt.check()  # a step that runs is let through to its end, whatever waits for it


def moment(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)
