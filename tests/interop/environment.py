"""An environment of Temporal's own: its server and its Python SDK, beside ours, made once and kept under build/.

Owns where it lies and how it is made. temporalio pins a nexus-rpc that is not the one of our lock, hence no shared
environment. Knows nothing of what is run in it.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from hashlib import blake2b
from pathlib import Path
from typing import Final

from tests.surface.gateways import ROOT

LOCK: Final = Path(__file__).with_name("requirements.lock")
HOME: Final = ROOT / "build" / "interop"
INSTALL_TIMEOUT_S: Final = 90


class NotInstalled(Exception):
    """The packages cannot be installed here; the text says why."""


def environment() -> Path:
    """The `bin` directory with `python` and `temporal`. Raises NotInstalled.

    Safe beside other test workers: the first makes it, the others wait. An environment belongs to one lock file and one
    interpreter; those of earlier ones are removed.
    """
    HOME.mkdir(parents=True, exist_ok=True)
    made_of = f"{sys.executable} {sys.version}\n{LOCK.read_text()}"
    home = HOME / f"temporal-{blake2b(made_of.encode(), digest_size=6).hexdigest()}"
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "complete").exists():
            for earlier in HOME.glob("temporal-*"):
                shutil.rmtree(earlier)
            _make(home)
            (home / "complete").touch()
    return home / "bin"


def _make(home: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(home / "bin" / "python")]
    steps = (
        [sys.executable, "-m", "venv", "--without-pip", str(home)],
        [*pip, "install", "--quiet", "--no-deps", "--only-binary", ":all:", "-r", str(LOCK)],
        [str(home / "bin" / "python"), "-c", "import temporalio.worker"],
        [str(home / "bin" / "temporal"), "--version"],
    )
    for step in steps:
        try:
            done = subprocess.run(step, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NotInstalled(f"{Path(step[0]).name}: {error}") from None
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
            raise NotInstalled(f"{' '.join(step[-3:])}: {said[-1]}")
