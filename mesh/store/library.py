"""The Function library of the store: generated tables, prelude and one Lua file per verb, put together in memory.

The tables come from mesh/machine.py, mesh/events.py, keys.py and layout.py, so Lua and Python cannot drift apart
(`cjson` is not reachable while a library loads, hence literals). Their names stand in the files alone (names.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import IntEnum, StrEnum
from importlib.resources import files
from typing import Final

from mesh.events import EventKind
from mesh.machine import DELIVERY, OPERATION, Cell, Delivery, Move, State
from mesh.store.keys import CHANNELS, SUFFIXES
from mesh.store.layout import HEAD, HEAD_DEFAULTS, HEAD_TYPES, TIMES
from mesh.store.names import resolved

NAME: Final = "mesh1"

LIMITS: Final = {
    "events": 4096,  # events kept per operation; terminal ones are always kept
    "takeover": 256,  # operations moved per call from one dead session: what the store may be busy with in one go
    "waiting_endpoints": 256,  # endpoints with a waiting line told per claim
    "probe_look": 32,  # newest operations of a waiting line, and as many at random, that a probe is chosen from
    "dead_ms": 72 * 3_600_000,  # how long a dead letter is kept at least
    "gone": 16,  # deleted endpoints looked at per beat
    "gone_again_ms": 60_000,  # when one that still has work is looked at again
    "instances": 512,  # instances per endpoint
    "versions": 64,  # versions of an endpoint with a weight, a share or a drain of their own
    "comings": 8,  # times of an instance's last arrivals that are kept
    "outage_ms": 1_500,  # no gateway beat for so long: nobody could renew a lease
    "outages": 8,  # kept
    "checks_idle_ms": 3_600_000,  # a check that nobody asked for is forgotten
    "callers": 2_048,  # of one endpoint: namespaces by operation
    "contract_changes": 50,  # kept of one endpoint
    "rate_ahead_ms": 250,  # how far `rate_per_s` may run ahead of an even pace: one look of a courier
    "pull_look": 256,  # operations of a waiting line looked at per pull
    "line_look": 16,  # of one namespace's line read at once
    "priority_ms": 10_000,  # how much waiting one level of priority is worth
    "parked_ms": 1_000,  # when a namespace at its own concurrency limit is looked at although nothing ended
    "never": 10**15,  # ms beyond every time: the timer of what nothing but an event moves
    "put": 1_000,  # scores and members of one ZADD
    "unparked": 64,  # namespaces looked at again per unblock or pull
    "drain_ms": 10_000,  # window in which what leaves a namespace's line is counted
    "drain_least_ms": 200,  # a window younger than this counts as this old
    "journal_entries": 100_000,  # of one operation
    "journal_bytes": 64 << 20,  # of one operation, all entries together
    "stream_chunks": 100_000,
    "stream_bytes": 64 << 20,
    "page_entries": 1_000,  # elements of a journal or stream in one reply
    "page_bytes": 1 << 20,  # about so many bytes of them
    "children_closed": 64,  # children canceled per claim for a parent that ended
    "children_seen": 1_000,  # children of which one may live, looked at when their parent suspends after a cancel
    "unread_ms": 60_000,  # how much longer a child is kept at a time while its parent has its result still to read
    "schedules": 1_000,  # of one namespace
    "schedule_queue": 1_000,  # times of one schedule that wait their turn
    "schedule_runs": 1_000,  # of one schedule listed as its runs
    "queue_look_ms": 500,  # when a queue is looked at again whose last run goes on
    "postponed_ms": 1_000,  # after an attempt that counts for nothing, doubled with each
    "postponed_ms_max": 30_000,
    "remembered": 64,  # arguments of starts that were unpacked, and as many of completions
    "alike": 512,  # starts and ends that are known for those that come next
    "alike_ms": 64,  # an operation that took longer to end than this ended like hardly any other
    "beat_ms": 30_000,  # lease of a heartbeat that names no length when none was named before
}

FILES: Final = (
    "line", "pins", "prelude", "turns", "outages", "pulling", "durable", "alike", "start", "start_many", "started",
    "complete", "retry", "release", "cancel", "heartbeat", "claim", "unblock", "pull", "delivery", "answers",
    "sessions", "journal", "suspend", "registry", "instances", "checks", "queue", "schedules", "firing",
)  # fmt: skip

ADMISSION: Final = frozenset(
    {
        *("mesh1_start", "mesh1_start_many", "mesh1_endpoint_put", "mesh1_append"),
        *("mesh1_schedule_put", "mesh1_schedule_backfill", "mesh1_schedule_fire"),
    }
)
"""The only functions that a full store refuses; the others end or move what is kept (docs/why/invariants.md I29)."""
_ARRAY16: Final = 0xDC
"""msgpack's first byte of an array of 16 values or more; two bytes with their number follow."""
READS: Final = frozenset({"mesh1_pages", "mesh1_queue"})
"""Functions that write nothing."""


_GLOBALS: Final = """\
local function globals() return redis.call, unpack, pcall, type, string, struct, math, cmsgpack end
local redis_call, unpack, pcall, type, string, struct, math, cmsgpack
local verbs = {}
local function ready(verb)
  return function(keys, argv)
    if not redis_call then
      redis_call, unpack, pcall, type, string, struct, math, cmsgpack = globals()
      collectgarbage('setstepmul', 50)
    end
    return verb(keys, argv)
  end
end"""
"""What every verb calls again and again: the server finds a global behind a metatable, once a library is loaded.

The server has Lua collect every few calls, however little there is; by itself Lua would look at twice as much as was
made since. What we keep is small and does not change: at a quarter of that pace it is read through a quarter as often,
and the garbage that lies around meanwhile is some hundred kB.
"""


