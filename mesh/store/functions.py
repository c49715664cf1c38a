"""Calling the Function library: one place that packs arguments, sends, and tells refusals from faults."""

from __future__ import annotations

from typing import Any

from mesh.errors import MeshError, StoreUnavailable
from mesh.store.keys import Keys
from mesh.store.layout import encode
from mesh.store.library import NAME, source
from mesh.store.link import Link, StoreReply

type_of_reply = list[Any]


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
        packed = encode(arguments)
        try:
            return await self.link.call(b"FCALL", verb, 1, self.keys.root, packed, *payload)
        except StoreReply as reply:
            if "Function not found" not in reply.text:
                raise _meaning(reply) from reply
        # Somebody flushed the functions: put them back and repeat, nothing was applied.
        try:
            await load_library(self.link.call)
            return await self.link.call(b"FCALL", verb, 1, self.keys.root, packed, *payload)
        except StoreReply as reply:
            raise _meaning(reply) from reply


def _meaning(reply: StoreReply) -> MeshError:
    """What an error reply stands for: a refusal of the function, or trouble of the store."""
    if reply.text.startswith("MESH_"):
        word, _, detail = reply.text[5:].partition(" ")
        return Refused(word, detail)
    return StoreUnavailable(f"the store answered {reply.text!r}")
