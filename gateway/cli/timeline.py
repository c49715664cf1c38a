"""An operation's history for people: its attempts, and under each what happened and what the handler did. Pure text.

Takes events as `/v1/operations/{id}/events` gives them; knows no gateway and prints nothing itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, cast

from gateway.cli.show import plain, span, word
from mesh.clock import from_rfc3339

VALUE_CHARS: Final = 80
_FIXED: Final = ("seq", "at", "type", "operation_id", "attempt")

Event = dict[str, Any]


def event_line(event: Event, start: str) -> str:
    """One event: number, time since acceptance, attempt, kind, what there is to say of it."""
    after = span(from_rfc3339(event["at"]) - from_rfc3339(start))
    attempt = f"attempt {event['attempt']}" if event["attempt"] else ""
    return _line(f"[dim]{event['seq']:>4}  +{after:<8}[/] {_kind(event):<22} {attempt:<10} {_said(event)}")


def timeline(events: list[Event], start: str) -> list[str]:
    """All events, under a line for each attempt."""
    lines: list[str] = []
    attempt = 0
    for event in events:
        after = span(from_rfc3339(event["at"]) - from_rfc3339(start))
        if event["attempt"] > attempt and event["type"] != "refused":
            attempt = event["attempt"]
            lines.append(f"[bold]attempt {attempt}[/]")
        other = f" [dim](attempt {event['attempt']})[/]" if event["attempt"] < attempt else ""
        lines.append(_line(f"[dim]{event['seq']:>4}  +{after:<8}[/] {_kind(event):<22} {_said(event)}{other}"))
    return lines


def children(rows: list[dict[str, Any]]) -> list[str]:
    """One line for each operation that the handler started, oldest first."""
    width = max((len(row["parent_key"]) for row in rows), default=0)
    return [
        f"  {plain(_clean(row['parent_key'])):<{width}}  {plain(row['id'])}  {word(row['state'])}"
        f"  {plain(_what(row))}{_took(row)}"
        for row in reversed(rows)
    ]


def _line(text: str) -> str:
    return text.rstrip()


def _kind(event: Event) -> str:
    return word(event["type"])


def _took(row: dict[str, Any]) -> str:
    closed = row["closed_at"]
    return f"  [dim]{span(from_rfc3339(closed) - from_rfc3339(row['created_at']))}[/]" if closed else ""


def _what(event: Event) -> str:
    return _clean(f"{event['endpoint']}: {event['service']}/{event['operation']}") if "endpoint" in event else ""


def _said(event: Event) -> str:
    """What is said of an event; of kinds that are not known here, all their fields."""
    say = _SAY.get(event["type"])
    return say(event) if say else plain(_fields(event))


def _key(event: Event) -> str:
    return plain(_clean(str(event.get("key") or f"{event.get('name', '')}#{event.get('n', '')}")))


def _step(event: Event) -> str:
    tries = event.get("tries", 1)
    facts = [span(event["ms"])] if isinstance(event.get("ms"), int | float) else []
    facts += [f"{tries} tries"] if isinstance(tries, int) and tries > 1 else []
    dim = f"  [dim]{plain(', '.join(facts))}[/]" if facts else ""
    return f"[bold]{_key(event)}[/]{dim}  {_outcome(event)}"


def _outcome(event: Event) -> str:
    error: Any = event.get("error") or event.get("failure")
    if error:
        fields = cast("Event", error) if isinstance(error, dict) else {"message": error}
        kind = f"{fields['type']}: " if fields.get("type") else ""
        return f"[red]{plain(_clean(kind + str(fields.get('message', fields))))}[/]"
    for name in ("result", "value"):
        if name in event:
            return plain(_short(json.dumps(event[name], ensure_ascii=False)))
        if f"{name}_preview" in event:
            return plain(f"{_short(event[f'{name}_preview'])} ({event[f'{name}_bytes']} bytes)")
    ref = event.get("result_dataref")
    if isinstance(ref, dict):
        found = cast("Event", ref)
        return plain(_clean(f"{found.get('bytes')} bytes at {found.get('url')}"))  # which ends with the digest
    return plain(f"{len(event['result_base64'])} characters of base64") if "result_base64" in event else ""


def _call(event: Event) -> str:
    to = f" {plain(_clean(str(event['id'])))}" if event.get("id") else ""
    return f"[bold]{_key(event)}[/]{to}  {plain(_what(event))} {_outcome(event)}".rstrip()


def _child(event: Event) -> str:
    return f"[bold]{_key(event)}[/] {plain(event.get('id', ''))} {word(str(event.get('state', '')))}  {_outcome(event)}"


def _progress(event: Event) -> str:
    percent = f"{event['percent']:g} %" if isinstance(event.get("percent"), int | float) else ""
    data = _short(json.dumps(event["data"], ensure_ascii=False)) if "data" in event else ""
    return plain(_clean("  ".join(part for part in (percent, event.get("message") or "", data) if part)))


def _value(event: Event) -> str:
    return f"[bold]{_key(event)}[/]  {_outcome(event)}"


def _suspended(event: Event) -> str:
    return plain(f"until {event['until']}" if "until" in event else "until a child ends")


def _fields(event: Event) -> str:
    shown = ((name, value) for name, value in event.items() if name not in _FIXED)
    return ", ".join(f"{name}: {_short(_text(value))}" for name, value in shown)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _short(text: str) -> str:
    text = _clean(text)
    return text if len(text) <= VALUE_CHARS else f"{text[:VALUE_CHARS]}…"


def _clean(text: str) -> str:
    """Without what would move a terminal's cursor: these words come from agents."""
    return "".join(one if one.isprintable() else " " for one in text)


_SAY: Final[dict[str, Callable[[Event], str]]] = {
    "step": _step,
    "try": _step,
    "call": _call,
    "child": _child,
    "progress": _progress,
    "value": _value,
    "fired": _value,
    "suspended": _suspended,
}
