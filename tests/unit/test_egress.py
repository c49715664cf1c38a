"""Where the gateway may send: attacks that must fail, and what rules open (docs/why/attacks.md S1-S9)."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.egress import LOOKUPS_WAITING_MAX, REMEMBERED_MAX, Egress
from gateway.egress_rules import Rule, judged, span_of
from mesh.clock import monotonic_s
from mesh.errors import ConfigError, Malformed, NotSent
from mesh.ids import short_id
from tests.unit.pool_peers import OK, answering, on_both_loops, peer, pool_of, send, until

PUBLIC, OTHER_PUBLIC, PUBLIC_SIX = "93.184.216.34", "1.1.1.1", "2606:4700::1111"


class Names:
    """A name service that answers from a script: each look-up of a name takes its next answer, the last one stays."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): sets for name, sets in answers.items()}
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        answers = self.answers.get(host)
        if answers is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return answers.pop(0) if len(answers) > 1 else answers[0]


def always(*addresses: str) -> Callable[[str, int], list[str]]:
    def lookup(host: str, port: int) -> list[str]:
        return list(addresses)

    return lookup


@pytest.fixture
async def egress_of() -> AsyncIterator[Callable[..., Egress]]:
    made: list[Egress] = []

    def make(*allow: str, **options: object) -> Egress:
        made.append(Egress(allow=allow, **options))  # pyright: ignore[reportArgumentType]
        return made[-1]

    yield make
    for egress in made:
        egress.close()


def refused(egress: Egress, url: str) -> str:
    with pytest.raises(Malformed) as caught:
        egress.vet(url)
    assert caught.value.code == "url_forbidden"
    return caught.value.detail


async def refused_when_sent(egress: Egress, url: str) -> str:
    with pytest.raises(Malformed) as caught:
        await egress.resolve(url)
    assert caught.value.code == "url_forbidden"
    assert egress.cached(url) is None
    return caught.value.detail


# -- without any rule


FORBIDDEN = [
    # attack S1, not public
    "http://169.254.169.254/latest/meta-data/", "https://169.254.169.254/", "https://10.0.0.5/cb", "https://100.64.0.1/",
    "https://172.16.0.1/", "https://172.31.255.255/", "https://192.168.1.1/", "https://127.0.0.1/", "https://127.8.9.1/",
    "https://0.0.0.0/", "https://0.1.2.3/", "https://100.100.100.200/", "https://192.0.0.192/", "https://198.18.0.1/",
    "https://192.0.2.1/", "https://203.0.113.9/", "https://224.0.0.1/", "https://240.0.0.1/", "https://255.255.255.255/",
    "https://localhost/", "https://LOCALHOST/", "https://a.localhost/",
    # attack S2, spellings
    "https://127.1/", "https://0x7f000001/", "https://2130706433/", "https://0177.0.0.1/", "https://0/", "https://0x7f.1/",
    "https://①②⑦.⓪.⓪.①/", "https://127.0.0.1./", "https://127。0。0。1/",
    # attack S3, IPv6 forms
    "https://[::1]/", "https://[::]/", "https://[::ffff:127.0.0.1]/", "https://[::ffff:a00:5]/", "https://[64:ff9b::7f00:1]/",
    "https://[64:ff9b::169.254.169.254]/", "https://[64:ff9b:1::1]/", "https://[2002:7f00:1::]/", "https://[2001:0:1::1]/",
    "https://[::127.0.0.1]/", "https://[::ffff:0:127.0.0.1]/", "https://[fec0::1]/", "https://[fe80::1]/", "https://[ff02::1]/",
    "https://[fc00::1]/", "https://[fd00:ec2::254]/", "https://[fd20:ce::254]/", "https://[100::1]/", "https://[2001:db8::1]/",
    "https://[2606:4700::5efe:7f00:1]/", "https://[2606:4700::200:5efe:a00:1]/", "https://[4000::1]/", "https://[fe80::1%25lo]/",
    # attack S6, parser confusion
    "https://good.com\\@127.0.0.1/", "https://good.com:80@evil.com/", "https://good.com%2f@evil.com/", "https://u:p@h.com/",
    "https://h.com/#x", "https://h.com/\r\nx: y", "https://h.com\t/", "https://h.com/ x", "https://bücher.example/",
    # attack S7, ports and schemes
    "https://h.com:6379/", "https://h.com:22/", "https://h.com:99999/", "https://h.com:0/", "http://h.com/", "http://1.1.1.1/",
    "https://1.1.1.1:8443/", "gopher://h.com/", "file:///etc/passwd", "ftp://h.com/", "unix:///run/x", "//h.com/",
    "https://h.com/" + "a" * 4096, "h.com", "",
]  # fmt: skip


