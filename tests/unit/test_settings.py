"""Settings: what may be set, what must fit together, and errors that name file, key and mend in one line."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from gateway.settings import DEFAULT_NAMESPACE, Settings, is_loopback
from gateway.settings_file import load
from mesh.errors import ConfigError
from mesh.store.gate import Durability
from mesh.tokens import CompletionTokens, new_webhook_secret

ROOT = Path(__file__).parents[2]
KEY = "alpha-key-0123456789"
SECRET = "s" * 32
SERVED = {"MESH_STORE_URL": "redis://store:6379/0", "MESH_TOKEN_SECRET": SECRET}


def read(tmp_path: Path, text: str, env: dict[str, str] | None = None, **options: Any) -> Settings:
    path = tmp_path / "mesh.toml"
    path.write_text(text)
    return load(path, env=env or {}, **options)


def why(tmp_path: Path, text: str, env: dict[str, str] | None = None, **options: Any) -> str:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text, env, **options)
    assert "\n" not in error.value.detail
    return error.value.detail.replace(str(tmp_path) + "/", "")


class TestDefaults:
    def test_nothing_said_is_a_development_gateway(self) -> None:
        """P5: loopback, one namespace, no keys."""
        settings = load(env={})
        gateway = settings.gateway
        assert (gateway.host, gateway.port, gateway.wait_default_ms, gateway.wait_max_ms) == (
            "127.0.0.1",
            7411,
            2_000,
            60_000,
        )
        assert (gateway.body_bytes_max, gateway.retention_ms) == (2 * 1024 * 1024, 7 * 86_400_000)
        assert settings.store.durability is Durability.ALWAYS
        assert settings.egress.allow_loopback
        assert settings.keyless
        assert [one.name for one in settings.namespaces] == [DEFAULT_NAMESPACE]
        assert settings.tokens.keys == {}
        assert settings.memory() is None

    def test_what_the_file_says(self, tmp_path: Path) -> None:
        secret = new_webhook_secret()
        settings = read(
            tmp_path,
            f"""
            [store]
            url = "unix:///run/store.sock"
            durability = "everysec"
            state_file = "/var/lib/mesh/state.json"
            [gateway]
            name = "g1"
            host = "0.0.0.0"
            port = 0
            public_url = "https://mesh.example/"
            [[namespaces]]
            name = "research"
            keys = ["{KEY}", "sha256:{sha256(b"other").hexdigest()}"]
            webhook_secret = "{secret}"
            admin = true
            [egress]
            allow = ["10.77.0.0/24:*"]
            [tokens]
            current = "b"
            keys = {{ a = "{"a" * 32}", b = "{"b" * 32}" }}
            """,
            serve=True,
        )
        (research,) = settings.namespaces
        assert research.digests == [sha256(KEY.encode()).digest(), sha256(b"other").digest()]
        assert (research.webhook_secret, research.admin) == (secret, True)
        assert (settings.store.durability, settings.gateway.public_url) == (Durability.EVERYSEC, "https://mesh.example")
        assert not settings.egress.allow_loopback
        assert str(settings.store.state_file) == "/var/lib/mesh/state.json"
        assert settings.memory() is not None
        CompletionTokens(settings.tokens.keys, settings.tokens.current)

    def test_the_deployed_file_serves_with_a_token_secret(self) -> None:
        settings = load(ROOT / "deploy" / "mesh.toml", serve=True, env={"MESH_TOKEN_SECRET": SECRET})
        assert not settings.keyless


class TestEnvironmentAndCommandLine:
    def test_the_environment_stands_above_the_file(self, tmp_path: Path) -> None:
        text = f"""
            [store]
            url = "redis://file:1/0"
            [tokens]
            current = "a"
            keys = {{ a = "{"a" * 32}" }}
            """
        settings = read(tmp_path, text, SERVED, serve=True)
        assert settings.store.url == SERVED["MESH_STORE_URL"]
        assert settings.tokens.current == "env"
        assert set(settings.tokens.keys) == {"a", "env"}  # the earlier key is still accepted

    def test_the_command_line_stands_above_both(self, tmp_path: Path) -> None:
        settings = read(tmp_path, "[gateway]\nport = 1\n", overrides={"gateway": {"port": 2, "host": None}})
        assert (settings.gateway.port, settings.gateway.host) == (2, "127.0.0.1")

    def test_the_bound_port_makes_the_public_url_unless_one_was_given(self, tmp_path: Path) -> None:
        assert load(env={}).bound("127.0.0.1", 9_000).gateway.public_url == "http://127.0.0.1:9000"
        assert load(env={}).bound("::1", 9_000).gateway.public_url == "http://[::1]:9000"
        given = read(tmp_path, '[gateway]\npublic_url = "http://mesh:1"\n').bound("127.0.0.1", 9_000)
        assert (given.gateway.public_url, given.gateway.port) == ("http://mesh:1", 9_000)


class TestErrors:
    @pytest.mark.parametrize(
        ("text", "wanted"),
        [
            ("a = [", "mesh.toml: not TOML: "),
            ("gateway = 1", "mesh.toml: gateway: not a table; write it as [gateway]"),
            (
                "[gatway]",
                "mesh.toml: gatway: not a known setting; known here: store, gateway, namespaces, egress, tokens",
            ),
            ("[gateway]\nprot = 1", "mesh.toml: gateway.prot: not a known setting; known here: name, host, port,"),
            (
                "[gateway]\nport = 70000",
                "mesh.toml: gateway.port: input should be less than or equal to 65535; give a TCP port",
            ),
            ('[gateway]\nport = "1"', "mesh.toml: gateway.port: input should be a valid integer; give a TCP port"),
            ('[gateway]\nname = "a.b"', "mesh.toml: gateway.name: "),
            ('[gateway]\npublic_url = "mesh:7411"', "mesh.toml: gateway.public_url: not an http:// or https:// URL"),
            ("[gateway]\nwait_default_ms = 9\nwait_max_ms = 8", "mesh.toml: gateway.wait_default_ms: more than"),
            ("[gateway]\nbody_bytes_max = 1", "mesh.toml: gateway.body_bytes_max: "),
            ("[gateway]\ndrain_s = 60", "mesh.toml: gateway.drain_s: "),
            ('[store]\nurl = "http://store"', "mesh.toml: store.url: store URL scheme 'http' is not known"),
            ('[store]\ndurability = "never"', "mesh.toml: store.durability: input should be 'always', 'everysec'"),
            ('[egress]\nallow = ["10.0.0.0/33"]', "mesh.toml: egress.allow[0]: "),
            ("[[namespaces]]", "mesh.toml: namespaces[0].name: this field is required; give a name such as"),
            ('[[namespaces]]\nname = "A"', "mesh.toml: namespaces[0].name: a namespace name has"),
            ('[[namespaces]]\nname = "a"', "mesh.toml: namespaces[0].keys: nobody could use 'a'; give it a key"),
            ('[[namespaces]]\nname = "a"\nkeys = ["short"]', "mesh.toml: namespaces[0].keys[0]: a key has 16 to 512"),
            (
                '[[namespaces]]\nname = "a"\nkeys = ["sha256:00"]',
                "mesh.toml: namespaces[0].keys[0]: sha256: is followed",
            ),
            ('[[namespaces]]\nname = "a"\nwebhook_secret = "x"', "mesh.toml: namespaces[0].webhook_secret: a webhook"),
            ('[tokens]\ncurrent = "a"\nkeys = { a = "short" }', "mesh.toml: tokens.keys.a: a completion key has"),
            (f'[tokens]\nkeys = {{ a = "{SECRET}" }}', "mesh.toml: tokens.current: no key of that id; name one of a"),
        ],
    )
    def test_one_line_names_file_key_and_mend(self, tmp_path: Path, text: str, wanted: str) -> None:
        assert why(tmp_path, text).startswith(wanted)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read: .*--config"):
            load(tmp_path / "absent.toml", env={})

    def test_two_namespaces_do_not_share_a_key_or_a_name(self, tmp_path: Path) -> None:
        two = f'[[namespaces]]\nname = "a"\nkeys = ["{KEY}"]\n[[namespaces]]\nname = "{{}}"\nkeys = ["{{}}"]\n'
        assert "'b' shares a key with 'a'" in why(tmp_path, two.format("b", KEY))
        assert "'a' is there twice" in why(tmp_path, two.format("a", KEY + "x"))
        hashed = f"sha256:{sha256(KEY.encode()).hexdigest()}"
        assert "shares a key" in why(tmp_path, two.format("b", hashed))

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "mesh.example"])
    def test_without_keys_only_loopback(self, tmp_path: Path, host: str) -> None:
        """P5: the start is refused."""
        assert why(tmp_path, f'[gateway]\nhost = "{host}"').startswith(
            f"mesh.toml: gateway.host: {host} can be reached"
        )

    def test_every_address_needs_a_public_url(self, tmp_path: Path) -> None:
        text = f'[gateway]\nhost = "0.0.0.0"\n[[namespaces]]\nname = "a"\nkeys = ["{KEY}"]\n'
        assert why(tmp_path, text).startswith("mesh.toml: gateway.public_url: missing")

    def test_serve_needs_a_store_and_completion_keys(self, tmp_path: Path) -> None:
        """Gateways of one store must accept each other's tokens."""
        assert why(tmp_path, "", serve=True).startswith("mesh.toml: store.url: missing")
        only_store = {"MESH_STORE_URL": SERVED["MESH_STORE_URL"]}
        assert why(tmp_path, "", only_store, serve=True).startswith("mesh.toml: tokens.keys: missing")
        assert read(tmp_path, "", SERVED, serve=True).store.url

    def test_no_message_and_no_printed_form_shows_a_secret(self, tmp_path: Path) -> None:
        canary = "CANARY7351"
        texts = [
            f'[store]\nurl = "ftp://user:{canary}@store"',
            f'[[namespaces]]\nname = "a"\nkeys = ["{canary}"]',
            f'[[namespaces]]\nname = "a"\nwebhook_secret = "{canary}"',
            f'[tokens]\nkeys = {{ a = "{canary}" }}',
            f'[tokens]\nkeys = "{canary}"',
        ]
        assert not any(canary in why(tmp_path, text) for text in texts)
        assert canary not in why(tmp_path, "", {"MESH_TOKEN_SECRET": canary})
        fine = read(
            tmp_path,
            f'[store]\nurl = "redis://user:{canary}@store/0"\n[[namespaces]]\nname = "a"\nkeys = ["{canary * 3}"]\n',
            {"MESH_TOKEN_SECRET": canary * 4},
        )
        assert canary not in f"{fine!r} {fine!s}"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("a.localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("2130706433", False),
        ("", False),
    ],
)
def test_what_surely_means_this_machine(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
