"""The five lines of `import mesh`'s docstring, as a module that `uvicorn tests.agents.greeter:agent` serves too."""

from __future__ import annotations

import mesh


async def greet(name: str) -> str:
    """Say hello."""
    return f"Hello, {name}!"


agent = mesh.Agent("greeter", [greet])
