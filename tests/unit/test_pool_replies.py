"""Replies as they should be, as they should not be, and those that do not come (S5, S21, S22, S32, F28)."""

from __future__ import annotations

import asyncio

import pytest

from mesh.clock import monotonic_s, sleep
from mesh.errors import ReplyInvalid, ReplyLost, ReplyTimeout
from mesh.pool import Pool, Target
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

# -- replies as they should be


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
GOOD_REPLIES = [
    ("length", OK, 200, b"ok", True),
    ("no body", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200, b"", True),
    ("chunked", CHUNKED + b"1\r\na\r\n2;x=y\r\nbc\r\n0\r\n\r\n", 200, b"abc", True),
    ("trailers", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nt: v\r\n\r\n", 200, b"a", True),
    ("204", b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    ("304 names a length", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", 304, b"", False),
    ("interim", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nlink: a\r\n\r\n" + OK, 200, b"ok", True),
    ("interim length", b"HTTP/1.1 103 H\r\ncontent-length: 9\r\n\r\nHTTP/1.1 200 OK\r\n\r\nabc", 200, b"abc", False),
    ("redirect", b"HTTP/1.1 307 X\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", 307, b"", True),
    ("identity", b"HTTP/1.1 200 OK\r\ncontent-encoding: identity\r\ncontent-length: 1\r\n\r\na", 200, b"a", True),
    ("no reason", b"HTTP/1.1 599 \r\ncontent-length: 0\r\n\r\n", 599, b"", True),
    ("connection: close", b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\na", 200, b"a", False),
    ("HTTP/1.0", b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\na", 200, b"a", False),
    ("1.0 kept", b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 1\r\n\r\na", 200, b"a", True),
    ("until close", b"HTTP/1.1 200 OK\r\n\r\nabc", 200, b"abc", False),
]  # fmt: skip


@on_both_loops
@pytest.mark.parametrize("piecewise", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize(
    ("reply", "status", "body"), [case[1:4] for case in GOOD_REPLIES], ids=[case[0] for case in GOOD_REPLIES]
)
async def test_a_good_reply_is_read(reply: bytes, status: int, body: bytes, piecewise: bool) -> None:
    script = answering_then_closing(reply, piecewise=piecewise)
    async with peer(script) as server, pool_of() as pool:
        answer = await send(pool, server.target)
        assert (answer.status, answer.body) == (status, body)
        assert answer.until_close == reply.endswith(b"OK\r\n\r\nabc")
        assert not {b"t", b"link"} & {name for name, _ in answer.headers}  # neither trailers nor interim headers
        await until(lambda: pool.stats() == {"open": 0, "idle": 0, "waiting": 0})


@on_both_loops
@pytest.mark.parametrize(
    ("reply", "reused"),
    [(case[1], case[4]) for case in GOOD_REPLIES if case[3] != b"abc" or case[4]],
    ids=[case[0] for case in GOOD_REPLIES if case[3] != b"abc" or case[4]],
)
async def test_a_connection_is_reused_when_the_reply_leaves_it_clean(reply: bytes, reused: bool) -> None:
    async with peer(answering(reply)) as server, pool_of() as pool:
        for _ in range(3):
            await send(pool, server.target)
        assert server.connections == (1 if reused else 3)


@on_both_loops
async def test_the_request_is_exactly_this() -> None:
    seen: list[bytes] = []

    async def script(line: Line) -> None:
        while True:
            seen.append(await line.request())
            line.send(b"HTTP/1.1 200 OK\r\nNexus-Link:  a \r\nX-Y:\r\nnexus-link: b\r\ncontent-length: 0\r\n\r\n")

    async with peer(script) as server, pool_of() as pool:
        target = Target.parse(f"http://127.0.0.1:{server.port}/base/?a=1")
        path = target.under(b"/s%2F/o", b"b=2")
        reply = await pool.post(target, path, [(b"X-One", b"1"), (b"x-two", b'{"a": "b"}')], b"[]", timeout_s=5)
        assert reply.headers[:3] == [(b"nexus-link", b"a"), (b"x-y", b""), (b"nexus-link", b"b")]
        assert (reply.header(b"nexus-link"), reply.header(b"none")) == (b"a", None)
        await pool.request(b"GET", target, target.path, timeout_s=5)
    common = b"host: 127.0.0.1:%d\r\naccept-encoding: identity\r\n" % server.port
    assert seen == [
        b"POST /base/s%2F/o?a=1&b=2 HTTP/1.1\r\n" + common
        + b'content-length: 2\r\nX-One: 1\r\nx-two: {"a": "b"}\r\n\r\n[]',
        b"GET /base/?a=1 HTTP/1.1\r\n" + common + b"content-length: 0\r\n\r\n",
    ]  # fmt: skip


@on_both_loops
async def test_a_reply_to_head_has_no_body_whatever_it_says() -> None:
    async with peer(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")) as server, pool_of() as pool:
        reply = await pool.request(b"HEAD", server.target, b"/", timeout_s=TIMEOUT_S)
        assert (reply.status, reply.body, reply.header(b"content-length")) == (200, b"", b"5")


@on_both_loops
async def test_large_bodies_pass_both_ways() -> None:
    async def script(line: Line) -> None:
        body = (await line.request()).partition(b"\r\n\r\n")[2]
        line.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await line.closed_by_client()

    async with peer(script) as server, pool_of() as pool:
        body = bytes(range(256)) * 8192
        assert (await send(pool, server.target, body)).body == body


@on_both_loops
async def test_an_answer_that_overtakes_the_request_ends_the_connection() -> None:
    async def script(line: Line) -> None:
        await line.reader.readuntil(b"\r\n\r\n")
        line.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        await asyncio.Event().wait()

    async with peer(script) as server, pool_of() as pool:
        reply = await send(pool, server.target, b"x" * (64 << 20))
        assert reply.status == 413
        await until(lambda: pool.stats()["open"] == 0)


# -- replies as they should not be


MANY_HEADERS = b"".join(b"x-%d: %b\r\n" % (number, b"v" * 100) for number in range(20))
BAD_REPLIES = [
    ("not HTTP", b"220 smtp.example.org ESMTP ready\r\n"),
    ("HTTP/2", b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n"),
    ("HTTP/0.9", b"HTTP/0.9 200 OK\r\ncontent-length: 0\r\n\r\n"),
    ("RTSP", b"RTSP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n"),
    ("TLS to plain HTTP", b"\x15\x03\x01\x00\x02\x02\x16"),
    ("bare LF", b"HTTP/1.1 200 OK\ncontent-length: 0\n\n"),
    ("folded line", b"HTTP/1.1 200 OK\r\na: b\r\n c\r\ncontent-length: 0\r\n\r\n"),
    ("space before colon", b"HTTP/1.1 200 OK\r\ncontent-length : 0\r\n\r\n"),
    ("NUL in a value", b"HTTP/1.1 200 OK\r\na: b\x00c\r\ncontent-length: 0\r\n\r\n"),
    ("status 099", b"HTTP/1.1 099 X\r\ncontent-length: 0\r\n\r\n"),
    ("status 101", b"HTTP/1.1 101 X\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n"),
    ("two lengths", b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab"),
    ("negative length", b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"),
    ("length and chunked", b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("gzip body", b"HTTP/1.1 200 OK\r\ncontent-encoding: GZIP\r\ncontent-length: 1\r\n\r\na"),
    ("gzip, chunked", b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("gzip coding", b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nabc"),
    ("bad chunk size", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"),
    ("long body announced", b"HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n"),
    ("long body chunked", CHUNKED + b"3e9\r\n" + b"a" * 1001 + b"\r\n0\r\n\r\n"),
    ("long body in two chunks", CHUNKED + 2 * (b"200\r\n" + b"a" * 512 + b"\r\n")),
    ("long body until close", b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * 1001),
    ("many headers", b"HTTP/1.1 200 OK\r\n" + MANY_HEADERS + b"content-length: 0\r\n\r\n"),
    ("many headers, body in the same read", b"HTTP/1.1 200 OK\r\n" + MANY_HEADERS + b"content-length: 1\r\n\r\na"),
    ("one long header", b"HTTP/1.1 200 OK\r\nx: " + b"v" * 3000),
    ("endless reason", b"HTTP/1.1 200 " + b"O" * 3000),
    ("many interim replies", b"HTTP/1.1 102 Processing\r\nx: y\r\n\r\n" * 100),
    ("endless trailers", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n" + MANY_HEADERS),
    ("endless chunk extension", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;" + b"x" * 3000),
]  # fmt: skip


@on_both_loops
@pytest.mark.parametrize("reply", [case[1] for case in BAD_REPLIES], ids=[case[0] for case in BAD_REPLIES])
@pytest.mark.parametrize("piecewise", [False, True], ids=["whole", "byte by byte"])
async def test_a_bad_reply_is_invalid_and_ends_the_connection(reply: bytes, piecewise: bool) -> None:
    async def script(line: Line) -> None:
        await line.request()
        for position in range(0, len(reply), 1 if piecewise else len(reply)):
            line.send(reply[position : position + (1 if piecewise else len(reply))])
            await line.writer.drain()
            await sleep(0)
        await line.closed_by_client()

    async with peer(script) as server, pool_of(reply_bytes_max=1000, header_bytes_max=2000) as pool:
        with pytest.raises(ReplyInvalid) as caught:
            await send(pool, server.target)
        too_large = "long" in str(caught.value) or "over" in str(caught.value)
        assert (caught.value.code == "reply_too_large") == too_large
        assert str(server.port) in str(caught.value)
        await until(lambda: pool.stats()["open"] == 0)
        assert server.connections == 1


@on_both_loops
async def test_a_request_may_set_its_own_cap() -> None:
    reply = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n" + b"a" * 100
    async with peer(answering(reply)) as server, pool_of(reply_bytes_max=50) as pool:
        answer = await pool.post(server.target, b"/", [], b"", timeout_s=5, reply_bytes_max=100)
        assert len(answer.body) == 100
        with pytest.raises(ReplyInvalid, match="over 99 bytes"):
            await pool.post(server.target, b"/", [], b"", timeout_s=5, reply_bytes_max=99)


@on_both_loops
async def test_what_follows_a_reply_never_answers_the_next_request() -> None:
    evil = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
    for surplus in (evil, b"H", b"garbage"):
        async with peer(answering(OK + surplus)) as server, pool_of() as pool:
            for _ in range(3):
                assert (await send(pool, server.target)).body == b"ok"
            assert server.connections == 3


@on_both_loops
async def test_bytes_on_an_idle_connection_close_it() -> None:
    go = asyncio.Event()

    async def script(line: Line) -> None:
        await line.request()
        line.send(OK)
        if line.number == 1:
            await go.wait()
            line.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        await line.closed_by_client()

    async with peer(script) as server, pool_of() as pool:
        await send(pool, server.target)
        assert pool.stats() == {"open": 1, "idle": 1, "waiting": 0}
        go.set()
        await until(lambda: pool.stats()["open"] == 0)
        assert (await send(pool, server.target)).body == b"ok"


# -- replies that do not come


CUT_REPLIES = [
    ("nothing", b""),
    ("half a head", b"HTTP/1.1 200 OK\r\ncont"),
    ("interim only", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ("short body", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"),
    ("no last chunk", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"),
    ("half a trailer", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nt: v"),
]


@on_both_loops
@pytest.mark.parametrize("rst", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("reply", [case[1] for case in CUT_REPLIES], ids=[case[0] for case in CUT_REPLIES])
async def test_a_reply_cut_short_is_lost_and_not_asked_for_again(reply: bytes, rst: bool) -> None:
    async def script(line: Line) -> None:
        await line.request()
        line.send(reply)
        if rst:
            await line.writer.drain()
            await sleep(0.02)  # let the bytes travel: a reset may overtake them
            line.reset()

    async with peer(script) as server, pool_of() as pool:
        with pytest.raises(ReplyLost):
            await send(pool, server.target)
        assert server.connections == 1


@on_both_loops
async def test_a_body_without_length_that_ends_in_a_reset_is_lost() -> None:
    async def script(line: Line) -> None:
        await line.request()
        line.send(b"HTTP/1.1 200 OK\r\n\r\nabc")
        await line.writer.drain()
        await sleep(0.02)
        line.reset()

    async with peer(script) as server, pool_of() as pool:
        with pytest.raises(ReplyLost):
            await send(pool, server.target)


DRIPS = [
    ("silent", b""),
    ("half a head", b"HTTP/1.1 2"),
    ("dripping", b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n"),
]


@on_both_loops
@pytest.mark.parametrize("start", [case[1] for case in DRIPS], ids=[case[0] for case in DRIPS])
async def test_a_slow_reply_ends_at_the_deadline(start: bytes) -> None:
    gone = asyncio.Event()

    async def script(line: Line) -> None:
        await line.request()
        line.send(start)
        drip = asyncio.ensure_future(line.closed_by_client())
        while not drip.done():
            if start.endswith(b"\r\n\r\n"):
                line.send(b"x")
            await asyncio.wait([drip], timeout=0.01)
        gone.set()

    async with peer(script) as server, pool_of() as pool:
        began_s = monotonic_s()
        with pytest.raises(ReplyTimeout):
            await send(pool, server.target, timeout_s=0.2)
        assert 0.19 <= monotonic_s() - began_s < TIMEOUT_S
        await asyncio.wait_for(gone.wait(), TIMEOUT_S)


@on_both_loops
async def test_a_peer_that_does_not_read_ends_at_the_deadline() -> None:
    async def script(line: Line) -> None:
        line.writer.transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue]
        await asyncio.Event().wait()

    async with peer(script) as server, pool_of() as pool:
        with pytest.raises(ReplyTimeout):
            await send(pool, server.target, b"x" * (32 << 20), timeout_s=0.3)


@on_both_loops
async def test_each_request_keeps_its_own_deadline() -> None:
    async def script(line: Line) -> None:
        await line.request()
        await line.closed_by_client()

    async def timed(pool: Pool, target: Target, timeout_s: float) -> float:
        began_s = monotonic_s()
        with pytest.raises(ReplyTimeout):
            await send(pool, target, timeout_s=timeout_s)
        return monotonic_s() - began_s

    async with peer(script) as server, pool_of(idle_s=0.15) as pool:
        asked = [0.5, 0.1, 0.3, 0.2, 0.4]
        took = await asyncio.gather(*(timed(pool, server.target, timeout_s) for timeout_s in asked))
        assert [round(spent - wanted, 1) for spent, wanted in zip(took, asked, strict=True)] == [0.0] * 5
