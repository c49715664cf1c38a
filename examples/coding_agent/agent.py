"""A background coding agent: some twenty durable steps on a real source tree. See README.md beside this file."""

from pathlib import Path

import mesh
from gateway.demo.coder import CoderHandler

if __name__ == "__main__":
    mesh.serve("coder", [CoderHandler(Path(".mesh-coder"))])
