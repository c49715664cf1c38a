"""Who calls what, and how a contract changed, as the store keeps it: one idea per test."""

from __future__ import annotations

import asyncio
import json

import pytest

from mesh.clock import sleep
from mesh.errors import Conflict, PreconditionFailed
from mesh.store.catalog import CatalogStore
from mesh.store.library import LIMITS
from mesh.store.link import Link
from mesh.store.store import Store
from registry.callers import Callers
from registry.catalog import Catalog
from registry.spec import EndpointSpec, read_spec


def spec(*operations: str) -> EndpointSpec:
    listed = [{"name": name} for name in operations]
    return read_spec(EndpointSpec, {"services": [{"name": "s", "operations": listed}]})


class TestCallers:
    async def test_a_caller_is_written_once_however_often_it_calls(self, link: Link) -> None:
        store = CatalogStore(link)
        endpoint = (await Catalog(store).put("summarizer", "alpha", EndpointSpec())).endpoint
        callers = Callers(store)
        for _ in range(3):
            callers.note(endpoint.id, "s", "o", "beta")
            callers.note(endpoint.id, "s", "o", "alpha")
            await callers.write()
        await link.call(b"DEL", store.keys.callers(endpoint.id))
        callers.note(endpoint.id, "s", "o", "beta")
        await callers.write()
        assert await store.callers(endpoint.id) == {}, "once a minute is enough"
        callers = Callers(store)
        callers.note(endpoint.id, "s", "o", "beta")
        callers.note(endpoint.id, "s", "o", "alpha")
        found = await callers.of(endpoint.id)
        assert [(one.service, one.operation, one.namespace) for one in found] == [
            ("s", "o", "alpha"),
            ("s", "o", "beta"),
        ]
        assert await link.call(b"PTTL", store.keys.callers(endpoint.id)) > 6 * 86_400_000

    async def test_gateways_share_what_they_saw(self, link: Link) -> None:
        store = CatalogStore(link)
        endpoint = (await Catalog(store).put("summarizer", "alpha", EndpointSpec())).endpoint
        mine, others = Callers(store), Callers(store)
        mine.note(endpoint.id, "s", "o", "alpha")
        others.note(endpoint.id, "s", "o", "beta")
        await mine.write()
        assert {one.namespace for one in await others.of(endpoint.id)} == {"alpha", "beta"}

    async def test_there_is_a_most_and_what_is_long_ago_makes_room(self, link: Link) -> None:
        store = CatalogStore(link)
        endpoint = (await Catalog(store).put("summarizer", "alpha", EndpointSpec())).endpoint
        most, kept_ms = LIMITS["callers"], 60_000
        await store.callers_seen(endpoint.id, [f"{n}" for n in range(most)], kept_ms)
        await store.callers_seen(endpoint.id, ["one more"], kept_ms)
        seen = await store.callers(endpoint.id)
        assert len(seen) == most
        assert "one more" not in seen
        # Aged by hand: a short `kept_ms` would let the whole hash expire before it is read.
        aged = [part for name, at in seen.items() for part in (name.encode(), b"%d" % (at - kept_ms - 1))]
        await link.call(b"HSET", store.keys.callers(endpoint.id), *aged)
        await store.callers_seen(endpoint.id, ["one more", "0"], kept_ms)
        assert set(await store.callers(endpoint.id)) == {"one more", "0"}

    async def test_nothing_is_noted_of_an_endpoint_that_is_not_there(self, link: Link) -> None:
        store = CatalogStore(link)
        await store.callers_seen("ep-none", ["a"], 60_000)
        assert await store.callers("ep-none") == {}


class TestContract:
    async def test_of_two_that_replace_one_contract_the_second_is_compared_with_the_first(self, link: Link) -> None:
        """What was compared must still be there when it is replaced."""
        catalogs = [Catalog(CatalogStore(link)) for _ in range(2)]
        await catalogs[0].put("summarizer", "alpha", spec("a"))
        edits = [one.put("summarizer", "alpha", spec("a", name)) for one, name in zip(catalogs, "bc", strict=True)]
        outcomes = await asyncio.gather(*edits, return_exceptions=True)
        assert sorted(type(one).__name__ for one in outcomes) == ["Conflict", "Put"]
        for one in catalogs:
            await one.close()

    async def test_changes_are_kept_newest_first_up_to_a_most(self, link: Link) -> None:
        catalog = Catalog(CatalogStore(link))
        for number in range(LIMITS["contract_changes"] + 3):
            put = await catalog.put("summarizer", "alpha", spec("a", f"b{number}"), force=True)
        kept = await CatalogStore(link).contract_changes(put.endpoint.id)
        assert (len(kept), kept[0][0]) == (LIMITS["contract_changes"], put.endpoint.version)
        change = json.loads(kept[0][2])
        assert (change["by"], change["forced"], [one["operation"] for one in change["breaks"]]) == (
            "alpha",
            True,
            [f"b{LIMITS['contract_changes'] + 1}"],
        )
        with pytest.raises(Conflict):
            await catalog.put("summarizer", "alpha", spec("b"))
        with pytest.raises(PreconditionFailed):
            await catalog.put("summarizer", "alpha", spec("b"), if_match="1", force=True)
        await catalog.close()

    async def test_what_is_kept_of_a_deleted_endpoint_goes_with_it(self, link: Link) -> None:
        store = CatalogStore(link)
        catalog = Catalog(store)
        await catalog.put("summarizer", "alpha", spec("a"))
        endpoint = (await catalog.put("summarizer", "alpha", spec("a", "b"))).endpoint
        await store.callers_seen(endpoint.id, ["a"], 60_000)
        await catalog.delete("summarizer", "alpha", kept_ms=1)
        await sleep(0.02)  # the clock of the store must move on
        await Store(link).beat("session", join=True)
        assert await link.call(b"EXISTS", store.keys.callers(endpoint.id), store.keys.contract(endpoint.id)) == 0
