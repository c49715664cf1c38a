"""What proves who may say what: completion tokens of the mesh, and signatures on what it delivers.

A completion token names its operation, run and attempt under a keyed MAC, so that a genuine token of a
deleted operation can be told from a forged one (P52) and no token has to be stored. Owns the form
and the check; knows no operation, and never puts a token or a key into a message (docs/why/attacks.md
S10, S12, S13).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Final, NamedTuple

from mesh.clock import now_ms
from mesh.errors import ConfigError, Unauthenticated
from mesh.ids import secret_bytes

TOKEN_CHARS_MAX: Final = 512
KEY_BYTES_MIN: Final = 16
KEY_BYTES_MAX: Final = 64
"""blake2b's own limit."""
WEBHOOK_SECRET_BYTES_MIN: Final = 24
WEBHOOK_SECRET_BYTES_MAX: Final = 64
WEBHOOK_TOLERANCE_S: Final = 300

_VERSION: Final = "m1"
_PURPOSE: Final = b"mesh1 complete"
"""blake2b's personalization: the same key signs nothing else under this name."""
_MAC_BYTES: Final = 32
_FIELDS: Final = 6
"""That are signed."""
_kid = re.compile(r"[A-Za-z0-9_-]{1,32}").fullmatch
_SECRET_PREFIX: Final = "whsec_"  # noqa: S105  the public mark of a secret, not one
_stamp = re.compile(r"[0-9]{1,12}").fullmatch


class Claim(NamedTuple):
    """What a genuine token speaks for."""

    operation_id: str
    run: int
    attempt: int


class CompletionTokens:
    """Mints and checks `m1.{kid}.{operation id}.{run}.{attempt}.{expiry}.{MAC}`, which is URL-safe.

    `keys` by key id (1 to 32 of `A-Za-z0-9_-`), 16 to 64 bytes each; new tokens carry `current`, the others
    are still accepted, which is how a key is rotated. Raises ConfigError on keys that cannot work.
    """

    __slots__ = ("_current", "_hashes", "_minting")

    def __init__(self, keys: Mapping[str, bytes], current: str) -> None:
        for kid, key in keys.items():
            if not _kid(kid):
                raise ConfigError(f"completion key id {kid!r} is not 1 to 32 letters, digits, '_' or '-'")
            if not KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
                raise ConfigError(
                    f"completion key {kid} is not {KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes long"
                )
        if current not in keys:
            raise ConfigError("the current completion key is not among the keys")
        self._current = current
        self._hashes = {
            kid: blake2b(key=key, digest_size=_MAC_BYTES, person=_PURPOSE) for kid, key in keys.items()
        }
        self._minting = self._hashes[current]

    def __repr__(self) -> str:
        return f"CompletionTokens(current={self._current!r}, keys={sorted(self._hashes)!r})"

    def mint(self, operation_id: str, run: int, attempt: int, expires_at_s: int) -> str:
        """A token for one attempt; `operation_id` as mesh.ids makes it, `expires_at_s` in Unix time."""
        signed = f"{_VERSION}.{self._current}.{operation_id}.{run}.{attempt}.{expires_at_s}"
        mac = self._minting.copy()
        mac.update(signed.encode())
        return f"{signed}.{mac.hexdigest()}"

    def check(self, token: str, now_s: float) -> Claim:
        """What `token` speaks for.

        Raises Unauthenticated: code `token_invalid` (forged, cut, overlong, unknown key) or `token_expired`.
        """
        if len(token) <= TOKEN_CHARS_MAX and token.isascii():
            signed, _, given = token.rpartition(".")
            parts = signed.split(".")
            base = self._hashes.get(parts[1]) if len(parts) == _FIELDS and parts[0] == _VERSION else None
            if base is not None:
                mac = base.copy()
                mac.update(signed.encode())
                if hmac.compare_digest(mac.hexdigest(), given):
                    # Genuine from here on: the fields are what mint() wrote.
                    if now_s >= int(parts[5]):
                        raise Unauthenticated("the completion token has expired", code="token_expired")
                    return Claim(parts[2], int(parts[3]), int(parts[4]))
        raise Unauthenticated("the completion token is not valid", code="token_invalid")


