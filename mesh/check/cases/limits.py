"""Cases 85, 89, 90, 91, 94, 95: limits, and what only a gateway has."""

from __future__ import annotations

from typing import Final

from mesh.check.case import (
    ABSENT,
    BYTES,
    JSON,
    Ask,
    Begin,
    Call,
    Case,
    Each,
    Expect,
    Finish,
    Got,
    Match,
    Release,
    Reply,
    Trial,
    Until,
)
from mesh.check.cases.shared import (
    ASYNC,
    HELD,
    NOT_FOUND,
    REFUSED,
    WAIT,
    ended,
    handler_failure,
    legacy,
    operation_error,
    record,
    start,
)

TOO_LARGE: Final = b"x" * ((2 << 20) + 1)
FLOODED_MS: Final = 800
"""By then all of a flood is there: who asks sooner whether it is full takes a place from it."""
OWN: Final = "only a gateway has endpoints"
REST_MS: Final = 400
BREAKER: Final = {
    "breaker": {"failures": 5, "open_ms": REST_MS},
    "retry": {"max_attempts": 1},
}
BY_ID: Final = "/nexus/endpoints/{endpoint_id}/services/svc/op"
ID: Final = ("nexus-request-id", "{key}")
UP: Final = ("x-handler", "of the handler")