@pytest.mark.parametrize("url", FORBIDDEN)
async def test_an_attack_is_refused_at_admission_and_at_send(egress_of: Callable[..., Egress], url: str) -> None:
    egress = egress_of(lookup=Names(h_com=[[PUBLIC]], good_com=[[PUBLIC]]))
    assert refused(egress, url) == await refused_when_sent(egress, url)


@pytest.mark.parametrize(
    "url",
    ["https://h.com/cb?x=1", "HTTPS://H.com:443/", "https://xn--bcher-kva.h.com/", "https://1.1.1.1/", "https://[2606:4700::1]/",
     "https://[::ffff:1.1.1.1]/", "https://[64:ff9b::101:101]/"],
)  # fmt: skip
async def test_a_public_https_url_passes(egress_of: Callable[..., Egress], url: str) -> None:
    egress = egress_of(lookup=always(PUBLIC))
    egress.vet(url)
    assert (await egress.resolve(url)).addresses


async def test_a_literal_is_pinned_to_its_plain_form(egress_of: Callable[..., Egress]) -> None:
    egress = egress_of(lookup=Names())
    assert (await egress.resolve("https://[::ffff:1.1.1.1]/")).addresses == ("1.1.1.1",)
    assert (await egress.resolve("https://[64:ff9b::101:101]/")).addresses == ("64:ff9b::101:101",)


NOT_PUBLIC = (
    "127.0.0.1", "10.0.0.5", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1", "::", "::ffff:10.0.0.5",
    "64:ff9b::7f00:1", "2002:a00:5::", "fd00::1", "fe80::1", "fe80::1%eth0", "2606:4700::1%eth0", "fec0::1",
    "not an address", "127.1",
)  # fmt: skip


@pytest.mark.parametrize("address", NOT_PUBLIC)
async def test_a_name_is_refused_for_what_it_leads_to(egress_of: Callable[..., Egress], address: str) -> None:
    for answer in ([address], [PUBLIC, address], [address, PUBLIC], [PUBLIC, PUBLIC_SIX, OTHER_PUBLIC, address]):
        egress = egress_of(lookup=Names(h_com=[answer]))
        egress.vet("https://h.com/")
        detail = await refused_when_sent(egress, "https://h.com/secret?token=t")
        assert "https://h.com" in detail
        assert "secret" not in detail  # S12: the path and query may hold secrets
        assert address not in detail.split()  # what a name leads to inside is not told


async def test_a_name_that_turns_to_loopback_is_refused_at_the_next_send(egress_of: Callable[..., Egress]) -> None:
    names = Names(h_com=[[PUBLIC], ["127.0.0.1"]])
    egress = egress_of(lookup=names, remembered_s=0.05)
    target = await egress.resolve("https://h.com/")
    assert (target.host, target.addresses) == ("h.com", (PUBLIC,))
    await until(lambda: egress.cached("https://h.com/") is None)
    await refused_when_sent(egress, "https://h.com/")
    assert names.asked == ["h.com"] * 2


async def test_a_pinned_target_is_connected_to_without_asking_again(egress_of: Callable[..., Egress]) -> None:
    """The name leads to the peer once and to nowhere afterwards; both requests arrive, under the name."""
    names = Names(h_com=[["127.0.0.1"], ["127.0.0.99"]])
    egress = egress_of("h.com", lookup=names)
    async with peer(answering(OK)) as server, pool_of() as pool:
        target = await egress.resolve(f"http://h.com:{server.port}/")
        assert [(await send(pool, target)).status for _ in range(2)] == [200, 200]
    assert names.asked == ["h.com"]


# -- rules


