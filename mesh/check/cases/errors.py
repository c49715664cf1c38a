"""Cases 32 to 47: failures of handlers and of operations, in both shapes."""

from __future__ import annotations

from typing import Final

from mesh.check.case import ABSENT, PRESENT, Call, Case, Expect, Got, Match, Reply, Trial
from mesh.check.cases.shared import (
    ONCE,
    QUICK,
    handler_error,
    handler_failure,
    legacy,
    operation_error,
    operation_failure,
    record,
    start,
)
from mesh.check.expect import RETRYABLE, STATUS

GROUP: Final = "errors"
CLIENT: Final = {
    "BAD_REQUEST": "Malformed",
    "UNAUTHENTICATED": "Unauthenticated",
    "UNAUTHORIZED": "Forbidden",
    "NOT_FOUND": "NotFound",
    "REQUEST_TIMEOUT": "Refusal",
    "CONFLICT": "Conflict",
    "RESOURCE_EXHAUSTED": "TooMany",
    "INTERNAL": "Unavailable",
    "NOT_IMPLEMENTED": "Unavailable",
    "UNAVAILABLE": "Unavailable",
    "UPSTREAM_TIMEOUT": "Unavailable",
}
"""What our client raises; the gateway tells it by status and problem type."""
CHAIN: Final = {
    "message": "top",
    "metadata": {"type": "nexus.OperationError"},
    "details": {"state": "failed"},
    "cause": {
        "message": "middle",
        "metadata": {"type": "x.Middle"},
        "cause": {"message": "root", "details": [1, "two"]},
    },
}


def _at_gateway(kind: str) -> Trial:
    reply = handler_error(STATUS[kind], kind, "of the handler")
    if kind in RETRYABLE:
        # Repeated by the gateway; when no attempt is left, 424 with the last error as cause.
        cause = {"message": "of the handler", "metadata": {"type": "nexus.HandlerError"}, "details": {"type": kind}}
        return Trial(
            policy=QUICK,
            handler=(reply,),
            steps=(
                start(expect=Expect(status=424, outcome="failed", json={"cause": cause})),
                Got(count=3, quiet_ms=50),
            ),
        )
    return Trial(
        policy=QUICK,
        handler=(reply,),
        steps=(
            start(
                expect=Expect(
                    status=STATUS[kind],
                    json=handler_failure(kind, "of the handler"),
                    headers={"mesh-failure-source": ABSENT},
                )
            ),
            Got(count=1, quiet_ms=50),
        ),
    )


def _at_client(kind: str) -> Trial:
    body = {"code": "as_scripted", "detail": "of the gateway", "status": STATUS[kind]}
    return Trial(
        handler=(Reply(status=STATUS[kind], json=body, type="application/problem+json"),),
        steps=(
            Call(
                verb="call",
                args=("peer", "svc", "op", 1),
                raises=CLIENT[kind],
                fields={"code": "as_scripted", "detail": "of the gateway"},
            ),
        ),
    )


def _typed(number: int, kind: str) -> Case:
    repeat = "repeated" if kind in RETRYABLE else "not repeated"
    return Case(
        number=number,
        name=f"a handler error of type {kind}",
        group=GROUP,
        rule="P43" if kind in RETRYABLE else "P13",
        rules={"agent": "P130", "client": "P148"},
        expected=f"{STATUS[kind]}, metadata.type nexus.HandlerError, details.type {kind}; {repeat} by default",
        reason="the type decides whether callers repeat; without details.type Temporal does until its timeout",
        advice=f"Answer {kind} with {STATUS[kind]}, both types in the body, and Nexus-Request-Retryable.",
        gateway=_at_gateway(kind),
        agent=Trial(
            steps=(
                start(
                    role="act",
                    json={"end": "error", "type": kind, "message": "of the handler"},
                    expect=Expect(
                        failure=kind, json={"message": "of the handler"}, headers={"nexus-request-retryable": PRESENT}
                    ),
                ),
            )
        ),
        client=_at_client(kind),
    )


