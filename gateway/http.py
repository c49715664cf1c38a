"""ASGI in front of FastAPI: hot routes for servers other than our own, and bodies within bounds.

`mesh/edge` answers hot routes straight from the socket; this is the same for whoever serves the app another way, and
for the declared FastAPI routes. Knows no operation.
"""

from __future__ import annotations

import asyncio
from typing import Any

from mesh.edge import Answer, HotRoute, Request, Routes, serve
from mesh.edge.bodies import Caller, Receive, Scope, Send, read_body, request_of, send_answer
from mesh.errors import MeshError


class Front:
    """ASGI: hot routes first, everything else to `app` (specs/protocol.md). `hot` is what mesh/edge looks for."""

    def __init__(self, app: Any, hot: Routes) -> None:
        self.app = app
        self.hot = hot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (route := self.hot.find(scope["method"], scope["raw_path"])) is None:
            await self.app(scope, receive, send)
            return
        await send_answer(await self.serve(route, scope, receive), scope, send)

    async def serve(self, route: HotRoute, scope: Scope, receive: Receive) -> Answer:
        """The answer of `route` to an ASGI request."""
        caller = Caller(receive)
        request = request_of(scope, caller)
        try:
            if request.method not in ("GET", "HEAD"):
                await read_body(request, receive, self.hot, route)
        except MeshError as error:
            _abandon(request)
            return route.render(error)
        # A task of its own, for it may answer and go on.
        running = asyncio.ensure_future(_run(route, request))
        try:
            await asyncio.wait((running, caller.answered), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            running.cancel()
            raise
        if caller.answered.done():
            return caller.answered.result()
        return running.result() or await caller.answered


async def _run(route: HotRoute, request: Request) -> Answer | None:
    try:
        return await serve(route, request)
    finally:
        _abandon(request)


def _abandon(request: Request) -> None:
    if request.intake is not None:
        request.intake.abandon()
