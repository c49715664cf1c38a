"""Names, durations, `Prefer`, times and links on the wire. Case numbers are those of mesh/check/cases."""

from contextlib import suppress
from email.utils import parsedate_to_datetime
from time import thread_time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import wire
from mesh.clock import to_http_date, to_rfc3339
from mesh.errors import Malformed, NotFound
from mesh.wire import Link

BASE = b"/nexus/endpoints/"
control = {*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0))}
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=80).filter(
    lambda name: name not in {".", ".."}
)


# Names and paths


@pytest.mark.parametrize(
    ("raw", "segments"),
    [
        (b"a/services/svc/op", ["a", "services", "svc", "op"]),
        (b"a%2Fb/c%20d/%C3%A9/100%25", ["a/b", "c d", "é", "100%"]),  # case 10
        (b"%252f", ["%2f"]),  # decoded exactly once
        (b"a//b/", ["a", "", "b", ""]),
        (b"a?callback=http://x/y/%ff", ["a"]),
        (b"\xc3\xa9", ["é"]),
        (b"a:b/%7Bx%7D/...", ["a:b", "{x}", "..."]),
        (b"", []),
    ],
)
def test_a_raw_path_is_decoded_once_segment_by_segment(raw: bytes, segments: list[str]) -> None:
    assert wire.split_path(BASE + raw, BASE) == segments
    assert wire.split_path(b"/deep/prefix/" + raw, b"/deep/prefix") == segments  # case 14


@pytest.mark.parametrize(
    "raw",
    # Case 13 and the inputs of docs/why/attacks.md S25.
    [b"a%", b"a%2", b"a%zz/b", b"%ff", b"%C3/x", b"\xff", b"a%00b", b"a%0d%0aX", b"a\x00", b"%C2%85", b"%7f",
     b"..", b"%2e%2e/x", b"a/./b", b"%2E"],
)  # fmt: skip
def test_paths_with_tricks_are_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        wire.split_path(BASE + raw, BASE)
    assert caught.value.code == "path_invalid"


@pytest.mark.parametrize("raw", [b"/nexus", b"/nexus/endpointsX/a", b"/other", b""])
def test_a_path_under_another_prefix_is_not_found(raw: bytes) -> None:
    with pytest.raises(NotFound):
        wire.split_path(raw, BASE.rstrip(b"/"))


@given(st.lists(names, min_size=1, max_size=4))
def test_any_names_survive_the_path(parts: list[str]) -> None:
    raw = "/".join(map(wire.quote_segment, parts)).encode()
    assert wire.split_path(BASE + raw, BASE) == parts
    assert all(wire.check_service(part) == part for part in parts)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_path_or_malformed(raw: bytes) -> None:
    try:
        segments = wire.split_path(BASE + raw, BASE)
    except Malformed:
        return
    assert control.isdisjoint("".join(segments))


@pytest.mark.parametrize("name", ["", ".", "..", "a\nb", "\x00", "x\x1b[2J", "\ud800", "a" * 1001, "é" * 501])
def test_service_and_operation_names_have_limits(name: str) -> None:
    for check in (wire.check_service, wire.check_operation):  # case 88
        with pytest.raises(Malformed) as caught:
            check(name)
        assert caught.value.code == "name_invalid"


def test_the_longest_names_pass() -> None:
    assert wire.check_service("a" * 1000) == "a" * 1000
    assert wire.check_operation("é" * 500) == "é" * 500
    assert wire.check_endpoint("a" * 200) == "a" * 200


@pytest.mark.parametrize("name", ["ab", "payments-eu", "A.b_c-9"])
def test_endpoint_names(name: str) -> None:
    assert wire.check_endpoint(name) == name


@pytest.mark.parametrize("name", ["", "a", "1a", "-ab", "ab-", "ab.", "a b", "a/b", "äb", "ab\n", "a" * 201])
def test_bad_endpoint_names(name: str) -> None:
    with pytest.raises(Malformed, match="endpoint name"):
        wire.check_endpoint(name)


