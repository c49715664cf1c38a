"""What the tests of the kit for agents share: a short check, its results by number, a server on bare sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from mesh.check.agent import Sample, Settings, check_agent
from mesh.check.report import Report, Result

QUICK = Sample("work", "quick", b"1234")
LASTING = Sample("work", "lasting", b"0.3000")
SLOW = Sample("work", "lasting", b"1.1")
SLOWER = Sample("work", "lasting", b"2.7")


async def checked(url: str, *samples: Sample, only: frozenset[str] = frozenset(), **options: Any) -> Report:
    given: dict[str, Any] = {"patience_s": 3.0, "quiet_s": 0.5, "answer_s": 3.0} | options
    settings = Settings(samples=samples, only=only, **given)
    return await check_agent(url, settings)


def by_number(report: Report) -> dict[str, Result]:
    return {result.number: result for result in report.results}


@asynccontextmanager
async def raw(serve: Any) -> AsyncIterator[str]:
    """A server on bare sockets."""
    tasks: list[asyncio.Task[None]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()  # also when nothing was asked: the kit looks first whether anybody is there

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.get_running_loop().create_task(answer(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await asyncio.gather(*tasks, return_exceptions=True)
