"""Large payloads through real processes: SDK, command line, agents that are sent their work and that ask for it."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import mesh
from mesh.blob import PIECE_BYTES
from tests.agents.copier import PAGE_BYTES
from tests.agents.serving import until
from tests.agents.test_pull_howto import dev, environment, running
from tests.agents.test_real_gateway import Dev
from tests.agents.test_registration import ROOT

__all__ = ["dev"]

BIG_BYTES = 96 << 20
GROWTH_BYTES_MAX = 40 << 20


@pytest.fixture(scope="module")
def arrivals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the agents keep large inputs while they use them."""
    return tmp_path_factory.mktemp("arrivals")


@pytest.fixture(scope="module")
def copier(dev: Dev, arrivals: Path) -> Iterator[subprocess.Popen[bytes]]:
    with running([sys.executable, "-m", "tests.agents.copier", "copier", "push", str(arrivals)], dev) as process:
        wait_for(dev, "copier")
        yield process


@pytest.fixture(scope="module")
def puller(dev: Dev, arrivals: Path) -> Iterator[subprocess.Popen[bytes]]:
    with running([sys.executable, "-m", "tests.agents.copier", "puller", "pull", str(arrivals)], dev) as process:
        wait_for(dev, "puller")
        yield process


def wait_for(dev: Dev, name: str) -> None:
    def there() -> bool:
        found = httpx.get(f"{dev.url}/v1/endpoints/{name}", trust_env=False)
        return found.status_code == 200 and bool(found.json()["instances"])

    until(there, 20)


def peak_bytes(pid: int) -> int:
    """The most memory that a process ever had."""
    said = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", said)[0]) << 10


