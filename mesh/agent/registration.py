"""The agent's entry in the registry: declares the endpoint once, then keeps this instance's lease alive.

Repeats for ever, since an agent may be up before its gateway and outlives its restarts; but whoever runs the process
may ask to be told of a refusal that no waiting mends (`refused`). What the agent's author did not set (policy, allow,
labels, description) stays as it is in the registry. Knows no operations.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from mesh.clock import sleep
from mesh.errors import MeshError, PeerFault, Refusal
from mesh.ids import jittered
from mesh.pool import Pool, Reply, Target
from mesh.wire import RawHeader, quote_segment

TTL_MS: Final = 5000
BEATS_PER_TTL: Final = 3
BEAT_SPREAD: Final = 0.1
RETRY_FIRST_MS: Final = 50
"""Short: an agent that is started together with its gateway is to be there soon after it."""
RETRY_FACTOR: Final = 1.5
RETRY_MAX_MS: Final = 2000
REFUSED_RETRY_MS: Final = 10_000
"""A refusal changes only when somebody mends it: an owner, a key, an egress rule. The first may be a matter of order:
whoever declares the endpoint has just been started too."""
TIMEOUT_S: Final = 5.0
LEAVE_TIMEOUT_S: Final = 2.0
DECLARE_TRIES_MAX: Final = 5
REPLY_BYTES_MAX: Final = 4 << 20
SAID_MAX: Final = 16
FAULTS_SHOWN_MAX: Final = 5
PASSING: Final = frozenset({401, 404, 412})
"""Refusals that others may mend without this agent: a key that is being rotated and that the gateways learn soon, an
endpoint that is declared by whoever was started together with this, a write in between. All other 4xx are final."""
REGISTERED: Final = "is registered"
DECLARED: Final = "is declared"

logger: Final = logging.getLogger("mesh.agent")


class RefusedForGood(Refusal):
    """The contract breaks callers, the name is another's, a field or the URL is refused, there is no key."""


