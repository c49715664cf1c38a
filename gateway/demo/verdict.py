"""What the demo claims, checked against what is there at the end. Pure: histories in, claims with evidence out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

STEPS_MIN: Final = 12
TERMINAL: Final = frozenset({"succeeded", "failed", "canceled", "timed_out"})


class Claim(NamedTuple):
    """A sentence, whether it held, and the figures behind it."""

    text: str
    held: bool
    evidence: str


class Steps(NamedTuple):
    """The coding agent's steps: the attempt that recorded each, in order; how often each was begun; which were `kept`.

    `kept`: recorded before the kill.
    """

    recorded: Mapping[str, int]
    begun: Mapping[str, int]
    kept: Collection[str]


class Evidence(NamedTuple):
    """What the demo has seen.

    acknowledged   operation id -> what it was, for every start that was answered and every call of the reviewer
    histories      operation id -> its events, read at the end
    listed         operation ids that the mesh knows, over both teams
    reads          operation id -> digests of its result, as read at different times, before and after the kills
    streamed       sequence numbers that the event stream brought, over the gateway's death
    ledger         the receiver's entries
    owed           webhook ids of the callbacks that were asked for
    replay         (id that the first start got, id that the repeats got, before and after the gateway's death)
    conflict       codes of the refusals of another content under the same key
    foreign        the code that the other team got when it asked for an operation that is not its own
    resumed        (files in the report of the killed check, files in the tree, files carried over from attempt 1)
    steps          of the coding agent that was killed
    """

    acknowledged: Mapping[str, str]
    histories: Mapping[str, Sequence[Mapping[str, Any]]]
    listed: Sequence[str]
    reads: Mapping[str, Sequence[str]]
    streamed: Sequence[int]
    ledger: Sequence[Mapping[str, Any]]
    owed: Sequence[str]
    replay: tuple[str, Sequence[str]]
    conflict: Sequence[str]
    foreign: str
    resumed: tuple[int, int, int]
    steps: Steps


def judge(seen: Evidence) -> list[Claim]:
    """The claims of the demo."""
    return [
        _once(seen),
        _nothing_lost(seen),
        _equal_reads(seen),
        _work_kept(seen),
        _steps_once(seen),
        _replayed(seen),
        _refused(seen),
        _streamed(seen),
        _callbacks(seen),
    ]


def _once(seen: Evidence) -> Claim:
    histories = seen.histories.values()
    once = sum(sum(event["type"] in TERMINAL for event in events) == 1 for events in histories)
    gapless = all([event["seq"] for event in events] == list(range(1, len(events) + 1)) for events in histories)
    return Claim(
        "every acknowledged operation ended, exactly once",
        once == len(seen.acknowledged) == len(histories) and gapless,
        f"{once} of {len(seen.acknowledged)}, histories without gaps",
    )


def _nothing_lost(seen: Evidence) -> Claim:
    succeeded = sum(any(event["type"] == "succeeded" for event in events) for events in seen.histories.values())
    known, listed = set(seen.acknowledged), set(seen.listed)
    return Claim(
        "no work was lost, none was invented",
        succeeded == len(known) and known == listed and len(seen.listed) == len(listed),
        f"{succeeded} succeeded; missing {len(known - listed)}, unknown {len(listed - known)}",
    )


def _equal_reads(seen: Evidence) -> Claim:
    differing = [one for one, digests in seen.reads.items() if len(set(digests)) != 1]
    count = sum(map(len, seen.reads.values()))
    return Claim(
        "results read again are the same, byte for byte",
        not differing and all(len(digests) > 1 for digests in seen.reads.values()) and bool(seen.reads),
        f"{count} reads of {len(seen.reads)} results, before and after the kills",
    )


def _work_kept(seen: Evidence) -> Claim:
    reported, there, carried = seen.resumed
    return Claim(
        "the killed agent's work was carried on, not begun anew",
        reported == there and 0 < carried < there,
        f"{carried} of {there} files were done before the kill",
    )


def _steps_once(seen: Evidence) -> Claim:
    recorded, begun, kept = seen.steps
    again = [step for step, count in begun.items() if count > 1]
    return Claim(
        "of the killed coding agent's steps none that was recorded ran again",
        len(recorded) >= STEPS_MIN
        and set(recorded) == set(begun)
        and 0 < len(kept) < len(recorded)
        and not set(again) & set(kept)
        and len(set(recorded.values())) > 1,
        f"{len(kept)} of {len(recorded)} steps were recorded before the kill; {len(again)} in flight ran again",
    )


def _replayed(seen: Evidence) -> Claim:
    first, again = seen.replay
    return Claim(
        "the same key and content is the same operation",
        len(again) > 1 and set(again) == {first},
        f"{len(again)} repeats, one of them after the gateway's death",
    )


def _refused(seen: Evidence) -> Claim:
    return Claim(
        "other content under that key is refused; so is another team's look",
        bool(seen.conflict) and set(seen.conflict) == {"key_reused"} and seen.foreign == "unknown_operation",
        f"{', '.join(sorted(set(seen.conflict)))}; {seen.foreign}",
    )


def _streamed(seen: Evidence) -> Claim:
    return Claim(
        "the event stream went on where it broke off",
        bool(seen.streamed) and list(seen.streamed) == list(range(1, len(seen.streamed) + 1)),
        f"events 1 to {len(seen.streamed)}, no gap, no repeat",
    )


def _callbacks(seen: Evidence) -> Claim:
    by_verdict = Counter(entry["verdict"] for entry in seen.ledger)
    effects = Counter(entry["webhook_id"] for entry in seen.ledger if entry["verdict"] == "effect")
    return Claim(
        "each signed callback had its effect once; a forged one had none",
        effects == Counter(seen.owed) and by_verdict["repeat"] >= 1 and by_verdict["refused"] == 1,
        f"{by_verdict.total()} deliveries: {by_verdict['effect']} effects, {by_verdict['repeat']} repeated,"
        f" {by_verdict['refused']} forged and refused",
    )
