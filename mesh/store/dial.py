"""From an address to a usable connection: connect, log in, wait while it loads, fence the old one.

Knows the few commands this takes and nothing else; whether the store may be trusted is the gate's question.
"""

from __future__ import annotations

import asyncio
from typing import Final

from mesh.clock import sleep
from mesh.errors import ConfigError
from mesh.store.address import Address
from mesh.store.connection import Connection, StoreLoading, StoreReply

LOADING_POLL_S: Final = 0.02


async def dial(address: Address, within_s: float) -> Connection:
    """Connect, log in, select the database and wait until the store has loaded its data.

    Raises OSError or TimeoutError (not reachable), StoreUnavailable (lost meanwhile), ConfigError (log-in
    refused).
    `within_s` bounds each step; loading takes as long as it takes.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(within_s):
        if address.path:
            _, connection = await loop.create_unix_connection(Connection, address.path)
        else:
            _, connection = await loop.create_connection(
                Connection, address.host, address.port, ssl=address.tls
            )
    try:
        async with asyncio.timeout(within_s):
            await _log_in(connection, address)
        while not await _loaded(connection, within_s):
            await sleep(LOADING_POLL_S)
    except BaseException:
        connection.abort()
        raise
    return connection


async def _log_in(connection: Connection, address: Address) -> None:
    try:
        if address.password:
            login = (address.username, address.password) if address.username else (address.password,)
            await connection.call("AUTH", *login)
        if address.db:
            await connection.call("SELECT", address.db)
    except StoreLoading:
        return
    except StoreReply as refused:
        raise ConfigError(f"the store at {address} refuses the log-in: {refused.text}") from refused


async def _loaded(connection: Connection, within_s: float) -> bool:
    """Ask what a loading store refuses and a store with a full disk (where PING fails) does not."""
    try:
        async with asyncio.timeout(within_s):
            await connection.call("DBSIZE")
    except StoreLoading:
        return False
    except StoreReply as refused:
        if refused.word == "NOAUTH":
            raise ConfigError(f"the store wants a log-in: {refused.text}") from refused
    return True


class Fence:
    """Ends the previous connection of a link on the server before the next one is used.

    What the server had not read of it would otherwise be carried out later, after the calls sent again and
    newer ones: a store that was stopped and continued reads its sockets in any order.
    """

    def __init__(self) -> None:
        self._previous: tuple[bytes, int] | None = None

    async def raise_on(self, connection: Connection) -> None:
        """Kill the client of last time, if the server still is the same run (each starts ids anew).

        A store that forbids CLIENT KILL is used without: transitions are idempotent and fenced by attempt.
        """
        try:
            info: bytes = await connection.call("INFO", "server")
            own: int = await connection.call("CLIENT", "ID")
            run = next((line for line in info.split(b"\r\n") if line.startswith(b"run_id:")), b"")
            previous, self._previous = self._previous, (run, own)
            if previous is not None and previous[0] == run:
                await connection.call("CLIENT", "KILL", "ID", previous[1])
        except StoreReply:
            return
