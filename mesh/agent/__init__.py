"""The agent side of the SDK: host nexusrpc handlers, register them, complete what takes long.

    serve.py         Agent: the ASGI app                      routes.py      which handler a path means
    host.py          one execution per request id, 201s       inbound.py     a request's head
    runs.py          executions and their memory              outcome.py     how a call ended, as an answer
    completion.py    outcomes on their way out, complete()    codec.py       values and bytes
    leases.py        heartbeats for long work                 context.py     current()
    registration.py  the agent's entry in the registry        server.py      uvicorn around an Agent
"""

from __future__ import annotations

from mesh.agent.completion import complete
from mesh.agent.context import Context, current
from mesh.agent.serve import Agent, serve

__all__ = ["Agent", "Context", "complete", "current", "serve"]
