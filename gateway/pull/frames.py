"""What polls, tasks and answers look like on the wire. Pure.

A frame carries many tasks one way and many answers the other. Inputs and results that are JSON stand in it as they
are, byte for byte; what is not, in base64.
"""

from __future__ import annotations

from base64 import b64encode
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from gateway.payloads import dataref
from gateway.pull.salvage import take_apart
from mesh.clock import to_rfc3339
from mesh.errors import Malformed, Unprocessable
from mesh.wire import readable_json

if TYPE_CHECKING:
    from mesh.store.verbs import Work

TASKS_MAX: Final = 1_000
"""Tasks, or answers, of one frame."""
FRAME_BYTES_MAX: Final = 4 << 20
"""Of tasks in one frame, above which no more are put into it."""
WAIT_MS_MAX: Final = 60_000
WAIT_MS: Final = 20_000
LEASE_MS: Final = 30_000
LEASE_MS_MIN: Final = 1_000
LEASE_MS_MAX: Final = 3_600_000
SERVICES_MAX: Final = 100
VERSION_CHARS_MAX: Final = 128
DETAIL_CHARS_MAX: Final = 200

_JSON: Final = "application/json"
FailureJson = Annotated[
    msgspec.Raw, msgspec.Meta(extra_json_schema={"anyOf": [{"type": "object"}, {"type": "null"}], "default": None})
]
"""Read one by one, each within its bound: one of 2 MiB must not hold up the whole frame."""


class AnswerBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, gc=False):
    """What became of an attempt; `state` is succeeded, failed, canceled or released.

    succeeded  `result` (JSON) or `result_base64`, `content_type`, `links`
    failed     `message` or `failure` (a Nexus Failure): the operation failed. With `type` (a Nexus handler error type)
               or `retryable` the attempt failed, and is repeated where that is worth while, `retry_after_ms` later;
               `counts` false: against no limit, for what it missed was not its own
    canceled   `message` or `failure`
    released   somebody else shall have it; `reason` for the history
    """

    token: str
    state: str = "succeeded"
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    result_base64: str | None = None
    content_type: str | None = None
    links: list[str] = []
    message: str = ""
    failure: FailureJson | msgspec.UnsetType = msgspec.UNSET
    type: str = ""
    retryable: bool | None = None
    retry_after_ms: int = 0
    counts: bool = True
    reason: str = ""


class PollBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /v1/endpoints/{name}/poll`.

    `max` tasks at most, 0 for answers and cancels only; `lease_ms`: within that the agent will be heard of; `fresh`:
    the process has just started, so that a removal of its name from the registry was not meant for it.
    """

    instance: str
    max: int = 1
    wait_ms: int = WAIT_MS
    services: list[str] = []
    version: str = ""
    lease_ms: int = 0
    fresh: bool = False
    answers: list[AnswerBody] = []


class AnswersBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /v1/tasks/{complete|fail|release}` for many."""

    tasks: list[AnswerBody]


class TaskBody(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One attempt as it is handed out. Neither `input` nor `input_base64` nor `dataref`: Nexus null.

    `dataref`: a large input, `{url, digest, bytes, content_type}`, to be fetched from any gateway with the task token.
    `headers`: the caller's that travel; what the mesh itself says is in the fields. `journal`: entries it has.
    `deadline`, `timeout_ms`: when the operation ends at the latest, if it does.
    """

    task_token: str
    operation_id: str
    namespace: str
    service: str
    operation: str
    run: int
    attempt: int
    lease_ms: int
    input: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    input_base64: str | None = None
    content_type: str | None = None
    dataref: dict[str, Any] | None = None
    headers: dict[str, str] = {}
    journal: int = 0
    cancel: bool = False
    deadline: str | None = None
    timeout_ms: int | None = None


class CancelBody(msgspec.Struct):
    """An attempt that this instance has and that is not wanted any more; `state`: `canceling`, or how it ended."""

    operation_id: str
    run: int
    attempt: int
    state: str


class StatusBody(msgspec.Struct, omit_defaults=True):
    """What became of one answer; `detail` where it could not be read."""

    status: str
    detail: str = ""


class StatusesBody(msgspec.Struct):
    """What became of many answers, in the order given."""

    tasks: list[StatusBody]


