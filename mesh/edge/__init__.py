"""HTTP in, for gateways and agents alike: requests, answers, and the socket side that keeps peers within bounds.

`exchange` is one request and its answer, `protocol` uvicorn's connection with bounds and a direct way to hot routes,
`turn` one request on it, `bodies` the same bounds for bodies that come by ASGI.
Knows no route and no operation.
"""

from mesh.edge.exchange import Answer, Headers, HotRoute, Render, Request, Route, Routes, serve

__all__ = ["Answer", "Headers", "HotRoute", "Render", "Request", "Route", "Routes", "serve"]