def _literal(pairs: Mapping[str, str | int]) -> str:
    return "{" + ", ".join(f"{name} = {value!r}" for name, value in pairs.items()) + "}"


def _codes(members: Iterable[IntEnum]) -> dict[str, int]:
    return {member.name.lower(): member.value for member in members}


def _table(machine: Mapping[IntEnum, Mapping[StrEnum, Cell]]) -> str:
    rows: list[str] = []
    for state, row in machine.items():
        cells = {event.value: (cell.to.value if isinstance(cell, Move) else 0) for event, cell in row.items()}
        rows.append(f"  [{state.value}] = {_literal(cells)},")
    return "{\n" + "\n".join(rows) + "\n}"


def _head_code() -> str:
    """Every field spelled out, for loops over them are several times as dear in Lua.

    cmsgpack takes and gives many values as they stand, without the three bytes of an array's head around them. Behind
    the last field that must be there a head may end, or behind `instance`, which comes next: what most operations have
    no use for is neither packed nor kept.
    """
    whole, least = len(HEAD), len(HEAD) - len(HEAD_DEFAULTS)
    fetched = HEAD.index("instance") + 1
    values = ", ".join(f"h{position}" for position in range(1, whole + 1))
    defaults = dict(enumerate(HEAD_DEFAULTS, start=least + 1))
    times = {HEAD.index(name) + 1 for name in TIMES}

    def read(position: int) -> str:
        """Of a value as it is packed: what it says."""
        plain = f"h{position}"
        value = f"{plain} or {defaults[position]!r}" if position in defaults else plain
        if position not in times:
            return value
        return f"({value}) > 0 and h1 - 1 + {plain} or ({value}) < 0 and h1 + {plain} or 0"

    def told(position: int) -> str:
        """The other way round."""
        value = f"op[{position}]"
        return f"{value} >= c and {value} - c + 1 or {value} ~= 0 and {value} - c or 0" if position in times else value

    def packed(count: int) -> str:
        frame = "".join(f"\\{byte}" for byte in (_ARRAY16, *divmod(count, 256)))
        return f"'{frame}' .. cmsgpack.pack({', '.join(told(position) for position in range(1, count + 1))})"

    filled = ", ".join(read(position) for position in range(1, whole + 1))
    blank = ", ".join("0" if kind is int else "''" for kind in HEAD_TYPES)
    plain = " and ".join(f"op[{position}] == {value!r}" for position, value in defaults.items() if position != fetched)
    owner, blocked = HEAD.index("owner") + 1, HEAD.index("blocked") + 1
    known = "id = id, root = root, gather = false"
    return (
        "local function decode_head(packed, id, root)\n"
        f"  if string.byte(packed) ~= {_ARRAY16} then error('a record that cannot be read') end\n"
        f"  local _, {values} = cmsgpack.unpack_limit(packed, {whole}, 3)\n"
        f"  return {{{known}, was_owner = h{owner}, was_blocked = h{blocked}, {filled}}}\n"
        "end\n"
        "local function blank_head(id, root)\n"
        f"  return {{{known}, was_owner = false, was_blocked = '', {blank}}}\n"
        "end\n"
        "local function head_was_short(packed)\n"
        f"  return string.byte(packed, 3) <= {fetched}\n"
        "end\n"
        "local function head_is_short(op)\n"
        f"  return {plain}\n"
        "end\n"
        "local function encode_head(op)\n"
        "  local c = op[1]\n"
        f"  if not head_is_short(op) then return {packed(whole)} end\n"
        f"  if op[{fetched}] ~= '' then return {packed(fetched)} end\n"
        f"  return {packed(least)}\n"
        "end"
    )


def _tables() -> dict[str, Mapping[str, str | int]]:
    """What the files call by name (mesh/store/names.py)."""
    return {
        "KEY": SUFFIXES,
        "CHANNEL": CHANNELS,
        "LIMIT": LIMITS,
        "S": _codes(State),
        "D": _codes(Delivery),
        "E": _codes(EventKind),
        "H": {name: position for position, name in enumerate(HEAD, start=1)},
    }


def as_loaded(file: str, text: str) -> str:
    """Text of a Lua file as it stands in the library, line by line. Raises UnknownName."""
    return resolved(file, text, HEAD, _tables())


def source() -> str:
    """The whole library as FUNCTION LOAD takes it."""
    here = files("mesh.store") / "lua"
    bodies = [as_loaded(name, (here / f"{name}.lua").read_text()) for name in FILES]
    verbs = [verb for body in bodies for verb in re.findall(r"^function verbs\.(mesh1_\w+)", body, re.MULTILINE)]
    parts = [
        f"#!lua name={NAME}",
        _GLOBALS,
        f"local KEY = {_literal(SUFFIXES)}",
        f"local H = {_literal(_tables()['H'])}",
        f"local OPERATION = {_table(OPERATION)}",  # pyright: ignore[reportArgumentType]
        f"local DELIVERY = {_table(DELIVERY)}",  # pyright: ignore[reportArgumentType]
        _head_code(),
        *bodies,
    ]
    for verb in verbs:
        flags = "{'no-writes'}" if verb in READS else "{}" if verb in ADMISSION else "{'allow-oom'}"
        parts.append(f"redis.register_function{{function_name='{verb}', callback=ready(verbs.{verb}), flags={flags}}}")
    return "\n".join(parts) + "\n"
