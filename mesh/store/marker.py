"""What the embedded store remembers beside its data: `mesh-store.json`, and what it proves at the next start.

Knows files only, no server. The marker is written before the server first starts, and again once data may
exist (`incarnation`, the store identity that gate.py created): an AOF that is gone after that is a loss, not
a beginning.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, cast

from mesh.errors import ConfigError, StoreUnsafe

FORMAT: Final = 1
"""Layout of the directory. Raise it when an older Mesh must not open it."""
NAME: Final = "mesh-store.json"
AOF: Final = "appendonlydir"
MANIFEST: Final = f"{AOF}/appendonly.aof.manifest"


@dataclass(frozen=True, slots=True)
class Server:
    """A store server: `flavor` is `valkey` or `redis`."""

    flavor: str
    version: str

    @property
    def major(self) -> int:
        return int(self.version.split(".", 1)[0])

    def __str__(self) -> str:
        return f"{self.flavor} {self.version}"


@dataclass(frozen=True, slots=True)
class Marker:
    """Contents of the file. `incarnation` is empty until the store has an identity and so may hold data."""

    format: int
    flavor: str
    version: str
    incarnation: str = ""


class Directory:
    """A data directory. Checks raise StoreUnsafe or ConfigError, one line that names the directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self) -> None:
        """Make it, private to this user, or check that it can be written."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as fault:
            reason = f"the store directory {self.path} cannot be made: {fault.strerror}"
            raise ConfigError(reason) from fault
        if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
            raise ConfigError(f"the store directory {self.path} is not writable for this user")

    def check(self, server: Server) -> Marker:
        """The marker to carry from now on, if `server` may open the directory."""
        marker = self.read()
        here = Marker(FORMAT, server.flavor, server.version)
        if marker is None:
            if (self.path / AOF).exists() or (self.path / "appendonly.aof").exists():
                raise StoreUnsafe(
                    f"the store directory {self.path} holds the data of another server, not written by Mesh.",
                    mend="Give Mesh a directory of its own.",
                )
            return here
        if marker.format != FORMAT:
            raise StoreUnsafe(
                f"the store directory {self.path} has format {marker.format}, this Mesh reads {FORMAT}.",
                mend="Use the Mesh that wrote it, or another directory.",
            )
        wrote = Server(marker.flavor, marker.version)
        if wrote.major > server.major or (wrote.flavor, server.flavor) == ("valkey", "redis"):
            raise StoreUnsafe(
                f"the store directory {self.path} was written by {wrote}, which is newer than {server}.",
                mend=f"Install {wrote.flavor} {wrote.major} or newer.",
            )
        self.check_data(marker)
        return replace(here, incarnation=marker.incarnation)

    def check_data(self, marker: Marker) -> None:
        """Refuse what the server would take for a new, empty store."""
        if marker.incarnation and not (self.path / MANIFEST).exists():
            raise StoreUnsafe(
                f"the store directory {self.path} would start empty: it held data, but {MANIFEST} is gone.",
                mend="Restore the directory from a backup; to give its data up, delete the directory.",
            )

    def read(self) -> Marker | None:
        """The marker, None when there is none."""
        file = self.path / NAME
        try:
            document: Any = json.loads(file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as fault:
            raise StoreUnsafe(f"{file} cannot be read: {fault}.", mend="Restore it from a backup.") from fault
        values = cast("dict[str, Any]", document) if isinstance(document, dict) else {}
        known = {field.name for field in fields(Marker)}
        try:
            marker = Marker(**{name: value for name, value in values.items() if name in known})
            Server(marker.flavor, marker.version).major  # noqa: B018 - raises on a version that is none
        except (TypeError, ValueError, AttributeError) as fault:
            raise StoreUnsafe(
                f"{file} is not a store marker of Mesh.", mend="Restore it from a backup."
            ) from fault
        return marker

    def write(self, marker: Marker) -> None:
        """Replace the marker so that a crash leaves the old or the new one, on disk when this returns."""
        file = self.path / NAME
        draft = self.path / f"{NAME}.new"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(json.dumps(asdict(marker), indent=1).encode() + b"\n")
            out.flush()
            os.fsync(out.fileno())
        draft.replace(file)
        directory = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