@pytest.mark.parametrize("name", [".", "..", "\ud800"])
def test_what_no_url_carries_cannot_be_quoted(name: str) -> None:
    with pytest.raises(Malformed):
        wire.quote_segment(name)


# Time


@pytest.mark.parametrize(
    ("text", "ms"),
    [("1.5s", 1500), ("2m", 120_000), ("250ms", 250), ("0.5m", 30_000), ("1.0019s", 1001), ("250.9ms", 250),
     ("", None), ("0ms", None), ("0.1ms", None)],
)  # fmt: skip
def test_durations(text: str, ms: int | None) -> None:
    assert wire.parse_duration_ms(text) == ms  # cases 24, 25


@pytest.mark.parametrize(
    "text",
    [
        "5",
        "1h",
        "-1s",
        " 1s",
        "1s ",
        "1s\n",
        "1 s",
        "+1s",
        ".5s",
        "1.s",
        "1e3s",
        "1S",
        "\u0661s",
        "s",
        "9" * 31 + "m",
    ],
)
def test_bad_durations(text: str) -> None:
    with pytest.raises(Malformed):
        wire.parse_duration_ms(text)  # cases 25, 26


@given(st.integers(1, wire.DURATION_MS_MAX))
def test_durations_survive_the_wire(ms: int) -> None:
    assert wire.parse_duration_ms(wire.format_duration(ms)) == ms


def test_durations_are_written_as_whole_milliseconds() -> None:
    assert [wire.format_duration(ms) for ms in (9997, 9997.9, 0, -3)] == ["9997ms", "9997ms", "0ms", "0ms"]


@pytest.mark.parametrize(
    ("values", "wait_s", "respond_async"),
    [
        ([], None, False),
        (["wait=10"], 10, False),
        (["respond-async, wait=10"], 10, True),
        (["respond-async", "wait=0"], 0, True),
        (["RESPOND-ASYNC ; x=1"], None, True),
        (['wait = "10" ; a="b,c"'], 10, False),
        (["wait=2.5"], 2.5, False),
        (["wait=1, wait=x"], 1, False),  # RFC 7240 section 2: only the first counts
        (['foo="respond-async, wait=7", handling=lenient'], None, False),
        (['foo="a\\", wait=7'], None, False),
    ],
)
def test_prefer(values: list[str], wait_s: float | None, respond_async: bool) -> None:
    assert wire.parse_prefer(values) == (wait_s, respond_async)


@pytest.mark.parametrize("value", ["wait", "wait=", "wait=x", "wait=-1", "wait=nan", "wait=1e3", "x" * 1025])
def test_bad_waits(value: str) -> None:
    with pytest.raises(Malformed):
        wire.parse_prefer([value])


@given(st.integers(0, 4_102_444_800))
def test_times_survive_the_wire(at_s: int) -> None:
    assert wire.parse_http_date(to_http_date(at_s * 1000)) == at_s * 1000
    assert wire.parse_rfc3339(to_rfc3339(at_s * 1000 + 123)) == at_s * 1000 + 123


@pytest.mark.parametrize(
    "text",
    ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994",
     "Sun, 6 Nov 1994 09:49:37 +0100", "06 Nov 1994 03:19:37 -0530"],
)  # fmt: skip
def test_every_form_of_http_date(text: str) -> None:
    assert wire.parse_http_date(text) == 784_111_777_000
    assert parsedate_to_datetime(text).second == 37


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "0", "Sun, 31 Feb 1994 08:49:37 GMT", "Sun, 06 Foo 1994 08:49:37 GMT",
     "Sun, 06 Nov 1994",
     "Sun, 06 Nov 1994 08:49:37", "Sun, 06 Nov 1994 25:00:00 GMT", "Sun, 06 Nov 1994 08:49:37 +9900",
     "Sun, 06 Nov 0000 08:49:37 GMT"],
)  # fmt: skip
def test_bad_http_dates(text: str) -> None:
    with pytest.raises(Malformed):
        wire.parse_http_date(text)


