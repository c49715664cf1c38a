"""Ports for tests: none that the system gives to others, none twice in a run of this worker.

A port that was free a moment ago is soon a listener's of some other test: a server that is told its port, or comes back
to it, would not get it; who looks after a dead agent, or sends it what it never answered, would reach a stranger.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

LOWEST = 10_000
WORKERS_MAX = 8
ROUNDS_MAX = 4
_SYSTEM = Path("/proc/sys/net/ipv4/ip_local_port_range")


def lasting_port() -> int:
    """A port of 127.0.0.1 at which nobody listens."""
    with _turn:
        return next(_free)


def _found() -> Iterator[int]:
    for port in _own():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port
    while True:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            yield probe.getsockname()[1]


def _own() -> Iterator[int]:
    """The share of this worker of what lies below the system's own, from somewhere in it: other runs have the same."""
    above = int(_SYSTEM.read_text().split()[0]) if _SYSTEM.exists() else 0
    share = (above - LOWEST) // WORKERS_MAX
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw7").removeprefix("gw")
    begin = LOWEST + int(worker) % WORKERS_MAX * share
    for number in range(ROUNDS_MAX * share):
        yield begin + (os.getpid() * 101 + number) % share


_free = _found()
_turn = threading.Lock()
