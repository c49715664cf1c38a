"""Tasks as a gateway hands them out, and answers as it takes them: the frames of pull mode (specs/protocol.md P280).

A task becomes the head and body of the start that would have been sent; an outcome becomes an answer. No I/O.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from typing import Final

import msgspec
import nexusrpc

from mesh import trace
from mesh.agent.codec import JSON
from mesh.agent.inbound import Callback, StartHead
from mesh.agent.outcome import PLAIN_JSON, Outcome
from mesh.errors import Malformed
from mesh.pool import Target
from mesh.wire import parse_links


class DataRef(msgspec.Struct, gc=False):
    """A large input: where it is on any gateway, what it is."""

    url: str
    digest: str
    bytes: int
    content_type: str | None = None


class Task(msgspec.Struct, gc=False):
    """One attempt, from this gateway's frame."""

    task_token: str
    operation_id: str
    service: str
    operation: str
    run: int
    attempt: int
    lease_ms: int
    namespace: str = ""
    input: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    input_base64: str | None = None
    content_type: str | None = None
    dataref: DataRef | None = None
    headers: dict[str, str] = {}
    journal: int = 0
    cancel: bool = False
    timeout_ms: int | None = None


class Cancel(msgspec.Struct, gc=False):
    """An attempt that is not wanted any more. `state`: canceling, or how the operation ended."""

    operation_id: str
    run: int
    attempt: int
    state: str


class Status(msgspec.Struct, gc=False):
    """What became of an answer."""

    status: str
    detail: str = ""


class Frame(msgspec.Struct):
    """The answer to a poll."""

    tasks: list[Task]
    answers: list[Status] = []
    cancels: list[Cancel] = []
    draining: bool = False


class Statuses(msgspec.Struct):
    """The answer to many answers."""

    tasks: list[Status]


read_frame: Final = msgspec.json.Decoder(Frame).decode
read_statuses: Final = msgspec.json.Decoder(Statuses).decode
encode: Final = msgspec.json.Encoder().encode


class FetchedHead(StartHead, frozen=True, eq=False, gc=False):
    """Of a task."""

    task: Task

    def headers(self) -> dict[str, str]:
        task = self.task
        headers = {
            **task.headers,
            "nexus-request-id": request_id_of(task),
            "mesh-operation-id": task.operation_id,
            "mesh-run": str(task.run),
            "mesh-attempt": str(task.attempt),
            "mesh-namespace": task.namespace,
        }
        headers.pop("nexus-link", None)
        if task.journal:
            headers["mesh-journal"] = str(task.journal)
        if task.cancel:
            headers["mesh-cancel-requested"] = "1"
        if task.timeout_ms is not None:
            headers["operation-timeout"] = f"{task.timeout_ms}ms"
        return headers

    def trace(self) -> dict[str, str]:
        headers = self.task.headers
        return trace.received(headers) if headers else {}


def head_of(task: Task, request_id: str, gateway: Target, callback_url: str, callback: Target) -> StartHead:
    """The head of the start that this task stands for; `callback` is the gateway's URL for completions, read.

    Raises Malformed: links that cannot be read.
    """
    token, headers = task.task_token, task.headers
    links = headers["nexus-link"] if headers and "nexus-link" in headers else ""
    content_type = task.content_type
    if content_type is None and task.input is not msgspec.UNSET:
        content_type = JSON
    return FetchedHead(
        content_type,
        request_id,
        task.attempt,
        None,
        task.timeout_ms,
        [nexusrpc.Link(link.url, link.type) for link in parse_links([links])] if links else [],
        Callback(callback_url, callback, [(b"token", token.encode("latin-1"))], token, gateway),
        task,
    )


def request_id_of(work: Task | Cancel) -> str:
    """The same on every attempt of a run."""
    return f"{work.operation_id}.{work.run}"


def input_of(task: Task) -> bytes:
    """The caller's bytes. Raises Malformed."""
    if task.input is not msgspec.UNSET:
        return bytes(task.input)
    if task.input_base64 is None:
        return b""
    try:
        return b64decode(task.input_base64, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("input_base64 of a task is not base64") from None


def answer_of(token: str, outcome: Outcome) -> bytes:
    """One answer of a frame, as JSON."""
    if outcome.state == "succeeded":
        return _result(token, outcome)
    if outcome.state in ("failed", "canceled"):
        return b'{"token":"%b","state":"%b","failure":%b}' % (token.encode(), outcome.state.encode(), outcome.body)
    fields: dict[str, object] = {
        "token": token,
        "state": "failed",
        "type": error_type(outcome),
        "retryable": outcome.retryable,
    }
    retry_after = next((value for name, value in outcome.headers if name == b"retry-after"), b"")
    if retry_after.isdigit():
        fields["retry_after_ms"] = int(retry_after) * 1000
    return encode({**fields, "failure": msgspec.Raw(outcome.body)})


def _result(token: str, outcome: Outcome) -> bytes:
    if outcome.headers is PLAIN_JSON:  # nearly all
        return b'{"token":"%b","result":%b}' % (token.encode(), outcome.body)
    links: list[str] = []
    content_type = ""
    for name, value in outcome.headers:
        if name == b"content-type":
            content_type = value.decode("latin-1")
        elif name == b"nexus-link":
            links.append(value.decode("latin-1"))
    fields: dict[str, object] = {"token": token}
    if links:
        fields["links"] = links
    if content_type == JSON:
        fields["result"] = msgspec.Raw(outcome.body)
    elif content_type:
        fields["result_base64"] = b64encode(outcome.body).decode()
        fields["content_type"] = content_type
    return encode(fields)


def released(token: str, reason: str) -> bytes:
    """Somebody else shall have it."""
    return encode({"token": token, "state": "released", "reason": reason})


def too_large(token: str) -> bytes:
    """In place of an answer that no gateway takes."""
    return encode({"token": token, "state": "failed", "message": "the handler's answer was larger than the mesh takes"})


class _Details(msgspec.Struct, frozen=True):
    type: str = "INTERNAL"


class _Failure(msgspec.Struct):
    details: _Details = _Details()


_failure: Final = msgspec.json.Decoder(_Failure).decode


def error_type(outcome: Outcome) -> str:
    """The Nexus type of a handler error."""
    try:
        return _failure(outcome.body).details.type
    except msgspec.MsgspecError:
        return "INTERNAL"
