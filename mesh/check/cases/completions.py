"""Cases 76 to 84: completions on their way in. Of a gateway; agents and clients take none."""

from __future__ import annotations

from typing import Final

from mesh.check.case import JSON, Case, Each, Expect, Got, Links, Release, Target, Trial
from mesh.check.cases.shared import (
    ASYNC,
    REFUSED,
    complete,
    ended,
    handler_failure,
    legacy,
    operation_failure,
    start,
    started,
)

GROUP: Final = "completions"
BEGUN: Final = (start(headers=(ASYNC,), expect=Expect(status=201)), Got(save="call"))
TAKEN: Final = Expect(status=200, body=b"")
RUNS: Final = legacy(expect=Expect(status=412))
SKIPS: Final[dict[Target, str]] = {
    "agent": "an agent takes no completions",
    "client": "a client library takes no completions",
}
WHEN: Final = (
    ("nexus-operation-start-time", "Mon, 23 Nov 2026 01:36:01 GMT"),
    ("nexus-operation-close-time", "2026-11-23T01:36:02.123456Z"),
    ("nexus-operation-token", "inner"),
    ("nexus-link", '<https://a.example/run>; type="a.Run"'),
)
BAD_TIMES: Final = (
    ("nexus-operation-start-time", "yesterday"),
    ("nexus-operation-start-time", "23 11 2026"),
    ("nexus-operation-close-time", "Mon, 23 Nov 2026 01:36:01 GMT"),
    ("nexus-operation-close-time", "2026-11-23 01:36"),
    ("nexus-operation-close-time", "1795398961"),
)


def _of(number: int, name: str, rule: str, expected: str, reason: str, advice: str, trial: Trial) -> Case:
    return Case(
        number=number,
        name=name,
        group=GROUP,
        rule=rule,
        expected=expected,
        reason=reason,
        advice=advice,
        gateway=trial,
        skips=SKIPS,
    )


