"""I20-I22: what callers who left are told. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from mesh.machine import Delivery
from tests.chaos.history import Line, What
from tests.chaos.rules_runs import same_end
from tests.chaos.view import Finding, View, evidence, rule, stored_digest


@rule("I20")
def i20_every_owed_callback_is_delivered(view: View) -> Iterator[Finding]:
    """Owed once a start was acknowledged without its outcome (P80): until 2xx, or a visible dead letter."""
    received = view.of_operation(What.RECEIVED)
    for op, calls in view.acked.items():
        one = view.stored.get(op)
        left = [call for call in calls if call.outcome is not None and not call.outcome.terminal]
        if one is None or not one.head.wants_callback or not one.state.terminal or not left:
            continue
        state = Delivery(one.head.callback)
        taken = any(200 <= line.status < 300 for line in received[op])
        if state is Delivery.DEAD:
            if f"{op}.{one.head.run}.callback" not in view.snapshot.dead.get(one.head.namespace, []):
                yield Finding(f"the dead callback of {op} is not on the list of the dead", (one,))
        elif state is not Delivery.DELIVERED:
            yield Finding(f"the callback of {op} is {state.word}", (*left[0].lines, *evidence(received[op]), one))
        elif not taken:
            yield Finding(f"the callback of {op} counts as delivered, nobody took it", (*evidence(received[op]), one))


@rule("I21")
def i21_a_delivered_callback_is_never_taken_back(view: View) -> Iterator[Finding]:
    """Its operation is there, ended, with the state and the result that the callback told."""
    for line in view.infos[What.RECEIVED]:
        one = view.stored.get(line.op)
        if one is None:
            yield Finding(f"a callback told of {line.op}, which the store does not know", (line,))
        elif not one.state.terminal or not same_end(line.state, one.state):
            yield Finding(f"a callback told that {line.op} is {line.state}; it is {one.state.word}", (line, one))
        elif line.digest and line.digest != stored_digest(one):
            yield Finding(f"a callback told another result of {line.op}", (line, one))


@rule("I22")
def i22_one_id_fresh_stamp_valid_signature(view: View) -> Iterator[Finding]:
    """`webhook-id` is `{operation id}.{run}` on every try; each try is signed anew."""
    ids: dict[str, list[Line]] = defaultdict(list)
    for line in view.infos[What.RECEIVED]:
        ids[line.op].append(line)
        if not line.detail.get("signature"):
            yield Finding(f"a callback of {line.op} has no valid signature", (line,))
        if abs(line.detail.get("age_s", 0)) > view.promise.callback_age_s_max:
            yield Finding(f"a callback of {line.op} has a stale timestamp", (line,))
    for op, lines in ids.items():
        one = view.stored.get(op)
        expected = f"{op}.{one.head.run}" if one is not None else lines[0].request_id
        wrong = [line for line in lines if line.request_id != expected]
        if wrong:
            yield Finding(f"a callback of {op} has the id {wrong[0].request_id}", evidence(lines))
