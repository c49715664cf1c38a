"""Who is asking: a bearer key names a namespace. Without any key configured everybody on this machine is `default`.

Keys are known by their SHA-256 only; looking a hash up tells nothing about the key, so no comparison has to be slow.
Never puts a key into a message or a log. What a namespace may do is decided where it is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Final
from urllib.parse import urlsplit

import msgspec

from gateway.problems import KEY_MISSING
from gateway.settings import DEFAULT_NAMESPACE, Settings, is_loopback
from mesh.errors import Forbidden, Unauthenticated

KEY_BYTES_MAX: Final = 512
HOSTS_KEPT_MAX: Final = 64
MISSING: Final = "send your key as `Authorization: Bearer KEY`; agents, clients and `mesh` take it from MESH_KEY"
_LOOKED_AT: Final = frozenset((b"host", b"origin"))


class Principal(msgspec.Struct, frozen=True, gc=False):
    """The namespace that asks. `key_id`: the first 8 hex digits of the key's hash, for logs; "" without keys."""

    namespace: str
    admin: bool = False
    key_id: str = ""


class Auth:
    """`authenticate` is on the hot path: one pass over the headers, one hash, one dict hit."""

    def __init__(self, settings: Settings) -> None:
        self._keys = {
            digest: Principal(namespace.name, namespace.admin, digest.hex()[:8])
            for namespace in settings.namespaces
            for digest in namespace.digests
        }
        self._names = {namespace.name for namespace in settings.namespaces}
        self._nobody = Principal(DEFAULT_NAMESPACE, admin=True)
        self._hosts: set[bytes] = set()

    def stranger(self, namespace: str) -> bool:
        """Whether this gateway knows no such namespace; others of the mesh may."""
        return namespace not in self._names

    def authenticate(
        self, headers: Sequence[tuple[bytes, bytes]], first: Mapping[bytes, bytes] | None = None
    ) -> Principal:
        """`headers` are ASGI's, `first` is the first value of each, where that is known.

        Raises Unauthenticated; without keys Forbidden, when a web page may be behind it.
        """
        if not self._keys:
            return self._local(headers, dict(headers) if first is None else first)
        given: bytes | None = None
        for name, value in headers:
            if name == b"authorization":
                if given is not None:
                    raise Unauthenticated("there are two Authorization headers", code="key_invalid")
                given = value
        if given is None:
            raise Unauthenticated(MISSING, code=KEY_MISSING)
        scheme, _, key = given.partition(b" ")
        if scheme.lower() != b"bearer":
            raise Unauthenticated("the only scheme is `Authorization: Bearer KEY`", code="key_invalid")
        key = key.strip()
        principal = self._keys.get(sha256(key).digest()) if len(key) <= KEY_BYTES_MAX else None
        if principal is None:
            raise Unauthenticated("the key is not known to this gateway", code="key_invalid")
        return principal

    def known(self, headers: Sequence[tuple[bytes, bytes]]) -> Principal | None:
        """Who asks, where nobody needs to say so."""
        try:
            return self.authenticate(headers)
        except (Unauthenticated, Forbidden):
            return None

    def _local(self, headers: Sequence[tuple[bytes, bytes]], said: Mapping[bytes, bytes]) -> Principal:
        """Listening on loopback keeps other machines out, not web pages in a browser on this one.

        A page that rebinds its own name to 127.0.0.1 gives itself away by `Host`, one that simply posts by `Origin`.
        """
        if len(said) == len(headers) and b"origin" not in said and said.get(b"host") in self._hosts:
            return self._nobody
        hosted = False
        for name, value in headers:
            if name not in _LOOKED_AT:
                continue
            if name == b"host":
                if value not in self._hosts:
                    self._check_host(value)
                hosted = True
            elif not _loopback_origin(value):
                raise Forbidden(
                    "this gateway has no keys, so it takes no requests from web pages of other sites",
                    code="origin_not_allowed",
                )
        if not hosted:
            raise Forbidden("the Host header is missing", code="host_not_allowed")
        return self._nobody

    def _check_host(self, value: bytes) -> None:
        if not _loopback_authority(value.decode("latin-1")):
            raise Forbidden(
                "this gateway has no keys, so it answers only to localhost and loopback addresses; configure keys"
                " to reach it under another name",
                code="host_not_allowed",
            )
        if len(self._hosts) < HOSTS_KEPT_MAX:
            self._hosts.add(value)


def _loopback_authority(authority: str) -> bool:
    try:
        parts = urlsplit(f"//{authority}")
        return parts.netloc == authority and "@" not in authority and is_loopback(parts.hostname or "")
    except ValueError:
        return False


def _loopback_origin(value: bytes) -> bool:
    """RFC 6454: `scheme://host[:port]`, or `null` for a page that may be anybody's."""
    scheme, _, authority = value.decode("latin-1").partition("://")
    return scheme in ("http", "https") and _loopback_authority(authority)
