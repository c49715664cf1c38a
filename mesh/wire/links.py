"""`Nexus-Link`: reading and writing, nothing about what a link means.

Reads what the reference decoder reads, and commas inside `<>`, where that decoder fails; writes only what it can read.
A request with a bad link is refused; in a reply it is left out, for the result that it came with counts more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from mesh.errors import Malformed

LINKS_MAX: Final = 32
LINK_URL_BYTES_MAX: Final = 4096
LINKS_BYTES_MAX: Final = 8192
"""All links of one reply; they travel on in the headers of an answer and of a callback."""

# Linear whatever the input: possessive but for the group, which begins with `;` and so matches in one way. As a
# possessive group CPython before 3.11.5 takes a `;` with nothing after it (python/cpython#101955).
_link = re.compile(
    r"[ \t]*+<[ \t]*+([!-;=?-~]++)[ \t]*+>"
    r'((?:[ \t]*+;[ \t]*+[^\s;,="<>]++[ \t]*+=[ \t]*+(?:"[^"]*+"|[^\s;,"<>]*+))+)'
    r"[ \t]*+(,|$)"
).match
_parameters = re.compile(r';[ \t]*+([^\s;,="<>]++)[ \t]*+=[ \t]*+(?:"([^"]*+)"|([^\s;,"<>]*+))').findall
_type = re.compile(r"[A-Za-z0-9_./]+").fullmatch
_url = re.compile(r"[!-;=?-~]+").fullmatch
_next = re.compile(r",[ \t]*(?=<)").split
_bad_escape = re.compile(r"%(?![0-9A-Fa-f]{2})").search


class Link(NamedTuple):
    """A resource beside an operation. `type` says how to read `url`; it has alphanumerics, `_`, `.`, `/`."""

    url: str
    type: str


def _check(url: str, link_type: str) -> Link:
    if len(url) > LINK_URL_BYTES_MAX:
        raise Malformed(f"a link's URL is longer than {LINK_URL_BYTES_MAX} bytes", code="link_invalid")
    if not _url(url) or _bad_escape(url) or ";" in url.partition("#")[0].partition("?")[2]:
        raise Malformed("a link's URL is not percent-encoded", code="link_invalid")
    if not _type(link_type):
        raise Malformed("a link needs a type of letters, digits, '_', '.' and '/'", code="link_invalid")
    return Link(url, link_type)


def parse_links(values: Iterable[str]) -> list[Link]:
    """Links of all `Nexus-Link` values, repeated and comma-joined alike, in order (cases 28, 29, 31).

    Raises Malformed: no `<>`, empty URL, bad escape or `;` in the query, no type, unbalanced quotes, too
    many or too long.
    """
    text = ",".join(values)
    if not text:
        return []
    links: list[Link] = []
    start, more = 0, ","
    while more:
        match = _link(text, start)
        if match is None:
            raise Malformed('a link does not read <url>; type="T"', code="link_invalid")
        if len(links) == LINKS_MAX:
            raise Malformed(f"more than {LINKS_MAX} links", code="link_invalid")
        link_type = ""
        for key, quoted, plain in _parameters(match[2]):
            if key == "type":
                link_type = quoted or plain
        links.append(_check(match[1], link_type))
        start, more = match.end(), match[3]
    return links


def sound_links(values: Iterable[str]) -> list[Link]:
    """The links of a reply that can be read, each once; bad ones, and those beyond the limits, are left out."""
    found: dict[Link, None] = {}
    size = 0
    for value in values:
        for text in _next(value):
            try:
                links = parse_links([text])
            except Malformed:
                continue
            for link in links:
                size += len(link.url) + len(link.type)
                if len(found) < LINKS_MAX and size <= LINKS_BYTES_MAX:
                    found[link] = None
    return [*found]


def format_link(link: Link) -> str:
    """One header value. Commas in the URL are percent-encoded. Raises Malformed on a link nobody could read."""
    url, link_type = _check(*link)
    return f'<{url.replace(",", "%2C")}>; type="{link_type}"'


def format_links(links: Iterable[Link]) -> str:
    """One header value for all links, empty text for none. Raises as `format_link`."""
    return ", ".join(map(format_link, links))
