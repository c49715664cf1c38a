"""Options that several commands share, and how their values are read. Knows no command."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from gateway.cli.exits import Problem
from mesh.errors import Malformed
from mesh.wire import check_key

INPUT_BYTES_MAX: Final = 64 << 20
CLIENT: Final = "Gateway"
"""Name of the help panel."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]
Url = Annotated[
    str,
    typer.Option(
        "--url",
        envvar="MESH_URL",
        help="The gateway; several of one mesh with commas between them.",
        show_default=True,
        rich_help_panel=CLIENT,
    ),
]
ApiKey = Annotated[
    str,
    typer.Option(
        "--api-key", envvar="MESH_KEY", help="Your namespace's key; none in development.", rich_help_panel=CLIENT
    ),
]
Labels = Annotated[list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="May be given several times.")]


def pairs(values: Sequence[str] | None, option: str) -> dict[str, str]:
    """`["a=1", "b=2"]` -> `{"a": "1", "b": "2"}`. Raises Problem."""
    found: dict[str, str] = {}
    for value in values or ():
        name, sign, text = value.partition("=")
        if not name or not sign:
            raise Problem(f"{option} {value!r} is not NAME=VALUE")
        found[name] = text
    return found


def check_seconds(value: float | None, option: str, *, least: float = 0) -> None:
    """Raise Problem unless `value` is left out or a number of seconds from `least` up."""
    if value is not None and not least <= value < math.inf:
        raise Problem(f"{option} {value:g} is no number of seconds from {least:g} up")


def check_url(value: str | None, option: str) -> None:
    """Raise Problem unless `value` is left out or begins as an absolute URL; the gateway knows more."""
    if value is not None and not value.startswith(("http://", "https://")):
        raise Problem(f"{option} {value!r} is no URL: it begins with http:// or https://")


def one_of(text: str | None, words: Sequence[str], option: str, *, several: bool = False) -> None:
    """Raise Problem unless `text` is left out or one of `words`; `several`: with commas."""
    for word in (text or "").split(",") if several else [text or ""]:
        if word and word not in words:
            raise Problem(f"{option} {word!r} is none of {', '.join(words)}")


def read_source(text: str, option: str) -> bytes:
    """The bytes that `text`, `@file` or `-` (standard input) stand for. Raises Problem."""
    if text == "-":
        raw = sys.stdin.buffer.read(INPUT_BYTES_MAX + 1)
    elif text.startswith("@"):
        try:
            raw = Path(text[1:]).read_bytes()
        except OSError as fault:
            raise Problem(f"{option}: {text[1:]} cannot be read: {fault.strerror}") from None
    else:
        raw = text.encode()
    if len(raw) > INPUT_BYTES_MAX:
        raise Problem(f"{option} is larger than {INPUT_BYTES_MAX} bytes")
    return raw


def read_json(text: str, option: str) -> tuple[bytes, Any]:
    """JSON as given, byte for byte, and what it means. Raises Problem with a hint for the usual slip."""
    raw = read_source(text, option)
    try:
        return raw, json.loads(raw)
    except ValueError as error:
        mend = "Give JSON, @FILE, or - for standard input."
        if not text.startswith(("{", "[", '"', "@", "-")):
            mend = f"A string needs quotes that reach the command: {option} '{json.dumps(text)}'."
        raise Problem(f"{option} is not JSON: {error}", mend) from None


def if_match_header(etag: str | None) -> dict[str, str]:
    """Of `--if-match`: `"v3"`, `v3` or `3`; none given, no header."""
    # An ETag has its quotes, which a shell takes away; what is printed of it is its number.
    tag = f"v{etag}" if etag and etag.isdigit() else etag
    return {"if-match": tag if '"' in tag or tag == "*" else f'"{tag}"'} if tag else {}


def read_key(text: str) -> str:
    """An idempotency key. Raises Problem."""
    try:
        return check_key(text)
    except Malformed as error:
        raise Problem(f"--key {text[:64]!r}: {error.detail}", "Leave it out, and one is made up.") from None
