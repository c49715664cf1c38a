"""Completion tokens and webhook signatures: only what is genuine passes (S10, S12, S13)."""

import base64
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from gateway.start_body import TIMEOUT_MS_MAX
from gateway.start_request import TOKEN_LIFE_S
from mesh.clock import now_ms
from mesh.errors import ConfigError, Unauthenticated
from mesh.ids import operation_id
from mesh.tokens import (
    TOKEN_CHARS_MAX,
    Claim,
    CompletionTokens,
    new_webhook_secret,
    sign_webhook,
    verify_webhook,
)

NOW = 1_700_000_000
OLD, NEW = b"o" * 32, b"n" * 64
tokens = CompletionTokens({"k1": OLD, "k2": NEW}, current="k2")
GENUINE = tokens.mint("00-abcdefghjkmnpqrstvwx", 1, 2, NOW + 60)


def refused(checker: CompletionTokens, token: str, now_s: float = NOW) -> str:
    with pytest.raises(Unauthenticated) as caught:
        checker.check(token, now_s)
    assert len(token) < len("m1.k2.") or token not in str(caught.value)  # S12
    return caught.value.code


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(NOW + 1, NOW + 10**9))
def test_a_minted_token_speaks_for_its_attempt(run: int, attempt: int, expires_at_s: int) -> None:
    name = operation_id()
    token = tokens.mint(name, run, attempt, expires_at_s)
    assert tokens.check(token, NOW) == Claim(name, run, attempt)
    assert len(token) <= TOKEN_CHARS_MAX
    assert all(letter.isascii() and (letter.isalnum() or letter in "-_.") for letter in token)


def test_a_token_ends_at_its_time() -> None:
    assert tokens.check(GENUINE, NOW + 59.9).attempt == 2
    assert refused(tokens, GENUINE, NOW + 60) == "token_expired"


def test_a_token_outlives_the_longest_timeout() -> None:
    """P52, P63: or work of that length could not be completed."""
    assert TOKEN_LIFE_S * 1000 > TIMEOUT_MS_MAX


def test_keys_rotate() -> None:
    before = CompletionTokens({"k1": OLD}, current="k1").mint("00-a", 1, 1, NOW + 60)
    assert tokens.check(before, NOW) == Claim("00-a", 1, 1)
    after = CompletionTokens({"k2": NEW}, current="k2")
    assert refused(after, before) == "token_invalid"  # rotated out
    assert after.check(GENUINE, NOW)


@given(st.integers(0, len(GENUINE) - 1), st.characters())
def test_no_character_can_be_changed(position: int, letter: str) -> None:
    forged = GENUINE[:position] + letter + GENUINE[position + 1 :]
    if forged != GENUINE:
        assert refused(tokens, forged) == "token_invalid"


@given(st.integers(0, len(GENUINE) - 1))
def test_no_character_can_be_cut(length: int) -> None:
    assert refused(tokens, GENUINE[:length]) == "token_invalid"
    assert refused(tokens, GENUINE[length + 1 :]) == "token_invalid"


@given(st.text(max_size=200) | st.lists(st.text(max_size=8), min_size=7, max_size=7).map(".".join))
def test_garbage_is_refused(token: str) -> None:
    assert refused(tokens, token) == "token_invalid"


def test_forgeries_with_a_plan_are_refused() -> None:
    head, mac = GENUINE.rsplit(".", 1)
    other_key = CompletionTokens({"k2": b"x" * 32}, current="k2").mint("00-a", 1, 1, NOW + 60)
    for forged in (
        f"m1.none.00-a.1.1.{NOW + 60}.",
        f"m1.../../etc/passwd.00-a.1.1.{NOW + 60}.{mac}",
        GENUINE.replace("k2", "k1"),
        GENUINE.replace("00-abc", "00-abd"),
        GENUINE.replace(".1.2.", ".2.2."),
        GENUINE.replace("m1", "m2"),
        f"{head}.{mac.upper()}",
        f"{head}.{mac[:-1]}",
        f"{head}.{mac}.",
        f" {GENUINE}",
        other_key,
        "m1.k2." + "a" * TOKEN_CHARS_MAX,
    ):
        assert refused(tokens, forged) == "token_invalid"


@pytest.mark.parametrize(
    ("keys", "current"),
    [
        ({}, "k"),
        ({"k": OLD}, "x"),
        ({"k": b"short"}, "k"),
        ({"k": b"x" * 65}, "k"),
        ({"a.b": OLD}, "a.b"),
        ({"": OLD}, ""),
    ],
)
def test_keys_that_cannot_work(keys: dict[str, bytes], current: str) -> None:
    with pytest.raises(ConfigError):
        CompletionTokens(keys, current)


