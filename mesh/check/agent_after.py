"""Probes of leases, and of what is left when everything else was tried."""

from __future__ import annotations

from typing import Final

from mesh.check.agent_answers import Breach, Skip
from mesh.check.agent_kit import Kit
from mesh.check.agent_probes import probe

MS: Final = 1000
ENDED: Final = "the work ended before its first heartbeat was due"


@probe(
    "L1", "a lease is kept", "P215",
    expected="an agent whose 201 says Mesh-Lease-Ms heartbeats before that time is over",
    reason="silence means that the agent is dead: the work goes to another",
)  # fmt: skip
async def heartbeats(kit: Kit) -> str | None:
    order = kit.order(kit.lasting)
    answer = await kit.running(order)
    lease_s = _lease_s(answer.reply.header("mesh-lease-ms"))
    beats = kit.receiver.beats[order.token]
    await kit.receiver.until(lambda: bool(beats or kit.tries(order)), lease_s)
    if beats:
        return None
    if kit.tries(order):
        raise Skip(ENDED)
    raise Breach(
        f"Mesh-Lease-Ms: {lease_s * MS:.0f}, and no heartbeat in that time",
        "Post to {gateway}/v1/tasks/heartbeat every third of Mesh-Lease-Ms, or leave that header out of your 201.",
    )


@probe(
    "L2", "a lease is lost", "P215",
    expected="no further heartbeat for it",
    reason="another attempt has the work",
)  # fmt: skip
async def lost(kit: Kit) -> str | None:
    order = kit.order(kit.lasting)
    kit.receiver.verdicts[order.token] = "lost"
    answer = await kit.running(order)
    lease_s = _lease_s(answer.reply.header("mesh-lease-ms"))
    beats = kit.receiver.beats[order.token]
    await kit.receiver.until(lambda: bool(beats or kit.tries(order)), lease_s)
    if not beats:
        raise Skip(ENDED)
    if await kit.receiver.until(lambda: len(beats) > 1, lease_s):
        raise Breach(
            "a heartbeat came after the answer `lost`",
            "Stop heartbeats, and the work, for a task that a heartbeat says is lost or ended.",
        )
    return None


@probe(
    "Z1", "nothing is owed, nothing is sent twice", "P216",
    expected="every 201 was followed by one outcome, and by nothing after it was taken",
    reason="what an agent forgets, a gateway waits for until its time is over",
)  # fmt: skip
async def settled(kit: Kit) -> str | None:
    strays = [
        each for token, tries in kit.receiver.tries.items() if token not in kit.receiver.scripts for each in tries
    ]
    if strays:
        what = "without the header Token" if not strays[0].header("token") else "with a Token that was never given out"
        raise Breach(
            f"{len(strays)} requests came {what}: {strays[0].method} {strays[0].path[:60]}",
            "Send every completion with the Token of its own start (Nexus-Callback-Token), and nothing else there.",
        )
    for order in kit.orders:
        taken = [each for each in kit.tries(order) if each.say.taken]
        if len(taken) > 1:
            raise Breach(
                f"one completion was sent {len(taken)} times although it was taken",
                "Send a completion no more once it was answered 2xx, and run an operation once.",
            )
    return None


@probe(
    "Z2", "the agent is well after all this", "P216",
    expected="a start is answered as it was at first",
    reason="what a broken caller leaves behind must not weigh on the next one",
)  # fmt: skip
async def well(kit: Kit) -> str | None:
    advice = "Free what a broken-off request held: connections, workers, locks, entries of tables."
    for sample in filter(None, (kit.quick, kit.long, kit.durable)):
        order = kit.order(sample)
        answer = await kit.start(order)
        if answer.refused is not None:
            raise Breach(f"a start was answered {answer}", advice)
        if sample is kit.durable:
            # Told here that it has ended; later nobody would, and an agent that stops would wait for an answer.
            await kit.receiver.until(lambda order=order: kit.keeps_journal(order), kit.settings.quiet_s)
        elif answer.token and kit.took_s:
            await kit.completion(order, 1, advice)
    if kit.quick is None and kit.long is None and kit.durable is None:
        raise Skip("needs an operation that can be started")
    return None


def _lease_s(text: str) -> float:
    if not text.isascii() or not text.isdigit():
        message = "the agent's 201 promises no heartbeats (Mesh-Lease-Ms)"
        raise Skip(message)
    return int(text) / MS
