"""Cases 27 to 31, 87, 92, 93: headers and links."""

from __future__ import annotations

from typing import Final

from nexusrpc import Link

from mesh.check.case import ABSENT, JSON, Ask, Call, Case, Each, Expect, Got, Links, Match, Reply, Trial, Until
from mesh.check.cases.shared import ASYNC, REFUSED, complete, ended, got, record, start, started

GROUP: Final = "headers"
TWO: Final = (
    ("https://a.example/x?y=1", "a.B"),
    ("temporal:///ns/w?run=2", "temporal.api.common.v1.Link.WorkflowEvent"),
)
SEPARATE: Final = tuple(("nexus-link", f'<{url}>; type="{kind}"') for url, kind in TWO)
JOINED: Final = (("nexus-link", ", ".join(value for _, value in SEPARATE)),)
SEEN: Final = [{"url": url, "type": kind} for url, kind in TWO]
COMMA: Final = (("https://a.example/x?ids=1%2C2", "a.B"),)
BAD_LINKS: Final = (
    "https://a.example/x",
    "<https://a.example/x>",
    '<https://a.example/x>; rel="next"',
    '<https://a.example/x>; type="a b"',
    '<https://a.example/x>; type="a',
    '<>; type="a"',
    '<https://a.example/%zz>; type="a"',
)
LINKED: Final = tuple(("nexus-link", f'<{url}>; type="{kind}"') for url, kind in TWO)
COMPLETED: Final = (("https://a.example/run/7", "a.Run"),)
OTHER: Final = (("nexus-link", '<https://a.example/run/7>; type="a.Run"'),)
TRACE: Final = (
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("tracestate", "vendor=a:1,other=b"),
)
HOP: Final = (
    ("connection", "close, x-mine"),
    ("x-mine", "1"),
    ("te", "trailers"),
    ("keep-alive", "timeout=5"),
    ("authorization", "Bearer of-the-caller"),
    ("cookie", "a=b"),
    ("x-forwarded-for", "1.2.3.4"),
    ("mesh-namespace", "forged"),
    ("mesh-attempt", "77"),
    ("nexus-operation-token", "forged"),
)

