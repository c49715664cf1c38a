"""The load: a closed loop over plain sockets, one process. `python -m bench.generator`, one line of JSON on stdin.

Each of `concurrency` callers starts an operation, waits for its end, checks it, starts the next. The end is the answer,
or with a tap the callback that the receiver took. Says `begin` and `end` on stdout at the borders of the measured
window, so that whoever meters the other processes does so at the same moments, then `result`.

It shares the machine with what it measures, hence no event loop, no pool and no parser: of one caller's latency those
would be a tenth.
"""

from __future__ import annotations

import re
import selectors
import socket
import sys
from array import array
from typing import Any, Final, cast

import msgspec

from bench.work import KEY_CHARS, Surface, Wrong, key_of, surface_of
from mesh.clock import monotonic_s, now_ms
from mesh.pool import Reply, Target

TIMEOUT_S: Final = 60.0
LOOK_S: Final = 1.0
"""Between looks at whose time is over."""
ERRORS_MAX: Final = 100
"""So many wrong answers and the run is over: what would be measured is something else."""
ERRORS_SHOWN_MAX: Final = 5
READ_BYTES: Final = 1 << 16

_length = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)\r\n", re.IGNORECASE).search
_operation = re.compile(rb"\r\nmesh-operation-id:[ \t]*([^\r]+)\r\n", re.IGNORECASE).search


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


class Caller:
    """One connection and the call on it. `operation`: which its answer named; `told`: which its callback did."""

    __slots__ = ("begun_s", "key", "operation", "rest", "socket", "told")

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.key = self.operation = self.told = self.rest = b""
        self.begun_s = 0.0


class Generator:
    """One run."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._surface: Surface = surface_of(load.surface, **load.where)
        self._target = Target.parse(load.url)
        self._around_key = _around_key(self._surface, self._target)
        self._selector = selectors.DefaultSelector()
        self._calling: dict[bytes, Caller] = {}
        """Who waits for an end, by key."""
        self._lines = b""
        self._repeats = 0
        self._issued = 0
        self._over = False
        self._counting = False
        self._answered = 0
        self._operations: set[bytes] = set()
        self._latencies_s = array("d")
        self._errors: list[str] = []

    def run(self) -> Result:
        """Generate it all. Raises OSError where nobody listens."""
        load = self._load
        try:
            if load.tap:
                tap = socket.socket(socket.AF_UNIX)
                self._selector.register(tap, selectors.EVENT_READ, lambda: self._hear(tap))
                tap.connect(load.tap)
            for caller in [self._connected() for _ in range(load.concurrency)]:
                self._next(caller)
            self._turns(load.warmup_s)
            self._counting = True
            begin_s, begin_ms = monotonic_s(), now_ms()
            _say({"event": "begin"})
            if load.count:
                self._turns(None)
            else:
                self._turns(load.seconds)
                # On a machine that is busy with other things a short window may end before anything in it does.
                self._turns(TIMEOUT_S, least=load.concurrency)
            self._counting = False
            window_s, end_ms = monotonic_s() - begin_s, now_ms()
            _say({"event": "end"})
            self._over = True
            self._turns(None)
        finally:
            for key in list(self._selector.get_map().values()):
                cast("socket.socket", key.fileobj).close()
            self._selector.close()
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
            repeats=self._repeats,
        )

    def _turns(self, seconds: float | None, least: int | None = None) -> None:
        """Serve the callers so long, or until all have ended, or `least` latencies are there."""
        end_s = None if seconds is None else monotonic_s() + seconds
        look_s = monotonic_s() + LOOK_S
        while self._calling and (least is None or len(self._latencies_s) < least):
            now_s = monotonic_s()
            if end_s is not None and now_s >= end_s:
                return
            wait_s = LOOK_S if end_s is None else min(LOOK_S, end_s - now_s)
            for key, _ in self._selector.select(wait_s):
                key.data()
            if now_s > look_s:
                look_s = now_s + LOOK_S
                for caller in [one for one in self._calling.values() if one.begun_s + TIMEOUT_S < now_s]:
                    self._broken(caller, f"no end within {TIMEOUT_S:g} s")

    # One caller

    def _connected(self) -> Caller:
        connected = socket.create_connection((self._target.host, self._target.port), TIMEOUT_S)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        caller = Caller(connected)
        self._selector.register(connected, selectors.EVENT_READ, lambda: self._read(caller))
        return caller

    def _next(self, caller: Caller) -> None:
        load = self._load
        if self._over or len(self._errors) >= ERRORS_MAX or 0 < load.count <= self._issued:
            return
        self._issued += 1
        caller.key = key = key_of(load.tag, self._issued)
        caller.operation = caller.told = caller.rest = b""
        self._calling[key] = caller  # first: the callback may overtake the 202
        caller.begun_s = monotonic_s()
        try:
            caller.socket.sendall(key.join(self._around_key))
        except OSError as error:
            self._broken(caller, str(error))

    def _read(self, caller: Caller) -> None:
        try:
            read = caller.socket.recv(READ_BYTES)
            caller.rest += read
            reply = _reply(caller.rest)
            if reply is not None:
                caller.operation = self._surface.check(caller.key, reply)
        except (OSError, Wrong) as error:
            self._broken(caller, str(error))
            return
        if reply is not None and (caller.told or not self._load.tap):
            self._ended(caller)
        elif not read:
            self._broken(caller, "the connection ended before the answer")

    def _ended(self, caller: Caller) -> None:
        del self._calling[caller.key]
        if caller.told not in (b"", caller.operation):
            self._errors.append(f"the callback of {caller.told!r} came for the key of {caller.operation!r}")
        else:
            if self._counting:
                self._latencies_s.append(monotonic_s() - caller.begun_s)
            self._answered += 1
            self._operations.add(caller.operation)
        self._next(caller)

    def _broken(self, caller: Caller, why: str) -> None:
        """Its call came to nothing; what would still come on this connection is not the next one's."""
        self._errors.append(why)
        self._calling.pop(caller.key, None)
        self._selector.unregister(caller.socket)
        caller.socket.close()
        if len(self._errors) < ERRORS_MAX and not self._over:
            self._next(self._connected())

    # The tap

    def _hear(self, tap: socket.socket) -> None:
        read = tap.recv(READ_BYTES)
        if not read:
            raise ConnectionError("the receiver is gone")
        *lines, self._lines = (self._lines + read).split(b"\n")
        for line in lines:
            key, _, operation = line.partition(b" ")
            caller = self._calling.get(key)
            if key == b"!":
                # It may be anybody's: all who wait hear of it, so that the run ends now.
                for waiting in list(self._calling.values()):
                    self._broken(waiting, f"the receiver refused a callback: {operation.decode()}")
            elif caller is None or caller.told:
                self._repeats += 1  # at least once: a second delivery is right, and worth knowing
            else:
                caller.told = operation
                if caller.operation:
                    self._ended(caller)