@pytest.mark.parametrize(
    "text",
    ["", "2023-11-14", "2023-11-14T22:13:20", "20231114T221320Z", "2023-W46-2T22:13:20Z",
     "2023-11-14 22:13:20Z",
     "2023-13-14T22:13:20Z", "2023-11-14T22:13:20.1234567890Z", "0001-01-01T00:00:00+23:59x"],
)  # fmt: skip
def test_bad_rfc3339(text: str) -> None:
    with pytest.raises(Malformed):
        wire.parse_rfc3339(text)


def test_rfc3339_with_zone_fraction_and_case() -> None:
    for text in ("2023-11-14T22:13:20.5Z", "2023-11-14t23:13:20.500999999+01:00", "2023-11-14t22:13:20.500z"):
        assert wire.parse_rfc3339(text) in {1_700_000_000_500, 1_700_000_000_501}


# Links

ONE = '<temporal:///namespaces/n?a=b>; type="temporal.Event"'
TWO = "<https://h/x%2Cy?q=1>;type=a/b_c"
EXPECTED = [Link("temporal:///namespaces/n?a=b", "temporal.Event"), Link("https://h/x%2Cy?q=1", "a/b_c")]


def test_repeated_and_joined_links_are_the_same() -> None:
    assert wire.parse_links([ONE, TWO]) == wire.parse_links([f"{ONE} , {TWO}"]) == EXPECTED  # cases 28, 31
    assert wire.parse_links([]) == wire.parse_links([""]) == []


@pytest.mark.parametrize(
    "value",
    # Case 29.
    ["<u>", "<u>; rel=x", "u; type=x", "<>; type=x", "< >; type=x", "<u; type=x", "<u>; type=",
     '<u>; type=""',
     '<u>; type="x', '<u>; type=x"', "<u>; type=a-b", "<u>; type=ä", "<u>;; type=x", "<u>; type=x;",
     "<u>; type",
     "<u>; type=x,", ",<u>; type=x", "<u>; type=x <v>; type=y", "<u%zz>; type=x", "<u?a;b>; type=x",
     "<ü>; type=x",
     "<a b>; type=x", f"<{'u' * 4097}>; type=x", ", ".join(["<u>; type=x"] * 33)],
)  # fmt: skip
def test_bad_links(value: str) -> None:
    with pytest.raises(Malformed) as caught:
        wire.parse_links([value])
    assert caught.value.code == "link_invalid"


def test_other_parameters_are_passed_over_and_commas_written_so_that_all_can_read_them() -> None:
    links = wire.parse_links(['<http://h/?a=1,2>; rel="x, y"; type=T; n=', "<v>;type=T"])
    assert links == [Link("http://h/?a=1,2", "T"), Link("v", "T")]
    assert wire.format_links(links) == '<http://h/?a=1%2C2>; type="T", <v>; type="T"'
    with pytest.raises(Malformed):
        wire.format_links([Link("http://h/>\r\nX: y", "T")])


urls = st.text(min_size=1, max_size=30).map(lambda text: f"x:{quote(text.encode('utf-8', 'replace'))}")
types = st.text("abcXYZ019_./", min_size=1, max_size=20)


@given(st.lists(st.builds(Link, urls, types), min_size=1, max_size=8))
def test_links_survive_the_wire(links: list[Link]) -> None:
    assert wire.parse_links([wire.format_links(links)]) == links
    assert wire.parse_links([wire.format_links([link]) for link in links]) == links


@pytest.mark.parametrize(
    "text", ['"\\' * 4000, '"' * 8001, " " * 8000 + ";", "<u>; t" + " " * 8000, "<u>;a=b" * 1000]
)
def test_no_header_takes_long_to_refuse(text: str) -> None:
    began = thread_time()  # CPU of its own: others may have the machine
    for parse in (wire.parse_links, lambda values: wire.parse_prefer([values[0][:1024]])):
        with suppress(Malformed):
            parse([text])
    assert thread_time() - began < 0.5
