"""Probes and canaries: whether instances answer, and whether they do what they are for. Paced, bounded.

Of many gateways one runs each check that is due (the store says which), and what comes of it is kept there for all. A
canary is an operation like any other, pinned to one instance and marked. Where it may send says egress.py; what the
results mean for the rotation, registry/instance.py.
"""

from __future__ import annotations

import asyncio
import logging
from operator import itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from gateway.operations import Order
from gateway.outcomes import failure_of
from gateway.places import Places
from mesh.clock import sleep
from mesh.errors import MeshError, PeerFault, Refusal
from mesh.ids import pick_index
from mesh.machine import State
from mesh.pool import Pool
from registry.choice import CANARY
from registry.instance import PROBE
from registry.spec import TARGET

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.app import Mesh
    from gateway.orders import Known
    from mesh.pool import Target
    from registry.endpoint import Endpoint
    from registry.instance import Instance
    from registry.policy import Canary, Probe

LOOK_S: Final = 0.25
LOOKED_AT_PER_S: Final = 5_000
"""Endpoints; with more of them the looks are further apart."""
CLAIMS_MAX: Final = 256
PLACES_MAX: Final = 192
"""For probes, and as many for canaries, which take longer; shared out among namespaces and endpoints (places.py)."""
PROBE_CONNECTIONS_MAX: Final = 4
"""To one host; probes have connections of their own, so that work does not make them wait."""
REPLY_BYTES_MAX: Final = 64 << 10
WHY_CHARS_MAX: Final = 300
BOOKING_S: Final = 1.0
"""An outcome is in the store at the latest so long after the canary's time is over."""

_log = logging.getLogger(__name__)


class _Check(NamedTuple):
    """One check of one registration of an instance; `canary` None: the probe."""

    endpoint: Endpoint
    instance: Instance
    kind: str
    every_ms: int
    canary: Canary | None

    @property
    def name(self) -> tuple[str, str, int, str]:
        return self.endpoint.id, self.instance.id, self.instance.since_ms, self.kind