CASES: Final = (
    Case(
        number=85,
        name="a body over the limit",
        group="limits",
        rule="P2",
        rules={"agent": "P135", "client": "P149"},
        expected="400 BAD_REQUEST above 2 MiB, not retryable; also where it comes in chunks. A gateway may take larger"
        " inputs, which it keeps outside its memory; anything else ends there",
        reason="a body without a bound is how one caller takes a server's memory",
        advice="Count bytes while they arrive; refuse with 400, which Nexus callers do not repeat.",
        gateway=Trial(
            steps=(
                Ask(path="{op}/cancel", body=TOO_LARGE, type=BYTES, expect=REFUSED),
                Ask(path="{op}/cancel", body=TOO_LARGE, type=BYTES, framing="chunked", expect=REFUSED),
                Got(count=0),
                start(body=TOO_LARGE[1:], type=BYTES, expect=Expect(status=200, body=TOO_LARGE[1:])),
            )
        ),
        agent=Trial(
            steps=(
                start(role="any", body=TOO_LARGE, type=BYTES, expect=REFUSED),
                start(role="any", body=TOO_LARGE, type=BYTES, framing="chunked", expect=REFUSED),
            )
        ),
        client=Trial(
            handler=(Reply(status=413, json={"code": "too_large", "detail": "no"}, type="application/problem+json"),),
            steps=(
                Call(verb="call", args=("peer", "svc", "op", 1), raises="TooLarge", fields={"code": "too_large"}),
                Got(count=1, quiet_ms=100),
            ),
        ),
    ),
    Case(
        number=89,
        name="a handler that is not reached",
        group="limits",
        rule="P96",
        expected="after five requests in a row that nobody answered it gets a rest; new work is kept, others are"
        " served; then one probe",
        reason="hammering a handler that is down keeps it down",
        advice="Count what did not get through, per endpoint; rest, then try once before all.",
        gateway=Trial(
            policy=BREAKER,
            handler=(*[Reply(status=503)] * 5, Reply(status=503, after_ms=100), Reply(json="well")),
            steps=(
                Ask(
                    method="PUT",
                    path="/v1/endpoints/{endpoint}-other",
                    json={"target": {"kind": "http", "url": "{receiver}"}},
                    type=JSON,
                    expect=Expect(status=201),
                ),
                Each((1, 2, 3, 4, 5), (start(headers=(WAIT,), expect=Expect(status=424, within_ms=2000)),)),
                start(headers=(ASYNC,), expect=Expect(status=201, within_ms=1000), times=3),
                Got(count=5, quiet_ms=50),
                Ask(
                    path="/nexus/endpoints/{endpoint}-other/services/svc/op",
                    expect=Expect(status=200, within_ms=1000),
                ),
                Got(nth=6, gap_from=5, gap_ms=(REST_MS - 50, REST_MS + 2000)),
                Got(count=6, quiet_ms=REST_MS),
                ended(Expect(status=(200, 424))),
                Got(nth=8),
                Ask(method="DELETE", path="/v1/endpoints/{endpoint}-other"),
            ),
        ),
        skips={"agent": OWN, "client": "the gateway does this for all its callers"},
    ),
    Case(
        number=90,
        name="too much at once",
        group="limits",
        rule="P91",
        rules={"agent": "P135", "client": "P146"},
        expected="429 RESOURCE_EXHAUSTED with Retry-After, retryable; who gets it waits as long as it says",
        reason="a refusal that says when to come back costs nobody an operation",
        advice="Bound running work; answer 429 with Retry-After above the bound, and obey the one you get.",
        gateway=Trial(
            policy={"retry": {"initial_ms": 10, "max_ms": 20}, "rate_per_s": 20},
            handler=(
                Reply(status=429, json=handler_failure("RESOURCE_EXHAUSTED"), headers=(("retry-after", "1"),)),
                Reply(json="later"),
            ),
            steps=(
                start(headers=(WAIT,), expect=Expect(status=200, json="later")),
                Got(nth=2, gap_ms=(900, 4000)),
            ),
        ),
        agent=Trial(
            needs=("limit",),
            steps=(
                Begin(
                    "flood",
                    start(role="act", json={"after_ms": 3000}, query="callback={receiver}", times="{limit}", save=""),
                ),
                Until(
                    ask=start(
                        role="any", expect=Expect(failure="RESOURCE_EXHAUSTED", headers={"retry-after": Match(r"\d+")})
                    ),
                    after_ms=FLOODED_MS,
                ),
                Finish("flood"),
                Until(ask=start(role="any", expect=Expect(status=(200, 201)))),
            ),
        ),
        client=Trial(
            handler=(
                Reply(status=429, json={"code": "quota", "detail": "no"}, headers=(("retry-after", "1"),)),
                Reply(json=record(result=1)),
            ),
            steps=(
                Call(verb="call", args=("peer", "svc", "op", 1), options={}, returns=1),
                Got(nth=2, gap_ms=(750, 4000)),
            ),
        ),
    ),
    Case(
        number=91,
        name="an endpoint by its name and by its id",
        group="gateway",
        rule="P136",
        expected="both lead to it; what runs goes on when the endpoint is registered anew under its name",
        reason="names are for people; callers that keep an id survive what people do to names",
        advice="Route by name, then by id; bind running operations to the id.",
        gateway=Trial(
            handler=HELD,
            steps=(
                start(headers=(ASYNC, ID), json=1, expect=Expect(status=201)),
                Got(),
                Ask(path=BY_ID, headers=(ASYNC,), expect=Expect(status=201)),
                Got(nth=2, expect=Expect(path="/svc/op")),
                Ask(
                    path=BY_ID,
                    headers=(ASYNC, ID),
                    json=1,
                    type=JSON,
                    expect=Expect(status=201, json={"token": "{first.token}"}),
                ),
                Got(count=2),
                Ask(
                    method="PUT",
                    path="/v1/endpoints/{endpoint}",
                    json={"target": {"kind": "http", "url": "{handler}/anew"}, "description": "moved"},
                    type=JSON,
                    expect=Expect(status=200, json={"id": "{endpoint_id}"}),
                ),
                Release("go"),
                ended(Expect(status=200, json="held")),
            ),
        ),
        skips={"agent": OWN, "client": OWN},
    ),
    Case(
        number=94,
        name="whose error it is",
        group="gateway",
        rule="P13",
        expected="a handler's error passes untouched; a gateway's own says Mesh-Failure-Source: gateway",
        reason="who is paged depends on it",
        advice="Mark your own errors, and touch no others.",
        gateway=Trial(
            handler=(
                Reply(status=404, json={**handler_failure("NOT_FOUND", "mine"), "more": [1]}, headers=(UP,)),
                Reply(status=501, body=b"never", type="text/html", headers=(UP,)),
            ),
            steps=(
                start(
                    expect=Expect(
                        status=404,
                        json={**handler_failure("NOT_FOUND", "mine"), "more": [1]},
                        headers={"mesh-failure-source": ABSENT, UP[0]: UP[1]},
                    )
                ),
                start(
                    expect=Expect(
                        status=501,
                        body=b"never",
                        type="text/html",
                        headers={"mesh-failure-source": ABSENT, UP[0]: UP[1]},
                    )
                ),
                Ask(
                    path="/nexus/endpoints/{endpoint}-nobody/services/svc/op",
                    expect=Expect(failure="NOT_FOUND", headers={"mesh-failure-source": "gateway"}),
                ),
                start(
                    headers=(("request-timeout", "1h"),),
                    expect=Expect(failure="BAD_REQUEST", headers={"mesh-failure-source": "gateway"}),
                ),
            ),
        ),
        skips={"agent": "an agent has nobody behind it", "client": "a client passes nothing on"},
    ),
    Case(
        number=95,
        name="the reads of older clients",
        group="gateway",
        rule="P33",
        expected="GET result: 412 while it runs, 408 at the end of the wait, 200 or 424 after, 404 unknown; GET info",
        reason="sdk-go up to 0.4 polls so",
        advice="Serve the two GET routes for clients before 2025-10.",
        gateway=Trial(
            handler=(*HELD, operation_error("failed", "no luck")),
            steps=(
                start(headers=(ASYNC,), expect=Expect(status=201)),
                Got(),
                legacy(expect=Expect(status=412, json={"metadata": {"type": "nexus.HandlerError"}})),
                legacy("100ms", expect=Expect(failure="REQUEST_TIMEOUT", after_ms=90, within_ms=1500)),
                Ask(
                    method="GET",
                    headers=(("nexus-operation-token", "{first.token}"),),
                    expect=Expect(status=200, type=JSON, json={"token": "{first.token}", "state": "running"}),
                ),
                Release("go"),
                legacy("10s", expect=Expect(status=200, json="held")),
                Ask(
                    method="GET",
                    query="token={first.token}",
                    expect=Expect(status=200, json={"token": "{first.token}", "state": "succeeded"}),
                ),
                start(headers=(ASYNC,), expect=Expect(status=201)),
                legacy("10s", expect=Expect(status=424, outcome="failed", json={"message": "no luck"})),
                Each(
                    ("00-ffffffffffffffffffff", "nonsense"),
                    (
                        legacy(query="token={each}", expect=NOT_FOUND),
                        Ask(method="GET", query="token={each}", expect=NOT_FOUND),
                    ),
                ),
                legacy("soon", expect=REFUSED),
            ),
        ),
        skips={
            "agent": "an optional profile for older clients, which the gateway serves",
            "client": "the client reads /v1",
        },
    ),
)
