"""What a start asks for in headers of the mesh's own: when it begins, whose child it is, which version, how urgent.

The same things as fields of a body are start_body.py's. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from gateway.orders import Later, Order, Parent
from gateway.payloads import DIGESTS
from gateway.start_body import PARENT_KEY_BYTES_MAX, PRIORITY_MAX, later_of
from mesh.errors import Malformed, Unprocessable
from mesh.wire import parse_duration_ms
from registry.choice import VERSION
from registry.spec import check_version

if TYPE_CHECKING:
    from collections.abc import Mapping

DELAY: Final = b"mesh-delay"
START_AT: Final = b"mesh-start-at"
PARENT_TOKEN: Final = b"mesh-parent-token"
PARENT_KEY: Final = b"mesh-parent-key"
PARENT_CLOSE: Final = b"mesh-parent-close"
VERSION_HEADER: Final = b"mesh-version"
PRIORITY: Final = b"mesh-priority"
WISHES: Final = frozenset((DELAY, START_AT, PARENT_TOKEN, PARENT_KEY, PARENT_CLOSE, VERSION_HEADER, PRIORITY))
SELDOM: Final = WISHES | DIGESTS
"""Headers of a start that most are without: wishes, and what the body has to be."""


class Wishes(msgspec.Struct, frozen=True, gc=False):
    """All of them; most starts have none."""

    priority: int = 0
    later: Later | None = None
    parent: Parent | None = None
    pin: str = ""


NO_WISHES: Final = Wishes()


def wishes_of(first: Mapping[bytes, bytes]) -> Wishes:
    """Of a start over Nexus, by its headers. Raises Malformed."""
    if WISHES.isdisjoint(first):
        return NO_WISHES
    return Wishes(_priority(first), _later(first), _parent(first), _pin(first))


def with_parent(order: Order, first: Mapping[bytes, bytes]) -> Order:
    """`order` as the child that its request's headers make it, if they do. Raises Malformed."""
    parent = _parent(first)
    if parent is None:
        return order
    if order.parent is not None:
        raise Malformed("the parent is named twice, in the body and by Mesh-Parent-Token", code="parent_invalid")
    return replace(order, parent=parent)


def _priority(first: Mapping[bytes, bytes]) -> int:
    """`Mesh-Priority` of a start over Nexus. Raises Malformed."""
    text = first.get(PRIORITY, b"0")
    if len(text) != 1 or not text.isdigit():
        raise Malformed(f"Mesh-Priority is one digit, 0 to {PRIORITY_MAX}", code="priority_invalid")
    return int(text)


def _later(first: Mapping[bytes, bytes]) -> Later | None:
    """`Mesh-Delay` (a Nexus duration) or `Mesh-Start-At` (RFC 3339) of a start over Nexus. Raises Malformed."""
    delay, at = first.get(DELAY), first.get(START_AT)
    if delay is None and at is None:
        return None
    try:
        delay_ms = None if delay is None else parse_duration_ms(delay.decode("latin-1")) or 0
        return later_of(delay_ms, None if at is None else at.decode("latin-1"))
    except Unprocessable as breach:
        named = breach.detail.replace("delay_ms", "Mesh-Delay").replace("start_at", "Mesh-Start-At")
        raise Malformed(named, code="start_time_invalid") from None


def _parent(first: Mapping[bytes, bytes]) -> Parent | None:
    """`Mesh-Parent-Token`, `-Key` and `-Close` of a start (P236). Raises Malformed."""
    token = first.get(PARENT_TOKEN)
    if token is None:
        if PARENT_KEY in first or PARENT_CLOSE in first:
            detail = "Mesh-Parent-Key and -Close are about the attempt that Mesh-Parent-Token names, which is missing"
            raise Malformed(detail, code="parent_invalid")
        return None
    key, close = first.get(PARENT_KEY, b""), first.get(PARENT_CLOSE, b"cancel")
    if not 1 <= len(key) <= PARENT_KEY_BYTES_MAX or not key.isascii():
        detail = f"Mesh-Parent-Key is the child's name in the parent's journal, 1 to {PARENT_KEY_BYTES_MAX} in ASCII"
        raise Malformed(detail, code="parent_invalid")
    if close not in (b"cancel", b"keep"):
        raise Malformed("Mesh-Parent-Close is cancel or keep", code="parent_invalid")
    return Parent(token.decode("latin-1").strip(), key.decode(), close == b"cancel")


def _pin(first: Mapping[bytes, bytes]) -> str:
    """`Mesh-Version` of a start over Nexus. Raises Malformed."""
    version = first.get(VERSION_HEADER)
    return "" if version is None else VERSION + check_version(version.decode("latin-1").strip())
