"""The retrieval agent of team `research`: answers questions with passages of the installed Python's documentation.

The first search builds the index, which takes seconds; the SDK turns such a call into a 201 and a completion by itself.
"""

from __future__ import annotations

import sysconfig
import threading
from pathlib import Path

from nexusrpc.handler import StartOperationContext, service_handler, sync_operation

from gateway.demo.contracts import Passage, Retrieval, SearchReport, SearchRequest
from gateway.demo.passages import Index, excerpt


@service_handler(service=Retrieval)
class RetrievalHandler:
    """Searches the docstrings below `root`, by default those of the standard library."""

    def __init__(self, root: Path | None = None) -> None:
        self._root = root or Path(sysconfig.get_path("stdlib"))
        self._index: Index | None = None
        self._building = threading.Lock()

    @sync_operation
    def search(self, ctx: StartOperationContext, request: SearchRequest) -> SearchReport:
        """The passages that answer a question best."""
        index = self._ready_index()
        return SearchReport(
            question=request.question,
            searched=len(index.docstrings),
            passages=[
                Passage(
                    title=hit.docstring.title,
                    file=hit.docstring.file,
                    line=hit.docstring.line,
                    score=hit.score,
                    text=excerpt(hit.docstring.text),
                )
                for hit in index.search(request.question, request.top)
            ],
        )

    def _ready_index(self) -> Index:
        # Handlers that are plain functions run in threads: the first one builds, the others wait for it.
        with self._building:
            if self._index is None:
                self._index = Index(self._root)
            return self._index
