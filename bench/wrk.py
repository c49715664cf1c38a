"""wrk as the generator, where it is installed and asked for: the cheapest there is, for the synchronous surfaces.

wrk makes the requests in Lua from the same bytes as our own generator. It sees answers of one thread without knowing
whose they are, so it checks their form; that each is an operation of its own shows in the store's count.
"""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bench.generator import Result
from bench.meters import Reading, Usage
from bench.work import KEY_CHARS, key_of, result_of, surface_of
from mesh.clock import now_ms

if TYPE_CHECKING:
    from bench.parts import Stack

GRACE_S: Final = 30.0

_SCRIPT: Final = """\
local number = 0
function request()
  number = number + 1
  local key = TAG .. string.format("%020d", number)
  return wrk.format("POST", PATH, HEADERS(key), BODY_1 .. key .. BODY_2)
end
function response(status, headers, body)
  if status ~= 200 or not string.find(body, MARK, 1, true) or not headers["mesh-operation-id"] then
    WRONG = WRONG + 1
    SAMPLE = status .. " " .. string.sub(body, 1, 200)
  end
end
WRONG, SAMPLE = 0, ""
local threads = {}
function setup(thread) table.insert(threads, thread) end
function done(summary, latency)
  local wrong, sample = 0, ""
  for _, thread in ipairs(threads) do
    wrong = wrong + thread:get("WRONG")
    if thread:get("SAMPLE") ~= "" then sample = thread:get("SAMPLE") end
  end
  local e = summary.errors
  io.stdout:write(string.format("RESULT %d %d %.1f %.1f %d %q\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), wrong + e.connect + e.read + e.write + e.timeout, sample))
end
"""


def installed() -> bool:
    return shutil.which("wrk") is not None


def script(load: dict[str, Any], tag: str) -> str:
    """The Lua script for one run; keys begin with `tag`."""
    surface = surface_of(load["surface"], **load["where"])
    key = key_of("?" * (KEY_CHARS - 20), 0)
    headers, body = surface.request(key)
    table = ", ".join(f"[{_quoted(name)}] = {'key' if value == key else _quoted(value)}" for name, value in headers)
    before, after = body.split(key)
    mark = result_of(key).split(key)[1]
    return (
        f"local TAG, PATH, MARK = {_quoted(tag.encode())}, {_quoted(surface.path)}, {_quoted(mark)}\n"
        f"local BODY_1, BODY_2 = {_quoted(before)}, {_quoted(after)}\n"
        f"local function HEADERS(key) return {{{table}}} end\n{_SCRIPT}"
    )


async def drive(stack: Stack, load: dict[str, Any]) -> tuple[Result, Reading, Reading]:
    """A warm-up, then the window between two readings."""
    warm = 0
    if load.get("warmup_s"):
        warm = (await _run(stack, load, load["warmup_s"], "w")).requests
    begin_ms = now_ms()
    before, spent_s = await stack.read(), _children_s()
    told = await _run(stack, load, load["seconds"], "x")
    after, end_ms = await stack.read(), now_ms()
    # wrk is gone by now; what it used shows in what the kernel keeps of children that ended, and it is the only one.
    before.usage["generator"] = Usage(0, 0)
    after.usage["generator"] = Usage(_children_s() - spent_s, 0)
    result = Result(
        ops=told.requests,
        answered=told.requests + warm,
        unique=told.requests + warm,
        window_s=told.window_s,
        begin_ms=begin_ms,
        end_ms=end_ms,
        p50_ms=told.p50_ms,
        p99_ms=told.p99_ms,
        errors=told.wrong,
        samples=[told.sample] if told.sample else [],
    )
    return result, before, after


class Told(NamedTuple):
    """What wrk said at its end."""

    requests: int
    window_s: float
    p50_ms: float
    p99_ms: float
    wrong: int
    sample: str


async def _run(stack: Stack, load: dict[str, Any], seconds: float, mark: str) -> Told:
    file = stack.directory / f"wrk-{mark}.lua"
    file.write_text(script(load, load["tag"][:-1] + mark))
    whole_s = max(1, round(seconds))
    command = ["wrk", "-t1", f"-c{load['concurrency']}", f"-d{whole_s}s", "-s", str(file), stack.url]
    part = await stack.command("generator", command)
    assert part.process.stdout is not None
    said = await asyncio.wait_for(part.process.stdout.read(), whole_s + GRACE_S)
    await part.process.wait()
    del stack.parts["generator"]
    line = next((line for line in said.decode().splitlines() if line.startswith("RESULT ")), "")
    if not line:
        raise part.failed(f"said {said[-500:]!r}")
    _, requests, duration_us, p50_us, p99_us, wrong, sample = line.split(" ", 6)
    return Told(
        int(requests), int(duration_us) / 1e6, float(p50_us) / 1000, float(p99_us) / 1000, int(wrong), sample.strip('"')
    )


def _quoted(text: bytes) -> str:
    """A Lua string literal."""
    return json.dumps(text.decode())


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


__all__ = ["drive", "installed", "script"]
