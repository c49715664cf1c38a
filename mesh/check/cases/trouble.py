"""Cases 71 to 75: callbacks in trouble: killed senders, forbidden URLs, odd headers, none at all."""

from __future__ import annotations

from typing import Final

from mesh.check.case import (
    JSON,
    Ask,
    Case,
    Each,
    Expect,
    Got,
    Hand,
    Release,
    Reply,
    Trial,
    Until,
)
from mesh.check.cases.shared import (
    ASYNC,
    REFUSED,
    complete,
    happened,
    legacy,
    start,
    started,
)

GROUP: Final = "callbacks"
PLAIN: Final = "callback={receiver}"
ODD: Final = '{"v":1,"d":"a/b+c=="}'
STARTED: Final = Expect(status=201)
CLIENT: Final = "a client library sends no callbacks"
FORBIDDEN: Final = (
    "http%3A%2F%2F10.0.0.1%2Fx",
    "https%3A%2F%2F192.168.1.1%2F",
    "http%3A%2F%2F169.254.169.254%2Flatest",
    "http%3A%2F%2F93.184.215.14%2F",
    "http%3A%2F%2F0x0a000001%2F",
    "ftp%3A%2F%2Fexample.com%2F",
    "http%3A%2F%2F%5B%3A%3Affff%3A10.0.0.1%5D%2F",
    "nonsense",
)


CASES: Final = (
    Case(
        number=71,
        name="the sender is killed between the answer and its book",
        group=GROUP,
        rule="P114",
        expected="sent again after the restart, with the same webhook-id, so that the receiver can drop it",
        reason="at least once is what a sender can promise; the receiver makes it once",
        advice="Book a delivery after its answer, never before; repeat what is not booked.",
        gateway=Trial(
            needs=("kill",),
            receiver=(Reply(hold="killed"), Reply()),
            steps=(
                start(headers=(ASYNC,), query=PLAIN, json=1, expect=STARTED),
                Got(who="receiver", save="call"),
                Hand("kill"),
                Hand("start"),
                Got(
                    who="receiver",
                    nth=2,
                    within_ms=20_000,
                    expect=Expect(
                        headers={"webhook-id": "{call.#webhook-id}", "nexus-operation-token": "{first.token}"}
                    ),
                ),
                happened("callback_delivered"),
            ),
        ),
        skips={"agent": "an agent's memory ends with it; its lease sends the work to another", "client": CLIENT},
    ),
    Case(
        number=72,
        name="the store restarts while a callback is on its way",
        group=GROUP,
        rule="P7",
        expected="the callback is delivered and booked all the same",
        reason="what was acknowledged is kept, whatever restarts",
        advice="Keep deliveries in the store, and wait for it instead of giving up.",
        gateway=Trial(
            needs=("store",),
            receiver=(Reply(hold="back"), Reply()),
            steps=(
                start(headers=(ASYNC,), query=PLAIN, json=1, expect=STARTED),
                Got(who="receiver"),
                Hand("restart_store"),
                Until(ask=Ask(method="GET", path="/readyz", expect=Expect(status=200)), within_ms=20_000),
                Release("back"),
                happened("callback_delivered"),
            ),
        ),
        skips={"agent": "an agent has no store", "client": CLIENT},
    ),
    Case(
        number=73,
        name="callback URLs that lead where nobody may",
        group=GROUP,
        rule="P19",
        expected="400 BAD_REQUEST at the start: private addresses, http where https is needed, other schemes",
        reason="a callback is a request that the caller makes the gateway send (SSRF)",
        advice="Vet callback URLs at the start and again at every send.",
        gateway=Trial(
            steps=(Each(FORBIDDEN, (start(headers=(ASYNC,), query="callback={each}", expect=REFUSED),)), Got(count=0))
        ),
        skips={"agent": "an agent sends to the gateway that asked it, whose business this is", "client": CLIENT},
    ),
    Case(
        number=74,
        name="quotes and braces in a callback header",
        group=GROUP,
        rule="P81",
        rules={"agent": "P134"},
        expected="the value arrives byte for byte",
        reason="Temporal's callback token is JSON in a header",
        advice="Keep the values of callback headers verbatim.",
        gateway=Trial(
            steps=(
                start(
                    headers=(ASYNC, ("nexus-callback-temporal-callback-token", ODD)),
                    query=PLAIN,
                    json=1,
                    expect=STARTED,
                ),
                Got(who="receiver", expect=Expect(headers={"temporal-callback-token": ODD})),
            )
        ),
        agent=Trial(
            steps=(
                start(
                    role="task",
                    headers=(("nexus-callback-temporal-callback-token", ODD),),
                    json={},
                    query=PLAIN,
                    expect=STARTED,
                ),
                Got(who="receiver", expect=Expect(headers={"temporal-callback-token": ODD})),
            )
        ),
        skips={"client": CLIENT},
    ),
    Case(
        number=75,
        name="no callback",
        group=GROUP,
        rule="P66",
        rules={"agent": "P134"},
        expected="an asynchronous operation runs all the same; a gateway has its result to read",
        reason="callers that poll have nowhere to be called",
        advice="Do not demand a callback URL.",
        gateway=Trial(
            handler=(started(),),
            steps=(
                start(headers=(ASYNC,), expect=STARTED),
                Got(save="call"),
                complete(json="late", expect=Expect(status=200)),
                Ask(
                    method="GET",
                    path="/v1/operations/{first.token}/result",
                    query="wait=10",
                    expect=Expect(status=200, json="late", type=JSON),
                ),
                legacy(expect=Expect(status=200, json="late")),
                Got(who="receiver", count=0),
            ),
        ),
        agent=Trial(
            steps=(
                start(role="task", json={"tag": "{tag}"}, expect=STARTED),
                start(role="runs", json="{tag}", expect=Expect(status=200, json=1)),
                Got(who="receiver", count=0, quiet_ms=100),
            )
        ),
        skips={"client": CLIENT},
    ),
)
