"""What a new version of an endpoint's services would break for those who call the present one.

Input goes from callers of the old contract to the new one: the new must take all that the old took. Output goes the
other way: callers of the old contract must understand all that the new gives. Where nothing was promised - no list of
services, no schema of an output - nothing can break; to stop listing what has a schema takes a promise back. Pure but
for what compares two schemas, which is handed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from registry.contracts.compare import Difference, TooComplex, compare
from registry.contracts.dialect import Place, Schema, modern, pointer
from registry.contracts.words import of_input, of_output
from registry.spec import OperationSpec, ServiceSpec

CHANGES_MAX: Final = 50
"""Changes that one answer lists."""
TOO_COMPLEX: Final = "the schemas are too complex to compare"

Services: TypeAlias = Sequence[ServiceSpec]


class Change(NamedTuple):
    """One thing that callers of the old contract would notice.

    `breaks` False: it could not be proven that it fits, nor that it does not. `pointer` into the new registration.
    """

    breaks: bool
    code: str
    service: str
    operation: str
    pointer: str
    detail: str


class Pair(NamedTuple):
    """Two versions of an operation's input or output that are not equal."""

    service: str
    operation: str
    output: bool
    at: Place
    old: Schema
    new: Schema

    @property
    def sender(self) -> Schema:
        """Whose values go to the other side, in 2020-12."""
        return modern(self.new if self.output else self.old)

    @property
    def taker(self) -> Schema:
        return modern(self.old if self.output else self.new)


class Comparison(NamedTuple):
    """What the lists of names say, and the schemas that remain to be compared."""

    changes: list[Change]
    pairs: list[Pair]


def compare_lists(old: Services, new: Services, called: Iterable[tuple[str, str]] = ()) -> Comparison:
    """Compare what two registrations list; `called`: operations that were called although no list named them."""
    changes: list[Change] = []
    pairs: list[Pair] = []
    if not new:
        return Comparison([change for service in old for change in _opened(service, "/services")], [])
    found = {service.name: (number, service) for number, service in enumerate(new)}
    for service in old:
        if service.name not in found:
            detail = f"the service {service.name!r} is gone"
            changes.append(Change(True, "service_removed", service.name, "", "/services", detail))  # noqa: FBT003
            continue
        number, present = found[service.name]
        _operations(service, present, number, changes, pairs)
    changes += _unlisted(old, found, called)
    return Comparison(changes, pairs)


def _operations(old: ServiceSpec, new: ServiceSpec, number: int, changes: list[Change], pairs: list[Pair]) -> None:
    if not new.operations:
        changes += _opened(old, pointer(("services", number)))
        return
    found = {one.name: (position, one) for position, one in enumerate(new.operations)}
    for one in old.operations:
        if one.name not in found:
            at = pointer(("services", number, "operations"))
            detail = f"the operation {one.name!r} is gone"
            changes.append(Change(True, "operation_removed", old.name, one.name, at, detail))  # noqa: FBT003
            continue
        position, present = found[one.name]
        at = ("services", number, "operations", position)
        before: Schema = True if one.input is None else one.input
        if present.input is not None and present.input != before:
            pairs.append(Pair(old.name, one.name, False, (*at, "input"), before, present.input))  # noqa: FBT003
        if one.output is not None and present.output is None:
            changes.append(_undescribed(old, one, pointer(at)))
        elif one.output is not None and present.output is not None and present.output != one.output:
            pairs.append(Pair(old.name, one.name, True, (*at, "output"), one.output, present.output))  # noqa: FBT003


def _opened(old: ServiceSpec, at: str) -> Iterator[Change]:
    """A list that opens takes back each contract in it; let through, the next registration could promise anything."""
    for one in old.operations:
        detail = f"the operation {one.name!r} is no longer listed, and with it what was promised of it"
        if one.input is not None or one.output is not None:
            yield Change(True, "contract_withdrawn", old.name, one.name, at, detail)  # noqa: FBT003


def _undescribed(service: ServiceSpec, one: OperationSpec, at: str = "/services") -> Change:
    detail = "the output is no longer described"
    return Change(False, "output_undescribed", service.name, one.name, at, detail)  # noqa: FBT003


def _unlisted(
    old: Services, found: Mapping[str, tuple[int, ServiceSpec]], called: Iterable[tuple[str, str]]
) -> Iterator[Change]:
    """Operations that an open list let through, that were called, and that the new list does not have."""
    listed = {service.name: service for service in old}
    for service, operation in sorted(set(called)):
        if old and (service not in listed or listed[service].operations):
            continue
        there = found.get(service)
        if there is None or (there[1].operations and all(one.name != operation for one in there[1].operations)):
            at = "/services" if there is None else pointer(("services", there[0], "operations"))
            detail = f"the operation {operation!r} of the service {service!r} is not listed"
            yield Change(True, "operation_removed", service, operation, at, detail)  # noqa: FBT003


def changes_of(pair: Pair, differences: Sequence[Difference]) -> list[Change]:
    """What the differences between two schemas mean for callers."""
    found: list[Change] = []
    # A property that is new to the other side is no matter: an input's that nobody sends yet, an output's nobody reads.
    fine = "undeclared" if pair.output else "absent"
    for one in (difference for difference in differences if difference.word != fine):
        place = one.place if pair.output else one.at
        side = "output" if pair.output else "input"
        detail = of_output(one) if pair.output else of_input(one)
        code = f"{side}_{'widened' if pair.output else 'narrowed'}"
        at = pointer((*pair.at, *place))
        found.append(Change(one.proven, code, pair.service, pair.operation, at, f"{side}: {detail}"))
    return found


def unproven(pair: Pair, why: str = TOO_COMPLEX) -> Change:
    """Schemas that could not be compared."""
    side = "output" if pair.output else "input"
    return Change(False, "not_compared", pair.service, pair.operation, pointer(pair.at), f"{side}: {why}")  # noqa: FBT003


def compare_services(old: Services, new: Services) -> list[Change]:
    """All changes, compared here and now, which hostile schemas may make long."""
    changes, pairs = compare_lists(old, new)
    for pair in pairs:
        try:
            changes += changes_of(pair, compare(pair.sender, pair.taker))
        except TooComplex:
            changes.append(unproven(pair))
    return changes


def record(change: Change, callers: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """A change as JSON."""
    found: dict[str, Any] = {
        "pointer": change.pointer,
        "detail": change.detail,
        "code": change.code,
        "service": change.service,
    }
    if change.operation:
        found["operation"] = change.operation
    return found | {"callers": list(callers)}
