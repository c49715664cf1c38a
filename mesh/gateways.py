"""Where a mesh is: the base URLs that agents, callers and commands were given. Reads the environment, opens nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from mesh.errors import ConfigError

GATEWAY: Final = "http://127.0.0.1:7411"
VARIABLE: Final = "MESH_URL"
GATEWAYS_MAX: Final = 16


def visible(text: str) -> bool:
    """Whether a header can carry `text` as a key: visible ASCII only."""
    return text.isascii() and text.isprintable() and " " not in text


def gateways_of(given: str | Sequence[str] | None) -> list[str]:
    """Base URLs without a slash at the end, at least one, each once.

    `given` is a URL, several with commas between them, or a sequence of such; without it the environment's MESH_URL
    counts, else the default. Raises ConfigError.
    """
    found = given or os.environ.get(VARIABLE) or GATEWAY
    texts = [found] if isinstance(found, str) else found
    urls = dict.fromkeys(url.rstrip("/") for text in texts for part in text.split(",") if (url := part.strip()))
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"the gateway {url!r} is not a URL such as {GATEWAY}")
    if not 1 <= len(urls) <= GATEWAYS_MAX:
        raise ConfigError(f"{len(urls)} gateways are named; give 1 to {GATEWAYS_MAX} URLs, commas between them")
    return list(urls)
