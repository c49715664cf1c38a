"""Cases 54 to 63: cancel, in each of its forms and at each of its times."""

from __future__ import annotations

from typing import Final

from mesh.check.case import Ask, Call, Case, Each, Expect, Got, Release, Reply, Reset, Trial
from mesh.check.cases.shared import (
    ACCEPTED,
    ASYNC,
    NOT_FOUND,
    REFUSED,
    cancel,
    complete,
    ended,
    operation_failure,
    record,
    start,
    started,
)

GROUP: Final = "cancel"
BEGUN: Final = (start(headers=(ASYNC,), expect=Expect(status=201)), Got(save="call"))
TOLD: Final = Got(kind="cancel", expect=Expect(path="/svc/op/cancel", headers={"nexus-operation-token": "inner"}))
DONE: Final = (
    complete("canceled", json=operation_failure("canceled"), expect=Expect(status=200)),
    ended(Expect(outcome="canceled")),
)
LONG: Final = {"after_ms": 20_000}
WORKING: Final = start(role="task", json=LONG, query="callback={receiver}", expect=Expect(status=201))
ENDED: Final = Got(who="receiver", expect=Expect(headers={"nexus-operation-state": "canceled"}))
HEADER: Final = ("nexus-operation-token", "{first.token}")
UNKNOWN: Final = ("nexus-operation-token", "00-ffffffffffffffffffff")