CASES: Final = (
    Case(
        number=27,
        name="the caller's own headers",
        group=GROUP,
        rule="P42",
        rules={"agent": "P129", "client": "P147"},
        expected="they reach the handler, names without regard to case, `content-*` not among them",
        reason="callers pass context in headers; what describes the body is not theirs",
        advice="Hand over user headers with names in lower case; leave out content-* and nexus-callback-*.",
        gateway=Trial(
            steps=(
                start(headers=(("X-User-Header", "One, Two"), ("x-empty", "")), json=1, expect=Expect(status=200)),
                got(headers={"x-user-header": "One, Two", "content-type": JSON, "nexus-callback-x": ABSENT}),
            )
        ),
        agent=Trial(
            steps=(
                start(
                    role="seen",
                    headers=(
                        ("X-User-Header", "One, Two"),
                        ("Content-Language", "de"),
                        ("Nexus-Callback-Secret", "x"),
                    ),
                    json=1,
                    expect=Expect(
                        status=200,
                        json={
                            "headers": {
                                "x-user-header": "One, Two",
                                "X-User-Header": ABSENT,
                                "content-type": ABSENT,
                                "content-language": ABSENT,
                                "content-length": ABSENT,
                                "nexus-callback-secret": ABSENT,
                            }
                        },
                    ),
                ),
            )
        ),
        client=Trial(
            handler=(Reply(json=record(result=1)),),
            steps=(
                Call(
                    verb="call",
                    args=("peer", "svc", "op", 1),
                    options={"headers": {"X-User-Header": "One, Two"}},
                    returns=1,
                ),
                got(headers={"x-user-header": "One, Two"}),
            ),
        ),
    ),
    Case(
        number=28,
        name="links in two headers, and joined in one",
        group=GROUP,
        rule="P18",
        rules={"agent": "P129", "client": "P147"},
        expected="the same links, in the same order",
        reason="HTTP lets any proxy join headers of one name",
        advice="Read every Nexus-Link header and split each at its commas.",
        gateway=Trial(
            steps=(
                start(headers=SEPARATE, expect=Expect(status=200)),
                got(headers={"nexus-link": Links(TWO)}),
                start(headers=JOINED, expect=Expect(status=200)),
                got(headers={"nexus-link": Links(TWO)}),
            )
        ),
        agent=Trial(
            steps=(
                start(role="seen", headers=SEPARATE, expect=Expect(status=200, json={"links": SEEN})),
                start(role="seen", headers=JOINED, expect=Expect(status=200, json={"links": SEEN})),
            )
        ),
        client=Trial(
            handler=(Reply(json=record(result=1)),),
            steps=(
                Call(
                    verb="call",
                    args=("peer", "svc", "op", 1),
                    options={"links": tuple(Link(url, kind) for url, kind in TWO)},
                    returns=1,
                ),
                got(headers={"nexus-link": Links(TWO)}),
            ),
        ),
    ),
    Case(
        number=29,
        name="links that are none",
        group=GROUP,
        rule="P18",
        rules={"agent": "P129"},
        expected="400 BAD_REQUEST",
        reason="a link nobody can read breaks whoever gets it next",
        advice="Refuse a link without <>, without a type, with a bad type, or with a URL that does not parse.",
        gateway=Trial(
            steps=(Each(BAD_LINKS, (start(headers=(("nexus-link", "{each}"),), expect=REFUSED),)), Got(count=0))
        ),
        agent=Trial(
            steps=(Each(BAD_LINKS, (start(role="any", headers=(("nexus-link", "{each}"),), expect=REFUSED),)),)
        ),
        skips={"client": "the gateway says so"},
    ),
    Case(
        number=30,
        name="links of the handler",
        group=GROUP,
        rule="P161",
        rules={"agent": "P129"},
        expected="they come back with result and 201; a gateway keeps those of the 201 and of the completion",
        reason="a caller's history points to the work that it caused",
        advice="Write the handler's links as Nexus-Link on 200 and 201.",
        gateway=Trial(
            handler=(Reply(json=1, headers=LINKED), started(headers=LINKED)),
            steps=(
                start(expect=Expect(status=200, headers={"nexus-link": Links(TWO, among=True)})),
                start(
                    headers=(ASYNC,),
                    expect=Expect(
                        status=201,
                        headers={"nexus-link": Match(r'<.*/v1/operations/[^<>]+>; type="mesh\.Operation"')},
                    ),
                ),
                Got(nth=2, save="call"),
                Until(
                    ask=Ask(
                        method="GET",
                        path="/v1/operations/{first.token}",
                        expect=Expect(status=200, json={"state": "started"}),
                    )
                ),
                complete(json=2, headers=OTHER, expect=Expect(status=200)),
                ended(Expect(status=200, json=2, headers={"nexus-link": Links((*TWO, *COMPLETED), among=True)})),
            ),
        ),
        agent=Trial(
            steps=(
                start(role="act", json={"links": SEEN}, expect=Expect(status=200, headers={"nexus-link": Links(TWO)})),
                start(role="task", json={"links": SEEN}, expect=Expect(status=201, headers={"nexus-link": Links(TWO)})),
            )
        ),
        skips={"client": "links are between gateways and handlers"},
    ),
    Case(
        number=31,
        name="a comma in a link's URL",
        group=GROUP,
        rule="P18",
        rules={"agent": "P129", "client": "P147"},
        expected="percent-encoded it survives, both ways",
        reason="Go's decoder splits at every comma, also inside <>",
        advice="Write commas in link URLs as %2C and do not decode them on the way.",
        gateway=Trial(
            handler=(Reply(json=1, headers=(("nexus-link", f'<{COMMA[0][0]}>; type="a.B"'),)),),
            steps=(
                start(
                    headers=(("nexus-link", f'<{COMMA[0][0]}>; type="a.B"'),),
                    expect=Expect(status=200, headers={"nexus-link": Links(COMMA, among=True), "x-none": ABSENT}),
                ),
                got(headers={"nexus-link": Match(r"<https://a\.example/x\?ids=1%2C2>; type=.*")}),
            ),
        ),
        agent=Trial(
            steps=(
                start(
                    role="seen",
                    headers=(("nexus-link", f'<{COMMA[0][0]}>; type="a.B"'),),
                    expect=Expect(status=200, json={"links": [{"url": Match(r".*ids=1(%2C|,)2"), "type": "a.B"}]}),
                ),
                start(
                    role="act",
                    json={"links": [{"url": "https://a.example/x?ids=1,2", "type": "a.B"}]},
                    expect=Expect(status=200, headers={"nexus-link": Match(r"<[^,]*%2C[^,]*>; type=.*")}),
                ),
            )
        ),
        client=Trial(
            handler=(Reply(json=record(result=1)),),
            steps=(
                Call(
                    verb="call",
                    args=("peer", "svc", "op", 1),
                    options={"links": (Link("https://a.example/x?ids=1,2", "a.B"),)},
                    returns=1,
                ),
                got(headers={"nexus-link": Match(r"<https://a\.example/x\?ids=1%2C2>; type=.*")}),
            ),
        ),
    ),
    Case(
        number=87,
        name="more than 8 KiB of headers",
        group=GROUP,
        rule="P2",
        expected="400 BAD_REQUEST",
        reason="servers on the way cut connections over long heads; it must be the caller who hears of it",
        advice="Bound the headers that travel with an operation, and say so with 400.",
        gateway=Trial(
            steps=(
                start(headers=(("x-long", "x" * 8192),), expect=REFUSED),
                start(headers=(("nexus-callback-x", "x" * 8192),), query="callback={receiver}", expect=REFUSED),
                Got(count=0),
                start(headers=(("x-long", "x" * 7000),), expect=Expect(status=200)),
            )
        ),
        skips={"agent": "what reaches an agent was bounded by who sends it", "client": "the gateway says so"},
    ),
    Case(
        number=92,
        name="hop-by-hop headers and those that only a gateway says",
        group=GROUP,
        rule="P42",
        expected="they pass in neither direction",
        reason="a caller must not pretend to be the mesh, nor a handler",
        advice="Drop hop-by-hop headers, credentials, Nexus-* and Mesh-* of callers, and Mesh-* of handlers.",
        gateway=Trial(
            handler=(
                Reply(
                    status=400,
                    json={"message": "no"},
                    headers=(
                        ("keep-alive", "timeout=5"),
                        ("set-cookie", "a=b"),
                        ("mesh-failure-source", "gateway"),
                        ("mesh-operation-id", "forged"),
                        ("x-of-the-handler", "yes"),
                    ),
                ),
            ),
            steps=(
                start(
                    bare=False,
                    headers=HOP[:4] + HOP[5:],
                    expect=Expect(
                        status=400,
                        headers={
                            "x-of-the-handler": "yes",
                            "set-cookie": ABSENT,
                            "mesh-failure-source": ABSENT,
                            "mesh-operation-id": Match(r"[0-9]{2}-[0-9a-f]{20}"),
                        },
                    ),
                ),
                got(
                    headers={
                        "x-mine": ABSENT,
                        "te": ABSENT,
                        "keep-alive": ABSENT,
                        "authorization": ABSENT,
                        "cookie": ABSENT,
                        "x-forwarded-for": ABSENT,
                        "nexus-operation-token": ABSENT,
                        "mesh-attempt": "1",
                        "mesh-namespace": Match("(?!forged).*"),
                    }
                ),
            ),
        ),
        skips={"agent": "a demand on who forwards", "client": "a demand on who forwards"},
    ),
    Case(
        number=93,
        name="trace context",
        group=GROUP,
        rule="P42",
        rules={"agent": "P129", "client": "P147"},
        expected="traceparent and tracestate reach the handler as they came",
        reason="without it a trace ends at every hop (temporalio/temporal#9378)",
        advice="Forward traceparent and tracestate.",
        gateway=Trial(steps=(start(headers=TRACE, expect=Expect(status=200)), got(headers=dict(TRACE)))),
        agent=Trial(
            steps=(start(role="seen", headers=TRACE, expect=Expect(status=200, json={"headers": dict(TRACE)})),)
        ),
        client=Trial(
            handler=(Reply(json=record(result=1)),),
            steps=(
                Call(verb="call", args=("peer", "svc", "op", 1), options={"headers": dict(TRACE)}, returns=1),
                got(headers=dict(TRACE)),
            ),
        ),
    ),
)