CASES: Final = (
    _of(
        76,
        "a success",
        "P50",
        "200, no body; the operation has the result, its type and its links",
        "the sender takes any 2xx as delivered",
        "Answer an accepted completion with 200 and nothing else.",
        Trial(
            handler=(started(),),
            steps=(
                *BEGUN,
                complete(body=b"\x00\x01", type="application/octet-stream", headers=WHEN, expect=TAKEN),
                ended(
                    Expect(
                        status=200,
                        body=b"\x00\x01",
                        type="application/octet-stream",
                        headers={"nexus-link": Links((("https://a.example/run", "a.Run"),), among=True)},
                    )
                ),
            ),
        ),
    ),
    _of(
        77,
        "no state, an unknown one, or running",
        "P53",
        "400 BAD_REQUEST, and the operation goes on",
        "a completion must say how it ended",
        "Take succeeded, failed and canceled only.",
        Trial(
            handler=(started(),),
            steps=(
                *BEGUN,
                Each(
                    ("", "running", "done", "SUCCEEDED", "succeeded, failed"),
                    (complete("{each}", json=1, expect=REFUSED),),
                ),
                complete("", json=1, expect=REFUSED),
                RUNS,
                complete(json=1, expect=TAKEN),
            ),
        ),
    ),
    _of(
        78,
        "a failure that is no JSON Failure",
        "P53",
        "400 BAD_REQUEST, and the operation goes on",
        "the failure would be lost for good",
        "Take failed and canceled with application/json and a Failure only.",
        Trial(
            handler=(started(),),
            steps=(
                *BEGUN,
                complete("failed", body=b"no luck", type="text/plain", expect=REFUSED),
                complete("canceled", body=b"{", type=JSON, expect=REFUSED),
                complete("failed", json=["no luck"], expect=REFUSED),
                complete("failed", json={"message": 7}, expect=REFUSED),
                complete("failed", expect=REFUSED),
                RUNS,
                complete("failed", json={"message": "no luck"}, expect=TAKEN),
                ended(Expect(outcome="failed")),
            ),
        ),
    ),
    _of(
        79,
        "bad start and close times",
        "P53",
        "400 BAD_REQUEST",
        "they date the operation where the completion comes first",
        "Take HTTP dates for the start, RFC 3339 for the close.",
        Trial(
            handler=(started(),),
            steps=(
                *BEGUN,
                Each(BAD_TIMES, (complete(json=1, headers=(("{each.0}", "{each.1}"),), expect=REFUSED),)),
                RUNS,
                complete(json=1, headers=WHEN, expect=TAKEN),
            ),
        ),
    ),
    _of(
        80,
        "a second completion",
        "P51",
        "the same outcome again is 200, another one 409, and the first stands",
        "senders repeat; a sender that contradicts itself must hear of it",
        "Compare a repeated completion with what is kept.",
        Trial(
            handler=(started(),),
            steps=(
                *BEGUN,
                complete(json={"n": 1}, expect=TAKEN),
                complete(json={"n": 1}, expect=TAKEN),
                complete(json={"n": 2}, expect=Expect(failure="CONFLICT")),
                complete("failed", json={"message": "no"}, expect=Expect(failure="CONFLICT")),
                ended(Expect(status=200, json={"n": 1})),
            ),
        ),
    ),
    _of(
        81,
        "a completion before the answer to the start",
        "P54",
        "the operation ends; the 201 that comes late changes nothing",
        "a fast agent completes while its 201 is still on the wire",
        "Let a completion end an operation that is not known to have started.",
        Trial(
            handler=(started(hold="go"),),
            steps=(
                *BEGUN,
                complete(json="early", headers=WHEN, expect=TAKEN),
                ended(Expect(status=200, json="early")),
                Release("go"),
                ended(Expect(status=200, json="early")),
                Got(count=1, quiet_ms=100),
                legacy(expect=Expect(status=200, json="early")),
            ),
        ),
    ),
    _of(
        82,
        "a token that is none",
        "P52",
        "4xx that is not worth repeating; nothing changes",
        "completion tokens are the only proof of who did the work",
        "Sign tokens and check them; answer forged ones with 401.",
        Trial(
            handler=(started(),),
            steps=(
                *BEGUN,
                Each(
                    ("nonsense", "{call.#nexus-callback-token}x", "x{call.#nexus-callback-token}", "{first.token}", ""),
                    (
                        complete(
                            json="forged",
                            headers=(("token", "{each}"),),
                            expect=Expect(status=(401, 400, 403, 404), headers={"nexus-request-retryable": "false"}),
                        ),
                    ),
                ),
                RUNS,
                complete(json="genuine", expect=TAKEN),
                ended(Expect(status=200, json="genuine")),
            ),
        ),
    ),
    _of(
        83,
        "both shapes of a failure",
        "P50",
        "an OperationError and a plain cause both end the operation, message and cause kept",
        "Temporal sends the plain cause to this day",
        "Wrap what is no OperationError as its cause.",
        Trial(
            handler=(started(),),
            steps=(
                *BEGUN,
                complete("failed", json=operation_failure("failed", "new", {"message": "deep"}), expect=TAKEN),
                ended(Expect(outcome="failed", json={"message": "new", "cause": {"message": "deep"}})),
                start(headers=(ASYNC,), expect=Expect(status=201)),
                Got(nth=2, save="call"),
                complete("canceled", json=handler_failure("NOT_FOUND", "old"), expect=TAKEN),
                ended(Expect(outcome="canceled", json={"cause": {"message": "old", "details": {"type": "NOT_FOUND"}}})),
                start(headers=(ASYNC,), expect=Expect(status=201)),
                Got(nth=3, save="call"),
                complete("failed", json={"message": "plain", "details": {"n": 1}}, expect=TAKEN),
                ended(Expect(outcome="failed", json={"cause": {"message": "plain", "details": {"n": 1}}})),
            ),
        ),
    ),
    _of(
        84,
        "a chunked completion",
        "P50",
        "accepted like any other, empty ones too",
        "Go's sender has no length",
        "Read chunked bodies.",
        Trial(
            handler=(started(),),
            steps=(
                *BEGUN,
                complete(body=b'{"a": "in chunks"}', type=JSON, framing="chunked", expect=TAKEN),
                ended(Expect(status=200, json={"a": "in chunks"})),
                start(headers=(ASYNC,), expect=Expect(status=201)),
                Got(nth=2, save="call"),
                complete(framing="chunked", expect=TAKEN),
                ended(Expect(status=200, body=b"")),
            ),
        ),
    ),
)