RULES = [
    # rules, URL, what its name leads to (literals lead to themselves), whether it may be sent to
    (["10.0.0.0/8"], "http://10.0.0.5:8080/", True),
    (["10.0.0.0/8"], "http://10.0.0.5/", True),
    (["10.0.0.0/8:*"], "https://10.0.0.5:1/", True),
    (["10.0.0.0/8:8080"], "http://10.0.0.5:8080/", True),
    (["10.0.0.0/8:8080"], "http://10.0.0.5:8081/", False),
    (["10.0.0.0/8"], "http://192.168.0.1/", False),
    (["10.0.0.5"], "http://10.0.0.5:9/", True),
    (["10.0.0.5"], "http://10.0.0.6:9/", False),
    (["10.0.0.0/8"], "http://[::ffff:10.0.0.5]/", True),
    (["10.0.0.0/8"], "http://private.example/", True),
    (["10.0.0.0/8"], "http://mixed.example/", False),
    (["10.0.0.0/8"], "http://public.example/", False),
    (["10.0.0.0/8"], "https://public.example/", True),
    (["10.0.0.0/8"], "https://public.example:8443/", False),
    (["public.example:8443"], "https://public.example:8443/", True),
    (["public.example:8443"], "http://public.example:8443/", True),
    (["public.example:8443"], "http://public.example/", False),
    (["93.184.216.34:8443"], "https://public.example:8443/", True),
    (["private.example"], "http://private.example:8080/", True),
    (["PRIVATE.example"], "http://private.EXAMPLE:8080/", True),
    (["*.example"], "http://private.example:8080/", True),
    (["*.private.example"], "http://private.example:8080/", False),
    (["private.example"], "http://sub.private.example:8080/", False),
    (["private.example"], "http://10.0.0.5/", False),
    (["loop.example"], "http://loop.example:8080/", True),
    (["127.0.0.1:8080"], "http://localhost:8080/", True),
    (["127.0.0.1:8080"], "http://localhost:8081/", False),
    (["localhost:8080"], "http://localhost:8080/", True),
    (["fd00::/8"], "http://[fd00::1]:8080/", True),
    (["[fd00::/8]:8080"], "http://[fd00::1]:8080/", True),
    (["[fd00::/8]:8080"], "http://[fd00::1]:8081/", False),
    (["[fd00::1]"], "http://[fd00::1]:8081/", True),
    # What wide rules and names do not open
    (["0.0.0.0/0", "::/0"], "http://10.0.0.5/", True),
    (["0.0.0.0/0", "::/0"], "http://169.254.169.254/", False),
    (["0.0.0.0/0", "::/0"], "http://100.100.100.200/", False),
    (["0.0.0.0/0", "::/0"], "http://[fd00:ec2::254]/", False),
    (["0.0.0.0/0", "::/0"], "http://0.0.0.0/", False),
    (["0.0.0.0/0", "::/0"], "http://[2002:a00:5::]/", False),
    (["0.0.0.0/8", "224.0.0.0/4"], "http://0.0.0.0/", False),
    (["0.0.0.0/8", "224.0.0.0/4"], "http://224.0.0.1/", False),
    (["metadata.example"], "http://metadata.example/", False),
    (["169.254.0.0/16"], "http://169.254.169.254/", True),
    (["169.254.169.254"], "http://metadata.example/", True),
]


@pytest.mark.parametrize(("rules", "url", "may"), RULES)
async def test_a_rule_opens_what_it_names_and_nothing_else(
    egress_of: Callable[..., Egress], rules: list[str], url: str, may: bool
) -> None:
    names = Names(
        private_example=[["10.0.0.5"]], sub_private_example=[["10.0.0.5"]], mixed_example=[["10.0.0.5", "172.16.0.1"]],
        public_example=[[PUBLIC]], loop_example=[["127.0.0.1"]], metadata_example=[["169.254.169.254"]],
        localhost=[["127.0.0.1"]],
    )  # fmt: skip
    egress = egress_of(*rules, lookup=names)
    if may:
        egress.vet(url)
        assert (await egress.resolve(url)).addresses
    else:
        await refused_when_sent(egress, url)


