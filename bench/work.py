"""The unit of work: a durable call with 200 bytes of JSON in and a small JSON out, unique key per call.

The same payload as the peers were measured with that it is compared to. Owns what is sent and what must come back;
knows no process and no socket.
"""

from __future__ import annotations

from typing import Any, Final

from mesh.errors import MeshError
from mesh.ids import short_id
from mesh.pool import Reply
from mesh.wire import RawHeader

ENDPOINT: Final = "bench"
ASYNC_SERVICE: Final = "bench-async"
UNCHECKED_ENDPOINT: Final = "bench-unchecked"
"""The agent's URL once more, without services: nothing is checked."""
PARKED_ENDPOINT: Final = "bench-parked"
"""An endpoint that no instance ever registers for: its operations wait."""
INPUT_BYTES: Final = 200
KEY_CHARS: Final = 32
ACCEPTED: Final = 202
MOMENT_MS: Final = 1
"""Between an asynchronous handler's 201 and its completion."""

_BEFORE: Final = b'{"id":"'
_AFTER: Final = (
    b'","agent":"summarizer","task":"summarize","priority":5,'
    b'"text":"the quick brown fox jumps over the lazy dog, twice over","tags":["a","b"],"more":"%b"}'
)
_PAD: Final = b"." * (INPUT_BYTES - len(_BEFORE) - KEY_CHARS - len(_AFTER) + 2)


class Wrong(MeshError):
    """An answer that is not the one this call must get."""


def new_tag() -> str:
    """12 characters that no other run's keys begin with."""
    return short_id("b")[2:]


def key_of(tag: str, number: int) -> bytes:
    """Idempotency key of a call, KEY_CHARS long."""
    return b"%b%020d" % (tag.encode(), number)


def input_of(key: bytes) -> bytes:
    """INPUT_BYTES of JSON that name the call."""
    return _BEFORE + key + _AFTER % _PAD


def result_of(key: bytes) -> bytes:
    """What the handler makes of it, byte for byte."""
    return b'{"id":"%b","ok":true,"tokens":42}' % key


class Surface:
    """How one kind of call looks on the wire: requests out, checked answers in.

    operation   of service `service` on endpoint `endpoint`
    callback    URL for the signed CloudEvents callback, "" for none
    respond_async  the answer is a 202 that leaves before the outcome is known
    """

    path: bytes

    def __init__(
        self,
        operation: str,
        service: str = ENDPOINT,
        endpoint: str = ENDPOINT,
        *,
        callback: str = "",
        respond_async: bool = False,
    ) -> None:
        self.operation = operation
        self.service = service
        self.endpoint = endpoint
        self.callback = callback
        self.respond_async = respond_async

    def request(self, key: bytes) -> tuple[list[RawHeader], bytes]:
        """Headers and body of one call."""
        raise NotImplementedError

    def check(self, key: bytes, reply: Reply) -> bytes:
        """The operation id of a right answer. Raises Wrong."""
        raise NotImplementedError


class NexusSurface(Surface):
    """`POST /nexus/endpoints/...`: the result's own bytes come back."""

    def __init__(self, *where: Any, **how: Any) -> None:
        super().__init__(*where, **how)
        self.path = f"/nexus/endpoints/{self.endpoint}/services/{self.service}/{self.operation}".encode()

    def request(self, key: bytes) -> tuple[list[RawHeader], bytes]:
        return [(b"content-type", b"application/json"), (b"nexus-request-id", key)], input_of(key)

    def check(self, key: bytes, reply: Reply) -> bytes:
        if reply.status != 200 or reply.body != result_of(key):
            raise _wrong(reply)
        return _operation_id(reply)


class V1Surface(Surface):
    """`POST /v1/operations`: the record comes back, finished or, with `respond_async`, accepted."""

    path = b"/v1/operations"

    def __init__(self, *where: Any, **how: Any) -> None:
        super().__init__(*where, **how)
        self._head = b'{"endpoint":"%b","service":"%b","operation":"%b",' % (
            self.endpoint.encode(), self.service.encode(), self.operation.encode()
        )  # fmt: skip
        if self.callback:
            self._head += b'"callback":{"url":"%b","format":"cloudevents"},' % self.callback.encode()
        self._head += b'"input":'
        self._headers: list[RawHeader] = [(b"content-type", b"application/json")]
        if self.respond_async:
            self._headers.append((b"prefer", b"respond-async"))

    def request(self, key: bytes) -> tuple[list[RawHeader], bytes]:
        return [*self._headers, (b"idempotency-key", key)], self._head + input_of(key) + b"}"

    def check(self, key: bytes, reply: Reply) -> bytes:
        if self.respond_async:
            right = reply.status == ACCEPTED and b'"idempotency_key":"%b"' % key in reply.body
        else:
            result = b'"result":' + result_of(key)
            right = reply.status == 200 and b'"state":"succeeded"' in reply.body and result in reply.body
        if not right:
            raise _wrong(reply)
        return _operation_id(reply)


def surface_of(kind: str, **where: Any) -> Surface:
    """`kind`: nexus or v1."""
    return {"nexus": NexusSurface, "v1": V1Surface}[kind](**where)


def _wrong(reply: Reply) -> Wrong:
    return Wrong(f"answered {reply.status} {reply.body[:300]!r}")


def _operation_id(reply: Reply) -> bytes:
    operation = reply.header(b"mesh-operation-id")
    if operation is None:
        raise Wrong(f"answered {reply.status} without Mesh-Operation-Id")
    return operation