CASES: Final = (
    *(_typed(number, kind) for number, kind in enumerate(STATUS, 32)),
    Case(
        number=43,
        name="an error that overrides its type's default",
        group=GROUP,
        rule="P43",
        rules={"agent": "P130"},
        expected="retryableOverride in the body and Nexus-Request-Retryable say the same, and it is obeyed",
        reason="new callers read the body, old ones the header",
        advice="Write both, and let the body's flag beat the type.",
        gateway=Trial(
            policy=QUICK,
            handler=(
                handler_error(500, "INTERNAL", retryableOverride=False),
                handler_error(404, "NOT_FOUND", retryableOverride=True),
                Reply(json="second"),
                Reply(status=503, body=b"no", type="text/plain", headers=(("nexus-request-retryable", "false"),)),
            ),
            steps=(
                start(expect=Expect(status=500, json={"details": {"retryableOverride": False}})),
                start(expect=Expect(status=200, json="second")),
                start(expect=Expect(status=503)),
                Got(count=4, quiet_ms=50),
            ),
        ),
        agent=Trial(
            steps=(
                start(
                    role="act",
                    json={"end": "error", "type": "INTERNAL", "retryable": False},
                    expect=Expect(failure="INTERNAL", retryable=False),
                ),
                start(
                    role="act",
                    json={"end": "error", "type": "NOT_FOUND", "retryable": True},
                    expect=Expect(failure="NOT_FOUND", retryable=True),
                ),
            )
        ),
        skips={"client": "a gateway's errors override nothing"},
    ),
    Case(
        number=44,
        name="a failed operation",
        group=GROUP,
        rule="P12",
        rules={"agent": "P131", "client": "P148"},
        expected="424, Nexus-Operation-State failed, details.state failed",
        reason="sdk-go before 0.5 requires the header, newer ones read the body",
        advice="Say the state in both places.",
        gateway=Trial(
            handler=(operation_error("failed", "no luck"),),
            steps=(start(expect=Expect(status=424, outcome="failed", json={"message": "no luck"})), Got(count=1)),
        ),
        agent=Trial(
            steps=(
                start(
                    role="act",
                    json={"end": "failed", "message": "no luck"},
                    expect=Expect(status=424, outcome="failed", json={"message": "no luck"}),
                ),
            )
        ),
        client=Trial(
            handler=(
                Reply(json=record("failed", failure=operation_failure("failed"))),
                Reply(status=424, json=operation_failure("failed", "no luck")),
                Reply(json=record("failed")),
            ),
            steps=(
                Call(
                    verb="call",
                    args=("peer", "svc", "op", 1),
                    raises="OperationFailed",
                    fields={"failure": {"message": "no luck"}, "operation_id": "00-0123456789abcdef0123"},
                ),
            ),
        ),
    ),
    Case(
        number=45,
        name="a canceled operation",
        group=GROUP,
        rule="P12",
        rules={"agent": "P131", "client": "P148"},
        expected="424, Nexus-Operation-State canceled, details.state canceled",
        reason="who canceled wants to know that it worked",
        advice="Say the state in both places.",
        gateway=Trial(
            handler=(operation_error("canceled", "stopped"),),
            steps=(start(expect=Expect(status=424, outcome="canceled", json={"message": "stopped"})), Got(count=1)),
        ),
        agent=Trial(
            steps=(
                start(
                    role="act",
                    json={"end": "canceled", "message": "stopped"},
                    expect=Expect(status=424, outcome="canceled", json={"message": "stopped"}),
                ),
            )
        ),
        client=Trial(
            handler=(
                Reply(json=record("canceled")),
                Reply(status=424, json=operation_failure("canceled", "stopped")),
                Reply(json=record("canceled")),
            ),
            steps=(Call(verb="call", args=("peer", "svc", "op", 1), raises="OperationCanceled"),),
        ),
    ),
    Case(
        number=46,
        name="three causes deep",
        group=GROUP,
        rule="P12",
        rules={"agent": "P131", "client": "P148"},
        expected="the whole chain arrives, details and all",
        reason="messages and causes were lost over the hop (temporalio/temporal#9290)",
        advice="Nest causes as Failures; do not flatten them into one message.",
        gateway=Trial(
            handler=(Reply(status=424, json=CHAIN, headers=(("nexus-operation-state", "failed"),)),),
            steps=(
                start(expect=Expect(status=424, json=CHAIN)),
                legacy(query="token={first.#mesh-operation-id}", expect=Expect(status=424, json=CHAIN)),
            ),
        ),
        agent=Trial(
            steps=(
                start(
                    role="act",
                    json={"end": "failed", "message": "top", "causes": ["middle", "root"]},
                    expect=Expect(
                        status=424,
                        json={"message": "top", "cause": {"message": "middle", "cause": {"message": "root"}}},
                    ),
                ),
            )
        ),
        client=Trial(
            handler=(Reply(json=record("failed")), Reply(status=424, json=CHAIN), Reply(json=record("failed"))),
            steps=(
                Call(verb="call", args=("peer", "svc", "op", 1), raises="OperationFailed", fields={"failure": CHAIN}),
            ),
        ),
    ),
    Case(
        number=47,
        name="an exception that nobody caught",
        group=GROUP,
        rule="P4",
        rules={"agent": "P132"},
        expected="500 INTERNAL, and nothing of its text",
        reason="exceptions carry secrets: hosts, queries, keys",
        advice="Answer 500 with a fixed message and keep the text in the log.",
        agent=Trial(
            steps=(
                start(
                    role="act",
                    json={"end": "crash", "message": "pass-word-in-text"},
                    expect=Expect(failure="INTERNAL", secret="pass-word-in-text"),  # noqa: S106 - what must not leak
                ),
            )
        ),
        gateway=Trial(
            policy=ONCE,
            handler=(Reply(framing="reset"),),
            steps=(
                start(
                    expect=Expect(
                        status=424,
                        outcome="failed",
                        json={"message": Match(".+")},
                        headers={"mesh-failure-source": "gateway"},
                        secret="Traceback",  # noqa: S106 - what must not leak
                    )
                ),
                legacy(query="token={first.#mesh-operation-id}", expect=Expect(status=424)),
            ),
        ),
        skips={"client": "a demand on handlers"},
    ),
)
