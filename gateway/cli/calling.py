"""One call of `mesh call` on the wire: started under its key, waited for, asked again when an answer is lost.

Knows requests and records; options and input are call.py, what became of it is outcome.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from gateway.cli.exits import Exit, Problem
from gateway.cli.outcome import finish
from gateway.cli.show import Show
from gateway.cli.wire import Gateway, Reply, Unreached
from mesh.blob import OCTETS, Blob
from mesh.client.patience import Patience, lacks_failure
from mesh.clock import monotonic_s, pause
from mesh.errors import MeshError, TooMany, Unavailable
from mesh.wire.digests import digest_field

if TYPE_CHECKING:
    from mesh.client.order import Record

POLL_S: Final = 20.0
POLL_GRACE_S: Final = 10.0
REPEAT_S: Final = 0.5
SLOWEST_BYTES_PER_S: Final = 4 << 20


class Calling:
    """One call, from its start to what is known when the wait is over."""

    def __init__(
        self, gateway: Gateway, show: Show, key: str, wait_s: float, *, given: bool, output: Path | None
    ) -> None:
        self._gateway = gateway
        self._show = show
        self._key = key
        self._given = given
        self._wait_s = wait_s
        self._until_s = monotonic_s() + wait_s
        self._told = False
        self._id = ""
        self._patience = Patience(show.note)
        self._output = output
        self._headers: dict[str, str] = {}
        self._sending_s = 0.0
        self._unsure = False
        """A request of this call may have arrived without its answer: the operation of that key may be its own."""

    def describe(self, fields: dict[str, Any], blob: Blob) -> None:
        """The input is a file: the order goes in a header (P391)."""
        self._headers = {
            "mesh-start": json.dumps(fields),
            "content-type": blob.content_type or OCTETS,
            "content-length": str(blob.size),
            "content-digest": digest_field(blob.sha256),
        }
        self._sending_s = blob.size / SLOWEST_BYTES_PER_S

    def run(self, body: bytes | Blob) -> None:
        """Raises Problem for every end but success, Ctrl-C among them."""
        try:
            self._run(body)
        except KeyboardInterrupt:
            raise self._interrupted() from None

    def _interrupted(self) -> Problem:
        detail, mend = "interrupted; it may be under way", f"Repeat with --key {self._key}: it is the same operation."
        if self._id:
            detail = f"interrupted; operation {self._id} goes on"
            mend = f"`mesh operation watch {self._id}` shows how, `mesh operation cancel {self._id}` ends it."
        extra = {"operation_id": self._id, "idempotency_key": self._key}
        return Problem(detail, mend, exit_code=Exit.INTERRUPTED, code="interrupted", extra=extra)

    def _run(self, body: bytes | Blob) -> None:
        reply = self._start(body)
        record = reply.json()
        self._id = record["id"]
        replayed = reply.headers.get("idempotency-replayed") == "true"
        if reply.status == 202 and self._wait_s > 0:  # noqa: PLR2004
            # The 202 says least; what is told of an operation that still runs is worth one more look.
            self._say_why(record)
            record = self._wait(record["id"]) or self._look(record)
        if replayed and self._given and not self._unsure:
            self._show.note(f"the key was used before: this is the operation of that time, {record['id']}")
        finish(self._gateway, self._show, record, waited_s=self._wait_s, output=self._output)

    def _start(self, body: bytes | Blob) -> Reply:
        """Accepted, or a refusal. A lost answer is asked for again: the key makes that safe."""
        wait_s = self._patience.poll_s(min(self._wait_s, POLL_S))
        patience = f"wait={max(1, round(wait_s))}" if wait_s > 0 else "respond-async"
        headers = {**self._headers, "idempotency-key": self._key, "prefer": patience}
        timeout_s = min(self._wait_s, POLL_S) + POLL_GRACE_S + self._sending_s
        while True:
            try:
                return self._gateway.ask("POST", "/v1/operations", body=body, headers=headers, timeout_s=timeout_s)
            except (Unavailable, TooMany) as error:
                if (isinstance(error, Unreached) and not error.sent and not self._told) or self._over():
                    raise self._with_key(error) from None
                self._unsure |= not isinstance(error, Unreached) or error.sent
                self._again(error)

    def _wait(self, operation_id: str) -> dict[str, Any] | None:
        """The record once the operation ended, or None when the wait is over."""
        while (left_s := self._until_s - monotonic_s()) > 0:
            wait_s = self._patience.poll_s(min(left_s, POLL_S))
            try:
                reply = self._gateway.ask(
                    "GET",
                    f"/v1/operations/{operation_id}/result",
                    query={"wait": f"{wait_s:.3f}"},
                    headers={"range": "bytes=0-0"},  # of a large result, a byte is enough to know that it is there
                    timeout_s=wait_s + POLL_GRACE_S,
                )
                if reply.status != 202:  # noqa: PLR2004
                    return self._gateway.get(f"/v1/operations/{operation_id}")
                self._say_why(reply.json())
            except Unavailable as error:
                if self._over():
                    raise self._with_key(error) from None
                self._again(error)
        return None

    def _look(self, record: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._gateway.get(f"/v1/operations/{record['id']}")
        except Unavailable:
            return record

    def _say_why(self, record: dict[str, Any]) -> None:
        """After a while, a line about what it waits for."""
        if self._patience.due(seen := cast("Record", record)):
            self._patience.look(cast("Record", self._look(record)) if lacks_failure(seen) else seen)

    def _over(self) -> bool:
        return monotonic_s() + REPEAT_S >= self._until_s

    def _again(self, error: MeshError) -> None:
        if not self._told:
            self._show.note(f"{error.detail}; asking again")
            self._told = True
        pause(REPEAT_S)

    def _with_key(self, error: MeshError) -> MeshError:
        if isinstance(error, Unreached) and not error.sent and not self._told:
            return error
        return type(error)(f"{error.detail}. Repeat with --key {self._key}: it is the same operation", **_sent(error))


def _sent(error: MeshError) -> dict[str, Any]:
    return {"sent": error.sent} if isinstance(error, Unreached) else {"code": error.code}
