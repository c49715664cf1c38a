"""Cases 17 to 22: repeats, and the answers of asynchronous operations."""

from __future__ import annotations

from typing import Final

from mesh.check.case import JSON, Ask, Call, Case, Expect, Got, Match, Release, Reply, Trial
from mesh.check.cases.shared import (
    ASYNC,
    HELD,
    RUNNING,
    WAIT,
    got,
    record,
    start,
    started,
)

GROUP: Final = "starts"
ID: Final = ("nexus-request-id", "{key}")
CONFLICT: Final = Expect(failure="CONFLICT")
TOKEN: Final = Match(r"[!-~]([ -~]{0,4094}[!-~])?")
ASYNCHRONOUS: Final = Expect(status=201, type=JSON, json={"token": TOKEN, "state": "running"})


CASES: Final = (
    Case(
        number=17,
        name="the same Nexus-Request-Id twice, asynchronous",
        group=GROUP,
        rule="P15",
        rules={"agent": "P127", "client": "P146"},
        expected="the same token, one execution",
        reason="callers repeat a start whose answer was lost, with the same id",
        advice="Keep the id of a start with its operation and answer repeats with the first token.",
        gateway=Trial(
            handler=(started(),),
            steps=(
                start(headers=(ID, ASYNC), json=1, expect=ASYNCHRONOUS),
                start(headers=(ID, ASYNC), json=1, expect=RUNNING, save="again"),
                Got(count=1, quiet_ms=50),
            ),
        ),
        agent=Trial(
            steps=(
                start(role="task", headers=(ID,), json={"tag": "{tag}", "after_ms": 3000}, expect=ASYNCHRONOUS),
                start(
                    role="task", headers=(ID,), json={"tag": "{tag}", "after_ms": 3000}, expect=RUNNING, save="again"
                ),
                start(role="runs", json="{tag}", expect=Expect(status=200, json=1)),
            )
        ),
        client=Trial(
            handler=(Reply(framing="reset"), Reply(status=503), Reply(json=record(result=1))),
            steps=(
                Call(verb="call", args=("peer", "svc", "op", 1), returns=1),
                Got(nth=1, save="call"),
                Got(nth=3, expect=Expect(headers={"idempotency-key": "{call.#idempotency-key}"})),
            ),
        ),
    ),
    Case(
        number=18,
        name="the same id fifty times at once",
        group=GROUP,
        rule="P15",
        rules={"agent": "P127"},
        expected="one execution, one answer for all",
        reason="a repeat may come while the first still runs; a proxy may fan out",
        advice="Take the id before the work begins, and let repeats wait for the one execution.",
        gateway=Trial(
            handler=(Reply(json="once", after_ms=50),),
            steps=(
                start(headers=(ID, WAIT), json=1, times=50, expect=Expect(status=200, json="once")),
                Got(count=1, quiet_ms=50),
            ),
        ),
        agent=Trial(
            steps=(
                start(
                    role="act",
                    headers=(ID,),
                    json={"tag": "{tag}", "after_ms": 100, "value": "once"},
                    times=50,
                    expect=Expect(status=200, json="once"),
                ),
                start(role="runs", json="{tag}", expect=Expect(status=200, json=1)),
            )
        ),
        skips={"client": "a demand on who takes starts"},
    ),
    Case(
        number=19,
        name="the same id with another input",
        group=GROUP,
        rule="P16",
        rules={"agent": "P127", "client": "P146"},
        expected="409 CONFLICT, and nothing changes",
        reason="a reused id is a bug of the caller that must not look like success",
        advice="Keep a digest of the input with the id and refuse another one.",
        gateway=Trial(
            handler=(started(),),
            steps=(
                start(headers=(ID, ASYNC), json=1, expect=ASYNCHRONOUS),
                start(headers=(ID, ASYNC), json=2, expect=CONFLICT, save="other"),
                start(headers=(ID, ASYNC), json=1, expect=RUNNING, save="again"),
                Got(count=1, quiet_ms=50),
            ),
        ),
        agent=Trial(
            steps=(
                start(role="task", headers=(ID,), json={"tag": "{tag}", "after_ms": 3000}, expect=ASYNCHRONOUS),
                start(role="task", headers=(ID,), json={"tag": "{tag}", "value": 2}, expect=CONFLICT, save="other"),
                start(role="runs", json="{tag}", expect=Expect(status=200, json=1)),
            )
        ),
        client=Trial(
            handler=(Reply(status=422, json={"code": "key_reused", "detail": "no"}, type="application/problem+json"),),
            steps=(
                Call(verb="call", args=("peer", "svc", "op", 1), raises="Unprocessable", fields={"code": "key_reused"}),
                Got(count=1, quiet_ms=100),
            ),
        ),
    ),
    Case(
        number=20,
        name="no request id",
        group=GROUP,
        rule="P15",
        rules={"agent": "P127", "client": "P146"},
        expected="accepted; the handler gets an id that was made for it",
        reason="curl sends none, and the specification does not name the header",
        advice="Make an id where the caller sent none.",
        gateway=Trial(
            steps=(
                start(json=1, expect=Expect(status=200)),
                Got(save="call", expect=Expect(headers={"nexus-request-id": Match(r"[!-~]{8,}")})),
                start(json=1, expect=Expect(status=200)),
                Got(count=2),
            )
        ),
        agent=Trial(steps=(start(role="seen", json=1, expect=Expect(status=200, json={"request_id": Match(".+")})),)),
        client=Trial(
            handler=(Reply(json=record(result=1)),),
            steps=(
                Call(verb="call", args=("peer", "svc", "op", 1), returns=1),
                got(headers={"idempotency-key": Match(r"[!-~]{16,255}")}),
            ),
        ),
    ),
    Case(
        number=21,
        name="the answer of an asynchronous start",
        group=GROUP,
        rule="P11",
        rules={"agent": "P128", "client": "P145"},
        expected="201, application/json, token and state running",
        reason="any other 2xx, or a 201 without token, makes Temporal repeat the start",
        advice='Answer `{"token": "...", "state": "running"}` with 201 and application/json.',
        gateway=Trial(handler=HELD, steps=(start(headers=(ASYNC,), expect=ASYNCHRONOUS), Release("go"))),
        agent=Trial(steps=(start(role="task", json={}, expect=ASYNCHRONOUS),)),
        client=Trial(
            handler=(Reply(status=202, json=record("scheduled")),),
            steps=(
                Call(
                    verb="start",
                    args=("peer", "svc", "op", 1),
                    returns={"id": "00-0123456789abcdef0123", "replayed": False},
                ),
            ),
        ),
    ),
    Case(
        number=22,
        name="a token is a header value",
        group=GROUP,
        rule="P11",
        rules={"agent": "P128"},
        expected="the token is 1 to 4096 visible characters, and works in Nexus-Operation-Token",
        reason="the cancel carries it in a header",
        advice="Use tokens of visible ASCII without line breaks.",
        gateway=Trial(
            handler=(started(),),
            steps=(
                start(headers=(ASYNC,), expect=ASYNCHRONOUS),
                Ask(
                    path="{op}/cancel", headers=(("nexus-operation-token", "{first.token}"),), expect=Expect(status=202)
                ),
            ),
        ),
        agent=Trial(
            steps=(
                start(role="task", json={"after_ms": 3000}, expect=ASYNCHRONOUS),
                Ask(
                    role="task",
                    path="{op}/cancel",
                    headers=(("nexus-operation-token", "{first.token}"),),
                    expect=Expect(status=202),
                ),
            )
        ),
        skips={"client": "a demand on who makes tokens"},
    ),
)