def test_keys_stay_out_of_sight() -> None:
    assert repr(tokens) == "CompletionTokens(current='k2', keys=['k1', 'k2'])"


# Webhooks

SECRET = new_webhook_secret()
ID = "00-abcdefghjkmnpqrstvwx.1"
BODY = b'{"type": "mesh.operation.succeeded.v1", "data": {"n": 1.0}}'


def signed(body: bytes = BODY, at_s: int = NOW, secret: str = SECRET) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in sign_webhook(secret, ID, at_s, body)}


@given(st.text(max_size=60), st.integers(NOW, NOW + 10**8))
def test_our_signature_is_the_reference_packages(text: str, at_s: int) -> None:
    theirs = Webhook(SECRET).sign(
        ID, datetime.fromtimestamp(at_s, UTC), text.encode("utf-8", "replace").decode()
    )
    assert signed(text.encode("utf-8", "replace"), at_s)["webhook-signature"] == theirs


def test_the_reference_package_verifies_what_we_send() -> None:
    headers = signed(at_s=now_ms() // 1000)
    assert Webhook(SECRET).verify(BODY, headers)["data"] == {"n": 1.0}
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(BODY + b" ", headers)


@given(st.binary(max_size=60))
def test_any_bytes_can_be_signed(body: bytes) -> None:
    assert verify_webhook(SECRET, signed(body), body, now_s=NOW) == ID


@pytest.mark.parametrize("offset_s", [-300, 0, 300])
def test_stamps_within_the_tolerance(offset_s: int) -> None:
    assert verify_webhook(SECRET, signed(at_s=NOW + offset_s), BODY, now_s=NOW) == ID


def test_the_clock_is_now_unless_given() -> None:
    assert verify_webhook(SECRET, signed(at_s=now_ms() // 1000), BODY) == ID
    with pytest.raises(Unauthenticated):
        verify_webhook(SECRET, signed(), BODY)


def test_rotation_on_either_side() -> None:
    other = new_webhook_secret()
    mine, theirs = signed(), signed(secret=other)
    both = mine | {"webhook-signature": f"v1a,AAAA {theirs['webhook-signature']} {mine['webhook-signature']}"}
    assert verify_webhook(SECRET, both, BODY, now_s=NOW) == ID
    assert verify_webhook([other, SECRET], mine, BODY, now_s=NOW) == ID
    assert (
        verify_webhook(SECRET, {name.title(): value for name, value in mine.items()}, BODY, now_s=NOW) == ID
    )


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
@pytest.mark.parametrize(
    "value", [None, "", "garbage", "v1,", "v1,AAAA", "é", str(NOW + 1), f"{NOW}.5", "-1", "9" * 40]
)
def test_no_header_can_be_changed(name: str, value: str | None) -> None:
    headers = signed()
    headers.pop(name)
    with pytest.raises(Unauthenticated):
        verify_webhook(SECRET, headers | ({} if value is None else {name: value}), BODY, now_s=NOW)


@pytest.mark.parametrize("body", [BODY + b" ", BODY.replace(b"1.0", b"1"), BODY.replace(b" ", b""), b""])
def test_no_byte_of_the_body_can_be_changed(body: bytes) -> None:
    with pytest.raises(Unauthenticated):
        verify_webhook(SECRET, signed(), body, now_s=NOW)


@pytest.mark.parametrize("offset_s", [-301, 301])
def test_stale_and_future_stamps(offset_s: int) -> None:
    with pytest.raises(Unauthenticated) as caught:
        verify_webhook(SECRET, signed(at_s=NOW + offset_s), BODY, now_s=NOW)
    assert caught.value.code == "webhook_stale"


def test_the_dot_in_an_id_cannot_shift_what_was_signed() -> None:
    headers = signed() | {"webhook-id": ID.removesuffix(".1"), "webhook-timestamp": "1"}
    with pytest.raises(Unauthenticated):
        verify_webhook(SECRET, headers, str(NOW).encode() + b"." + BODY, now_s=NOW)


def test_secrets_are_new_each_time_and_checked() -> None:
    assert len({new_webhook_secret() for _ in range(100)}) == 100
    assert len(base64.b64decode(SECRET.removeprefix("whsec_"))) == 32
    for secret in (
        "",
        "whsec_",
        "whsec_???",
        "whsec_" + "AAAA" * 7,
        SECRET.removeprefix("whsec_"),
        "whsec_" + "AAAA" * 22,
    ):
        with pytest.raises(ConfigError) as caught:
            sign_webhook(secret, ID, NOW, BODY)
        assert len(secret) < 10 or secret not in str(caught.value)  # S12
