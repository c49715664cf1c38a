"""Where a request goes: an absolute http(s) URL read by one strict parser, and the addresses it may go to.

Check and send share this parser, so that no two readings of one URL exist (docs/why/attacks.md S2, S6, S7). It
must not know which hosts are allowed (gateway/egress.py), nor how to connect (dial.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from mesh.errors import Malformed

URL_BYTES_MAX = 4096
HOST_BYTES_MAX = 253
PORT_MAX = 65535

_DEFAULT_PORTS = {"http": 80, "https": 443}
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?]*)(?P<path>/[^?]*)?(?:\?(?P<query>.*))?")
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""A last label of this form makes resolvers read the whole host as an IPv4 number (`127.1`, `0x7f000001`)."""


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed URL. Equal origins share connections; `addresses`, when given, are the only ones connected to.

    scheme     `http` or `https`
    host       lower-case name, or the canonical text of an IP address, without brackets
    port       1..65535, filled in from the scheme
    path       the request target of the URL itself, path and query, at least `/`
    addresses  IP addresses in text; empty means that the pool resolves `host` when it connects
    """

    scheme: str
    host: str
    port: int
    path: bytes = b"/"
    addresses: tuple[str, ...] = ()
    origin: str = field(init=False, repr=False, compare=False)
    """`scheme://host:port`: what the pool keeps connections under and errors name (never path or query)."""
    tail: bytes = field(init=False, repr=False, compare=False)
    """The constant lines of every request head to this host, from the HTTP version on."""

    def __post_init__(self) -> None:
        host = f"[{self.host}]" if ":" in self.host else self.host
        shown = host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"
        tail = b" HTTP/1.1\r\nhost: %b\r\naccept-encoding: identity\r\n" % shown.encode("ascii")
        object.__setattr__(self, "origin", f"{self.scheme}://{host}:{self.port}")
        object.__setattr__(self, "tail", tail)

    @classmethod
    def parse(cls, url: str) -> Target:
        """Read an absolute URL; no policy, no look-up. An IP literal has itself as its only address.

        Raises Malformed (code `url_invalid`) for anything but plain `http(s)://host[:port][/path][?query]` in
        visible ASCII: userinfo, fragments, backslashes, zone ids, other spellings of IPv4, names that are not
        letters, digits, hyphens and underscores.
        """
        if len(url) > URL_BYTES_MAX:
            raise _invalid(f"the URL is longer than {URL_BYTES_MAX} bytes")
        if _VISIBLE.fullmatch(url) is None:
            raise _invalid("the URL holds spaces, control or non-ASCII characters; percent-encode them")
        if "\\" in url or "#" in url:
            raise _invalid("the URL holds a backslash or a fragment (#...); remove it")
        match = _URL.fullmatch(url)
        if match is None:
            raise _invalid("the URL is not absolute; write http(s)://host/path")
        scheme = match["scheme"].lower()
        if scheme not in _DEFAULT_PORTS:
            raise _invalid(f"the URL's scheme is {scheme}; use https (or http)")
        host, port = _authority(match["authority"], _DEFAULT_PORTS[scheme])
        query = match["query"]
        path = (match["path"] or "/") + ("" if query is None else f"?{query}")
        literal = address_of(host)
        if literal is None:
            return cls(scheme, host, port, path.encode("ascii"))
        return cls(scheme, str(literal), port, path.encode("ascii"), (str(literal),))

    def pinned(self, addresses: tuple[str, ...]) -> Target:
        """The same target, to be connected to at these addresses only."""
        return replace(self, addresses=addresses)

    def under(self, path: bytes, query: bytes = b"") -> bytes:
        """The request target for `path` (starts with `/`, already percent-encoded) below this URL.

        The URL's own query is kept in front of `query`.
        """
        return under(self.path, path, query)


def under(url_path: bytes, path: bytes, query: bytes = b"") -> bytes:
    """As `Target.under`, for a target's own `path`."""
    base, _, own = url_path.partition(b"?")
    joined = base.rstrip(b"/") + path
    queries = b"&".join([part for part in (own, query) if part])
    return joined + b"?" + queries if queries else joined


@lru_cache(1024)
def address_of(host: str) -> IPv4Address | IPv6Address | None:
    """The address that `host` spells canonically, or None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def _authority(authority: str, default_port: int) -> tuple[str, int]:
    if "@" in authority:
        raise _invalid("the URL carries a user name or password; send credentials in a header")
    host, colon, port = authority.rpartition(":") if not authority.endswith("]") else (authority, "", "")
    if not colon:
        host = authority
    if colon and (_PORT.fullmatch(port) is None or int(port) > PORT_MAX):
        raise _invalid(f"the URL's port is not a number from 1 to {PORT_MAX}")
    return _host(host.lower()), int(port) if colon else default_port


def _host(host: str) -> str:
    if host.startswith("["):
        if not host.endswith("]") or "%" in host or not isinstance(address_of(host[1:-1]), IPv6Address):
            raise _invalid("the URL's bracketed host is not a plain IPv6 address (zone ids are not accepted)")
        return host[1:-1]
    labels = host.split(".")
    if len(host) > HOST_BYTES_MAX or not all(_LABEL.fullmatch(label) for label in labels):
        raise _invalid("the URL's host is not a name of letters, digits, hyphens and dots, nor an IP address")
    if _NUMERIC_LABEL.fullmatch(labels[-1]) and not isinstance(address_of(host), IPv4Address):
        raise _invalid("the URL's host is an unusual spelling of an IPv4 address; write it as a.b.c.d")
    return host


def _invalid(detail: str) -> Malformed:
    return Malformed(f"{detail}.", code="url_invalid")