CASES: Final = (
    Case(
        number=54,
        name="the token in the header",
        group=GROUP,
        rule="P30",
        rules={"agent": "P133", "client": "P150"},
        expected="202, no body; the handler is told with its own token",
        reason="the form of today's specification",
        advice="Read Nexus-Operation-Token and answer 202 without a body.",
        gateway=Trial(
            handler=(started(),),
            steps=(*BEGUN, cancel(expect=ACCEPTED), TOLD, *DONE),
        ),
        agent=Trial(steps=(WORKING, cancel(role="task", expect=ACCEPTED), ENDED)),
        client=Trial(
            cancels=(Reply(status=202, json=record("started", cancel_requested=True)),),
            steps=(
                Call(
                    verb="cancel",
                    args=("00-0123456789abcdef0123",),
                    returns={"id": "00-0123456789abcdef0123", "cancel_requested": True},
                ),
                Got(kind="cancel", expect=Expect(path="/v1/operations/00-0123456789abcdef0123/cancel")),
            ),
        ),
    ),
    Case(
        number=55,
        name="the token in the query, or in the path",
        group=GROUP,
        rule="P30",
        rules={"agent": "P133"},
        expected="202, and the handler is told; a gateway also takes the older /{token}/cancel",
        reason="callers that cannot set headers, and those before 2025-02",
        advice="Read ?token= where there is no header.",
        gateway=Trial(
            handler=(started(),),
            steps=(
                *BEGUN,
                cancel(query="token={first.token}", expect=ACCEPTED),
                TOLD,
                *DONE,
                # Each form on its own: one that is answered and does nothing would hide behind the other.
                Reset(handler=(started(),), cancels=(Reply(status=202),)),
                *BEGUN,
                cancel(path="{op}/{first.token}/cancel", headers=(), expect=ACCEPTED),
                TOLD,
                *DONE,
            ),
        ),
        agent=Trial(steps=(WORKING, cancel(role="task", query="token={first.token}", expect=ACCEPTED), ENDED)),
        skips={"client": "the client uses one form"},
    ),
    Case(
        number=56,
        name="both, and they differ",
        group=GROUP,
        rule="P30",
        rules={"agent": "P133"},
        expected="the header wins",
        reason="the reference server prefers it, and two readers must cancel the same operation",
        advice="Look at the query only where there is no header.",
        gateway=Trial(
            handler=(started(),),
            steps=(
                *BEGUN,
                cancel(headers=(UNKNOWN,), query="token={first.token}", expect=NOT_FOUND),
                cancel(headers=(HEADER,), query="token=00-ffffffffffffffffffff", expect=ACCEPTED),
                TOLD,
                *DONE,
            ),
        ),
        agent=Trial(
            steps=(
                WORKING,
                cancel(role="task", headers=(UNKNOWN,), query="token={first.token}", expect=NOT_FOUND),
                cancel(role="task", headers=(HEADER,), query="token=nonsense", expect=ACCEPTED),
                ENDED,
            )
        ),
        skips={"client": "the client uses one form"},
    ),
    Case(
        number=57,
        name="no token",
        group=GROUP,
        rule="P30",
        rules={"agent": "P133"},
        expected="400 BAD_REQUEST",
        reason="it can be about no operation",
        advice="Answer a cancel without a token with 400.",
        gateway=Trial(steps=(cancel(headers=(), expect=REFUSED), cancel(query="token=", expect=REFUSED))),
        agent=Trial(
            steps=(
                cancel(role="any", headers=(), expect=REFUSED),
                cancel(role="any", query="token=", expect=REFUSED),
            )
        ),
        skips={"client": "the client takes an id"},
    ),
    Case(
        number=58,
        name="an unknown token",
        group=GROUP,
        rule="P30",
        rules={"agent": "P133", "client": "P150"},
        expected="404 NOT_FOUND",
        reason="a caller that made it up must not believe that something was canceled",
        advice="Keep the tokens of running and just ended operations, and answer others with 404.",
        gateway=Trial(
            steps=(Each(("00-ffffffffffffffffffff", "nonsense"), (cancel(query="token={each}", expect=NOT_FOUND),)),)
        ),
        agent=Trial(
            steps=(
                Each(
                    ("00-ffffffffffffffffffff", "nonsense"),
                    (cancel(role="task", query="token={each}", expect=NOT_FOUND),),
                ),
            )
        ),
        client=Trial(
            cancels=(
                Reply(status=404, json={"code": "unknown_operation", "detail": "no"}, type="application/problem+json"),
            ),
            steps=(Call(verb="cancel", args=("00-ffff",), raises="NotFound", fields={"code": "unknown_operation"}),),
        ),
    ),
    Case(
        number=59,
        name="a cancel twice",
        group=GROUP,
        rule="P30",
        rules={"agent": "P133"},
        expected="202 twice; the handler of a gateway is told once",
        reason="a caller whose answer was lost asks again",
        advice="Make cancel idempotent.",
        gateway=Trial(
            handler=(started(),),
            steps=(
                *BEGUN,
                cancel(expect=ACCEPTED),
                cancel(expect=ACCEPTED),
                Got(kind="cancel", count=1, quiet_ms=50),
                *DONE,
            ),
        ),
        agent=Trial(
            steps=(
                WORKING,
                cancel(role="task", expect=ACCEPTED),
                cancel(role="task", expect=ACCEPTED),
                ENDED,
                cancel(role="task", expect=ACCEPTED),
            )
        ),
        skips={"client": "each call is one request"},
    ),
    Case(
        number=60,
        name="a cancel after the end",
        group=GROUP,
        rule="P30",
        rules={"agent": "P133"},
        expected="202; state and result stay",
        reason="the end and the cancel cross on the wire",
        advice="Accept the cancel of an ended operation and change nothing.",
        gateway=Trial(
            handler=(Reply(json="the result"),),
            steps=(
                start(expect=Expect(status=200)),
                cancel(headers=(("nexus-operation-token", "{first.#mesh-operation-id}"),), expect=ACCEPTED),
                Ask(
                    method="GET",
                    path="{op}/result",
                    query="token={first.#mesh-operation-id}",
                    expect=Expect(status=200, json="the result"),
                ),
                Got(kind="cancel", count=0, quiet_ms=50),
            ),
        ),
        agent=Trial(
            steps=(
                start(role="task", json={"value": 1}, query="callback={receiver}", expect=Expect(status=201)),
                Got(who="receiver", expect=Expect(headers={"nexus-operation-state": "succeeded"})),
                cancel(role="task", expect=ACCEPTED),
                Got(who="receiver", count=1, quiet_ms=50),
            )
        ),
        skips={"client": "the same to a client as case 54"},
    ),
    Case(
        number=61,
        name="a cancel before the handler's answer is known",
        group=GROUP,
        rule="P31",
        expected="remembered, and told once, when the handler's token is known",
        reason="there is nothing to name until then, and a cancel must not be lost",
        advice="Keep the cancel with the operation; send it after the 201.",
        gateway=Trial(
            handler=(started(hold="go"),),
            steps=(
                *BEGUN,
                cancel(expect=ACCEPTED),
                Got(kind="cancel", count=0, quiet_ms=50),
                Release("go"),
                TOLD,
                Got(kind="cancel", count=1, quiet_ms=50),
                *DONE,
            ),
        ),
        skips={"agent": "nobody knows its token before it answered", "client": "the gateway remembers it"},
    ),
    Case(
        number=62,
        name="an operation that cannot be canceled",
        group=GROUP,
        rule="P32",
        rules={"agent": "P133"},
        expected="an agent answers 501 NOT_IMPLEMENTED; a gateway does not ask again, and the operation goes on",
        reason="repeating it would change nothing",
        advice="Answer the cancel of an operation without tokens of its own with 501.",
        gateway=Trial(
            handler=(started(),),
            cancels=(Reply(status=501),),
            steps=(
                *BEGUN,
                cancel(expect=ACCEPTED),
                Got(kind="cancel", count=1, quiet_ms=1300),
                complete(json="done", expect=Expect(status=200)),
                ended(Expect(status=200, json="done")),
            ),
        ),
        agent=Trial(
            steps=(
                cancel(
                    role="echo", headers=(("nexus-operation-token", "t"),), expect=Expect(failure="NOT_IMPLEMENTED")
                ),
            )
        ),
        skips={"client": "the gateway takes every cancel"},
    ),
    Case(
        number=63,
        name="tokens with spaces and UTF-8, percent-encoded in the query",
        group=GROUP,
        rule="P30",
        rules={"agent": "P133"},
        expected="decoded once; a handler gets the bytes of its token back",
        reason="tokens are opaque: JSON, paths, names",
        advice="Decode the query once, compare tokens byte for byte.",
        gateway=Trial(
            handler=(started("inner {1}/%2F x"),),
            steps=(
                *BEGUN,
                cancel(query="token=%C3%A4%20b", expect=NOT_FOUND),
                cancel(expect=ACCEPTED),
                Got(kind="cancel", expect=Expect(headers={"nexus-operation-token": "inner {1}/%2F x"})),
                *DONE,
            ),
        ),
        agent=Trial(
            steps=(
                start(
                    role="task",
                    json={**LONG, "token": "{tag} a/b%2F"},
                    query="callback={receiver}",
                    expect=Expect(status=201, json={"token": "{tag} a/b%2F"}),
                ),
                cancel(role="task", query="token=%C3%A4%20b", expect=NOT_FOUND),
                cancel(role="task", query="token={tag}%20a%2Fb%252F", expect=ACCEPTED),
                ENDED,
            )
        ),
        skips={"client": "the client takes an id"},
    ),
)
