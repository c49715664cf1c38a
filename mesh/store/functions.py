"""Calling the Function library: one place that packs arguments, sends, and tells refusals from faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from mesh.errors import MeshError, StoreUnavailable
from mesh.store.keys import Keys
from mesh.store.layout import encode
from mesh.store.library import NAME, source
from mesh.store.link import Link, StoreReply
from mesh.store.merging import MERGED_BYTES_MAX, Merging, Parts

R = TypeVar("R")


class Refused(MeshError):
    """A function refused; `word` is its MESH_ word, `detail` what it said. Mapped to outcomes by the verbs."""

    def __init__(self, word: str, detail: str) -> None:
        super().__init__(f"the store refused: {word} {detail}", code=word.lower())
        self.word = word
        self.about = detail


async def load_library(call: Any) -> None:
    """Load the library, or replace one of other content. Run by the gate on every new connection."""
    text = source()
    known = await call("FUNCTION", "LIST", "LIBRARYNAME", NAME, "WITHCODE")
    if known:
        fields = dict(zip(known[0][::2], known[0][1::2], strict=True))
        if fields[b"library_code"] == text.encode():
            return
    await call("FUNCTION", "LOAD", "REPLACE", text)


class Functions:
    """The functions of one partition over one link."""

    def __init__(self, link: Link, partition: str) -> None:
        self.link = link
        self.keys = Keys(partition)

    async def fcall(self, verb: str, arguments: object, *payload: bytes) -> list[Any]:
        """One transition. Raises Refused, StoreUnavailable, OutcomeUnknown."""
        return await self.called(verb, encode(arguments), *payload)

    async def called(self, verb: str, *parts: bytes) -> list[Any]:
        """The same with all arguments as the function reads them."""
        try:
            return await self.link.call(b"FCALL", verb, 1, self.keys.root, *parts)
        except StoreReply as reply:
            return await self._again(reply, verb, *parts)

    async def merged(
        self, merging: Merging, verb: str, parts: Parts, read: Callable[[list[Any]], R],
        refused: Callable[[Refused], R], *, rides: bool = False,
    ) -> R:  # fmt: skip
        """The same for a verb that every operation comes by: it travels with those of its kind of this turn.

        `rides`: as in Link.join. What the reply says is for `read` or `refused`, so that no coroutine has to stand
        between this and the caller.
        """
        try:
            if sum(map(len, parts)) <= MERGED_BYTES_MAX:
                reply = await self.link.join(merging, verb, parts, rides=rides)
            else:
                reply = await self.link.call(b"FCALL", verb, 1, self.keys.root, *parts)
        except StoreReply as fault:
            try:
                reply = await self._again(fault, verb, *parts)
            except Refused as refusal:
                return refused(refusal)
        return read(reply)

    async def _again(self, reply: StoreReply, verb: str, *parts: bytes) -> list[Any]:
        """After an error reply: raises what it means, or repeats what was not applied."""
        if "Function not found" not in reply.text:
            raise meaning(reply) from reply
        try:  # somebody flushed the functions: put them back
            await load_library(self.link.call)
            return await self.link.call(b"FCALL", verb, 1, self.keys.root, *parts)
        except StoreReply as second:
            raise meaning(second) from second


def meaning(reply: StoreReply) -> MeshError:
    """What an error reply stands for: a refusal of the function, or trouble of the store."""
    if reply.text.startswith("MESH_"):
        word, _, detail = reply.text[5:].partition(" ")
        return Refused(word, detail)
    return StoreUnavailable(f"the store answered {reply.text!r}")
