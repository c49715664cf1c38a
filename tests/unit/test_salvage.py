"""Taking a frame's list apart: what each element was, and no more time than its bytes are worth."""

from __future__ import annotations

from gateway.pull.salvage import take_apart
from mesh.clock import thread_s

CPU_S_MAX = 2.0


def test_elements_come_as_they_were() -> None:
    parts = take_apart(rb'{"of":"answers","answers":[{"a":"]\","}, 2 ,[3,{"b":4}]],"n":1}', b"answers")
    assert parts is not None
    assert parts.rest == b'{"of":"answers","answers":[],"n":1}'
    assert [one.strip() for one in parts.elements] == [rb'{"a":"]\","}', b"2", b'[3,{"b":4}]']


def test_a_string_without_its_end_is_read_once() -> None:
    body = b'{"answers":["' + rb"a\"" * 100_000
    began_s = thread_s()
    assert take_apart(body, b"answers") is None
    assert thread_s() - began_s < CPU_S_MAX  # from every quote anew it took minutes
