"""Batches from the clients and from the command line, against a real gateway (P365, P368)."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import mesh
from mesh.errors import Unprocessable
from tests.surface.actors import Actor, as_json
from tests.surface.gateways import Caller, fresh, run

MESH = [sys.executable, "-m", "gateway.cli.main"]


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_start_many(caller: Caller, agent: Actor, kind: str) -> None:
    """P368: handles and errors in the order asked; the same orders again are the same operations."""
    agent.replies(as_json("done"))
    name, url = await caller.register(agent.url), caller.gateway.url()
    with mesh.SyncClient(url) as sync:
        async with mesh.Client(url) as client:
            orders = [client.prepare(name, "svc", "op", number, labels={"n": str(number)}) for number in range(200)]
            orders[7] = client.prepare(name, "svc", "op", 7, delay_ms=-7)

            async def start_many() -> Any:
                if kind == "sync":
                    return await asyncio.to_thread(sync.start_many, orders)
                return await client.start_many(orders)

            found = await start_many()
            assert isinstance(found[7], Unprocessable)
            assert found[7].errors[0]["pointer"] == "/delay_ms"
            handles = [one for one in found if not isinstance(one, mesh.MeshError)]
            assert len({one.id for one in handles}) == 199
            assert await client.result(handles[-1].id, timeout_s=20) == "done"
            again = await start_many()
            assert [one.id for one in again if not isinstance(one, mesh.MeshError)] == [one.id for one in handles]
            assert again[0].replayed


def mesh_(caller: Caller, *arguments: str) -> tuple[int, str]:
    return run([*MESH, *arguments], MESH_URL=caller.gateway.url())


async def test_command_line(caller: Caller, tmp_path: Path) -> None:
    """P368: a file, its refused lines with their numbers; repeated with its key it starts nothing twice."""
    name = await caller.register(None)
    key = fresh("batch")
    file = tmp_path / "orders.ndjson"
    good = json.dumps({"endpoint": name, "service": "s", "operation": "o"})
    file.write_text(f"{good}\n\n{good}\n{{}}\n")
    code, said = await asyncio.to_thread(mesh_, caller, "batch", str(file), "--key", key)
    assert code == 1, said
    assert "2 accepted, 1 refused" in said
    assert "line 4: the body is not a start request" in said
    file.write_text(f"{good}\n\n{good}\n")
    code, said = await asyncio.to_thread(mesh_, caller, "batch", str(file), "--key", key, "--json")
    assert code == 0, said
    outcomes = [json.loads(line) for line in said.splitlines()]
    assert [(one["line"], one["replayed"]) for one in outcomes] == [(1, True), (3, True)]
    code, said = await asyncio.to_thread(mesh_, caller, "batch", str(tmp_path / "none"))
    assert (code, "cannot be read" in said) == (2, True)


async def test_a_file_of_more_than_one_batch(tmp_path: Path) -> None:
    """P368, P367: cut into bodies within the bounds, lines numbered as in the file."""
    from gateway.cli.batch import PART_LINES_MAX, parts  # noqa: PLC0415 - the command's own reader

    file = tmp_path / "many"
    file.write_bytes(b"{}\n" * (PART_LINES_MAX + 2))
    with file.open("rb") as source:
        found = [(part.number, part.first, part.body.count(b"\n")) for part in parts(source)]
    assert found == [(1, 1, PART_LINES_MAX), (2, PART_LINES_MAX + 1, 2)]
