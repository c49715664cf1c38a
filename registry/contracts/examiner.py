"""What may take long with schemas and inputs of other teams, in a process of its own with a time limit.

What checking an input may cost at most is known from its size and its schema (bounds.py), what reading it may cost from
its bytes (mesh/wire/strict_json.py). Nearly all inputs are checked at once, within a fraction of a millisecond; one
that might hold up the event loop goes to the examiner's process. So does every comparison of two schemas. The process
is started when it is first needed, and ends itself with a job that takes too long. Knows no endpoint and no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from typing import Any, Final

import msgspec

from mesh.errors import Malformed, TooMany, Unavailable, Unprocessable
from mesh.wire import load_json
from registry.contracts.check import Contract, refuse
from registry.contracts.compare import Difference, TooComplex
from registry.contracts.dialect import Schema

TIME_MS: Final = 2_000
"""Longest check of one input, and longest comparison of two schemas."""
READ_TIME_MS: Final = 5_000
"""Longest reading of one JSON text: far above what the largest body takes."""
WAITING_MAX: Final = 16
EACH_WAITING_MAX: Final = 8
"""Of one namespace: none takes the places of all the others."""
ANSWER_S: Final = 10.0
"""Until a process that says nothing is given up; it ends by itself long before."""
LENGTH_BYTES: Final = 4
PROCESS: Final = "from registry.contracts.examined import main; main()"

_log = logging.getLogger(__name__)


class Check(msgspec.Struct, array_like=True, tag=True):
    """An input against a schema, both JSON. The reply is a Verdict."""

    schema: bytes
    body: bytes
    prefix: str
    time_ms: int


class Read(msgspec.Struct, array_like=True, tag=True):
    """A JSON text on its own. The reply is a Verdict."""

    body: bytes
    time_ms: int


class Compare(msgspec.Struct, array_like=True, tag=True):
    """Two schemas in 2020-12, as JSON. The reply is Differences."""

    sender: bytes
    taker: bytes
    time_ms: int


class Verdict(msgspec.Struct, array_like=True):
    """`malformed` is the reason why the body is no JSON, or ""."""

    breaches: list[dict[str, str]]
    malformed: str = ""


class Differences(msgspec.Struct, array_like=True):
    """None: too complex to say."""

    found: list[Difference] | None


class _Overdue(Exception):
    """The process ended instead of answering."""


class Examiner:
    """One per gateway."""

    def __init__(self, time_ms: int = TIME_MS) -> None:
        self._time_ms = time_ms
        self._process: Process | None = None
        self._turn = asyncio.Lock()
        self._waiting: Counter[str] = Counter()

    async def check(self, contract: Contract, body: bytes, prefix: str = "", whose: str = "") -> None:
        """Raise unless the JSON text `body` of the namespace `whose` keeps the schema; pointers go behind `prefix`.

        Raises Unprocessable `schema_breach` or `check_too_long`, Malformed `json_invalid`, TooMany.
        """
        if not contract.heavy(body):
            refuse(contract.breaches(load_json(body), prefix))
            return
        job = Check(msgspec.json.encode(contract.schema), body, prefix, self._time_ms)
        try:
            verdict = await self._ask(job, Verdict, whose)
        except _Overdue:
            _log.warning("an input of %d bytes took too long to check against its schema", len(body))
            raise Unprocessable(
                f"checking the input against the registered schema takes longer than {self._time_ms} ms:"
                " send a smaller input, or ask the endpoint's owner for a simpler schema",
                code="check_too_long",
            ) from None
        if verdict.malformed:
            raise Malformed(verdict.malformed, code="json_invalid")
        refuse(verdict.breaches)

    async def read(self, body: bytes, whose: str = "") -> None:
        """Raise Malformed `json_invalid` unless `body` is a strict JSON text, Unprocessable `check_too_long`, TooMany.

        A costly one: the others are checked where they are, by check_json.
        """
        try:
            verdict = await self._ask(Read(body, READ_TIME_MS), Verdict, whose)
        except _Overdue:
            raise Unprocessable(
                f"reading the {len(body)} bytes of JSON takes longer than {READ_TIME_MS} ms: send fewer values",
                code="check_too_long",
            ) from None
        if verdict.malformed:
            raise Malformed(verdict.malformed, code="json_invalid")

    async def compare(self, sender: Schema, taker: Schema) -> list[Difference]:
        """Differences as compare.py finds them. Raises TooComplex, TooMany."""
        job = Compare(msgspec.json.encode(sender), msgspec.json.encode(taker), self._time_ms)
        try:
            reply = await self._ask(job, Differences)
        except _Overdue:
            raise TooComplex from None
        if reply.found is None:
            raise TooComplex
        return reply.found

    async def close(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _ask(self, job: Check | Read | Compare, kind: type[Any], whose: str = "") -> Any:
        """Raises _Overdue, TooMany, Unavailable."""
        if self._waiting.total() >= WAITING_MAX or self._waiting[whose] >= EACH_WAITING_MAX:
            raise TooMany("too many large inputs or schemas are being looked at; try again", code="checks_busy")
        self._waiting[whose] += 1
        try:
            async with self._turn, asyncio.timeout(ANSWER_S):
                reply = await self._exchange(msgspec.msgpack.encode(job))
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            await self.close()
            raise _Overdue from None
        finally:
            self._waiting[whose] -= 1
            if not self._waiting[whose]:
                del self._waiting[whose]
        return msgspec.msgpack.decode(reply, type=kind)

    async def _exchange(self, job: bytes) -> bytes:
        process = self._process
        if process is None or process.returncode is not None:
            process = self._process = await _start()
        if process.stdin is None or process.stdout is None:
            message = "the examiner has no pipes"
            raise RuntimeError(message)
        try:
            process.stdin.write(len(job).to_bytes(LENGTH_BYTES, "big") + job)
            await process.stdin.drain()
            size = int.from_bytes(await process.stdout.readexactly(LENGTH_BYTES), "big")
            return await process.stdout.readexactly(size)
        except BaseException:
            # Whoever asked may be gone in the middle: an answer that nobody read would be taken for the next one's.
            await self.close()
            raise


async def _start() -> Process:
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", PROCESS, stdin=PIPE, stdout=PIPE, stderr=DEVNULL
        )
    except OSError as error:
        raise Unavailable(f"schemas cannot be looked at now: {error.strerror}", code="checks_unavailable") from None