def numbers(path: Path, size: int) -> str:
    """A file of that many bytes that repeat nowhere soon; its SHA-256."""
    found = hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, size, PIECE_BYTES):
            piece = start.to_bytes(8, "big") * (min(PIECE_BYTES, size - start) // 8)
            found.update(piece)
            file.write(piece)
    return found.hexdigest()


def command(dev: Dev, *arguments: str) -> tuple[int, str, int]:
    """Exit status, what it said, and the most memory it had, in bytes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli.main", *arguments], env=environment(dev), cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout:
        said = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, said, usage.ru_maxrss << 10


class TestFlatMemory:
    def test_start_agent_and_result(
        self, dev: Dev, copier: subprocess.Popen[bytes], arrivals: Path, tmp_path: Path
    ) -> None:
        """P390, P393, P394: 96 MiB through command, gateway and agent and back, and none of them has them in memory."""
        small, big, back = tmp_path / "small", tmp_path / "big", tmp_path / "back"
        numbers(small, 1 << 20)
        digest = numbers(big, BIG_BYTES)
        call = ["call", "copier", "copier", "flip", "--input-file"]
        code, said, before_cli = command(dev, *call, str(small), "--output-file", str(back))
        assert code == 0, said
        assert dev.child is not None
        pids = {"gateway": dev.child.pid, "agent": copier.pid}
        before = {name: peak_bytes(pid) for name, pid in pids.items()}
        code, said, after_cli = command(dev, *call, str(big), "--output-file", str(back), "--wait", "90")
        assert (code, f"{BIG_BYTES} bytes written to" in said) == (0, True), said
        grown = {name: peak_bytes(pid) - before[name] for name, pid in pids.items()}
        grown["command"] = after_cli - before_cli
        assert max(grown.values()) < GROWTH_BYTES_MAX, grown
        found = hashlib.sha256()
        for piece in mesh.Blob(back):
            found.update(bytes(255 - byte for byte in piece[:8]) * (len(piece) // 8))
        assert found.hexdigest() == digest
        until(lambda: not list(arrivals.iterdir()))


class TestClients:
    @pytest.mark.parametrize("operation", ["copy", "late"])
    def test_a_path_and_a_blob(
        self, dev: Dev, copier: subprocess.Popen[bytes], tmp_path: Path, operation: str
    ) -> None:
        """P393, P394: in the answer and by completion; labels and a type of its own travel with it."""
        big = tmp_path / "big"
        digest = numbers(big, 3 << 20)
        with mesh.SyncClient(dev.url) as client:
            handle = client.start("copier", "copier", operation, big, output=mesh.Blob, labels={"a": "ä"})
            result = handle.result(timeout_s=20)
            assert (result.size, result.sha256, result.content_type) == (3 << 20, digest, "application/octet-stream")
            record = handle.get()
            assert record.get("result_dataref", {}).get("bytes") == 3 << 20
            assert record["labels"] == {"a": "ä"}
            kept = result.path
            assert result.save(tmp_path / "kept").read_bytes() == big.read_bytes()
            del result
            assert not kept.exists()
            small = client.call(
                "copier", "copier", operation, mesh.Blob(data=b"few", content_type="text/x"), output=mesh.Blob
            )
            assert (small.read(), small.content_type) == (b"few", "text/x")

    async def test_async(self, dev: Dev, copier: subprocess.Popen[bytes]) -> None:
        """P392: with asyncio too; JSON over what an order may be goes beside it."""
        text = "y" * (2 << 20)
        async with mesh.Client(dev.url) as client:
            result = await client.call("copier", "copier", "repeat", 5 << 20, output=mesh.Blob, timeout_s=20)
            assert (result.size, result.content_type) == (5 << 20, "text/plain")
            with pytest.raises(mesh.OperationFailed, match="input_bytes_max"):
                await client.call("copier", "copier", "length", text, timeout_s=20)
            assert await client.call("copier", "copier", "length", text[: 1 << 20], timeout_s=20) == 1 << 20

    def test_durable_handlers(self, dev: Dev, copier: subprocess.Popen[bytes], tmp_path: Path) -> None:
        """P402, P403, P440: a child's large result is in the journal, or referred to; payloads go in and out."""
        big = tmp_path / "big"
        digest = numbers(big, 4 << 20)
        with mesh.SyncClient(dev.url) as client:
            result = client.call("copier", "copier", "parent", big, output=mesh.Blob, timeout_s=30)
            assert result.sha256 == digest
            digest = numbers(big, 24 << 20)
            result = client.call("copier", "copier", "parent", big, output=mesh.Blob, timeout_s=30)
            assert result.sha256 == digest

    def test_agents_that_ask(self, dev: Dev, puller: subprocess.Popen[bytes], tmp_path: Path) -> None:
        """P401: the task refers to its input, which the agent fetches with its token; the result goes by itself."""
        big = tmp_path / "big"
        digest = numbers(big, 5 << 20)
        with mesh.SyncClient(dev.url) as client:
            result = client.call("puller", "puller", "copy", big, output=mesh.Blob, timeout_s=30)
            assert (result.size, result.sha256) == (5 << 20, digest)
            assert client.call("puller", "puller", "length", "z" * (1 << 20), timeout_s=20) == 1 << 20
            with pytest.raises(mesh.OperationFailed, match="or more as a"):
                client.call("puller", "puller", "length", "z" * (3 << 20), timeout_s=20)

    def test_what_the_command_says(self, dev: Dev, copier: subprocess.Popen[bytes], tmp_path: Path) -> None:
        """Wrong arguments change nothing; a result of megabytes is not printed."""
        code, said, _ = command(dev, "call", "copier", "copier", "copy", "--input-file", str(tmp_path / "none"))
        assert (code, "cannot be read" in said) == (2, True), said
        code, said, _ = command(dev, "call", "c", "c", "c", "--input-file", str(tmp_path), "--input", "1")
        assert (code, "exclude each other" in said) == (2, True), said
        code, said, _ = command(dev, "call", "copier", "copier", "repeat", "--input", str(9 << 20))
        assert (code, "--output-file writes it" in said, len(said) < 1000) == (0, True, True), said

    def test_what_show_says_of_them(self, dev: Dev, copier: subprocess.Popen[bytes], tmp_path: Path) -> None:
        """P392: a record refers to what it does not hold, and so does what people read."""
        digest = b64encode(bytes.fromhex(numbers(tmp_path / "in.bin", 3 << 20))).decode()
        with mesh.SyncClient(dev.url) as client:
            handle = client.start("copier", "copier", "copy", tmp_path / "in.bin")
            handle.result(timeout_s=20)
        code, said, _ = command(dev, "operation", "show", handle.id)
        assert code == 0, said
        for part in ("input", "result"):
            told = f"3 MiB application/octet-stream, sha-256=:{digest}:, /v1/operations/{handle.id}/{part}"
            assert re.search(rf"^{part} +{re.escape(told)}$", said, re.MULTILINE), said

    def test_results_of_what_ended_and_of_its_steps(
        self, dev: Dev, copier: subprocess.Popen[bytes], tmp_path: Path
    ) -> None:
        """P392, P412: by the same words as of a call; what is not there is told with what is."""
        digest, found = numbers(tmp_path / "in.bin", 4 << 20), tmp_path / "found"
        with mesh.SyncClient(dev.url) as client:
            handle = client.start("copier", "copier", "parent", tmp_path / "in.bin")
            handle.result(timeout_s=30)
        for step, want in (
            ([], digest),
            (["--step", "page#1"], hashlib.sha256(b"p" * PAGE_BYTES).hexdigest()),
            (["--step", "copier.text#1"], hashlib.sha256(b'"%b"' % (b"t" * (1 << 19))).hexdigest()),
        ):
            code, said, _ = command(dev, "operation", "result", handle.id, *step, "--output-file", str(found))
            assert (code, "bytes written to" in said) == (0, True), said
            assert hashlib.sha256(found.read_bytes()).hexdigest() == want
        code, said, _ = command(dev, "operation", "result", handle.id, "--step", "size#1")
        assert (code, said.strip()) == (0, str(4 << 20))
        code, said, _ = command(dev, "operation", "result", handle.id, "--step", "page#2")
        assert (code, "size#1, page#1, copier.text#1" in said) == (3, True), said

    def test_typed_calls_of_them(
        self, dev: Dev, copier: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """P421: the contract says what is a Blob, checks nothing by it, and generated code streams it."""
        code, said, _ = command(dev, "contract", "show", "copier")
        assert (code, "copy(Blob) -> Blob" in said, "length(Any) -> int" in said) == (0, True, True), said
        code, said, _ = command(
            dev, "contract", "generate", "copier", "--sync", "--out", str(tmp_path / "generated_copier.py")
        )
        assert code == 0, said
        monkeypatch.syspath_prepend(tmp_path)
        module = importlib.import_module("generated_copier")
        digest = numbers(tmp_path / "in.bin", 3 << 20)
        with mesh.SyncClient(dev.url) as client:
            calls = module.Copier(client).copier
            copied = calls.copy(mesh.Blob(tmp_path / "in.bin", content_type="text/odd"), timeout_s=20)
            assert (type(copied), copied.content_type, copied.sha256) == (mesh.Blob, "text/odd", digest)
            assert calls.repeat(10, timeout_s=20).size == 10
        found = httpx.get(f"{dev.url}/v1/endpoints/copier/openapi.json", trust_env=False).json()
        copy = found["paths"]["/nexus/endpoints/copier/services/copier/copy"]["post"]
        assert copy["requestBody"]["content"] == {"*/*": {}}
