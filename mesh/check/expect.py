"""Whether a message is what a case expects: one sentence per breach. Pure.

The judge's own reading of the wire: it shares no code with what it judges.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, cast
from urllib.parse import unquote

from mesh.check.case import ABSENT, JSON, NOTHING, PRESENT, Between, Expect, Has, Links, Match
from mesh.check.wire import Answer, Message, Request

STATUS: Final = {
    "BAD_REQUEST": 400,
    "UNAUTHENTICATED": 401,
    "UNAUTHORIZED": 403,
    "NOT_FOUND": 404,
    "REQUEST_TIMEOUT": 408,
    "CONFLICT": 409,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "NOT_IMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "UPSTREAM_TIMEOUT": 520,
}
"""The eleven types of handler errors; Nexus spec, Predefined Handler Errors."""
RETRYABLE: Final = frozenset({"REQUEST_TIMEOUT", "RESOURCE_EXHAUSTED", "INTERNAL", "UNAVAILABLE", "UPSTREAM_TIMEOUT"})

_link = re.compile(r'\s*<([^<>]*)>((?:\s*;\s*[^;,"]+=(?:"[^"]*"|[^;,"]*))*)\s*(?:,|$)')
_type = re.compile(r';\s*type="?([^";]*)"?')


def breaches(expect: Expect, message: Message) -> list[str]:
    """What is not as expected; nothing when all is well."""
    found: list[str] = []
    if isinstance(message, Answer):
        found += _answer(expect, message)
    if isinstance(message, Request):
        found += _request(expect, message)
    if expect.type is not PRESENT:
        found += _header("content-type", expect.type, message)
    for name, wanted in expect.headers.items():
        found += _header(name, wanted, message)
    found += _body(expect, message)
    if expect.failure:
        found += _failure(expect, message)
    if expect.outcome:
        found += _outcome(expect.outcome, message)
    return found


def _request(expect: Expect, request: Request) -> list[str]:
    found = [] if expect.path is NOTHING else _value("the path", expect.path, request.path)
    return found + ([] if expect.target is NOTHING else _value("path and query", expect.target, request.target))


def _body(expect: Expect, message: Message) -> list[str]:
    found: list[str] = []
    if expect.body is not None and message.body != expect.body:
        found.append(f"the body is {message.body[:200]!r}, not {expect.body[:200]!r}")
    if expect.secret and expect.secret in message.body.decode("utf-8", "replace"):
        found.append(f"the body has {expect.secret!r} in it")
    return found if expect.json is NOTHING else found + _json("the body", expect.json, message)


def _answer(expect: Expect, answer: Answer) -> list[str]:
    found: list[str] = []
    wanted = (expect.status,) if isinstance(expect.status, int) else expect.status
    if wanted and answer.status not in wanted and answer.status // 100 not in wanted:
        found.append(f"the status is {answer.status}, not {_words(wanted)}")
    if expect.within_ms and answer.took_ms > expect.within_ms:
        found.append(f"it took {answer.took_ms:.0f} ms, more than {expect.within_ms}")
    if answer.took_ms < expect.after_ms:
        found.append(f"it took {answer.took_ms:.0f} ms, less than {expect.after_ms}")
    return found


def _words(statuses: tuple[int, ...]) -> str:
    return " or ".join(f"{one}xx" if one < 100 else str(one) for one in statuses)  # noqa: PLR2004


def _header(name: str, wanted: Any, message: Message) -> list[str]:
    if isinstance(wanted, Links):
        return _links(wanted, message)
    values = message.all(name)
    if wanted is ABSENT:
        return [f"there is a header {name}: {values[0]}"] if values else []
    if not values:
        return [f"there is no header {name}"]
    return [] if wanted is PRESENT else _value(f"the header {name}", wanted, values[0])


def _value(what: str, wanted: Any, value: str) -> list[str]:
    if isinstance(wanted, Match):
        return [] if re.fullmatch(wanted.pattern, value) else [f"{what} is {value!r}, which is no {wanted.pattern}"]
    if isinstance(wanted, Between):
        span = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m)", value)
        ms = float(span[1]) * {"ms": 1, "s": 1000, "m": 60_000}[span[2]] if span else -1.0
        low_ms, high_ms = float(wanted.low_ms), float(wanted.high_ms)
        return [] if low_ms <= ms <= high_ms else [f"{what} is {value!r}, not {low_ms:g} to {high_ms:g} ms"]
    return [] if value == wanted else [f"{what} is {value!r}, not {wanted!r}"]


def read_links(values: list[str]) -> list[tuple[str, str]] | None:
    """(url, type) of every link; None for a value that is no list of links."""
    text, at, links = ",".join(values), 0, list[tuple[str, str]]()
    while at < len(text):
        match = _link.match(text, at)
        kind = _type.search(match[2]) if match else None
        if match is None or kind is None:
            return None
        links.append((unquote(match[1]), kind[1]))
        at = match.end()
    return links


def _links(wanted: Links, message: Message) -> list[str]:
    found = read_links(message.all("nexus-link"))
    asked = [(unquote(url), kind) for url, kind in wanted.links]
    if found is None:
        return [f"Nexus-Link cannot be read: {message.all('nexus-link')}"]
    here = [one for one in found if one in asked] if wanted.among else found
    return [] if here == asked else [f"the links are {found}, not {asked}"]


def _json(what: str, wanted: Any, message: Message) -> list[str]:
    try:
        value = message.json
    except ValueError:
        return [f"{what} is no JSON"]
    return compare(what, wanted, value)


def compare(what: str, wanted: Any, value: Any) -> list[str]:
    """Of an object the named fields, of a list each entry, of all else equality; matchers anywhere."""
    if wanted is PRESENT:
        return []
    if isinstance(wanted, (Match, Between)):
        return _value(what, wanted, value) if isinstance(value, str) else [f"{what} is {_short(value)}, no text"]
    if isinstance(wanted, Has):
        items = cast("list[Any]", value) if isinstance(value, list) else []
        there = any(not compare(what, wanted.entry, one) for one in items)
        return [] if there else [f"{what} has no entry like {_short(wanted.entry)}: {_short(value)}"]
    if isinstance(wanted, dict):
        return _compare_object(what, cast("dict[str, Any]", wanted), value)
    if isinstance(wanted, (list, tuple)):
        return _compare_list(what, list(cast("list[Any]", wanted)), value)
    same = type(value) is type(wanted) and value == wanted
    return [] if same else [f"{what} is {_short(value)}, not {_short(wanted)}"]


def _compare_object(what: str, wanted: dict[str, Any], value: Any) -> list[str]:
    if not isinstance(value, dict):
        return [f"{what} is {_short(value)}, no object"]
    found: list[str] = []
    fields = cast("dict[str, Any]", value)
    for name, inner in wanted.items():
        if inner is ABSENT:
            found += [f"{what} has a field {name}"] if name in fields else []
        elif name not in fields:
            found.append(f"{what} has no field {name}")
        else:
            found += compare(f"{what}.{name}".replace("the body.", ""), inner, fields[name])
    return found


def _compare_list(what: str, wanted: list[Any], value: Any) -> list[str]:
    items = cast("list[Any]", value) if isinstance(value, list) else None
    if items is None or len(items) != len(wanted):
        return [f"{what} is {_short(value)}, not {_short(wanted)}"]
    pairs = zip(wanted, items, strict=True)
    return [line for at, (one, other) in enumerate(pairs) for line in compare(f"{what}[{at}]", one, other)]


def _short(value: Any) -> str:
    return str(json.dumps(value, ensure_ascii=False, default=repr))[:200]


def _failure(expect: Expect, message: Message) -> list[str]:
    kind = expect.failure
    fields = {"message": PRESENT, "metadata": {"type": "nexus.HandlerError"}, "details": {"type": kind}}
    found = _header("content-type", JSON, message) + _json("the body", fields, message)
    if isinstance(message, Answer) and not expect.status and message.status != STATUS[kind]:
        found.append(f"the status is {message.status}, not {STATUS[kind]} for {kind}")
    retryable = kind in RETRYABLE if expect.retryable is None else expect.retryable
    said = message.get("nexus-request-retryable")
    if said is not None and said.lower() != str(retryable).lower():
        found.append(f"Nexus-Request-Retryable says {said} for {kind}, not {str(retryable).lower()}")
    if expect.retryable is not None:
        found += _json("the body", {"details": {"retryableOverride": retryable}}, message)
        found += _header("nexus-request-retryable", str(retryable).lower(), message)
    return found


def _outcome(state: str, message: Message) -> list[str]:
    fields = {"metadata": {"type": "nexus.OperationError"}, "details": {"state": state}}
    found = _header("content-type", JSON, message) + _json("the body", fields, message)
    return found + _header("nexus-operation-state", state, message)
