"""The checks agent's tool: lints a source tree file by file, in a process of its own.

    python -m gateway.demo.lint_worker ROOT --journal FILE

What a file gave goes into the journal before the next file is read, so that an attempt that was killed is carried on
where it stopped: the next one reads the journal first. The report is one JSON object on standard output. The process
ends when its standard input does, which is when the agent that started it is gone. Knows no mesh.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Final

from gateway.demo.lint_rules import lint

SKIPPED: Final = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"})
"""Directories that differ between distributions of Python, or hold broken code on purpose."""
FILE_BYTES_MAX: Final = 4 << 20
WORST_SHOWN: Final = 5
NICENESS: Final = 10
"""A tool yields to the agents and gateways of its machine."""


def die_with_parent() -> None:
    """End this process when its standard input ends: whoever started it is gone, and so is the need for its work."""

    def watch() -> None:
        while sys.stdin.buffer.raw.read(1):  # type: ignore[attr-defined]
            pass
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()


def source_files(root: Path) -> list[Path]:
    """The Python files below `root`, in a fixed order."""
    found: list[Path] = []
    for directory, inner, files in os.walk(root):
        inner[:] = [name for name in inner if name not in SKIPPED]  # not even looked into: site-packages may be vast
        found += [Path(directory, name) for name in files if name.endswith(".py")]
    return sorted(found)


def check(path: Path, root: Path) -> dict[str, Any]:
    """The journal entry of one file: `{file, lines, findings: [[line, rule, text], ...]}`."""
    name = path.relative_to(root).as_posix()
    with path.open("rb") as file:
        source = file.read(FILE_BYTES_MAX)
    return {"file": name, "lines": source.count(b"\n"), "findings": lint(source, name)}


def journaled(journal: Path) -> dict[str, dict[str, Any]]:
    """What earlier attempts left, by file; a line that a death cut short does not count."""
    entries: dict[str, dict[str, Any]] = {}
    for line in journal.read_bytes().splitlines() if journal.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        entries[entry["file"]] = entry
    return entries


def run(root: Path, journal: Path) -> dict[str, Any]:
    """Check every file that the journal does not know yet; the report over all of them."""
    known = journaled(journal)
    entries: list[dict[str, Any]] = []
    resumed = 0
    with journal.open("ab", buffering=0) as log:
        if journal.stat().st_size:
            log.write(b"\n")  # ends a line that was cut short
        for path in source_files(root):
            entry = known.get(path.relative_to(root).as_posix())
            if entry is None:
                entry = check(path, root)
                log.write(json.dumps(entry).encode() + b"\n")
            else:
                resumed += 1
            entries.append(entry)
    return report(entries, resumed)


def report(entries: list[dict[str, Any]], resumed: int) -> dict[str, Any]:
    """The fields of `LintReport`, but for `tree` and `python`."""
    by_rule: Counter[str] = Counter()
    by_file: Counter[str] = Counter()
    examples: dict[str, dict[str, Any]] = {}
    for entry in entries:
        for line, rule, text in entry["findings"]:
            by_rule[rule] += 1
            by_file[entry["file"]] += 1
            examples.setdefault(rule, {"file": entry["file"], "line": line, "rule": rule, "text": text})
    return {
        "files": len(entries),
        "lines": sum(entry["lines"] for entry in entries),
        "findings": by_rule.total(),
        "by_rule": dict(by_rule.most_common()),
        "worst": [{"file": file, "findings": count} for file, count in by_file.most_common(WORST_SHOWN)],
        "examples": list(examples.values()),
        "resumed_files": resumed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Lint a Python source tree.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--journal", type=Path, required=True, help="what is done so far; carried on if it exists")
    arguments = parser.parse_args()
    die_with_parent()
    os.nice(NICENESS)
    json.dump(run(arguments.root, arguments.journal), sys.stdout)


if __name__ == "__main__":
    main()
