"""P404: large payloads in an S3-compatible store: a real one over HTTP, which checks every signature."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mesh.clock import monotonic_s, pause
from tests.ports import lasting_port
from tests.surface.actors import Actor
from tests.surface.gateways import KEYLESS, Caller, Gateway
from tests.surface.test_large_payloads import BIG, BYTES, digest, echoing, files, until
from tests.surface.test_step_blobs import attempt, put

KEY_ID, SECRET = "AKIAMESHTESTS0000001", "correct/horse+battery0staple"


class Bucket:
    """A store with one bucket in a directory, which a test may stop and start again. Only KEY_ID with SECRET may in."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "payloads").mkdir(parents=True)
        self.port = lasting_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "nanio", "serve", "--data-dir", str(self.directory), "--host", "127.0.0.1"]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=os.environ | {"NANIO_ACCESS_KEY": KEY_ID, "NANIO_SECRET_KEY": SECRET},
        )  # fmt: skip
        end_s = monotonic_s() + 30
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert monotonic_s() < end_s, "the store does not listen"
            pause(0.02)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def objects(self) -> list[Path]:
        """But for the mesh's own mark, and what the store keeps beside each (in directories with a dot)."""
        found = [path for path in files(self.directory / "payloads") if path.name != "place"]
        return [path for path in found if not any(part[:1] == "." for part in path.relative_to(self.directory).parts)]

    def age(self) -> None:
        """All that is there was put long ago."""
        for beside in files(self.directory / "payloads" / ".nanio-meta"):
            known = json.loads(beside.read_text()) | {"last_modified": "2001-01-01T00:00:00+00:00"}
            beside.write_text(json.dumps(known))


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    made = Bucket(tmp_path / "s3")
    made.start()
    yield made
    made.stop()


async def test_through_a_bucket(
    own_gateway: Callable[..., Gateway], bucket: Bucket, agent: Actor, tmp_path: Path
) -> None:
    """P404: there, back, in spans, gone with its operation; while the store is away nothing is accepted, nor lost."""
    blobs = {
        "url": "s3://payloads/mesh", "endpoint": f"http://127.0.0.1:{bucket.port}", "region": "us-east-1",
        "spool": str(tmp_path / "spool"), "sweep_ms": 200,
    }  # fmt: skip
    gateway = own_gateway(KEYLESS | {"blobs": blobs})
    caller = Caller(gateway)
    echoing(agent)
    endpoint = await caller.register(agent.url, policy={"retry": {"max_attempts": 1}})
    body = BIG * 4  # more than one part of an upload
    answer = await caller.nexus(endpoint, body, [BYTES, ("prefer", "wait=20"), ("nexus-request-id", "one")])
    assert (answer.status, answer.body == body, answer["repr-digest"]) == (200, True, digest(body))
    one = answer["mesh-operation-id"]
    some = await caller.get(f"/v1/operations/{one}/input", [("range", "bytes=1000-1999")])
    assert (some.status, some.body) == (206, body[1000:2000])
    assert [path.parent.name for path in bucket.objects()] == [one]
    await until(lambda: not list((tmp_path / "spool").iterdir()))

    bucket.stop()
    refused = await caller.nexus(endpoint, body, [BYTES, ("prefer", "wait=5")])
    assert (refused.status, refused.code) == (503, "blob_storage_failed")
    away = await caller.get(f"/v1/operations/{one}/result")
    assert (away.status, away.code) == (503, "blob_storage_failed")
    bucket.start()
    assert (await caller.get(f"/v1/operations/{one}/result")).body == body
    gateway.tell_store(f"DEL m:{{00}}:o:{one}")
    bucket.age()
    await until(lambda: not bucket.objects())


async def test_results_of_steps(own_gateway: Callable[..., Gateway], bucket: Bucket, agent: Actor) -> None:
    """P410, P412: put, had again by the token, and said when it is gone."""
    blobs = {"url": "s3://payloads/mesh", "endpoint": f"http://127.0.0.1:{bucket.port}", "region": "us-east-1"}
    caller = Caller(await asyncio.get_running_loop().run_in_executor(None, own_gateway, KEYLESS | {"blobs": blobs}))
    operation, token = await attempt(caller, agent)
    kept = await put(caller, token, BIG)
    assert (kept.status, kept.json["bytes"]) == (200, len(BIG))
    assert (await caller.get(kept.json["url"])).body == BIG
    (one,) = bucket.objects()
    assert one.parent.name == operation
    gone = await caller.get(kept.json["url"].rpartition("/")[0] + "/" + "0" * 64)
    assert (gone.status, gone.code) == (503, "blob_missing")


async def test_where_nothing_can_be_kept(own_gateway: Callable[..., Gateway], bucket: Bucket) -> None:
    """P112, P404: a gateway that could not keep what it takes does not start, and says why."""
    bucket.stop()
    blobs = {"url": "s3://payloads/mesh", "endpoint": f"http://127.0.0.1:{bucket.port}", "region": "us-east-1"}
    with pytest.raises(AssertionError, match="mend \\[blobs\\] url, endpoint or credentials"):
        own_gateway(KEYLESS | {"blobs": blobs})


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("AWS_SECRET_ACCESS_KEY", SECRET.replace("horse", "mule"), "SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", "AKIASOMEBODYELSE0001", "InvalidAccessKeyId"),
    ],
)
async def test_credentials_that_are_not_taken(
    own_gateway: Callable[..., Gateway],
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    why: str,
) -> None:
    """P112, P404: it does not start, says whose fault it is and what to mend, and not what the secret was."""
    monkeypatch.setenv(name, value)
    blobs = {"url": "s3://payloads/mesh", "endpoint": f"http://127.0.0.1:{bucket.port}", "region": "us-east-1"}
    with pytest.raises(AssertionError, match="mend \\[blobs\\] url, endpoint or credentials") as refused:
        own_gateway(KEYLESS | {"blobs": blobs})
    said = str(refused.value)
    assert why in said
    assert "<Error>" not in said
    assert not [secret for secret in (SECRET, os.environ["AWS_SECRET_ACCESS_KEY"]) if secret in said]
    assert bucket.objects() == []
