"""Where a store is and how to log in: the parsed form of a store URL. Opens nothing, knows no command.

    redis://[user[:password]@]host[:port][/db]      valkey:// is the same
    rediss://...                                     TLS, always verified; valkeys:// is the same
    unix:///path/to/socket[?db=0]

TLS query arguments, named as redis-py names them: `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile` (paths).
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from mesh.errors import ConfigError

PORT: Final = 6379
_TCP: Final = {"redis": False, "valkey": False, "rediss": True, "valkeys": True}
_TLS_ARGUMENTS: Final = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})


@dataclass(frozen=True, slots=True)
class Address:
    """A unix socket (`path`) or a TCP endpoint (`host`, `port`); log-in, database. Prints without secrets."""

    path: str = ""
    host: str = ""
    port: int = PORT
    username: str = ""
    password: str = field(default="", repr=False)
    db: int = 0
    tls: ssl.SSLContext | None = None

    @classmethod
    def parse(cls, url: str) -> Address:
        """The address behind a store URL. Raises ConfigError, never quoting the password."""
        try:
            parts = urlsplit(url)
            arguments = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
            port = parts.port or PORT
            in_path = parts.path.strip("/") if parts.scheme in _TCP else ""
            db = int(arguments.pop("db", "") or in_path or "0")
        except ValueError as fault:
            reason = "the store URL is not well formed: redis://host:6379/0 or unix:///path"
            raise ConfigError(reason) from fault
        if parts.scheme not in _TCP and parts.scheme != "unix":
            raise ConfigError(
                f"store URL scheme {parts.scheme!r} is not known: redis, rediss, valkey, valkeys or unix"
                " (Sentinel and Cluster are not supported yet)"
            )
        if db < 0:
            raise ConfigError("the database number in the store URL is negative")
        tls = _tls(parts, arguments)
        if arguments:
            raise ConfigError(f"store URL arguments not known: {', '.join(sorted(arguments))}")
        username, password = unquote(parts.username or ""), unquote(parts.password or "")
        if parts.scheme == "unix":
            if not parts.path.startswith("/"):
                raise ConfigError("a unix store URL names an absolute path: unix:///path/to/socket")
            return cls(path=unquote(parts.path), username=username, password=password, db=db)
        if not parts.hostname:
            raise ConfigError("the store URL names no host")
        return cls(host=parts.hostname, port=port, username=username, password=password, db=db, tls=tls)

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.db}"


def _tls(parts: SplitResult, arguments: dict[str, str]) -> ssl.SSLContext | None:
    files = {name: arguments.pop(name) for name in _TLS_ARGUMENTS & arguments.keys()}
    if not _TCP.get(parts.scheme):
        if files:
            raise ConfigError("ssl_ arguments need a rediss:// store URL")
        return None
    for name, file in files.items():
        if not Path(file).is_file():
            raise ConfigError(f"{name} in the store URL names no file: {file}")
    try:
        context = ssl.create_default_context(cafile=files.get("ssl_ca_certs"))
        if certificate := files.get("ssl_certfile"):
            context.load_cert_chain(certificate, files.get("ssl_keyfile"))
    except ssl.SSLError as fault:
        raise ConfigError(f"the TLS files of the store URL cannot be loaded: {fault}") from fault
    return context
