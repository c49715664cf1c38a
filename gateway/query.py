"""Query parameters of /v1 lists: a name that nobody knows is refused, for a filter left out silently shows too much."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from fastapi import Request

from mesh.errors import Unprocessable

LABEL: Final = "label."
SHOWN_MAX: Final = 10
NAME_CHARS_MAX: Final = 100


def check_query(request: Request, *, labels: bool = False) -> None:
    """Raise Unprocessable `parameter_invalid` naming each parameter that the route does not have.

    `labels`: it also takes `label.NAME`.
    """
    route: Any = request.scope["route"]
    check_names(request.query_params, [one.alias for one in route.dependant.query_params], labels=labels)


def check_names(given: Iterable[str], known: Sequence[str], *, labels: bool = False) -> None:
    """As `check_query`, of a route that takes the parameters `known`."""
    unknown = [name for name in dict.fromkeys(given) if name not in known and not (labels and _is_label(name))]
    if not unknown:
        return
    errors = [{"parameter": name[:NAME_CHARS_MAX], "detail": "there is no such parameter"} for name in unknown]
    named = ", ".join(repr(one["parameter"]) for one in errors[:SHOWN_MAX])
    takes = ", ".join([*known, f"{LABEL}NAME"] if labels else known)
    detail = f"there is no query parameter {named} here; there are {takes}"
    raise Unprocessable(detail, code="parameter_invalid", errors=errors[:SHOWN_MAX])


def bad_parameter(name: str, wanted: str) -> Unprocessable:
    """The refusal of a value that is none: the same form as that of a number out of its range."""
    return Unprocessable(f"{name} {wanted}", code="parameter_invalid", errors=[{"parameter": name, "detail": wanted}])


def _is_label(name: str) -> bool:
    return name.startswith(LABEL)
