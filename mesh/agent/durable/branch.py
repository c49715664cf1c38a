"""The source of a gather that code runs for: what it has begun, and whether it may begin anything more."""

from __future__ import annotations

from contextvars import ContextVar

from mesh.errors import MeshError


class SourceBlocked(MeshError):
    """A source that is known not to answer now. `reason`: why nothing is sent to it."""

    code = "source_blocked"

    def __init__(self, detail: str, reason: str) -> None:
        super().__init__(detail)
        self.reason = reason


class SourceLate(MeshError):
    """The gather's deadline was over before this source began what it asks for."""

    code = "source_late"


class Branch:
    """One source of one gather.

    skipped   reasons why nothing is sent to an endpoint that are not worth waiting for
    expired   the deadline was over when it began: what is recorded counts, nothing new is begun
    children  operations it waits for, by key, to be canceled when it comes too late
    blocked   why nothing is sent to the child that was started last
    """

    __slots__ = ("_given_up", "_outer", "blocked", "children", "expired", "skipped")

    def __init__(self, skipped: frozenset[str], *, expired: bool) -> None:
        self.skipped = skipped
        self.expired = expired
        self.children: dict[str, str] = {}
        self.blocked: str | None = None
        self._given_up = False
        self._outer = branch.get()

    @property
    def given_up(self) -> bool:
        """Whether nobody waits for it any more: it, or the source whose gather it is of, came too late or failed."""
        return self._given_up or (self._outer is not None and self._outer.given_up)

    def give_up(self) -> None:
        self._given_up = True


branch: ContextVar[Branch | None] = ContextVar("mesh_gather_branch", default=None)


def begin_within_branch(key: str) -> None:
    """Raises SourceLate when this code runs for a source that may begin nothing more."""
    source = branch.get()
    if source is not None and source.expired:
        raise SourceLate(f"{key}: the deadline was over")
