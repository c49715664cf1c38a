"""The bench itself: its figures have units, its checks bite, and a tiny run of it gives all it promises."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from bench.figures import TARGETS, Figures, Target, compare, misses, unit_of
from bench.generator import ERRORS_MAX, Generator, Load, percentile
from bench.load import Options
from bench.meters import fsyncs_between, pin, tree, usage
from bench.process import can_trace
from bench.receiver import check
from bench.report import to_json
from bench.work import INPUT_BYTES, KEY_CHARS, Wrong, input_of, key_of, new_tag, result_of, surface_of
from bench.wrk import script
from mesh.clock import now_ms, sleep
from mesh.errors import Unauthenticated
from mesh.pool import Reply
from mesh.tokens import new_webhook_secret, sign_webhook

pytestmark = pytest.mark.timeout(500)  # the first test waits for a run of every scenario

ROOT = Path(__file__).parents[2]
KEY = key_of("abcdefghijkl", 7)
OPERATION = b"00-abcdefghjkmnpqrstvwx"

COMMON = {
    "throughput_per_s": "operations/s",
    "alone_p50_ms": "ms",
    "alone_p99_ms": "ms",
    "loaded_p50_ms": "ms",
    "loaded_p99_ms": "ms",
    "gateway_cpu_us": "us of CPU per operation",
    "store_cpu_us": "us of CPU per operation",
    "handler_cpu_us": "us of CPU per operation",
    "generator_cpu_us": "us of CPU per operation",
    "store_calls_per_op": "per operation",
    "fsyncs_per_op": "per operation",
    "store_bytes": "bytes per operation",
    "gateway_rss_before_mib": "MiB",
    "gateway_rss_after_mib": "MiB",
    "store_rss_after_mib": "MiB",
    "handler_rss_after_mib": "MiB",
}
PROMISED = {
    "nexus_sync": COMMON,
    "pull_sync": COMMON | {"push_ratio": "times"},
    "v1_sync": COMMON,
    "async": COMMON | {"receiver_cpu_us": "us of CPU per operation"},
    "batch": {
        "batch_per_s": "operations/s",
        "single_per_s": "operations/s",
        "single_ratio": "times",
        "alone_ratio": "times",
        "gateway_cpu_us": "us of CPU per operation",
        "fsyncs_per_op": "per operation",
        "lines_count": "",
    },
    "durable_steps": {
        "loaded_per_s": "operations/s",
        "loaded_p50_ms": "ms",
        "alone_p50_ms": "ms",
        "alone_p99_ms": "ms",
        "loaded_handler_cpu_us": "us of CPU per operation",
        "loaded_gateway_cpu_us": "us of CPU per operation",
        "loaded_store_cpu_us": "us of CPU per operation",
    },
    "replay": {"replay_1000_ms": "ms", "replay_many_ms": "ms", "peak_mib": "MiB"},
    "asleep": {"asleep_count": "", "agent_mib": "MiB", "burst_mib": "MiB", "agent_idle_cpu_percent": "% of a core"},
    "parked": {
        "parked_count": "",
        "idle_cpu_percent": "% of a core",
        "gateway_idle_cpu_percent": "% of a core",
        "store_idle_cpu_percent": "% of a core",
        "store_bytes": "bytes per operation",
    },
    "cold_start": {"empty_s": "s", "existing_s": "s", "existing_count": ""},
}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of the real thing, seconds long."""
    directory = tmp_path_factory.mktemp("bench")
    out = directory / "figures.json"
    arguments = ["--seconds", "0.4", "--warmup", "0.2", "--repeats", "1", "--parked", "60", "--idle", "0.6"]
    arguments += ["--concurrency", "8", "--only", ",".join(PROMISED), "--json", str(out), "--dir", str(directory)]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "throughput_per_s" in done.stdout
    assert [one.name for one in directory.iterdir()] == ["figures.json"], "it leaves something behind"
    return json.loads(out.read_text())


@pytest.mark.parametrize("scenario", PROMISED)
def test_a_scenario_gives_every_figure_with_its_unit(document: dict[str, Any], scenario: str) -> None:
    figures = document["scenarios"][scenario]["figures"]
    assert {name: figures[name]["unit"] for name in PROMISED[scenario]} == PROMISED[scenario]
    for name, figure in figures.items():
        assert figure["min"] <= figure["median"] <= figure["max"], name
        assert len(figure["runs"]) == 1


@pytest.mark.parametrize("scenario", PROMISED)
def test_every_target_stands_beside_its_figure(document: dict[str, Any], scenario: str) -> None:
    figures = document["scenarios"][scenario]["figures"]
    for name in TARGETS[scenario]:
        assert figures[name]["verdict"] in ("ok", "MISS", "?")
        assert figures[name]["target"]


