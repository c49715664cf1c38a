"""Cases 1 to 9: bodies and media types."""

from __future__ import annotations

from typing import Final

from mesh.check.case import ABSENT, BYTES, JSON, Call, Case, Each, Expect, Got, Reply, Reset, Trial
from mesh.check.cases.shared import NULL_IN, REFUSED, UNTYPED, got, record, start

GROUP: Final = "bodies"
JSON_BODY: Final = ' {"a": [1, 2.50, null, true], "ü": "€"} '.encode()
JSON_VALUE: Final = {"a": [1, 2.5, None, True], "ü": "€"}
OCTETS: Final = bytes(range(256)) * 4
SCHEMA: Final = (
    {
        "name": "svc",
        "operations": [
            {
                "name": "op",
                "input": {
                    "type": "object",
                    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                    "required": ["a", "b"],
                },
            }
        ],
    },
)
NEVER: Final = Expect(failure="BAD_REQUEST", headers={"nexus-request-retryable": "false"})
"""In both shapes, that of older callers too."""
NOBODY: Final = Got(count=0)
TYPED_BY_SCHEMA: Final = "has the schema of an operation only where one is registered; sent with one here"

CASES: Final = (
    Case(
        number=1,
        name="JSON in and out",
        group=GROUP,
        rule="P17",
        rules={"agent": "P125", "client": "P145"},
        expected="200 with the same JSON, labelled exactly application/json",
        reason="Temporal's SDKs cannot decode a result whose type has parameters",
        advice="Label a JSON result `application/json` with nothing behind it, and pass bodies untouched.",
        gateway=Trial(
            steps=(
                start(body=JSON_BODY, type=JSON, expect=Expect(status=200, body=JSON_BODY, type=JSON)),
                got(body=JSON_BODY, type=JSON),
            )
        ),
        agent=Trial(
            steps=(
                start(role="echo", body=JSON_BODY, type=JSON, expect=Expect(status=200, json=JSON_VALUE, type=JSON)),
            )
        ),
        client=Trial(
            handler=(Reply(json=record(result=JSON_VALUE)),),
            steps=(
                Call(verb="call", args=("peer", "svc", "op", JSON_VALUE), returns=JSON_VALUE),
                got(json={"endpoint": "peer", "service": "svc", "operation": "op", "input": JSON_VALUE}, type=JSON),
            ),
        ),
    ),
    Case(
        number=2,
        name="an empty chunked body without a type is null",
        group=GROUP,
        rule="P17",
        rules={"agent": "P125", "client": "P145"},
        expected="the handler gets null: no body, no type",
        reason="this is how the Go client sends nil",
        advice="Read an empty body without Content-Type as null, whether it came with a length or in chunks.",
        gateway=Trial(
            steps=(
                start(framing="chunked", expect=Expect(status=200)),
                Got(nth=-1, expect=NULL_IN),
                start(expect=Expect(status=200)),
                Got(nth=-1, expect=NULL_IN),
            )
        ),
        agent=Trial(
            steps=(
                start(role="seen", framing="chunked", expect=Expect(status=200, json={"input_is_null": True})),
                start(role="seen", expect=Expect(status=200, json={"input_is_null": True})),
            )
        ),
        client=Trial(
            handler=(Reply(json=record(result=None)),),
            steps=(
                Call(verb="call", args=("peer", "svc", "op"), returns=None),
                got(json={"input": ABSENT}),
            ),
        ),
    ),
    Case(
        number=3,
        name="a null result",
        group=GROUP,
        rule="P10",
        rules={"agent": "P125", "client": "P145"},
        expected="200, no body, no Content-Type",
        reason="an empty body labelled JSON is a decoding error for Go clients",
        advice="Answer null with Content-Length 0 and without Content-Type.",
        gateway=Trial(handler=(Reply(),), steps=(start(expect=UNTYPED),)),
        agent=Trial(steps=(start(role="act", json={}, expect=UNTYPED),)),
        client=Trial(
            handler=(Reply(json=record("scheduled")), Reply()),
            steps=(Call(verb="call", args=("peer", "svc", "op", 1), returns=None),),
        ),
    ),
    Case(
        number=4,
        name="bytes both ways",
        group=GROUP,
        rule="P17",
        rules={"agent": "P125", "client": "P145"},
        expected="application/octet-stream in and out, each byte the same",
        reason="files and protocol buffers cross as bytes",
        advice="Pass application/octet-stream without decoding it; label a bytes result so.",
        gateway=Trial(
            steps=(
                start(body=OCTETS, type=BYTES, expect=Expect(status=200, body=OCTETS, type=BYTES)),
                got(body=OCTETS, type=BYTES),
                start(body=OCTETS, type=BYTES, framing="chunked", expect=Expect(status=200, body=OCTETS)),
                Reset(
                    handler=(
                        Reply(body=OCTETS, type=BYTES, framing="chunked"),
                        Reply(body=OCTETS, type=BYTES, framing="close"),
                    )
                ),
                start(expect=Expect(status=200, body=OCTETS, type=BYTES), times=2),
            )
        ),
        agent=Trial(
            steps=(
                start(role="echo", body=OCTETS, type=BYTES, expect=Expect(status=200, body=OCTETS, type=BYTES)),
                start(
                    role="echo",
                    body=OCTETS,
                    type=BYTES,
                    framing="chunked",
                    expect=Expect(status=200, body=OCTETS, type=BYTES),
                ),
            )
        ),
        client=Trial(
            handler=(
                Reply(status=201, json={"token": "t", "state": "running"}, headers=(("mesh-operation-id", "t"),)),
                Reply(json=record("started")),
                Reply(body=OCTETS, type=BYTES),
            ),
            steps=(
                Call(verb="call", args=("peer", "svc", "op", OCTETS), returns=OCTETS),
                Got(expect=Expect(body=OCTETS, type=BYTES)),
            ),
        ),
    ),
    Case(
        number=5,
        name="a JSON null",
        group=GROUP,
        rule="P17",
        rules={"agent": "P125"},
        expected="the body `null` is the value null",
        reason="JavaScript and Go callers that always encode send null so",
        advice="Decode the JSON text null as null.",
        gateway=Trial(
            steps=(
                start(body=b"null", type=JSON, expect=Expect(status=200, body=b"null", type=JSON)),
                got(body=b"null", type=JSON),
            )
        ),
        agent=Trial(
            steps=(
                start(role="seen", body=b"null", type=JSON, expect=Expect(status=200, json={"input_is_null": True})),
            )
        ),
        skips={"client": "the client sends null without a body (case 2)"},
    ),
    Case(
        number=6,
        name="an unknown media type for a typed operation",
        group=GROUP,
        rule="P137",
        rules={"agent": "P125"},
        expected="400 BAD_REQUEST",
        reason="what cannot be read will not be readable on the next try either",
        advice="Answer an input whose media type the operation cannot read with 400 BAD_REQUEST, not 415 and not 500.",
        gateway=Trial(services=SCHEMA, steps=(start(body=b'{"a":1,"b":2}', type="text/csv", expect=REFUSED), NOBODY)),
        agent=Trial(steps=(start(role="sum", body=b'{"a":1,"b":2}', type="application/x-unheard-of", expect=REFUSED),)),
        skips={"client": "a demand on who reads inputs"},
    ),
    Case(
        number=7,
        name="broken JSON",
        group=GROUP,
        rule="P20",
        rules={"agent": "P125"},
        expected="400 BAD_REQUEST, not retryable",
        reason="Temporal repeated undecodable inputs until its timeout (temporalio/sdk-java#3002)",
        advice="Answer an input that is no JSON with 400 BAD_REQUEST and `details.type`.",
        gateway=Trial(
            services=SCHEMA,
            steps=(
                Each((b'{"a":1', b"{'a':1}", b"", b"\xff"), (start(body="{each}", type=JSON, expect=NEVER),)),
                NOBODY,
            ),
        ),
        agent=Trial(
            steps=(
                Each(
                    (b'{"a":1', b"{'a':1}", b"", b"\xff"),
                    (start(role="sum", body="{each}", type=JSON, expect=REFUSED),),
                ),
            )
        ),
        skips={"client": "a demand on who reads inputs"},
    ),
    Case(
        number=8,
        name="JSON of another shape",
        group=GROUP,
        rule="P20",
        rules={"agent": "P125"},
        expected="400 BAD_REQUEST, never 422",
        reason="Temporal repeats a 422, FastAPI's default, until its timeout",
        advice="Map validation errors to 400 BAD_REQUEST.",
        gateway=Trial(
            services=SCHEMA,
            steps=(
                Each(({"a": "x", "b": 2}, {"a": 1}, [1, 2], None), (start(json="{each}", expect=REFUSED),)),
                NOBODY,
                start(json={"a": 1, "b": 2}, expect=Expect(status=200)),
            ),
        ),
        agent=Trial(
            steps=(
                Each(({"a": "x", "b": 2}, {"a": 1}, [1, 2], None), (start(role="sum", json="{each}", expect=REFUSED),)),
                start(role="sum", json={"a": 1, "b": 2}, expect=Expect(status=200, json=3)),
            )
        ),
        skips={"client": "a demand on who reads inputs"},
    ),
    Case(
        number=9,
        name="a JSON type with parameters",
        group=GROUP,
        rule="P17",
        rules={"agent": "P125", "client": "P145"},
        expected="`application/json; charset=utf-8` is JSON",
        reason="many HTTP clients add the charset by themselves",
        advice="Compare media types without their parameters and without regard to case.",
        gateway=Trial(
            services=SCHEMA,
            steps=(
                Each(
                    ("application/json; charset=utf-8", "Application/JSON"),
                    (
                        start(json={"a": 1, "b": 2}, type="{each}", expect=Expect(status=200)),
                        got(type="{each}", json={"a": 1, "b": 2}),
                    ),
                ),
            ),
        ),
        agent=Trial(
            steps=(
                Each(
                    ("application/json; charset=utf-8", "Application/JSON"),
                    (start(role="sum", json={"a": 1, "b": 2}, type="{each}", expect=Expect(status=200, json=3)),),
                ),
            )
        ),
        client=Trial(
            handler=(
                Reply(json=record("started")),
                Reply(body=b'{"n":1}', type="application/json; charset=utf-8"),
            ),
            steps=(Call(verb="call", args=("peer", "svc", "op", 1), returns={"n": 1}),),
        ),
    ),
)
