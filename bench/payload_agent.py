"""`python -m bench.payload_agent URL`: an agent that gives back what it is sent, whatever its size."""

from __future__ import annotations

import sys

import mesh


async def copy(payload: mesh.Blob) -> mesh.Blob:
    """The input again."""
    return payload


if __name__ == "__main__":
    mesh.serve("payload", [copy], gateway=sys.argv[1])
