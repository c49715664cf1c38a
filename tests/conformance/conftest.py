"""Our own three sides, started once per module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance.targets import ClientLibrary, agent, gateway


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Kind -> target."""
    with gateway(tmp_path_factory.mktemp("gateway")) as one, agent() as other:
        yield {"gateway": one, "agent": other, "client": ClientLibrary()}
