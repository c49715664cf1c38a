"""`python -m tests.agents.copier NAME push|pull DIRECTORY`: an agent of payloads of any size."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import mesh
from mesh.blob import PIECE_BYTES
from mesh.clock import sleep

PAGE_BYTES = 1 << 20


async def copy(payload: mesh.Blob) -> mesh.Blob:
    """The input again."""
    return payload


async def flip(payload: mesh.Blob) -> mesh.Blob:
    """Every byte inverted, piece by piece."""
    flipped = mesh.Blob.temporary(content_type=payload.content_type)
    table = bytes(255 - byte for byte in range(256))

    def work() -> None:
        with flipped.writing() as file:
            for piece in payload:
                file.write(piece.translate(table))

    await asyncio.get_running_loop().run_in_executor(None, work)
    return flipped


async def late(payload: mesh.Blob) -> mesh.Blob:
    """The input again, after the 201."""
    await sleep(0.3)
    return payload


async def length(text: Any) -> int:
    """Of an input in memory."""
    return len(text)


async def repeat(count: int) -> mesh.Blob:
    """So many bytes, of text."""
    made = mesh.Blob.temporary(content_type="text/plain")
    with made.writing() as file:
        for start in range(0, count, PIECE_BYTES):
            file.write(b"x" * min(PIECE_BYTES, count - start))
    return made


async def text(count: int) -> str:
    """A large result of JSON."""
    return "t" * count


@mesh.durable
async def parent(ctx: mesh.Context, payload: mesh.Blob) -> mesh.Blob:
    """A durable handler between a large input, a child's large result and a large result."""
    size = await ctx.step("size", size_of, payload.size)
    await ctx.step("page", page)
    found = await ctx.call(sys.argv[1], sys.argv[1], "text", size // 8)
    if found != "t" * (size // 8):
        message = f"{len(found)} characters came"
        raise ValueError(message)
    return payload


def page() -> mesh.Blob:
    return mesh.Blob(data=b"p" * PAGE_BYTES, content_type="text/x-page")


async def size_of(size: int) -> int:
    return size


def main() -> None:
    name, mode, directory = sys.argv[1:4]
    options: dict[str, Any] = {"mode": "pull", "instance": "one"} if mode == "pull" else {"answer_within_ms": 100}
    handlers = [copy, flip, late, length, repeat, text, parent]
    mesh.serve(name, handlers, lease_ms=1000, blob_directory=directory, **options)


if __name__ == "__main__":
    main()
