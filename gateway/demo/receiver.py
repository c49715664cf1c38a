"""The demo's webhook receiver: verifies signed callbacks, does what they ask for once, writes down what it did.

    MESH_WEBHOOK_SECRETS=whsec_...,whsec_... python -m gateway.demo.receiver --port N --ledger FILE [--lose-first]

What a receiver of at-least-once deliveries has to do: check the signature over the bytes as they came, take the
`webhook-id` for the name of the effect, do each effect once. With --lose-first the answer to the very first delivery is
lost after the effect was done, as when a receiver dies at the worst moment. Knows no mesh.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Literal, cast

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from mesh.clock import now_ms

BODY_BYTES_MAX: Final = 4 << 20
SECRETS: Final = "MESH_WEBHOOK_SECRETS"
TIMEOUT_S: Final = 10

Verdict = Literal["effect", "repeat", "refused"]


class Ledger:
    """What came, a JSON object a line: `{at_ms, webhook_id, verdict, type, subject}`. It survives a restart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._done = {entry["webhook_id"] for entry in read_ledger(path) if entry["verdict"] == "effect"}

    def take(self, webhook_id: str, event: dict[str, Any]) -> Verdict:
        """`effect` when the delivery is new, `repeat` when its effect was done before."""
        with self._lock:
            verdict: Verdict = "repeat" if webhook_id in self._done else "effect"
            self._write(webhook_id, verdict, event)
            self._done.add(webhook_id)
        return verdict

    def refuse(self, webhook_id: str) -> None:
        """A delivery that nobody who knows the secret has signed."""
        with self._lock:
            self._write(webhook_id, "refused", {})

    def _write(self, webhook_id: str, verdict: Verdict, event: dict[str, Any]) -> None:
        entry = {
            "at_ms": now_ms(),
            "webhook_id": webhook_id,
            "verdict": verdict,
            "type": event.get("type", ""),
            "subject": event.get("subject", ""),
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """All entries, in the order in which they came."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


class Receiver(ThreadingHTTPServer):
    """Takes POSTs on any path."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], secrets: list[str], ledger: Ledger, *, lose_first: bool) -> None:
        super().__init__(address, _Handler)
        self.webhooks = [Webhook(secret) for secret in secrets]
        self.ledger = ledger
        self._lose = threading.Event()
        if lose_first:
            self._lose.set()

    def loses(self) -> bool:
        """Whether this is the answer to lose; says so once."""
        lost = self._lose.is_set()
        self._lose.clear()
        return lost

    def verify(self, body: bytes, headers: dict[str, str]) -> dict[str, Any] | None:
        """The event of a genuine delivery, else None."""
        for webhook in self.webhooks:
            try:
                event = webhook.verify(body, headers)
            except (WebhookVerificationError, ValueError):
                continue
            return cast("dict[str, Any]", event) if isinstance(event, dict) else {}
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_S

    def do_POST(self) -> None:
        length = self.headers.get("content-length", "")
        if not length.isdigit() or int(length) > BODY_BYTES_MAX:
            self._answer(413)
            self.close_connection = True
            return
        body = self.rfile.read(int(length))
        headers = {name.lower(): value for name, value in self.headers.items()}
        webhook_id = headers.get("webhook-id", "")
        receiver = cast("Receiver", self.server)
        event = receiver.verify(body, headers)
        if event is None:
            receiver.ledger.refuse(webhook_id)
            self._answer(401)
        elif receiver.ledger.take(webhook_id, event) == "effect" and receiver.loses():
            self.close_connection = True  # done, and nobody hears of it
        else:
            self._answer(204)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in the standard library
        return


def main() -> None:
    parser = argparse.ArgumentParser(description="Verify signed callbacks and do each effect once.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--lose-first", action="store_true", help="lose the answer to the first delivery")
    arguments = parser.parse_args()
    secrets = [secret for secret in os.environ.get(SECRETS, "").split(",") if secret]
    if not secrets:
        parser.error(f"set {SECRETS} to the secrets of your namespaces; `mesh delivery secret` prints one")
    ledger = Ledger(arguments.ledger)
    with Receiver((arguments.host, arguments.port), secrets, ledger, lose_first=arguments.lose_first) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
