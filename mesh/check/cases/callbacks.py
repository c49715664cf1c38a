"""Cases 64 to 70: callbacks on their way out, of gateways and of agents."""

from __future__ import annotations

from typing import Final

from mesh.check.case import (
    ABSENT,
    BYTES,
    CLOSE,
    JSON,
    PRESENT,
    Case,
    Each,
    Expect,
    Got,
    Match,
    Reply,
    Reset,
    Trial,
)
from mesh.check.cases.shared import (
    ASYNC,
    CALLBACK,
    CALLBACK_TARGET,
    ended,
    happened,
    operation_error,
    start,
)

GROUP: Final = "callbacks"
BACK: Final = (("Nexus-Callback-Token", "{tag}"), ("nexus-callback-x-more", "a, b"))
MINE: Final = {"token": "{tag}", "x-more": "a, b", "nexus-callback-token": ABSENT}
PLAIN: Final = "callback={receiver}"
HTTP_DATE: Final = Match(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT")
RFC_3339: Final = Match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3,9}(Z|[+-]\d\d:\d\d)")
TIMES: Final = {"nexus-operation-start-time": HTTP_DATE, "nexus-operation-close-time": RFC_3339}
STARTED: Final = Expect(status=201)
# A reset must meet a new connection: on one that was used before, a sender may repeat at once (RFC 9110 9.2.2).
FAULTS: Final = (
    *(Reply(status=status, headers=(CLOSE,)) for status in (500, 503, 429, 408)),
    Reply(framing="reset"),
    Reply(framing="cut"),
)
CLIENT: Final = "a client library sends no callbacks"
AGENT_CALLBACK: Final = start(role="task", json={"value": 1}, query=PLAIN, expect=STARTED)


