"""The examiner's process: one job after the other from standard input, replies to standard output.

It ends when its gateway does, and by the system's clock with a job that takes too long: no handler in Python would run
while the validator does.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import sys
from functools import lru_cache
from typing import BinaryIO, Final

import msgspec

from mesh.errors import Malformed
from mesh.wire import check_json, load_json
from registry.contracts.check import Contract
from registry.contracts.compare import TooComplex, compare
from registry.contracts.examiner import LENGTH_BYTES, Check, Compare, Differences, Read, Verdict

MEMORY_BYTES_MAX: Final = 1 << 30
SCHEMAS_KEPT: Final = 64
EXPLAIN_S: Final = 0.3


@lru_cache(maxsize=SCHEMAS_KEPT)
def _contract(schema: bytes) -> Contract:
    return Contract(msgspec.json.decode(schema))


def _check(job: Check) -> Verdict:
    try:
        return Verdict(_contract(job.schema).breaches(load_json(job.body), job.prefix, EXPLAIN_S))
    except Malformed as error:
        return Verdict([], error.detail)


def _read(job: Read) -> Verdict:
    try:
        check_json(job.body)
    except Malformed as error:
        return Verdict([], error.detail)
    return Verdict([])


def _done(job: Check | Read | Compare) -> Verdict | Differences:
    if isinstance(job, Check):
        return _check(job)
    return _read(job) if isinstance(job, Read) else _compare(job)


def _compare(job: Compare) -> Differences:
    try:
        return Differences(compare(msgspec.json.decode(job.sender), msgspec.json.decode(job.taker)))
    except (TooComplex, RecursionError):
        return Differences(None)


def _frame(stream: BinaryIO) -> bytes:
    head = stream.read(LENGTH_BYTES)
    return stream.read(int.from_bytes(head, "big")) if len(head) == LENGTH_BYTES else b""


def main() -> None:
    """Answer until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the gateway, which then closes the pipe
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    while frame := _frame(sys.stdin.buffer):
        job = msgspec.msgpack.decode(frame, type=Check | Read | Compare)
        signal.setitimer(signal.ITIMER_REAL, job.time_ms / 1000)
        reply = msgspec.msgpack.encode(_done(job))
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.buffer.write(len(reply).to_bytes(LENGTH_BYTES, "big") + reply)
        sys.stdout.buffer.flush()