@pytest.mark.parametrize(
    "rule",
    ["", "*", "*.", "10.0.0.0/33", "10.0.0.1/8", "10.0.0.5:0", "10.0.0.5:70000", "10.0.0.5:http", "h:", "h:+1", "h:1:2",
     "http://h/", "h/p", "u@h", "[fd00::/8", "[fd00::1]8080", "[fd00::1]:", "127.1", "h.*", "h*t", "bücher.x", "h:٣"],
)  # fmt: skip
def test_a_rule_that_cannot_be_read_is_named(rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Egress(allow=[rule])
    assert repr(rule) in str(caught.value)


async def test_development_opens_loopback_and_nothing_else(egress_of: Callable[..., Egress]) -> None:
    names = Names(localhost=[["::1", "127.0.0.1"]], host=[["127.0.1.1"]], lan=[["10.0.0.5"]], h_com=[[PUBLIC]])
    egress = egress_of(allow_loopback=True, lookup=names)
    for url in (
        "http://127.0.0.1:8001/",
        "http://localhost:8001/x",
        "http://[::1]:1/",
        "https://h.com/",
        "http://host:99/",
    ):
        egress.vet(url)
        await egress.resolve(url)
    for url in ("http://10.0.0.5/", "http://169.254.169.254/", "http://0.0.0.0:8001/", "http://[2002:7f00:1::]/"):
        refused(egress, url)
    await refused_when_sent(egress, "http://lan:8001/")


async def test_scheme_and_port_of_a_name_need_no_address_to_be_refused(egress_of: Callable[..., Egress]) -> None:
    """P19: also where the name leads nowhere, before anything is stored."""
    egress = egress_of("10.0.0.0/8:8080", "named.example:9000", allow_loopback=True, lookup=Names(h_com=[[PUBLIC]]))
    for url in ("http://h.com/", "https://h.com:8443/", "http://example.com/", "https://example.com:8443/"):
        refused(egress, url)
        await refused_when_sent(egress, url)
    for url in ("https://example.com/", "http://named.example:9000/", "http://inside.example:8080/", "http://host:1/"):
        egress.vet(url)


async def test_the_gateway_itself_is_no_receiver(egress_of: Callable[..., Egress]) -> None:
    names = Names(
        localhost=[["127.0.0.1"]], mesh_example=[["10.0.0.5"]], other_example=[["10.0.0.5"]], h_com=[[PUBLIC]]
    )
    wide = ("10.0.0.0/8", "mesh.example")
    egress = egress_of(*wide, allow_loopback=True, forbid=[("127.0.0.1", 7411)], lookup=names)
    await egress.resolve("http://10.0.0.5:7411/")
    for url in ("http://127.0.0.1:7411/x", "http://localhost:7411/x", "http://[::ffff:127.0.0.1]:7411/"):
        assert "this gateway itself" in await refused_when_sent(egress, url)
    await egress.resolve("http://127.0.0.1:7412/")
    await egress.resolve("http://[::1]:7411/")
    egress.forbid("0.0.0.0", 7411)
    assert egress.cached("http://[::1]:7411/") is None
    for url in ("http://127.0.0.1:7411/", "http://127.0.0.9:7411/", "http://[::1]:7411/"):
        assert "this gateway itself" in refused(egress, url)
    await egress.resolve("http://10.0.0.5:7411/")  # not an address of this machine
    egress.forbid("mesh.example", 80)
    assert "this gateway itself" in refused(egress, "http://mesh.example/")
    egress.forbid("10.0.0.5", 80)
    assert "this gateway itself" in await refused_when_sent(egress, "http://other.example/")


def test_a_wildcard_listener_is_on_every_address_of_this_machine() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))  # sends nothing; tells which of our addresses would
        except OSError:
            pytest.skip("no address but loopback")
        address = probe.getsockname()[0]
    refused(Egress(allow=[address], forbid=[("::", 80)]), f"http://{address}/")
    Egress(allow=[address], forbid=[("::", 80)]).vet(f"http://{address}:81/")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://10.0.0.5/", ["https://10.0.0.5:443", "private (RFC 1918)", 'add "10.0.0.0/8:443" to egress.allow']),
        ("https://169.254.169.254/", ["metadata", "a part of 169.254.0.0/16"]),
        ("https://224.0.0.1/", ["multicast", "No egress rule opens"]),
        ("http://h.com/", ["not https", 'add "h.com:80" to egress.allow']),
        ("https://h.com:8443/", ["port 8443", 'add "h.com:8443" to egress.allow']),
        ("https://u:secret@h.com/", ["credentials in a header"]),
    ],
)
async def test_a_refusal_says_what_where_and_how_to_mend(
    egress_of: Callable[..., Egress], url: str, words: list[str]
) -> None:
    detail = refused(egress_of(), url)
    assert [word for word in words if word not in detail] == []
    assert "secret" not in detail


# -- the table


@given(st.one_of(st.integers(0, 2**32 - 1).map(IPv4Address), st.integers(0, 2**128 - 1).map(IPv6Address)))
def test_whatever_the_standard_library_calls_not_global_is_in_our_table(address: IPv4Address | IPv6Address) -> None:
    assert address.is_global or span_of(judged(address)) is not None


