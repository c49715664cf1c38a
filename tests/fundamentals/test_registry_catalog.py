"""The catalog over the real store, without HTTP: hints, shared reads, closed lists, versions side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.clock import monotonic_s
from mesh.errors import NotFound
from mesh.store.catalog import CatalogStore
from mesh.store.embedded import EmbeddedStore
from mesh.store.link import Link
from mesh.store.subscriber import Subscriber
from registry.catalog import Catalog
from registry.routing import Outcome, Router
from registry.spec import EndpointSpec, InstanceSpec, read_spec
from tests.fundamentals.registering import Gateway, Start, gateways, put, until


@pytest.fixture
async def start(link: Link, embedded: EmbeddedStore, tmp_path: Path) -> AsyncIterator[Start]:
    async with gateways(embedded, tmp_path) as start_one:
        yield start_one


@pytest.fixture
async def gateway(start: Start) -> Gateway:
    return await start()


class TestCatalog:
    async def test_a_hint_is_followed_at_once(self, link: Link, embedded: EmbeddedStore) -> None:
        """The store's channel tells other gateways; the beat is there for messages that were lost."""
        store = CatalogStore(link)
        mine, others = Catalog(store), Catalog(store)
        subscriber = Subscriber(embedded.address, on_gap=lambda: None)
        await subscriber.connect()
        await subscriber.subscribe(store.keys.registry_channel, others.hint)
        following = asyncio.create_task(others.run())
        try:
            took_s: list[float] = []
            for n in range(6):
                begun_s = monotonic_s()
                endpoint = (await mine.put("summarizer", "alpha", EndpointSpec(description=f"take {n}"))).endpoint
                await until(lambda wanted=endpoint.version: others.version_of("summarizer") == str(wanted))
                took_s.append(monotonic_s() - begun_s)
            # Whoever has only the beat waits a whole one for each but the first.
            assert min(took_s[1:]) < 0.5, took_s
        finally:
            following.cancel()
            await subscriber.close()

    async def test_before_it_refuses_it_asks_the_store(self, link: Link) -> None:
        """Registered through one gateway, called through another a millisecond later."""
        mine, others = Catalog(CatalogStore(link)), Catalog(CatalogStore(link))
        await others.refresh()
        await mine.put("summarizer", "alpha", EndpointSpec())
        with pytest.raises(NotFound):
            others.find("summarizer", "alpha")
        assert (await others.locate("summarizer", "alpha")).name == "summarizer"
        with pytest.raises(NotFound):
            await others.locate("summarizer", "beta")

    async def test_registering_anew_ends_suspicion(self, link: Link) -> None:
        catalog = Catalog(CatalogStore(link))
        router = Router(catalog)
        endpoint = (await catalog.put("summarizer", "alpha", EndpointSpec())).endpoint
        await catalog.register("summarizer", "alpha", "i-1", InstanceSpec(url="http://a:1", version="1"))

        def lose() -> None:
            admitted = router.admit(endpoint)
            assert not isinstance(admitted, str)
            router.settle(endpoint, admitted, Outcome.UNREACHABLE)
            assert router.hindrance(endpoint) == "unreachable"

        lose()
        await catalog.register("summarizer", "alpha", "i-1", InstanceSpec(url="http://a:1", version="1"))
        assert router.hindrance(endpoint) == "unreachable", "a heartbeat proves nothing about the way there"
        await catalog.register("summarizer", "alpha", "i-1", InstanceSpec(url="http://a:1", version="2"))
        assert router.hindrance(endpoint) == ""
        lose()
        await catalog.drain("summarizer", "alpha", "i-1")
        await catalog.register("summarizer", "alpha", "i-1", InstanceSpec(url="http://a:1", version="2"))
        assert router.hindrance(endpoint) == ""

    async def test_of_two_edits_of_one_version_one_wins(self, link: Link) -> None:
        catalog = Catalog(CatalogStore(link))
        await catalog.put("summarizer", "alpha", EndpointSpec())
        edits = [catalog.put("summarizer", "alpha", EndpointSpec(description=f"{n}"), if_match="1") for n in range(8)]
        outcomes = await asyncio.gather(*edits, return_exceptions=True)
        assert sorted(type(one).__name__ for one in outcomes) == ["PreconditionFailed"] * 7 + ["Put"]
        assert catalog.version_of("summarizer") == "2"

    async def test_everybody_reads_what_he_wrote(self, link: Link) -> None:
        """Reads are shared between those who ask at the same time, and none is too early for its asker."""
        catalog = Catalog(CatalogStore(link))
        names = [f"agent-{n}" for n in range(40)]

        async def write(name: str) -> str:
            await catalog.put(name, "alpha", EndpointSpec())
            return catalog.find(name, "alpha").name

        assert await asyncio.gather(*[write(name) for name in names]) == names

    async def test_closed_lists_are_closed_and_say_what_they_hold(self, link: Link) -> None:
        """P22."""
        catalog = Catalog(CatalogStore(link))
        listed = read_spec(
            EndpointSpec,
            {
                "services": [
                    {"name": "docs", "operations": [{"name": "sum", "input": {"type": "object"}}]},
                    {"name": "any"},
                ]
            },
        )
        closed = (await catalog.put("closed", "alpha", listed)).endpoint
        free = (await catalog.put("free", "alpha", EndpointSpec())).endpoint
        assert catalog.check_operation(free, "whatever", "x") is None
        assert catalog.check_operation(closed, "any", "x") is None
        operation = catalog.check_operation(closed, "docs", "sum")
        assert operation is not None
        assert operation.input is not None
        with pytest.raises(NotFound, match=r"no service 'mail'; it has docs, any") as error:
            catalog.check_operation(closed, "mail", "sum")
        assert error.value.code == "unknown_service"
        with pytest.raises(NotFound, match=r"no operation 'send'; it has sum"):
            catalog.check_operation(closed, "docs", "send")


class TestVersions:
    async def test_fields_of_a_newer_gateway_are_passed_over(self, gateway: Gateway, link: Link) -> None:
        """Old and new gateways share one store during a rolling upgrade."""
        document = b'{"description":"from tomorrow","canary":{"share":0.1},"policy":{"hedge_ms":5,"max_concurrency":2}}'
        await CatalogStore(link).endpoint_put(
            "summarizer", "alpha", "ep-new", document, if_match="", max_concurrency=2, rate_per_s=0
        )
        record = await gateway.record()
        assert (record["description"], record["policy"]["max_concurrency"]) == ("from tomorrow", 2)

    async def test_one_unreadable_document_hides_no_other(self, gateway: Gateway, link: Link) -> None:
        await CatalogStore(link).endpoint_put(
            "broken", "alpha", "ep-broken", b'{"policy":5}', if_match="", max_concurrency=0, rate_per_s=0
        )
        await put(gateway.alpha)
        names = [one["name"] for one in (await gateway.alpha.get("/v1/endpoints")).json()["items"]]
        assert names == ["summarizer"]
