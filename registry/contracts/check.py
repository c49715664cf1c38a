"""One schema, ready to be applied: whether it can be, what an input would cost, and what in an input breaks it.

The validator says yes or no (validator.py), where an input breaks its schema is found by explain.py. Knows no endpoint.
"""

from __future__ import annotations

import logging
import re
from functools import cached_property
from typing import Any, Final

from mesh.errors import Unprocessable
from mesh.wire import load_json, many_digits, reading_ns
from registry.contracts.bounds import NOTHING, Cost, Unusable, bound
from registry.contracts.dialect import DRAFT_2020, OLDER, Schema, dialect_of, modern, pointer
from registry.contracts.explain import SPEND_S, Breach, Explainer, cut
from registry.contracts.validator import Validator, validator, why_no_schema

INLINE_NS_MAX: Final = 10_000_000
"""An input that may cost more is checked in the examiner's process (examiner.py)."""
READ_NS: Final = 1_000
"""More than reading costs for any byte: an input that is cheap even so needs no closer look."""
DIGITS: Final = 30
_exponent: Final = re.compile(rb"[0-9][eE]-?[0-9]{3}").search
"""Numbers of many digits are costly, written out or by their exponent."""

_log = logging.getLogger(__name__)


class Contract:
    """One schema as registered. Compiled when it is first used, for most of a registry is never called through here."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    @cached_property
    def modern(self) -> Schema:
        """The schema in 2020-12, without a name of its own: all its references are into itself."""
        found = modern(self.schema)
        return (
            {key: one for key, one in found.items() if key not in ("$id", "$schema")}
            if isinstance(found, dict)
            else found
        )

    @cached_property
    def _compiled(self) -> tuple[Cost, Validator | None]:
        try:
            return _compile(self.schema, self.modern)
        except Unusable as error:
            # Registered with an older gateway, which knew no bounds. Agents check their input themselves.
            _log.error("a registered schema is not applied: %s", error)
            return NOTHING, None

    @cached_property
    def _explainer(self) -> Explainer:
        return Explainer(self.modern)

    def why_unusable(self) -> str:
        """The reason why this schema cannot be applied, or "". Said at registration."""
        try:
            _compile(self.schema, self.modern)
        except Unusable as error:
            return str(error)
        return ""

    def heavy(self, body: bytes) -> bool:
        """Whether the JSON text `body` may take longer to read and check than the event loop can spare."""
        cost = self._compiled[0]
        if cost.numbers and (_exponent(body) or many_digits(body, DIGITS)):
            return True
        if len(body) * (cost.value_ns + cost.object_ns + cost.byte_ns + READ_NS) <= INLINE_NS_MAX:
            return False
        objects = body.count(b"{")
        values = 1 + objects + body.count(b"[") + body.count(b",") + body.count(b":")
        check_ns = values * cost.value_ns + objects * cost.object_ns + len(body) * cost.byte_ns
        return check_ns + reading_ns(body) > INLINE_NS_MAX

    def breaches(self, value: Any, prefix: str = "", spend_s: float = SPEND_S) -> list[Breach]:
        """What in `value` breaks the schema, as `{pointer, detail}`; empty when nothing does.

        Looked for during about `spend_s`, once it is known that something does.
        """
        judge = self._compiled[1]
        if judge is None or judge.is_valid(value):
            return []
        return self._explainer.breaches(value, prefix, spend_s)

    def check(self, body: bytes, prefix: str = "") -> None:
        """Raise Unprocessable `schema_breach` unless the JSON text keeps the schema; `b""` counts as null.

        Raises Malformed when it is no strict JSON. Pointers are put behind `prefix`.
        """
        refuse(self.breaches(load_json(body) if body else None, prefix))


def refuse(found: list[Breach]) -> None:
    """Raise Unprocessable `schema_breach` for the breaches of an input, if there are any."""
    if found:
        where = found[0]["pointer"]
        detail = f"the input breaks the registered schema{f' at {where}' if where else ''}: {found[0]['detail']}"
        raise Unprocessable(detail, code="schema_breach", errors=list(found))


def _compile(schema: Schema, as_2020: Schema) -> tuple[Cost, Validator]:
    dialect = dialect_of(schema)
    if dialect != DRAFT_2020 and dialect not in OLDER:
        raise Unusable(f"$schema {cut(dialect)} is not known; leave it out for 2020-12, or name draft 6, 7 or 2019-09")
    if (trouble := why_no_schema(as_2020)) is not None:
        raise Unusable(f"not a JSON Schema (2020-12): {cut(trouble[0])} at {pointer(trouble[1]) or '/'}")
    cost = bound(as_2020)
    try:
        return cost, validator(as_2020)
    except ValueError as error:
        raise Unusable(f"the schema cannot be applied: {cut(str(error))}") from None