CASES: Final = (
    Case(
        number=64,
        name="URL and headers of a callback",
        group=GROUP,
        rule="P81",
        rules={"agent": "P134"},
        expected="POST to the URL as given, its query untouched; Nexus-Callback-* without the prefix",
        reason="receivers find their operation by what they put into URL and headers",
        advice="Decode the callback parameter once, and send what it says byte for byte.",
        gateway=Trial(
            steps=(
                start(headers=(ASYNC, *BACK), query=CALLBACK, json=1, expect=STARTED),
                Got(who="receiver", expect=Expect(target=CALLBACK_TARGET, headers=MINE)),
            )
        ),
        agent=Trial(
            steps=(
                start(role="task", headers=BACK, query=CALLBACK, json={"value": 1}, expect=STARTED),
                Got(who="receiver", expect=Expect(target=CALLBACK_TARGET, headers=MINE)),
            )
        ),
        skips={"client": CLIENT},
    ),
    Case(
        number=65,
        name="token, times and state on a callback",
        group=GROUP,
        rule="P81",
        rules={"agent": "P134"},
        expected="Nexus-Operation-Token, -Start-Time (HTTP-date), -Close-Time (RFC 3339 with milliseconds), -State",
        reason="a completion may overtake the answer of its start; the receiver then knows the operation by it alone",
        advice="Send all four with every completion.",
        gateway=Trial(
            steps=(
                start(headers=(ASYNC,), query=PLAIN, json=1, expect=STARTED),
                Got(
                    who="receiver",
                    expect=Expect(
                        headers={
                            **TIMES,
                            "nexus-operation-token": "{first.token}",
                            "nexus-operation-state": "succeeded",
                        }
                    ),
                ),
            )
        ),
        agent=Trial(
            steps=(
                AGENT_CALLBACK,
                Got(
                    who="receiver",
                    expect=Expect(
                        headers={
                            **TIMES,
                            "nexus-operation-token": "{first.token}",
                            "nexus-operation-state": "succeeded",
                        }
                    ),
                ),
            )
        ),
        skips={"client": CLIENT},
    ),
    Case(
        number=66,
        name="the result in a callback",
        group=GROUP,
        rule="P81",
        rules={"agent": "P134"},
        expected="body and type of the result; null has neither",
        reason="the receiver decodes it as it would a 200",
        advice="Send results as in a synchronous answer.",
        gateway=Trial(
            handler=(Reply(body=b"\x00\xff", type=BYTES), Reply()),
            steps=(
                start(headers=(ASYNC,), query=PLAIN, json=1, expect=STARTED),
                Got(who="receiver", expect=Expect(body=b"\x00\xff", type=BYTES)),
                start(headers=(ASYNC,), query=PLAIN, json=1, expect=STARTED),
                Got(who="receiver", nth=2, expect=Expect(body=b"", type=ABSENT)),
            ),
        ),
        agent=Trial(
            steps=(
                start(role="task", json={"value": {"a": [1, None]}}, query=PLAIN, expect=STARTED),
                Got(who="receiver", expect=Expect(json={"a": [1, None]}, type=JSON)),
                start(role="task", json={}, query=PLAIN, expect=STARTED),
                Got(who="receiver", nth=2, expect=Expect(body=b"", type=ABSENT)),
            )
        ),
        skips={"client": CLIENT},
    ),
    Case(
        number=67,
        name="failures in a callback",
        group=GROUP,
        rule="P81",
        rules={"agent": "P134"},
        expected="application/json with a Failure, and the state in the header",
        reason="the receiver knows failed from canceled by the header",
        advice="Send failed and canceled as JSON Failures with Nexus-Operation-State.",
        gateway=Trial(
            handler=(operation_error("failed", "no luck"), operation_error("canceled", "stopped")),
            steps=(
                start(headers=(ASYNC,), query=PLAIN, json=1, expect=STARTED),
                Got(who="receiver", expect=Expect(outcome="failed", json={"message": "no luck"}, headers=TIMES)),
                start(headers=(ASYNC,), query=PLAIN, json=1, expect=STARTED),
                Got(who="receiver", nth=2, expect=Expect(outcome="canceled", json={"message": "stopped"})),
            ),
        ),
        agent=Trial(
            steps=(
                Each(
                    ("failed", "canceled"),
                    (
                        start(role="task", json={"end": "{each}", "message": "luck"}, query=PLAIN, expect=STARTED),
                        Got(
                            who="receiver",
                            nth=-1,
                            expect=Expect(
                                type=JSON, headers={"nexus-operation-state": "{each}"}, json={"message": "luck"}
                            ),
                        ),
                        Reset(),
                    ),
                ),
                start(
                    role="task", json={"end": "error", "type": "NOT_FOUND", "message": "m"}, query=PLAIN, expect=STARTED
                ),
                Got(
                    who="receiver",
                    expect=Expect(type=JSON, headers={"nexus-operation-state": "failed"}, json={"message": PRESENT}),
                ),
            )
        ),
        skips={"client": CLIENT},
    ),
    Case(
        number=68,
        name="a receiver that has a bad moment",
        group=GROUP,
        rule="P85",
        rules={"agent": "P134"},
        expected="500, 503, 429, 408, a reset and a cut answer are followed by another try, later; not all at one time",
        reason="a lost completion is an operation that never ends",
        advice="Repeat completions with growing, jittered pauses.",
        gateway=Trial(
            receiver=(*FAULTS, Reply()),
            steps=(
                start(headers=(ASYNC,), query=PLAIN, json=1, expect=STARTED, times=6),
                Got(who="receiver", nth=7, gap_from=1, gap_ms=(600, 6000)),
                Got(who="receiver", nth=12, gap_from=7, gap_ms=(5, 6000)),
                Got(who="receiver", count=12, quiet_ms=50),
            ),
        ),
        agent=Trial(
            receiver=(*FAULTS, Reply()),
            steps=(
                start(role="task", json={}, query=PLAIN, expect=STARTED, times=6),
                Got(who="receiver", nth=12, gap_from=1, gap_ms=(20, 30_000), within_ms=40_000),
                Got(who="receiver", count=12, quiet_ms=100),
            ),
        ),
        skips={"client": CLIENT},
    ),
    Case(
        number=69,
        name="a receiver that refuses",
        group=GROUP,
        rule="P85",
        rules={"agent": "P134"},
        expected="400, 404 and 409 are not repeated; a gateway shows the delivery as dead",
        reason="409 says that it was delivered before, the others that it never will be",
        advice="Treat these as the end of the delivery, never as an end of the operation.",
        gateway=Trial(
            receiver=(Reply(status=400), Reply(status=404), Reply(status=409), Reply()),
            steps=(
                Each(
                    (1, 2, 3),
                    (start(headers=(ASYNC,), query=PLAIN, json=1, expect=STARTED), happened("callback_dead")),
                ),
                ended(Expect(status=200)),
                Got(who="receiver", count=3, quiet_ms=1300),
            ),
        ),
        agent=Trial(
            receiver=(Reply(status=400), Reply(status=404), Reply(status=409), Reply()),
            steps=(
                Each((1, 2, 3), (start(role="task", json={}, query=PLAIN, expect=STARTED),)),
                Got(who="receiver", count=3, quiet_ms=700),
            ),
        ),
        skips={"client": CLIENT},
    ),
    Case(
        number=70,
        name="any 2xx of a receiver",
        group=GROUP,
        rule="P85",
        rules={"agent": "P134"},
        expected="delivered, not repeated",
        reason="receivers answer 201, 202 and 204 too",
        advice="Take every 2xx as delivered.",
        gateway=Trial(
            receiver=(Reply(status=201), Reply(status=202), Reply(status=204), Reply(status=299)),
            steps=(
                Each(
                    (1, 2, 3, 4),
                    (start(headers=(ASYNC,), query=PLAIN, json=1, expect=STARTED), happened("callback_delivered")),
                ),
                Got(who="receiver", count=4, quiet_ms=1300),
            ),
        ),
        agent=Trial(
            receiver=(Reply(status=201), Reply(status=202), Reply(status=204), Reply(status=299)),
            steps=(
                Each((1, 2, 3, 4), (start(role="task", json={}, query=PLAIN, expect=STARTED),)),
                Got(who="receiver", count=4, quiet_ms=700),
            ),
        ),
        skips={"client": CLIENT},
    ),
)
