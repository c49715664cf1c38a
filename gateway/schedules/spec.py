"""What a caller says of a schedule, how it is kept, and the record of it. Knows no route and no store verb.

The template is the body of a start (start_body.py), checked when it is written and again at every run.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from msgspec.structs import replace

from gateway.body_fields import body_invalid, read_fields
from gateway.schedules.times import Clock, clock_of, spread
from gateway.start_body import LABELS_MAX, StartBody, read_order
from mesh.clock import to_rfc3339
from mesh.errors import Malformed, Unprocessable
from mesh.wire import CallerHeaders

if TYPE_CHECKING:
    from gateway.orders import Order
    from mesh.store.schedules import ScheduleRow

DOCUMENT_BYTES_MAX: Final = 256 << 10
NAME: Final = r"[A-Za-z][A-Za-z0-9._-]{0,99}"
DESCRIPTION_CHARS_MAX: Final = 1_000
CATCH_UP_MS: Final = 3_600_000
CATCH_UP_MS_MIN: Final = 10_000
CATCH_UP_MS_MAX: Final = 365 * 86_400_000
JITTER_MS_MAX: Final = 3_600_000
LABEL: Final = "mesh.schedule"
"""The label of a run, with the schedule's name."""
UPCOMING: Final = 5

Overlap = Literal["skip", "queue", "allow", "cancel_previous"]

_name: Final = re.compile(NAME).fullmatch
_NO_HEADERS: Final = CallerHeaders([], [], [], "")


class ScheduleBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of PUT /v1/schedules/{name}.

    `cron`: five fields, or six with seconds in front; `timezone`: IANA. `overlap`: what a time does while the last run
    goes on. `catch_up_ms`: how late a time may be started when no gateway was there; `jitter_ms`: each time is put off
    by less than that. `operation`: as in POST /v1/operations.
    """

    cron: str
    operation: StartBody
    timezone: str = "UTC"
    overlap: Overlap = "skip"
    catch_up_ms: int = CATCH_UP_MS
    jitter_ms: int = 0
    description: str = ""

    @property
    def clock(self) -> Clock:
        return clock_of(self.cron, self.timezone)

    @property
    def clock_text(self) -> str:
        """Changes when the times do."""
        return f"{self.cron} {self.timezone} {self.jitter_ms}"

    def due(self, schedule_id: str, at_ms: int) -> int:
        """When to act on the time `at_ms`, 0 for none."""
        return at_ms + spread(schedule_id, at_ms, self.jitter_ms) if at_ms else 0


_decoder: Final = msgspec.json.Decoder(ScheduleBody)
_encode: Final = msgspec.json.Encoder(order="deterministic").encode


def check_name(name: str) -> None:
    """Raises Malformed."""
    if not _name(name):
        detail = "a schedule's name has a letter first, then letters, digits, `.`, `_` and `-`, at most 100 in all"
        raise Malformed(detail, code="name_invalid")


def read_schedule(body: bytes, namespace: str) -> tuple[ScheduleBody, bytes]:
    """The schedule, and the document that keeps it. Raises Malformed, Unprocessable."""
    schedule = read_fields(body, _decoder, "a schedule")
    try:
        _ = schedule.clock
    except Malformed as error:
        raise body_invalid("/timezone" if error.code == "timezone_invalid" else "/cron", error.detail) from None
    if not CATCH_UP_MS_MIN <= schedule.catch_up_ms <= CATCH_UP_MS_MAX:
        detail = f"catch_up_ms is between {CATCH_UP_MS_MIN} and {CATCH_UP_MS_MAX} ms"
        raise body_invalid("/catch_up_ms", detail)
    if not 0 <= schedule.jitter_ms <= JITTER_MS_MAX:
        raise body_invalid("/jitter_ms", f"jitter_ms is between 0 and {JITTER_MS_MAX} ms")
    if len(schedule.description) > DESCRIPTION_CHARS_MAX:
        raise body_invalid("/description", f"a description has at most {DESCRIPTION_CHARS_MAX} characters")
    template = schedule.operation
    for name, given in (("parent", template.parent), ("delay_ms", template.delay_ms), ("start_at", template.start_at)):
        if given is not None:
            raise body_invalid(f"/operation/{name}", f"a schedule says when its operations begin; leave out `{name}`")
    if len(template.labels) >= LABELS_MAX or LABEL in template.labels:
        detail = f"there are at most {LABELS_MAX - 1} labels, and `{LABEL}` is the mesh's own"
        raise body_invalid("/operation/labels", detail)
    order_of(schedule, namespace, "check", "check", 0)
    return schedule, _encode(schedule)


def from_document(document: bytes) -> ScheduleBody:
    """What `read_schedule` kept."""
    return _decoder.decode(document)


def order_of(schedule: ScheduleBody, namespace: str, schedule_id: str, name: str, at_ms: int) -> Order:
    """The order of the run of `at_ms`: a double of it is the same operation, by its key. Raises Unprocessable."""
    headers = replace(_NO_HEADERS, key=f"{schedule_id}.{at_ms}")
    template = msgspec.structs.replace(schedule.operation, labels={**schedule.operation.labels, LABEL: name})
    try:
        return replace(read_order(template, namespace, headers), input_at="/operation/input")
    except Unprocessable as breach:
        errors = [{**one, "pointer": "/operation" + one["pointer"]} for one in breach.errors or ()]
        raise Unprocessable(breach.detail, code=breach.code, errors=errors) from None


def shown_template(template: StartBody) -> dict[str, Any]:
    """The fields that were given."""
    fields = msgspec.structs.fields(template)
    return {one.name: value for one in fields if (value := getattr(template, one.name)) != one.default and value != {}}


def record_fields(row: ScheduleRow, namespace: str) -> dict[str, Any]:
    """The record of a schedule, ready for JSON; `last_run` without its state."""
    schedule, facts = from_document(row.document), row.facts
    clock = schedule.clock
    upcoming: list[str] = []
    for at in () if row.paused else clock.times(max(row.next_ms - 1, 0)) if row.next_ms else ():
        upcoming.append(to_rfc3339(at))
        if len(upcoming) == UPCOMING:
            break
    told = {what: msgspec.Raw(text.encode()) for what in ("missed", "failed") if (text := facts.get(f"{what}_told"))}
    return {
        "name": row.name,
        "id": row.id,
        "namespace": namespace,
        "version": row.version,
        "description": schedule.description,
        "cron": schedule.cron,
        "timezone": schedule.timezone,
        "overlap": schedule.overlap,
        "catch_up_ms": schedule.catch_up_ms,
        "jitter_ms": schedule.jitter_ms,
        "operation": shown_template(schedule.operation),
        "paused": row.paused,
        "created_at": to_rfc3339(int(facts["created_at"])),
        "updated_at": to_rfc3339(int(facts["updated_at"])),
        "next_at": upcoming[0] if upcoming else None,
        "upcoming": upcoming,
        "queued": row.queued,
        "counts": {what: int(facts.get(what, 0)) for what in ("started", "skipped", "missed", "failed")},
        "last_run": _last(facts),
        "last_skipped_at": to_rfc3339(int(facts["skipped_at"])) if "skipped_at" in facts else None,
        "last_missed": told.get("missed"),
        "last_failure": told.get("failed"),
    }


def _last(facts: Any) -> dict[str, Any] | None:
    if "last" not in facts:
        return None
    return {"operation_id": facts["last"], "scheduled_at": to_rfc3339(int(facts["last_at"]))}
