"""Cases 23 to 26: timeouts."""

from __future__ import annotations

from typing import Final

from mesh.check.case import PRESENT, Between, Call, Case, Each, Expect, Got, Release, Reply, Trial
from mesh.check.cases.shared import (
    HELD,
    REFUSED,
    ended,
    got,
    handler_error,
    record,
    start,
)

GROUP: Final = "starts"
BAD: Final = ("5", "1h", "-1s", "1 s", "s", "1e3s", "+1s", "1.s", ".5s", "1s2s")
GOOD: Final = (("1.5s", 1200, 1500), ("2m", 119_000, 120_000), ("2500ms", 2200, 2500))

CASES: Final = (
    Case(
        number=23,
        name="a Request-Timeout that the handler does not keep",
        group=GROUP,
        rule="P14",
        rules={"agent": "P128", "client": "P146"},
        expected="an answer within the bound: 408 of an agent; of a gateway 201, as the operation is durable, and"
        " UPSTREAM_TIMEOUT for a handler that does not answer it",
        reason="the caller hangs up at its own deadline; what comes later is lost",
        advice="Take Request-Timeout as the deadline of the handler and answer 408 REQUEST_TIMEOUT when it is over.",
        gateway=Trial(
            policy={"request_timeout_ms": 150, "retry": {"max_attempts": 1}},
            handler=HELD,
            steps=(
                start(
                    headers=(("request-timeout", "100ms"),),
                    expect=Expect(status=201, json={"state": "running"}, within_ms=1000),
                ),
                ended(Expect(outcome="failed", json={"cause": {"details": {"type": "UPSTREAM_TIMEOUT"}}})),
                Release("go"),
            ),
        ),
        agent=Trial(
            steps=(
                start(
                    role="act",
                    headers=(("request-timeout", "100ms"),),
                    json={"after_ms": 5000},
                    expect=Expect(failure="REQUEST_TIMEOUT", within_ms=1500, after_ms=50),
                ),
            )
        ),
        client=Trial(
            handler=(Reply(status=202, json=record("started")),),
            steps=(
                Call(
                    verb="call",
                    args=("peer", "svc", "op", 1),
                    options={"timeout_s": 0.2},
                    raises="StillRunning",
                    fields={"operation_id": "00-0123456789abcdef0123"},
                    within_ms=3000,
                ),
            ),
        ),
    ),
    Case(
        number=24,
        name="timeouts in ms, s and m",
        group=GROUP,
        rule="P21",
        rules={"agent": "P128", "client": "P146"},
        expected="`1.5s`, `2m` and `250ms` are understood",
        reason="Go clients write whole milliseconds, people write the others",
        advice="Parse a number, decimals allowed, and one of ms, s, m.",
        gateway=Trial(
            steps=(
                Each(
                    GOOD,
                    (
                        start(
                            headers=(("operation-timeout", "{each.0}"), ("request-timeout", "{each.0}")),
                            expect=Expect(status=200),
                        ),
                        got(headers={"operation-timeout": Between("{each.1}", "{each.2}"), "request-timeout": PRESENT}),
                    ),
                ),
            )
        ),
        agent=Trial(
            steps=(
                Each(
                    ("1.5s", "2m", "250ms"),
                    (
                        start(
                            role="any",
                            headers=(("operation-timeout", "{each}"), ("request-timeout", "{each}")),
                            expect=Expect(status=(200, 201)),
                        ),
                    ),
                ),
            )
        ),
        client=Trial(
            handler=(Reply(status=400, json={"message": "seen"}),),
            steps=(
                Call(
                    verb="start",
                    args=("peer", "svc", "op", b"x"),
                    options={"schedule_to_close_ms": 1500},
                    raises="Malformed",
                ),
                got(headers={"operation-timeout": Between(1500, 1500)}),
            ),
        ),
    ),
    Case(
        number=25,
        name="timeouts that are none",
        group=GROUP,
        rule="P21",
        rules={"agent": "P128"},
        expected="400 BAD_REQUEST for no unit, hours, signs and spaces; an empty one is no timeout",
        reason="a timeout that is silently ignored is an operation that never ends",
        advice="Refuse timeouts that do not read number and unit.",
        gateway=Trial(
            steps=(
                Each(BAD, (start(headers=(("operation-timeout", "{each}"),), expect=REFUSED),)),
                Each(BAD, (start(headers=(("request-timeout", "{each}"),), expect=REFUSED),)),
                Got(count=0),
                start(headers=(("operation-timeout", ""), ("request-timeout", "")), expect=Expect(status=200)),
            )
        ),
        agent=Trial(
            steps=(
                Each(BAD, (start(role="any", headers=(("request-timeout", "{each}"),), expect=REFUSED),)),
                start(role="any", headers=(("request-timeout", ""),), expect=Expect(status=(200, 201))),
            )
        ),
        skips={"client": "the client takes durations as numbers"},
    ),
    Case(
        number=26,
        name="Operation-Timeout",
        group=GROUP,
        rule="P40",
        rules={"agent": "P128", "client": "P146"},
        expected="it reaches the handler; a bad one is 400",
        reason="the handler must know how long its result is of use to anybody",
        advice="Hand Operation-Timeout to the handler as it came, or as what is left of it.",
        gateway=Trial(
            steps=(
                start(headers=(("operation-timeout", "30s"),), expect=Expect(status=200)),
                got(headers={"operation-timeout": Between(25_000, 30_000)}),
                Each(BAD, (start(headers=(("operation-timeout", "{each}"),), expect=REFUSED),)),
                Got(count=1),
            )
        ),
        agent=Trial(
            steps=(
                start(
                    role="seen",
                    headers=(("operation-timeout", "30s"),),
                    expect=Expect(status=200, json={"headers": {"operation-timeout": Between(25_000, 30_000)}}),
                ),
                Each(BAD, (start(role="any", headers=(("operation-timeout", "{each}"),), expect=REFUSED),)),
            )
        ),
        client=Trial(
            handler=(Reply(json=record("timed_out", failure={"message": "late"})), handler_error(500, "INTERNAL")),
            steps=(
                Call(
                    verb="start",
                    args=("peer", "svc", "op", 1),
                    options={"schedule_to_close_ms": 30_000},
                    returns={"id": "00-0123456789abcdef0123"},
                ),
                got(json={"timeouts": {"schedule_to_close_ms": 30_000}}),
            ),
        ),
    ),
)
