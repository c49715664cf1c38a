"""The search engine of the retrieval agent: docstrings of the installed standard library, ranked by BM25.

Pure but for reading source files; nothing is imported or run. Knows no mesh.
"""

from __future__ import annotations

import ast
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from gateway.demo.lint_worker import FILE_BYTES_MAX, source_files

EXCERPT_CHARS: Final = 240
TITLE_WEIGHT: Final = 3
SATURATION: Final = 1.4
"""BM25's k1: how fast repetitions of a word stop counting."""
LENGTH_SHARE: Final = 0.6
"""BM25's b: how much a long text is marked down."""

_word: Final = re.compile(r"[A-Za-z][a-z]+|[A-Z]+(?![a-z])|[0-9]+").findall
_SILENT: Final = frozenset(
    [
        *("a", "an", "and", "are", "as", "at", "be", "by", "can", "do", "does", "for", "from", "how", "i", "if", "in"),
        *("into", "is", "it", "its", "not", "of", "on", "or", "should", "that", "the", "this", "to", "use", "used"),
        *("what", "when", "where", "which", "why", "will", "with", "you", "your"),
    ]
)
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Docstring(NamedTuple):
    """One docstring: dotted name of what it describes, file below the root, 1-based line, text."""

    title: str
    file: str
    line: int
    text: str


class Hit(NamedTuple):
    """A docstring and how well it fits; only comparisons within one search mean anything."""

    docstring: Docstring
    score: float


def words(text: str) -> list[str]:
    """The words of a text or a dotted name: parts of CamelCase and snake_case, lower case, without a plural's s."""
    found = (word.lower() for word in _word(text))
    return [_stem(word) for word in found if word not in _SILENT]


def _stem(word: str) -> str:
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 4 and not word.endswith("ss"):  # noqa: PLR2004
            return word[: -len(ending)]
    return word


def docstrings(root: Path) -> Iterator[Docstring]:
    """The docstrings of all modules, classes and functions below `root` that are not private."""
    for path in source_files(root):
        with path.open("rb") as file:
            source = file.read(FILE_BYTES_MAX)
        name = path.relative_to(root)
        module = ".".join(name.with_suffix("").parts).removesuffix(".__init__")
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            continue
        yield from _of(tree, module, name.as_posix())


def _of(node: _Documented, title: str, file: str) -> Iterator[Docstring]:
    text = ast.get_docstring(node)
    if text:
        yield Docstring(title, file, getattr(node, "lineno", 1), text)
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not child.name.startswith("_"):
            yield from _of(child, f"{title}.{child.name}", file)


class Index:
    """All docstrings below a root, ready to be searched. Building it takes seconds, a search takes milliseconds."""

    def __init__(self, root: Path) -> None:
        self.docstrings = list(docstrings(root))
        self._postings: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        lengths: list[int] = []
        for number, found in enumerate(self.docstrings):
            counts = Counter(words(found.text))
            for word in words(found.title):
                counts[word] += TITLE_WEIGHT
            lengths.append(counts.total())
            for word, count in counts.items():
                self._postings[word].append((number, count))
        mean = sum(lengths) / max(1, len(lengths))
        self._norms = [SATURATION * (1 - LENGTH_SHARE + LENGTH_SHARE * length / max(1.0, mean)) for length in lengths]

    def search(self, question: str, top: int) -> list[Hit]:
        """The `top` best docstrings, the best first; equal ones in the order of the source."""
        scores: defaultdict[int, float] = defaultdict(float)
        for word in set(words(question)):
            postings = self._postings.get(word, [])
            rarity = math.log(1 + (len(self.docstrings) - len(postings) + 0.5) / (len(postings) + 0.5))
            for number, count in postings:
                scores[number] += rarity * count * (SATURATION + 1) / (count + self._norms[number])
        best = sorted(scores.items(), key=lambda entry: (-entry[1], entry[0]))[:top]
        return [Hit(self.docstrings[number], round(score, 3)) for number, score in best]


def excerpt(text: str) -> str:
    """The beginning of a docstring on one line."""
    line = " ".join(text.split())
    return line if len(line) <= EXCERPT_CHARS else line[: EXCERPT_CHARS - 1].rstrip() + "…"
