"""The one seam for where this gateway may send: URLs of agents and callback receivers, at admission and at every send.

It owns the policy and the name resolution for it. It must not know requests: what comes out is a `Target` pinned to
the addresses that were checked, so that a name cannot lead elsewhere between check and connect (docs/why/attacks.md
S1-S9).

Refused unless a rule or `allow_loopback` says otherwise: addresses that are not public (egress_rules.py), plain http,
ports other than 443.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

from gateway.egress_rules import EXPLICIT, LOOPBACK, NEVER, Address, Rule, judged, span_of
from mesh.clock import monotonic_s
from mesh.errors import Malformed, NotSent
from mesh.pool import Target
from mesh.pool.target import address_of

K = TypeVar("K")
V = TypeVar("V")
Lookup = Callable[[str, int], list[str]]
"""Name and port -> addresses in text, in order of preference. Blocks; raises OSError."""

PUBLIC_PORTS = frozenset({443})
REMEMBERED_S = 5.0
REMEMBERED_MAX = 4096
LOOKUP_TIMEOUT_S = 5.0
LOOKUPS_WAITING_MAX = 256
LOOKUP_THREADS = 8
ADDRESSES_PINNED_MAX = 8


class Egress:
    """Decides and resolves; one per gateway process.

    allow_loopback  development: loopback addresses on any port, plain http to them
    allow           rules as in `Rule.parse`; a rule opens its ports, plain http, and the ranges that rules may open
    forbid          (name or address, port) never sent to, whatever the rules say: the gateway's own listeners, so
                    that a callback cannot call the gateway. `0.0.0.0` and `::` stand for all addresses of the machine.
    ports           the ports of public addresses that need no rule
    remembered_s    how long a checked URL is used again without looking; lookup: the resolver, run in a thread
    """

    def __init__(
        self,
        *,
        allow_loopback: bool = False,
        allow: Iterable[str] = (),
        forbid: Iterable[tuple[str, int]] = (),
        ports: Iterable[int] = PUBLIC_PORTS,
        remembered_s: float = REMEMBERED_S,
        lookup_timeout_s: float = LOOKUP_TIMEOUT_S,
        lookup: Lookup | None = None,
    ) -> None:
        """Raises ConfigError for a rule that cannot be read."""
        self._allow_loopback = allow_loopback
        self._rules = tuple(Rule.parse(text) for text in allow)
        self._forbidden = set(forbid)
        self._ports = frozenset(ports)
        self._remembered_s = remembered_s
        self._lookup_timeout_s = lookup_timeout_s
        self._lookup = lookup or _system_lookup
        self._targets: dict[str, tuple[Target, float]] = {}
        self._answers: dict[tuple[str, int], tuple[list[Address], float]] = {}
        self._looking: dict[tuple[str, int], asyncio.Future[list[str]]] = {}
        self._threads = ThreadPoolExecutor(LOOKUP_THREADS, "mesh-lookup")

    def forbid(self, host: str, port: int) -> None:
        """Add one of the gateway's own listeners, once its port is known."""
        self._forbidden.add((host, port))
        self._targets.clear()

    def close(self) -> None:
        """Give up the resolver's threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def vet(self, url: str) -> None:
        """Check the text of a URL without looking its name up: for admission, before anything is stored.

        Raises Malformed (code `url_forbidden`) for what no answer of the name service could make right.
        """
        if self.cached(url) is None:
            self._read(url)

    def cached(self, url: str) -> Target | None:
        """What `resolve` would give without waiting: the target, if it was checked within `remembered_s`."""
        known = self._targets.get(url)
        return known[0] if known is not None and known[1] > monotonic_s() else None

    async def resolve(self, url: str) -> Target:
        """Check `url` with every address its name leads to; the target is pinned to these. To be asked for each send.

        Raises Malformed (code `url_forbidden`) by policy, NotSent when the name cannot be looked up in time.
        """
        known = self.cached(url)
        if known is not None:
            return known
        target = self._read(url)
        until_s = monotonic_s() + self._remembered_s
        literal = address_of(target.host)
        if literal is None:
            addresses, until_s = await self._addresses(target)
            for address in addresses:
                self._check(target, address, named=True)
        else:
            addresses = [literal]
        target = target.pinned(tuple(_connectable(address) for address in addresses[:ADDRESSES_PINNED_MAX]))
        _remember(self._targets, url, (target, until_s))
        return target

    # -- the policy

    def _read(self, url: str) -> Target:
        try:
            target = Target.parse(url)
        except Malformed as error:
            raise Malformed(error.detail, code="url_forbidden") from None
        if (target.host, target.port) in self._forbidden:
            raise _own(target)
        literal = address_of(target.host)
        if literal is not None:
            self._check(target, literal, named=False)
        elif target.host == "localhost" or target.host.endswith(".localhost"):  # loopback by RFC 6761
            self._check(target, IPv4Address("127.0.0.1"), named=True)
        else:
            self._check_name(target)
        return target

    def _check_name(self, target: Target) -> None:
        """Refuse what is wrong whatever the name leads to; the addresses are checked when they are known."""
        hopeful = any(rule.network is not None or rule.names(target.host) for rule in self._rules_for(target))
        # A name of one label is of this machine or its network, so may lead to loopback; others are the world's.
        local = self._allow_loopback and "." not in target.host.rstrip(".")
        if not hopeful and not local:
            self._check_public(target)

    def _check_public(self, target: Target) -> None:
        if target.scheme != "https":
            raise _refusal(target, "is not https", f"Use https, or {_add(f'{target.host}:{target.port}')}.")
        if target.port not in self._ports:
            mend = f"Use port 443, or {_add(f'{target.host}:{target.port}')}."
            raise _refusal(target, f"uses port {target.port}, which is not open", mend)

    def _check(self, target: Target, address: Address, *, named: bool) -> None:
        address = judged(address)
        if self._is_own(target, address):
            raise _own(target)
        rules = [
            rule for rule in self._rules_for(target) if rule.covers(address) or (named and rule.names(target.host))
        ]
        span = span_of(address)
        if span is None:
            if not rules:
                self._check_public(target)
            return
        opened = bool(rules) or (span.opened_by == LOOPBACK and self._allow_loopback)
        mend = f"If this is meant, {_add(f'{span.network}:{target.port}')}."
        if span.opened_by == LOOPBACK:
            mend += " For all of this machine set egress.allow_loopback."
        if span.opened_by == EXPLICIT:
            opened = any(rule.points_into(span.network) for rule in rules)
            mend = f"If this is meant, add a rule for that very address or a part of {span.network} to egress.allow."
        if span.opened_by == NEVER:
            opened, mend = False, "No egress rule opens this range."
        if not opened:
            raise _refusal(target, f"leads to an address that is not public: {span.words}, {span.network}", mend)

    def _rules_for(self, target: Target) -> list[Rule]:
        return [rule for rule in self._rules if rule.port in (None, target.port)]

    def _is_own(self, target: Target, address: Address) -> bool:
        listeners = [address_of(host) for host, port in self._forbidden if port == target.port]
        return any(own == address or (own.is_unspecified and _is_here(address)) for own in listeners if own is not None)

    # -- names

    async def _addresses(self, target: Target) -> tuple[list[Address], float]:
        """Addresses of a name and how long they are remembered. Raises NotSent, Malformed."""
        key = (target.host, target.port)
        known = self._answers.get(key)
        if known is not None and known[1] > monotonic_s():
            return known
        until_s = monotonic_s() + self._remembered_s
        try:
            async with asyncio.timeout(self._lookup_timeout_s):
                found = await asyncio.shield(self._started_lookup(key))
        except TimeoutError:
            message = f"Looking up {target.host} took longer than {self._lookup_timeout_s:g} s."
            raise NotSent(message) from None
        except (OSError, UnicodeError) as error:
            message = f"Could not look up {target.host}: {getattr(error, 'strerror', None) or error}."
            raise NotSent(message) from error
        if not found:
            message = f"{target.host} has no address."
            raise NotSent(message)
        addresses: list[Address] = []
        for text in found:
            address = None if "%" in text else address_of(text)
            if address is None:
                raise _refusal(target, "leads to an address with a zone", "No egress rule opens it.")
            addresses.append(address)
        _remember(self._answers, key, (addresses, until_s))
        return addresses, until_s

    def _started_lookup(self, key: tuple[str, int]) -> asyncio.Future[list[str]]:
        """One look-up per name at a time, however many wait for it."""
        looking = self._looking.get(key)
        if looking is None:
            if len(self._looking) >= LOOKUPS_WAITING_MAX:
                message = f"{LOOKUPS_WAITING_MAX} name look-ups are waiting already."
                raise NotSent(message)
            looking = asyncio.get_running_loop().run_in_executor(self._threads, self._lookup, *key)
            self._looking[key] = looking
            looking.add_done_callback(lambda _: self._looking.pop(key, None))
        return looking


def _system_lookup(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _remember(memory: dict[K, V], key: K, value: V) -> None:
    memory.pop(key, None)
    if len(memory) >= REMEMBERED_MAX:
        del memory[next(iter(memory))]
    memory[key] = value


def _connectable(address: Address) -> str:
    """An IPv4-mapped address as IPv4, so that one address has one text; NAT64 must be reached as it is."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


def _is_here(address: Address) -> bool:
    """Whether `address` is one of this machine: only then can a socket be bound to it."""
    if address.is_loopback or address.is_unspecified:
        return True
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


def _own(target: Target) -> Malformed:
    return _refusal(target, "is this gateway itself", "Give the address of the receiver.")


def _add(rule: str) -> str:
    """The mend for the operator, with the key of the gateway's settings."""
    return f'add "{rule}" to egress.allow in the settings of the gateway'


def _refusal(target: Target, what: str, mend: str) -> Malformed:
    # The range, not the address: what a name leads to inside is not for the caller who gave the name.
    return Malformed(f"{target.origin} {what}. {mend}", code="url_forbidden")
