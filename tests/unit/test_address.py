"""Store URLs."""

from __future__ import annotations

import pytest

from mesh.errors import ConfigError
from mesh.store.address import Address


class TestAddress:
    @pytest.mark.parametrize(
        ("url", "address", "shown"),
        [
            ("redis://h", Address(host="h"), "redis://h:6379/0"),
            (
                "valkey://u:p@h:1/2",
                Address(host="h", port=1, username="u", password="p", db=2),
                "redis://h:1/2",
            ),
            (
                "redis://:p%40@[::1]:7?db=4",
                Address(host="::1", port=7, password="p@", db=4),
                "redis://[::1]:7/4",
            ),
            ("unix:///run/s.sock?db=1", Address(path="/run/s.sock", db=1), "unix:///run/s.sock"),
        ],
    )
    def test_urls(self, url: str, address: Address, shown: str) -> None:
        assert Address.parse(url) == address
        assert str(address) == shown
        assert "p@" not in repr(address)

    @pytest.mark.parametrize(
        ("url", "says"),
        [
            ("localhost:6379", "scheme"),
            ("redis+sentinel://h", "Sentinel and Cluster"),
            ("redis://", "no host"),
            ("redis://h:99999", "well formed"),
            ("redis://h/one", "well formed"),
            ("redis://h/-1", "negative"),
            ("redis://h?socket_timeout=1", "socket_timeout"),
            ("redis://h?ssl_ca_certs=/x", "rediss"),
            ("rediss://h?ssl_ca_certs=/no/such/file", "names no file"),
            ("unix://s.sock", "absolute path"),
        ],
    )
    def test_bad_urls_say_what_is_wrong_and_never_the_password(self, url: str, says: str) -> None:
        with pytest.raises(ConfigError, match=says):
            Address.parse(url)
        with pytest.raises(ConfigError) as caught:
            Address.parse(url.replace("://", "://user:hunter2@"))
        assert "hunter2" not in str(caught.value)
