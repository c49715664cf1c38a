"""One endpoint, compiled from its registration for the hot path. Pure.

Knows who may call it and which operations it lists; nothing of instances, health and the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from mesh.blob import is_blob_schema
from mesh.errors import NotFound
from mesh.store.catalog import read_versions
from mesh.store.verbs import EndpointRow, Share
from registry.contracts import Contract
from registry.policy import BreakerPolicy, Policy
from registry.spec import EndpointSpec

LISTED_NAMES_MAX: Final = 10
NAME_SHOWN_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Operation:
    """A listed operation; contracts are None where the registration has no schema, or says that it is a Blob."""

    name: str
    input: Contract | None
    output: Contract | None


class Bounds(msgspec.Struct, frozen=True, gc=False):
    """What the policy says to every start; pydantic takes four times as long to find each. 0: none."""

    request_ms: int
    close_ms: int
    start_ms: int
    run_ms: int
    attempts_max: int
    breaker: BreakerPolicy


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """One living endpoint, compiled. `services` None: any; a service's operations None: any.

    `pulls`: its agents ask for work, nothing is sent to them.
    """

    id: str
    name: str
    owner: str
    version: int
    paused: bool
    allow: frozenset[str]
    anyone: bool
    services: dict[str, dict[str, Operation] | None] | None
    policy: Policy
    pulls: bool
    target_url: str
    labels: dict[str, str]
    spec: EndpointSpec
    document: bytes
    created_at_ms: int
    updated_at_ms: int
    versions: bytes = b""
    shares: Mapping[str, Share] = field(default_factory=dict[str, Share])
    """How versions share in the work, for those of which something was said."""
    contract: int = 0
    """The version at which its contract changed last, 0 unknown."""
    bounds: Bounds = field(init=False)

    def __post_init__(self) -> None:
        policy = self.policy
        bounds = Bounds(
            policy.request_timeout_ms,
            policy.schedule_to_close_ms or 0,
            policy.schedule_to_start_ms or 0,
            policy.start_to_close_ms or 0,
            policy.retry.max_attempts,
            policy.breaker,
        )
        object.__setattr__(self, "bounds", bounds)

    def callable_by(self, namespace: str) -> bool:
        """Deny by default: the owner, and whom `allow` names."""
        return namespace == self.owner or self.anyone or namespace in self.allow

    def operation(self, service: str, operation: str) -> Operation | None:
        """The listed operation, or None where the list is open.

        Raises NotFound `unknown_service`, `unknown_operation_name`.
        """
        if self.services is None:
            return None
        operations = self.services.get(service)
        if operations is None:
            if service in self.services:
                return None
            raise _not_listed("service", "endpoint", self.name, service, list(self.services))
        found = operations.get(operation)
        if found is None:
            raise _not_listed("operation", "service", service, operation, list(operations))
        return found

    def is_of(self, row: EndpointRow) -> bool:
        """Whether the store still has what this was compiled from."""
        return (
            self.version == row.version
            and self.paused == row.paused
            and self.owner == row.owner
            and self.document == row.document
            and self.versions == row.versions
        )

    @property
    def etag(self) -> str:
        return f'"v{self.version}"'


def compile_endpoint(row: EndpointRow) -> Endpoint:
    """Raises pydantic's ValidationError. Fields that a newer gateway stored are passed over."""
    spec = EndpointSpec.model_validate_json(row.document, extra="ignore")
    services: dict[str, dict[str, Operation] | None] | None = None
    if spec.services:
        services = {
            service.name: {
                one.name: Operation(one.name, _contract(one.input), _contract(one.output)) for one in service.operations
            }
            or None
            for service in spec.services
        }
    return Endpoint(
        row.id, row.name, row.owner, row.version, row.paused, frozenset(spec.allow), "*" in spec.allow, services,
        spec.policy, spec.target.kind == "pull", spec.target.url or "", spec.labels,
        spec, row.document, row.created_at_ms, row.updated_at_ms, row.versions, read_versions(row.versions),
        row.contract,
    )  # fmt: skip


def _contract(schema: dict[str, Any] | bool | None) -> Contract | None:  # noqa: FBT001 - `true` is a JSON Schema
    return None if schema is None or is_blob_schema(schema) else Contract(schema)


def _not_listed(kind: str, within: str, owner: str, name: str, listed: list[str]) -> NotFound:
    shown = ", ".join(one[:NAME_SHOWN_MAX] for one in listed[:LISTED_NAMES_MAX])
    more = ", ..." if len(listed) > LISTED_NAMES_MAX else ""
    detail = f"{within} {owner[:NAME_SHOWN_MAX]!r} has no {kind} {name[:NAME_SHOWN_MAX]!r}; it has {shown}{more}"
    return NotFound(detail, code="unknown_service" if kind == "service" else "unknown_operation_name")
