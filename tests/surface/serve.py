"""`python -m tests.surface.serve SETTINGS.json DIRECTORY [PORT]`: a gateway as a process of its own.

`gateway.server.dev`, or with a store URL in the settings `gateway.server.serve`. Prints one JSON line when it is ready,
and one line on standard error when it cannot start, as the command line does.
"""

from __future__ import annotations

import ctypes
import json
import logging
import signal
import sys
from pathlib import Path

from gateway.server import dev, serve
from gateway.settings import Settings
from mesh.errors import MeshError
from tests.ports import lasting_port


def main() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed test run leaves nothing behind
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    tables = json.loads(Path(sys.argv[1]).read_text())
    tables.setdefault("gateway", {}).setdefault("port", int(sys.argv[3]) if len(sys.argv) > 3 else lasting_port())
    settings = Settings.model_validate({"egress": {"allow_loopback": True}} | tables)

    def ready() -> None:
        say(json.dumps({"port": settings.gateway.port}))

    try:
        if settings.store.url:
            serve(settings, ready=ready)
        else:
            dev(settings, Path(sys.argv[2]), ready=ready)
    except MeshError as error:
        raise SystemExit(error.detail) from None


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
