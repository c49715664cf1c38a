"""What the tests of the kit for agents share: a short check, its results by number, a server on bare sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from mesh.check.accepting import Accepting
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
    door = Accepting(serve)
    await door.open()
    try:
        yield f"http://127.0.0.1:{door.port}"
    finally:
        await door.close()
