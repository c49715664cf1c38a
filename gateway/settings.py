"""Settings of one gateway: what there is to set, defaults, bounds, and what must fit together.

Reads nothing: the file and the environment are settings_file.py. No message shows a secret.

    [store]       url, durability, state_file
    [gateway]     name, host, port, public_url, wait_default_ms, wait_max_ms, body_bytes_max, header_bytes_max,
                  retention_ms, drain_s
    [[namespaces]] name, keys, webhook_secret, admin
    [egress]      allow, allow_loopback
    [tokens]      current, keys (a table: key id = secret)
    [blobs]       url, endpoint, region, spool, inline_bytes_max, bytes_max, free_bytes_min, grace_ms, sweep_ms

`MESH_STORE_URL` stands for store.url, `MESH_TOKEN_SECRET` for one current completion key (settings_file.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import blake2b, sha256
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from gateway.egress import Rule
from mesh.errors import ConfigError, MeshError
from mesh.store.address import Address
from mesh.store.gate import Durability
from mesh.store.identity import StateFile
from mesh.tokens import sign_webhook
from registry.spec import check_namespace

DEFAULT_NAMESPACE: Final = "default"
STORE_URL: Final = "MESH_STORE_URL"
TOKEN_SECRET: Final = "MESH_TOKEN_SECRET"  # noqa: S105 - the name of the variable
KEY_CHARS_MIN: Final = 16
KEY_CHARS_MAX: Final = 512
TOKEN_SECRET_CHARS_MIN: Final = 32
DAY_MS: Final = 86_400_000
MIB: Final = 1024 * 1024

_key: Final = re.compile(r"[\x21-\x7e]+").fullmatch
_hashed: Final = re.compile(r"sha256:([0-9a-fA-F]{64})").fullmatch


def is_loopback(host: str) -> bool:
    """Whether a host name or address, without port, surely means this machine."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761 section 6.3
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _checked(check: Any) -> AfterValidator:
    """A check that raises MeshError, as pydantic wants it."""

    def run(value: Any) -> Any:
        try:
            check(value)
        except MeshError as error:
            raise ValueError(error.detail) from None
        return value

    return AfterValidator(run)


def _store_url(url: str) -> None:
    if url:
        Address.parse(url)


def _public_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        usable = usable and not any(one in url for one in "?#@")
    except ValueError:
        usable = False
    if url and not usable:
        raise ValueError("not an http:// or https:// URL without query; give the one that agents reach this gateway at")
    return url.rstrip("/")


def _api_key(key: str) -> str:
    if key.startswith("sha256:"):
        if not _hashed(key):
            raise ValueError("sha256: is followed by 64 hex digits, the SHA-256 of the key")
    elif not KEY_CHARS_MIN <= len(key) <= KEY_CHARS_MAX or not _key(key):
        raise ValueError(
            f"a key has {KEY_CHARS_MIN} to {KEY_CHARS_MAX} visible ASCII characters;"
            " make one with `openssl rand -hex 32`"
        )
    return key


def _webhook_secret(secret: str) -> None:
    if secret:
        sign_webhook(secret, "check", 0, b"")


def _token_secret(secret: str) -> str:
    if len(secret) < TOKEN_SECRET_CHARS_MIN:
        raise ValueError(
            f"a completion key has at least {TOKEN_SECRET_CHARS_MIN} characters; make one with `openssl rand -hex 32`"
        )
    return secret


