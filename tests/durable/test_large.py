"""P415: results of steps too large for an entry, by the test kit: whatever is interrupted, and what goes wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import mesh
from mesh import testing
from mesh.agent.durable import blobs, large
from mesh.agent.durable.blobs import Reference
from mesh.agent.durable.large import INLINE_BYTES, LARGE_BYTES
from mesh.clock import sleep
from mesh.errors import BlobMissing
from mesh.testing.memory import MemoryLink

MIB = 1 << 20
effects: list[Any] = []


@pytest.fixture(autouse=True)
def no_effects() -> None:
    effects.clear()


class Rows(BaseModel):
    rows: list[str]


async def table(count: int) -> Rows:
    effects.append(count)
    return Rows(rows=[f"{number:099d}" for number in range(count)])


async def raw(size: int) -> bytes:
    return bytes(range(256)) * (size // 256)


@mesh.durable
async def collect(ctx: mesh.Context) -> dict[str, Any]:
    first = await ctx.step("table", table, 10_000)
    await ctx.sleep(60)
    second = await ctx.step("raw", raw, 2 * MIB)
    again = await ctx.step("table", table, 3)
    await ctx.sleep(60)
    return {"rows": len(first.rows), "last": first.rows[-1], "raw": len(second), "few": again.rows}


def entries(run: testing.Run) -> dict[str, Any]:
    return {f"{one['name']}#{one['n']}": one for one in run.journal if one["kind"] == "step"}


def test_it_survives_whatever_is_interrupted() -> None:
    """The step that was recorded never runs again; the bytes are had again on every replay."""
    moments: set[str | None] = set()
    for run in testing.interrupted(collect):
        assert run.result["rows"] == 10_000
        assert (run.result["last"], run.result["raw"]) == (f"{9_999:099d}", 2 * MIB)
        moments.add(run.crash)
    kept = entries(run)
    shown = kept["table#1"]["result_dataref"]
    body = Rows(rows=[f"{number:099d}" for number in range(10_000)]).model_dump_json().encode()
    assert (shown["bytes"], shown["content_type"]) == (len(body), "application/json")
    assert shown["url"].endswith(f"/blobs/{hashlib.sha256(body).hexdigest()}")
    assert kept["raw#1"]["result_dataref"]["content_type"] == "application/octet-stream"
    assert kept["table#2"]["result"]["rows"] == [f"{number:099d}" for number in range(3)], "small ones stand in it"
    assert not {"result", "result_base64"} & kept["table#1"].keys()
    assert {f"keeping {len(body)} bytes", f"{len(body)} bytes kept", f"reading {len(body)} bytes"} <= moments


def test_what_is_just_large_enough() -> None:
    @mesh.durable
    async def handler(ctx: mesh.Context) -> list[int]:
        return [len(await ctx.step("text", str.ljust, "", size)) for size in (LARGE_BYTES - 2, LARGE_BYTES - 1)]

    run = testing.run(handler)
    assert run.result == [LARGE_BYTES - 2, LARGE_BYTES - 1]
    assert ["result_dataref" in one for one in run.journal] == [False, True]


@pytest.mark.parametrize("size", [INLINE_BYTES, MIB >> 1], ids=["small", "large"])
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "plain"])
def test_a_blob(tmp_path: Path, size: int, declared: bool) -> None:
    """A file of one's own may change afterwards: what a replay reads is what was returned, with its type."""
    mine = tmp_path / "report.pdf"

    def write(text: str) -> Any:
        mine.write_bytes(text.encode() * size)
        return mesh.Blob(mine, content_type="application/pdf")

    def temporary() -> mesh.Blob:
        made = mesh.Blob.temporary(content_type="text/plain")
        with made.writing() as file:
            file.write(b"t" * size)
        return made

    @mesh.durable
    async def handler(ctx: mesh.Context) -> list[Any]:
        first = await ctx.step("write", write, "a", out=mesh.Blob if declared else None)
        second = await ctx.step("write", write, "b", out=mesh.Blob if declared else None)
        third = await ctx.step("temporary", temporary)
        await ctx.sleep(60)
        read = [(len(one.read()), one.read()[:1].decode(), one.content_type) for one in (first, second, third)]
        return [list(one) for one in read]

    for run in testing.interrupted(handler):
        assert run.result == [[size, "a", "application/pdf"], [size, "b", "application/pdf"], [size, "t", "text/plain"]]
    assert {one["result_type"] for one in run.journal if one["kind"] == "step"} == {"application/pdf", "text/plain"}


