"""`python -m tests.agents.copier push|pull`: an agent whose inputs and results are payloads of any size."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import mesh
from mesh.blob import PIECE_BYTES
from mesh.clock import sleep


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


def main() -> None:
    name, mode = sys.argv[1:3]
    options: dict[str, Any] = {"mode": "pull", "instance": "one"} if mode == "pull" else {"answer_within_ms": 100}
    mesh.serve(name, [copy, flip, late, length, repeat], lease_ms=1000, **options)


if __name__ == "__main__":
    main()
