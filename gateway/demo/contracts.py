"""What the demo's agents offer: four Nexus services and the types of their inputs and outputs.

Callers and handlers share this file; specs/*.nexusrpc.yaml say the same for other languages. Knows no mesh.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, get_args

from nexusrpc import Operation, service
from pydantic import BaseModel, Field

STDLIB: Final = "stdlib"
Module = Literal[
    "collections", "difflib", "doctest", "enum", "fractions", "hashlib", "heapq", "http.cookies", "json",
    "pickletools", "statistics", "typing", "uuid", "zipfile",
]  # fmt: skip
"""Modules of the standard library whose doctests may be run: they need no network and touch nothing."""
DOCTESTED: Final[tuple[Module, ...]] = get_args(Module)
NAME_CHARS_MAX: Final = 200
QUESTION_CHARS_MAX: Final = 500
PASSAGES_MAX: Final = 20

Name = Annotated[str, Field(max_length=NAME_CHARS_MAX)]
Question = Annotated[str, Field(min_length=1, max_length=QUESTION_CHARS_MAX)]


class LintRequest(BaseModel):
    """`tree`: `stdlib`, or the name of an installed package."""

    tree: Name = STDLIB


class Finding(BaseModel):
    file: str
    line: int
    rule: str
    text: str


class FileCount(BaseModel):
    file: str
    findings: int


class LintReport(BaseModel):
    """`examples` has one finding per rule, `worst` the files with the most.

    `resumed_files` were done by an attempt that was interrupted.
    """

    tree: str
    python: str
    files: int
    lines: int
    findings: int
    by_rule: dict[str, int]
    worst: list[FileCount]
    examples: list[Finding]
    resumed_files: int


class DoctestRequest(BaseModel):
    modules: list[Module] = Field(default=list(DOCTESTED), max_length=len(DOCTESTED))


class DoctestReport(BaseModel):
    modules: int
    examples: int
    failures: int
    failed: list[str]
    missing: list[str]


class SearchRequest(BaseModel):
    """`top`: how many passages, the best first."""

    question: Question
    top: int = Field(default=3, ge=1, le=PASSAGES_MAX)


class Passage(BaseModel):
    """A docstring of the installed Python: whose it is, where it stands, how it begins."""

    title: str
    file: str
    line: int
    score: float
    text: str


class SearchReport(BaseModel):
    """`searched`: how many docstrings were looked at."""

    question: str
    searched: int
    passages: list[Passage]


class ReviewRequest(BaseModel):
    """`explain`: for how many of the most frequent rules the documentation is searched."""

    tree: Name = STDLIB
    modules: list[Module] = Field(default=list(DOCTESTED), max_length=len(DOCTESTED))
    explain: int = Field(default=3, ge=0, le=10)


class Explained(BaseModel):
    """A rule that was broken, how often, one place, and what the documentation says about the matter."""

    rule: str
    count: int
    example: Finding
    read: list[Passage]


class Review(BaseModel):
    """`calls` are the operations that the reviewer asked of other agents, by what they were for."""

    verdict: str
    lint: LintReport
    doctests: DoctestReport
    explained: list[Explained]
    calls: dict[str, str]


class MendRequest(BaseModel):
    """`tree`: the name of an installed package; its files are copied, never changed."""

    tree: Name = "unittest"


class Tool(BaseModel):
    """A program that the agent ran, whether it was content, and the last of what it said."""

    name: str
    ok: bool
    said: str


class MendedFile(BaseModel):
    """`rules`: what was mended, and how often."""

    file: str
    rules: dict[str, int]


class MendReport(BaseModel):
    """`findings`: of the linter, before and after. `tools`: what was run. `where`: the directory with all of it."""

    verdict: str
    files: int
    lines: int
    findings: tuple[int, int]
    mended: list[MendedFile]
    diff_lines: int
    tools: list[Tool]
    read: list[Passage]
    where: str


@service(name="checks")
class Checks:
    """Static checks and doctests over source trees that are installed."""

    lint: Operation[LintRequest, LintReport]
    doctests: Operation[DoctestRequest, DoctestReport]


@service(name="retrieval")
class Retrieval:
    """Search over the documentation inside the installed Python."""

    search: Operation[SearchRequest, SearchReport]


@service(name="reviewer")
class Reviewer:
    """A review of a source tree: checks it, tests it, and explains what was found."""

    review: Operation[ReviewRequest, Review]


@service(name="coder")
class Coder:
    """Mends copies of installed packages, in the background, whatever happens to it."""

    mend: Operation[MendRequest, MendReport]
