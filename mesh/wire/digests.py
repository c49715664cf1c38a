"""`Content-Digest` and `Repr-Digest` (RFC 9530), as far as SHA-256 goes: what a sender says of its bytes.

Other algorithms are left alone, as the RFC wants it of whoever does not know them. Hashes nothing itself.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Final

from mesh.errors import Malformed

CONTENT_DIGEST: Final = b"content-digest"
REPR_DIGEST: Final = b"repr-digest"
_SHA256_BYTES: Final = 32
_member = re.compile(rb"(?:^|,)[ \t]*([a-z*][a-z0-9_.*-]*)=([^,]*)").finditer


def told_digest(first: Mapping[bytes, bytes]) -> str | None:
    """The SHA-256, in hex, that a message's headers say its body has; None when they say nothing of it.

    `first` has the first value of each header by its lower-case name. Of a body without Content-Encoding both headers
    say the same. Raises Malformed (`digest_invalid`): not a byte sequence of 32 bytes, or two that differ.
    """
    told = {found for name in (CONTENT_DIGEST, REPR_DIGEST) if name in first for found in _read(name, first[name])}
    if len(told) > 1:
        raise Malformed("Content-Digest and Repr-Digest name two different SHA-256", code="digest_invalid")
    return told.pop() if told else None


def _read(name: bytes, value: bytes) -> list[str]:
    found: list[str] = []
    for member in _member(value):
        if member[1] != b"sha-256":
            continue
        text = member[2].strip(b" \t")
        try:
            raw = b64decode(text[1:-1], validate=True) if text[:1] == text[-1:] == b":" and len(text) > 1 else b""
        except binascii.Error:
            raw = b""
        if len(raw) != _SHA256_BYTES:
            detail = f"{name.decode().title()} is sha-256=:BASE64: with the 32 bytes of a SHA-256 (RFC 9530)"
            raise Malformed(detail, code="digest_invalid")
        found.append(raw.hex())
    return found


def digest_field(sha256: str) -> str:
    """The value of either header for a SHA-256 in hex."""
    return f"sha-256=:{b64encode(bytes.fromhex(sha256)).decode()}:"


def mismatch(told: str, found: str) -> Malformed:
    """The refusal of a body that is not what its sender said."""
    detail = f"the body has {digest_field(found)} and its sender said {digest_field(told)}: send it again"
    return Malformed(detail, code="digest_mismatch")
