"""The coding agent's hands: what its steps do, each a plain function over one directory.

Each can be done again after a death in its middle: edits are made from the untouched copy, everything else is written
anew. What was done is a line in `steps.log`, with the key of the step: the referee of the demo. Knows no mesh.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from gateway.demo.coder_mends import MENDED, apply, mends_of, same_meaning
from gateway.demo.contracts import MendedFile, MendReport, Tool
from gateway.demo.lint_worker import SKIPPED, source_files

TOOL_S_MAX: Final = 60
SAID_CHARS_MAX: Final = 160
DIFF_FILES_MAX: Final = 200
LOG: Final = "steps.log"

_TEST: Final = '''\
"""Written by the coding agent: the mended files say the same as the ones they were made of."""

import unittest
from pathlib import Path

from gateway.demo.coder_mends import same_meaning

HERE = Path(__file__).parent


class TestMended(unittest.TestCase):
    def test_same_meaning(self):
        for name in {names!r}:
            with self.subTest(name):
                before, after = ((HERE / tree / name).read_bytes() for tree in ("original", "tree"))
                self.assertTrue(same_meaning(before, after))
'''


class Workshop:
    """One job's directory: `original` and `tree`, copies of the package, and what is made of them."""

    def __init__(self, directory: Path, package: str) -> None:
        self.directory = directory
        self.package = package
        self.original = directory / "original" / package
        self.tree = directory / "tree" / package

    def _log(self, key: str) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.directory / LOG).open("a") as log:
            log.write(key.rpartition("/")[2] + "\n")

    def tools(self, *, key: str) -> dict[str, bool]:
        """Which of the tools are here: what one attempt found, the next one uses."""
        self._log(key)
        return {name: find_spec(name) is not None for name in ("ruff", "pytest")}

    def clone(self, source: str, *, key: str) -> int:
        """Copy the package twice; the number of files."""
        self._log(key)
        for copy in (self.original, self.tree):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns(*SKIPPED, "*.pyc"))
        return len(source_files(self.tree))

    def scan(self, *, key: str) -> dict[str, int]:
        """Lines of every file."""
        self._log(key)
        return {self._name(path): path.read_bytes().count(b"\n") for path in source_files(self.tree)}

    def compiles(self, *, key: str) -> Tool:
        """Compile every file, in a process of its own."""
        self._log(key)
        return self._run("compileall", "-m", "compileall", "-q", "-f", str(self.tree))

    def lint(self, when: str, *, key: str) -> dict[str, Any]:
        """Lint the tree; the linter's report."""
        self._log(key)
        journal = self.directory / f"lint-{when}.jsonl"
        journal.unlink(missing_ok=True)
        done = self._call("-m", "gateway.demo.lint_worker", str(self.tree), "--journal", str(journal))
        if done.returncode:
            message = f"the linter ended with {done.returncode}: {done.stderr[-SAID_CHARS_MAX:]}"
            raise RuntimeError(message)
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def ruff(self, *, key: str) -> Tool:
        """A second opinion, where ruff is installed: files that cannot be parsed, names that are not defined."""
        self._log(key)
        return self._run("ruff", "-m", "ruff", "check", "--isolated", "--no-cache", "-q", "--select", "E9,F63,F7,F82",
                         str(self.tree))  # fmt: skip

    def plan(self, *, key: str) -> list[str]:
        """The files with something to mend."""
        self._log(key)
        return [self._name(path) for path in source_files(self.tree) if mends_of(path.read_bytes())]

    def edit(self, name: str, *, key: str) -> MendedFile:
        """Mend one file, made of its untouched copy: an edit that was cut short is made again."""
        self._log(key)
        source = (self.original / name).read_bytes()
        mends = mends_of(source)
        mended = apply(source, mends)
        if not same_meaning(source, mended):
            message = f"mending {name} would change what it does"
            raise ValueError(message)
        (self.tree / name).write_bytes(mended)
        counts = {rule: sum(mend.rule == rule for mend in mends) for rule in MENDED}
        return MendedFile(file=name, rules={rule: count for rule, count in counts.items() if count})

    def diff(self, names: list[str], *, key: str) -> list[str]:
        """The patch, written to `mended.patch`; a line about each file."""
        self._log(key)
        patch: list[str] = []
        told: list[str] = []
        for name in names[:DIFF_FILES_MAX]:
            before, after = (
                (root / name).read_text("utf-8", "replace").splitlines(keepends=True)
                for root in (self.original, self.tree)
            )
            lines = list(difflib.unified_diff(before, after, f"a/{name}", f"b/{name}"))
            told.append(f"{name}: {len(lines)} lines of patch")
            patch += lines
        (self.directory / "mended.patch").write_text("".join(patch))
        return told

    def write_tests(self, names: list[str], *, key: str) -> str:
        """A test of its own making; the file's name."""
        self._log(key)
        path = self.directory / "test_mended.py"
        prefixed = [f"{self.package}/{name}" for name in names]
        path.write_text(_TEST.format(names=prefixed))
        return path.name

    def test(self, runner: str, *, key: str) -> Tool:
        """Run that test: by pytest where it is installed, else by unittest."""
        self._log(key)
        options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(self.directory)] if runner == "pytest" else ["-q"]
        return self._run(runner, "-m", runner, *options, "test_mended.py")

    def imports(self, *, key: str) -> Tool:
        """Import the mended package instead of the installed one, and list what it offers."""
        self._log(key)
        script = (
            f"import sys; sys.path.insert(0, {str(self.tree.parent)!r}); import {self.package} as p;"
            f" assert p.__file__.startswith({str(self.tree.parent)!r}), p.__file__; print(len(dir(p)), 'names')"
        )
        return self._run("import", "-c", script)

    def report(self, report: MendReport, *, key: str) -> str:
        """Write `report.md`; the verdict."""
        self._log(key)
        mended = report.mended
        lines = [f"# {self.package}, mended", "", report.verdict, ""]
        lines += [f"- {each.file}: {', '.join(f'{n} {rule}' for rule, n in each.rules.items())}" for each in mended]
        lines += ["", *(f"- {tool.name}: {'ok' if tool.ok else 'NOT ok'} {tool.said}" for tool in report.tools)]
        lines += ["", *(f"- read: {passage.title} ({passage.file}:{passage.line})" for passage in report.read), ""]
        (self.directory / "report.md").write_text("\n".join(lines))
        return report.verdict

    def _name(self, path: Path) -> str:
        return path.relative_to(self.tree).as_posix()

    def _run(self, name: str, *arguments: str) -> Tool:
        done = self._call(*arguments)
        said = (done.stdout.strip() or done.stderr.strip()).splitlines()
        return Tool(name=name, ok=done.returncode == 0, said=(said[-1] if said else "")[:SAID_CHARS_MAX])

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A tool in a process of its own. Its standard input ends when it does, or when this process dies."""
        theirs, ours = os.pipe()
        try:
            return subprocess.run(
                [sys.executable, *arguments], cwd=self.directory, text=True, stdin=theirs, capture_output=True,
                timeout=TOOL_S_MAX, check=False,
            )  # fmt: skip
        finally:
            os.close(theirs)
            os.close(ours)
