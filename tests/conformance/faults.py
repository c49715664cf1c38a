"""Planted faults: for each group of cases, and in the end for each case, something that must make it fail."""

from __future__ import annotations

from mesh.check.wire import Answer
from tests.conformance.meddler import Fault, Meddling
from tests.conformance.meddling import (
    accepted_201,
    always,
    answer_body,
    answer_header,
    answer_json,
    answers,
    asks,
    body,
    cancel_eaten,
    chunks_lost,
    empty_typed,
    first_only,
    flipped,
    fresh_key,
    header,
    lose,
    lost,
    own_word,
    plus,
    recorded,
    routed_decoded,
    stated_in_query,
    status,
    target,
    timeouts_lost,
    twice,
    typed_empty,
    whole_seconds,
    without,
    without_query,
    worded,
)


def fault(name: str, kind: str, *cases: int | range, **doors: Meddling) -> Fault:
    numbers = [number for one in cases for number in (one if isinstance(one, range) else (one,))]
    return Fault(name=name, kind=kind, cases=tuple(numbers), **doors)


JSON_WITH_CHARSET = answer_header("content-type", lambda value: value + "; charset=utf-8")
TYPES = range(32, 43)
NAMED = status((400, 422), (404, 400))
EVERYWHERE = (
    # One fault, two kinds: what a server at the front door can do wrong.
    ("JSON gets a charset", (1, 21), {"front": answers(JSON_WITH_CHARSET)}),
    ("empty bodies get a type", (2,), {"front": asks(typed_empty)}),
    ("empty answers are labelled JSON", (3,), {"front": answers(empty_typed)}),
    ("bytes become text", (4,), {"front": asks(body(lambda raw: raw.decode("latin-1").encode("utf-8")))}),
    ("null becomes zero", (5,), {"front": asks(body(lambda raw: b"0" if raw == b"null" else raw))}),
    (
        "validation errors are 422, unknown names 400",
        (6, 7, 8, 11, 12, 13, 15, 25, 26, 29, 57, 58, 85),
        {"front": answers(NAMED)},
    ),
    (
        "only the plain JSON type is known",
        (9,),
        {"front": asks(header("content-type", lambda value: value if value == "application/json" else "text/plain"))},
    ),
    (
        "paths are decoded before they are routed",
        (10,),
        {"front": asks(target(routed_decoded))},
    ),
    ("request ids are ignored", (17, 18, 19), {"front": asks(without("nexus-request-id"))}),
    ("tokens are lost", (21, 22), {"front": answers(answer_json(lose("token")))}),
    ("answers are late", (23,), {"front": Meddling(late_ms=1600)}),
    (
        "only whole seconds are understood",
        (24,),
        {"front": asks(header("request-timeout", whole_seconds))},
    ),
    ("operation timeouts are lost", (26,), {"front": asks(without("operation-timeout"))}),
    ("the caller's headers are lost", (27, 93), {"front": asks(without("x-user-header", "traceparent"))}),
    ("one link is enough", (28,), {"front": asks(first_only("nexus-link"))}),
    ("links of the handler are lost", (30,), {"front": answers(answer_header("nexus-link", lost))}),
    (
        "links are decoded",
        (31,),
        {
            "front": Meddling(
                request=header("nexus-link", lambda value: value.replace("%2C", "x")),
                answer=answer_header("nexus-link", lambda value: value.replace("%2C", ",")),
            )
        },
    ),
    ("details are lost", (*TYPES, 43, 44, 45), {"front": answers(answer_json(lose("details")))}),
    ("the state is said in the body only", (44, 45), {"front": answers(answer_header("nexus-operation-state", lost))}),
    ("causes are lost", (46,), {"front": answers(answer_json(lose("cause")))}),
    ("cancel answers 200", (*range(54, 57), 59, 60, 63), {"front": answers(status((202, 200)))}),
    ("the header's token is not read", (54, 59), {"front": asks(without("nexus-operation-token"))}),
    ("the query's token is not read", (55, 63), {"front": asks(target(without_query("token=")))}),
    ("the query's token beats the header's", (56,), {"front": asks(stated_in_query)}),
    ("callback queries are dropped", (64,), {"tail": asks(target(lambda text: text.partition("?")[0]))}),
    ("callback headers are dropped", (64, 74), {"tail": asks(without("token", "temporal-callback-token"))}),
    ("callbacks have no times", (65,), {"tail": asks(without("nexus-operation-close-time"))}),
    ("null results have a body in callbacks", (66,), {"tail": asks(body(lambda raw: raw or b"null"))}),
    ("failures are told as successes", (67,), {"tail": asks(header("nexus-operation-state", lambda _: "succeeded"))}),
    (
        "what is not delivered is taken as delivered",
        (68,),
        {"tail": answers(status((500, 200), (503, 200), (429, 200), (408, 200)))},
    ),
    ("refusals are repeated", (69,), {"tail": answers(status((400, 500), (404, 500), (409, 500)))}),
    ("only 200 is delivered", (70,), {"tail": answers(status((201, 500), (202, 500), (204, 500), (299, 500)))}),
)
GATEWAY = (
    fault(
        "a Failure in a form of its own",
        "gateway",
        11,
        12,
        15,
        82,
        front=answers(answer_json(lose("metadata"))),
        report=answers(answer_header("nexus-request-retryable", flipped)),
    ),
    fault("bad names and methods are 422", "gateway", 16, 88, front=answers(NAMED)),
    fault("prefixes are cut", "gateway", 14, back=asks(target(lambda text: text.replace("/team%20a/nexus", "")))),
    fault("starts are sent twice", "gateway", 17, 18, 19, 20, 48, back=asks(twice)),
    fault("nobody makes request ids", "gateway", 20, back=asks(without("nexus-request-id"))),
    fault(
        "errors change their status",
        "gateway",
        *TYPES,
        94,
        front=answers(status(*((one, 418) for one in (400, 401, 403, 404, 409, 424, 501)))),
    ),
    fault("overrides are not read", "gateway", 43, back=answers(answer_json(lose("retryableOverride")))),
    fault("own errors are not marked", "gateway", 47, 94, front=answers(answer_header("mesh-failure-source", lost))),
    fault("only the status counts", "gateway", 48, back=worded(b"")),
    fault("400 is not believed", "gateway", 49, 50, back=answers(status((400, 503), (404, 503)))),
    fault("only the header says a state", "gateway", 51, back=answers(answer_json(lose("details")))),
    fault("any 201 will do", "gateway", 52, 86, back=answers(accepted_201)),
    fault("redirects are followed", "gateway", 53, back=Meddling(follow=True)),
    fault("cancels are not told", "gateway", 54, 55, 56, 59, 61, 62, 63, back=asks(cancel_eaten)),
    fault(
        "the result is lost",
        "gateway",
        60,
        72,
        75,
        76,
        81,
        84,
        front=answers(lambda request, one: Answer(500, one.headers, b"", 0) if "/result" in request.target else one),
        tail=answers(status((200, 400))),
    ),
    fault("each try has an id of its own", "gateway", 71, tail=asks(header("webhook-id", lambda value: value + "x"))),
    fault("any callback URL will do", "gateway", 73, front=answers(status((400, 201)))),
    fault(
        "completions are answered with words",
        "gateway",
        *range(76, 82),
        83,
        84,
        report=worded(b"thanks"),
    ),
    fault(
        "every completion is taken",
        "gateway",
        77,
        78,
        79,
        80,
        82,
        report=answers(status((400, 200), (401, 200), (409, 200))),
    ),
    fault("completions before the start are refused", "gateway", 81, report=answers(status((200, 409)))),
    fault("only the shape of today is read", "gateway", 83, 46, front=answers(answer_json(lose("cause")))),
    fault("chunks are not read", "gateway", 84, report=asks(chunks_lost)),
    fault("long headers are cut", "gateway", 87, front=asks(header("x-long", lambda value: value[:100]))),
    fault("failures of reach are not counted", "gateway", 89, back=answers(own_word)),
    fault("Retry-After is not read", "gateway", 90, back=answers(answer_header("retry-after", lost))),
    fault("ids are no names", "gateway", 91, front=asks(target(lambda text: text.replace("/ep-", "/no-")))),
    fault("forged headers pass", "gateway", 92, back=asks(plus(("cookie", "a=b"), ("mesh-attempt", "77")))),
    fault("older clients are not served", "gateway", 95, front=answers(status((412, 200), (408, 200)))),
)
AGENT = (
    fault("the prefix is not served", "agent", 14, front=asks(target(lambda text: text.replace("/hosted/here", "")))),
    fault("errors are pages", "agent", 16, 88, front=worded(b"<h1>No</h1>")),
    fault("no id is made", "agent", 20, front=answers(answer_json(lose("request_id")))),
    fault(
        "retry headers lie", "agent", *TYPES, 43, 47, front=answers(answer_header("nexus-request-retryable", flipped))
    ),
    fault(
        "exceptions tell",
        "agent",
        47,
        front=answers(answer_json(recorded(message="pass-word-in-text"))),
    ),
    fault(
        "unheard-of tokens are canceled", "agent", 57, 58, 62, front=answers(status((400, 202), (404, 202), (501, 202)))
    ),
    fault("the end is told again after a cancel", "agent", 60, tail=asks(twice)),
    fault("callbacks are demanded", "agent", 75, front=answers(status((201, 400)))),
    fault("too much is unavailable", "agent", 90, front=answers(status((429, 503)))),
)
CLIENT = (
    fault("values are changed", "client", 1, 9, front=answers(answer_json(lambda value: [value]))),
    fault("null is sent as zero", "client", 2, front=asks(body(lambda raw: raw.replace(b"}", b',"input":0}')))),
    fault("null is read as text", "client", 3, front=answers(answer_body(lambda raw: raw or b'""'))),
    fault("bytes are changed", "client", 4, 5, front=asks(body(lambda raw: raw[:-1]))),
    fault("names are decoded", "client", 10, front=asks(target(lambda text: text.replace("%2F", "/")))),
    fault(
        "statuses are misread",
        "client",
        11,
        19,
        *TYPES,
        49,
        50,
        58,
        85,
        front=answers(lambda _, one: Answer(418, [], b"", 0) if one.status >= 400 else one),
    ),
    fault("the base's path is cut", "client", 14, front=asks(target(lambda text: text.replace("/mesh/a%20b", "")))),
    fault(
        "each try has a key of its own",
        "client",
        17,
        20,
        front=asks(fresh_key),
    ),
    fault(
        "accepted is done",
        "client",
        21,
        23,
        front=answers(answer_json(recorded(state="succeeded", result=1, id="x"))),
    ),
    fault(
        "timeouts are not sent",
        "client",
        24,
        26,
        front=asks(timeouts_lost),
    ),
    fault("headers are not sent", "client", 27, 93, front=asks(without("x-user-header", "traceparent"))),
    fault(
        "every end is a failure",
        "client",
        44,
        45,
        46,
        front=always(b'{"message":"failed","id":"x","state":"timed_out"}'),
    ),
    fault(
        "no record is a record",
        "client",
        51,
        52,
        53,
        front=always(b'{"id":"x","state":"succeeded","result":1}'),
    ),
    fault("cancels go elsewhere", "client", 54, front=asks(target(lambda text: text.replace("/cancel", "/result")))),
    fault("Retry-After is not read", "client", 90, front=answers(answer_header("retry-after", lost))),
)
FAULTS = (
    *(Fault(name=name, kind=kind, cases=cases, **doors)
      for name, cases, doors in EVERYWHERE for kind in ("gateway", "agent")),
    *GATEWAY,
    *AGENT,
    *CLIENT,
)  # fmt: skip
