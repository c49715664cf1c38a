"""How a run of a durable handler is given its task, whether it was pushed here or pulled.

Owns what the durable runs of one agent share: the lines to the mesh, threads for steps. Knows runs and heads; the code
and its journal are mesh/agent/durable's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Final, cast

from mesh.agent.durable.holding import Hold, Pulse
from mesh.agent.durable.hub import Item
from mesh.agent.durable.lines import HttpLink, Lines
from mesh.agent.durable.link import Hosted, Task, Tools
from mesh.agent.inbound import number_of

if TYPE_CHECKING:
    from mesh.agent.arrivals import Arrivals
    from mesh.agent.durable.attempt import Attempt
    from mesh.agent.inbound import Callback, StartHead
    from mesh.agent.outcome import Outcome
    from mesh.agent.runs import Run
    from mesh.pool import Pool, Target

LINGER_MS: Final = 500
FAIL_FOR_S: Final = 30.0


class Hosting:
    """`steps`, `handlers`: threads for plain `def` ones. `linger_ms`: how long a run that only waits stays here."""

    def __init__(
        self,
        pool: Pool,
        gateways: Sequence[Target],
        key: str | None,
        *,
        steps: Executor,
        handlers: Executor,
        linger_ms: int,
        lease_ms: int,
        arrivals: Arrivals,
    ) -> None:
        self._lines = Lines(pool, gateways, key, arrivals, lease_ms)
        self._pulse = Pulse(lease_ms)
        self._tools = Tools(steps, handlers, linger_ms)
        self._leaving = False
        self._attempts: set[Attempt] = set()

    def task(self, run: Run, head: StartHead) -> Hosted | None:
        """What the handler of `run` needs; None when no mesh sent it."""
        headers = head.headers()
        operation_id = headers.get("mesh-operation-id")
        if run.callback is None or run.callback.gateway is None or operation_id is None:
            return None
        timeout_ms = head.operation_timeout_ms
        task = Task(
            operation_id,
            number_of(headers.get("mesh-run", "1")),
            run.attempt,
            headers.get("mesh-namespace", ""),
            headers,
            None if timeout_ms is None else run.started_at_ms + timeout_ms,
            journal_of(headers),
            cancel_requested(headers),
            run.detach,
        )
        self._pulse.begin()
        hold = run.hold = Hold(self._pulse)
        link = HttpLink(self._lines, _Address(run), run.leave, hold)

        def attach(attempt: Attempt) -> None:
            self._attempts.add(attempt)
            run.durable = attempt
            if self._leaving:
                attempt.leave()

        return Hosted(task, link, self._tools, attach)

    def begin(self) -> None:
        """Work may come from now on, on this loop."""
        self._pulse.begin()

    def adopted(self, run: Run, head: StartHead) -> None:
        """A later attempt of the same run came here while it goes on; its token is the run's already."""
        if run.hold is not None:
            run.hold.arrived()
        attempt = run.durable
        if attempt is None:
            return
        headers = head.headers()
        attempt.told(journal_of(headers))
        if cancel_requested(headers):
            attempt.cancel()

    async def fail(self, run: Run, outcome: Outcome) -> bool:
        """Tell the mesh that the attempt failed in a way worth repeating: the next one comes by the endpoint's policy.

        False when it could not be told: then the end of the lease tells it.
        """
        address = _Address(run)
        said = self._lines.verb("fail", address.gateway).put(
            Item(address, b'"retryable":true,"failure":' + outcome.body)
        )
        try:
            async with asyncio.timeout(FAIL_FOR_S):
                ack = await said
        except TimeoutError:
            return False
        return ack.status == "ok"

    def ended(self, attempt: Attempt) -> None:
        self._attempts.discard(attempt)

    def leave(self) -> None:
        """The agent stops: every run hands its operation back as soon as no step of it runs."""
        self._leaving = True
        for attempt in tuple(self._attempts):
            attempt.leave()

    async def close(self) -> None:
        self._pulse.end()
        await self._lines.close()


class _Address:
    """Where a run's requests go. A later attempt that is adopted brings another token."""

    __slots__ = ("_run",)

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def token(self) -> str:
        return cast("Callback", self._run.callback).token

    @property
    def gateway(self) -> Target:
        return cast("Target", cast("Callback", self._run.callback).gateway)


def journal_of(headers: Mapping[str, str]) -> int:
    """Entries in the journal when the task was sent out; 0 without the header."""
    text = headers.get("mesh-journal", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0  # noqa: PLR2004


def cancel_requested(headers: Mapping[str, str]) -> bool:
    return headers.get("mesh-cancel-requested") == "1"