def new_webhook_secret() -> str:
    """`whsec_` and 32 random bytes in base64 (Standard Webhooks)."""
    return _SECRET_PREFIX + base64.b64encode(secret_bytes(32)).decode()


@lru_cache(maxsize=256)
def _keyed(secret: str) -> hmac.HMAC:
    """To be copied: what OpenSSL does before it has hashed a byte takes as long as the hashing."""
    try:
        key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if (
        not secret.startswith(_SECRET_PREFIX)
        or not WEBHOOK_SECRET_BYTES_MIN <= len(key) <= WEBHOOK_SECRET_BYTES_MAX
    ):
        raise ConfigError(
            f"a webhook secret is {_SECRET_PREFIX} and base64 of {WEBHOOK_SECRET_BYTES_MIN} to"
            f" {WEBHOOK_SECRET_BYTES_MAX} bytes"
        )
    return hmac.new(key, digestmod="sha256")


def _signature(secret: str, webhook_id: str, timestamp: str, body: bytes) -> bytes:
    mac = _keyed(secret).copy()
    mac.update(b"%b.%b.%b" % (webhook_id.encode(), timestamp.encode(), body))
    return mac.digest()


def sign_webhook(secret: str, webhook_id: str, timestamp_s: int, body: bytes) -> list[tuple[bytes, bytes]]:
    """The three Standard Webhooks headers for one delivery attempt. Raises ConfigError on a malformed secret.

    `webhook_id` is `{operation id}.{run}` (P84). The dot cannot move the borders of what is signed:
    a run read as the timestamp would lie decades outside any receiver's tolerance. Signed here and not by
    the package `standardwebhooks`, which takes text only, while a result may be any bytes; the tests verify
    with that package.
    """
    timestamp = str(timestamp_s)
    return [
        (b"webhook-id", webhook_id.encode()),
        (b"webhook-timestamp", timestamp.encode()),
        (b"webhook-signature", b"v1," + base64.b64encode(_signature(secret, webhook_id, timestamp, body))),
    ]


class WebhookSigning:
    """`sign_webhook` of a body that comes in pieces. Raises ConfigError on a malformed secret."""

    def __init__(self, secret: str, webhook_id: str, timestamp_s: int) -> None:
        self._id, self._timestamp = webhook_id.encode(), str(timestamp_s).encode()
        self._mac = _keyed(secret).copy()
        self._mac.update(b"%b.%b." % (self._id, self._timestamp))

    def update(self, piece: bytes) -> None:
        self._mac.update(piece)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The three headers, once all pieces were seen."""
        return [
            (b"webhook-id", self._id),
            (b"webhook-timestamp", self._timestamp),
            (b"webhook-signature", b"v1," + base64.b64encode(self._mac.digest())),
        ]


def verify_webhook(
    secrets: str | Sequence[str],
    headers: Mapping[str, str],
    body: bytes,
    *,
    now_s: float | None = None,
    tolerance_s: int = WEBHOOK_TOLERANCE_S,
) -> str:
    """For receivers: the `webhook-id` of a genuine delivery, to be kept so that a repeat changes nothing.

    `secrets` is one or, during rotation, several; `headers` any mapping, names in any case; `body` the
    bytes as received, never re-serialised. Raises Unauthenticated (a header missing, a stamp more than
    `tolerance_s` away, no `v1` signature that fits) and ConfigError on a malformed secret.
    """
    fields = {name.lower(): value for name, value in headers.items()}
    webhook_id, timestamp = fields.get("webhook-id", ""), fields.get("webhook-timestamp", "")
    if not webhook_id or not _stamp(timestamp):
        raise Unauthenticated("the webhook headers are incomplete", code="webhook_invalid")
    if abs((now_ms() / 1000 if now_s is None else now_s) - int(timestamp)) > tolerance_s:
        raise Unauthenticated("the webhook's timestamp is too far away", code="webhook_stale")
    accepted = [
        b"v1," + base64.b64encode(_signature(secret, webhook_id, timestamp, body))
        for secret in ((secrets,) if isinstance(secrets, str) else secrets)
    ]
    offered = fields.get("webhook-signature", "").encode("utf-8", "replace").split(b" ")
    if not any(hmac.compare_digest(mine, theirs) for mine in accepted for theirs in offered):
        raise Unauthenticated("no webhook signature fits", code="webhook_invalid")
    return webhook_id
