"""What agents say about the attempts they have: read, booked in one store call for all of them, told to who waits.

The same for answers in a poll's frame and for the routes of their own, one or many. The task token is the proof.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gateway.starts import DETAIL_CHARS_MAX, RETRY_AFTER_MS_MAX
from gateway.waiters import Ending
from mesh.clock import now_ms
from mesh.errors import Malformed, Unauthenticated, Unprocessable
from mesh.ids import jittered
from mesh.machine import Event, State
from mesh.store.layout import Outcome
from mesh.store.pulls import Ended, Released, Retried, Taken
from mesh.store.store import pack
from mesh.store.verbs import Completed, Completion
from mesh.wire import (
    HANDLER_ERRORS,
    READ_NS_MAX,
    as_operation_failure,
    failure_json,
    format_link,
    handler_failure,
    headers_for_handler_error,
    is_failure,
    load_json,
    parse_handler_failure,
    parse_links,
    retryable_by_default,
)
from mesh.wire.failures import FAILURE_DEPTH_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gateway.courier import Session
    from gateway.metrics import Metrics
    from gateway.pull.frames import AnswerBody
    from gateway.waiters import FirstRequest, Waiters
    from mesh.store.pulls import Answer, PullStore
    from mesh.store.verbs import Work
    from mesh.tokens import Claim, CompletionTokens

REASON_CHARS_MAX: Final = 200
_JSON: Final = "application/json"
_media_type: Final = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?").fullmatch
_STATES: Final = {Event.SUCCEED: State.SUCCEEDED, Event.FAIL: State.FAILED, Event.CANCEL: State.CANCELED}
# Looked up once: CPython 3.11 is slow to find the member of an enum.
_SUCCEED: Final = Event.SUCCEED
_DONE: Final = Completion.DONE
_SAME: Final = Completion.SAME
_WORDS: Final = {
    Completion.DONE: "ok",
    Completion.SAME: "ok",
    Completion.DROPPED: "ok",
    Completion.OTHER: "conflict",
    Completion.LEASE_LOST: "lost",
    Completion.STALE_RUN: "lost",
    Completion.UNKNOWN: "unknown",
}
_FAILED: Final = ("message", "failure", "type", "retryable", "retry_after_ms", "counts")
_FIELDS: Final = {
    "succeeded": ("result", "result_base64", "content_type", "links"),
    "failed": _FAILED,
    "canceled": _FAILED[:2],
    "released": ("reason",),
}
"""State -> the fields of such an answer, beside token and state."""
_OPTIONAL: Final[tuple[tuple[str, object], ...]] = (
    ("result", msgspec.UNSET), ("result_base64", None), ("content_type", None), ("links", []), ("message", ""),
    ("failure", msgspec.UNSET), ("type", ""), ("retryable", None), ("retry_after_ms", 0), ("counts", True),
    ("reason", ""),
)  # fmt: skip
"""The fields that an answer may leave out, with what they are then."""
_GOES_ON: Final = (Retried, Released)
"""The operation does, elsewhere or later. A tuple: a union would be made anew for each."""
_TAKEN: Final = {"lost": "lost", "ended": "ended", "unknown": "unknown", "broken": "broken"}


class _Answered(msgspec.Struct, frozen=True, gc=False):
    """One answer on its way into the store; `first` is the caller's open request, which it was promised to."""

    place: int
    answer: Answer
    ending: tuple[Event, Outcome] | None
    first: FirstRequest | None


class Answering:
    """Books answers. `take` gets work that the store leased on the way; `wake` a line that may move.

    `handed`: what the tokens of tasks speak for that went out here, so that most are checked by looking them up.
    """

    def __init__(
        self,
        *,
        store: PullStore,
        tokens: CompletionTokens,
        waiters: Waiters,
        session: Session,
        metrics: Metrics,
        handed: dict[str, Claim],
        take: Callable[[Iterable[Work]], None],
        wake: Callable[[str], None],
        alone: Callable[[], bool],
    ) -> None:
        self._store = store
        self._tokens = tokens
        self._waiters = waiters
        self._session = session
        self._metrics = metrics
        self._handed = handed
        self._take = take
        self._wake = wake
        self._alone = alone

    async def answer(self, bodies: Sequence[AnswerBody], *, strict: bool = False) -> list[str]:
        """A status word per answer (frames.py). Raises Unavailable when none of them is surely booked.

        `strict`: what is `invalid` is raised, as Unauthenticated, Malformed or Unprocessable.
        """
        statuses = ["invalid"] * len(bodies)
        waiting: list[_Answered] = []
        try:
            self._read(bodies, waiting, strict=strict)
            answers = [one.answer for one in waiting]
            alone, session = self._alone(), self._session.name
            replies = await self._store.answers(answers, session=session, alone=alone) if answers else []
        except BaseException:
            for one in waiting:
                if one.first is not None:
                    one.first.release(unsure=True)
            raise
        self._tell(waiting, replies, statuses)
        return statuses

    def _tell(self, waiting: list[_Answered], replies: list[Completed | Taken], statuses: list[str]) -> None:
        works: list[Work] = []
        lines: set[str] = set()
        ended: dict[State, int] = {}
        tell = self._waiters.tell
        for one, reply in zip(waiting, replies, strict=True):
            if isinstance(reply, Taken):
                statuses[one.place] = _TAKEN.get(reply.verdict, "ok")
                if one.first is not None:
                    one.first.release()
            else:
                statuses[one.place] = _WORDS[reply.verdict]
                _settle(one, reply, ended)
                if reply.callback is not None:
                    works.append(reply.callback)
            if reply.line:
                lines.add(reply.line)
            tell(one.answer.id)
        for state, count in ended.items():
            self._metrics.ended(state, count)
        if works:
            self._take(works)
        for line in lines:
            self._wake(line)

    def _read(self, bodies: Sequence[AnswerBody], into: list[_Answered], *, strict: bool) -> None:
        now_s = now_ms() / 1000
        handed, check, first_of = self._handed.pop, self._tokens.check, self._waiters.first
        for place, body in enumerate(bodies):
            token = body.token
            try:
                claim = handed(token, None) or check(token, now_s)
                said = read(body, claim)
            except (Unauthenticated, Malformed, Unprocessable):
                if strict:
                    raise
                continue
            if isinstance(said, _GOES_ON):
                into.append(_Answered(place, said, None, None))
                continue
            event, outcome = said
            operation, run, attempt = claim
            first = first_of(operation)
            if first is not None and not first.claim():
                first = None
            report = Ended(operation, run, attempt, event, pack(outcome), first is not None)
            into.append(_Answered(place, report, said, first))


