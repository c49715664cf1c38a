"""The demo's coding agent: what it mends means the same, and what it has done it does not do again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.demo.coder import CoderHandler
from gateway.demo.coder_mends import apply, mends_of, same_meaning
from gateway.demo.coder_tools import LOG
from gateway.demo.contracts import MendRequest
from mesh import testing

BROKEN = b"""\
def f(x):
    try:
        y = x == None
    except   :
        return f"nothing in it"
    if x != None and y: return F\'\'\'so
too\'\'\'
    return f"{x}" f"\xc3\xa4"
"""
PASSAGE = {"title": "contextlib.suppress", "file": "contextlib.py", "line": 1, "score": 1.0, "text": "Suppress."}
CHILDREN: dict[str, Any] = {
    "retrieval/retrieval/search": {"question": "q", "searched": 1, "passages": [PASSAGE]},
}


class TestMends:
    def test_what_is_mended_and_what_is_left(self) -> None:
        mended = apply(BROKEN, mends_of(BROKEN))
        assert mended.decode().splitlines()[:6] == [
            "def f(x):",
            "    try:",
            "        y = x is None",
            "    except BaseException:",
            '        return "nothing in it"',
            "    if x is not None and y: return '''so",
        ]
        assert 'return f"{x}" f"ä"' in mended.decode()
        assert mends_of(mended) == []
        assert same_meaning(BROKEN, mended)

    def test_the_proof_notices_what_is_no_mend(self) -> None:
        assert not same_meaning(BROKEN, BROKEN.replace(b"return", b"yield", 1))
        assert not same_meaning(b"x = 1 == 2\n", b"x = 1 is 2\n".replace(b"1 is 2", b"1 != 2"))
        assert same_meaning(b"x == None\n", b"x is None\n")
        assert not same_meaning(b"x == None\n", b"x is not None\n")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> testing.Run:
    """An undisturbed job of an agent that keeps its state where it was started, as the one in examples/ does."""
    with pytest.MonkeyPatch.context() as here:
        here.chdir(tmp_path_factory.mktemp("whole"))
        handler = CoderHandler(Path(".mesh-coder"))
        return testing.run(handler.mend, MendRequest(tree="wsgiref"), children=CHILDREN)


@pytest.mark.timeout(120)
class TestCoder:
    def test_twelve_steps_and_more_on_a_real_package(self, whole: testing.Run) -> None:
        run = whole
        assert run.state == "succeeded", run.failure
        report = run.result
        assert len(run.steps) >= 12
        assert all(tool.ok for tool in report.tools), report.tools
        assert report.findings[1] < report.findings[0]
        where = Path(report.where)
        assert " except BaseException:" in (where / "mended.patch").read_text()
        assert report.verdict in (where / "report.md").read_text()
        assert [chunk["source"] for chunk in run.chunks] == [""] * len(report.mended)

    @pytest.mark.parametrize("moment", ["in the middle of edit#1", "before recording step clone#1", "after recording"])
    def test_interrupted_it_does_nothing_twice(self, whole: testing.Run, tmp_path: Path, moment: str) -> None:
        handler = CoderHandler(tmp_path).mend
        at = next(number for number, name in enumerate(whole.moments) if name.startswith(moment))
        again = testing.run(handler, MendRequest(tree="wsgiref"), children=CHILDREN, crash_at=at)
        assert again.result.verdict == whole.result.verdict
        begun = (Path(again.result.where) / LOG).read_text().split()
        assert set(begun) == set(whole.steps)
        assert len(begun) <= len(whole.steps) + 1, begun
