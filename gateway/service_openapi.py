"""OpenAPI 3.1 of one endpoint: its listed operations as typed calls, what is called back, and how refusals look.

Made of the registration alone; the whole gateway's document is openapi.py. Pure.
"""

from __future__ import annotations

import re
from typing import Any, Final

from gateway.openapi import SHAPES
from mesh.blob import is_blob_schema
from mesh.errors import NotFound
from mesh.wire import quote_segment
from registry.contracts import Contract
from registry.contracts.cover import movable
from registry.contracts.dialect import DRAFT_2020
from registry.endpoint import Endpoint
from registry.spec import OperationSpec, ServiceSpec

_JSON: Final = "application/json"
_TEXT: Final = {"type": "string"}
_SCHEMAS: Final = "#/components/schemas/"
_odd: Final = re.compile(r"[^A-Za-z0-9._-]").sub


def describe(endpoint: Endpoint, public_url: str, service: str = "") -> dict[str, Any]:
    """The document; of one `service`, or of all. Raises NotFound `unknown_service`."""
    services = endpoint.spec.services or []
    if service:
        services = [one for one in services if one.name == service]
        if not services:
            detail = f"endpoint {endpoint.name!r} has no service {service[:100]!r}"
            raise NotFound(detail, code="unknown_service")
    made = _Document(endpoint.name)
    for one in services:
        for operation in one.operations or [None]:
            made.add(one, operation)
    if not services:
        made.add(None, None)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": endpoint.name,
            "version": str(endpoint.version),
            "description": endpoint.spec.description or f"Endpoint {endpoint.name}, called through a mesh.",
        },
        "jsonSchemaDialect": DRAFT_2020,
        "servers": [{"url": public_url}],
        "security": [{}, {"key": []}],
        "tags": [{"name": one.name, "description": one.description} for one in services],
        "paths": made.paths,
        "webhooks": made.webhooks,
        "components": {
            "schemas": {
                **made.schemas,
                "Failure": SHAPES["Failure"],
                "Started": SHAPES["Started"],
                "Record": SHAPES["Record"],
                "DataRef": SHAPES["DataRef"],
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "A namespace's key"}},
        },
    }


class _Document:
    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._ids: set[str] = set()
        self.paths: dict[str, Any] = {}
        self.webhooks: dict[str, Any] = {}
        self.schemas: dict[str, Any] = {}

    def add(self, service: ServiceSpec | None, operation: OperationSpec | None) -> None:
        """One operation; None where a list is open."""
        names = {"service": service.name if service else None, "operation": operation.name if operation else None}
        segments = [quote_segment(name) if name is not None else f"{{{part}}}" for part, name in names.items()]
        path = f"/nexus/endpoints/{quote_segment(self._endpoint)}/services/{segments[0]}/{segments[1]}"
        open_names = [part for part, name in names.items() if name is None]
        one_id = self._unique(".".join(name or part for part, name in names.items()))
        given = self._schema(f"{one_id}.input", operation.input if operation else None)
        result = self._schema(f"{one_id}.output", operation.output if operation else None)
        self.paths[path] = {
            "post": {
                "operationId": one_id,
                "tags": [service.name] if service else [],
                "summary": operation.name if operation else "Any operation that the agent has",
                "description": operation.description if operation else "",
                "parameters": [*(_in_path(part) for part in open_names), *_PARAMETERS],
                "requestBody": {"content": given, "required": operation is not None and operation.input is not None},
                "responses": {
                    "200": {"description": "The result", "headers": _HEADERS, "content": result},
                    "201": {
                        "description": "Accepted and durable; it runs",
                        "headers": _HEADERS,
                        "content": {_JSON: {"schema": {"$ref": f"{_SCHEMAS}Started"}}},
                    },
                    "424": {
                        "description": "It failed, was canceled or timed out",
                        "headers": _HEADERS,
                        "content": _FAILURE,
                    },
                    "default": {"description": "A Nexus HandlerError", "content": _FAILURE},
                },
                "callbacks": {"completed": {"{$request.query.callback}": {"post": _callback(result)}}},
            }
        }
        self.webhooks[one_id] = {"post": _event(result)}

    def _unique(self, name: str) -> str:
        plain = _odd("_", name)
        found, number = plain, 2
        while found in self._ids:
            found, number = f"{plain}-{number}", number + 1
        self._ids.add(found)
        return found

    def _schema(self, name: str, schema: Any) -> dict[str, Any]:
        """The content of a body; schemas are kept as components, so that their references can lead into them."""
        if schema is None or is_blob_schema(schema):
            return {"*/*": {}}
        self.schemas[name] = movable(Contract(schema).modern, _SCHEMAS + name)
        return {_JSON: {"schema": {"$ref": _SCHEMAS + name}}}


