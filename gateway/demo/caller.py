"""A team of the demo as a caller: the SDK's client, and the few questions that a script asks with plain HTTP.

Everything is repeated while the gateway is away, since it will be killed.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final, Self

import httpx

import mesh
from mesh.clock import monotonic_s, sleep

RETRY_FOR_S: Final = 30.0
RETRY_S: Final = 0.1
TIMEOUT_S: Final = 5.0
PAGE: Final = 200


class Caller:
    """One team's access to the gateway at `url`."""

    def __init__(self, team: str, url: str, key: str) -> None:
        self.team = team
        self.client = mesh.Client(url, key, retry_for_s=RETRY_FOR_S)
        headers = {"authorization": f"Bearer {key}"}
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        await self._http.aclose()

    async def get(self, path: str, **query: Any) -> httpx.Response:
        """A GET that is answered in the end. Raises mesh.GatewayUnreachable."""
        until_s = monotonic_s() + RETRY_FOR_S
        while True:
            try:
                reply = await self._http.get(path, params=query)
                if reply.status_code not in (429, 503):
                    return reply
                trouble = f"{path} answered {reply.status_code}"
            except httpx.TransportError as fault:
                trouble = f"{path}: {fault or type(fault).__name__}"
            if monotonic_s() > until_s:
                raise mesh.Unavailable(trouble)
            await sleep(RETRY_S)

    async def is_ready(self) -> dict[str, Any] | None:
        """What the store promises, once the gateway is ready."""
        try:
            reply = await self._http.get("/readyz")
        except httpx.TransportError:
            return None
        return json.loads(reply.content)["store"] if reply.status_code == 200 else None  # noqa: PLR2004

    async def is_healthy(self, endpoint: str) -> bool:
        """Whether an agent serves the endpoint."""
        reply = await self.get(f"/v1/endpoints/{endpoint}")
        return reply.status_code == 200 and reply.json()["health"] == "healthy"  # noqa: PLR2004

    async def secret(self) -> str:
        """What signs the callbacks of this team."""
        return (await self.get("/v1/webhook-secret")).json()["secret"]

    async def digest(self, operation_id: str) -> str:
        """A digest of the result's bytes, "" while there is none."""
        reply = await self.get(f"/v1/operations/{operation_id}/result")
        return hashlib.sha256(reply.content).hexdigest() if reply.status_code == 200 else ""  # noqa: PLR2004

    async def history(self, operation_id: str) -> list[dict[str, Any]]:
        """All events of an operation."""
        return (await self.get(f"/v1/operations/{operation_id}/events")).json()["items"]

    async def operations(self, **filters: Any) -> list[dict[str, Any]]:
        """The records of this team's operations, newest first."""
        return (await self.get("/v1/operations", limit=PAGE, **filters)).json()["items"]
