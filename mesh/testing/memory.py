"""A mesh for one operation, in memory: its journal, its stream, its children, its time. The test kit's side of a Link.

Says the same as the gateway's verbs do (specs/protocol.md): appends are fenced and compared, a suspension wakes by
time, by a child's end or by a cancel. Can be told to lose the process at any of its moments.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

from nexusrpc import OperationError, OperationErrorState

from mesh.agent.codec import JSON, Codec
from mesh.agent.durable.blobs import Reference
from mesh.agent.durable.link import Ack, Child, ChildOrder, Page
from mesh.blob import OCTETS, Blob
from mesh.clock import sleep
from mesh.errors import BlobMissing, NotFound, Refusal
from mesh.ids import short_id
from mesh.wire.digests import digest_field

A = TypeVar("A", Ack, Page)

BEGIN_MS: Final = 1_893_456_000_000
"""2030-01-01: the virtual time at which every test begins."""
PUT_OFF_MS: Final = 1_000
CHILD_BYTES: Final = 2 << 20
"""Longer results of children are referred to."""
_any: Final = Codec(Any)


class MemoryMesh:
    """`children`: what called operations answer, by `endpoint/service/operation`: a value, exception, function."""

    def __init__(self, children: Mapping[str, Any], cancel_after_s: float | None) -> None:
        self.operation_id = f"00-{short_id('test')}"
        self.journal: list[bytes] = []
        self.chunks: list[bytes] = []
        self.blobs: dict[str, bytes] = {}
        """What stands outside the journal, by SHA-256."""
        self.attempt = 0
        self.suspended = False
        self.canceling = False
        self.started: dict[str, tuple[str, str]] = {}
        """Children by idempotency key: id and name."""
        self.missing: dict[str, None] = {}
        """Names that were called and that the test does not give."""
        self.refused: set[str] = set()
        self.canceled: list[str] = []
        self.crash_at: int | None = None
        self.moments: list[str] = []
        """What could have been interrupted so far, in order."""
        self.crash: Callable[[], None] = lambda: None
        self.tell_cancel: Callable[[], None] = lambda: None
        """A heartbeat's answer to the attempt."""
        self._answers = children
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._woken = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._zero_s = self._loop.time()
        if cancel_after_s is not None:
            self._loop.call_later(cancel_after_s, self.cancel)

    def now_ms(self) -> int:
        return BEGIN_MS + round((self._loop.time() - self._zero_s) * 1000)

    def moment(self, what: str, *, now: bool = True) -> bool:
        """Something that may be interrupted here; whether it is. `now`: the process is lost in this call."""
        self.moments.append(what)
        if self.crash_at != len(self.moments) - 1:
            return False
        if now:
            self.crash()
        return True

    def cancel(self) -> None:
        """The caller asks for the end."""
        self.canceling = True
        self.tell_cancel()
        self.wake()

    def wake(self) -> None:
        self._woken.set()

    async def woken(self, wake_at_ms: int | None) -> None:
        """Until a suspended operation has something to do."""
        timeout_s = None if wake_at_ms is None else max(0.0, (wake_at_ms - self.now_ms()) / 1000)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._woken.wait(), timeout_s)

    def beginning(self) -> None:
        """The next attempt is sent out."""
        self.attempt += 1
        self.suspended = False
        self._woken.clear()

    async def changed(self, after: int) -> None:
        """Until the journal has more than `after`."""
        while len(self.journal) <= after:
            self._woken.clear()
            await self._woken.wait()

    def start(self, order: ChildOrder) -> Child:
        """Raises NotFound; the Refusal that stands for the child."""
        name = f"{order.endpoint}/{order.service}/{order.operation}"
        known = self.started.get(order.key)
        if known is None:
            if name not in self._answers:
                self.missing[name] = None
                message = f"the test gives no child {name!r}"
                raise NotFound(message)
            refusal = self._answers[name]
            if isinstance(refusal, Refusal):
                self.refused.add(name)
                raise refusal
            known = self.started[order.key] = (f"00-{short_id('child')}", name)
            value = None if order.body is None else json.loads(order.body)
            self._tasks[known[0]] = self._loop.create_task(self._child(known[0], order.parent_key, name, value))
        return Child(known[0])

    def end_child(self, operation_id: str) -> None:
        self.canceled.append(operation_id)
        task = self._tasks.get(operation_id)
        if task is not None:
            task.cancel()

    def uncalled(self) -> list[str]:
        """What the test gives and nobody has started."""
        called = {name for _, name in self.started.values()} | self.refused
        return [name for name in self._answers if name not in called]

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _child(self, operation_id: str, key: str, name: str, value: Any) -> None:
        entry: dict[str, Any] = {"kind": "child", "key": key, "id": operation_id}
        try:
            answer = await _answer(self._answers[name], value)
            entry |= {"state": "succeeded", **self._told(operation_id, answer)}
        except asyncio.CancelledError:
            entry |= {"state": "canceled", "failure": {"message": "canceled"}}
        except OperationError as error:
            state = "canceled" if error.state is OperationErrorState.CANCELED else "failed"
            entry |= {"state": state, "failure": {"message": error.message}}
        except Exception as error:  # noqa: BLE001 - a child that raises has failed
            entry |= {"state": "failed", "failure": {"message": str(error), "metadata": {"type": type(error).__name__}}}
        self.journal.append(json.dumps(entry).encode())
        self.wake()

    def _told(self, operation_id: str, answer: Any) -> dict[str, Any]:
        """A child's result as its parent's journal has it: long ones outside, as the mesh does (P403, P440)."""
        blob = answer if isinstance(answer, Blob) else None
        if blob is None:
            media_type, body = _any.encode(answer)
            blob = Blob(data=body or b"null", content_type=media_type or JSON)
        body = blob.read()
        if len(body) > CHILD_BYTES:
            self.blobs[blob.sha256] = body
            return {"result_dataref": _dataref(operation_id, blob)}
        if blob.content_type == JSON:
            return {"result": json.loads(body)}
        return {"result_base64": b64encode(body).decode(), "result_type": blob.content_type}