class Registration:
    """One instance of one endpoint.

    gateways   base URLs, asked in turn when one does not answer
    declared   the fields of the endpoint that the author set; None: the endpoint is declared by somebody else
    force      declare it although callers of the present contract would break
    """

    def __init__(
        self,
        pool: Pool,
        gateways: Sequence[Target],
        *,
        key: str | None,
        endpoint: str,
        declared: dict[str, Any] | None,
        instance: str,
        lease: dict[str, Any] | None,
        force: bool = False,
        refused: Callable[[str], None] | None = None,
    ) -> None:
        """`lease`: the body of the instance's PUT, `{url, ttl_ms, version?, weight?}`; None: its polls register it.

        `refused`: called once, with the reason in a line, when the first registration is refused for good; nothing is
        tried again then. None, as under a server that is not ours to end: the error is logged, and tried again slowly.
        An agent that was taken once goes on in any case, for it has work.
        """
        self._pool = pool
        self._gateways = gateways
        self._at = 0
        self._keyless = key is None
        self._headers: list[RawHeader] = [(b"content-type", b"application/json")]
        if key is not None:
            self._headers.append((b"authorization", f"Bearer {key}".encode("latin-1")))
        self._endpoint_path = f"/v1/endpoints/{quote_segment(endpoint)}".encode()
        self._instance_path = self._endpoint_path + f"/instances/{quote_segment(instance)}".encode()
        self._what = f"{endpoint}/{instance}"
        self._declared = declared
        self._must_declare = declared is not None
        self._polls = lease is None
        self._put_path = self._endpoint_path + (b"?force=true" if force else b"")
        self._lease = json.dumps(lease).encode()
        self._first = json.dumps({**(lease or {}), "fresh": True}).encode()
        self._ttl_ms: int = lease["ttl_ms"] if lease is not None else 0
        self._refused = refused
        self._again = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._said: set[str] = set()
        self._unread = False  # an instance's PUT is out: a reply that nobody waits for may still have registered it
        self.known = asyncio.Event()
        """Set once the registry has taken this instance."""

    def begin(self) -> None:
        """Register, and keep registered, in the background."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def redeclare(self) -> None:
        """The endpoint went away under an instance that polls."""
        self._must_declare = self._declared is not None
        self._again.set()

    async def leave(self) -> None:
        """Stop heartbeats and take the instance out of the rotation, if the registry can be reached."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if self.known.is_set() or self._unread:
            try:
                await self._request(b"DELETE", self._instance_path, timeout_s=LEAVE_TIMEOUT_S)
            except MeshError as error:
                logger.warning("%s could not leave the registry: %s", self._what, error.detail)

    async def step(self) -> None:
        """Declare what is to be declared, then one heartbeat. Raises PeerFault and Refusal."""
        if self._must_declare:
            await self._declare()
            self._must_declare = False
        if self._polls:
            return
        # Under the name of a process that was killed, the registry would believe that this is still the same one.
        body = self._lease if self.known.is_set() else self._first
        self._unread = True
        reply = await self._request(b"PUT", self._instance_path, body)
        self._unread = False
        if reply.status == 404 and self._declared is not None:  # noqa: PLR2004
            self._must_declare = True  # the endpoint went away under us
        self._check(reply, "the instance")

    async def _run(self) -> None:
        delay_ms = refused_ms = RETRY_FIRST_MS
        while True:
            try:
                await self.step()
            except PeerFault as fault:
                self._say(logging.WARNING, f"is not registered yet: {fault.detail}")
                self._at += 1
                pause_ms, delay_ms = delay_ms, min(delay_ms * RETRY_FACTOR, RETRY_MAX_MS)
            except Refusal as refusal:
                if isinstance(refusal, RefusedForGood) and self._refused is not None and not self.known.is_set():
                    self._refused(f"{self._what} cannot register: {refusal.detail}")
                    return
                self._say(logging.ERROR, f"cannot register: {refusal.detail}")
                pause_ms, refused_ms = refused_ms, min(refused_ms * 2, REFUSED_RETRY_MS)
            else:
                self._say(logging.INFO, DECLARED if self._polls else REGISTERED)
                self.known.set()
                pause_ms, delay_ms, refused_ms = self._ttl_ms // BEATS_PER_TTL, RETRY_FIRST_MS, RETRY_FIRST_MS
                if self._polls:
                    await self._again.wait()
                    self._again.clear()
                    continue
            await sleep(jittered(pause_ms, BEAT_SPREAD) / 1000)

    async def _declare(self) -> None:
        """Read, merge, write if anything differs; again when somebody else wrote in between."""
        wanted = self._declared or {}
        for _ in range(DECLARE_TRIES_MAX):
            found = await self._request(b"GET", self._endpoint_path)
            headers: list[RawHeader] = []
            entry: dict[str, Any] = dict(wanted)
            if found.status == 200:  # noqa: PLR2004
                present = _object(found)
                if not self._polls and _is_pulled(present):
                    # Whoever comes last says how the endpoint is reached; an agent that asks for work does the same.
                    present.pop("target")
                elif _holds(present, wanted):
                    return
                entry = {field: present[field] for field in _KEPT if present.get(field) is not None} | entry
                etag = found.header(b"etag")
                if etag is not None:
                    headers = [(b"if-match", etag)]
            elif found.status != 404:  # noqa: PLR2004
                self._check(found, "the endpoint")
            entry.setdefault("target", {"kind": "http"})
            written = await self._request(b"PUT", self._put_path, json.dumps(entry).encode(), headers)
            if written.status != 412:  # noqa: PLR2004
                self._check(written, "the endpoint")
                for one in _object(written).get("warnings", ()):
                    self._say(logging.WARNING, f"is registered, but {one.get('pointer')}: {one.get('detail')}")
                return
        message = "the endpoint is rewritten by somebody else all the time"
        raise PeerFault(message)

    async def _request(
        self,
        method: bytes,
        path: bytes,
        body: bytes = b"",
        headers: Sequence[RawHeader] = (),
        timeout_s: float = TIMEOUT_S,
    ) -> Reply:
        gateway = self._gateways[self._at % len(self._gateways)]
        return await self._pool.request(
            method,
            gateway,
            gateway.under(path),
            [*self._headers, *headers],
            body,
            timeout_s=timeout_s,
            reply_bytes_max=REPLY_BYTES_MAX,
        )

    def _check(self, reply: Reply, what: str) -> None:
        """Raises Refusal for what only a change mends, PeerFault for what may pass."""
        if reply.status < 300:  # noqa: PLR2004
            return
        said = _object(reply)
        detail = f"{what}: {reply.status} {said.get('code', '')} {said.get('detail', '')}".rstrip() + _places(said)
        if reply.status in (408, 425, 429) or reply.status >= 500:  # noqa: PLR2004
            raise PeerFault(detail)
        if self._keyless and reply.status == 401:  # noqa: PLR2004
            raise RefusedForGood(detail)  # which says how to give one
        # An agent that was killed and is back in the other mode is refused until its old lease ends.
        passing = reply.status in PASSING or said.get("code") == "kind_in_use"
        raise (Refusal if passing else RefusedForGood)(detail)

    def _say(self, level: int, what: str) -> None:
        # Said when it changes: gateways that are down for an hour, asked in turn, are a line each.
        if what in self._said:
            return
        if level == logging.INFO or len(self._said) >= SAID_MAX:
            self._said.clear()
        self._said.discard(REGISTERED)
        self._said.add(what)
        logger.log(level, "%s %s", self._what, what)


_KEPT: Final = ("description", "target", "policy", "allow", "labels")


def _object(reply: Reply) -> dict[str, Any]:
    try:
        found = json.loads(reply.body)
    except ValueError:
        found = None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _holds(present: Any, wanted: Any) -> bool:
    """Whether `wanted` is there already; objects may have more fields, defaults say."""
    if isinstance(wanted, dict) and isinstance(present, dict):
        has = cast("dict[str, Any]", present)
        return all(name in has and _holds(has[name], value) for name, value in cast("dict[str, Any]", wanted).items())
    return present == wanted


def _is_pulled(present: dict[str, Any]) -> bool:
    target: object = present.get("target")
    return isinstance(target, dict) and cast("dict[str, Any]", target).get("kind") == "pull"


def _places(said: dict[str, Any]) -> str:
    """Where the faults are, as JSON pointers with their reasons; empty when the problem does not say."""
    errors: object = said.get("errors")
    found = cast("list[object]", errors) if isinstance(errors, list) else []
    faults = [cast("dict[str, Any]", each) for each in found if isinstance(each, dict)]
    # The detail has the first of them itself.
    told = str(said.get("detail", ""))
    news = [each for each in faults if str(each.get("pointer")) not in told or str(each.get("detail", "")) not in told]
    shown = [f"{each['pointer']}: {each.get('detail', '')}" for each in news if "pointer" in each]
    if len(shown) > FAULTS_SHOWN_MAX:
        shown[FAULTS_SHOWN_MAX:] = [f"and {len(shown) - FAULTS_SHOWN_MAX} more"]
    return f" ({'; '.join(shown)})" if shown else ""