class FrameBody(msgspec.Struct):
    """What a poll is answered with. `draining`: this instance was removed, or told to drain, or its version drains."""

    tasks: list[TaskBody]
    answers: list[StatusBody] = []
    cancels: list[CancelBody] = []
    draining: bool = False


_encode: Final = msgspec.json.Encoder().encode
_polls: Final = msgspec.json.Decoder(PollBody).decode
_answers: Final = msgspec.json.Decoder(AnswersBody).decode
_answer: Final = msgspec.json.Decoder(AnswerBody).decode


def read_poll(body: bytes) -> PollBody:
    """Raises Malformed, Unprocessable with pointers. Answers that cannot be read are left without a token."""
    try:
        poll = _read(_polls, body, "a poll")
    except (Malformed, Unprocessable):
        parts = take_apart(body, b"answers")
        if parts is None:
            raise
        poll = _read(_polls, parts.rest, "a poll")
        poll.answers = _each(parts.elements)
    if not 0 <= poll.max <= TASKS_MAX:
        raise _breach("/max", f"max is between 0 and {TASKS_MAX}")
    if not 0 <= poll.wait_ms <= WAIT_MS_MAX:
        raise _breach("/wait_ms", f"wait_ms is between 0 and {WAIT_MS_MAX}")
    if poll.lease_ms and not LEASE_MS_MIN <= poll.lease_ms <= LEASE_MS_MAX:
        raise _breach("/lease_ms", f"lease_ms is between {LEASE_MS_MIN} and {LEASE_MS_MAX}")
    if len(poll.services) > SERVICES_MAX:
        raise _breach("/services", f"there are at most {SERVICES_MAX} services")
    if len(poll.version) > VERSION_CHARS_MAX or not poll.version.isprintable():
        raise _breach("/version", f"version has at most {VERSION_CHARS_MAX} characters, all of them printable")
    if len(poll.answers) > TASKS_MAX:
        raise _breach("/answers", f"one frame has at most {TASKS_MAX} answers")
    return poll


def read_answers(body: bytes) -> list[AnswerBody]:
    """As `read_poll`, where one at least can be read."""
    try:
        tasks = _read(_answers, body, "a list of answers (for a single one send its token as Mesh-Task-Token)").tasks
    except (Malformed, Unprocessable):
        parts = take_apart(body, b"tasks")
        tasks = [] if parts is None else _each(parts.elements)
        if parts is None or not any(task.token for task in tasks):
            raise
        _read(_answers, parts.rest, "a list of answers")
    if len(tasks) > TASKS_MAX:
        raise _breach("/tasks", f"one request has at most {TASKS_MAX} answers")
    return tasks


def _each(elements: list[bytes]) -> list[AnswerBody]:
    if len(elements) > TASKS_MAX:
        raise _breach("/answers", f"one frame has at most {TASKS_MAX} answers")
    answers: list[AnswerBody] = []
    for element in elements:
        try:
            answers.append(_read(_answer, element, "an answer"))
        except (Malformed, Unprocessable) as error:
            answers.append(AnswerBody(token="", reason=error.detail[:DETAIL_CHARS_MAX]))
    return answers


def read_answer(body: bytes, token: str) -> AnswerBody:
    """The body of a single `fail` or `release`, which may be empty; the token comes from a header."""
    if not body.strip():
        return AnswerBody(token=token)
    head, brace, rest = body.partition(b"{")
    if head.strip() or not brace:
        raise Malformed("the body is a JSON object", code="json_invalid")
    comma = b"" if rest.lstrip()[:1] == b"}" else b","
    return _read(_answer, b'{"token":%b%b%b' % (_encode(token), comma, rest), "an answer")


def _read(decode: Any, body: bytes, what: str) -> Any:
    try:
        value = decode(body)
        if not body.isascii():
            body.decode()  # inside a Raw the decoder does not look at the bytes
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$")
        pointer = path.rstrip("`").replace("[...]", "").replace(".", "/")
        raise _breach(pointer, f"the body is not {what}: {text}") from None
    except RecursionError:
        raise Malformed("the JSON is nested too deep", code="json_invalid") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"not JSON: {error}", code="json_invalid") from None
    return value


