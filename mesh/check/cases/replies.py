"""Cases 48 to 53 and 86: what a client, a gateway towards its handlers among them, makes of odd answers."""

from __future__ import annotations

from typing import Final

from mesh.check.case import Call, Case, Each, Expect, Got, Reply, Reset, Step, Trial
from mesh.check.cases.shared import (
    ASYNC,
    QUICK,
    WAIT,
    ended,
    handler_error,
    handler_failure,
    legacy,
    operation_failure,
    record,
    start,
    started,
)

GROUP: Final = "replies"
AGENTS: Final = "an agent reads no answers to starts"
BAD_STARTED: Final = (
    Reply(status=201, json={"token": "t", "state": "succeeded"}),
    Reply(status=201, json={"token": "t"}),
    Reply(status=201, json={"token": "", "state": "running"}),
    Reply(status=201, json={"state": "running"}),
    Reply(status=201, json=["t"]),
    Reply(status=201, json={"token": "a\nb", "state": "running"}),
    Reply(status=201, body=b"started", type="text/plain"),
    Reply(status=201, body=b'{"token": "t", "state": "running"}', type="text/html"),
    Reply(status=201),
)
OTHERS: Final = (*(Reply(status=status, json=1) for status in (202, 203, 206, 226)), Reply(status=204))
REDIRECTS: Final = tuple(
    Reply(status=status, headers=(("location", "{receiver}/stolen"),)) for status in (301, 302, 303, 307, 308)
)


def _repeated(*replies: Reply) -> tuple[Step, ...]:
    """Each reply makes the gateway try again; the second one counts."""
    steps: list[Step] = []
    for reply in replies:
        steps += [
            Reset(handler=(reply, Reply(json="second"))),
            start(headers=(WAIT,), expect=Expect(status=200, json="second")),
            Got(count=2),
        ]
    return tuple(steps)


def _invalid(*replies: Reply) -> tuple[Step, ...]:
    """Each reply is none that the client knows, and it says so."""
    steps: list[Step] = []
    for reply in replies:
        steps += [Reset(handler=(reply,)), Call(verb="call", args=("peer", "svc", "op", 1), raises="ReplyInvalid")]
    return tuple(steps)


