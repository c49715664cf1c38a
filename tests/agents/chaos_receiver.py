"""A callback receiver of the chaos runs, in a process of its own: verifies, records, and is at times a bad receiver.

    python -m tests.agents.chaos_receiver --process receiver.1 --port 9100 --path /cb/7 --history F --secret whsec_...

Only what is sent to `path` counts: the port may have been another test's a moment ago, whose gateway still knocks.

One delivery in six is refused with 503 at first, one in twelve is taken and answered 500 (the sender cannot know), one
in twelve is slow. Which one is decided by the webhook id, so that every try of a delivery is treated by plan. Only the
first generation is that bad: one that refused anew after each of its deaths would drive back-offs beyond the run.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

from mesh.clock import now_ms, sleep
from mesh.errors import MeshError
from mesh.tokens import verify_webhook
from tests.chaos.history import Kind, Recorder, What, digest

SLOW_S = 0.3
PLANS = 12


class Receiver:
    """ASGI. `tries` counts what this process has seen of each delivery."""

    def __init__(self, record: Recorder, secret: str, path: str) -> None:
        self._path = path
        self._bad = record.process.endswith(".1")
        self._record = record
        self._secret = secret
        self._tries: Counter[str] = Counter()

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if scope["path"] != self._path:
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        webhook_id = headers.get("webhook-id", "")
        self._tries[webhook_id] += 1
        plan = blake2b(webhook_id.encode()).digest()[0] % PLANS
        first = self._bad and self._tries[webhook_id] == 1
        if plan == 0:
            await sleep(SLOW_S)
        status = 503 if first and plan in (1, 2) else 500 if first and plan == 3 else 200
        self._receive(webhook_id, headers, body, status)
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    def _receive(self, webhook_id: str, headers: dict[str, str], body: bytes, status: int) -> None:
        try:
            signed = verify_webhook(self._secret, headers, body) == webhook_id
        except MeshError:
            signed = False
        told = _cloud_event(body) if "cloudevents" in headers.get("content-type", "") else _nexus(headers, body)
        age_s = now_ms() // 1000 - int(headers.get("webhook-timestamp", 0))
        detail = {"signature": signed, "age_s": age_s}
        self._record(Kind.INFO, What.RECEIVED, request_id=webhook_id, status=status, detail=detail, **told)


def _nexus(headers: dict[str, str], body: bytes) -> dict[str, str]:
    return {
        "op": headers.get("nexus-operation-token", ""),
        "state": headers.get("nexus-operation-state", ""),
        "digest": digest(body),
    }


def _cloud_event(body: bytes) -> dict[str, str]:
    event = msgspec.json.decode(body)
    data = event["data"]
    # The event carries the record, so the result's own bytes are made again; handlers write compact JSON.
    result = digest(msgspec.json.encode(data["result"])) if "result" in data else ""
    return {"op": event["subject"], "state": data["state"], "digest": result}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("process", "port", "path", "history", "secret"):
        parser.add_argument(f"--{name}", required=True)
    given = parser.parse_args()
    receiver = Receiver(Recorder(Path(given.history), given.process), given.secret, given.path)
    uvicorn.run(
        receiver, host="127.0.0.1", port=int(given.port), log_level="warning", access_log=False, lifespan="off",
        ws="none", timeout_keep_alive=75,
    )  # fmt: skip


if __name__ == "__main__":
    main()