class MemoryLink:
    """One attempt's Link to a MemoryMesh. Answers in the next turn of the loop, or never after a crash."""

    def __init__(self, mesh: MemoryMesh) -> None:
        self._mesh = mesh
        self._attempt = mesh.attempt
        self._loop = asyncio.get_running_loop()
        self.dead = False
        self.wake_at_ms: int | None = None

    def now_ms(self) -> int:
        return self._mesh.now_ms()

    def sure(self) -> bool:
        return True  # the kit's process never stands still: it is lost, or goes on

    def renew(self) -> asyncio.Future[Ack]:
        return self._answer("", lambda: Ack("ok" if self._mesh.attempt == self._attempt else "lost", 0))

    def append(self, at: int, entries: Sequence[bytes]) -> asyncio.Future[Ack]:
        names = ", ".join(_name(raw) for raw in entries)
        return self._answer(f"recording {names}", lambda: self._stored(self._mesh.journal, at, entries))

    def read(self, after: int, limit: int) -> asyncio.Future[Page]:
        def page() -> Page:
            journal = self._mesh.journal
            status = "ok" if self._mesh.attempt == self._attempt else "lost"
            return Page(status, journal[after : after + limit], len(journal), self._mesh.canceling)

        return self._answer("", page)

    def watch(self, after: int, *, cancel: bool) -> asyncio.Future[Ack]:
        async def watched() -> Ack:
            await self._mesh.changed(after)
            return Ack("ok", len(self._mesh.journal), self._mesh.canceling)

        return asyncio.ensure_future(watched())

    def suspend(self, at: int, wake_at_ms: int | None, *, cancel: bool) -> asyncio.Future[Ack]:
        def suspended() -> Ack:
            mesh = self._mesh
            if mesh.attempt != self._attempt:
                return Ack("lost", 0)
            if len(mesh.journal) != at or (mesh.canceling and not cancel):
                return Ack("grown", len(mesh.journal), mesh.canceling)
            mesh.suspended = True
            self.wake_at_ms = wake_at_ms
            return Ack("ok", at)

        return self._answer("suspending", suspended)

    def emit(self, at: int, chunks: Sequence[bytes]) -> asyncio.Future[Ack]:
        return self._answer(f"emitting {len(chunks)} chunks", lambda: self._stored(self._mesh.chunks, at, chunks))

    def put_off(self, kind: str, message: str) -> asyncio.Future[Ack]:
        def done() -> Ack:
            self._mesh.suspended = True
            self.wake_at_ms = self._mesh.now_ms() + PUT_OFF_MS
            return Ack("ok", 0)

        return self._answer(f"putting off: {message}", done)

    async def keep(self, blob: Blob, told: Callable[[str], None]) -> dict[str, Any] | None:
        sha256 = blob.sha256
        await self._go(f"keeping {blob.size} bytes")
        self._mesh.blobs[sha256] = blob.read()
        await self._go(f"{blob.size} bytes kept")
        return _dataref(self._mesh.operation_id, blob)

    async def fetch(self, ref: Reference, *, as_file: bool) -> Blob:
        await self._go(f"reading {ref.size} bytes")
        if ref.sha256 not in self._mesh.blobs:
            raise BlobMissing(f"{ref.url} is not here")
        return Blob(data=self._mesh.blobs[ref.sha256], content_type=ref.content_type, sha256=ref.sha256)

    async def start_child(self, order: ChildOrder) -> Child:
        await self._go(f"starting child {order.parent_key}")
        child = self._mesh.start(order)
        await self._go(f"child {order.parent_key} started")
        return child

    async def cancel_child(self, operation_id: str) -> None:
        self._mesh.end_child(operation_id)

    def _stored(self, stored: list[bytes], at: int, more: Sequence[bytes]) -> Ack:
        mesh = self._mesh
        if mesh.attempt != self._attempt:
            return Ack("lost", 0)
        if len(stored) != at:
            return Ack("grown", len(stored), mesh.canceling)
        stored += more
        return Ack("ok", len(stored), mesh.canceling)

    async def _go(self, moment: str) -> None:
        await sleep(0)
        if self.dead or self._mesh.moment(moment):
            await self._loop.create_future()

    def _answer(self, moment: str, apply: Callable[[], A]) -> asyncio.Future[A]:
        future: asyncio.Future[A] = self._loop.create_future()
        self._loop.call_soon(self._do, future, moment, apply)
        return future

    def _do(self, future: asyncio.Future[A], moment: str, apply: Callable[[], A]) -> None:
        if self.dead or future.done() or (moment and self._mesh.moment(f"before {moment}")):
            return
        answer = apply()
        if (moment and self._mesh.moment(f"after {moment}")) or future.done():
            return
        future.set_result(answer)


async def _answer(answer: Any, value: Any) -> Any:
    """What a child answers to its input. Raises what it raises, or is."""
    if callable(answer):
        answer = answer(value)
    if inspect.isawaitable(answer):
        answer = await answer
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _dataref(operation_id: str, blob: Blob) -> dict[str, Any]:
    url = f"/v1/operations/{operation_id}/blobs/{blob.sha256}"
    shown = {"url": url, "digest": digest_field(blob.sha256), "bytes": blob.size}
    return {**shown, "content_type": blob.content_type or OCTETS}


def _name(raw: bytes) -> str:
    entry = json.loads(raw)
    return f"{entry['kind']} {entry.get('name', '')}#{entry.get('n', 0)}"
