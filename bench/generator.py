"""The load: a closed loop over our own pool, one process. `python -m bench.generator`, one line of JSON on stdin.

Each of `concurrency` callers starts an operation, waits for its end, checks it, starts the next. The end is the answer,
or with a tap the callback that the receiver took. Says `begin` and `end` on stdout at the borders of the measured
window, so that whoever meters the other processes does so at the same moments, then `result`.
"""

from __future__ import annotations

import asyncio
import sys
from array import array
from typing import Any, Final

import msgspec
import uvloop

from bench.work import Surface, Wrong, key_of, surface_of
from mesh.clock import monotonic_s, now_ms, sleep
from mesh.errors import MeshError
from mesh.pool import Pool, Target

TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.05
ERRORS_MAX: Final = 100
"""So many wrong answers and the run is over: what would be measured is something else."""
ERRORS_SHOWN_MAX: Final = 5


class Load(msgspec.Struct, kw_only=True):
    """What to generate: for `seconds` after `warmup_s`, or `count` operations when that is not 0.

    The window is longer where not as many operations as there are callers ended in it, up to TIMEOUT_S.

    surface, where  the arguments of work.surface_of
    tap             unix socket of the receiver: an operation ends with its callback
    """

    url: str
    tag: str
    surface: str
    where: dict[str, Any]
    concurrency: int
    seconds: float = 0
    warmup_s: float = 0
    count: int = 0
    tap: str = ""


class Result(msgspec.Struct, kw_only=True):
    """`ops` and latencies: of the window, which lasted `window_s`; `answered`: in all; times are wall clock ms."""

    ops: int
    answered: int
    unique: int
    window_s: float
    begin_ms: int
    end_ms: int
    p50_ms: float
    p99_ms: float
    errors: int
    samples: list[str]
    repeats: int = 0


class Callbacks(asyncio.Protocol):
    """The tap: which operations' callbacks arrived."""

    def __init__(self) -> None:
        self.waiting: dict[bytes, asyncio.Future[bytes]] = {}
        self.repeats = 0
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            key, _, operation = line.partition(b" ")
            future = self.waiting.get(key)
            if key == b"!":
                self._refused(operation)
            elif future is None or future.done():
                self.repeats += 1  # at least once: a second delivery is right, and worth knowing
            else:
                future.set_result(operation)

    def _refused(self, reason: bytes) -> None:
        """A callback that is wrong may be anybody's: all who wait hear of it, so that the run ends now."""
        for future in self.waiting.values():
            if not future.done():
                future.set_exception(Wrong(f"the receiver refused a callback: {reason.decode()}"))


class Generator:
    """One run."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._surface: Surface = surface_of(load.surface, **load.where)
        self._target = Target.parse(load.url)
        self._path = self._target.under(self._surface.path)
        self._pool = Pool(max_per_host=load.concurrency)
        self._callbacks = Callbacks() if load.tap else None
        self._issued = 0
        self._over = False
        self._counting = False
        self._answered = 0
        self._operations: set[bytes] = set()
        self._latencies_s = array("d")
        self._errors: list[str] = []

    async def run(self) -> Result:
        load = self._load
        loop = asyncio.get_running_loop()
        if self._callbacks is not None:
            callbacks = self._callbacks
            await loop.create_unix_connection(lambda: callbacks, load.tap)
        callers = [loop.create_task(self._caller()) for _ in range(load.concurrency)]
        await sleep(load.warmup_s)
        self._counting = True
        begin_s, begin_ms = monotonic_s(), now_ms()
        _say({"event": "begin"})
        if load.count:
            await asyncio.wait(callers)
        else:
            await asyncio.wait(callers, timeout=load.seconds)
            # On a machine that is busy with other things a short window may end before anything in it does.
            end_s = monotonic_s() + TIMEOUT_S
            while len(self._latencies_s) < load.concurrency and monotonic_s() < end_s:
                if not (await asyncio.wait(callers, timeout=POLL_S))[1]:
                    break
        self._counting = False
        window_s, end_ms = monotonic_s() - begin_s, now_ms()
        _say({"event": "end"})
        self._over = True
        await asyncio.gather(*callers)
        await self._pool.close()
        latencies_s = sorted(self._latencies_s)
        return Result(
            ops=len(latencies_s),
            answered=self._answered,
            unique=len(self._operations),
            window_s=window_s,
            begin_ms=begin_ms,
            end_ms=end_ms,
            p50_ms=percentile(latencies_s, 0.50) * 1000,
            p99_ms=percentile(latencies_s, 0.99) * 1000,
            errors=len(self._errors),
            samples=self._errors[:ERRORS_SHOWN_MAX],
            repeats=self._callbacks.repeats if self._callbacks else 0,
        )

    async def _caller(self) -> None:
        load = self._load
        while not self._over and len(self._errors) < ERRORS_MAX and not 0 < load.count <= self._issued:
            self._issued += 1
            key = key_of(load.tag, self._issued)
            begun_s = monotonic_s()
            try:
                operation = await self._call(key) if self._callbacks is None else await self._call_back(key)
            except (MeshError, TimeoutError) as error:
                self._errors.append(f"{type(error).__name__}: {error}")
                continue
            if self._counting:
                self._latencies_s.append(monotonic_s() - begun_s)
            self._answered += 1
            self._operations.add(operation)

    async def _call(self, key: bytes) -> bytes:
        headers, body = self._surface.request(key)
        reply = await self._pool.post(self._target, self._path, headers, body, timeout_s=TIMEOUT_S)
        return self._surface.check(key, reply)

    async def _call_back(self, key: bytes) -> bytes:
        assert self._callbacks is not None
        loop = asyncio.get_running_loop()
        arrived = self._callbacks.waiting[key] = loop.create_future()  # first: the callback may overtake the 202
        timer = loop.call_later(TIMEOUT_S, _give_up, arrived)
        try:
            operation = await self._call(key)
            told = await arrived
        finally:
            timer.cancel()
            del self._callbacks.waiting[key]
        if told != operation:
            raise Wrong(f"the callback of {told!r} came for the key of {operation!r}")
        return operation


def percentile(ordered: list[float], share: float) -> float:
    """The value that `share` of `ordered` do not exceed; 0 of nothing."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def _give_up(arrived: asyncio.Future[bytes]) -> None:
    if not arrived.done():
        arrived.set_exception(TimeoutError(f"no callback within {TIMEOUT_S:g} s"))


def _say(event: dict[str, Any]) -> None:
    print(msgspec.json.encode(event).decode(), flush=True)


def main() -> None:
    """Read the load, generate it, say what came of it."""
    load = msgspec.json.decode(sys.stdin.buffer.readline(), type=Load)
    result = uvloop.run(Generator(load).run())
    _say({"event": "result", **msgspec.structs.asdict(result)})


if __name__ == "__main__":
    main()