def test_a_blob_that_was_not_declared_is_refused() -> None:
    @mesh.durable
    async def handler(ctx: mesh.Context) -> None:
        await ctx.step("blob", lambda: mesh.Blob(data=b"1"), out=int, retry=mesh.Retry(attempts=1))

    assert "is declared as mesh.Blob" in (testing.run(handler).failure or "")


def test_what_goes_through_memory_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    for room in (large, blobs):
        monkeypatch.setattr(room, "RESULT_BYTES_MAX", MIB)

    @mesh.durable
    async def handler(ctx: mesh.Context) -> str:
        try:
            return await ctx.step("large", lambda: "x" * MIB)
        except mesh.StepFailed as error:
            return error.message

    run = testing.run(handler)
    assert "give a mesh.Blob" in run.result
    assert run.executions == {"large#1": 1}


def test_a_mesh_that_keeps_no_large_payloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """P221: what an entry can take stands in it, as ever; more fails its step, once, and says what to do."""

    async def keep(*_: Any) -> None:
        return None

    monkeypatch.setattr(MemoryLink, "keep", keep)
    blob = mesh.Blob(data=b"x" * MIB)

    @mesh.durable
    async def handler(ctx: mesh.Context) -> list[str]:
        told = [str(len(await ctx.step("fits", lambda: "x" * (MIB >> 1))))]
        told.append(str((await ctx.step("blob", lambda: mesh.Blob(data=b"x" * (MIB >> 1)), out=mesh.Blob)).size))
        for name, make, out in (("text", lambda: "x" * MIB, None), ("file", lambda: blob, mesh.Blob)):
            try:
                await ctx.step(name, make, out=out)
            except mesh.StepFailed as error:
                told.append(error.message)
        await ctx.sleep(60)
        return told

    run = testing.run(handler)
    assert run.result[:2] == [str(MIB >> 1)] * 2
    assert len(run.result) == 4
    assert all("[blobs] url" in one for one in run.result[2:])
    assert set(run.executions.values()) == {1}


def missing(times: int) -> Callable[..., Any]:
    """A fetch that finds nothing so often."""
    fetch = MemoryLink.fetch

    async def later(link: MemoryLink, ref: Reference, *, as_file: bool) -> mesh.Blob:
        effects.append("asked")
        if effects.count("asked") <= times:
            raise BlobMissing("it is not there")
        return await fetch(link, ref, as_file=as_file)

    return later


def test_what_is_missing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its step never runs again; the attempt ends, counts for nothing, and says why."""
    monkeypatch.setattr(MemoryLink, "fetch", missing(3))
    whole = MemoryLink.put_off
    told: list[tuple[str, str]] = []

    def put_off(link: MemoryLink, kind: str, message: str) -> Any:
        told.append((kind, message))
        return whole(link, kind, message)

    monkeypatch.setattr(MemoryLink, "put_off", put_off)
    run = testing.run(collect)
    assert run.result["rows"] == 10_000
    assert set(run.executions.values()) == {1}
    assert len(told) == 3
    assert told[0][0] == "BLOB_MISSING"
    assert "table#1" in told[0][1]


def test_what_else_runs_goes_on_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step in another branch is not cut off by it."""
    monkeypatch.setattr(MemoryLink, "fetch", missing(2))

    async def slow() -> str:
        await sleep(300)
        return "done"

    @mesh.durable
    async def handler(ctx: mesh.Context) -> list[Any]:
        async def first() -> int:
            return len((await ctx.step("table", table, 10_000)).rows)

        async def second() -> str:
            await ctx.sleep(60)
            return await ctx.step("slow", slow)

        gathered = await ctx.gather({"rows": first, "slow": second})
        return list(gathered.results.values())

    run = testing.run(handler)
    assert run.result == [10_000, "done"]
    assert effects.count("asked") == 3
    assert set(run.executions.values()) == {1}
    assert run.attempts == 2, "both waits were within one attempt"


def test_an_entry_that_refers_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written by another hand: said, and not run again."""

    async def keep(*_: Any) -> dict[str, Any]:
        return {"somewhere": "else"}

    monkeypatch.setattr(MemoryLink, "keep", keep)
    run = testing.run(collect)
    assert run.state == "failed"
    assert "url, digest" in (run.failure or "")
    assert run.executions == {"table#1": 1}
