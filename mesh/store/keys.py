"""Every key and channel of the store, by name. Nothing else in the project spells a key.

All keys of a partition share one hash tag, so a transition stays on one node of a Cluster. The Lua library gets
these templates as a table literal (mesh/store/library.py) and the partition root as KEYS[1].
"""

from __future__ import annotations

from typing import Final

SCHEMA: Final = 4
"""Version of everything below and of the record's layout; the start-up gate compares it."""

PREFIX: Final = "m:"

SUFFIXES: Final = {
    "operation": ":o:",  # + operation id; hash h q i r t l b p, see layout.py
    "journal": ":j:",  # + operation id; list of what its handler did, layout.Line
    "stream": ":c:",  # + operation id; list of chunks that its handler emitted, layout.Line
    "children": ":kids:",  # + operation id; zset, operations that its handler started by acceptance, ms
    "unfinished": ":live:",  # + operation id; set, those of its children that are canceled when it ends first
    "idempotency": ":k:",  # + digest of the scoped key; string, the operation id
    "due": ":due",  # zset, operation id by its earliest timer, ms; operations that no session holds
    "held": ":held:",  # + session; zset like `due`, operations with a delivery leased to that session
    "sessions": ":sessions",  # zset, gateway session by last beat, ms
    "index": ":ops:",  # + namespace; zset, operation id by acceptance, ms
    "dead": ":dead:",  # + namespace; zset, delivery id by time of death, ms
    "endpoint": ":ep:",  # + endpoint id; hash gone paused max rate tat run pull retry versions shares, for dispatching;
    # run: tat: drain: of: (its limits) + namespace, where the endpoint has limits
    "waiting": ":wait:",  # + endpoint id [+ `|` + pin]; zset, blocked operation id by when it could begin, ms
    "line": ":line:",  # + endpoint id [+ `|` + pin] : namespace; zset, the same less the worth of their priority, ms
    "turns": ":turn:",  # + endpoint id [+ `|` + pin]; zset, namespaces that take turns, by virtual time (lua/line.lua)
    "debts": ":debt:",  # + endpoint id [+ `|` + pin]; zset, namespaces out of turns that are ahead of the present
    "parked": ":park:",  # + endpoint id [+ `|` + pin]; zset, namespaces at their own limit, by when to look again, ms
    "later": ":later:",  # + endpoint id : namespace; zset, operations accepted for later, by their time, where bounded
    "pins": ":pins:",  # + endpoint id; set, pins of which operations wait in a line of their own (lua/pins.lua)
    "running": ":ran:",  # + endpoint id; hash, instance with a version -> its attempts that answered 201 and run
    "waiting_endpoints": ":waits",  # set, endpoint ids whose `waiting` or `pins` may not be empty
    "gone": ":gone",  # zset, deleted endpoint id by the time from which it may be forgotten, ms
    "names": ":names",  # hash, endpoint name -> endpoint id
    "catalog": ":reg",  # hash, endpoint id -> JSON document
    "instances": ":inst:",  # + endpoint id; hash, instance id -> JSON document with its lease (lua/instances.lua)
    "checks": ":chk",  # zset, endpoint id|instance id|kind of check by the time from which it may run again, ms
    "pulse": ":pulse",  # when any gateway beat last, ms
    "outages": ":out",  # msgpack array of [from, to] ms, newest last: when no gateway beat
    "callers": ":call:",  # + endpoint id; hash, [service, operation, namespace] as JSON -> when last seen calling, ms
    "contract": ":ctr:",  # + endpoint id; list, newest first, of what changed in its contract (lua/registry.lua)
    "registry_version": ":regv",  # counter, moves with every registry change that routing must see
    "schedule_names": ":schn:",  # + namespace; hash, schedule name -> schedule id
    "schedule": ":sch:",  # + schedule id; hash: document, clock and how far it got (lua/schedules.lua)
    "schedule_turns": ":schturn",  # zset, namespace by when it is its schedules' turn, ms (lua/schedules.lua)
    "schedules_due": ":schdue:",  # + namespace; zset, schedule id by when to look at it, ms
    "schedule_queue": ":schq:",  # + schedule id; zset, `{scheduled ms}.{way}` by scheduled time, waiting for its turn
    "schedule_runs": ":schr:",  # + schedule id; zset, operation id by scheduled time, ms: the newest
    "meta": ":meta",  # hash, identity of this store
}