def _breach(pointer: str, detail: str) -> Unprocessable:
    return Unprocessable(detail, code="body_invalid", errors=[{"pointer": pointer, "detail": detail}])


def task_json(work: Work, token: str, lease_ms: int, now_ms: int) -> bytes:
    """One task of a frame, a `TaskBody`; `now_ms` is the store's time.

    Put together by hand: every task comes by here, and tokens and ids need no escapes.
    """
    head, request, body = work.head, work.request, work.extra
    called = _called(head.namespace, request.service, request.operation)
    text = (
        f'{{"task_token":"{token}","operation_id":"{work.id}",{called},'
        f'"run":{head.run},"attempt":{head.attempt},"lease_ms":{lease_ms}'
    ).encode()
    content_type = request.content_type
    if content_type == _JSON and request.data is None and readable_json(body):
        parts = [text, b',"input":', body]
    else:
        parts = [text, *_input(work)]
    if request.headers or request.links:
        parts.append(b',"headers":%b' % _encode(_headers(work)))
    if work.journal:
        parts.append(b',"journal":%d' % work.journal)
    if head.cancel_asked:
        parts.append(b',"cancel":true')
    if head.close_by or head.finish_by:
        end = min(head.close_by or head.finish_by, head.finish_by or head.close_by)
        left_ms = max(end - now_ms, 0)
        parts.append(b',"deadline":"%b","timeout_ms":%d' % (to_rfc3339(end).encode(), left_ms))
    parts.append(b"}")
    return b"".join(parts)


@lru_cache(maxsize=4096)
def _called(namespace: str, service: str, operation: str) -> str:
    """What is called, as members of a task; the same few come again and again."""
    return _encode({"namespace": namespace, "service": service, "operation": operation})[1:-1].decode()


def _input(work: Work) -> list[bytes]:
    """The input of a task that is not simply JSON, as members."""
    request, body, content_type = work.request, work.extra, work.request.content_type
    if request.data is not None:
        parts = [b',"dataref":%b' % _encode(dataref(f"/v1/operations/{work.id}/input", request.data, content_type))]
    elif content_type is None and not body:
        return []
    elif _is_json(content_type) and readable_json(body):
        parts = [b',"input":', body]
    else:
        parts = [b',"input_base64":"', b64encode(body), b'"']
    if content_type is not None:
        parts.append(b',"content_type":%b' % _encode(content_type))
    return parts


def _is_json(content_type: str | None) -> bool:
    return content_type is not None and content_type.partition(";")[0].strip().lower() == _JSON


def _headers(work: Work) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in work.request.headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    if work.request.links:
        headers["nexus-link"] = ", ".join(work.request.links)
    return headers


def frame_json(tasks: list[bytes], statuses: bytes, cancels: list[CancelBody], *, draining: bool) -> bytes:
    """The answer to a poll; `statuses` is `statuses_json`. What is empty is left out, but for `tasks`."""
    parts = [b'{"tasks":[', b",".join(tasks), b"]"]
    if statuses:
        parts += [b',"answers":', statuses]
    if cancels:
        parts += [b',"cancels":', _encode(cancels)]
    if draining:
        parts.append(b',"draining":true')
    parts.append(b"}")
    return b"".join(parts)


def statuses_json(statuses: list[str], answers: list[AnswerBody]) -> bytes:
    """What became of `answers`, with the reason of those that could not be read."""
    shown = [_STATUS[status] for status in statuses]
    if "invalid" in statuses:
        for place, answer in enumerate(answers):
            if not answer.token and answer.reason:
                shown[place] = _encode(StatusBody("invalid", answer.reason))
    return b"[" + b",".join(shown) + b"]"


_STATUS: Final = {
    word: b'{"status":"%b"}' % word.encode()
    for word in ("ok", "lost", "ended", "conflict", "unknown", "invalid", "broken", "again")
}
"""Every status there is: `ok` also for a repeat; `lost` the attempt was given up; `ended` the operation is over;
`conflict` with another outcome; `unknown` past retention; `invalid` no genuine token, or an answer that makes no sense;
`broken` its record cannot be read; `again` it is not surely booked, send it again."""
