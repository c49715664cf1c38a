"""For the authors of durable handlers: run them in a test, without a gateway, in virtual time, with injected crashes.

kit.py   run, interrupted: what a test calls        loop.py  a loop whose time jumps
memory.py  a mesh for one operation, in memory
"""

from __future__ import annotations

from mesh.testing.kit import Run, interrupted, run
from mesh.testing.loop import Stuck

__all__ = ["Run", "Stuck", "interrupted", "run"]