CHANNELS: Final = {
    "operation": ":n:",  # + operation id; a message for every event of the operation
    "pull": ":np:",  # + endpoint id; empty: its line has work, `|` and a pin: that one; else: see lua/pulling.lua
    "registry": ":nreg",  # a message for every move of registry_version
}


def root(partition: str) -> bytes:
    """KEYS[1] of every function: `m:{00}`."""
    return f"{PREFIX}{{{partition}}}".encode()


class Keys:
    """The keys of one partition, as bytes."""

    def __init__(self, partition: str) -> None:
        self.root = root(partition)
        self.due = self._key("due")
        self.sessions = self._key("sessions")
        self.gone = self._key("gone")
        self.names = self._key("names")
        self.catalog = self._key("catalog")
        self.registry_version = self._key("registry_version")
        self.waiting_endpoints = self._key("waiting_endpoints")
        self.outages = self._key("outages")
        self.meta = self._key("meta")
        self._operation = self._key("operation")
        self._journal = self._key("journal")
        self._stream = self._key("stream")
        self._channel = self.root + CHANNELS["operation"].encode()
        self.registry_channel = self.root + CHANNELS["registry"].encode()

    def _key(self, name: str) -> bytes:
        return self.root + SUFFIXES[name].encode()

    def operation(self, operation_id: str) -> bytes:
        return self._operation + operation_id.encode()

    def operation_channel(self, operation_id: str) -> bytes:
        return self._channel + operation_id.encode()

    def pull_channel(self, endpoint_id: str) -> bytes:
        return self.root + CHANNELS["pull"].encode() + endpoint_id.encode()

    def journal(self, operation_id: str) -> bytes:
        return self._journal + operation_id.encode()

    def stream(self, operation_id: str) -> bytes:
        return self._stream + operation_id.encode()

    def children(self, operation_id: str) -> bytes:
        return self._key("children") + operation_id.encode()

    def idempotency(self, digest: str) -> bytes:
        return self._key("idempotency") + digest.encode()

    def index(self, namespace: str) -> bytes:
        return self._key("index") + namespace.encode()

    def dead(self, namespace: str) -> bytes:
        return self._key("dead") + namespace.encode()

    def endpoint(self, endpoint_id: str) -> bytes:
        return self._key("endpoint") + endpoint_id.encode()

    def waiting(self, line: str) -> bytes:
        return self._key("waiting") + line.encode()

    def pins(self, endpoint_id: str) -> bytes:
        return self._key("pins") + endpoint_id.encode()

    def running(self, endpoint_id: str) -> bytes:
        return self._key("running") + endpoint_id.encode()

    def instances(self, endpoint_id: str) -> bytes:
        return self._key("instances") + endpoint_id.encode()

    def schedule_names(self, namespace: str) -> bytes:
        return self._key("schedule_names") + namespace.encode()

    def schedule(self, schedule_id: str) -> bytes:
        return self._key("schedule") + schedule_id.encode()

    def schedules_due(self, namespace: str) -> bytes:
        return self._key("schedules_due") + namespace.encode()

    def schedule_queue(self, schedule_id: str) -> bytes:
        return self._key("schedule_queue") + schedule_id.encode()

    def schedule_runs(self, schedule_id: str) -> bytes:
        return self._key("schedule_runs") + schedule_id.encode()

    def held(self, session: str) -> bytes:
        return self._key("held") + session.encode()

    def callers(self, endpoint_id: str) -> bytes:
        return self._key("callers") + endpoint_id.encode()

    def contract(self, endpoint_id: str) -> bytes:
        return self._key("contract") + endpoint_id.encode()
