"""Checks inputs at the gateway: at once where that is cheap, else in a process of its own with a time limit.

What an input may cost at most is known from its size and its schema (bounds.py). Nearly all are checked inside a
fraction of a millisecond; one that might hold up the event loop goes to the examiner's process, which is started for
the first of them and ends itself with an input that takes too long. Knows no endpoint and no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from typing import Final

import msgspec

from mesh.errors import Malformed, TooMany, Unavailable, Unprocessable
from mesh.wire import load_json
from registry.contracts.check import Contract, refuse
from registry.contracts.explain import Breach

TIME_MS: Final = 2_000
"""Longest check of one input."""
WAITING_MAX: Final = 16
ANSWER_S: Final = 10.0
"""Until a process that says nothing is given up; it ends by itself long before."""
LENGTH_BYTES: Final = 4
PROCESS: Final = "from registry.contracts.examined import main; main()"

_log = logging.getLogger(__name__)


class Job(msgspec.Struct, array_like=True):
    """One input for the process. `schema` is JSON, `body` what the caller sent."""

    schema: bytes
    body: bytes
    prefix: str
    time_ms: int


class Verdict(msgspec.Struct, array_like=True):
    """What it says. `malformed` is the reason why the body is no JSON, or ""."""

    breaches: list[dict[str, str]]
    malformed: str = ""


class Examiner:
    """One per gateway."""

    def __init__(self, time_ms: int = TIME_MS) -> None:
        self._time_ms = time_ms
        self._process: Process | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def check(self, contract: Contract, body: bytes, prefix: str = "") -> None:
        """Raise unless the JSON text `body` keeps the schema; pointers are put behind `prefix`.

        Raises Unprocessable `schema_breach` or `check_too_long`, Malformed `json_invalid`, TooMany.
        """
        if not contract.heavy(body):
            refuse(contract.breaches(load_json(body), prefix))
            return
        if self._waiting >= WAITING_MAX:
            raise TooMany("too many large inputs are being checked; try again", code="checks_busy")
        self._waiting += 1
        try:
            async with self._turn:
                found = await self._examine(contract, body, prefix)
        finally:
            self._waiting -= 1
        refuse(found)

    async def close(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _examine(self, contract: Contract, body: bytes, prefix: str) -> list[Breach]:
        process = self._process
        if process is None or process.returncode is not None:
            process = self._process = await _start()
        job = msgspec.msgpack.encode(Job(msgspec.json.encode(contract.schema), body, prefix, self._time_ms))
        try:
            async with asyncio.timeout(ANSWER_S):
                verdict = await _ask(process, job)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            await self.close()
            _log.warning("an input of %d bytes took too long to check against its schema", len(body))
            raise Unprocessable(
                f"checking the input against the registered schema takes longer than {self._time_ms} ms:"
                " send a smaller input, or ask the endpoint's owner for a simpler schema",
                code="check_too_long",
            ) from None
        except BaseException:
            # The caller is gone in the middle: an answer that nobody read would be taken for the next one's.
            await self.close()
            raise
        if verdict.malformed:
            raise Malformed(verdict.malformed, code="json_invalid")
        return verdict.breaches


async def _start() -> Process:
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", PROCESS, stdin=PIPE, stdout=PIPE, stderr=DEVNULL
        )
    except OSError as error:
        raise Unavailable(f"the input cannot be checked now: {error.strerror}", code="checks_unavailable") from None


async def _ask(process: Process, job: bytes) -> Verdict:
    if process.stdin is None or process.stdout is None:
        message = "the examiner has no pipes"
        raise RuntimeError(message)
    process.stdin.write(len(job).to_bytes(LENGTH_BYTES, "big") + job)
    await process.stdin.drain()
    size = int.from_bytes(await process.stdout.readexactly(LENGTH_BYTES), "big")
    return msgspec.msgpack.decode(await process.stdout.readexactly(size), type=Verdict)