@given(st.integers(0, 2**32 - 1).map(IPv4Address))
def test_an_ipv4_address_inside_ipv6_is_as_public_as_itself_at_most(address: IPv4Address) -> None:
    inside = int(address)
    for form in (0xFFFF << 32 | inside, int(IPv6Address("64:ff9b::")) | inside):
        assert span_of(judged(IPv6Address(form))) == span_of(address)
    for form in (inside, 0xFFFF << 48 | inside, 0x2002 << 112 | inside << 80, 0x20010000 << 96 | inside):
        assert span_of(judged(IPv6Address(form))) is not None


def test_rules_are_read_as_written() -> None:
    assert Rule.parse("[::1]:80").port == 80
    assert str(Rule.parse("fd00::/8").network) == "fd00::/8"
    assert Rule.parse("*.Example:*") == Rule(None, "*.example", None)


# -- names: remembered, asked for once, bounded


async def test_answers_are_shared_by_all_urls_of_a_name_for_a_while(egress_of: Callable[..., Egress]) -> None:
    names = Names(h_com=[[PUBLIC, PUBLIC_SIX]])
    egress = egress_of(lookup=names)
    first = await egress.resolve("https://h.com/a")
    assert egress.cached("https://h.com/a") is first is await egress.resolve("https://h.com/a")
    assert egress.cached("https://h.com/b") is None
    assert (await egress.resolve("https://h.com/b")).addresses == (PUBLIC, PUBLIC_SIX)
    assert names.asked == ["h.com"]


async def test_what_is_remembered_is_bounded(egress_of: Callable[..., Egress]) -> None:
    egress = egress_of()
    for number in range(REMEMBERED_MAX + 10):
        await egress.resolve(f"https://1.1.1.1/{number}")
    assert len(egress._targets) == REMEMBERED_MAX
    assert egress.cached("https://1.1.1.1/0") is None
    assert egress.cached(f"https://1.1.1.1/{REMEMBERED_MAX + 9}") is not None


async def test_many_who_ask_at_once_share_one_look_up(egress_of: Callable[..., Egress]) -> None:
    names = Names(h_com=[[PUBLIC]])
    egress = egress_of(lookup=names)
    targets = await asyncio.gather(*(egress.resolve(f"https://h.com/{number}") for number in range(50)))
    assert {target.addresses for target in targets} == {(PUBLIC,)}
    assert names.asked == ["h.com"]


async def test_canceling_one_who_asks_does_not_disturb_the_others(egress_of: Callable[..., Egress]) -> None:
    go = threading.Event()

    def slow(host: str, port: int) -> list[str]:
        go.wait(30)
        return [PUBLIC]

    egress = egress_of(lookup=slow)
    first, second = (asyncio.ensure_future(egress.resolve("https://h.com/")) for _ in range(2))
    await until(lambda: bool(egress._looking))
    first.cancel()
    await asyncio.wait([first])
    go.set()
    assert (await second).addresses == (PUBLIC,)


async def test_a_name_that_cannot_be_looked_up_is_not_sent(egress_of: Callable[..., Egress]) -> None:
    go = threading.Event()

    def hanging(host: str, port: int) -> list[str]:
        go.wait(30)
        return [PUBLIC]

    with pytest.raises(NotSent, match="Name or service not known"):
        await egress_of(lookup=Names()).resolve("https://h.com/")
    with pytest.raises(NotSent, match="no address"):
        await egress_of(lookup=always()).resolve("https://h.com/")
    egress = egress_of(lookup=hanging, lookup_timeout_s=0.1)
    began_s = monotonic_s()
    waits = [egress.resolve(f"https://{short_id('h')}.com/") for _ in range(LOOKUPS_WAITING_MAX + 1)]
    outcomes = await asyncio.gather(*waits, return_exceptions=True)
    go.set()
    assert {type(outcome) for outcome in outcomes} == {NotSent}
    assert sum("waiting already" in str(outcome) for outcome in outcomes) == 1
    assert monotonic_s() - began_s < 15


@on_both_loops
async def test_the_real_name_service_and_the_real_pool() -> None:
    egress = Egress(allow_loopback=True)
    try:
        async with peer(answering(OK)) as server, pool_of() as pool:
            url = f"http://localhost:{server.port}/"
            egress.vet(url)
            assert (await send(pool, await egress.resolve(url))).status == 200
        await refused_when_sent(Egress(), url)
    finally:
        egress.close()
