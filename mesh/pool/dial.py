"""Opening a connection: look-up where the target is not pinned, one address after the other, TLS.

It must not know limits or requests. All it raises is NotSent: nothing was written yet.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from typing import TYPE_CHECKING

from mesh.errors import NotSent
from mesh.pool.connection import Connection, Owner

if TYPE_CHECKING:
    from mesh.pool.target import Target

ADDRESSES_TRIED_MAX = 8


class Dialer:
    """Makes connections. `tls`: context for https; None: system trust, names checked, TLS 1.2 or later."""

    def __init__(self, tls: ssl.SSLContext | None, header_bytes_max: int) -> None:
        self._tls = tls
        self._header_bytes_max = header_bytes_max

    async def dial(self, owner: Owner, loop: asyncio.AbstractEventLoop, target: Target, limit_s: float) -> Connection:
        """A new connection that tells `owner`, before `limit_s` of the loop's clock. Raises NotSent.

        The addresses share the time evenly, so that a dead first one does not eat the chance of the second.
        """
        addresses = target.addresses or await self._look_up(loop, target, limit_s)
        trouble = "it has no address"
        for tried, address in enumerate(addresses[:ADDRESSES_TRIED_MAX]):
            now_s = loop.time()
            left = min(len(addresses), ADDRESSES_TRIED_MAX) - tried
            try:
                async with asyncio.timeout_at(now_s + (limit_s - now_s) / left):
                    return await self._dial_one(owner, loop, target, address)
            except OSError as error:
                trouble = _reason(error)
        message = f"Could not connect to {target.origin}: {trouble}."
        raise NotSent(message)

    async def _dial_one(
        self, owner: Owner, loop: asyncio.AbstractEventLoop, target: Target, address: str
    ) -> Connection:
        connection = Connection(owner, loop, target.origin, address, self._header_bytes_max)
        tls = self._tls_context() if target.scheme == "https" else None
        # SNI, and what the certificate must be made out to: the name, whatever address it leads to.
        name = target.host if tls else None
        try:
            await loop.create_connection(lambda: connection, address, target.port, ssl=tls, server_hostname=name)
        except BaseException:
            connection.drop()
            raise
        if connection.closed:
            message = "it closed the connection at once"
            raise ConnectionError(message)
        return connection

    async def _look_up(self, loop: asyncio.AbstractEventLoop, target: Target, limit_s: float) -> tuple[str, ...]:
        try:
            async with asyncio.timeout_at(limit_s):
                found = await loop.getaddrinfo(target.host, target.port, proto=socket.IPPROTO_TCP)
        except (OSError, UnicodeError) as error:
            message = f"Could not resolve {target.host}: {_reason(error)}."
            raise NotSent(message) from error
        return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            # Not create_default_context: that one writes session keys where SSLKEYLOGFILE says.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_default_certs()
            context.set_alpn_protocols(["http/1.1"])
            self._tls = context
        return self._tls


def _reason(error: Exception) -> str:
    """What went wrong, without the address: callers read this and need not learn where a name leads."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate was refused ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason})"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return str(error.strerror)
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error)[:200] or type(error).__name__
