"""An agent: `mesh dev` in one terminal, this in another."""

import mesh


async def greet(name: str) -> str:
    return f"Hello, {name}!"


mesh.serve("greeter", [greet])
