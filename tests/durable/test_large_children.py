"""P440, P442: large results of children in their parent, by the test kit: whatever is interrupted, what goes wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

import mesh
from mesh import testing
from mesh.agent.durable import blobs
from mesh.agent.durable.blobs import Reference
from mesh.clock import sleep
from mesh.errors import BlobMissing, Refusal, TooLarge
from mesh.testing.memory import MemoryLink

MIB = 1 << 20


class Rows(BaseModel):
    rows: list[str]


ROWS = {"rows": [f"{number:0999d}" for number in range(3_000)]}
FILE = mesh.Blob(data=bytes(range(256)) * (3 * MIB >> 8), content_type="application/pdf")
CHILDREN = {
    "data/Data/rows": ROWS,
    "data/Data/raw": b"r" * (3 * MIB),
    "data/Data/file": FILE,
    "data/Data/few": mesh.Blob(data=b"few", content_type="text/plain"),
}


@mesh.durable
async def collect(ctx: mesh.Context) -> list[Any]:
    rows = await ctx.call("data", "Data", "rows", out=Rows)
    await ctx.sleep(60)
    raw = await ctx.call("data", "Data", "raw", out=bytes)
    file = await ctx.call("data", "Data", "file", out=mesh.Blob)
    few = await ctx.call("data", "Data", "few", out=mesh.Blob)
    await ctx.sleep(60)
    return [
        len(rows.rows), rows.rows[-1], len(raw), file.size, file.sha256 == FILE.sha256, file.content_type,
        few.read().decode(), few.content_type,
    ]  # fmt: skip


def test_it_survives_whatever_is_interrupted() -> None:
    """The journal has a reference; every replay gets the same bytes, and no child is started again."""
    moments: set[str | None] = set()
    for run in testing.interrupted(collect, children=CHILDREN):
        assert run.result == [
            3_000, f"{2_999:0999d}", 3 * MIB, 3 * MIB, True, "application/pdf", "few", "text/plain"
        ]  # fmt: skip
        assert set(run.children.values()) == {1}
        moments.add(run.crash)
    ended = {one["key"]: one for one in run.journal if one["kind"] == "child"}
    assert len(json.dumps(run.journal)) < 5_000
    ref = ended["Data.rows#1"]["result_dataref"]
    assert (ref["bytes"], ref["content_type"]) == (len(json.dumps(ROWS, separators=(",", ":"))), "application/json")
    assert f"reading {ref['bytes']} bytes" in moments


def test_through_a_gather() -> None:
    """Values of any size are values of sources; also on the replays, where they are had again."""

    @mesh.durable
    async def handler(ctx: mesh.Context) -> dict[str, int]:
        sources = {name: ctx.call("data", "Data", name, name=name) for name in ("rows", "raw")}
        sources["file"] = ctx.call("data", "Data", "file", name="file", out=mesh.Blob)
        gathered = await ctx.gather(sources, quorum=3, deadline_ms=60_000)
        await ctx.sleep(60)
        found = gathered.require().results
        return {"rows": len(found["rows"]["rows"]), "raw": len(found["raw"]), "file": found["file"].size}

    for run in testing.interrupted(handler, children=CHILDREN):
        assert run.result == {"rows": 3_000, "raw": 3 * MIB, "file": 3 * MIB}
        assert set(run.children.values()) == {1}


def test_what_is_recorded_counts_however_long_it_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    """P442: the process is lost before the gather is decided; when it is asked again its deadline is over."""
    fetch = MemoryLink.fetch

    async def slow(link: MemoryLink, ref: Reference, *, as_file: bool) -> mesh.Blob:
        if link._attempt > 1:  # pyright: ignore[reportPrivateUsage]
            await sleep(5)
        return await fetch(link, ref, as_file=as_file)

    monkeypatch.setattr(MemoryLink, "fetch", slow)

    @mesh.durable
    async def handler(ctx: mesh.Context) -> dict[str, str]:
        gathered = await ctx.gather({"rows": ctx.call("data", "Data", "rows")}, deadline_ms=500)
        return {name: source.state for name, source in gathered.items()}

    whole = testing.run(handler, children=CHILDREN)
    (reading,) = [at for at, moment in enumerate(whole.moments) if moment.startswith("reading ")]
    for run in (whole, testing.run(handler, children=CHILDREN, crash_at=reading)):
        assert run.result == {"rows": "succeeded"}
        assert run.children == {"data/Data/rows": 1}
    assert run.attempts > whole.attempts


def test_more_than_memory_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails as what cannot be read does, and says what to do; as a Blob it is had."""
    monkeypatch.setattr(blobs, "RESULT_BYTES_MAX", 2 * MIB)
    fetch = MemoryLink.fetch

    async def bounded(link: MemoryLink, ref: Reference, *, as_file: bool) -> mesh.Blob:
        if not as_file and ref.size > blobs.RESULT_BYTES_MAX:
            raise TooLarge("more as a mesh.Blob")
        return await fetch(link, ref, as_file=as_file)

    monkeypatch.setattr(MemoryLink, "fetch", bounded)

    @mesh.durable
    async def handler(ctx: mesh.Context) -> list[Any]:
        try:
            await ctx.call("data", "Data", "rows", out=Rows)
        except mesh.OperationFailed as error:
            return [str(error), (await ctx.call("data", "Data", "rows", out=mesh.Blob, name="again")).size]
        return []

    run = testing.run(handler, children=CHILDREN)
    assert "cannot be had as Rows: more as a mesh.Blob" in run.result[0]
    assert run.result[1] > 2 * MIB


@pytest.mark.parametrize("error", [BlobMissing, Refusal], ids=["missing", "gone"])
def test_what_is_missing_is_waited_for(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    """P442: the child is not started again; the attempt ends, counts for nothing, and says why."""
    fetch = MemoryLink.fetch
    put_off = MemoryLink.put_off
    told: list[tuple[str, str]] = []
    misses = [1, 2, 3]

    async def missing(link: MemoryLink, ref: Reference, *, as_file: bool) -> mesh.Blob:
        if misses:
            misses.pop()
            raise error("it is not there")
        return await fetch(link, ref, as_file=as_file)

    def noted(link: MemoryLink, kind: str, message: str) -> Any:
        told.append((kind, message))
        return put_off(link, kind, message)

    monkeypatch.setattr(MemoryLink, "fetch", missing)
    monkeypatch.setattr(MemoryLink, "put_off", noted)
    run = testing.run(collect, children=CHILDREN)
    assert run.result[0] == 3_000
    assert set(run.children.values()) == {1}
    assert [kind for kind, _ in told] == ["BLOB_MISSING"] * 3
    assert "Data.rows#1" in told[0][1]