class Checks:
    """The checks of one gateway: `run` until it is canceled, then `close`."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._catalog = mesh.catalog
        self._pool = Pool(max_per_host=PROBE_CONNECTIONS_MAX, idle_s=1.0, reply_bytes_max=REPLY_BYTES_MAX)
        self._due: dict[tuple[str, str, int, str], int] = {}
        """When to ask for each again, by the local clock."""
        self._running: dict[tuple[str, str, int, str], asyncio.Task[None]] = {}
        self._probes, self._canaries = Places(PLACES_MAX), Places(PLACES_MAX)

    async def close(self) -> None:
        """What is under way counts for nothing."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._pool.close()

    async def run(self) -> None:
        """`step` for as long as the gateway lives."""
        while True:
            try:
                await self.step()
            except MeshError as error:
                _log.info("checks wait: %s", error)
            except Exception:  # noqa: BLE001 - the next look may go better
                _log.exception("checks failed")
            await sleep(max(LOOK_S, len(self._catalog.endpoints) / LOOKED_AT_PER_S))

    async def step(self) -> None:
        """Claim what is due, and begin what was claimed; end what is of nobody any more."""
        now = self._catalog.time.now()
        before, self._due = self._due, {}
        ripe: list[tuple[int, _Check]] = []
        for check in self._all(now):
            name = check.name
            due = before.get(name)
            if due is None:
                # A canary tells of a new instance at once; probes of many that came together are spread.
                due = now if check.canary is not None else now + check.every_ms + pick_index(check.every_ms // 4 + 1)
            elif due <= now and check.canary is None and self._heard(check, now):
                due = now + check.every_ms
            self._due[name] = due
            if due <= now and name not in self._running:
                ripe.append((due, check))
        for name, task in self._running.items():
            if name not in self._due:
                task.cancel()
        # Who waits longest is first, so that what found no place gets one before the others have their second turn.
        ripe.sort(key=itemgetter(0))
        wanted: list[_Check] = []
        for _, check in ripe:
            if len(wanted) < CLAIMS_MAX and self._places(check).take(check.endpoint.owner, check.endpoint.id):
                wanted.append(check)
        if wanted:
            await self._begin(wanted, now)

    async def _begin(self, wanted: list[_Check], now: int) -> None:
        """Claim those, which have their places, and run what was claimed."""
        claims = [(one.endpoint.id, one.instance.id, one.kind, one.every_ms) for one in wanted]
        try:
            for check, wait_ms in zip(wanted, await self._mesh.catalog_store.checks_claim(claims), strict=True):
                self._due[check.name] = now + (wait_ms or check.every_ms)
                if not wait_ms:
                    self._spawn(check)
        finally:
            for check in wanted:
                if check.name not in self._running:
                    self._leave(check)

    def _places(self, check: _Check) -> Places:
        return self._probes if check.canary is None else self._canaries

    def _leave(self, check: _Check) -> None:
        self._places(check).give_back(check.endpoint.owner, check.endpoint.id)

    def _all(self, now: int) -> Iterator[_Check]:
        """Every check of every instance that should take work."""
        for endpoint in self._catalog.endpoints:
            probe, canaries = endpoint.policy.probe, endpoint.policy.canaries
            if endpoint.pulls or not (probe.every_ms or canaries):
                continue
            for one in self._catalog.instances.roster(endpoint.id).instances:
                if not one.url or one.draining or not one.alive(now, self._catalog.time):
                    continue
                if probe.every_ms:
                    yield _Check(endpoint, one, PROBE, probe.every_ms, None)
                if not endpoint.paused:
                    for canary in canaries:
                        yield _Check(endpoint, one, f"canary:{canary.service}", canary.every_ms, canary)

    @staticmethod
    def _heard(check: _Check, now: int) -> bool:
        """Whether work was answered here since the last probe was due, so that none is needed."""
        known = check.instance.checks.get(check.kind)
        failing = known is not None and (known.failing or known.row > 0)
        return not failing and now - check.instance.reach.heard_ms < check.every_ms and check.instance.reach.row == 0

    async def _check(self, check: _Check) -> None:
        endpoint, instance, canary = check.endpoint, check.instance, check.canary
        policy = endpoint.policy.probe if canary is None else canary
        if canary is None:
            why: str | None = await self._probe(instance.url, endpoint.policy.probe)
        else:
            why = await self._call(endpoint, instance, canary)
        if why is None:
            return
        await self._mesh.catalog_store.check_done(
            endpoint.id, instance.id, instance.since_ms, check.kind, why[:WHY_CHARS_MAX],
            failures=policy.failures, successes=policy.failures, static=instance.id == TARGET,
        )  # fmt: skip

    # Probes -------------------------------------------------------------------------------------------------------

    async def _probe(self, url: str, probe: Probe) -> str:
        """Why the instance does not answer, or ""."""
        timeout_s = probe.timeout_ms / 1000
        egress = self._mesh.egress
        try:
            async with asyncio.timeout(timeout_s):
                target = egress.cached(url) or await egress.resolve(url)
                if probe.kind == "tcp":
                    return await _connect(target)
            reply = await self._pool.request(
                b"GET", target, target.under(probe.path.encode()), timeout_s=timeout_s, reply_bytes_max=REPLY_BYTES_MAX
            )
        except TimeoutError:
            return f"nothing was heard for {probe.timeout_ms} ms"
        except (PeerFault, Refusal) as fault:
            return "" if fault.code == "reply_too_large" else fault.detail
        path = target.under(probe.path.encode()).decode("latin-1")
        return f"GET {path} answered {reply.status}" if reply.status >= 500 else ""  # noqa: PLR2004

    # Canaries -----------------------------------------------------------------------------------------------------

    async def _call(self, endpoint: Endpoint, instance: Instance, canary: Canary) -> str | None:
        """Why the canary did not succeed, or ""; None: that it was not sent says nothing of the instance."""
        if self._mesh.router.hindrance(endpoint, CANARY + instance.id) == "no_version":
            return None
        body = msgspec.json.encode(canary.input)
        order = Order(
            endpoint.owner, endpoint.id, canary.service, canary.operation, "application/json", body, "", [], "/input",
            close_ms=canary.timeout_ms, request_ms=min(canary.timeout_ms, endpoint.policy.request_timeout_ms),
            pin=CANARY + instance.id,
        )  # fmt: skip
        try:
            placed = await self._mesh.operations.start(order, wait=False)
        except Refusal as refusal:
            return f"{canary.operation} cannot be called: {refusal.detail}"
        if placed.attempt is not None:
            self._mesh.courier.start(*placed.attempt)
        wait_s = canary.timeout_ms / 1000 + BOOKING_S
        known = await self._mesh.operations.result(placed.id, endpoint.owner, wait_s)
        return _verdict(canary, known, unreached=instance.reach.pause_ms > 0)

    def _spawn(self, check: _Check) -> None:
        task = asyncio.get_running_loop().create_task(self._guarded(check))
        self._running[check.name] = task

        def ended(_task: asyncio.Task[None]) -> None:
            del self._running[check.name]
            self._leave(check)

        task.add_done_callback(ended)

    async def _guarded(self, check: _Check) -> None:
        try:
            await self._check(check)
        except MeshError as error:
            _log.info("a check came to nothing: %s", error)
        except Exception:  # noqa: BLE001 - one broken check must not end the others
            _log.exception("a check failed")


def _verdict(canary: Canary, known: Known, *, unreached: bool) -> str | None:
    name = f"{canary.service}/{canary.operation}"
    if known.state is State.SUCCEEDED:
        return ""
    if not known.state.terminal or known.outcome is None:
        return None
    if known.state is State.TIMED_OUT and not known.head.attempt:
        # It waited for a limit of the endpoint all the time, unless nobody could be reached.
        return f"{name}: requests do not get through" if unreached else None
    failure = failure_of(known.state, known.outcome)
    while isinstance(failure.get("cause"), dict):
        failure = failure["cause"]
    return f"{name} {known.state.word}: {failure.get('message', '')} (operation {known.id})"


async def _connect(target: Target) -> str:
    """Open a connection and close it. Raises TimeoutError by its caller's timeout."""
    why = "it has no address"
    for address in target.addresses:
        try:
            _, writer = await asyncio.open_connection(address, target.port)
        except OSError as error:
            why = f"no connection: {error.strerror or error}"
            continue
        writer.close()
        return ""
    return why
