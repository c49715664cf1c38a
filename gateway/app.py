"""The one place where things are joined: a `Mesh` holds the parts of one gateway process, `create_app` serves it.

Nothing here decides anything about operations; it builds, starts, stops and says whether the gateway is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI

from gateway import openapi, problems
from gateway.api import OperationsSurface
from gateway.auth import Auth
from gateway.callbacks import CallbackPlan
from gateway.checks import Checks
from gateway.courier import Courier, Session
from gateway.egress import Egress
from gateway.http import Front
from gateway.listing import Listing
from gateway.metrics import Metrics
from gateway.nexus import CALLBACK_PATH, NexusSurface
from gateway.operations import Operations
from gateway.payloads import Payloads
from gateway.pull.answering import Answering
from gateway.pull.attendance import Attendance
from gateway.pull.desk import Desk
from gateway.pull.surface import PullSurface
from gateway.rooms import ROUTERS
from gateway.schedules.clockwork import Clockwork
from gateway.tasks import TasksSurface
from gateway.ticker import Ticker
from gateway.waiters import Waiters
from gateway.watermark import Watermark
from mesh.clock import monotonic_s
from mesh.edge import HotRoute, Routes
from mesh.errors import ConfigError, MeshError, StoreUnsafe, Unavailable
from mesh.ids import secret_bytes, short_id
from mesh.pool import Pool, Target
from mesh.store.catalog import CatalogStore
from mesh.store.functions import load_library
from mesh.store.gate import Gate, durability_facts
from mesh.store.link import Link
from mesh.store.pulls import PullStore
from mesh.store.store import Store
from mesh.store.subscriber import Subscriber
from mesh.tokens import CompletionTokens, new_webhook_secret
from registry.catalog import Catalog
from registry.routing import Router

if TYPE_CHECKING:
    from gateway.settings import Settings
    from mesh.store.address import Address
    from mesh.store.connection import Call
    from mesh.store.identity import Memory

POOL_PER_HOST: Final = 256
ALONE: Final = "dev"
DRAIN_LOOK_S: Final = 0.5
DRAIN_ANSWER_S: Final = 1.0
LEAVE_TRIES: Final = 200
LEAVE_S: Final = 2.0
"""Longest that the hand-back may take: the whole process ends in 15 s (P113), the store's own end included."""
VERSION: Final = "0.1.0"

_log = logging.getLogger(__name__)


