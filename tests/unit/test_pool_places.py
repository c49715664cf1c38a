"""Where requests go and what is never sent: addresses, names, TLS, forged lines, unclear URLs (S2-S8, S19)."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from mesh.clock import monotonic_s
from mesh.errors import Malformed, NotSent
from mesh.pool import Target
from tests.unit.pool_peers import (
    OK,
    TIMEOUT_S,
    Line,
    answering,
    answering_then_closing,
    on_both_loops,
    peer,
    pool_of,
    send,
    until,
)

# -- requests that are not sent


@on_both_loops
async def test_connection_refused_is_not_sent() -> None:
    async with peer(answering(OK)) as server:
        target = server.target
    async with pool_of() as pool:
        with pytest.raises(NotSent, match="refused"):
            await send(pool, target)


@on_both_loops
async def test_a_name_that_does_not_resolve_is_not_sent() -> None:
    async with pool_of(connect_timeout_s=1.0) as pool:
        with pytest.raises(NotSent, match=r"Could not resolve agent\.invalid"):
            await send(pool, Target.parse("http://agent.invalid/"))


@on_both_loops
async def test_a_connect_that_hangs_is_not_sent() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        address = deaf.getsockname()
        with socket.create_connection(address):  # the backlog is full now; further SYNs go unanswered
            target = Target.parse(f"http://127.0.0.1:{address[1]}/")
            for option, timeout_s in ((0.1, TIMEOUT_S), (TIMEOUT_S, 0.1)):
                async with pool_of(connect_timeout_s=option) as pool:
                    began_s = monotonic_s()
                    with pytest.raises(NotSent, match="no answer in time"):
                        await send(pool, target, timeout_s=timeout_s)
                    assert monotonic_s() - began_s < TIMEOUT_S


UNSENDABLE_HEADERS = [
    (b"x", b"a\r\ninjected: b"), (b"x", b"a\rb"), (b"x", b"a\nb"), (b"x", b"\x00"), (b"x", b"\x7f"),
    (b"x\r\ninjected", b"b"), (b"x y", b"b"), (b"x:", b"b"), (b"", b"b"), (b"\xff", b"b"),
    (b"Host", b"evil"), (b"Content-Length", b"0"), (b"transfer-encoding", b"chunked"),
    (b"connection", b"close"), (b"Accept-Encoding", b"gzip"), (b"expect", b"100-continue"), (b"TE", b"x"),
]  # fmt: skip
UNSENDABLE_PATHS = [b"", b"x", b"http://evil/", b"/a b", b"/a\r\nx: y", b"/\xff", b"/a#b", b"/\x00"]


@on_both_loops
async def test_what_would_forge_a_line_is_refused_before_anything_is_sent() -> None:
    async with peer(answering(OK)) as server, pool_of() as pool:
        for name, value in UNSENDABLE_HEADERS:
            with pytest.raises(Malformed) as caught:
                await pool.post(server.target, b"/", [(b"good", b"1"), (name, value)], b"", timeout_s=1)
            assert caught.value.code == "request_invalid"
        for path in UNSENDABLE_PATHS:
            with pytest.raises(Malformed):
                await pool.post(server.target, path, [], b"", timeout_s=1)
        for method in (b"", b"GET /", b"CONNECT", b"GET\r\n"):
            with pytest.raises(Malformed):
                await pool.request(method, server.target, b"/", timeout_s=1)
        assert server.connections == 0


# -- where it connects


@on_both_loops
async def test_a_pinned_target_goes_to_its_addresses_under_its_own_name() -> None:
    heads: list[bytes] = []

    async def script(line: Line) -> None:
        while True:
            heads.append(await line.request())
            line.send(OK)

    async with peer(script) as server, pool_of() as pool:
        url = f"http://agent.example:{server.port}/"
        await send(pool, Target.parse(url).pinned(("127.0.0.1",)))
        await send(pool, Target.parse(url).pinned(("127.0.0.77", "127.0.0.1")))  # the first one refuses
        assert [head.split(b"\r\n")[1] for head in heads] == [b"host: agent.example:%d" % server.port] * 2
        assert server.connections == 1


@on_both_loops
async def test_a_connection_to_an_address_no_longer_allowed_is_not_used_again() -> None:
    async with peer(answering(OK)) as old, pool_of() as pool:
        two = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nnew"
        async with peer(answering(two), host="127.0.0.2", port=old.port):
            target = Target.parse(f"http://agent.example:{old.port}/")
            assert (await send(pool, target.pinned(("127.0.0.1",)))).body == b"ok"
            assert (await send(pool, target.pinned(("127.0.0.2",)))).body == b"new"
            await until(lambda: pool.stats()["open"] == 1 and not old.lines)


@on_both_loops
async def test_a_waiter_does_not_take_over_a_connection_to_another_address() -> None:
    other = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nother"
    async with peer(answering(OK)) as one, peer(answering(other), host="127.0.0.2", port=one.port):
        target = Target.parse(f"http://agent.example:{one.port}/")
        pinned = [target.pinned((f"127.0.0.{number}",)) for number in (1, 2, 1, 2, 2)]
        async with pool_of(max_per_host=1) as pool:
            replies = await asyncio.gather(*(send(pool, there) for there in pinned))
            assert [reply.body for reply in replies] == [b"ok", b"other", b"ok", b"other", b"other"]


@on_both_loops
async def test_an_unpinned_name_is_resolved_when_connecting() -> None:
    async with peer(answering(OK)) as server, pool_of() as pool:
        assert (await send(pool, Target.parse(f"http://localhost:{server.port}/"))).status == 200


@on_both_loops
async def test_proxy_settings_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    async with peer(answering(OK)) as proxy, peer(answering(OK)) as server, pool_of() as pool:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        await send(pool, server.target)
        assert (server.connections, proxy.connections) == (1, 0)


# -- TLS


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a self-signed certificate for `agent.example`, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make a certificate with")
    path = tmp_path_factory.mktemp("tls") / "agent.pem"
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=agent.example"
    names = ("-addext", "subjectAltName=DNS:agent.example")
    command = ["openssl", *options.split(), *names, "-keyout", str(path), "-out", str(path) + ".crt"]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


@pytest.fixture
def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def https(port: int, name: str = "agent.example") -> Target:
    return Target.parse(f"https://{name}:{port}/").pinned(("127.0.0.1",))


@on_both_loops
async def test_tls_checks_the_name_and_sends_it(certificate: Path, server_tls: ssl.SSLContext) -> None:
    names: list[str] = []
    server_tls.sni_callback = lambda _, name, __: names.append(name)  # pyright: ignore[reportAttributeAccessIssue]
    trust = ssl.create_default_context(cafile=str(certificate) + ".crt")
    async with peer(answering(OK), tls=server_tls) as server, pool_of(tls=trust) as pool:
        for _ in range(2):
            assert (await send(pool, https(server.port))).body == b"ok"
        assert (names, server.connections) == (["agent.example"], 1)
        with pytest.raises(NotSent, match="certificate was refused"):
            await send(pool, https(server.port, "other.example"))


@on_both_loops
async def test_tls_failures_are_not_sent(server_tls: ssl.SSLContext) -> None:
    async with peer(answering(OK), tls=server_tls) as server, pool_of() as pool:
        with pytest.raises(NotSent, match="certificate was refused"):
            await send(pool, https(server.port))
    async with peer(answering_then_closing(b"plain")) as server, pool_of(connect_timeout_s=0.5) as pool:
        with pytest.raises(NotSent):
            await send(pool, https(server.port))


# -- the URL parser


def test_a_url_is_read_once_and_strictly() -> None:
    target = Target.parse("HTTPS://Agent_1.Example:8443/a%2Fb/?x=http://h/?y=1@2")
    assert (target.scheme, target.host, target.port) == ("https", "agent_1.example", 8443)
    assert target.path == b"/a%2Fb/?x=http://h/?y=1@2"
    assert target.origin == "https://agent_1.example:8443"
    assert target.addresses == ()
    assert Target.parse("http://h").path == b"/"
    assert Target.parse("http://h?").under(b"/s") == b"/s"
    assert Target.parse("http://h?q").path == b"/?q"
    assert b"host: h\r\n" in Target.parse("https://h:443/").tail
    six = Target.parse("http://[0:0::1]:80/")
    assert (six.host, six.addresses, six.origin) == ("::1", ("::1",), "http://[::1]:80")
    assert b"host: [::1]\r\n" in six.tail


BAD_URLS = [
    "", "h", "/p", "//h/p", "http:/h", "http:h", "http://", "http:///p", "ftp://h/", "gopher://h/", "file:///etc/passwd",
    "http://h:0/", "http://h:99999/", "http://h:/", "http://h:080/", "http://h:8 0/", "http://h:-1/", "http://h:٣/",
    "http://u@h/", "http://u:p@h/", "http://@h/", "https://good.com\\@127.0.0.1/", "https://good.com:80@evil.com/",
    "https://good.com%2f@evil.com/", "https://good.com%2fevil.com/", "http://h/#f", "http://h#@evil/", "http://h/a b",
    "http://h/\t", "http://h/\r\nx: y", "http://h\x00/", "http://h/\x7f", "http://bücher.example/", "http://h/é",
    "http://①②⑦.⓪.⓪.①/", "http://127.1/", "http://0x7f000001/", "http://2130706433/", "http://0177.0.0.1/", "http://0/",
    "http://127.0.0.01/", "http://1.2.3.4.5/", "http://256.1.1.1/", "http://1.2.3.0x4/", "http://a.1/", "http://0x/",
    "http://.h/", "http://h./", "http://a..b/", "http://-h/", "http://h-/", "http://[::1/", "http://::1/", "http://[]/",
    "http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/", "http://[127.0.0.1]/", "http://[::1]x/", "http://[::1]:/",
    "http://[v1.x]/", "http://h" + "a" * 5000, "http://" + "a" * 64 + "/", "http://" + "a." * 130 + "a/", " http://h/",
    "http://h/ ", "http://a,b/", "http://a;b/", "http://*/", "http://h\u3002c/", "http://h%00/", "http://h|x/",
]  # fmt: skip


@pytest.mark.parametrize("url", BAD_URLS)
def test_an_unclear_url_is_refused(url: str) -> None:
    with pytest.raises(Malformed) as caught:
        Target.parse(url)
    assert caught.value.code == "url_invalid"
