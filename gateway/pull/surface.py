"""`POST /v1/endpoints/{name}/poll` and `POST /v1/tasks/{complete|fail|release}`. HTTP in, thin."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.journals import raise_for_step
from gateway.outcomes import encode_json
from gateway.problems import problem
from gateway.pull.frames import (
    LEASE_MS,
    AnswerBody,
    CancelBody,
    frame_json,
    read_answer,
    read_answers,
    read_poll,
    statuses_json,
)
from gateway.tasks import header_token
from mesh.edge import Answer, HotRoute, Request
from mesh.errors import Conflict, MeshError, NotFound, Unavailable
from mesh.wire import parse_links, readable_json, split_path
from mesh.wire.replies import Completion
from registry.spec import check_instance

if TYPE_CHECKING:
    from gateway.auth import Auth
    from gateway.operations import Operations
    from gateway.pull.answering import Answering
    from gateway.pull.attendance import Attendance
    from gateway.pull.desk import Desk
    from gateway.pull.frames import PollBody
    from gateway.pull.window import Poll
    from mesh.blobs.spool import Spooled
    from mesh.streams import Intake
    from registry.catalog import Catalog, Endpoint

ENDPOINTS: Final = b"/v1/endpoints/"
POLL: Final = b"/poll"
TASKS: Final = b"/v1/tasks/"
FORM: Final = "application/x-www-form-urlencoded"
QUICK_S: Final = 0.1
"""A poll that waits longer is worth an eye on its connection."""
STATES: Final = {b"complete": "succeeded", b"fail": "failed", b"release": "released"}

_JSON: Final = (b"content-type", b"application/json")
_NO_STORE: Final = (b"cache-control", b"no-store")
_instance = lru_cache(maxsize=4096)(check_instance)


class PullSurface:
    """Route functions; `find` names the one for a request."""

    def __init__(
        self,
        desk: Desk,
        answering: Answering,
        attendance: Attendance,
        catalog: Catalog,
        auth: Auth,
        operations: Operations,
    ) -> None:
        self._desk = desk
        self._answering = answering
        self._attendance = attendance
        self._catalog = catalog
        self._auth = auth
        self._operations = operations
        self._poll = HotRoute(self.poll, problem)
        self._verb = HotRoute(self.verb, problem)
        self._complete = HotRoute(self.verb, problem, self._take_result)

    def find(self, method: str, raw_path: bytes) -> HotRoute | None:
        """POST .../poll and the verbs of tasks."""
        if method != "POST":
            return None
        if raw_path.endswith(POLL) and raw_path.startswith(ENDPOINTS):
            return self._poll
        if not raw_path.startswith(TASKS) or raw_path[len(TASKS) :] not in STATES:
            return None
        return self._complete if raw_path.endswith(b"/complete") else self._verb

    def _take_result(self, request: Request) -> Intake | None:
        """The result of one attempt may be large (P390), of whoever has its token."""
        token = header_token(request)
        if not token:
            return None
        self._operations.check_token(token)
        return self._operations.payloads.take_result(request)

    # Poll ---------------------------------------------------------------------------------------------------------

    async def poll(self, request: Request) -> Answer:
        """Answers in, tasks out. Returns as soon as there is something to say, at the latest after `wait_ms`."""
        principal = self._auth.authenticate(request.headers)
        names = split_path(request.raw_path, ENDPOINTS)
        if len(names) != 2:  # noqa: PLR2004
            raise NotFound("the path is /v1/endpoints/{name}/poll", code="unknown_route")
        body = read_poll(request.body)
        _instance(body.instance)
        endpoint = await self._endpoint(names[0], principal.namespace)
        if not await self._attendance.came(endpoint, body.instance, body.version, fresh=body.fresh):
            statuses = await self._answering.answer(body.answers)
            return _frame([], statuses, body.answers, [], draining=True)
        try:
            return await self._wait(request, body, endpoint)
        finally:
            self._attendance.went(endpoint, body.instance)

    async def _endpoint(self, name: str, namespace: str) -> Endpoint:
        endpoint = await self._catalog.locate(name, namespace)
        if endpoint.owner != namespace:
            raise NotFound(f"there is no endpoint {name!r} of this namespace to poll", code="unknown_endpoint")
        if not endpoint.pulls:
            detail = f"endpoint {name!r} is not of kind pull: its agents are sent their work"
            raise Conflict(detail, code="endpoint_pushes")
        return endpoint

    async def _wait(self, request: Request, body: PollBody, endpoint: Endpoint) -> Answer:
        lease_ms = body.lease_ms or endpoint.policy.heartbeat_ms or LEASE_MS
        poll = self._desk.open(
            endpoint, body.instance, body.max, lease_ms, body.services, body.version, booked=not body.answers
        )
        gone = True
        watcher: asyncio.Future[None] | None = None
        statuses: list[str] = []
        try:
            trouble: MeshError | None = None
            if body.answers:
                try:
                    statuses = await self._answering.answer(body.answers)
                except MeshError as error:
                    trouble = error
                    statuses = ["again"] * len(body.answers)
                    poll.over()
                if statuses.count("ok") < len(statuses):
                    poll.over()  # who was refused hears of it now, not when there is work again
                poll.booked = True
                poll.consider()
            wait_s = body.wait_ms / 1000
            if wait_s > QUICK_S and not poll.done:
                watcher = asyncio.ensure_future(_watch(request, poll))
            await poll.wait(wait_s)
            gone = request.hung_up
            if trouble is not None and not poll.tasks:
                raise trouble
        finally:
            if watcher is not None:
                watcher.cancel()
            self._desk.close(poll, gone=gone)
        return _frame(poll.tasks, statuses, body.answers, poll.cancels, draining=poll.drains)

    # Verbs --------------------------------------------------------------------------------------------------------

    async def verb(self, request: Request) -> Answer:
        """One answer with its token in a header, or `{"tasks": [...]}` for many."""
        name = request.raw_path[len(TASKS) :]
        token = header_token(request)
        if not token:
            bodies = read_answers(request.body)
            for body in bodies:
                if body.state == "succeeded":
                    body.state = STATES[name]
            statuses = await self._answering.answer(bodies)
            return Answer(200, [_JSON, _NO_STORE], b'{"tasks":%b}' % statuses_json(statuses, bodies))
        if request.intake is not None:
            await self._complete_large(request, token, await request.intake.finish())
            return Answer(200, [_JSON, _NO_STORE], encode_json({"status": "ok"}))
        (status,) = await self._answering.answer([_single(name, request, token)], strict=True)
        raise_for_answer(status)
        return Answer(200, [_JSON, _NO_STORE], encode_json({"status": status}))


    async def _complete_large(self, request: Request, token: str, large: Spooled) -> None:
        content_type = request.first.get(b"content-type", b"").decode("latin-1")
        if content_type in ("", FORM):
            content_type = "application/octet-stream"
        links = parse_links(request.all(b"nexus-link"))
        completion = Completion("succeeded", token, "", None, None, links, content_type, b"", None)
        await self._operations.complete(token, completion, large=large)


async def _watch(request: Request, poll: Poll) -> None:
    await request.gone()
    poll.finish()


def _frame(
    tasks: list[bytes], statuses: list[str], answers: list[AnswerBody], cancels: list[CancelBody], *, draining: bool
) -> Answer:
    shown = statuses_json(statuses, answers) if statuses else b""
    return Answer(200, [_JSON, _NO_STORE], frame_json(tasks, shown, cancels, draining=draining))


def _single(name: bytes, request: Request, token: str) -> AnswerBody:
    if name == b"complete":
        content_type = request.first.get(b"content-type", b"").decode("latin-1")
        if not request.body and not content_type:
            return AnswerBody(token=token)
        if content_type in ("", FORM):
            # What curl says of every body unless it is told; nobody means it.
            content_type = "application/json" if readable_json(request.body) else "application/octet-stream"
        links = request.all(b"nexus-link")
        return AnswerBody(token=token, result=msgspec.Raw(request.body), content_type=content_type, links=links)
    body = read_answer(request.body, token)
    if body.state == "succeeded":
        body.state = STATES[name]
    return body


def raise_for_answer(status: str) -> None:
    """The refusal that an answer's status stands for where it came alone; returns for `ok`."""
    raise_for_step(status)
    if status == "conflict":
        raise Conflict("the operation already has another outcome; the first one stands", code="other_outcome")
    if status == "broken":
        raise Unavailable("the record of the operation cannot be read", code="record_broken")
