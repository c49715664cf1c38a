"""Names that the Lua files use and Lua does not look up: they become what they stand for as the library is assembled.

`S.started` becomes `3`, `KEY.operation` its text, and `op.state` `op[1]`: an operation's head is an array in Lua, as it
is packed, for a table of 45 names costs several times as much to make, to fill and to pack. What is no field of the
head (RUNTIME) stays a name. `redis.call` becomes a local of the library, and verbs, for Lua takes no more than 200 of
these, what one of them has. Nothing moves to another line; comments stay in the files.

Knows the text of the files and nothing of what they do. Convention of the files: an operation is called `op`, `parent`,
`earlier` or `child` and nothing else is; a name that is computed is looked up in H: `op[H[kind]]`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

RUNTIME: Final = (
    *("id", "root", "gather", "was_owner", "was_blocked", "packed"),
    *("cost", "freed", "awaited", "woke", "ended_child"),
)
"""What a verb knows of an operation beside its head."""
_OPERATION: Final = re.compile(r"(?<![\w.])(op|parent|earlier|child)(?:\.(\w+)|\[([^\[\]]*)(?=[\[\]]))")
_CONSTANT: Final = re.compile(r"(?<![\w.])([A-Z]+)\.(\w+)")
_VERB: Final = re.compile(r"(?:local (function ))?\b(mesh1_\w+)")
_COMMENT: Final = re.compile(r"(?:^|\s)--.*")


class UnknownName(ValueError):
    """A Lua file uses a name that stands for nothing; which, and where."""


def resolved(
    file: str, text: str, head: Sequence[str], constants: Mapping[str, Mapping[str, str | int]]
) -> str:
    """The text of a Lua file without the names. Raises UnknownName."""
    places = {name: f"[{position}]" for position, name in enumerate(head, start=1)}
    places |= {name: f".{name}" for name in RUNTIME}

    def operation(found: re.Match[str]) -> str:
        who, field, computed = found.groups()
        if computed is not None:
            if not computed.startswith("H"):
                raise UnknownName(f"{found[0]}]: a field is looked up as {who}[H[name]]")
            return found[0]
        if field not in places:
            raise UnknownName(f"{found[0]}: layout.HEAD and names.RUNTIME have no such field")
        return who + places[field]

    def constant(found: re.Match[str]) -> str:
        table, name = found.groups()
        if table not in constants:
            return found[0]
        if name not in constants[table]:
            raise UnknownName(f"{found[0]}: there is no such constant")
        return f"{constants[table][name]!r}"

    lines: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        code = _COMMENT.sub("", line)
        try:
            code = _CONSTANT.sub(constant, _OPERATION.sub(operation, code))
            lines.append(_VERB.sub(r"\1verbs.\2", code).replace("redis.call(", "redis_call("))
        except UnknownName as unknown:
            raise UnknownName(f"{file}.lua:{number}: {unknown}") from None
    return "\n".join(lines)
