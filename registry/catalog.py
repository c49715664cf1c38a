"""The catalog: every endpoint compiled for the hot path, and the verbs that change the registry.

Reads are dict hits on what this gateway last read; a write is read back before it returns. Other gateways follow the
registry's version (their beat, or a hint from the store's channel). Owns who may see and change what.
Knows no HTTP and no egress policy: URLs are vetted by whoever hands them in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from pydantic import ValidationError

from mesh.clock import sleep
from mesh.errors import MeshError, PreconditionFailed, TooMany, Unavailable
from mesh.ids import short_id
from mesh.store.catalog import CatalogStore, stale_endpoint, unknown_endpoint
from mesh.wire import check_endpoint
from registry.callers import Callers
from registry.contracts import Examiner
from registry.endpoint import NAME_SHOWN_MAX, Endpoint, Operation, compile_endpoint
from registry.gate import Verdict, check_contract, check_schemas
from registry.instances import FOREVER_MS, Instances, Static, StoreTime
from registry.kinds import check_kind
from registry.presence import Presence
from registry.spec import EndpointSpec, check_url

__all__ = ["Catalog", "Endpoint", "Operation"]

ENDPOINTS_MAX: Final = 5_000
REFRESH_GAP_S: Final = 0.02
PUT_TRIES_MAX: Final = 5
RETRY_S: Final = 0.5
IDLE_S_MAX: Final = 5.0

_log = logging.getLogger(__name__)


class Put(NamedTuple):
    """An endpoint that was put. `verdict`: what changed in its contract, None for nothing, or no contract before."""

    created: bool
    endpoint: Endpoint
    verdict: Verdict | None


class Catalog(Presence):
    """One per gateway. Methods that await raise StoreUnavailable or OutcomeUnknown when the store is away."""

    def __init__(self, store: CatalogStore, *, time: StoreTime | None = None) -> None:
        self._store = store
        self.time = time or StoreTime()
        self.instances = Instances(store, self.time)
        self.callers = Callers(store)
        self.examiner = Examiner()
        self.version = -1
        """Of the registry, as last read."""
        self._hinted = -1
        self._by_name: dict[str, Endpoint] = {}
        self._by_id: dict[str, Endpoint] = {}
        self._reading = asyncio.Lock()
        self._asked = 0
        self._served = 0
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()

    @property
    def endpoints(self) -> Collection[Endpoint]:
        """All living ones, whosever they are."""
        return self._by_id.values()

    # Reads on the hot path ----------------------------------------------------------------------------------------

    def known(self, name: str, namespace: str) -> Endpoint | None:
        """The endpoint with this id or name if `namespace` may call it, as last read.

        The id goes first: a name that looks like somebody else's id must not get that one's calls.
        """
        endpoint = self._by_id.get(name) or self._by_name.get(name)
        return endpoint if endpoint is not None and endpoint.callable_by(namespace) else None

    def find(self, name: str, namespace: str) -> Endpoint:
        """As `known`. Raises NotFound, with one wording for both reasons not to."""
        endpoint = self.known(name, namespace)
        if endpoint is None:
            raise unknown_endpoint(name[:NAME_SHOWN_MAX])
        return endpoint

    async def locate(self, name: str, namespace: str) -> Endpoint:
        """As `find`, but before it refuses it asks the store whether another gateway registered it a moment ago."""
        if self.known(name, namespace) is None:
            await self.refresh(await self._store.version())
        return self.find(name, namespace)

    def by_id(self, endpoint_id: str) -> Endpoint | None:
        """For work that was accepted: whoever called, and also when permissions changed since."""
        return self._by_id.get(endpoint_id)

    async def waiting_pins(self, endpoint_id: str, wanted: Sequence[str]) -> list[str]:
        """Those of `wanted` for which work waits in a line of its own; of all some, where nothing is wanted."""
        return await self._store.pins(endpoint_id, wanted)

    def version_of(self, name: str) -> str:
        """The version of the endpoint `name` as last read, "" for none."""
        endpoint = self._by_name.get(name)
        return str(endpoint.version) if endpoint is not None else ""

    def check_operation(self, endpoint: Endpoint, service: str, operation: str) -> Operation | None:
        """The listed operation, or None where the list is open.

        Raises NotFound `unknown_service`, `unknown_operation_name`.
        """
        return endpoint.operation(service, operation)

    # Following the store ------------------------------------------------------------------------------------------

    async def refresh(self, version: int | None = None, at_ms: int | None = None) -> None:
        """Read the registry unless it is known to be at `version`; a beat also brings the store's time `at_ms`.

        What was written before the call is seen after it. Concurrent calls share one read.
        """
        if at_ms is not None:
            self.time.heard(at_ms)
        if version is not None and version == self.version:
            await self.instances.reread_due()
            return
        self._asked += 1
        asked = self._asked
        async with self._reading:
            if self._served < asked:
                serving = self._asked
                await self._read()
                self._served = serving

    async def _read(self) -> None:
        version = await self._store.version()  # first: what changes while the rest is read moves it again
        by_id: dict[str, Endpoint] = {}
        for row in await self._store.endpoints():
            old = self._by_id.get(row.id)
            if old is not None and old.is_of(row):
                by_id[row.id] = old
                continue
            try:
                by_id[row.id] = compile_endpoint(row)
            except ValidationError as error:
                found = error.errors(include_input=False, include_url=False)
                _log.error("endpoint %s (%s) cannot be read: %s", row.name, row.id, found)
                if old is not None:
                    by_id[row.id] = old
        await self.instances.load({one.id: _static(one) for one in by_id.values()})
        self._by_id = by_id
        self._by_name = {one.name: one for one in by_id.values()}
        self.version = self._hinted = version
        self._moved.set()
        self._moved = asyncio.Event()
        self._wake.set()

    def hint(self, payload: bytes) -> None:
        """A message of the store's registry channel: somebody changed something."""
        if payload.isdigit() and int(payload) != self.version:
            self._hinted = int(payload)
            self._wake.set()

    def stale(self) -> None:
        """A lease known here ended: look soon."""
        self._wake.set()

    async def moved(self, within_s: float) -> None:
        """Return at the next change that this gateway sees, or after `within_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._moved.wait()

    async def step(self) -> float:
        """Follow the last hint and read the leases that are about to end; seconds until that is due again."""
        if self._hinted != self.version:
            await self.refresh(self._hinted)
        await self.callers.write()
        next_ms = await self.instances.reread_due()
        return IDLE_S_MAX if next_ms == FOREVER_MS else (next_ms - self.time.now()) / 1000

    async def run(self) -> None:
        """`step` for as long as the gateway lives; the beat does the rest when hints are lost."""
        trouble = ""
        while True:
            self._wake.clear()
            try:
                pause_s = await self.step()
            except Exception as error:  # noqa: BLE001 - following goes on, whatever one step met
                self.time.blind = True
                if str(error) != trouble:  # said once, not twice a second for as long as the store is away
                    trouble = str(error)
                    _log.warning(
                        "the registry cannot be followed: %s", error, exc_info=not isinstance(error, MeshError)
                    )
                await sleep(RETRY_S)
                continue
            trouble = ""
            self.time.blind = False
            await sleep(REFRESH_GAP_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(max(pause_s, 0), IDLE_S_MAX)):
                    await self._wake.wait()

    # Changes ------------------------------------------------------------------------------------------------------

    async def put(
        self, name: str, namespace: str, spec: EndpointSpec, *, if_match: str = "", force: bool = False
    ) -> Put:
        """Create or replace. `if_match`: "" none, `*` must exist, else the version that must be there.

        Raises Malformed (name, URL), Unprocessable (a schema that cannot be applied), Conflict (`name_taken`;
        `contract_breaks`, `kind_in_use` unless `force`), PreconditionFailed, TooMany.
        """
        check_endpoint(name)
        if spec.target.url is not None:
            check_url(spec.target.url, "/target/url")
        for _ in range(PUT_TRIES_MAX):
            await self.refresh(await self._store.version())
            present = self._by_name.get(name)
            if present is None and len(self._by_name) >= ENDPOINTS_MAX:
                raise TooMany(f"there are {ENDPOINTS_MAX} endpoints, the most there can be", code="too_many_endpoints")
            own = present if present is not None and present.owner == namespace else None
            if own is not None and if_match not in ("", "*", str(own.version)) and own.document != spec.document():
                raise stale_endpoint(name, str(own.version))
            pull = spec.target.kind == "pull"
            if own is not None and own.pulls != pull and not force:
                await self.instances.reread([own.id])
                check_kind(name, self.instances.roster(own.id), self.time, pull=pull)
            await check_schemas(spec, own.spec if own is not None else None)
            if own is not None:
                verdict = await self._check_contract(own.id, name, own.spec, spec, force=force)
            else:
                verdict = None if present is not None else await self._check_deleted(name, namespace, spec, force=force)
            # What was compared must still be there when it is replaced.
            expected = "new" if present is None else str(own.version) if own is not None and verdict is not None else ""
            try:
                return await self._put(name, namespace, spec, verdict, if_match or expected)
            except PreconditionFailed:
                if if_match:
                    raise
        raise Unavailable(f"endpoint {name!r} is rewritten by somebody else all the time", code="contended")

    async def _check_contract(
        self, endpoint_id: str, name: str, present: EndpointSpec, spec: EndpointSpec, *, force: bool, gone: bool = False
    ) -> Verdict | None:
        """None when nothing of the contract changes. Raises Conflict `contract_breaks`."""
        old, new = present.services or [], spec.services or []
        if old == new:
            return None
        callers = await self.callers.of(endpoint_id)
        if gone and not callers:
            return None
        return await check_contract(name, old, new, callers, self.examiner, force=force, gone=gone)

    async def _check_deleted(self, name: str, namespace: str, spec: EndpointSpec, *, force: bool) -> Verdict | None:
        """As for one that is there, while somebody was seen calling it lately: deleting it is no way round them."""
        kept = await self._store.deleted(name, namespace)
        if kept is None:
            return None
        try:
            last = EndpointSpec.model_validate_json(kept[1], extra="ignore")
        except ValidationError:  # of another release: what it promised cannot be known
            return None
        return await self._check_contract(kept[0], name, last, spec, force=force, gone=True)

    async def _put(self, name: str, namespace: str, spec: EndpointSpec, verdict: Verdict | None, if_match: str) -> Put:
        word, endpoint_id, _ = await self._store.endpoint_put(
            name,
            namespace,
            short_id("ep"),
            spec.document(),
            if_match=if_match,
            max_concurrency=spec.policy.max_concurrency or 0,
            rate_per_s=spec.policy.rate_per_s or 0,
            pull=spec.target.kind == "pull",
            retry=spec.policy.retry.as_text(),
            change=verdict.change(namespace) if verdict is not None else b"",
            limits=spec.policy.shares(),
        )
        await self.refresh()
        endpoint = self._by_id.get(endpoint_id)
        if endpoint is None:  # deleted again by somebody else before it was read back
            raise unknown_endpoint(name)
        return Put(word == "created", endpoint, verdict)

    async def delete(self, name: str, namespace: str, *, kept_ms: int, if_match: str = "") -> None:
        """Waiting work stays, shown as blocked, until its own deadlines; without any the name is kept for `kept_ms`.

        Raises NotFound, PreconditionFailed.
        """
        with self.owned(name, namespace):
            await self._store.endpoint_delete(name, namespace, if_match, kept_ms=kept_ms)
        await self.refresh()

    async def pause(self, name: str, namespace: str, *, paused: bool = True) -> Endpoint:
        """New operations are kept, not dispatched. Raises NotFound."""
        with self.owned(name, namespace):
            await self._store.endpoint_pause(name, namespace, paused=paused)
        await self.refresh()
        return self.find(name, namespace)

    async def resume(self, name: str, namespace: str) -> Endpoint:
        """The opposite of `pause`."""
        return await self.pause(name, namespace, paused=False)

    async def close(self) -> None:
        """End what checks large inputs."""
        await self.examiner.close()

    async def loads(self, endpoints: Sequence[Endpoint]) -> list[tuple[int, int]]:
        """(running, waiting) operations of each, as the store counts them now."""
        return await self._store.loads([one.id for one in endpoints])

    def all(self) -> list[Endpoint]:
        """Every living endpoint, by name."""
        return [one for _, one in sorted(self._by_name.items())]

    def visible(self, namespace: str) -> list[Endpoint]:
        """What `namespace` owns or may call, by name."""
        return [one for _, one in sorted(self._by_name.items()) if one.callable_by(namespace)]


def _static(one: Endpoint) -> Static:
    return Static(one.target_url, one.updated_at_ms, one.policy.flapping, one.shares)
