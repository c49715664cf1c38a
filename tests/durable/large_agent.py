"""`python -m tests.durable.large_agent NAME push|pull DIRECTORY ATTEMPTS`: an agent of steps with large results.

Each call of a step is a line in a file.

What it computes differs from process to process: whoever computes a recorded step again gives another result.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import mesh
from mesh.clock import sleep

TABLE_BYTES = 5 << 20
FILE_BYTES = 3 << 20


def effect(key: str) -> None:
    with Path(sys.argv[3], "effects").open("a") as file:
        file.write(json.dumps({"key": key, "pid": os.getpid()}) + "\n")


async def opened(gate: str) -> None:
    """Until the file `gate` is there; without a name there is none."""
    while gate and not os.path.exists(os.path.join(sys.argv[3], gate)):  # noqa: ASYNC240, PTH110, PTH118 - it is quick
        await sleep(0.02)


async def table(key: str, gate: str) -> str:
    """5 MiB of JSON."""
    effect(key)
    await opened(gate)
    return str(os.getpid()).zfill(16) * (TABLE_BYTES // 16)


def file(key: str) -> mesh.Blob:
    effect(key)
    made = mesh.Blob.temporary(content_type="application/x-file")
    with made.writing() as out:
        out.write(os.getpid().to_bytes(8, "big") * (FILE_BYTES // 8))
    return made


async def wait(key: str, gate: str) -> None:
    effect(key)
    await opened(gate)


@mesh.durable
async def build(ctx: mesh.Context, gates: dict[str, str]) -> dict[str, Any]:
    """Two large steps, and one that waits for the file `gates["end"]`."""
    text = await ctx.step("table", table, gate=gates.get("table", ""))
    blob = await ctx.step("file", file)
    await ctx.step("wait", wait, gate=gates["end"])
    return {"table": hashlib.sha256(text.encode()).hexdigest(), "file": blob.sha256, "type": blob.content_type}


async def big_table(gate: str) -> str:
    """As a child: 5 MiB of JSON."""
    return await table("child", gate)


async def big_file(gate: str) -> mesh.Blob:
    return file("child")


@mesh.durable
async def family(ctx: mesh.Context, gates: dict[str, str]) -> dict[str, Any]:
    """Two children with large results, through a gather, and a step that waits for the file `gates["end"]`."""
    name = sys.argv[1]
    gathered = await ctx.gather(
        {
            "table": ctx.call(name, name, "big_table", "", name="table"),
            "file": ctx.call(name, name, "big_file", "", name="file", out=mesh.Blob),
        }
    )
    await ctx.step("wait", wait, gate=gates["end"])
    text, blob = gathered.require().results.values()
    return {"table": hashlib.sha256(text.encode()).hexdigest(), "file": blob.sha256, "type": blob.content_type}


def main() -> None:
    name, mode, _, attempts = sys.argv[1:5]
    options: dict[str, Any] = {"mode": "pull", "instance": f"pid-{os.getpid()}"} if mode == "pull" else {}
    retry = {"initial_ms": 50, "max_attempts": int(attempts)}
    mesh.serve(name, [build, family, big_table, big_file], lease_ms=1000, policy={"retry": retry}, **options)


if __name__ == "__main__":
    main()
