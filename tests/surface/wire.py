"""HTTP/1.1 with bare hands, for both ends of a test: what is asked leaves byte for byte, what comes is kept as it came.

No client library stands between, for these normalise paths, drop repeated headers and mend what is broken.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Self

Pairs = Sequence[tuple[str, str]] | Mapping[str, str]


def pairs(headers: Pairs) -> list[tuple[str, str]]:
    return list(headers.items()) if isinstance(headers, Mapping) else list(headers)


class Message:
    """The head and body of a request or an answer. Names in lower case, in order, repeats kept."""

    def __init__(self, start: str, headers: list[tuple[str, str]], body: bytes) -> None:
        self.start = start
        self.headers = headers
        self.body = body

    def all(self, name: str) -> list[str]:
        return [value for known, value in self.headers if known == name]

    def __getitem__(self, name: str) -> str:
        found = self.all(name)
        assert len(found) == 1, f"{name}: {found} in {self.headers}"
        return found[0]

    def get(self, name: str) -> str | None:
        return next(iter(self.all(name)), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"{self.start}\n{self.headers}\n{self.body[:2000]!r}"


class Answer(Message):
    @property
    def status(self) -> int:
        return int(self.start.split(" ")[1])

    @property
    def code(self) -> str:
        """The stable word of an error, of either surface."""
        if self["content-type"] == "application/problem+json":
            return self.json["code"]
        return self.json["metadata"].get("code", self.json["details"].get("type"))


async def read_head(reader: asyncio.StreamReader) -> tuple[str, list[tuple[str, str]]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    start, *lines = head[:-4].split("\r\n")
    split = (line.partition(":") for line in lines)
    return start, [(name.lower(), value.strip()) for name, _, value in split]


async def read_body(reader: asyncio.StreamReader, headers: list[tuple[str, str]], *, to_end: bool) -> bytes:
    fields = dict(headers)
    if fields.get("transfer-encoding") == "chunked":
        return b"".join([chunk async for chunk in read_chunks(reader)])
    if "content-length" in fields:
        return await reader.readexactly(int(fields["content-length"]))
    return await reader.read() if to_end else b""


async def read_chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int(await reader.readline(), 16):
        yield await reader.readexactly(size)
        await reader.readline()
    await reader.readline()


class Connection:
    """One connection of a caller."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> Self:
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 20))

    def send(self, method: str, target: str, headers: Pairs = (), body: bytes = b"") -> None:
        given = pairs(headers)
        names = {name.lower() for name, _ in given}
        if "host" not in names:
            given = [("host", "localhost"), *given]
        if method not in ("GET", "HEAD") and not names & {"content-length", "transfer-encoding"}:
            given.append(("content-length", str(len(body))))
        lines = "".join(f"{name}: {value}\r\n" for name, value in given)
        self.writer.write(f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body)

    async def answer(self) -> Answer:
        start, headers = await read_head(self.reader)
        answer = Answer(start, headers, b"")
        if answer.status not in (204, 304):
            answer.body = await read_body(self.reader, headers, to_end=True)
        return answer

    async def close(self) -> None:
        self.writer.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def ask(
    port: int, method: str, target: str, headers: Pairs = (), body: bytes = b"", *, within_s: float = 20.0
) -> Answer:
    """One request on a connection of its own."""
    async with asyncio.timeout(within_s), await Connection.open(port) as connection:
        connection.send(method, target, headers, body)
        return await connection.answer()
