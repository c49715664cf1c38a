"""A frame of which one answer cannot be read: the others are taken apart from it. Pure.

Only for frames that no decoder takes as a whole. Looks at strings, brackets and commas; what is JSON the decoders say.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

TOKENS_MAX: Final = 500_000
"""Strings, runs of brackets and commas looked at: a frame with more is refused as a whole."""

# A string without its end goes to the end of the body: looked for again from each quote in it, it took the square.
_tokens: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*"?|[\[{]+|[\]}]+|,', re.DOTALL).finditer
_MEMBER: Final = 1
_ELEMENT: Final = 2


class Parts(NamedTuple):
    """The body with the list empty, and what stood in the list, each element as it came."""

    rest: bytes
    elements: list[bytes]


def take_apart(body: bytes, name: bytes) -> Parts | None:
    """Member `name`, a list, of the object that `body` is; None where it is not to be found."""
    depth = 0
    begin = at = -1
    elements: list[bytes] = []
    key = b'"%b"' % name
    named = False
    for number, token in enumerate(_tokens(body)):
        if number == TOKENS_MAX:
            return None
        text = token.group()
        first = text[:1]
        if first in b"[{":
            if named and depth == _MEMBER and first == b"[" and begin < 0:
                begin = at = token.start() + 1
            depth += len(text)
        elif first in b"]}":
            if begin >= 0 and depth - len(text) < _ELEMENT:
                end = token.start() + depth - _ELEMENT
                if elements or body[at:end].strip():
                    elements.append(body[at:end])
                return Parts(body[:begin] + body[end:], elements)
            depth -= len(text)
        elif first == b"," and begin >= 0 and depth == _ELEMENT:
            elements.append(body[at : token.start()])
            at = token.end()
        # A key at this depth, unless it is a value; a list behind a value is behind a comma too.
        named = depth == _MEMBER and text == key
    return None
