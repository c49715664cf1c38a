"""The store's tutorial needs its room: two joined gateways and an endpoint."""

from tests.model.fixtures import room

__all__ = ["room"]
