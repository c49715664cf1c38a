"""One of the demo's agents, as a process of its own.

    python -m gateway.demo.agents checks|retrieval|reviewer|coder [--gateway URL] [--key KEY] [--host HOST] [--port N]

Each is an ordinary agent as the SDK makes them; the leases are short so that the demo heals while one watches.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

ENDPOINTS: Final = {
    "checks": "lints source trees and runs doctests, in subprocesses",
    "retrieval": "searches the documentation inside the installed Python",
    "reviewer": "asks both of them and makes one report of it",
    "coder": "mends a copy of a package in durable steps, in the background",
}
"""Endpoint -> what its agent does."""
CALLERS: Final = {"checks": "research", "retrieval": "quality", "reviewer": "quality", "coder": "quality"}
"""Endpoint -> the other team, which may call it too. Under `mesh dev` without teams all belong to `default`."""
GATEWAY: Final = "http://127.0.0.1:7411"
LEASE_MS: Final = 4_000
TTL_MS: Final = 2_000
LONG_WORK_MS: Final = 600_000
POLICY: Final = {
    "request_timeout_ms": 10_000,
    "schedule_to_close_ms": LONG_WORK_MS,
    "retry": {"initial_ms": 200, "max_ms": 2_000},
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gateway.demo.agents",
        description="One of the demo's agents, as a process of its own.",
        epilog="; ".join(f"{name} {does}" for name, does in ENDPOINTS.items()),
    )
    parser.add_argument("agent", choices=ENDPOINTS)
    parser.add_argument(
        "--gateway", default=os.environ.get("MESH_URL"), help="base URL of the mesh [MESH_URL, http://127.0.0.1:7411]"
    )
    parser.add_argument("--key", default=os.environ.get("MESH_KEY"), help="key of the agent's team [MESH_KEY]")
    parser.add_argument(
        "--host", help="address to listen on [127.0.0.1, or every address when the gateway is on another machine]"
    )
    parser.add_argument("--port", type=int, default=0, help="port to listen on [any free one]")
    parser.add_argument(
        "--state", type=Path, help="directory for what an interrupted job has done so far [in the temporary directory]"
    )
    return parser


def state_directory(given: Path | None) -> Path:
    """The directory for journals, private to this user. Raises OSError when it is somebody else's."""
    path = given or Path(tempfile.gettempdir()) / f"mesh-demo-{os.getuid()}"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        message = f"{path} belongs to somebody else; name another directory with --state"
        raise PermissionError(message)
    return path


def listening_address(gateway: str) -> str:
    """Loopback when the gateway is on this machine, else every address. Raises mesh.errors.Malformed."""
    from mesh.pool import Target  # noqa: PLC0415 - `--help` answers without it

    host = Target.parse(gateway).host
    try:
        near = ip_address(host).is_loopback
    except ValueError:
        near = host == "localhost"
    return "127.0.0.1" if near else "0.0.0.0"  # noqa: S104 - gateways on other machines have to reach it


def _services(arguments: argparse.Namespace) -> list[Any]:
    # Only what this agent needs is loaded.
    if arguments.agent == "checks":
        from gateway.demo.checks import ChecksHandler  # noqa: PLC0415

        return [ChecksHandler(state_directory(arguments.state))]
    if arguments.agent == "retrieval":
        from gateway.demo.retrieval import RetrievalHandler  # noqa: PLC0415

        return [RetrievalHandler()]
    if arguments.agent == "coder":
        from gateway.demo.coder import CoderHandler  # noqa: PLC0415

        return [CoderHandler(state_directory(arguments.state))]
    from gateway.demo.reviewer import ReviewerHandler  # noqa: PLC0415
    from mesh import Client  # noqa: PLC0415

    return [ReviewerHandler(Client(arguments.gateway, arguments.key))]


def main() -> None:
    arguments = _parser().parse_args()
    import mesh  # noqa: PLC0415 - `--help` answers without it

    try:
        mesh.serve(
            arguments.agent,
            _services(arguments),
            gateway=arguments.gateway,
            key=arguments.key,
            host=arguments.host or listening_address(arguments.gateway or GATEWAY),
            port=arguments.port,
            description=f"demo: {ENDPOINTS[arguments.agent]}",
            allow=[CALLERS[arguments.agent]],
            policy=POLICY,
            ttl_ms=TTL_MS,
            lease_ms=LEASE_MS,
        )
    except (mesh.MeshError, OSError) as error:
        sys.exit(f"{arguments.agent}: {error}")


if __name__ == "__main__":
    main()
