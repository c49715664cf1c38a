"""The `mesh` command's door. Every install has the command, and only one with the extra `gateway` what it needs."""

from __future__ import annotations

import sys

OUR_OWN = ("mesh", "registry", "gateway")


def main() -> None:
    """Run the command line, or say what to install."""
    try:
        from gateway.cli.main import main as run  # noqa: PLC0415 - it is this import that may not be possible
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package in OUR_OWN:
            raise
        sys.exit(
            f"mesh: there is no package {package!r} here, which the command needs. Install the mesh with its extra"
            " `gateway`: pip install 'PATH/TO/mesh[gateway]' (callers and agents written in Python need no command)"
        )
    run()