CASES: Final = (
    Case(
        number=48,
        name="the body's type beats the status",
        group=GROUP,
        rule="P43",
        expected="500 with a BAD_REQUEST body is not repeated, 400 with an UNAVAILABLE body is",
        reason="the specification says so, and proxies rewrite statuses",
        advice="Read details.type first, the status only where there is none.",
        gateway=Trial(
            policy=QUICK,
            handler=(handler_error(500, "BAD_REQUEST"),),
            steps=(
                start(expect=Expect(status=500, json=handler_failure("BAD_REQUEST"))),
                Got(count=1, quiet_ms=50),
                *_repeated(handler_error(400, "UNAVAILABLE"), handler_error(404, "A_TYPE_OF_THE_FUTURE")),
            ),
        ),
        skips={"agent": AGENTS, "client": "on /v1 status and type are one"},
    ),
    Case(
        number=49,
        name="400 without JSON",
        group=GROUP,
        rule="P43",
        rules={"client": "P149"},
        expected="an error of the type that the status stands for; the text is kept as cause",
        reason="proxies and frameworks in front of a handler answer in their own words",
        advice="Take the type from the status and wrap the body as cause.",
        gateway=Trial(
            policy=QUICK,
            handler=(
                Reply(status=400, body=b"what?", type="text/plain"),
                Reply(status=404, json={"detail": "Not Found"}),
            ),
            steps=(
                start(expect=Expect(status=400, body=b"what?", type="text/plain")),
                legacy(
                    query="token={first.#mesh-operation-id}",
                    expect=Expect(
                        outcome="failed",
                        json={"cause": {"details": {"type": "BAD_REQUEST"}, "cause": {"message": "what?"}}},
                    ),
                ),
                start(expect=Expect(status=404)),
                legacy(
                    query="token={first.#mesh-operation-id}",
                    expect=Expect(outcome="failed", json={"cause": {"details": {"type": "NOT_FOUND"}}}),
                ),
                Got(count=2, quiet_ms=50),
            ),
        ),
        client=Trial(
            handler=(Reply(status=400, body=b"<h1>no</h1>", type="text/html"), Reply(status=404, body=b"")),
            steps=(
                Call(verb="call", args=("peer", "svc", "op", 1), raises="Malformed"),
                Call(verb="call", args=("peer", "svc", "op", 1), raises="NotFound"),
            ),
        ),
        skips={"agent": AGENTS},
    ),
    Case(
        number=50,
        name="a HandlerError without details",
        group=GROUP,
        rule="P43",
        rules={"client": "P149"},
        expected="typed by its status; no crash",
        reason="Temporal repeats such answers until its timeout",
        advice="Fall back to the status when details.type is missing or no text.",
        gateway=Trial(
            policy=QUICK,
            handler=(
                Reply(status=400, json={"message": "a", "metadata": {"type": "nexus.HandlerError"}}),
                Reply(
                    status=400,
                    json={"message": "a", "metadata": {"type": "nexus.HandlerError"}, "details": {"type": 7}},
                ),
            ),
            steps=(
                Each(
                    (1, 2),
                    (
                        start(expect=Expect(status=400)),
                        legacy(
                            query="token={first.#mesh-operation-id}",
                            expect=Expect(outcome="failed", json={"cause": {"details": {"type": "BAD_REQUEST"}}}),
                        ),
                    ),
                ),
                Got(count=2, quiet_ms=50),
                *_repeated(Reply(status=503, json={"message": "a", "metadata": {"type": "nexus.HandlerError"}})),
            ),
        ),
        client=Trial(
            handler=(
                Reply(status=409, json={"message": "a", "metadata": {"type": "nexus.HandlerError"}, "details": 7}),
            ),
            steps=(Call(verb="call", args=("peer", "svc", "op", 1), raises="Conflict"),),
        ),
        skips={"agent": AGENTS},
    ),
    Case(
        number=51,
        name="424 with the state in one place, or in none",
        group=GROUP,
        rule="P43",
        rules={"client": "P149"},
        expected="header alone and body alone are the outcome; neither is a breach of the protocol, tried again",
        reason="senders before 2025-10 write the header only",
        advice="Read the body's state, else the header's; never guess.",
        gateway=Trial(
            policy=QUICK,
            handler=(
                Reply(status=424, json=operation_failure("canceled", "body")),
                Reply(status=424, json={"message": "old"}, headers=(("nexus-operation-state", "canceled"),)),
                Reply(status=424, body=b"old", type="text/plain", headers=(("nexus-operation-state", "failed"),)),
            ),
            steps=(
                start(expect=Expect(status=424, outcome="canceled", json={"message": "body"})),
                start(expect=Expect(status=424, outcome="canceled", json={"cause": {"message": "old"}})),
                start(expect=Expect(status=424, outcome="failed", json={"cause": {"message": "old"}})),
                Got(count=3, quiet_ms=50),
                *_repeated(Reply(status=424, json={"message": "neither"}), Reply(status=424)),
            ),
        ),
        client=Trial(
            handler=(
                Reply(json=record("started")),
                Reply(status=424, body=b"no failure", type="text/plain"),
                Reply(json=record("failed")),
            ),
            steps=(Call(verb="call", args=("peer", "svc", "op", 1), raises="ReplyInvalid"),),
        ),
        skips={"agent": AGENTS},
    ),
    Case(
        number=52,
        name="a 201 that is none",
        group=GROUP,
        rule="P43",
        rules={"client": "P149"},
        expected="another state, no token, an empty or illegal one, no JSON: a breach of the protocol, tried again",
        reason="work under a token that nobody can name can be neither canceled nor completed",
        advice="Take a 201 only with state running and a token that is legal in a header.",
        gateway=Trial(policy=QUICK, steps=_repeated(*BAD_STARTED)),
        client=Trial(
            steps=_invalid(
                Reply(status=201, json={"state": "running"}),
                Reply(status=202, json=["a"]),
                Reply(status=202, body=b"{", type="application/json"),
                Reply(status=200, json={"id": 7, "state": "succeeded"}),
                Reply(status=200),
            )
        ),
        skips={"agent": AGENTS},
    ),
    Case(
        number=53,
        name="204, 202, other 2xx and redirects",
        group=GROUP,
        rule="P43",
        rules={"client": "P149"},
        expected="a breach of the protocol, tried again; no redirect is followed",
        reason="a redirect leads requests with tokens to where nobody vetted (SSRF)",
        advice="Know 200, 201 and 424; follow nothing.",
        gateway=Trial(policy=QUICK, steps=(*_repeated(*OTHERS, *REDIRECTS), Got(who="receiver", count=0))),
        client=Trial(steps=(*_invalid(Reply(status=204), *REDIRECTS), Got(who="receiver", count=0))),
        skips={"agent": AGENTS},
    ),
    Case(
        number=86,
        name="a token of more than 4096 bytes",
        group=GROUP,
        rule="P98",
        expected="the operation fails at once; 4096 are fine",
        reason="it would not fit into the headers of its cancel; a repeat brings the next long token",
        advice="Fail an operation whose handler answers such a token.",
        gateway=Trial(
            policy=QUICK,
            handler=(started("t" * 4097), started("t" * 4096)),
            steps=(
                start(
                    headers=(WAIT,),
                    expect=Expect(status=424, outcome="failed", headers={"mesh-failure-source": "gateway"}),
                ),
                Got(count=1, quiet_ms=50),
                start(headers=(ASYNC,), expect=Expect(status=201)),
                Got(nth=2, save="call"),
                Reset(handler=(Reply(json=1),)),
                ended(Expect(status=412)),
            ),
        ),
        skips={"agent": AGENTS, "client": "on /v1 the token is the operation's id"},
    ),
)