def percentile(ordered: list[float], share: float) -> float:
    """The value that `share` of `ordered` do not exceed; 0 of nothing."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def _around_key(surface: Surface, target: Target) -> list[bytes]:
    """A request without the key, cut where that stands."""
    key = b"?" * KEY_CHARS
    headers, body = surface.request(key)
    lines = [b"%b: %b\r\n" % header for header in [*headers, (b"content-length", b"%d" % len(body))]]
    return b"".join((b"POST ", target.under(surface.path), target.tail, *lines, b"\r\n", body)).split(key)


def _reply(data: bytes) -> Reply | None:
    """The answer, of whose headers only the operation's id is wanted; None: more of it is to come. Raises Wrong."""
    end = data.find(b"\r\n\r\n") + 4
    if end < 4:
        return None
    length = _length(data, 0, end)
    if length is None:
        raise Wrong(f"answered without Content-Length: {data[:end]!r}")
    if len(data) < end + int(length[1]):
        return None
    if len(data) > end + int(length[1]):
        raise Wrong(f"answered more than it said: {data!r}")
    operation = _operation(data, 0, end)
    headers = [(b"mesh-operation-id", operation[1])] if operation else []
    return Reply(int(data[9:12]), headers, data[end:])


def _say(event: dict[str, Any]) -> None:
    print(msgspec.json.encode(event).decode(), flush=True)


def main() -> None:
    """Read the load, generate it, say what came of it."""
    load = msgspec.json.decode(sys.stdin.buffer.readline(), type=Load)
    _say({"event": "result", **msgspec.structs.asdict(Generator(load).run())})


if __name__ == "__main__":
    main()
