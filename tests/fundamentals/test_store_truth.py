"""What the store keeps for a registry that tells the truth: pinned lines, drains, checks, outages, counts."""

from __future__ import annotations

import json
from typing import Any

from mesh.store.catalog import read_versions
from mesh.store.verbs import InstanceRow
from tests.model.fixtures import ENDPOINT, G1, NS, Room

WAITS = "no_version"


async def instance(
    room: Room, name: str = "i-1", *, ttl_ms: int = 5_000, fresh: bool = False, version: str = ""
) -> int:
    document = json.dumps({"url": f"http://{name}", "version": version}).encode()
    _, lease_end = await room.catalog.instance_put("work", NS, name, document, ttl_ms, fresh=fresh)
    return lease_end


async def row(room: Room, name: str = "i-1") -> InstanceRow:
    return next(one for one in await room.catalog.instances(ENDPOINT) if one.id == name)


async def store_ms(room: Room) -> int:
    seconds, micros = await room.link.call("TIME")
    return int(seconds) * 1000 + int(micros) // 1000


class TestPinned:
    async def test_what_waits_for_its_version_stands_in_nobodys_way(self, room: Room) -> None:
        """A line of its own, shown in the same depth; the others go out past it."""
        pinned = await room.accepted(pin="v3", blocked=WAITS)
        other = await room.accepted(blocked="no_instance")
        assert await room.catalog.loads([ENDPOINT]) == [(0, 2)]
        assert await room.catalog.pinned(ENDPOINT) == {"v3": 1}
        assert sorted((await room.claim()).lines) == [ENDPOINT, f"{ENDPOINT}|"]
        assert await room.catalog.pins(ENDPOINT, ["v2", "v3"]) == ["v3"]
        assert await room.catalog.pins(ENDPOINT, []) == ["v3"]
        works, _ = await room.store.unblock(ENDPOINT, G1, 10)
        assert [work.id for work in works] == [other]
        works, _ = await room.store.unblock(ENDPOINT, G1, 10, pin="v3")
        assert [(work.id, work.head.pin) for work in works] == [(pinned, "v3")]
        assert await room.catalog.pinned(ENDPOINT) == {}

    async def test_very_many_versions_that_nobody_has_crowd_out_no_line(self, room: Room) -> None:
        """They are one entry of those that are told of."""
        for number in range(400):
            await room.accepted(pin=f"v{number}", blocked=WAITS)
        await room.accepted(blocked="no_instance")
        assert sorted((await room.claim()).lines) == [ENDPOINT, f"{ENDPOINT}|"]

    async def test_it_moves_to_the_common_line_when_it_waits_for_what_all_wait_for(self, room: Room) -> None:
        """Paused, it goes by acceptance with all others; without its version again, it is out of their way again."""
        await room.endpoint(max_concurrency=1)
        running = await room.accepted()
        pinned = await room.accepted(pin="v3")
        assert (await room.kept(pinned)).head.blocked == "concurrency"
        await room.succeed(running)
        (work,), _ = await room.store.unblock(ENDPOINT, G1, 10)
        await room.store.release(work.id, 1, 1, WAITS, session=G1)
        assert (await room.kept(pinned)).head.blocked == WAITS
        assert await room.catalog.pinned(ENDPOINT) == {"v3": 1}
        other = await room.accepted()
        assert (await room.kept(other)).head.attempt == 1, "the newcomer passes it, for it waits for something else"
        works, stopped = await room.store.unblock(ENDPOINT, G1, 10, pin="v3")
        assert (works, stopped) == ([], "concurrency")
        assert await room.catalog.pinned(ENDPOINT) == {}

    async def test_attempts_out_are_counted_by_instance_while_they_are_out(self, room: Room) -> None:
        """Who still runs there; an end counts down."""
        first, second = await room.accepted(), await room.accepted()
        for one in (first, second):
            await room.store.started(one, 1, 1, G1, "token", 0, "i-1", counted=True)
        assert await room.catalog.running(ENDPOINT) == {"i-1": 2}
        await room.succeed(first)
        assert await room.catalog.running(ENDPOINT) == {"i-1": 1}
        await room.fail(second)
        assert await room.catalog.running(ENDPOINT) == {}


