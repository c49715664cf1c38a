"""`Agent`: nexusrpc service handlers as an ASGI app that registers itself with the mesh.

    import mesh

    async def greet(name: str) -> str:
        return f"Hello, {name}!"

    mesh.serve("greeter", [greet])

Owns the ASGI side: paths, bodies and their cap, lifespan. What a call means is host.py, the registry registration.py.
A server is not part of it: `uvicorn module:agent` serves an Agent as any ASGI app, `Agent.run` is a shorthand.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal

from nexusrpc.handler import OperationHandlerMiddleware

from mesh.agent import outcome as outcomes
from mesh.agent.arrivals import BLOB_BYTES_MAX, INLINE_BYTES, LIMIT, Arrivals
from mesh.agent.host import Host
from mesh.agent.hosting import LINGER_MS, Hosting
from mesh.agent.inbound import path_of, read_cancel, read_start
from mesh.agent.leases import LEASE_MS_MIN
from mesh.agent.outcome import Outcome
from mesh.agent.pulling import Pulling
from mesh.agent.registration import TTL_MS, Registration
from mesh.agent.routes import Routes as Handlers
from mesh.agent.work import Work
from mesh.edge import Answer, HotRoute, Request, Routes
from mesh.edge.bodies import Caller, Receive, Scope, Send, read_body, request_of, send_answer
from mesh.errors import ConfigError, Malformed, MeshError, NotFound, TooMany, Unavailable
from mesh.gateways import gateways_of
from mesh.pool import Pool, Target
from mesh.streams import Intake
from mesh.wire import check_endpoint

INPUT_BYTES_MAX: Final = 2 << 20
ANSWER_WITHIN_MS: Final = 500
LEASE_MS: Final = 5000
RUNNING_MAX: Final = 4096
THREADS: Final = 32
SLOTS: Final = 64
DRAIN_S: Final = 10.0
HEADER_BYTES_MAX: Final = 32 << 10


class Agent:
    """An ASGI app that hosts `services` as the endpoint `endpoint`.

    services          instances of nexusrpc service handler classes; functions become operations of a service that is
                      named like the endpoint: `fn()`, `fn(input)` or `fn(ctx, input)`, async or not
    mode              "push": gateways send work to `url`. "pull": the agent asks for it, from behind NAT or a laptop;
                      no server, no address: `run` (or `begin` and `end`) is all. `slots`: operations at once; then
                      `running_max`, `url`, `prefix`, `ttl_ms`, `weight`, `answer_within_ms` mean nothing
    gateway           base URL or URLs of the mesh, also with commas between them; default: environment MESH_URL, else
                      http://127.0.0.1:7411
    key               API key of the namespace; default: environment MESH_KEY; none in development
    url               where gateways reach this agent; default: environment MESH_AGENT_URL; `run` finds it by itself
    instance          name of this process in the registry; default: made of the URL, so that a restart takes its place
    prefix            path in front of `/{service}/{operation}`; belongs at the end of `url` too
    register          True: declare the endpoint and this instance; "instance": the endpoint is declared by somebody
                      else; False: neither, plain Nexus handler
    description, policy, allow, labels   of the endpoint; None leaves what the registry has
    force_contract    declare the endpoint although callers of its present contract would break, which is refused
                      otherwise; default: environment MESH_FORCE_CONTRACT
    version, weight   of the instance
    ttl_ms            how long the registry believes in the instance without a heartbeat; one is sent every third of it
    answer_within_ms  a handler still running then is answered 201 and completed later, at half of `Request-Timeout` at
                      the latest. The default, 500, keeps quick work at one round trip; for slow work the 201 costs
                      the mesh one more store write, nothing for the caller, who gets the answer as soon as it is
                      there, and in return the work is leased: no request timeout repeats it. 0: 201 for whatever
                      has to wait for anything
    lease_ms          lease of such work: heartbeats go out every third of it, a dead agent's work moves on after it
    running_max       operations at once, those waiting for their completion to be taken included; above: 429
    threads           threads for plain `def` handlers, and as many for plain `def` steps
    linger_ms         how long a durable handler that only waits, for a child or a time, stays in memory before it is
                      suspended; longer saves replays, shorter saves memory
    input_bytes_max   above: BAD_REQUEST, unless the handler's input is declared as `mesh.Blob`
    blob_bytes_max, blob_directory   of such inputs: the largest, and where they are kept while they are used; default:
                      below the system's directory for temporary files
    drain_s           at shutdown, what running work gets to finish
    middleware        nexusrpc's OperationHandlerMiddleware, the first one outermost

    Every operation is executed once per `Nexus-Request-Id` while it runs and for a minute after. Raises ConfigError.
    """

    def __init__(
        self,
        endpoint: str,
        services: Iterable[Any],
        *,
        mode: Literal["push", "pull"] = "push",
        slots: int = SLOTS,
        gateway: str | Sequence[str] | None = None,
        key: str | None = None,
        url: str | None = None,
        instance: str | None = None,
        prefix: str = "",
        register: bool | Literal["instance"] = True,
        description: str | None = None,
        policy: Mapping[str, Any] | None = None,
        allow: Sequence[str] | None = None,
        labels: Mapping[str, str] | None = None,
        force_contract: bool | None = None,
        version: str | None = None,
        weight: int | None = None,
        ttl_ms: int = TTL_MS,
        answer_within_ms: int = ANSWER_WITHIN_MS,
        lease_ms: int = LEASE_MS,
        running_max: int = RUNNING_MAX,
        threads: int = THREADS,
        linger_ms: int = LINGER_MS,
        input_bytes_max: int = INPUT_BYTES_MAX,
        blob_bytes_max: int = BLOB_BYTES_MAX,
        blob_directory: str | os.PathLike[str] | None = None,
        drain_s: float = DRAIN_S,
        middleware: Sequence[OperationHandlerMiddleware] = (),
    ) -> None:
        if lease_ms < LEASE_MS_MIN:
            raise ConfigError(f"lease_ms is at least {LEASE_MS_MIN}")
        if mode not in ("push", "pull") or slots < 1:
            message = 'mode is "push" or "pull", and slots is at least 1'
            raise ConfigError(message)
        try:
            self.endpoint = check_endpoint(endpoint)
            self.gateways = [Target.parse(each) for each in gateways_of(gateway)]
        except Malformed as error:
            raise ConfigError(error.detail) from None
        self._key = key or os.environ.get("MESH_KEY") or None
        self.url = url or os.environ.get("MESH_AGENT_URL") or None
        self.prefix = f"/{prefix.strip('/')}" if prefix.strip("/") else ""
        self.mode = mode
        self._slots = slots
        self._version = version
        self._instance = instance
        self._register = register
        self._lease_ms = lease_ms
        self._answer_within_ms = answer_within_ms
        self._running_max = running_max
        self._input_bytes_max = input_bytes_max
        self._drain_s = drain_s
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=f"mesh-{endpoint}")
        self._steps = ThreadPoolExecutor(threads, thread_name_prefix=f"mesh-{endpoint}-step")
        self._linger_ms = linger_ms
        self._routes = Handlers(endpoint, services, self._executor, self.prefix, middleware)
        fields = {"description": description, "policy": policy, "allow": allow, "labels": labels}
        self._declared: dict[str, Any] = {field: value for field, value in fields.items() if value is not None}
        self._force = bool(os.environ.get("MESH_FORCE_CONTRACT")) if force_contract is None else force_contract
        offered = {"ttl_ms": ttl_ms, "version": version, "weight": weight}
        self._offered: dict[str, Any] = {field: value for field, value in offered.items() if value is not None}
        self.refused: Callable[[str], None] | None = None
        """Set before `begin`: told why the registry will never have this agent. None: tried again."""
        self._registration: Registration | None = None
        self._pulling: Pulling | None = None
        self._blobs = Arrivals(endpoint, blob_bytes_max, blob_directory, input_bytes_max)
        self._call = HotRoute(self._run, _refused, self._take, self._begin)
        self.hot = Routes(self._find, input_bytes_max, HEADER_BYTES_MAX, LIMIT, min(INLINE_BYTES, input_bytes_max - 1))
        """What mesh/edge, the server of `run`, answers without ASGI."""
        self._open()

    # -- ASGI

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._lifespan(receive, send)
            return
        answer = await self._handle(scope, receive)
        if answer is not None:
            await send_answer(answer, scope, send)

    async def _handle(self, scope: Scope, receive: Receive) -> Answer | None:
        """None when the caller went away before its request was complete."""
        if scope["method"] != "POST":
            return _answered(_other_method(scope, self.prefix))
        try:
            request = request_of({**scope, "raw_path": path_of(scope)}, Caller(receive))
            await read_body(request, receive, self.hot, self._call)
            return await self._run(request)
        except MeshError as error:
            return None if error.code == "disconnected" else _refused(error)

    def _find(self, method: str, _raw_path: bytes) -> HotRoute | None:
        return self._call if method == "POST" else None

    def _take(self, request: Request) -> Intake | None:
        """A large input, for an operation that takes a Blob. Raises StorageFull, TooMany, TooLarge."""
        try:
            route, is_cancel = self._routes.find(request.raw_path)
        except MeshError:
            return None  # said when its path is looked at
        return None if is_cancel or not route.input.blob else self._blobs.take(request.first)

    def _begin(self, request: Request) -> None:
        """As `_run`, for a body in memory, without a task for the request. Raises MeshError."""
        route, is_cancel = self._routes.find(request.raw_path)
        if is_cancel:
            request.later(self._run(request))
        else:
            head, answer = read_start(request.headers, request.first, request.query), request.sink.answer
            self._host.begin(route, head, request.body, lambda outcome: answer(_answered(outcome)))

    async def _run(self, request: Request) -> Answer:
        body = request.body if request.intake is None else await self._blobs.arrived(request.intake, request.first)
        route, is_cancel = self._routes.find(request.raw_path)
        if is_cancel:
            visible, token, timeout_ms = read_cancel(request.headers, request.query)
            return _answered(await self._host.cancel(route, visible, token, timeout_ms))
        return _answered(await self._host.start(route, read_start(request.headers, request.first, request.query), body))

    # -- life

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            self.begin()
        except ConfigError as error:
            await send({"type": "lifespan.startup.failed", "message": error.detail})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.end()
        await send({"type": "lifespan.shutdown.complete"})

    def begin(self) -> None:
        """Register and heartbeat in the background; called by the lifespan. Raises ConfigError without a URL."""
        if self._work.stopping:
            self._open()
        self._work.listen(durable=self._routes.durable)
        if self.mode == "pull":
            declared = self._declared if self._register is True else None
            self._pulling = Pulling(
                self._pool, self.gateways, self._host, self._work, self._routes, key=self._key, endpoint=self.endpoint,
                instance=self._instance, version=self._version, declared=declared, lease_ms=self._lease_ms,
                slots=self._slots, arrivals=self._blobs, force=self._force, refused=self.refused,
            )  # fmt: skip
            self._pulling.begin()
            return
        if self._register is False:
            return
        if self.url is None:
            message = (
                f"agent {self.endpoint} does not know the URL under which gateways reach it: give Agent(url=...) or set"
                " MESH_AGENT_URL, start it with agent.run(port=...), or host it unregistered with register=False"
            )
            raise ConfigError(message)
        try:
            at = Target.parse(self.url)
        except Malformed as error:
            raise ConfigError(error.detail) from None
        instance = (
            self._instance or f"{at.host.replace(':', '-')}-{at.port}{at.path.decode().rstrip('/').replace('/', '-')}"
        )
        self._registration = Registration(
            self._pool, self.gateways, key=self._key, endpoint=self.endpoint,
            declared={"services": self._routes.describe(), **self._declared} if self._register is True else None,
            force=self._force, instance=instance, lease={"url": self.url, **self._offered}, refused=self.refused,
        )  # fmt: skip
        self._registration.begin()

    async def registered(self) -> None:
        """Wait until the registry has taken this instance (it never does while no gateway is there)."""
        if self._registration is not None:
            await self._registration.known.wait()
        if self._pulling is not None:
            await self._pulling.known()

    async def leave(self) -> None:
        """Leave the rotation: gateways send no more work. First step of `end`."""
        if self._pulling is not None:
            await self._pulling.leave()
        if self._registration is not None:
            await self._registration.leave()

    async def end(self) -> None:
        """Leave, let running work finish for `drain_s`, deliver what can be delivered, close every connection."""
        await self.leave()
        await self._work.drain(self._drain_s)
        if self._pulling is not None:
            await self._pulling.end()
        await self._pool.close()

    def _open(self) -> None:
        self._pool = Pool(max_waiting=self._running_max)  # every run may have a completion to send at once
        self._blobs.fetch_by(self._pool, self.gateways)
        hosting = Hosting(
            self._pool, self.gateways, self._key, steps=self._steps, handlers=self._executor,
            linger_ms=self._linger_ms, lease_ms=self._lease_ms, arrivals=self._blobs,
        )  # fmt: skip
        self._work = Work(
            self.endpoint, self._pool, self.gateways, key=self._key, lease_ms=self._lease_ms, hosting=hosting
        )
        self._host = Host(self._work, answer_within_ms=self._answer_within_ms, running_max=self._running_max)

    def run(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        """Serve until SIGINT or SIGTERM, on a free port by default. Needs uvicorn.

        In pull mode it asks for work until a signal ends it. Raises ConfigError (no uvicorn, port in use); SystemExit
        with the reason, exit status 1, when the registry refuses the agent for good: any 4xx but 401 of
        a key (it may be on its way), 404 (so may the endpoint), 408, 412, 425 and 429, and 409 `kind_in_use` (the lease
        of an agent in the other mode may be about to end); P187.
        """
        if self.mode == "pull":
            from mesh.agent.worker import work  # noqa: PLC0415 - as below

            work(self)
            return
        from mesh.agent.server import run  # noqa: PLC0415 - only who serves this way needs a server

        run(self, host, port)


def serve(endpoint: str, services: Iterable[Any], *, host: str = "127.0.0.1", port: int = 0, **options: Any) -> None:
    """`Agent(endpoint, services, **options).run(host=..., port=...)`; a ConfigError ends the process with its line."""
    try:
        Agent(endpoint, services, **options).run(host=host, port=port)
    except ConfigError as error:
        raise SystemExit(f"agent {endpoint}: {error.detail}") from None


def pull(endpoint: str, services: Iterable[Any], **options: Any) -> None:
    """`Agent(endpoint, services, mode="pull", **options).run()`: ask for work instead of being sent it."""
    serve(endpoint, services, mode="pull", **options)


def _answered(outcome: Outcome) -> Answer:
    return Answer(outcome.status, outcome.headers, outcome.body, outcome.blob)


def _refused(error: Exception) -> Answer:
    if isinstance(error, TooMany | Unavailable):
        kind = "RESOURCE_EXHAUSTED" if isinstance(error, TooMany) else "UNAVAILABLE"
        return _answered(outcomes.refusal(kind, error.detail, retry_after_s=error.retry_after_s))
    kind = "NOT_FOUND" if isinstance(error, NotFound) else "BAD_REQUEST"
    kind, detail = (kind, error.detail) if isinstance(error, MeshError) else ("INTERNAL", "internal error")
    return _answered(outcomes.refusal(kind, detail))


def _other_method(scope: Scope, prefix: str) -> Outcome:
    if scope["method"] in ("GET", "HEAD") and scope["path"] in ("/healthz", f"{prefix}/healthz"):
        return Outcome(200, ((b"content-type", b"text/plain"),), b"" if scope["method"] == "HEAD" else b"ok", "health")
    return outcomes.refusal("BAD_REQUEST", "expected POST")


__all__ = ["Agent", "pull", "serve"]
