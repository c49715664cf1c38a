"""P415: large results on their way to and from gateways, over real HTTP: full, off, lost, damaged on the way."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import mesh
from mesh.agent.arrivals import BLOB_BYTES_MAX, Arrivals
from mesh.agent.durable import blobs
from mesh.agent.durable.blobs import HEAVY_MAX, Blobs, Reference
from mesh.clock import sleep
from mesh.errors import BlobCorrupt, Conflict, Malformed, TooLarge, Unavailable
from mesh.pool import Pool, Target
from mesh.wire.digests import digest_field
from tests.agents.serving import Request, Response, Scripted, answer, serving
from tests.durable.test_lines import Address
from tests.surface.test_large_payloads import files, until

BODY = b"0123456789abcdef" * 40_000
SHA256 = hashlib.sha256(BODY).hexdigest()
REF = {"url": "/v1/operations/00-x/blobs/a", "digest": digest_field(SHA256), "bytes": len(BODY), "content_type": "a/b"}
KEPT = answer(REF)


def problem(status: int, code: str) -> Response:
    return answer({"code": code, "detail": f"as {code}"}, status)


@pytest.fixture
def gateway() -> Iterator[Scripted]:
    gateway = Scripted()
    with serving(gateway) as url:
        gateway.url = url  # type: ignore[attr-defined]
        yield gateway


@pytest.fixture
async def line(gateway: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Blobs, Address]]:
    monkeypatch.setattr(blobs, "RETRY_FIRST_MS", 1)
    monkeypatch.setattr(blobs, "LOST_GRACE_S", 0.1)
    pool, target = Pool(), Target.parse(gateway.url)
    yield Blobs(pool, [target], Arrivals("lines", BLOB_BYTES_MAX, tmp_path, 1 << 20)), Address("t1", target)
    await pool.close()


def says(gateway: Scripted, *responses: Response) -> None:
    left = list(responses)
    gateway.script = lambda _: left.pop(0) if len(left) > 1 else left[0]


async def test_no_room_is_waited_for_and_told_once(gateway: Scripted, line: tuple[Blobs, Address]) -> None:
    """P399, P410: nothing is lost meanwhile; each try brings all of it, with its digest and the token."""
    full = problem(507, "blob_storage_full")
    says(gateway, full, problem(429, "uploads_busy"), full, Response(502), problem(400, "digest_mismatch"), KEPT)
    told: list[str] = []
    kept = await line[0].keep(line[1], mesh.Blob(data=BODY, content_type="a/b"), told.append)
    assert kept == REF
    assert told == ["as blob_storage_full"]
    assert len(gateway.requests) == 6
    for request in gateway.requests:
        assert (request.method, request.path, request.body == BODY) == ("PUT", "/v1/tasks/blobs", True)
        assert (request.headers["mesh-task-token"], request.headers["content-type"]) == ("t1", "a/b")
        assert request.headers["content-digest"] == digest_field(SHA256)


@pytest.mark.parametrize("said", [problem(503, "blob_storage_off"), problem(404, "unknown_route")])
async def test_a_gateway_that_keeps_none(gateway: Scripted, line: tuple[Blobs, Address], said: Response) -> None:
    says(gateway, said)
    assert await line[0].keep(line[1], mesh.Blob(data=BODY), lambda _: None) is None


async def test_what_ends_it(gateway: Scripted, line: tuple[Blobs, Address]) -> None:
    """P415: too large and always another digest are the step's; a lost attempt is the attempt's."""
    for said, raised in (
        (problem(413, "too_large"), TooLarge),
        (problem(400, "digest_mismatch"), Malformed),
        (problem(409, "lease_lost"), Conflict),
    ):
        says(gateway, said)
        with pytest.raises(raised):
            await line[0].keep(line[1], mesh.Blob(data=BODY), lambda _: None)
    with pytest.raises(Conflict):
        await line[0].fetch(line[1], Reference.of(REF), as_file=False)


@pytest.mark.parametrize("as_file", [True, False])
async def test_what_comes_back_is_what_was_kept(
    gateway: Scripted, line: tuple[Blobs, Address], tmp_path: Path, *, as_file: bool
) -> None:
    """P412: checked; other bytes, however they come, are never taken."""
    ref = Reference.of(REF)
    says(gateway, problem(503, "store_unavailable"), Response(200, BODY))
    blob = await line[0].fetch(line[1], ref, as_file=as_file)
    assert (blob.read(), blob.content_type, blob.path is not None) == (BODY, "a/b", as_file)
    assert gateway.requests[-1].headers["mesh-task-token"] == "t1"
    for other in (BODY[:-1] + b"x", BODY[:-1]):
        says(gateway, Response(200, other))
        with pytest.raises(BlobCorrupt):
            await line[0].fetch(line[1], ref, as_file=as_file)
    says(gateway, Response(200, chunks=[BODY[:1000], b""]))
    with pytest.raises(BlobCorrupt, match="breaks off"):
        await line[0].fetch(line[1], ref, as_file=as_file)
    says(gateway, problem(503, "blob_missing"))
    with pytest.raises(Unavailable) as missed:
        await line[0].fetch(line[1], ref, as_file=as_file)
    assert missed.value.code == "blob_missing"
    blob.close()
    await until(lambda: not files(tmp_path))


async def test_two_heavy_ones_at_once(
    gateway: Scripted, line: tuple[Blobs, Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    """P415: what takes much memory waits for its turn; what takes little of it passes by."""
    monkeypatch.setattr(blobs, "HEAVY_BYTES", len(BODY) - 1)
    small = BODY[:100]
    light = Reference("/v1/light", hashlib.sha256(small).hexdigest(), len(small), "a/b")
    heavy, go_on = Reference.of(REF), threading.Event()
    most = reading = 0

    async def script(request: Request) -> Response:
        nonlocal most, reading
        if request.path == light.url:
            return Response(200, small)
        reading += 1
        most = max(most, reading)
        while not go_on.is_set():
            await sleep(0.002)
        reading -= 1
        return Response(200, BODY)

    gateway.script = script
    waiting = [asyncio.ensure_future(line[0].fetch(line[1], heavy, as_file=False)) for _ in range(HEAVY_MAX + 3)]
    file = asyncio.ensure_future(line[0].fetch(line[1], heavy._replace(url="/v1/file"), as_file=True))
    await until(lambda: gateway.at("/v1/file") and len(gateway.at(heavy.url)) == HEAVY_MAX)
    for _ in range(3):
        assert (await line[0].fetch(line[1], light, as_file=False)).read() == small
    go_on.set()
    (await file).close()
    assert [(await one).read() == BODY for one in waiting] == [True] * (HEAVY_MAX + 3)
    assert most == HEAVY_MAX + 1, "the file is none of them"