class _Table(BaseModel):
    """A table of the file: unknown keys are mistakes. Secrets are left out of the printed form."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class StoreSettings(_Table):
    """Without `url` there is no store but the embedded one of `mesh dev`."""

    url: Annotated[str, _checked(_store_url)] = Field(
        default="", repr=False, description="the URL of a store, such as redis://host:6379/0"
    )
    durability: Durability = Field(
        default=Durability.ALWAYS, strict=False, description='"always", "everysec" or "declared"'
    )
    state_file: Path | None = Field(
        default=None, strict=False, description="a path where this gateway remembers which store it served"
    )


class GatewaySettings(_Table):
    """What is left out stands here."""

    name: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9_-]{0,64}$",
        description="up to 64 letters, digits, '-' or '_', one per gateway",
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="an address of this machine to listen on")
    port: int = Field(default=7411, ge=0, le=65_535, description="a TCP port, 0 for any free one")
    public_url: Annotated[str, AfterValidator(_public_url)] = Field(
        default="", description="the URL that agents reach this gateway at, such as http://gateway:7411"
    )
    wait_default_ms: int = Field(
        default=2_000,
        ge=0,
        le=600_000,
        description="milliseconds a start waits for a result when its caller names no time",
    )
    wait_max_ms: int = Field(default=60_000, ge=0, le=600_000, description="milliseconds that any request may wait")
    body_bytes_max: int = Field(default=2 * MIB, ge=1_024, le=64 * MIB, description="bytes, from 1024 to 64 MiB")
    header_bytes_max: int = Field(default=32_768, ge=4_096, le=262_144, description="bytes, from 4096 to 262144")
    retention_ms: int = Field(
        default=7 * DAY_MS, ge=60_000, le=365 * DAY_MS, description="milliseconds that an ended operation is kept"
    )
    memory_watermark: float = Field(
        default=0.85, ge=0.1, le=1.0, description="share of the store's maxmemory above which no new work is taken"
    )
    drain_s: float = Field(
        default=8.0, ge=0.0, le=12.0, description="seconds for the work under way after SIGTERM; all must end in 15"
    )


class NamespaceSettings(_Table):
    """A team. Its keys are kept as hashes; `sha256:...` in the file is the hash itself."""

    name: Annotated[str, _checked(check_namespace)] = Field(description="a name such as research")
    keys: list[Annotated[str, AfterValidator(_api_key)]] = Field(
        default=[], max_length=64, repr=False, description="a list of keys, plain or as sha256:<hex>"
    )
    webhook_secret: Annotated[str, _checked(_webhook_secret)] = Field(
        default="", repr=False, description="whsec_ and base64 of 24 to 64 bytes"
    )
    admin: bool = Field(default=False, description="true or false")

    @property
    def digests(self) -> list[bytes]:
        """SHA-256 of every key."""
        return [bytes.fromhex(m[1]) if (m := _hashed(key)) else sha256(key.encode()).digest() for key in self.keys]


class EgressSettings(_Table):
    """Whom this gateway may call beside public addresses. Loopback: allowed under `mesh dev` unless said otherwise."""

    allow: list[Annotated[str, _checked(Rule.parse)]] = Field(
        default=[], max_length=256, description='a list of rules such as "10.77.0.0/24:*"'
    )
    allow_loopback: bool = Field(default=False, description="true or false")


class TokenSettings(_Table):
    """Completion keys. All gateways of a store need the same; `current` mints, the others are still accepted."""

    current: str = Field(default="", description="the id of the key that new tokens carry")
    secrets: dict[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")], Annotated[str, AfterValidator(_token_secret)]
    ] = Field(default={}, alias="keys", max_length=16, repr=False, description="a table: key id = secret")

    @property
    def keys(self) -> dict[str, bytes]:
        """Key material by id, for mesh.tokens.CompletionTokens; empty when nothing is configured."""
        return {kid: blake2b(secret.encode(), digest_size=32).digest() for kid, secret in self.secrets.items()}


def _blobs_url(url: str) -> None:
    parts = urlsplit(url)
    local = parts.scheme == "file" and parts.path.startswith("/") and not parts.netloc
    bucket = parts.scheme == "s3" and parts.netloc and not parts.query and "@" not in parts.netloc
    if url and not (local or bucket):
        raise ConfigError("large payloads are kept at file:///DIRECTORY or s3://BUCKET/PREFIX")


class BlobSettings(_Table):
    """Where large payloads are kept; without `url` the data directory of `mesh dev`, under `mesh serve` nowhere."""

    url: Annotated[str, _checked(_blobs_url)] = Field(
        default="", description="file:///DIRECTORY that all gateways of the mesh share, or s3://BUCKET/PREFIX"
    )
    endpoint: str = Field(
        default="", pattern=r"^(https?://[^\s@?#]+)?$", description="the URL of an S3-compatible store that is not AWS"
    )
    region: str = Field(default="", pattern=r"^[a-z0-9-]{0,64}$", description="the region of the bucket")
    spool: Path | None = Field(
        default=None, strict=False, description="a directory of this machine for payloads on their way to a bucket"
    )
    inline_bytes_max: int = Field(
        default=256 * 1024,
        ge=64 * 1024,
        le=64 * MIB,
        description="bytes from 65536 to 64 MiB; larger bodies are kept outside the store",
    )
    bytes_max: int = Field(default=16 * 1024 * MIB, ge=MIB, le=1 << 40, description="bytes of one body, up to 1 TiB")
    free_bytes_min: int = Field(
        default=256 * MIB, ge=0, le=1 << 50, description="bytes of the disk that large payloads leave free"
    )
    grace_ms: int = Field(
        default=3_600_000,
        ge=60_000,
        le=30 * DAY_MS,
        description="milliseconds before what no operation refers to is deleted, from 60000",
    )
    sweep_ms: int = Field(default=60_000, ge=100, le=DAY_MS, description="milliseconds between two looks for such")


class Settings(_Table):
    """Everything a gateway is told. `gateway.settings_file.load` makes one."""

    store: StoreSettings = StoreSettings()
    gateway: GatewaySettings = GatewaySettings()
    namespaces: list[NamespaceSettings] = Field(default=[], max_length=1_000, description="[[namespaces]] tables")
    egress: EgressSettings = EgressSettings()
    tokens: TokenSettings = TokenSettings()
    blobs: BlobSettings = BlobSettings()

    @property
    def keyless(self) -> bool:
        """Nobody has a key: one namespace, this machine only."""
        return not any(namespace.keys for namespace in self.namespaces)

    def memory(self) -> StateFile | None:
        """Where this gateway remembers which store it served."""
        return StateFile(self.store.state_file) if self.store.state_file is not None else None

    def keeping_blobs(self, directory: Path) -> Self:
        """With a place for large payloads, unless one was named."""
        if self.blobs.url:
            return self
        return self.model_copy(update={"blobs": self.blobs.model_copy(update={"url": directory.resolve().as_uri()})})

    def bound(self, host: str, port: int) -> Self:
        """With the address that was really bound, and a public URL made of it unless one was given."""
        shown = f"[{host}]" if ":" in host else host
        public_url = self.gateway.public_url or f"http://{shown}:{port}"
        gateway = self.gateway.model_copy(update={"port": port, "public_url": public_url})
        return self.model_copy(update={"gateway": gateway})


def misfits(settings: Settings, *, serve: bool) -> Iterator[str]:
    """What is right by itself and wrong together, as `key: what; the mend`."""
    yield from _namespace_misfits(settings)
    gateway, tokens = settings.gateway, settings.tokens
    if settings.keyless and not is_loopback(gateway.host):
        yield (
            f"gateway.host: {gateway.host} can be reached by others and there are no keys;"
            " add [[namespaces]] with keys, or listen on 127.0.0.1"
        )
    if not gateway.public_url and gateway.host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        yield "gateway.public_url: missing; listening on every address, name the URL that agents reach"
    if gateway.wait_default_ms > gateway.wait_max_ms:
        yield "gateway.wait_default_ms: more than gateway.wait_max_ms; lower it or raise that"
    if tokens.secrets and tokens.current not in tokens.secrets:
        yield f"tokens.current: no key of that id; name one of {', '.join(sorted(tokens.secrets))}"
    if settings.blobs.inline_bytes_max >= gateway.body_bytes_max > 64 * 1024:
        yield "blobs.inline_bytes_max: not less than gateway.body_bytes_max; lower it or raise that"
    if serve and not settings.store.url:
        yield f"store.url: missing; name the store (or set {STORE_URL}), or use `mesh dev` for an embedded one"
    if serve and not tokens.secrets:
        yield (
            "tokens.keys: missing; every gateway of a store needs the same completion key:"
            f" add [tokens] with current and keys, or set {TOKEN_SECRET}"
        )


def _namespace_misfits(settings: Settings) -> Iterator[str]:
    names = [one.name for one in settings.namespaces]
    seen: dict[bytes, str] = {}
    for position, namespace in enumerate(settings.namespaces):
        name = namespace.name
        if name in names[:position]:
            yield f"namespaces[{position}].name: {name!r} is there twice; merge the two tables"
        if not namespace.keys and not (settings.keyless and name == DEFAULT_NAMESPACE):
            yield f"namespaces[{position}].keys: nobody could use {name!r}; give it a key"
        if others := {seen[one] for one in namespace.digests if one in seen} - {name}:
            yield f"namespaces[{position}].keys: {name!r} shares a key with {min(others)!r}; give each its own"
        seen |= dict.fromkeys(namespace.digests, name)