def _settle(one: _Answered, reply: Completed, ended: dict[State, int]) -> None:
    """As for an outcome that came with a start's reply (starts.py); `ended` counts what is over now."""
    if one.ending is None:
        return
    event, outcome = one.ending
    state, verdict = _STATES[event], reply.verdict
    if verdict is _DONE:
        ended[state] = ended.get(state, 0) + 1
    if one.first is not None:
        # An equal outcome that stands already may be this very call, sent again after its reply was lost.
        if verdict is _DONE or verdict is _SAME:
            one.first.settle(Ending(state, outcome, one.answer.attempt, reply.seq, reply.at_ms, reply.journal))
        else:
            one.first.release()


def read(body: AnswerBody, claim: Claim) -> tuple[Event, Outcome] | Retried | Released:
    """One answer for the store, or how the operation ends. Raises Malformed, Unprocessable."""
    if body.state == "succeeded":
        if body.message or body.reason or body.failure is not msgspec.UNSET:
            _only(body)
        return _SUCCEED, _result(body)
    _only(body)
    if body.state == "released":
        return Released(*claim, body.reason[:REASON_CHARS_MAX] or "released")
    if body.state == "failed" and (body.type or body.retryable is not None):
        return _handler_error(body, claim)
    if body.state not in ("failed", "canceled"):
        raise Malformed("state is succeeded, failed, canceled or released", code="state_invalid")
    failure = as_operation_failure(
        body.state, _failure(body) or {"message": body.message or f"the operation {body.state}"}
    )
    event = Event.CANCEL if body.state == "canceled" else Event.FAIL
    return event, Outcome("failure", body=failure_json(failure))


def _only(body: AnswerBody) -> None:
    """Raise Unprocessable for a field that an answer of this state does not have: its text would be lost silently."""
    taken = _FIELDS.get(body.state)
    if taken is None:
        return
    for name, nothing in _OPTIONAL:
        if name not in taken and getattr(body, name) != nothing:
            detail = f"an answer that says {body.state} has no {name!r}; it takes {', '.join(taken)}"
            raise Unprocessable(detail, code="body_invalid", errors=[{"pointer": f"/{name}", "detail": detail}])


def _result(body: AnswerBody) -> Outcome:
    links = [format_link(link) for link in parse_links(body.links)] if body.links else []
    if body.content_type is not None and not _media_type(body.content_type):
        raise Malformed("content_type is no media type", code="result_invalid")
    if body.result is not msgspec.UNSET:
        if body.result_base64 is not None:
            raise Malformed("give result or result_base64, not both", code="result_invalid")
        return Outcome("result", "", body.content_type or _JSON, bytes(body.result), links=links)
    if body.result_base64 is None:
        return Outcome("result", "", None, b"", links=links)
    try:
        content = b64decode(body.result_base64, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("result_base64 is not base64", code="result_invalid") from None
    return Outcome("result", "", body.content_type or "application/octet-stream", content, links=links)


def _failure(body: AnswerBody) -> dict[str, Any] | None:
    """The Failure of an answer that has one. Raises Malformed."""
    if isinstance(body.failure, msgspec.UnsetType) or (raw := bytes(body.failure)) == b"null":
        return None
    value = load_json(raw, FAILURE_DEPTH_MAX, ns_max=READ_NS_MAX)
    if not is_failure(value):
        raise Malformed("failure is not a Nexus Failure", code="failure_invalid")
    return value


def _handler_error(body: AnswerBody, claim: Claim) -> tuple[Event, Outcome] | Retried:
    """The attempt failed: repeated where that is worth while, else it ends the operation as a refusal."""
    error_type = body.type or "INTERNAL"
    own = _failure(body)
    failure = own or {"message": body.message or error_type}
    said = parse_handler_failure(HANDLER_ERRORS.get(error_type, (500, True))[0], _JSON_HEADERS, failure_json(failure))
    retryable = retryable_by_default(error_type) if body.retryable is None else body.retryable
    whole = said.failure
    if said.type != error_type or said.retryable != retryable or not own:
        whole = handler_failure(error_type, body.message or said.message, retryable=body.retryable, cause=own)
    detail = f"{error_type}: {body.message or said.message}"[:DETAIL_CHARS_MAX]
    if retryable:
        last = Outcome("mesh", "attempts_exhausted", body=failure_json(whole))
        least_ms = min(max(body.retry_after_ms, 0), RETRY_AFTER_MS_MAX)
        chance = jittered(1_000, 1) / 1_000 - 1
        return Retried(*claim, detail, pack(last), least_ms, chance, int(not body.counts))
    status = HANDLER_ERRORS.get(error_type, (500, True))[0]
    headers = headers_for_handler_error(error_type, retryable=False)
    return Event.FAIL, Outcome("handler_error", error_type, None, failure_json(whole), status, headers)


_JSON_HEADERS: Final = [(b"content-type", b"application/json")]