def test_the_run_says_what_it_was(document: dict[str, Any]) -> None:
    assert document["format"] == "mesh-bench/1"
    assert document["ok"] is True
    assert document["options"]["concurrency"] == 8
    assert document["machine"].keys() >= {"cpu", "cores", "python", "store", "fdatasync_p50_us", "file_system"}
    assert not any(one["errors"] for one in document["scenarios"].values())


def test_figures_are_of_this_run(document: dict[str, Any]) -> None:
    """Sanity of the meters, wide enough for any machine: what must be positive is, what is counted is counted."""
    sync, parked = document["scenarios"]["v1_sync"]["figures"], document["scenarios"]["parked"]["figures"]
    for name in ("throughput_per_s", "alone_p50_ms", "gateway_rss_before_mib"):
        assert sync[name]["median"] > 0, name
    # Of a few operations, as on a busy machine, CPU may be less than a tick, and what they keep less than a buffer.
    calls = [document["scenarios"][scenario]["figures"] for scenario in ("nexus_sync", "pull_sync", "v1_sync", "async")]
    for name in ("gateway_cpu_us", "store_bytes"):
        assert any(figures[name]["median"] > 0 for figures in calls), name
    assert 0 < sync["store_calls_per_op"]["median"] < 10  # starts of one turn share a call
    assert parked["parked_count"]["median"] == 60
    note = sync["fsyncs_per_op"]["note"]
    assert "strace" in note if can_trace() else "upper bound" in note
    if note.startswith("counted"):
        assert 0 < sync["fsyncs_per_op"]["median"] < 10  # two, and those of calls that ended behind the window


# The unit of work


def test_the_input_is_200_bytes_of_json_that_name_the_call() -> None:
    assert len(KEY) == KEY_CHARS
    assert len(input_of(KEY)) == INPUT_BYTES == 200
    assert json.loads(input_of(KEY))["id"] == KEY.decode()
    assert new_tag() != new_tag()


V1_DONE = b'{"id":"x","state":"succeeded","result":' + result_of(KEY) + b"}"
V1_TAKEN = b'{"id":"x","state":"scheduled","idempotency_key":"' + KEY + b'"}'
ID = [(b"mesh-operation-id", OPERATION)]


@pytest.mark.parametrize(
    ("kind", "how", "reply"),
    [
        ("nexus", {}, Reply(200, ID, result_of(KEY))),
        ("v1", {}, Reply(200, ID, V1_DONE)),
        ("v1", {"respond_async": True}, Reply(202, ID, V1_TAKEN)),
    ],
)
def test_only_the_right_answer_of_this_call_counts(kind: str, how: dict[str, Any], reply: Reply) -> None:
    surface = surface_of(kind, operation="echo", **how)
    assert surface.check(KEY, reply) == OPERATION
    for wrong in (
        replace(reply, status=201),
        replace(reply, headers=[]),
        replace(reply, body=reply.body.replace(KEY, key_of("abcdefghijkl", 8))),
    ):
        with pytest.raises(Wrong):
            surface.check(KEY, wrong)


def test_a_v1_request_is_json_around_the_input() -> None:
    surface = surface_of("v1", operation="later", respond_async=True, callback="http://127.0.0.1:1/c")
    headers, body = surface.request(KEY)
    sent = json.loads(body)
    assert sent["input"] == json.loads(input_of(KEY))
    assert sent["callback"] == {"url": "http://127.0.0.1:1/c", "format": "cloudevents"}
    assert (b"prefer", b"respond-async") in headers
    assert (b"idempotency-key", KEY) in headers


def test_wrk_sends_the_same_bytes() -> None:
    text = script({"surface": "nexus", "where": {"operation": "echo"}}, "abcdefghijkl")
    before, after = input_of(KEY).decode().split(KEY.decode())
    assert json.dumps(before) in text
    assert json.dumps(after) in text
    assert '["nexus-request-id"] = key' in text


# The generator


async def test_wrong_answers_are_counted_and_end_the_run() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(INPUT_BYTES)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        load = Load(
            url=f"http://127.0.0.1:{port}",
            tag=new_tag(),
            surface="nexus",
            where={"operation": "echo"},
            concurrency=2,
            seconds=30,
        )
        result = await asyncio.to_thread(Generator(load).run)
    assert (result.ops, result.answered) == (0, 0)
    assert ERRORS_MAX <= result.errors <= ERRORS_MAX + 1
    assert "answered 200 b'{}'" in result.samples[0]


async def test_an_answer_may_come_in_pieces() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(INPUT_BYTES)
                key = json.loads(body)["id"].encode()
                assert b"nexus-request-id: " + key in head
                result = result_of(key)
                for piece in (b"HTTP/1.1 200 OK\r\nMesh-Operation-Id: 00-%b\r\ncontent-length" % key,
                              b": %d\r\n\r\n%b" % (len(result), result[:7]), result[7:]):  # fmt: skip
                    writer.write(piece)
                    await writer.drain()
                    await sleep(0)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        load = Load(url=url, tag=new_tag(), surface="nexus", where={"operation": "echo"}, concurrency=3, count=20)
        result = await asyncio.to_thread(Generator(load).run)
    assert (result.ops, result.answered, result.unique, result.samples) == (20, 20, 20, [])


