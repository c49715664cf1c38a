"""An agent without the SDK, as a process: `python -m tests.registry_truth.stub CONFIG.json`.

It does what the file `mode` in its directory says: `ok`; `hang` (it takes connections and says nothing, while its
heartbeats go on); `sick` (operations fail, /healthz does not); `long` (201, then heartbeats for its work); `mute` (no
heartbeats). What it was sent is appended to `calls`, one JSON line each.
"""

from __future__ import annotations

import json
import sys
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mesh.clock import pause

CONFIG: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
DIRECTORY = Path(CONFIG["directory"])
LEASE_MS = 1_000


def mode() -> str:
    return (DIRECTORY / "mode").read_text()


def say(method: str, path: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(  # noqa: S310 - the test's own gateway
        CONFIG["gateway"] + path, json.dumps(body).encode(), {"content-type": "application/json"}, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=2) as reply:  # noqa: S310
            reply.read()
    except OSError:
        pass  # the gateway is away; the next one may be heard


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        while mode() == "hang":
            pause(0.02)
        self._answer(200, b"ok")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        canary = self.headers.get("mesh-canary", "")
        with (DIRECTORY / "calls").open("a") as calls:
            one = {"id": self.headers.get("mesh-operation-id"), "canary": canary, "input": body.decode()}
            calls.write(json.dumps(one) + "\n")
        while mode() == "hang":
            pause(0.02)
        now = mode()
        if now == "sick":
            self._answer(424, b'{"message": "the disk is full"}', [("nexus-operation-state", "failed")])
        elif now == "long" and not canary:
            token = self.headers.get("nexus-callback-token", "")
            threading.Thread(target=keep_up, args=(token,), daemon=True).start()
            self._answer(201, b'{"token": "t", "state": "running"}', [("mesh-lease-ms", str(LEASE_MS))])
        else:
            self._answer(200, json.dumps(CONFIG["instance"]).encode())

    def _answer(self, status: int, body: bytes, headers: list[tuple[str, str]] | None = None) -> None:
        try:
            self.send_response(status)
            for name, value in [("content-type", "application/json"), *(headers or [])]:
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            pass  # the other side gave up waiting

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base class calls it
        pass


def keep_up(token: str) -> None:
    while True:
        say("POST", "/v1/tasks/heartbeat", {"tasks": [{"token": token}]})
        pause(LEASE_MS / 4000)


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", CONFIG["port"]), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    lease = {"url": f"http://127.0.0.1:{server.server_address[1]}", "ttl_ms": CONFIG["ttl_ms"]}
    if CONFIG.get("version"):
        lease["version"] = CONFIG["version"]
    path = f"/v1/endpoints/{CONFIG['endpoint']}/instances/{CONFIG['instance']}"
    say("PUT", path, lease | {"fresh": True})
    (DIRECTORY / "ready").write_text("")
    while True:
        pause(CONFIG["ttl_ms"] / 4000)
        if mode() != "mute":
            say("PUT", path, lease)


if __name__ == "__main__":
    main()
