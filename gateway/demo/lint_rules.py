"""The linter of the checks agent: a dozen rules over one parsed module. Pure: text in, findings out.

Small on purpose, and real: what it reports about a source tree is there.
"""

from __future__ import annotations

import ast
import io
import tabnanny
import tokenize
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Final, NamedTuple, cast

COMPLEXITY_MAX: Final = 30
TEXT_CHARS_MAX: Final = 160

RULES: Final[dict[str, str]] = {
    "bare-except": "`except:` catches SystemExit and KeyboardInterrupt too",
    "swallowed-exception": "an exception handler that does nothing",
    "mutable-default": "a default value that all calls share",
    "none-comparison": "`== None` instead of `is None`",
    "unreachable": "code after a statement that never falls through",
    "duplicate-key": "a dict display names the same key twice",
    "empty-fstring": "an f-string without a placeholder",
    "assert-on-tuple": "an assertion that is always true",
    "unused-import": "a module-level import that nothing uses",
    "too-complex": f"a function with more than {COMPLEXITY_MAX} branches",
    "compiler-warning": "the compiler itself warns",
    "mixed-indentation": "tabs and spaces mean different things to different readers",
    "syntax-error": "the file cannot be parsed",
}
"""Rule -> what it is about."""

_JUMPS: Final = (ast.Return, ast.Raise, ast.Continue, ast.Break)
_BRANCHES: Final = (ast.If, ast.For, ast.While, ast.ExceptHandler, ast.BoolOp, ast.IfExp, ast.comprehension)
_MUTABLE: Final = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)


class Finding(NamedTuple):
    """One breach: 1-based line, rule, one line of text."""

    line: int
    rule: str
    text: str


def lint(source: bytes, name: str) -> list[Finding]:
    """All findings in one file, by line. Never raises for what a file contains."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            tree = ast.parse(source, name)
            compile(tree, name, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            return [Finding(getattr(error, "lineno", None) or 1, "syntax-error", str(error)[:TEXT_CHARS_MAX])]
    found = [Finding(warning.lineno, "compiler-warning", str(warning.message)[:TEXT_CHARS_MAX]) for warning in warned]
    nodes = list(ast.walk(tree))
    # Before Python 3.12 a format specification such as `02d` is a JoinedStr too, and has no placeholder either.
    specs = {id(node.format_spec) for node in nodes if isinstance(node, ast.FormattedValue)}
    for node in nodes:
        if id(node) not in specs:
            found += _node(node)
    if not name.endswith("__init__.py"):  # a package's face imports what it shows
        found += _unused_imports(tree, nodes)
    found += _indentation(source)
    return sorted(set(found))


def _node(node: ast.AST) -> Iterator[Finding]:
    check = _CHECKS.get(type(node))
    if check is not None:
        yield from check(node)
    for block in ("body", "orelse", "finalbody"):
        statements: Any = getattr(node, block, None)
        if isinstance(statements, list):
            yield from _unreachable(cast("list[ast.stmt]", statements))


def _comparison(node: ast.Compare) -> Iterator[Finding]:
    for operator, right in zip(node.ops, node.comparators, strict=True):
        if isinstance(operator, (ast.Eq, ast.NotEq)) and isinstance(right, ast.Constant) and right.value is None:
            yield Finding(node.lineno, "none-comparison", _text(node))


def _fstring(node: ast.JoinedStr) -> Iterator[Finding]:
    if not any(isinstance(part, ast.FormattedValue) for part in node.values):
        yield Finding(node.lineno, "empty-fstring", _text(node))


def _assertion(node: ast.Assert) -> Iterator[Finding]:
    if isinstance(node.test, ast.Tuple) and node.test.elts:
        yield Finding(node.lineno, "assert-on-tuple", _text(node))


def _handler(node: ast.ExceptHandler) -> Iterator[Finding]:
    if node.type is None:
        yield Finding(node.lineno, "bare-except", "except:")
    broad = node.type is None or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"})
    if broad and len(node.body) == 1 and isinstance(node.body[0], ast.Pass):
        yield Finding(node.lineno, "swallowed-exception", "the handler does nothing")


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[Finding]:
    for default in [*node.args.defaults, *node.args.kw_defaults]:
        if isinstance(default, _MUTABLE):
            yield Finding(default.lineno, "mutable-default", f"{node.name}(... = {_text(default)})")
    branches = 1 + sum(isinstance(part, _BRANCHES) for part in ast.walk(node))
    if branches > COMPLEXITY_MAX:
        yield Finding(node.lineno, "too-complex", f"{node.name} has {branches} branches")


def _keys(node: ast.Dict) -> Iterator[Finding]:
    seen: set[object] = set()
    for key in node.keys:
        if isinstance(key, ast.Constant):
            mark = (type(key.value), key.value)
            if mark in seen:
                yield Finding(key.lineno, "duplicate-key", repr(key.value)[:TEXT_CHARS_MAX])
            seen.add(mark)


def _unreachable(statements: list[ast.stmt]) -> Iterator[Finding]:
    for before, after in pairwise(statements):
        if isinstance(before, _JUMPS):
            yield Finding(after.lineno, "unreachable", f"after the {type(before).__name__.lower()}")
            return


def _unused_imports(tree: ast.Module, nodes: list[ast.AST]) -> Iterator[Finding]:
    imported: dict[str, int] = {}
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
            continue
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            for alias in statement.names:
                if alias.name not in ("*", alias.asname):
                    imported[(alias.asname or alias.name).partition(".")[0]] = statement.lineno
    used = {"__all__"} | {node.id for node in nodes if isinstance(node, ast.Name)}
    # A name in a string may be one in __all__, or an annotation.
    used |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for name, line in imported.items():
        if name not in used:
            yield Finding(line, "unused-import", name)


def _indentation(source: bytes) -> Iterator[Finding]:
    try:
        tabnanny.process_tokens(tokenize.tokenize(io.BytesIO(source).readline))
    except tabnanny.NannyNag as nag:
        yield Finding(nag.get_lineno(), "mixed-indentation", nag.get_msg()[:TEXT_CHARS_MAX])
    except (tokenize.TokenError, SyntaxError):
        return


def _text(node: ast.AST) -> str:
    return ast.unparse(node).partition("\n")[0][:TEXT_CHARS_MAX]


_CHECKS: Final[dict[type[ast.AST], Callable[[Any], Iterator[Finding]]]] = {
    ast.ExceptHandler: _handler,
    ast.FunctionDef: _function,
    ast.AsyncFunctionDef: _function,
    ast.Compare: _comparison,
    ast.Dict: _keys,
    ast.JoinedStr: _fstring,
    ast.Assert: _assertion,
}
