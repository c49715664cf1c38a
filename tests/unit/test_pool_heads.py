"""A reply whose head was seen before is read without the parser, and read as the parser reads it (S22)."""

from __future__ import annotations

import pytest

from mesh.errors import ReplyInvalid
from mesh.pool.heads import HEAD_BYTES_MAX, HEADS_MAX, MISSES_MAX, REST, Heads
from tests.unit.pool_peers import OK, Line, answering, on_both_loops, peer, pool_of, send

HEAD = OK[:-2]
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"


@on_both_loops
async def test_equal_heads_have_bodies_of_their_own_and_the_parser_goes_on_between_them() -> None:
    replies = [OK, HEAD + b"a1", CHUNKED, HEAD + b"b2", HEAD + b"c3", CHUNKED, HEAD + b"\r\n", OK]
    async with peer(answering(*replies)) as server, pool_of() as pool:
        found = [(await send(pool, server.target)).body for _ in replies]
        assert found == [b"ok", b"a1", b"abc", b"b2", b"c3", b"abc", b"\r\n", b"ok"]
        assert server.connections == 1


@on_both_loops
async def test_each_reply_has_a_list_of_headers_of_its_own() -> None:
    async with peer(answering(OK)) as server, pool_of() as pool:
        for _ in range(3):
            reply = await send(pool, server.target)
            assert reply.headers == [(b"content-length", b"2")]
            reply.headers.clear()


@on_both_loops
@pytest.mark.parametrize("more", [b"H", b"\r\n", OK], ids=["a byte", "a line", "a reply"])
async def test_what_follows_a_body_behind_a_known_head_never_answers_the_next_request(more: bytes) -> None:
    async with peer(answering(OK, OK, HEAD + b"no" + more, HEAD + b"xx")) as server, pool_of() as pool:
        assert [(await send(pool, server.target)).body for _ in range(3)] == [b"ok", b"ok", b"no"]
        lines = server.connections
        assert (await send(pool, server.target)).body == (b"xx" if more == b"\r\n" else b"ok")
        assert server.connections == lines + (more != b"\r\n")  # a line end between two replies is none of either


@on_both_loops
async def test_a_body_behind_a_known_head_may_come_in_pieces() -> None:
    async def script(line: Line) -> None:
        for pieces in ([OK], [OK], [HEAD, b"no"], [HEAD + b"n", b"o"], [HEAD[:-1], b"\nno"]):
            await line.request()
            for piece in pieces:
                line.send(piece)
                await line.writer.drain()
        await line.closed_by_client()

    async with peer(script) as server, pool_of() as pool:
        assert [(await send(pool, server.target)).body for _ in range(5)] == [b"ok", b"ok", b"no", b"no", b"no"]
        assert server.connections == 1


@on_both_loops
async def test_the_cap_of_a_request_holds_for_known_heads() -> None:
    async with peer(answering(OK)) as server, pool_of() as pool:
        await send(pool, server.target)
        with pytest.raises(ReplyInvalid, match="over 1 bytes"):
            await pool.post(server.target, b"/", [], b"", timeout_s=5, reply_bytes_max=1)


@on_both_loops
async def test_a_known_head_answers_head_without_a_body() -> None:
    async with peer(answering(OK, HEAD, OK)) as server, pool_of() as pool:
        await send(pool, server.target)
        assert (await pool.request(b"HEAD", server.target, b"/", timeout_s=5)).body == b""
        assert (await send(pool, server.target)).body == b"ok"


@on_both_loops
async def test_no_content_has_none_behind_a_known_head_either() -> None:
    none = b"HTTP/1.1 204 No Content\r\n\r\n"
    async with peer(answering(none, none, OK, none, none + OK, none)) as server, pool_of() as pool:
        found = [await send(pool, server.target) for _ in range(5)]
        assert [one.status for one in found] == [204, 204, 200, 204, 204]
        assert [one.body for one in found] == [b"", b"", b"ok", b"", b""]
        assert server.connections == 1
        assert (await send(pool, server.target)).status == 204  # not what came behind that before it asked
        assert server.connections == 2


def test_few_and_short_heads_are_remembered_whole_replies_only() -> None:
    heads = Heads()
    for number in range(HEADS_MAX + 1):
        reply = b"HTTP/1.1 200 OK\r\nx: %d\r\ncontent-length: 2\r\n\r\nok" % number
        heads.remember(reply, 200, [], 2)
        assert heads.reply(reply, 2) is not None
    assert heads.reply(b"HTTP/1.1 200 OK\r\nx: 0\r\ncontent-length: 2\r\n\r\nok", 2) is None
    interim = b"HTTP/1.1 100 Continue\r\n\r\n" + OK
    long = b"HTTP/1.1 200 OK\r\nx: %b\r\ncontent-length: 2\r\n\r\nok" % (b"x" * HEAD_BYTES_MAX)
    until_close = b"HTTP/1.1 200 OK\r\n\r\nab"
    for reply, length in ((interim, 2), (long, 2), (HEAD + b"abc", 2), (until_close, None), (b"ab", 2)):
        heads.remember(reply, 200, [], length)
        assert heads.reply(reply, 9) is None
    heads.remember(b"HTTP/1.1 204 X\r\n\r\n", 204, [], None)
    assert heads.reply(b"HTTP/1.1 204 X\r\n\r\n", 0) is not None
    heads.remember(b"HTTP/1.1 304 X\r\ncontent-length: 0\r\n\r\n", 304, [], 0)
    assert heads.reply(b"HTTP/1.1 304 X\r\ncontent-length: 0\r\n\r\n", 9) is None


def test_where_all_heads_differ_nothing_is_looked_up_for_a_while() -> None:
    heads, misses = Heads(), 0
    for number in range(MISSES_MAX + 1):
        reply = b"HTTP/1.1 200 OK\r\nx: %d\r\ncontent-length: 2\r\n\r\nok" % number
        misses += heads.reply(reply, 10) is None
        heads.remember(reply, 200, [], 2)
    assert misses == MISSES_MAX + 1
    for _ in range(REST):
        assert heads.reply(OK, 10) is None
        heads.remember(OK, 200, [], 2)
    assert heads.reply(OK, 10) is not None
