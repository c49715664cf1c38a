"""What agents say about running attempts: `/v1/tasks/{heartbeat,journal,emit,suspend,read}`. HTTP in, thin.

Every verb takes many tasks in one request, each with its task token, and answers each; or one task, whose token then
comes in a header and whose refusal is the request's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import msgspec

from gateway.journals import raise_for_step
from gateway.outcomes import encode_json
from gateway.problems import problem
from gateway.tasks_body import (
    DETAILS_BYTES_MAX,
    EmitBody,
    EmitTask,
    HeartbeatBody,
    HeartbeatTask,
    JournalBody,
    JournalTask,
    ReadBody,
    ReadTask,
    SuspendBody,
    SuspendTask,
    breach,
    check_chunks,
    check_entries,
)
from mesh.clock import to_rfc3339
from mesh.edge import Answer, HotRoute, Request
from mesh.errors import Malformed, Unprocessable
from mesh.wire import CHEAP_BYTES, check_json, costly

if TYPE_CHECKING:
    from gateway.journals import Steps
    from gateway.operations import Operations
    from mesh.store.verbs import Page, Step

PREFIX: Final = b"/v1/tasks/"
TASKS_MAX: Final = 1_000
LEASE_MS_MIN: Final = 1_000
LEASE_MS_MAX: Final = 3_600_000
WAKE_MS_MAX: Final = 366 * 86_400_000
OURS: Final = b"m1."
"""How task tokens begin; another bearer is a namespace's key."""
ALONE: Final = ("",)
_JSON: Final = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]

Task = TypeVar("Task", HeartbeatTask, JournalTask, EmitTask, SuspendTask)
Verb: TypeAlias = Callable[[Request], Awaitable[Answer]]


def header_token(request: Request) -> str:
    """The task token of a request about one task, or ""."""
    given = request.first.get(b"mesh-task-token")
    if given is None:
        scheme, _, credentials = request.first.get(b"authorization", b"").partition(b" ")
        given = credentials if scheme.lower() == b"bearer" and credentials.startswith(OURS) else b""
    return given.decode("latin-1").strip()


