"""Cancels to agents and callbacks to receivers on the wire: one try each, booked as delivered, due again, or dead.

Every path out of a try ends in exactly one store call. Knows agents and receivers as URLs; what a callback looks like
is callbacks.py, where it may go egress.py.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from gateway.callbacks import CallbackPlan, callback_request, judge_callback, sign_large
from gateway.outcomes import trace_headers
from gateway.starts import DETAIL_CHARS_MAX, RETRY_AFTER_MS_MAX, UNSENDABLE
from mesh.errors import BlobCorrupt, BlobMissing, PeerFault, Refusal
from mesh.ids import jittered
from mesh.machine import Kind
from mesh.wire import quote_segment

if TYPE_CHECKING:
    from gateway.egress import Egress
    from gateway.metrics import Metrics
    from gateway.payloads import Payloads
    from gateway.waiters import Waiters
    from mesh.pool import Pool
    from mesh.store.store import Store
    from mesh.store.verbs import Work
    from registry.catalog import Catalog
    from registry.routing import Router

CANCEL_TRIES_MAX: Final = 8
CANCEL_TIMEOUT_S: Final = 10.0
CANCEL_FANOUT_MAX: Final = 64
CANCEL_FINAL: Final = frozenset({400, 401, 403, 404, 409, 501})
"""Asking again would bring the same answer."""
CALLBACK_TIMEOUT_S: Final = 20.0
CALLBACK_FIRST_MS: Final = 1_000
CALLBACK_CAP_MS: Final = 3_600_000
CALLBACK_FOR_MS: Final = 72 * 3_600_000
"""P85: 1 s doubling to 1 h, for 72 h."""
JITTER: Final = 0.2


class Deliveries:
    """Sends leased cancels and callbacks."""

    def __init__(
        self,
        *,
        store: Store,
        pool: Pool,
        egress: Egress,
        catalog: Catalog,
        router: Router,
        waiters: Waiters,
        metrics: Metrics,
        payloads: Payloads,
        callback_plan: CallbackPlan,
    ) -> None:
        self._store = store
        self._pool = pool
        self._egress = egress
        self._catalog = catalog
        self._router = router
        self._waiters = waiters
        self._metrics = metrics
        self._payloads = payloads
        self._callback_plan = callback_plan

    async def cancel(self, work: Work) -> None:
        """Tell the agent to stop."""
        head, request = work.head, work.request
        endpoint = self._catalog.by_id(head.endpoint)
        detail, final = "no instance to tell", head.cancel_tries >= CANCEL_TRIES_MAX
        instances = self._router.every(endpoint) if endpoint is not None else []
        path = f"/{quote_segment(request.service)}/{quote_segment(request.operation)}/cancel".encode()
        headers = [
            (b"nexus-operation-token", work.extra),
            (b"nexus-request-id", f"{work.id}.{head.run}.cancel".encode()),
            (b"mesh-operation-id", work.id.encode()),
            (b"mesh-run", b"%d" % head.run),
            *trace_headers(request),
        ]
        # The mesh does not know which instance holds the work (behind a load balancer it could not): ask all of them,
        # at once, so that one that hangs does not use up the lease. Cancel is idempotent by the protocol.
        answers = await asyncio.gather(
            *[self._ask_to_cancel(instance.url, path, headers) for instance in instances[:CANCEL_FANOUT_MAX]]
        )
        if any(isinstance(answer, int) and 200 <= answer < 300 for answer in answers):  # noqa: PLR2004
            await self._store.delivered(work.id, head.run, Kind.CANCEL)
            self._waiters.tell(work.id)
            return
        if answers:
            detail = next((answer for answer in answers if isinstance(answer, str)), f"the agent answered {answers[0]}")
            final = final or all(answer in CANCEL_FINAL for answer in answers)
        delay_ms = jittered(min(1000 * 2 ** min(head.cancel_tries - 1, 16), 60_000), JITTER)
        await self._store.defer(
            work.id, head.run, Kind.CANCEL, tries=head.cancel_tries, delay_ms=delay_ms, dead=final,
            detail=detail[:DETAIL_CHARS_MAX],
        )  # fmt: skip
        self._waiters.tell(work.id)

    async def _ask_to_cancel(self, url: str, path: bytes, headers: list[tuple[bytes, bytes]]) -> int | str:
        """The status that one instance answered, or why there was none."""
        try:
            target = self._egress.cached(url) or await self._egress.resolve(url)
            reply = await self._pool.post(target, target.under(path), headers, b"", timeout_s=CANCEL_TIMEOUT_S)
        except (PeerFault, Refusal) as fault:
            return fault.detail
        return reply.status

    async def callback(self, work: Work) -> None:
        """Tell the caller's receiver how it ended."""
        head, request = work.head, work.request
        retry_after_ms = 0
        final = False
        try:
            target = self._egress.cached(request.callback_url) or await self._egress.resolve(request.callback_url)
            sending = callback_request(work, self._callback_plan)
            headers, body = sending.headers, sending.body
            if sending.data is not None:
                body = self._payloads.stored(work.id, sending.data)
                headers = await sign_large(sending, work, self._callback_plan, body)
            reply = await self._pool.post(target, target.path, headers, body, timeout_s=CALLBACK_TIMEOUT_S)
        except (BlobMissing, BlobCorrupt) as fault:
            detail = fault.detail
        except Refusal as fault:
            # The egress policy changed its mind since the start, or the name leads elsewhere now: that may pass.
            detail, final = fault.detail, fault.code == UNSENDABLE
        except PeerFault as fault:
            detail = fault.detail
        else:
            verdict = judge_callback(request.callback_format, reply)
            if verdict.delivered:
                self._metrics.callback("delivered")
                await self._store.delivered(work.id, head.run, work.kind)
                self._waiters.tell(work.id)
                return
            detail, final, retry_after_ms = verdict.detail, verdict.final, verdict.retry_after_ms
        delay_ms = min(CALLBACK_FIRST_MS * 2 ** min(head.callback_tries - 1, 32), CALLBACK_CAP_MS)
        delay_ms = max(jittered(delay_ms, JITTER), min(retry_after_ms, RETRY_AFTER_MS_MAX))
        # head.callback_at is the end of this try's lease, by the store's clock.
        final = final or head.callback_at - head.closed_at > CALLBACK_FOR_MS
        self._metrics.callback("dead" if final else "failed")
        await self._store.defer(
            work.id, head.run, Kind.CALLBACK, tries=head.callback_tries, delay_ms=delay_ms, dead=final,
            detail=detail[:DETAIL_CHARS_MAX],
        )  # fmt: skip
        self._waiters.tell(work.id)
