"""What agents say about running attempts: `POST /v1/tasks/heartbeat`, many in one request. HTTP in, thin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from gateway.outcomes import encode_json
from gateway.problems import problem
from mesh.edge import Answer, HotRoute, Request
from mesh.errors import Malformed, Unprocessable

if TYPE_CHECKING:
    from gateway.operations import Operations

PATH: Final = b"/v1/tasks/heartbeat"
TASKS_MAX: Final = 1_000
LEASE_MS_MIN: Final = 1_000
LEASE_MS_MAX: Final = 3_600_000


class TaskBody(msgspec.Struct, forbid_unknown_fields=True):
    """`token`: the attempt's completion token; `lease_ms`: how long from now, absent = as before."""

    token: str
    lease_ms: int = 0


class HeartbeatBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of the heartbeat."""

    tasks: list[TaskBody]


_decode = msgspec.json.Decoder(HeartbeatBody).decode


class TasksSurface:
    """The task token is the whole proof, as for completions; no key is asked for."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._heartbeat = HotRoute(self.heartbeat, problem)

    def find(self, method: str, raw_path: bytes) -> HotRoute | None:
        """POST /v1/tasks/heartbeat."""
        return self._heartbeat if method == "POST" and raw_path == PATH else None

    async def heartbeat(self, request: Request) -> Answer:
        """`{"tasks": [{"status": "ok"|"cancel"|"lost"|"ended"|"unknown"|"invalid"}, ...]}`, in the order asked."""
        try:
            body = _decode(request.body)
        except msgspec.ValidationError as error:
            raise Unprocessable(f"the body is not a heartbeat: {error}", code="body_invalid") from None
        except msgspec.DecodeError as error:
            raise Malformed(f"not JSON: {error}", code="json_invalid") from None
        if len(body.tasks) > TASKS_MAX:
            raise Unprocessable(f"one heartbeat names at most {TASKS_MAX} tasks", code="body_invalid")
        for position, task in enumerate(body.tasks):
            if task.lease_ms and not LEASE_MS_MIN <= task.lease_ms <= LEASE_MS_MAX:
                detail = f"lease_ms is between {LEASE_MS_MIN} and {LEASE_MS_MAX}"
                raise Unprocessable(
                    detail, code="body_invalid", errors=[{"pointer": f"/tasks/{position}/lease_ms", "detail": detail}]
                )
        replies = await self._operations.heartbeat([(task.token, task.lease_ms) for task in body.tasks])
        return Answer(
            200,
            [(b"content-type", b"application/json")],
            encode_json({"tasks": [{"status": reply} for reply in replies]}),
        )
