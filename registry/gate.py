"""Whether a registration may take the place of what is there. Now: that every schema of it can be applied.

Looks at what the catalog hands in; asks nobody and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from mesh.clock import monotonic_s, sleep
from mesh.errors import Unprocessable
from registry.contracts import BREACHES_MAX, Contract, pointer
from registry.spec import EndpointSpec, Schema

encode: Final = msgspec.json.encode
READ_S_MAX: Final = 5.0
"""For all schemas of one registration; the event loop gets its turn after each."""


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
            found.append(
                {"pointer": at, "detail": "the schemas so far took too long to read; register less, or simpler"}
            )
            break
        if why := Contract(schema).why_unusable():
            found.append({"pointer": at, "detail": why})
            if len(found) == BREACHES_MAX:
                break
        await sleep(0)
    if found:
        detail = f"the body is not right at {found[0]['pointer']}: {found[0]['detail']}"
        raise Unprocessable(detail, code="body_invalid", errors=found)
