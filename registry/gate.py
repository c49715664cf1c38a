"""Whether a registration may replace what is there: its schemas can be applied, and callers keep their contract.

A contract that breaks what callers rely on is refused, each break with its place and with those who were seen calling
lately, unless it is forced. What cannot be proven either way is said and let through: unknown is not broken. Looks at
what the catalog hands in; changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from mesh.clock import monotonic_s, sleep, to_rfc3339
from mesh.errors import Conflict, Unprocessable
from registry.callers import Caller
from registry.compat import CHANGES_MAX, Change, changes_of, compare_lists, record, unproven
from registry.contracts import BREACHES_MAX, Contract, Examiner, pointer
from registry.contracts.compare import TooComplex
from registry.contracts.dialect import Schema
from registry.spec import EndpointSpec, ServiceSpec

encode: Final = msgspec.json.encode
READ_S_MAX: Final = 5.0
"""For all schemas of one registration; the event loop gets its turn after each."""
COMPARE_S_MAX: Final = 10.0
"""For all comparisons of one registration; what remains then is not proven."""
TOLD_MAX: Final = 3
"""Breaks that the sentence of a refusal names; all are in its list."""


class Verdict(NamedTuple):
    """What a registration changes in the contract: proven breaks, and what could not be proven, as JSON objects."""

    breaks: list[dict[str, Any]]
    unproven: list[dict[str, Any]]
    forced: bool = False

    def change(self, by: str) -> bytes:
        """The form that is kept with the endpoint."""
        return encode({"by": by, "forced": self.forced, "breaks": self.breaks, "unproven": self.unproven})


def schemas(spec: EndpointSpec) -> Iterator[tuple[str, Schema]]:
    """Every schema of a registration with its JSON Pointer."""
    for s, service in enumerate(spec.services or ()):
        for o, operation in enumerate(service.operations):
            for field, schema in (("input", operation.input), ("output", operation.output)):
                if schema is not None:
                    yield pointer(("services", s, "operations", o, field)), schema


async def check_schemas(spec: EndpointSpec, present: EndpointSpec | None) -> None:
    """Raise Unprocessable `body_invalid` unless every schema can be applied; what `present` has was checked before."""
    known = {encode(schema) for _, schema in schemas(present)} if present is not None else set[bytes]()
    found: list[dict[str, Any]] = []
    until_s = monotonic_s() + READ_S_MAX
    for at, schema in schemas(spec):
        if encode(schema) in known:
            continue
        if monotonic_s() > until_s:
            detail = f"the schemas so far took {READ_S_MAX:g} s to read; register fewer, or simpler ones"
            found.append({"pointer": at, "detail": detail})
            break
        if why := Contract(schema).why_unusable():
            found.append({"pointer": at, "detail": why})
            if len(found) == BREACHES_MAX:
                break
        await sleep(0)
    if found:
        detail = f"the body is not right at {found[0]['pointer']}: {found[0]['detail']}"
        raise Unprocessable(detail, code="body_invalid", errors=found)


async def check_contract(
    name: str,
    old: Sequence[ServiceSpec],
    new: Sequence[ServiceSpec],
    callers: Sequence[Caller],
    examiner: Examiner,
    *,
    force: bool,
    gone: bool = False,
) -> Verdict:
    """What `new` changes for callers of `old`. Raises Conflict `contract_breaks` unless nothing breaks, or `force`.

    `gone`: the endpoint was deleted and comes back.
    """
    changes, pairs = compare_lists(old, new, [(one.service, one.operation) for one in callers])
    until_s = monotonic_s() + COMPARE_S_MAX
    for pair in pairs:
        if monotonic_s() > until_s:
            changes.append(unproven(pair))
            continue
        try:
            changes += changes_of(pair, await examiner.compare(pair.sender, pair.taker))
        except TooComplex:
            changes.append(unproven(pair))
    breaks = [record(one, _seen(one, callers)) for one in changes if one.breaks]
    verdict = Verdict(
        breaks[:CHANGES_MAX],
        [record(one, _seen(one, callers)) for one in changes if not one.breaks][:CHANGES_MAX],
        force,
    )
    if breaks and not force:
        raise Conflict(_refusal(name, breaks, gone=gone), code="contract_breaks", errors=verdict.breaks)
    return verdict


def _seen(change: Change, callers: Sequence[Caller]) -> list[dict[str, Any]]:
    last: dict[str, int] = {}
    for one in callers:
        if one.service == change.service and change.operation in ("", one.operation):
            last[one.namespace] = max(one.at_ms, last.get(one.namespace, 0))
    return [{"namespace": namespace, "last_seen": to_rfc3339(at_ms)} for namespace, at_ms in sorted(last.items())]


def _refusal(name: str, breaks: list[dict[str, Any]], *, gone: bool) -> str:
    told = "; ".join(_told(one) for one in breaks[:TOLD_MAX])
    more = f"; and {len(breaks) - TOLD_MAX} more" if len(breaks) > TOLD_MAX else ""
    count = "one thing" if len(breaks) == 1 else f"{len(breaks)} things"
    which, what = (f"endpoint {name!r}, deleted lately,", "was") if gone else (f"endpoint {name!r}", "is")
    return (
        f"this registration breaks {count} that callers of {which} rely on: {told}{more}. Keep what {what} there"
        " and add beside it, or repeat with force=true (agents of the SDK: MESH_FORCE_CONTRACT=1)"
    )


def _told(one: dict[str, Any]) -> str:
    what = f"{one['service']}/{one['operation']}" if "operation" in one else one["service"]
    names = ", ".join(caller["namespace"] for caller in one["callers"])
    return f"{what}: {one['detail']} ({f'called lately by {names}' if names else 'not seen called lately'})"