def _decoded(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    if len(body) <= CHEAP_BYTES:
        check_json(body)
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$")
        pointer = path.rstrip("`").replace("[...]", "").replace(".", "/")
        detail = f"the body is not what this verb takes: {text}"
        raise Unprocessable(detail, code="body_invalid", errors=[{"pointer": pointer, "detail": text}]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}", code="json_invalid") from None


class Shapes:
    """How the bodies of a verb are decoded: about many tasks, and about one."""

    def __init__(self, many: Any, one: Any) -> None:
        self._task = one
        self._many = msgspec.json.Decoder(many)
        self._one = msgspec.json.Decoder(one)

    def tasks(self, request: Request) -> tuple[Sequence[Any], Sequence[str]]:
        """The tasks, and where in the body each is (ALONE: one, the whole of it). Raises Malformed, Unprocessable."""
        body = self.body(request)
        return ([body], ALONE) if isinstance(body, self._task) else self.listed(body)

    def body(self, request: Request) -> Any:
        """One task, with the token of the header, or the body about many. Raises Malformed, Unprocessable."""
        token = header_token(request)
        if not token:
            return _decoded(self._many, request.body)
        task = _decoded(self._one, request.body or b"{}")
        task.token = token
        return task

    def listed(self, body: Any) -> tuple[Sequence[Any], Sequence[str]]:
        """The tasks of a body about many, and where each is. Raises Unprocessable."""
        tasks = body.tasks
        if len(tasks) > TASKS_MAX:
            raise Unprocessable(f"one request names at most {TASKS_MAX} tasks", code="body_invalid")
        for position, task in enumerate(tasks):
            if not task.token:
                raise breach(f"/tasks/{position}/token", "a task is named by its token")
        return tasks, [f"/tasks/{position}" for position in range(len(tasks))]


_HEARTBEAT: Final = Shapes(HeartbeatBody, HeartbeatTask)
_JOURNAL: Final = Shapes(JournalBody, JournalTask)
_EMIT: Final = Shapes(EmitBody, EmitTask)
_SUSPEND: Final = Shapes(SuspendBody, SuspendTask)
_READ: Final = Shapes(ReadBody, ReadTask)


def _in_ms(task: SuspendTask) -> int:
    return 0 if task.wake_in_ms is None else max(task.wake_in_ms, 1)


def _step(step: Step) -> dict[str, Any]:
    shown: dict[str, Any] = {"status": step.status, "length": step.length}
    if step.cancel:
        shown["cancel"] = True
    return shown


def _page(page: Page, entries: list[msgspec.Raw]) -> dict[str, Any]:
    return {
        "status": page.status,
        "entries": entries,
        "length": page.journal,
        "stream": page.stream,
        "cancel": page.cancel,
    }


def _answer(steps: Steps, wheres: Sequence[str]) -> Answer:
    if wheres == ALONE:
        raise_for_step(steps.steps[0].status)
        return Answer(200, _JSON, encode_json({"now_ms": steps.now_ms, **_step(steps.steps[0])}))
    return Answer(200, _JSON, encode_json({"now_ms": steps.now_ms, "tasks": [_step(step) for step in steps.steps]}))


class TasksSurface:
    """The task token is the whole proof, as for completions; no key is asked for."""

    def __init__(self, operations: Operations, wait_max_ms: int) -> None:
        self._operations = operations
        self._wait_max_ms = wait_max_ms
        self._routes = {
            PREFIX + name: HotRoute(self._sound(shapes, verb), problem)
            for name, shapes, verb in (
                (b"heartbeat", _HEARTBEAT, self.heartbeat),
                (b"journal", _JOURNAL, self.journal),
                (b"emit", _EMIT, self.emit),
                (b"suspend", _SUSPEND, self.suspend),
                (b"read", _READ, self.read),
            )
        }

    def _sound(self, shapes: Shapes, verb: Verb) -> Verb:
        """`verb` behind a look at the JSON of long bodies; that of short ones is looked at as they are decoded."""

        async def looked_at(request: Request) -> Answer:
            body = request.body
            if len(body) > CHEAP_BYTES:
                tasks, _ = shapes.tasks(request)
                if costly(body):
                    await self._operations.check_tasks_json(body, [task.token for task in tasks])
                else:
                    check_json(body)
            return await verb(request)

        return looked_at

    def find(self, method: str, raw_path: bytes) -> HotRoute | None:
        """POST /v1/tasks/{verb}."""
        return self._routes.get(raw_path) if method == "POST" else None

    async def heartbeat(self, request: Request) -> Answer:
        """`{"tasks": [{"status": "ok"|"cancel"|"lost"|"ended"|"unknown"|"invalid"}, ...]}`, in the order asked."""
        tasks, wheres = _HEARTBEAT.tasks(request)
        wanted: list[tuple[str, int, bytes]] = []
        for task, where in zip(tasks, wheres, strict=True):
            if task.lease_ms and not LEASE_MS_MIN <= task.lease_ms <= LEASE_MS_MAX:
                raise breach(f"{where}/lease_ms", f"lease_ms is between {LEASE_MS_MIN} and {LEASE_MS_MAX}")
            details = b"" if isinstance(task.details, msgspec.UnsetType) else bytes(task.details)
            if len(details) > DETAILS_BYTES_MAX:
                raise breach(f"{where}/details", f"details have at most {DETAILS_BYTES_MAX} bytes")
            wanted.append((task.token, task.lease_ms, details))
        replies = await self._operations.heartbeat(wanted)
        if wheres == ALONE:
            raise_for_step(replies[0])
            return Answer(200, _JSON, encode_json({"status": replies[0]}))
        return Answer(200, _JSON, encode_json({"tasks": [{"status": reply} for reply in replies]}))

    async def journal(self, request: Request) -> Answer:
        """`{"now_ms", "tasks": [{"status", "length", "cancel"?}, ...]}`."""
        tasks, wheres = _JOURNAL.tasks(request)
        wanted = [
            (task.token, task.at, check_entries(task.entries, where)) for task, where in zip(tasks, wheres, strict=True)
        ]
        return _answer(await self._operations.journal(wanted), wheres)

    async def emit(self, request: Request) -> Answer:
        """As `journal`, for the stream."""
        tasks, wheres = _EMIT.tasks(request)
        wanted = [
            (task.token, task.at, check_chunks(task.chunks, where)) for task, where in zip(tasks, wheres, strict=True)
        ]
        return _answer(await self._operations.emit(wanted), wheres)

    async def suspend(self, request: Request) -> Answer:
        """As `journal`; `grown` when there is something that the agent has not seen."""
        tasks, wheres = _SUSPEND.tasks(request)
        for task, where in zip(tasks, wheres, strict=True):
            if not 0 <= (task.wake_in_ms or 0) <= WAKE_MS_MAX:
                raise breach(f"{where}/wake_in_ms", f"wake_in_ms is between 0 and {WAKE_MS_MAX}, or null")
        # 0 means no time at all to the store: what is due at once is due in a moment.
        wanted = [(task.token, task.at, _in_ms(task), task.wake_at_ms or 0, task.cancel) for task in tasks]
        return _answer(await self._operations.suspend(wanted), wheres)

    async def read(self, request: Request) -> Answer:
        """`{"now_ms", "tasks": [{"status", "entries", "length", "stream", "cancel"?}]}`; alone also `now`."""
        body = _READ.body(request)
        tasks, wheres = ([body], ALONE) if isinstance(body, ReadTask) else _READ.listed(body)
        wait_s = min(max(body.wait_ms, 0), self._wait_max_ms) / 1000
        wanted = [(task.token, task.after, task.limit) for task in tasks]
        journal = await self._operations.read_journals(wanted, wait_s, request.gone)
        shown = [_page(page, entries) for page, entries in journal.pages]
        if wheres == ALONE:
            raise_for_step(journal.pages[0].page.status)
            alone = {"now": to_rfc3339(journal.now_ms), "now_ms": journal.now_ms, **shown[0]}
            return Answer(200, _JSON, encode_json(alone))
        return Answer(200, _JSON, encode_json({"now_ms": journal.now_ms, "tasks": shown}))
