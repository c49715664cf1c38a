"""What a meddler does to the requests and answers that pass it: small changes that faults.py puts together."""

from __future__ import annotations

import json
from collections.abc import Callable
from re import search, sub
from typing import Any
from urllib.parse import unquote

from mesh.check.wire import Answer, Request
from tests.conformance.meddler import Meddling

# -- what a meddler does to requests


def with_headers(request: Request, headers: list[tuple[str, str]], body: bytes | None = None) -> Request:
    sent = request.body if body is None else body
    return Request(request.method, request.target, headers, sent, request.at_s)


def without(*names: str) -> Callable[[Request], Request]:
    """Headers lost."""
    return lambda one: with_headers(one, [header for header in one.headers if header[0] not in names])


def first_only(name: str) -> Callable[[Request], Request]:
    """Of repeated headers the first, of joined ones the first part."""

    def change(one: Request) -> Request:
        rest = [header for header in one.headers if header[0] != name]
        kept = [(name, value.partition(",")[0]) for value in one.all(name)[:1]]
        return with_headers(one, rest + kept)

    return change


def header(name: str, to: Callable[[str], str]) -> Callable[[Request], Request]:
    return lambda one: with_headers(one, [(key, to(value) if key == name else value) for key, value in one.headers])


def plus(*headers: tuple[str, str]) -> Callable[[Request], Request]:
    return lambda one: with_headers(one, [*one.headers, *headers])


def target(to: Callable[[str], str]) -> Callable[[Request], Request]:
    return lambda one: Request(one.method, to(one.target), one.headers, one.body, one.at_s)


def body(to: Callable[[bytes], bytes]) -> Callable[[Request], Request]:
    return lambda one: with_headers(one, one.headers, to(one.body))


def without_query(part: str) -> Callable[[str], str]:
    return lambda text: text.partition("?")[0] if part in text.partition("?")[2] else text


# -- what it does to answers


def status(*changes: tuple[int, int]) -> Callable[[Request, Answer], Answer]:
    known = dict(changes)
    return lambda _, one: Answer(known.get(one.status, one.status), one.headers, one.body, one.took_ms)


def answer_header(name: str, to: Callable[[str], str | None]) -> Callable[[Request, Answer], Answer]:
    """The header changed; lost where `to` gives None."""

    def change(_: Request, one: Answer) -> Answer:
        changed = [(key, to(value) if key == name else value) for key, value in one.headers]
        return Answer(one.status, [(key, value) for key, value in changed if value is not None], one.body, one.took_ms)

    return change


def answer_json(to: Callable[[Any], Any]) -> Callable[[Request, Answer], Answer]:
    def change(_: Request, one: Answer) -> Answer:
        try:
            value = json.loads(one.body)
        except ValueError:
            return one
        return Answer(one.status, one.headers, json.dumps(to(value)).encode(), one.took_ms)

    return change


def answer_body(to: Callable[[bytes], bytes]) -> Callable[[Request, Answer], Answer]:
    return lambda _, one: Answer(one.status, one.headers, to(one.body), one.took_ms)


def lose(*names: str) -> Callable[[Any], Any]:
    """Fields lost, at any depth."""

    def change(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: change(inner) for name, inner in value.items() if name not in names}
        return [change(one) for one in value] if isinstance(value, list) else value

    return change


def lost(_: str) -> None:
    return None


def flipped(value: str) -> str:
    return {"true": "false", "false": "true"}.get(value, value)


def asks(change: Any) -> Meddling:
    return Meddling(request=change)


def answers(change: Any) -> Meddling:
    return Meddling(answer=change)


def typed_empty(one: Request) -> Request:
    """An empty body gets a type, as some frameworks do."""
    return one if one.body else with_headers(one, [*one.headers, ("content-type", "application/octet-stream")])


def empty_typed(_: Request, one: Answer) -> Answer:
    return one if one.body else Answer(one.status, [*one.headers, ("content-type", "application/json")], b"", 0)


def accepted_201(_: Request, one: Answer) -> Answer:
    """A handler's answer taken for a proper 201 whatever it says."""
    if one.status != 201:
        return one
    return Answer(201, [("content-type", "application/json")], b'{"token": "t", "state": "running"}', 0)


def worded(word: bytes) -> Meddling:
    """Every answer has this body."""
    return Meddling(answer=lambda _, one: Answer(one.status, one.headers, word, one.took_ms))


def recorded(**fields: Any) -> Callable[[Any], Any]:
    """Every JSON answer has these fields."""
    return lambda value: {**value, **fields} if isinstance(value, dict) else value


def always(answer: bytes) -> Meddling:
    """Every answer is 200 with this JSON."""
    return Meddling(answer=lambda *_: Answer(200, [("content-type", "application/json")], answer, 0))


def fresh_key(one: Request) -> Request:
    return with_headers(
        one, [(key, f"{one.at_s}" if key == "idempotency-key" else value) for key, value in one.headers]
    )


def timeouts_lost(one: Request) -> Request:
    return body(lambda raw: raw.replace(b"timeouts", b"labels"))(without("operation-timeout")(one))


def routed_decoded(text: str) -> str:
    """A path as frameworks see it that decode before they route."""
    path, sign, query = text.partition("?")
    return unquote(path.replace("%20", "+")) + sign + query if "%" in path else text


def whole_seconds(value: str) -> str:
    """Fractions and milliseconds become what nobody understands."""
    return value.replace(".5s", "h").replace("50ms", "h").replace("00ms", "h")


def links_of_201_lost(request: Request, one: Answer) -> Answer:
    return answer_header("nexus-link", lost)(request, one) if one.status == 201 else one


def chunks_lost(one: Request) -> Request:
    return with_headers(one, one.headers, b"") if one.get("transfer-encoding") else one


def cancel_eaten(one: Request) -> Request | list[Request]:
    """A cancel never arrives: its path is changed to one nobody knows."""
    return target(lambda text: text.replace("/cancel", "/nothing"))(one)


older_cancel_eaten = Meddling(
    request=target(lambda text: sub(r"/[0-9]{2}-[0-9a-f]{20}/cancel$", "/nothing/cancel", text)),
    answer=lambda request, one: Answer(202, [], b"", 0) if search(r"/[0-9]{2}-.{20}/cancel$", request.target) else one,
)


def twice(one: Request) -> list[Request]:
    return [one, one]


def stated_in_query(one: Request) -> Request:
    """The query beats the header."""
    return without("nexus-operation-token")(one) if "token=" in one.target.partition("?")[2] else one


def own_word(_: Request, one: Answer) -> Answer:
    """A proxy's 503 taken for the handler's own."""
    if one.status != 503:
        return one
    failure = {"message": "x", "metadata": {"type": "nexus.HandlerError"}, "details": {"type": "UNAVAILABLE"}}
    return Answer(503, [("content-type", "application/json")], json.dumps(failure).encode(), 0)
