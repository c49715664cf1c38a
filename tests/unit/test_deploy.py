"""The compose file, the image and their settings fit the repository: no container engine is needed to see it.

Every command's entry point, every path and every variable they name must exist here.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh.store.gate import Durability, inspect
from tests.servers import RawServer, connected

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)
GATEWAYS = sorted(name for name in OURS if SERVICES[name]["command"][0] == "mesh")
SETTINGS: dict[str, Any] = tomllib.loads((ROOT / "deploy" / "mesh.toml").read_text())


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, arguments), comments and blank lines left out."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def all_of(instruction: str) -> list[str]:
    return [arguments for word, arguments in dockerfile() if word == instruction]


def help_of(command: list[str]) -> str:
    """What `command --help` prints, started from here the way the image starts it."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    if command[0] == "python":
        start = [sys.executable, *command[1:]]
    else:
        entry = EntryPoint(command[0], scripts[command[0]], "console_scripts")
        assert callable(entry.load())
        start = [sys.executable, "-c", f"import {entry.module} as m; m.{entry.attr}()", *command[1:]]
    done = subprocess.run(
        [*start, "--help"], cwd=ROOT, check=False, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestCompose:
    def test_two_gateways_and_two_agents_share_one_store(self) -> None:
        assert len(GATEWAYS) == 2
        assert len(OURS) == 4
        assert set(SERVICES) - set(OURS) == {"valkey"}

    def test_the_store_keeps_what_it_acknowledges(self) -> None:
        command = " ".join(SERVICES["valkey"]["command"])
        for option in ("--appendonly yes", "--appendfsync always", "--maxmemory-policy noeviction"):
            assert option in command
        assert int(re.search(r":(\d+)", SERVICES["valkey"]["image"])[1]) >= 8  # pyright: ignore[reportOptionalSubscript]
        assert "store:/data" in SERVICES["valkey"]["volumes"]
        assert "store" in COMPOSE["volumes"]

    async def test_the_gate_takes_the_store_that_its_command_makes(self, tmp_path: Path) -> None:
        words: list[str] = SERVICES["valkey"]["command"]
        given = {name.removeprefix("--"): value for name, value in zip(words[1::2], words[2::2], strict=True)}
        server = RawServer(tmp_path, given)
        try:
            server.wait_ready()
            async with connected(server.address) as link:
                verdict = await inspect(link.call, declared=Durability(SETTINGS["store"].get("durability", "always")))
            assert (words[0], verdict.fsync, verdict.warnings) == ("valkey-server", "always", ())
        finally:
            server.kill()

    @pytest.mark.parametrize("name", OURS)
    def test_a_command_starts_what_exists(self, name: str) -> None:
        command: list[str] = SERVICES[name]["command"]
        shown = help_of(command[:2] if command[0] == "mesh" else command[:3])
        if command[0] == "mesh":
            assert "--config" in shown
        else:
            assert importlib.util.find_spec(command[2])
            assert command[3] in shown

    @pytest.mark.parametrize("name", GATEWAYS)
    def test_a_gateway_reads_mounted_settings_and_is_probed_for_readiness(self, name: str) -> None:
        service = SERVICES[name]
        mounts = {target: ROOT / source for source, target, *_ in (v.split(":") for v in service["volumes"])}
        config = service["command"][service["command"].index("--config") + 1]
        assert mounts[config].is_file()
        assert f"{SETTINGS['gateway']['port']}/readyz" in service["healthcheck"]["test"][-1]
        compile(service["healthcheck"]["test"][-1], name, "exec")

    @pytest.mark.parametrize("name", sorted(SERVICES))
    def test_what_a_service_waits_for_exists_and_tells_its_health(self, name: str) -> None:
        for other, wait in SERVICES[name].get("depends_on", {}).items():
            assert wait == {"condition": "service_healthy"}
            assert SERVICES[other]["healthcheck"]["test"]

    @pytest.mark.parametrize("name", sorted(set(OURS) - set(GATEWAYS)))
    def test_an_agent_is_told_a_gateway_and_a_key_in_words_that_the_code_reads(self, name: str) -> None:
        told: dict[str, str] = SERVICES[name]["environment"]
        files = (path for room in ("mesh", "gateway") for path in (ROOT / room).rglob("*.py"))
        source = "".join(path.read_text() for path in files)
        assert [word for word in told if f'"{word}"' not in source] == []
        assert told["MESH_URL"] == SETTINGS["gateway"]["public_url"]
        assert [n["name"] for n in SETTINGS["namespaces"] if told["MESH_KEY"] in n["keys"]]


class TestSettings:
    def test_two_teams_have_keys_of_their_own(self) -> None:
        keys = [key for namespace in SETTINGS["namespaces"] for key in namespace["keys"]]
        assert len({namespace["name"] for namespace in SETTINGS["namespaces"]}) == 2
        assert len(set(keys)) == len(keys) >= 2

    def test_addresses_are_those_of_the_compose_file(self) -> None:
        assert SETTINGS["store"]["url"].startswith("redis://valkey:")
        host, port = SETTINGS["gateway"]["public_url"].removeprefix("http://").split(":")
        assert int(port) == SETTINGS["gateway"]["port"]
        for name in GATEWAYS:
            assert host in SERVICES[name]["networks"]["default"]["aliases"]
            assert SERVICES[name]["ports"][0].startswith("127.0.0.1:")
            assert SERVICES[name]["ports"][0].endswith(f":{port}")

    def test_egress_is_open_to_the_compose_network_and_no_wider(self) -> None:
        (pool,) = COMPOSE["networks"]["default"]["ipam"]["config"]
        (rule,) = SETTINGS["egress"]["allow"]
        assert ipaddress.ip_network(rule.rpartition(":")[0]) == ipaddress.ip_network(pool["subnet"])

    def test_the_gateway_accepts_the_file(self) -> None:
        from gateway.settings_file import load  # noqa: PLC0415

        loaded = load(ROOT / "deploy" / "mesh.toml", serve=True)
        assert loaded


class TestImage:
    def test_nothing_runs_as_root(self) -> None:
        assert re.fullmatch(r"[1-9]\d*", all_of("USER")[-1])
        assert f"--uid {all_of('USER')[-1]} " in " ".join(all_of("RUN"))
        words = [word for word, _ in dockerfile()]
        assert words.index("USER") > max(i for i, word in enumerate(words) if word in {"RUN", "COPY"})

    def test_what_is_copied_exists_and_is_sent_to_the_builder(self) -> None:
        rules = (ROOT / ".dockerignore").read_text().splitlines()
        sent = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
        copied = [source for line in all_of("COPY") for source in line.split()[:-1]]
        assert copied
        for source in copied:
            assert (ROOT / source).exists(), source
            assert any(fnmatch(source, pattern) for pattern in sent), source
        assert set(sent) == set(copied)

    def test_the_image_installs_the_lock_and_every_package(self) -> None:
        steps = " ".join(all_of("RUN"))
        assert "--no-deps -r requirements.lock" in steps
        copied = {source for line in all_of("COPY") for source in line.split()[:-1]}
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= copied

    def test_its_default_command_is_a_gateway(self) -> None:
        (default,) = all_of("CMD")
        assert yaml.safe_load(default) == SERVICES[GATEWAYS[0]]["command"]
