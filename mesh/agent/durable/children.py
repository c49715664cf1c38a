"""Starting and ending child operations over HTTP, for the attempts of one process.

The API key goes to configured gateways only: the gateway of a task is whatever its callback URL says.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec

from mesh.agent.durable.hub import JSON_HEADER, RETRY_FIRST_MS, RETRY_MAX_MS, RETRY_SPREAD, Address
from mesh.agent.durable.link import Child, ChildOrder
from mesh.client.errors import refusal
from mesh.clock import sleep
from mesh.errors import MeshError, PeerFault, Refusal, TooMany
from mesh.ids import jittered
from mesh.pool import POOL_CLOSED, Pool, Reply, Target
from mesh.wire import RawHeader

TIMEOUT_S: Final = 10.0
REPLY_BYTES_MAX: Final = 8 << 20
CANCEL_TRIES_MAX: Final = 10
PATH: Final = b"/v1/operations"

logger: Final = logging.getLogger("mesh.agent")


class _Record(msgspec.Struct):
    id: str
    blocked: str | None = None


_read: Final = msgspec.json.Decoder(_Record).decode
_write: Final = msgspec.json.Encoder().encode


class Children:
    """`key`: the agent's API key; the children belong to its namespace."""

    def __init__(self, pool: Pool, gateways: Sequence[Target], key: str | None) -> None:
        self._pool = pool
        self._gateways = gateways
        self._key = key
        self._trusted = {(target.origin, target.path) for target in gateways}

    async def start(self, address: Address, order: ChildOrder) -> Child:
        """Start it, or find it; repeated until a gateway answers. Raises Refusal; code `lease_lost`: no longer ours."""
        delay_ms = RETRY_FIRST_MS
        headers: list[RawHeader] = [(b"idempotency-key", order.key.encode()), (b"prefer", b"respond-async")]
        trouble: object = ""
        while True:
            parent = {"token": address.token, "key": order.parent_key, "on_close": "keep" if order.keep else "cancel"}
            body = _write(_order(order, parent))
            for target in self._targets(address):
                try:
                    reply = await self._post(target, PATH, headers, body)
                    if reply.status in (200, 202):
                        record = _read(reply.body)
                        return Child(record.id, record.blocked)
                    why: MeshError = refusal(reply.status, reply.body, _retry_after_s(reply))
                    if isinstance(why, Refusal) and not isinstance(why, TooMany):
                        raise why
                    delay_ms = max(delay_ms, _retry_after_s(reply) * 1000)
                except PeerFault as fault:
                    if fault.code == POOL_CLOSED:
                        raise
                    why = fault
                except msgspec.MsgspecError:
                    why = PeerFault(f"{target.origin} answered something else")
                if str(why) != str(trouble):
                    trouble = why
                    logger.warning("child %s is not started yet: %s", order.key, why)
            await sleep(jittered(delay_ms, RETRY_SPREAD) / 1000)
            delay_ms = min(delay_ms * 2, RETRY_MAX_MS)

    async def cancel(self, address: Address, operation_id: str) -> None:
        """Ask for its end; tried a while, never raises. The store ends it with its parent in any case."""
        delay_ms = RETRY_FIRST_MS
        for _ in range(CANCEL_TRIES_MAX):
            for target in self._targets(address):
                try:
                    reply = await self._post(target, b"%b/%b/cancel" % (PATH, operation_id.encode()), [], b"")
                except PeerFault:
                    continue
                if reply.status < 500 and reply.status != TooMany.status:  # noqa: PLR2004
                    return
            await sleep(jittered(delay_ms, RETRY_SPREAD) / 1000)
            delay_ms = min(delay_ms * 2, RETRY_MAX_MS)
        logger.warning("child %s could not be asked to end", operation_id)

    def _targets(self, address: Address) -> list[Target]:
        first = address.gateway
        if self._key is not None and (first.origin, first.path) not in self._trusted:
            return list(self._gateways)
        return [first, *(each for each in self._gateways if each.origin != first.origin)]

    async def _post(self, target: Target, path: bytes, headers: list[RawHeader], body: bytes) -> Reply:
        sent = [JSON_HEADER, *headers]
        if self._key is not None:
            sent.append((b"authorization", f"Bearer {self._key}".encode("latin-1")))
        return await self._pool.post(
            target, target.under(path), sent, body, timeout_s=TIMEOUT_S, reply_bytes_max=REPLY_BYTES_MAX
        )


def _order(order: ChildOrder, parent: dict[str, str]) -> dict[str, Any]:
    body: dict[str, Any] = {
        "endpoint": order.endpoint,
        "service": order.service,
        "operation": order.operation,
        "parent": parent,
    }
    if order.body is not None:
        body["input"] = msgspec.Raw(order.body)
    if order.timeout_ms is not None:
        body["timeouts"] = {"schedule_to_close_ms": order.timeout_ms}
    if order.labels:
        body["labels"] = cast("dict[str, str]", order.labels)
    return body


def _retry_after_s(reply: Reply) -> int:
    value = (reply.header(b"retry-after") or b"").decode("latin-1")
    return min(int(value), 30) if value.isascii() and value.isdigit() and len(value) < 7 else 0  # noqa: PLR2004
