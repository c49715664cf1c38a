"""`/docs`: the routes of this gateway as one plain page. Without scripts and without a CDN it is never blank.

Made of openapi.json, which it links to for tools that can do more. Knows no operation.
"""

from __future__ import annotations

from html import escape
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_METHODS: Final = ("get", "put", "post", "patch", "delete", "head")
_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}: routes</title><link rel="icon" href="data:,">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
code {{ font-size: 0.95em }} dt {{ margin-top: 1rem }} dd {{ margin: 0 0 0 2rem; white-space: pre-line }}
</style></head><body>
<h1>{title}</h1>
<p>{summary}</p>
<p><a href="openapi.json">openapi.json</a> has parameters, bodies and answers, for tools that read OpenAPI.</p>
{rooms}
</body></html>
"""
_HEADERS: Final = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:"}


def page(document: dict[str, Any]) -> str:
    """The HTML of an OpenAPI document: every method of every path, by tag."""
    rooms: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method in (one for one in _METHODS if one in methods):
            said = methods[method]
            words = "\n\n".join(filter(None, (said.get("summary"), said.get("description"))))
            row = f"<dt><code><b>{method.upper()}</b> {escape(path)}</code></dt>\n<dd>{escape(words)}</dd>"
            rooms.setdefault((said.get("tags") or ["gateway"])[0], []).append(row)
    listed = "\n".join(f"<h2>{escape(tag)}</h2>\n<dl>\n" + "\n".join(rows) + "\n</dl>" for tag, rows in rooms.items())
    info = document["info"]
    return _PAGE.format(title=escape(info["title"]), summary=escape(info.get("summary", "")), rooms=listed)


@router.get("/docs", response_class=HTMLResponse)
async def docs(request: Request) -> HTMLResponse:
    return HTMLResponse(page(request.app.openapi()), headers=_HEADERS)
