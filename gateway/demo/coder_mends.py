"""What the coding agent mends, and the proof that it changed nothing else. Pure: text in, text out.

Each mend says the same as before, only plainly: `except:` becomes `except BaseException:`, `== None` becomes `is None`,
an f-string without a placeholder loses its f.
"""

from __future__ import annotations

import ast
import re
from typing import Final, NamedTuple

MENDED: Final = ("bare-except", "none-comparison", "empty-fstring")
"""Rules of the linter whose breaches are mended."""

_plain_fstring = re.compile(rb"[fF](\"\"\"|'''|\"|')([^{}]*?)\1", re.DOTALL).fullmatch
_bare = re.compile(rb"except(\s*):").match
_equals = re.compile(rb"(\s*)(==|!=)(\s*)").fullmatch


class Mend(NamedTuple):
    """Bytes `[begin, end)` of a file become `text`."""

    begin: int
    end: int
    text: bytes
    rule: str
    line: int


def mends_of(source: bytes) -> list[Mend]:
    """All mends of a file, from its beginning to its end. Raises SyntaxError."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found: list[Mend] = []
    for node in ast.walk(ast.parse(source)):
        mend = _mend(node, source, starts)
        if mend is not None:
            found.append(mend)
    return sorted(found)


def apply(source: bytes, mends: list[Mend]) -> bytes:
    """The file with its mends."""
    for mend in reversed(mends):
        source = source[: mend.begin] + mend.text + source[mend.end :]
    return source


def same_meaning(before: bytes, after: bytes) -> bool:
    """Whether the two say the same once the mends are taken as such."""
    return ast.dump(_Plain().visit(ast.parse(before))) == ast.dump(_Plain().visit(ast.parse(after)))


class _Plain(ast.NodeTransformer):
    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        self.generic_visit(node)
        node.type = node.type or ast.Name("BaseException", ast.Load())
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        self.generic_visit(node)
        words = [each.value for each in node.values if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        return ast.Constant("".join(words)) if len(words) == len(node.values) else node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant(node.value)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if _is_none(node):
            node.ops = [ast.Is() if isinstance(node.ops[0], (ast.Eq, ast.Is)) else ast.IsNot()]
        return node


def _mend(node: ast.AST, source: bytes, starts: list[int]) -> Mend | None:
    if isinstance(node, ast.ExceptHandler) and node.type is None:
        begin = starts[node.lineno - 1] + node.col_offset
        bare = _bare(source, begin)
        if bare is not None:
            return Mend(begin, bare.end(), b"except BaseException:", "bare-except", node.lineno)
    elif isinstance(node, ast.Compare) and _is_none(node) and isinstance(node.ops[0], (ast.Eq, ast.NotEq)):
        left, right = node.left, node.comparators[0]
        begin = starts[(left.end_lineno or 0) - 1] + (left.end_col_offset or 0)
        end = starts[right.lineno - 1] + right.col_offset
        word = b"is" if isinstance(node.ops[0], ast.Eq) else b"is not"
        if _equals(source[begin:end]) is not None:
            return Mend(begin, end, b" %b " % word, "none-comparison", node.lineno)
    elif isinstance(node, ast.JoinedStr) and not any(isinstance(each, ast.FormattedValue) for each in node.values):
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        if _plain_fstring(source[begin:end]) is not None:
            return Mend(begin, begin + 1, b"", "empty-fstring", node.lineno)
    return None


def _is_none(node: ast.Compare) -> bool:
    right = node.comparators[0]
    return len(node.ops) == 1 and isinstance(right, ast.Constant) and right.value is None