class Mesh:
    """One gateway. `start` before use, `stop` after; `draining` is set as soon as the process was asked to end."""

    def __init__(self, settings: Settings, address: Address, *, memory: Memory | None, exclusive: bool) -> None:
        """`exclusive`: the store belongs to this gateway alone (`mesh dev`), so earlier sessions are dead."""
        self.settings = settings
        self.draining = False
        self.metrics = Metrics()
        self.session = Session("")
        self.auth = Auth(settings)
        self.gate = Gate(settings.store.durability, memory)
        self.link = Link(address, on_reconnect=self._inspect)
        self.subscriber = Subscriber(address, on_gap=self._look_again)
        self.store = Store(self.link)
        self.pull_store = PullStore(self.link)
        self.catalog_store = CatalogStore(self.link)
        self.egress = Egress(allow_loopback=settings.egress.allow_loopback, allow=settings.egress.allow)
        # A callback or an agent at this very address would be the gateway calling itself, round and round.
        own = Target.parse(settings.gateway.public_url)
        self.egress.forbid(settings.gateway.host, settings.gateway.port)
        self.egress.forbid(own.host, own.port)
        self.watermark = Watermark(self.link, settings.gateway.memory_watermark, self.metrics.gauge)
        self.webhook_secrets: dict[str, str] = {}
        self._exclusive = exclusive
        self._started = False
        self._drain_until_s = 0.0
        self.front: Front
        """Set by `create_app`."""

    async def _inspect(self, call: Call) -> None:
        await self.gate(call)
        await load_library(call)

    async def _recheck(self) -> None:
        """The store forgot this gateway's session: it was away for long, or the store lost its data.

        Raises StoreUnsafe in the second case. The link is then made to connect anew, so that its gate shuts it: nothing
        may be read from an emptied store either.
        """
        try:
            await self.gate(self.link.call)
        except StoreUnsafe:
            with contextlib.suppress(MeshError):
                own = await self.link.call(b"CLIENT", b"ID")
                await self.link.call(b"CLIENT", b"KILL", b"ID", own, b"SKIPME", b"no", resend=False)
            raise

    def _wake(self, line: str) -> None:
        # Courier and ticker know each other; the courier is built first.
        self.ticker.wake(line)

    def _look_again(self) -> None:
        self.waiters.look_again()
        self.desk.look_again()
        self.catalog.stale()

    async def start(self) -> None:
        """Connect, pass the gate, join the sessions, run the clockwork. Raises StoreUnsafe, StoreUnavailable."""
        settings = self.settings
        await self.link.connect()
        await self.subscriber.connect()
        identity = self.gate.verdict.incarnation if self.gate.verdict is not None else ""
        self.payloads = Payloads(settings.blobs, settings.gateway.body_bytes_max, identity)
        self.pool = Pool(max_per_host=POOL_PER_HOST, reply_bytes_max=settings.gateway.body_bytes_max)
        self.waiters = Waiters(self.store.keys, self.subscriber)
        self.catalog = Catalog(self.catalog_store)
        self.router = Router(self.catalog)
        tokens = await self._tokens()
        await self._secrets()
        await self.payloads.start(self.store)
        public_url = settings.gateway.public_url
        self.courier = Courier(
            store=self.store,
            pool=self.pool,
            egress=self.egress,
            catalog=self.catalog,
            router=self.router,
            tokens=tokens,
            waiters=self.waiters,
            session=self.session,
            metrics=self.metrics,
            payloads=self.payloads,
            callback_plan=CallbackPlan(self.webhook_secrets, public_url),
            completion_url=public_url + CALLBACK_PATH.decode(),
            wake=self._wake,
        )
        self.desk = Desk(
            store=self.pull_store,
            keys=self.store.keys,
            subscriber=self.subscriber,
            catalog=self.catalog,
            router=self.router,
            tokens=tokens,
            waiters=self.waiters,
            session=self.session,
            metrics=self.metrics,
        )
        self.ticker = Ticker(
            # Alone on its store it keeps its name, by which it finds the sessions of its former lives (P114).
            name=settings.gateway.name or (ALONE if self._exclusive else short_id("g")),
            exclusive=self._exclusive,
            store=self.store,
            courier=self.courier,
            desk=self.desk,
            catalog=self.catalog,
            router=self.router,
            session=self.session,
            recheck=self._recheck,
            payloads=self.payloads,
        )
        self.operations = Operations(
            store=self.store,
            catalog=self.catalog,
            router=self.router,
            courier=self.courier,
            desk=self.desk,
            waiters=self.waiters,
            egress=self.egress,
            tokens=tokens,
            session=self.session,
            metrics=self.metrics,
            payloads=self.payloads,
            watermark=self.watermark,
            retention_ms=settings.gateway.retention_ms,
            rejoin=self.ticker.rejoin,
            recheck=self._recheck,
        )
        self.listing = Listing(self.store)
        waits = {"wait_default_ms": settings.gateway.wait_default_ms, "wait_max_ms": settings.gateway.wait_max_ms}
        self._nexus = NexusSurface(self.operations, self.auth, public_url=public_url, **waits)
        self._api = OperationsSurface(self.operations, self.auth, public_url=public_url, **waits)
        self._tasks = TasksSurface(self.operations, settings.gateway.wait_max_ms)
        answering = Answering(
            store=self.pull_store,
            tokens=tokens,
            waiters=self.waiters,
            session=self.session,
            metrics=self.metrics,
            handed=self.desk.handed,
            take=self.courier.take, wake=self._wake,
            alone=lambda: self.store.alone,
        )
        self.attendance = Attendance(self.catalog)
        self._pull = PullSurface(self.desk, answering, self.attendance, self.catalog, self.auth, self.operations)
        self._gauges()
        await self.ticker.join()
        self.subscriber.subscribe(self.store.keys.registry_channel, self.catalog.hint)
        self.ticker.start()
        self.checks = Checks(self)
        self.clockwork = Clockwork(self.link, self.operations, self.courier.take, self._wake)
        duties = (self.attendance, self.watermark, self.clockwork, self.checks)
        self._duties = asyncio.gather(*[one.run() for one in duties])
        self._started = True

    async def stop(self) -> None:
        """Finish what is being sent, hand the rest back, leave; also after a `start` that came to nothing."""
        if self._started:
            self._duties.cancel()
            await asyncio.gather(self._duties, return_exceptions=True)
            await self.checks.close()
            store_answers = await self._finish_tries()
            if store_answers:
                await self.desk.close_down(LEAVE_S)
            await self.ticker.stop()
            await self.catalog.close()
            if store_answers:
                await self._leave()
            await self.pool.close()
            await self.payloads.close()
        await self.subscriber.close()
        await self.link.close()
        self.egress.close()

    async def _finish_tries(self) -> bool:
        """Wait for the tries under way, as long as there is a store to book them in; False: there is none."""
        while self.courier.busy and (left_s := self._drain_until_s - monotonic_s()) > 0:
            await self.courier.drain(min(DRAIN_LOOK_S, left_s))
            try:
                async with asyncio.timeout(DRAIN_ANSWER_S):
                    await self.store.beat(self.session.name)
            except (TimeoutError, MeshError) as error:
                _log.warning("what is under way cannot be booked: %s", str(error) or "the store does not answer")
                return False
        return True

    async def _leave(self) -> None:
        try:
            async with asyncio.timeout(LEAVE_S):
                for _ in range(LEAVE_TRIES):
                    if await self.store.leave(self.session.name) == 0:
                        break
        except (TimeoutError, Unavailable, StoreUnsafe, ConfigError) as error:
            reason = str(error) or "the store does not answer"
            _log.warning("could not hand work back; it is taken over when the session is found dead: %s", reason)

    def drain(self) -> None:
        """The process was asked to end: long waits answer now with what they have, tries get `drain_s` from here."""
        if not self.draining:
            self._drain_until_s = monotonic_s() + self.settings.gateway.drain_s
        self.draining = True
        if self._started:
            self.waiters.end()
            self.desk.end()

    def find(self, method: str, raw_path: bytes) -> HotRoute | None:
        """The hot route for a request, or None for FastAPI."""
        return (
            self._nexus.find(method, raw_path)
            or self._api.find(method, raw_path)
            or self._pull.find(method, raw_path)
            or self._tasks.find(method, raw_path)
        )

    async def ready(self) -> tuple[bool, dict[str, Any]]:
        """Whether the store is writable and as declared, with its facts or the reason why not."""
        verdict = self.gate.verdict
        facts: dict[str, Any] = durability_facts(verdict) if verdict is not None else {}
        if self.draining:
            return False, {"status": "draining", "detail": "this gateway is shutting down", "store": facts}
        if self.link.fault is not None:
            return False, {"status": "unavailable", "detail": self.gate.explain(str(self.link.fault)), "store": facts}
        try:
            beat = await self.store.beat(self.session.name)
            await self.gate(self.link.call)
        except MeshError as error:
            return False, {"status": "unavailable", "detail": self.gate.explain(error.detail), "store": facts}
        known = {"version": VERSION, "store": facts, "payloads": self.payloads.facts}
        return True, {"status": "ready", "gateways": beat.sessions, **known}

    async def _tokens(self) -> CompletionTokens:
        """Keys from the settings, else one that the store keeps (development)."""
        configured = self.settings.tokens
        if configured.keys:
            return CompletionTokens(configured.keys, configured.current)
        key = await self.store.secret("token_key", secret_bytes(32).hex())
        return CompletionTokens({"store": bytes.fromhex(key)}, "store")

    async def _secrets(self) -> None:
        for namespace in self.settings.namespaces:
            secret = namespace.webhook_secret or await self.store.secret(
                f"webhook_secret:{namespace.name}", new_webhook_secret()
            )
            self.webhook_secrets[namespace.name] = secret

    def _gauges(self) -> None:
        gauge = self.metrics.gauge
        gauge("mesh_tries_in_flight", "Deliveries being sent", lambda: self.courier.busy)
        gauge("mesh_waits_open", "Requests that wait for an operation", lambda: self.waiters.count)
        gauge("mesh_seats_promised", "Seats of polls that wait for a store call", lambda: self.desk.promised)
        gauge("mesh_polls_open", "Polls that wait for work", lambda: self.desk.count)
        gauge("mesh_store_calls_waiting", "Store calls without an answer", lambda: self.link.waiting)
        gauge("mesh_store_up", "1 while the store is reached and accepted", lambda: self.link.up)
        gauge("mesh_gateways", "Gateways alive at the last beat", lambda: self.ticker.sessions)


def bare_app() -> FastAPI:
    """Routes and errors without a Mesh behind them: enough to say what there is."""
    app = FastAPI(
        title="Mesh",
        version=VERSION, docs_url=None, redoc_url=None,  # theirs ask a CDN; ours is pages.py
        summary="Durable RPC between agents: Nexus over HTTP, kept in Redis or Valkey.",
        redirect_slashes=False,  # it would redirect to whatever the request's Host names
    )
    problems.install(app, *ROUTERS)
    for router in ROUTERS:
        app.include_router(router)
    app.openapi = lambda: openapi.document(app)
    return app


def create_app(mesh: Mesh) -> Front:
    """The ASGI application around a Mesh; whoever serves it starts and stops the Mesh."""
    app = bare_app()
    app.state.mesh = mesh
    gateway = mesh.settings.gateway
    limit = "the limit of this gateway ([gateway] body_bytes_max)"
    inline = min(mesh.settings.blobs.inline_bytes_max, gateway.body_bytes_max - 1)
    mesh.front = Front(app, Routes(mesh.find, gateway.body_bytes_max, gateway.header_bytes_max, limit, inline))
    return mesh.front