def test_a_wrong_answer_fails_the_run() -> None:
    figures = Figures("v1_sync")
    figures.errors.append("1 wrong answers")
    document = to_json([Figures("nexus_sync"), figures], Options(), {}, "2026-11-22T00:00:00.000Z", 1.0)
    assert document["ok"] is False


# The receiver


def callback(**changes: Any) -> tuple[dict[str, str], bytes, str]:
    """Headers, body and secret of a right callback but for `changes` to its record."""
    operation = OPERATION.decode()
    record = {"id": operation, "state": "succeeded", "idempotency_key": KEY.decode(), **changes}
    record.setdefault("result", json.loads(result_of(KEY)))
    event = {"type": "mesh.operation.succeeded.v1", "subject": operation, "data": record}
    secret, body = new_webhook_secret(), json.dumps(event).encode()
    signed = sign_webhook(secret, f"{operation}.1", now_ms() // 1000, body)
    return {name.decode(): value.decode() for name, value in signed}, body, secret


def test_the_receiver_takes_a_right_callback() -> None:
    headers, body, secret = callback()
    assert check(secret, headers, body) == KEY + b" " + OPERATION + b"\n"


@pytest.mark.parametrize("changes", [{"state": "failed"}, {"result": {"id": "other"}}, {"id": "00-other"}])
def test_the_receiver_refuses_what_is_signed_and_wrong(changes: dict[str, Any]) -> None:
    headers, body, secret = callback(**changes)
    with pytest.raises(Unauthenticated):
        check(secret, headers, body)


def test_the_receiver_refuses_another_signature() -> None:
    headers, body, _ = callback()
    with pytest.raises(Unauthenticated):
        check(new_webhook_secret(), headers, body)


# Meters and figures


def test_strace_lines_within_the_window_are_counted(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trace.write_text(
        "11 100.500000 fdatasync(7) = 0\n"
        "11 101.000000 fdatasync(7 <unfinished ...>\n"
        "12 101.200000 fsync(7) = 0\n"
        "11 101.300000 <... fdatasync resumed>) = 0\n"
        "11 102.000000 fdatasync(7) = 0\n"
        "101.900000 fdatasync(7) = 0\n"
    )
    assert fsyncs_between(trace, 101_000, 102_000) == 3


def test_a_pinned_process_stays_on_its_core() -> None:
    core = max(os.sched_getaffinity(0))
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            pin([other.pid], core)
            assert os.sched_getaffinity(other.pid) == {core}
        finally:
            other.kill()
    assert core in os.sched_getaffinity(0)


def test_usage_is_of_the_process_named() -> None:
    mine = usage([os.getpid()])
    assert mine.cpu_s > 0
    assert mine.rss_bytes > 1 << 20
    assert tree(os.getpid())[0] == os.getpid()


def test_a_percentile_is_a_value_that_was_there() -> None:
    assert percentile([], 0.5) == 0
    assert percentile([3.0], 0.99) == 3
    assert percentile([float(one) for one in range(1, 101)], 0.5) == 51


def test_a_verdict_is_of_the_median() -> None:
    figures = Figures("nexus_sync")
    for value in (5_000, 7_000, 9_000):
        figures.add("throughput_per_s", value)
    assert figures.verdict("throughput_per_s") == "ok"
    figures.add("alone_p50_ms", 1.2)
    assert figures.verdict("alone_p50_ms") == "MISS"
    figures.add("fsyncs_per_op", 0.5, "upper bound: turns of the store's event loop")
    assert figures.verdict("fsyncs_per_op") == "?"
    figures.add("loaded_p50_ms", 1)
    assert figures.verdict("loaded_p50_ms") == ""
    assert misses([figures]) == ["nexus_sync.alone_p50_ms"]


def test_a_figure_must_end_in_a_unit() -> None:
    with pytest.raises(KeyError):
        Figures("x").add("speed", 1)
    assert all(unit_of(name) is not None for targets in TARGETS.values() for name in targets)
    assert str(Target(most=2, below=True)) == "< 2"


def test_pull_is_measured_beside_push() -> None:
    push, pull = Figures("nexus_sync"), Figures("pull_sync")
    compare(push, pull)
    assert pull.values == {}
    for value in (1_000, 2_000, 4_000):
        push.add("throughput_per_s", value)
        pull.add("throughput_per_s", value * 1.5)
    compare(push, pull)
    assert (pull.values["push_ratio"], pull.verdict("push_ratio"), unit_of("push_ratio")) == ([1.5], "ok", "times")
