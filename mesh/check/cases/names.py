"""Cases 10 to 16 and 88: names, paths and methods."""

from __future__ import annotations

from typing import Final

from mesh.check.case import Ask, Call, Case, Each, Expect, Got, Reply, Trial
from mesh.check.cases.shared import NOT_FOUND, REFUSED, got, record, start

GROUP: Final = "names"
LONG: Final = "x" * 1001
NAMES: Final = (
    ("a/b", "/a%2Fb/a%2Fb"),
    ("a b", "/a%20b/a%20b"),
    ("ä→日", "/%C3%A4%E2%86%92%E6%97%A5/%C3%A4%E2%86%92%E6%97%A5"),
    ("100%", "/100%25/100%25"),
    ("%2F", "/%252F/%252F"),
    ("a?b#c+d", "/a%3Fb%23c%2Bd/a%3Fb%23c%2Bd"),
)
CLOSED: Final = ({"name": "svc", "operations": [{"name": "op"}]},)
NOBODY: Final = Got(count=0)
FAILURE: Final = Expect(status=(4,), type="application/json", json={"metadata": {"type": "nexus.HandlerError"}})

CASES: Final = (
    Case(
        number=10,
        name="names with /, space, UTF-8 and %",
        group=GROUP,
        rule="P1",
        rules={"agent": "P126", "client": "P145"},
        expected="the handler gets the names as the caller meant them",
        reason="names may have any characters; frameworks decode %2F before they route",
        advice="Route on the raw path (ASGI raw_path) and decode each segment once.",
        gateway=Trial(
            steps=(
                Each(
                    NAMES,
                    (
                        start(service="{each.0}", operation="{each.0}", expect=Expect(status=200)),
                        got(path="{each.1}"),
                    ),
                ),
            )
        ),
        agent=Trial(
            steps=(start(role="odd", expect=Expect(status=200, json={"operation": "a/b c%ü"})),),
        ),
        client=Trial(
            handler=(Reply(status=400, json={"message": "seen"}),),
            steps=(
                Each(
                    ("a/b", "ä %2F?"),
                    (Call(verb="call", args=("peer", "{each}", "{each}", b"x"), raises="Malformed"),),
                ),
                Got(expect=Expect(path="/nexus/endpoints/peer/services/a%2Fb/a%2Fb")),
                Got(
                    nth=2,
                    expect=Expect(
                        path="/nexus/endpoints/peer/services/%C3%A4%20%252F%3F/%C3%A4%20%252F%3F",
                    ),
                ),
            ),
        ),
    ),
    Case(
        number=11,
        name="an unknown service",
        group=GROUP,
        rule="P22",
        rules={"agent": "P126", "client": "P145"},
        expected="404 NOT_FOUND as a Failure",
        reason="a framework's own 404 page does not say whether the URL or the service is wrong",
        advice="Answer unknown services with 404 and a HandlerError of type NOT_FOUND.",
        gateway=Trial(services=CLOSED, steps=(start(service="another", expect=NOT_FOUND), NOBODY)),
        agent=Trial(steps=(start(service="no such service", operation="op", expect=NOT_FOUND),)),
        client=Trial(
            handler=(
                Reply(status=404, json={"code": "unknown_service", "detail": "no"}, type="application/problem+json"),
            ),
            steps=(Call(verb="call", args=("peer", "x", "op"), raises="NotFound", fields={"code": "unknown_service"}),),
        ),
    ),
    Case(
        number=12,
        name="an unknown operation",
        group=GROUP,
        rule="P22",
        rules={"agent": "P126"},
        expected="404 NOT_FOUND as a Failure",
        reason="as for services",
        advice="Answer unknown operations with 404 and a HandlerError of type NOT_FOUND.",
        gateway=Trial(services=CLOSED, steps=(start(operation="another", expect=NOT_FOUND), NOBODY)),
        agent=Trial(steps=(start(role="any", path="{op}-not-there", expect=NOT_FOUND),)),
        skips={"client": "the same to a client as case 11"},
    ),
    Case(
        number=13,
        name="a bad percent escape",
        group=GROUP,
        rule="P1",
        rules={"agent": "P126"},
        expected="400 BAD_REQUEST",
        reason="two readers must not read two names",
        advice="Refuse %zz, a cut escape, and escapes that are no UTF-8.",
        gateway=Trial(steps=(Each(("%zz", "%2", "%ff"), (start(path="{op}{each}", expect=REFUSED),)), NOBODY)),
        agent=Trial(steps=(Each(("%zz", "%2", "%ff"), (start(role="any", path="{op}{each}", expect=REFUSED),)),)),
        skips={"client": "clients send no bad escapes"},
    ),
    Case(
        number=14,
        name="a base URL with a path",
        group=GROUP,
        rule="P40",
        rules={"agent": "P126", "client": "P145"},
        expected="the operation's path is put behind the base's path",
        reason="handlers live behind reverse proxies that route by a path prefix",
        advice="Treat the base URL as a prefix; do not assume that operations are at the root.",
        gateway=Trial(
            prefix="/team%20a/nexus/",
            steps=(start(expect=Expect(status=200)), got(path="/team%20a/nexus/svc/op")),
        ),
        agent=Trial(
            needs=("prefix",),
            steps=(
                start(role="any", expect=Expect(status=(200, 201))),
                start(role="any", path="/x{op}", expect=Expect(status=(404,))),
            ),
        ),
        client=Trial(
            prefix="/mesh/a%20b",
            handler=(Reply(json=record(result=1)),),
            steps=(
                Call(verb="call", args=("peer", "svc", "op"), returns=1),
                got(path="/mesh/a%20b/v1/operations"),
            ),
        ),
    ),
    Case(
        number=15,
        name="one segment too many",
        group=GROUP,
        rule="P8",
        rules={"agent": "P126"},
        expected="404 as a Failure in JSON",
        reason="the wire has two routes, and clients decode every error as a Failure",
        advice="Answer unknown paths with a HandlerError of type NOT_FOUND, not with the framework's page.",
        gateway=Trial(
            steps=(Each(("/more", "/cancel/more/x", "/result"), (start(path="{op}{each}", expect=NOT_FOUND),)), NOBODY)
        ),
        agent=Trial(steps=(Each(("/more", "/more/x"), (start(role="any", path="{op}{each}", expect=NOT_FOUND),)),)),
        skips={"client": "a demand on routes"},
    ),
    Case(
        number=16,
        name="other methods",
        group=GROUP,
        rule="P8",
        rules={"agent": "P126"},
        expected="4xx as a Failure in JSON, 400 by default; GET of an operation is for older clients",
        reason="the reference server answers 400 `expected POST`, never a page",
        advice="Answer other methods than POST with 400 BAD_REQUEST as a Failure.",
        gateway=Trial(
            steps=(
                Each(("PUT", "DELETE", "PATCH"), (Ask(method="{each}", expect=REFUSED),)),
                Ask(method="GET", expect=FAILURE),
                NOBODY,
            )
        ),
        agent=Trial(
            steps=(Each(("GET", "PUT", "DELETE"), (Ask(method="{each}", role="any", expect=FAILURE),)),),
        ),
        skips={"client": "a demand on routes"},
    ),
    Case(
        number=88,
        name="a name of more than 1000 bytes",
        group=GROUP,
        rule="P1",
        rules={"agent": "P126"},
        expected="400 BAD_REQUEST; an agent may also just not know it (404)",
        reason="Temporal's limit; names end up in keys, logs and metrics",
        advice="Refuse service and operation names above 1000 bytes of UTF-8.",
        gateway=Trial(
            steps=(
                start(operation=LONG, expect=REFUSED),
                start(service="ä" * 501, expect=REFUSED),
                NOBODY,
                start(operation=LONG[1:], expect=Expect(status=200)),
            )
        ),
        agent=Trial(steps=(start(service="conformance", operation=LONG, expect=FAILURE),)),
        skips={"client": "the gateway says so"},
    ),
)
