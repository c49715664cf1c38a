"""What durable code can meet, beside the refusals of mesh/errors.py and the ends of called operations.

    MeshError
      StepFailed        a step failed for good: its tries are used up, or its error is not worth repeating; recorded
      StepTimedOut      one try of a step took longer than its `timeout_ms`; counts as a failed try
      CallRefused       the mesh refused to start a child: unknown endpoint, input that breaks its schema; recorded
      JournalMismatch   the journal and the code disagree about what a name stands for; shows both sides
      QuorumMissed      a gather ended without the answers it needed; carries what there was
    BaseException
      Suspended         this attempt is over and leaves nothing behind; the operation goes on elsewhere or later
        LeaseLost       another attempt has the operation, or it is over: nothing that is done here counts any more
      CancelRequested   the caller wants the operation to end; raised once, where the code waits or would go on

What suspends derives from BaseException, so that a broad `except Exception` cannot swallow it. Knows no journal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.errors import MeshError

if TYPE_CHECKING:
    from mesh.agent.durable.gathered import Gathered


class StepFailed(MeshError):
    """A step failed for good. The same on every replay: `kind` names the class of the error that `fn` raised.

    step     name and occurrence, `clone#1`
    tries    how often `fn` was called
    """

    code = "step_failed"

    def __init__(self, step: str, message: str, kind: str, tries: int) -> None:
        after = "" if tries == 1 else f" after {tries} tries"
        super().__init__(f"step {step} failed{after}: {kind}: {message}")
        self.step = step
        self.message = message
        self.kind = kind
        self.tries = tries


class StepTimedOut(MeshError):
    code = "step_timed_out"


class CallRefused(MeshError):
    """The mesh refused to start the child. The same on every replay: `kind` names the class of the refusal."""

    code = "call_refused"

    def __init__(self, key: str, message: str, kind: str) -> None:
        super().__init__(f"call {key} was refused: {message}")
        self.message = message
        self.kind = kind


class JournalMismatch(MeshError):
    """The code asks for something else than what the journal has under this name. Nothing was done or changed."""

    code = "journal_mismatch"

    def __init__(self, key: str, recorded: str, asked: str, mend: str) -> None:
        super().__init__(f"{key}: the journal has {recorded}; the code now asks for {asked}. {mend}")
        self.key = key
        self.recorded = recorded
        self.asked = asked


class QuorumMissed(MeshError):
    """`gathered` has the outcome of every source."""

    code = "quorum_missed"

    def __init__(self, gathered: Gathered) -> None:
        super().__init__(gathered.story())
        self.gathered = gathered


class Suspended(BaseException):
    """Not an error: let it pass. `finally` blocks run; every use of the context raises it again."""


class LeaseLost(Suspended):
    """Let it pass, as Suspended."""


class CancelRequested(BaseException):
    """Catch it to clean up with further steps, then let it pass; or return a result, which then counts."""
