"""`python -m tests.surface.serve SETTINGS.json DIRECTORY`: `gateway.server.dev` as a process of its own.

Prints one JSON line when it is ready, and one line on standard error when it cannot start, as the command line does.
"""

from __future__ import annotations

import ctypes
import json
import logging
import signal
import socket
import sys
from pathlib import Path

from gateway.server import dev
from gateway.settings import Settings
from mesh.errors import MeshError


def main() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed test run leaves nothing behind
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    tables = json.loads(Path(sys.argv[1]).read_text())
    with socket.create_server(("127.0.0.1", 0)) as probe:
        tables.setdefault("gateway", {}).setdefault("port", probe.getsockname()[1])
    settings = Settings.model_validate({"egress": {"allow_loopback": True}} | tables)
    try:
        dev(settings, Path(sys.argv[2]), ready=lambda: say(json.dumps({"port": settings.gateway.port})))
    except MeshError as error:
        raise SystemExit(error.detail) from None


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
