"""Answers by their own routes: when no poll can carry them, and one that is too large for a frame.

Also reads what became of answers, whichever way they went. Tries every gateway, for tokens are good at all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import msgspec

from mesh.agent.completion import SLOWEST_BYTES_PER_S
from mesh.agent.outbox import Answer, Outbox
from mesh.agent.tasks import Status, answer_of, read_statuses, too_large
from mesh.blob import Blob
from mesh.errors import MeshError
from mesh.pool import Pool, Reply, Target
from mesh.wire import RawHeader
from mesh.wire.digests import CONTENT_DIGEST

COMPLETE: Final = b"/v1/tasks/complete"
TIMEOUT_S: Final = 10.0
REPLY_BYTES_MAX: Final = 1 << 20
_TRAVELS: Final = (b"content-type", b"nexus-link", CONTENT_DIGEST)
_JSON: Final[RawHeader] = (b"content-type", b"application/json")

logger: Final = logging.getLogger("mesh.agent")


class Booking:
    """`busy`: answers are on their way."""

    def __init__(self, pool: Pool, gateways: Sequence[Target], outbox: Outbox) -> None:
        self._pool = pool
        self._gateways = gateways
        self._outbox = outbox
        self.busy = 0

    async def book(self, answers: list[Answer]) -> bool:
        """Send what `Outbox.take` gave; False: no gateway took it, it is back in the outbox."""
        if not answers:
            return True
        self.busy += 1
        sent = False
        try:
            for gateway in self._gateways:
                try:
                    reply = await self._send(gateway, answers)
                except MeshError as fault:
                    logger.info("answers are not taken yet: %s", fault.detail)
                    continue
                sent = self._judge(gateway, answers, reply)
                if sent:
                    return True
        finally:
            self.busy -= 1
            if not sent:
                self._outbox.back(answers)
        return False

    async def _send(self, gateway: Target, answers: list[Answer]) -> Reply:
        first = answers[0]
        body: bytes | Blob
        if first.outcome is not None and first.outcome.state == "succeeded":
            headers = [(b"mesh-task-token", first.token.encode("latin-1"))]
            headers += [one for one in first.outcome.headers if one[0] in _TRAVELS]
            body = first.outcome.blob or first.outcome.body
        else:
            headers = [_JSON]
            parts = [one.body if one.outcome is None else answer_of(one.token, one.outcome) for one in answers]
            body = b'{"tasks":[%b]}' % b",".join(parts)
        timeout_s = TIMEOUT_S if isinstance(body, bytes) else TIMEOUT_S + body.size / SLOWEST_BYTES_PER_S
        return await self._pool.post(
            gateway, gateway.under(COMPLETE), headers, body, timeout_s=timeout_s, reply_bytes_max=REPLY_BYTES_MAX
        )

    def _judge(self, gateway: Target, answers: list[Answer], reply: Reply) -> bool:
        """Whether these answers need not be sent again."""
        if reply.status in (408, 425, 429) or reply.status >= 500:  # noqa: PLR2004
            return False
        if reply.status == 200 and answers[0].outcome is None:  # noqa: PLR2004
            try:
                self.booked(answers, read_statuses(reply.body).tasks)
            except msgspec.MsgspecError:
                return False
        elif reply.status == 413 and answers[0].outcome is not None:  # noqa: PLR2004
            self._outbox.back([Answer(answers[0].token, too_large(answers[0].token))])
        elif reply.status != 200:  # noqa: PLR2004
            said = reply.body[:300].decode("utf-8", "replace")
            logger.warning("%s refused an answer with %d: %s", gateway.origin, reply.status, said)
        return True

    def booked(self, answers: list[Answer], statuses: Sequence[Status]) -> None:
        """What became of answers, in the order in which they went."""
        again = list(answers[len(statuses) :])
        for answer, status in zip(answers, statuses, strict=False):
            word = status.status
            if word == "again":
                again.append(answer)
            elif word in ("lost", "ended"):
                logger.info("an answer came too late: %s", word)
            elif word != "ok":
                logger.warning("an answer was refused: %s %s", word[:40], status.detail[:200])
        self._outbox.back(again)