class TestDrains:
    async def test_told_to_drain_it_drains_on_through_heartbeats_until_it_is_another_process(self, room: Room) -> None:
        """Since when is kept too."""
        await instance(room)
        await room.catalog.instance_drain("work", NS, "i-1", 2)
        since = (await row(room)).since_ms
        await instance(room)
        assert ((await row(room)).draining, (await row(room)).since_ms) == (2, since)
        await instance(room, fresh=True)
        assert (await row(room)).draining == 0
        await room.catalog.instance_drain("work", NS, "i-1", 1)
        await instance(room)
        assert (await row(room)).draining == 0, "it left by itself and is back"

    async def test_arrivals_are_kept_and_heartbeats_are_none(self, room: Room) -> None:
        """What changes without a new process is none either."""
        await instance(room)
        await instance(room)
        await instance(room, fresh=True)
        await instance(room, version="2")
        assert len((await row(room)).arrivals_ms) == 2


class TestChecks:
    async def test_one_gateway_runs_what_is_due(self, room: Room) -> None:
        """P303."""
        wanted = [(ENDPOINT, "i-1", "probe", 60_000), (ENDPOINT, "i-2", "probe", 60_000)]
        assert await room.catalog.checks_claim(wanted[:1]) == [0]
        again, other = await room.catalog.checks_claim(wanted)
        assert (59_000 < again <= 60_000, other) == (True, 0)

    async def test_failures_and_successes_in_a_row_change_the_verdict(self, room: Room) -> None:
        """Each change moves the registry's version, so that every gateway sees it."""
        await instance(room)
        since = (await row(room)).since_ms

        async def done(why: str) -> str:
            return await room.catalog.check_done(ENDPOINT, "i-1", since, "probe", why, failures=2, successes=2)

        version = await room.catalog.version()
        assert [await done(why) for why in ("no", "", "no", "no", "no again", "", "no", "")] == [
            "noted", "noted", "noted", "changed", "noted", "noted", "noted", "noted",
        ]  # fmt: skip
        check = (await row(room)).checks["probe"]
        assert (check.failing, check.why, check.row) == (True, "no", 1)
        assert await done("") == "changed"
        assert not (await row(room)).checks["probe"].failing
        assert await room.catalog.version() == version + 2
        await instance(room, fresh=True)
        assert (await done("late"), dict((await row(room)).checks)) == ("gone", {})


class TestOutages:
    async def test_who_was_alive_when_it_began_has_the_whole_ttl_when_it_is_over(self, room: Room) -> None:
        """A lease that was over before stays over."""
        alive_until = await instance(room, "alive", ttl_ms=2_000)
        await instance(room, "dead", ttl_ms=2_000)
        now = await store_ms(room)
        # As if no gateway had beaten for ten seconds, and these leases had been written before that.
        await self._aged(room, "alive", now - 9_000)
        await self._aged(room, "dead", now - 11_000)
        await room.link.call("SET", room.store.keys.root + b":pulse", now - 10_000)
        await room.store.beat(G1)
        ((begin, end),) = await room.catalog.outages()
        assert (begin, now <= end < now + 5_000, alive_until > now) == (now - 10_000, True, True)
        since = {one: (await row(room, one)).since_ms for one in ("alive", "dead")}
        await instance(room, "alive", ttl_ms=2_000)
        await instance(room, "dead", ttl_ms=2_000)
        assert (await row(room, "alive")).since_ms == since["alive"], "its heartbeat after the outage is a heartbeat"
        assert (await row(room, "dead")).since_ms > since["dead"], "the other one comes back"

    @staticmethod
    async def _aged(room: Room, name: str, expires_at: int) -> None:
        script = (
            "local row = cmsgpack.unpack(redis.call('HGET', KEYS[1], ARGV[1])) row[2] = tonumber(ARGV[2])"
            " redis.call('HSET', KEYS[1], ARGV[1], cmsgpack.pack(row))"
        )
        key: Any = room.store.keys.instances(ENDPOINT)
        await room.link.call("EVAL", script, 1, key, name, expires_at)


class TestVersions:
    async def test_what_is_said_of_a_version_is_kept_until_it_is_the_default_again(self, room: Room) -> None:
        """Each field by itself."""
        async def versions() -> Any:
            (one,) = await room.catalog.endpoints()
            return read_versions(one.versions)

        await room.catalog.version_set("work", NS, "3", weight=5)
        await room.catalog.version_set("work", NS, "3", percent=2.5, draining=True)
        assert (versions_ := await versions())["3"][:2] == (5, 2.5)
        assert versions_["3"].draining_since_ms > 0
        await room.catalog.version_set("work", NS, "3", weight=-1, percent=-1, draining=False)
        assert await versions() == {}
