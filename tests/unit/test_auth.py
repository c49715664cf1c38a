"""Who is asking: keys, and what stands in for them on a machine of one's own."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from gateway.auth import KEY_BYTES_MAX, Auth, Principal
from gateway.problems import problem
from gateway.settings_file import load
from mesh.errors import Forbidden, MeshError, Unauthenticated

ALPHA, BETA = "alpha-key-0123456789", "beta-key-0123456789"
HASHED_BETA = f"sha256:{sha256(BETA.encode()).hexdigest()}"
HOST = (b"host", b"127.0.0.1:7411")


@pytest.fixture
def keyed(tmp_path: Path) -> Auth:
    path = tmp_path / "mesh.toml"
    path.write_text(
        f'[[namespaces]]\nname = "alpha"\nkeys = ["{ALPHA}"]\nadmin = true\n'
        f'[[namespaces]]\nname = "beta"\nkeys = ["{HASHED_BETA}", "beta-second-key-00000"]\n'
    )
    return Auth(load(path, env={}))


@pytest.fixture
def keyless() -> Auth:
    return Auth(load(env={}))


def bearer(value: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"anything.example"), (b"authorization", value.encode("latin-1"))]


class TestKeys:
    def test_a_key_names_its_namespace(self, keyed: Auth) -> None:
        alpha = keyed.authenticate(bearer(f"Bearer {ALPHA}"))
        assert alpha == Principal("alpha", admin=True, key_id=sha256(ALPHA.encode()).hexdigest()[:8])
        assert keyed.authenticate(bearer(f"bearer  {BETA} ")).namespace == "beta"  # RFC 9110 section 11.1: any case
        assert keyed.authenticate(bearer("Bearer beta-second-key-00000")).namespace == "beta"

    @pytest.mark.parametrize(
        "value",
        [
            "",
            "Bearer",
            "Bearer ",
            "Bearer alpha-key-012345678",
            f"Bearer {ALPHA}x",
            f"Basic {ALPHA}",
            ALPHA,
            f"Bearer {HASHED_BETA}",
            "Bearer " + "k" * (KEY_BYTES_MAX + 1),
            "Bearer \xff\xfe",
        ],
    )
    def test_anything_else_is_401(self, keyed: Auth, value: str) -> None:
        """The hash that a settings file shows is no key either."""
        with pytest.raises(Unauthenticated) as error:
            keyed.authenticate(bearer(value))
        assert error.value.code == "key_invalid"
        assert value.removeprefix("Bearer ").strip() == "" or value not in error.value.detail

    def test_without_credentials_the_challenge_names_no_error(self, keyed: Auth) -> None:
        """RFC 6750 section 3.1."""
        with pytest.raises(Unauthenticated) as missing:
            keyed.authenticate([HOST])
        with pytest.raises(Unauthenticated) as wrong:
            keyed.authenticate(bearer("Bearer nobody's"))
        challenges = [dict(problem(one.value).headers)[b"www-authenticate"] for one in (missing, wrong)]
        assert challenges == [b'Bearer realm="mesh"', b'Bearer realm="mesh", error="invalid_token"']

    def test_two_keys_are_none(self, keyed: Auth) -> None:
        with pytest.raises(Unauthenticated):
            keyed.authenticate([*bearer(f"Bearer {ALPHA}"), *bearer(f"Bearer {BETA}")])

    def test_keys_are_not_kept(self, keyed: Auth) -> None:
        """S14: what lies in memory beside the settings is a hash."""
        assert ALPHA not in repr(vars(keyed))


class TestWithoutKeys:
    @pytest.mark.parametrize(
        "host", [b"127.0.0.1:7411", b"localhost", b"LocalHost:80", b"[::1]:7411", b"mesh.localhost:1", b"127.1.2.3"]
    )
    def test_everybody_on_this_machine_is_default(self, keyless: Auth, host: bytes) -> None:
        assert keyless.authenticate([(b"host", host)]).namespace == "default"
        assert keyless.authenticate([(b"authorization", b"Bearer whatever"), (b"host", host)]).namespace == "default"

    @pytest.mark.parametrize(
        "host",
        [
            b"evil.example",
            b"127.0.0.1.evil.example",
            b"evil.example:7411",
            b"0.0.0.0:7411",
            b"localhost@evil.example",
            b"10.0.0.1",
            b"",
            b"localhost/x",
            b"[::1",
            b"\xff",
        ],
    )
    def test_a_rebound_name_is_refused(self, keyless: Auth, host: bytes) -> None:
        """DNS rebinding: the page's own name leads to 127.0.0.1, and the browser says so in Host."""
        with pytest.raises(Forbidden) as error:
            keyless.authenticate([(b"host", host)])
        assert error.value.code == "host_not_allowed"

    def test_a_request_without_host_is_refused(self, keyless: Auth) -> None:
        with pytest.raises(Forbidden):
            keyless.authenticate([])

    @pytest.mark.parametrize(
        "origin", [b"https://evil.example", b"null", b"http://127.0.0.1.evil.example", b"file://", b""]
    )
    def test_a_web_page_of_another_site_is_refused(self, keyless: Auth, origin: bytes) -> None:
        """A plain form post needs no permission of ours, and its Host is right."""
        with pytest.raises(Forbidden) as error:
            keyless.authenticate([HOST, (b"origin", origin)])
        assert error.value.code == "origin_not_allowed"

    def test_a_page_of_this_machine_is_welcome(self, keyless: Auth) -> None:
        assert keyless.authenticate([HOST, (b"origin", b"http://localhost:7411")]).namespace == "default"

    def test_hosts_are_remembered_and_bounded(self, keyless: Auth) -> None:
        for port in range(1_000):
            keyless.authenticate([(b"host", b"localhost:%d" % port)])
        assert len(keyless._hosts) == 64  # pyright: ignore[reportPrivateUsage]

    def test_both_refusals_are_problems(self, keyless: Auth) -> None:
        with pytest.raises(MeshError) as error:
            keyless.authenticate([(b"host", b"evil.example")])
        assert problem(error.value).status == 403
