"""The checks of `mesh doctor`. Reads and measures; changes nothing that outlives it."""

from __future__ import annotations

import fcntl
import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from gateway.cli.exits import Problem, problem_of
from gateway.cli.wire import Gateway, Unreached
from mesh.clock import monotonic_s, now_ms
from mesh.errors import MeshError
from mesh.store.binary import find_server
from mesh.store.marker import Directory
from mesh.wire import parse_http_date

PYTHON_MIN: Final = (3, 11)
FREE_BYTES_MIN: Final = 1 << 30
FSYNC_SLOW_MS: Final = 20.0
FSYNCS: Final = 5
FILES_MIN: Final = 1024
SKEW_MAX_MS: Final = 5_000


class Finding(NamedTuple):
    """One check. `state`: ok, warn (works, but), bad (does not work)."""

    check: str
    state: Literal["ok", "warn", "bad"]
    detail: str
    mend: str = ""


def examine(data: Path, url: str, key: str) -> list[Finding]:
    """All checks; `url` empty means the default gateway, which may well not be there."""
    data = data.expanduser().resolve()
    findings = [*_machine(), _server()]
    findings += _data(data)
    for each in url.split(",") if url else [""]:
        findings += _gateway(each, key)
    return findings


def _machine() -> Iterator[Finding]:
    version = platform.python_version()
    if sys.version_info >= PYTHON_MIN:
        yield Finding("python", "ok", f"{version}, {platform.system()} {platform.machine()}")
    else:
        yield Finding("python", "bad", f"{version} is too old", "Install Python 3.11 or newer.")
    if platform.system() not in ("Linux", "Darwin"):
        yield Finding("platform", "bad", f"{platform.system()} is not supported", "Use Linux or macOS.")
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < FILES_MIN:
        mend = f"Raise it with `ulimit -n {4 * FILES_MIN}` before `mesh dev`."
        yield Finding("open files", "warn", f"this shell allows {files}; each connection needs one", mend)
    else:
        yield Finding("open files", "ok", f"up to {files}")


def _server() -> Finding:
    try:
        binary, server = find_server()
    except MeshError as error:
        return Finding("store server", "bad", error.detail, "`make install` brings it.")
    return Finding("store server", "ok", f"{server}, {binary}")


def _data(data: Path) -> Iterator[Finding]:
    there = next((path for path in (data, *data.parents) if path.exists()), Path("/"))
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        state = "there" if there == data else "made at the first `mesh dev`"
        yield Finding("data directory", "ok", f"{data}, {state}")
    else:
        yield Finding("data directory", "bad", f"{there} is not a writable directory", "Name another with --data.")
        return
    free = shutil.disk_usage(there).free
    if free < FREE_BYTES_MIN:
        yield Finding("disk", "warn", f"{free >> 20} MiB free", "Make room: a full disk stops all work.")
    yield _fsync(there)
    if there != data:
        return
    try:
        marker = Directory(data).read()
        if marker is not None:
            yield Finding("data", "ok", f"written by {marker.flavor} {marker.version}, format {marker.format}")
    except MeshError as error:
        yield Finding("data", "bad", error.detail)
    holder = _holder(data)
    if holder:
        mend = "That is right while `mesh dev` runs; a second one needs a directory of its own."
        yield Finding("data lock", "ok", f"in use by process {holder}", mend)
    elif (data / "lock").exists():
        yield Finding("data lock", "ok", "free")


def _holder(data: Path) -> str:
    """The process that has the directory, "" when nobody has."""
    try:
        with (data / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return (data / "lock").read_text(errors="replace").strip() or "unknown"
    except OSError:
        return ""
    return ""


def _fsync(directory: Path) -> Finding:
    """How long this disk takes to keep a write: the price of every acknowledgement that travels alone."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            begun_s = monotonic_s()
            for _ in range(FSYNCS):
                file.write(b"x" * 512)
                file.flush()
                os.fsync(file.fileno())
            each_ms = (monotonic_s() - begun_s) * 1000 / FSYNCS
    except OSError as fault:
        return Finding("disk", "bad", f"cannot write below {directory}: {fault.strerror}", "Make room, or use another.")
    if each_ms > FSYNC_SLOW_MS:
        mend = "Calls one after the other are this slow at best; use a local SSD."
        return Finding("disk", "warn", f"keeping a write takes {each_ms:.0f} ms", mend)
    return Finding("disk", "ok", f"keeps a write in {each_ms:.2f} ms")


def _gateway(url: str, key: str) -> Iterator[Finding]:
    try:
        gateway = Gateway(url, key)
    except Problem as problem:
        yield Finding("gateway", "bad", problem.detail, problem.mend)
        return
    with gateway:
        try:
            reply = gateway.ask("GET", "/readyz", also=(503,))
            body = reply.json()
        except Unreached as error:
            # Without a URL nobody said that there is one.
            yield Finding("gateway", "bad" if url else "warn", error.detail)
            return
        except MeshError as error:
            yield Finding("gateway", "bad", f"{gateway.url}: {error.detail}", "Is this the URL of a Mesh gateway?")
            return
        yield from _ready(gateway.url, reply.status, body)
        yield from _clock(reply.headers.get("date"), body)
        yield _key(gateway, given=bool(key))


def _ready(url: str, status: int, body: dict[str, Any]) -> Iterator[Finding]:
    if status != 200:  # noqa: PLR2004
        yield Finding("gateway", "bad", f"{url} is not ready: {body.get('detail') or body.get('status')}")
        return
    yield Finding("gateway", "ok", f"{url} is ready, version {body.get('version')}, {body.get('gateways')} alive")
    store: dict[str, Any] = body.get("store") or {}
    meaning = f"{store.get('server')}: acknowledged work is {store.get('acknowledged_means')}"
    safe = store.get("fsync") == "always"
    mend = "" if safe else "Set appendfsync always on the store, or know what you risk."
    yield Finding("durability", "ok" if safe else "warn", meaning, mend)
    for warning in store.get("warnings") or ():
        yield Finding("store", "warn", str(warning))


def _clock(date: str | None, body: dict[str, Any]) -> Iterator[Finding]:
    store: dict[str, Any] = body.get("store") or {}
    skews: dict[str, int] = {"the store": store.get("clock_skew_ms") or 0}
    if date:
        # HTTP dates have whole seconds.
        skews["the gateway"] = parse_http_date(date) - now_ms() // 1000 * 1000
    for whose, skew_ms in skews.items():
        if abs(skew_ms) > SKEW_MAX_MS:
            detail = f"{whose} is {skew_ms / 1000:+.0f} s away from here"
            yield Finding("clock", "warn", detail, "Run a time service; signatures are refused beyond 5 minutes.")
            return
    yield Finding("clock", "ok", "the same here, at the gateway and in the store")


def _key(gateway: Gateway, *, given: bool) -> Finding:
    try:
        gateway.get("/v1/operations", limit=1)
        dead = gateway.get("/v1/deliveries", state="dead", limit=100)["items"]
    except MeshError as error:
        problem = problem_of(error)
        return Finding("access", "bad", problem.detail, problem.mend)
    if dead:
        mend = "`mesh delivery list --state dead` shows them, `mesh delivery redeliver ID` sends again."
        return Finding("deliveries", "warn", f"{len(dead)} are dead", mend)
    return Finding("access", "ok", "the key is accepted" if given else "no key needed")