def _in_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": _TEXT}


def _header(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": _TEXT}


_PARAMETERS: Final = [
    {
        "name": "callback",
        "in": "query",
        "required": False,
        "description": "URL that is told the outcome",
        "schema": {"type": "string", "format": "uri"},
    },
    _header("Nexus-Request-Id", "The idempotency key: an equal repeat gets the same operation"),
    _header("Prefer", "`wait=N` seconds to wait for the outcome, or `respond-async`"),
    _header("Request-Timeout", "How long the caller waits, such as `1.5s`"),
    _header("Operation-Timeout", "How long the operation may take, such as `2m`"),
]
_HEADERS: Final = {
    "Mesh-Operation-Id": {"description": "For reading, canceling and watching it", "schema": _TEXT},
    "Nexus-Operation-State": {"description": "succeeded, failed or canceled", "schema": _TEXT},
}
_FAILURE: Final = {_JSON: {"schema": {"$ref": f"{_SCHEMAS}Failure"}}}
_TAKEN: Final = {
    "2XX": {"description": "Delivered"},
    "default": {"description": "400, 401, 403, 404, 409 and 501 end it; all else is repeated"},
}
_SIGNED: Final = [
    _header("webhook-id", "The same on every try"),
    _header("webhook-timestamp", "Of the try"),
    _header("webhook-signature", "Standard Webhooks, with the caller's secret"),
]


def _callback(result: dict[str, Any]) -> dict[str, Any]:
    """What a Nexus caller is told."""
    return {
        "summary": "The outcome",
        "parameters": [
            _header("Nexus-Operation-State", "succeeded: the body is the result; failed or canceled: a Failure"),
            _header("Nexus-Operation-Token", "The operation's id"),
            *_SIGNED,
        ],
        "requestBody": {"content": _either(result)},
        "responses": _TAKEN,
    }


def _either(result: dict[str, Any]) -> dict[str, Any]:
    if _JSON not in result:
        return result
    return {_JSON: {"schema": {"anyOf": [result[_JSON]["schema"], {"$ref": f"{_SCHEMAS}Failure"}]}}}


def _event(result: dict[str, Any]) -> dict[str, Any]:
    """What `POST /v1/operations` with a callback of the format cloudevents leads to."""
    ended = {"type": "object", "properties": {"result": result[_JSON]["schema"]} if _JSON in result else {}}
    body = {
        "type": "object",
        "required": ["specversion", "id", "source", "type", "data"],
        "properties": {
            "specversion": {"const": "1.0"},
            "id": _TEXT,
            "source": _TEXT,
            "subject": _TEXT,
            "time": {"type": "string", "format": "date-time"},
            "type": {"type": "string", "pattern": "^mesh\\.operation\\.(succeeded|failed|canceled|timed_out)\\.v1$"},
            "datacontenttype": _TEXT,
            "data": {"allOf": [{"$ref": f"{_SCHEMAS}Record"}, ended]},
        },
    }
    return {
        "summary": "The operation ended",
        "parameters": _SIGNED,
        "requestBody": {"content": {"application/cloudevents+json": {"schema": body}}},
        "responses": _TAKEN,
    }
