"""Who is there: the verbs by which instances come, stay, drain and go, and versions share in the work.

A part of the catalog (catalog.py), which reads back what these write. Knows no HTTP and no egress policy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager

from mesh.errors import Forbidden, Malformed, NotFound
from mesh.store.catalog import UNKNOWN_ENDPOINT, CatalogStore
from registry.endpoint import Endpoint
from registry.instances import ATTENDING_MS, Instance, Instances, pack, pack_attending
from registry.spec import InstanceSpec, check_instance, check_url, check_version


class Presence(ABC):
    """Verbs about instances and versions. Methods raise StoreUnavailable or OutcomeUnknown when the store is away."""

    instances: Instances
    _store: CatalogStore
    _by_name: dict[str, Endpoint]

    @abstractmethod
    async def refresh(self, version: int | None = None, at_ms: int | None = None) -> None:
        """See catalog.py."""

    @abstractmethod
    def find(self, name: str, namespace: str) -> Endpoint:
        """See catalog.py."""

    @contextmanager
    def owned(self, name: str, namespace: str) -> Generator[None]:
        """What only its owner may do; whoever may call the endpoint sees it, and is told so. Raises Forbidden."""
        try:
            yield
        except NotFound as refusal:
            found = self._by_name.get(name)
            if refusal.code != UNKNOWN_ENDPOINT or found is None or found.owner == namespace:
                raise
            if not found.callable_by(namespace):
                raise
            detail = f"endpoint {name!r} belongs to another namespace: you may call it, and only its owner may do this"
            raise Forbidden(detail, code="not_owner") from None

    async def register(
        self, name: str, namespace: str, instance_id: str, spec: InstanceSpec
    ) -> tuple[bool, Endpoint, Instance]:
        """Register (True) an instance or keep up its lease. Raises Malformed, NotFound, TooMany."""
        check_instance(instance_id)
        known = self._by_name.get(name)
        if known is not None and known.owner == namespace and known.pulls:
            detail = f"endpoint {name!r} is of kind pull: its instances are those that poll it"
            raise Malformed(detail, code="endpoint_pulls")
        check_url(spec.url, "/url")
        document = pack(spec)
        with self.owned(name, namespace):
            word, expires_at_ms = await self._store.instance_put(
                name, namespace, instance_id, document, spec.ttl_ms, fresh=spec.fresh
            )
        endpoint = self._by_name.get(name)
        if (
            spec.fresh
            or endpoint is None
            or not self.instances.renewed(endpoint.id, instance_id, document, expires_at_ms)
        ):
            await self.refresh()
            endpoint = self.find(name, namespace)
        instance = self.instances.roster(endpoint.id).get(instance_id)
        if instance is None:  # removed again before it was read back
            raise NotFound(f"instance {instance_id!r} was removed meanwhile", code="unknown_instance")
        return word == "created", endpoint, instance

    async def attend(self, endpoint: Endpoint, instance_id: str, version: str, *, fresh: bool = False) -> None:
        """An instance asks for work, and is there for as long as it does. Raises NotFound, TooMany."""
        document = pack_attending(version)
        _, expires_at_ms = await self._store.instance_put(
            endpoint.name, endpoint.owner, instance_id, document, ATTENDING_MS, fresh=fresh
        )
        if fresh or not self.instances.renewed(endpoint.id, instance_id, document, expires_at_ms):
            await self.refresh()

    async def drain(self, name: str, namespace: str, instance_id: str, *, told: bool = False) -> None:
        """No new work for this instance. It leaves by itself, and the list when its lease ends; or it is `told`.

        What is told to drain does so until `serve`, or until another process registers under its name. Raises NotFound.
        """
        with self.owned(name, namespace):
            await self._store.instance_drain(name, namespace, instance_id, 2 if told else 1)
        await self.refresh()

    async def serve(self, name: str, namespace: str, instance_id: str) -> None:
        """The opposite of `drain` with `told`. Raises NotFound, Conflict `instance_left`."""
        with self.owned(name, namespace):
            await self._store.instance_drain(name, namespace, instance_id, 0)
        await self.refresh()

    async def share(
        self, name: str, namespace: str, version: str, *, weight: int | None = None, percent: float | None = None,
        draining: bool | None = None,
    ) -> Endpoint:  # fmt: skip
        """How a version shares in the work; None leaves a field, -1 is its default.

        A version that drains gets no new work, pinned or not. Raises Malformed, NotFound, TooMany.
        """
        check_version(version)
        known = self._by_name.get(name)
        given = (weight is not None and weight >= 0) or (percent is not None and percent >= 0)
        if given and known is not None and known.owner == namespace and known.pulls:
            detail = (
                f"endpoint {name!r} is of kind pull: its agents decide when they ask for work, so no part of it can be"
                f" promised to version {version!r}; pin work to it (`version` of a start), run as many of its instances"
                " as it shall have of the work, or drain it"
            )
            raise Malformed(detail, code="share_of_pull")
        with self.owned(name, namespace):
            await self._store.version_set(name, namespace, version, weight=weight, percent=percent, draining=draining)
        await self.refresh()
        return self.find(name, namespace)

    async def at_work(self, endpoint_id: str) -> tuple[dict[str, int], dict[str, int]]:
        """Attempts that answered 201 by instance (those with a version), and waiting operations by pin."""
        return await self._store.running(endpoint_id), await self._store.pinned(endpoint_id)
