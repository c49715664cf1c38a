"""Which addresses are not public, and what an operator may write to open them. Pure data and its reading.

The table is our own: the standard library calls NAT64 and 6to4 forms of loopback, multicast and site-local addresses
"global" (docs/why/attacks.md S1, S3).
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import NamedTuple

from mesh.errors import ConfigError, Malformed
from mesh.pool.target import PORT_MAX, Target, address_of

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LOOPBACK, PRIVATE, EXPLICIT, NEVER = "loopback", "private", "explicit", "never"
"""What opens a range: `allow_loopback` or any rule; any rule; a CIDR rule inside the range; nothing at all.

EXPLICIT holds what nobody means by a rule such as 0.0.0.0/0 or by a host name: metadata services above all.
"""


class Span(NamedTuple):
    """A range of addresses that is not public."""

    network: Network
    opened_by: str
    words: str


SPANS = tuple(
    Span(ip_network(network), opened_by, words)
    for network, opened_by, words in [
        # IANA special-purpose registry and cloud metadata services; the first match counts.
        ("0.0.0.0/8", NEVER, "this host (RFC 1122)"),
        ("10.0.0.0/8", PRIVATE, "private (RFC 1918)"),
        ("100.100.100.200/32", EXPLICIT, "a metadata service"),
        ("168.63.129.16/32", EXPLICIT, "a metadata service"),
        ("100.64.0.0/10", PRIVATE, "shared by carriers (RFC 6598)"),
        ("127.0.0.0/8", LOOPBACK, "loopback"),
        ("169.254.0.0/16", EXPLICIT, "link-local, metadata services (RFC 3927)"),
        ("172.16.0.0/12", PRIVATE, "private (RFC 1918)"),
        ("192.0.0.0/24", EXPLICIT, "protocol assignments, metadata services (RFC 6890)"),
        ("192.0.2.0/24", EXPLICIT, "documentation (RFC 5737)"),
        ("192.88.99.0/24", EXPLICIT, "6to4 relays (RFC 7526)"),
        ("192.168.0.0/16", PRIVATE, "private (RFC 1918)"),
        ("198.18.0.0/15", PRIVATE, "benchmarking (RFC 2544)"),
        ("198.51.100.0/24", EXPLICIT, "documentation (RFC 5737)"),
        ("203.0.113.0/24", EXPLICIT, "documentation (RFC 5737)"),
        ("224.0.0.0/4", NEVER, "multicast"),
        ("255.255.255.255/32", NEVER, "broadcast"),
        ("240.0.0.0/4", EXPLICIT, "reserved (RFC 1112)"),
        ("::1/128", LOOPBACK, "loopback"),
        ("::/96", NEVER, "unspecified, or IPv4-compatible (RFC 4291)"),
        ("fd00:ec2::254/128", EXPLICIT, "a metadata service"),
        ("fd20:ce::254/128", EXPLICIT, "a metadata service"),
        ("fc00::/7", PRIVATE, "unique local (RFC 4193)"),
        ("fe80::/10", NEVER, "link-local"),
        ("fec0::/10", EXPLICIT, "site-local (RFC 3879)"),
        ("ff00::/8", NEVER, "multicast"),
        ("2001::/32", NEVER, "a Teredo tunnel"),
        ("2001::/23", EXPLICIT, "protocol assignments (RFC 2928)"),
        ("2001:db8::/32", EXPLICIT, "documentation (RFC 3849)"),
        ("2002::/16", NEVER, "a 6to4 tunnel"),
        ("3fff::/20", EXPLICIT, "documentation (RFC 9637)"),
        # All IPv6 outside 2000::/3: IPv4-translated, local NAT64, discard-only, segment routing, not assigned.
        ("::/3", EXPLICIT, "not global unicast"),
        ("4000::/2", EXPLICIT, "not global unicast"),
        ("8000::/1", EXPLICIT, "not global unicast"),
    ]
)
_NAT64 = IPv6Network("64:ff9b::/96")
_IN_TUNNEL = Span(IPv6Network("::/0"), NEVER, "an ISATAP tunnel (RFC 5214)")
_ISATAP = (0x00005EFE, 0x02005EFE)


def judged(address: Address) -> Address:
    """The address that traffic ends at: the IPv4 address inside an IPv4-mapped or NAT64 (RFC 6052) one, else itself."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


@lru_cache(1024)
def span_of(address: Address) -> Span | None:
    """The first range of the table that holds a `judged` address; None for a public one."""
    if isinstance(address, IPv6Address) and (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        return _IN_TUNNEL
    return next((span for span in SPANS if span.network.version == address.version and address in span.network), None)


class Rule(NamedTuple):
    """One `allow` rule: a network or a name (`*.name`: everything below it), and a port or None for all."""

    network: Network | None
    name: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Rule:
        """`10.0.0.0/8`, `10.1.2.3:8080`, `[fd00::/8]:*`, `agents.example:8443`, `*.example`. Raises ConfigError."""
        bracketed = re.fullmatch(r"\[(.*)\](:.*)?", text)
        if bracketed is not None:
            host, port = bracketed[1], bracketed[2] or ":*"
        elif text.count(":") > 1:
            host, port = text, ":*"
        else:
            host, colon, rest = text.partition(":")
            port = colon + rest if colon else ":*"
        try:
            number = _port(port[1:])
            if "/" in host or address_of(host) is not None:
                return cls(ip_network(host), "", number)
            name = Target.parse(f"https://{host.removeprefix('*.')}/").host
        except (ValueError, Malformed) as error:
            message = (
                f"The egress rule {text!r} cannot be read: write address, network/bits, name or *.name, then :port."
            )
            raise ConfigError(message) from error
        return cls(None, f"*.{name}" if host.startswith("*.") else name, number)

    def covers(self, address: Address) -> bool:
        """Whether this is a rule for a network that holds `address`."""
        return self.network is not None and self.network.version == address.version and address in self.network

    def points_into(self, network: Network) -> bool:
        """Whether this is a rule for a part of `network`, and so cannot have meant something wider."""
        if isinstance(self.network, IPv4Network):
            return isinstance(network, IPv4Network) and self.network.subnet_of(network)
        return self.network is not None and isinstance(network, IPv6Network) and self.network.subnet_of(network)

    def names(self, host: str) -> bool:
        """Whether this is a rule for the name `host`."""
        return self.network is None and (host == self.name or (self.name[0] == "*" and host.endswith(self.name[1:])))


def _port(text: str) -> int | None:
    if text == "*":
        return None
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= PORT_MAX):
        raise ValueError(text)
    return int(text)
