"""A Python module for callers of an endpoint: models, the services as nexusrpc contracts, and one class to call them.

Pure: text from what a registration lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from registry.contracts.python.types import Models, class_name, doc, literal, variable_name

_IMPORTS: Final = {
    "datetime": ("date", "datetime", "time"),
    "typing": ("Annotated", "Any", "Final", "Literal", "Unpack"),
    "uuid": ("UUID",),
}
_RESERVED: Final = frozenset(
    {
        "Model", "Operation", "service", "Client", "SyncClient", "OperationHandle", "SyncOperationHandle",
        "StartOptions", "BaseModel", "ConfigDict", "Field", "SerializerFunctionWrapHandler", "model_serializer",
        "TypeAliasType", "ENDPOINT", "Annotated", "Any", "Final", "Literal", "Unpack", "UUID", "date", "datetime",
        "time", "Blob",
    }
)  # fmt: skip
_MODEL: Final = '''\
class Model(BaseModel):
    """Sends what was set, so that the agent's own defaults hold for all else; passes over what it does not know."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    @model_serializer(mode="wrap")
    def _as_set(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        unset = {fields[name].serialization_alias or name for name in fields.keys() - self.model_fields_set}
        return {name: value for name, value in whole(self).items() if name not in unset}
'''


def generate(endpoint: str, services: Sequence[dict[str, Any]], *, version: str = "", blocking: bool = False) -> str:
    """The module. `services` as in a registration, open lists have no calls; `blocking`: for SyncClient."""
    writer = _Writer(endpoint, blocking=blocking)
    for service in services:
        writer.add(service)
    return writer.text(version)


class _Writer:
    def __init__(self, endpoint: str, *, blocking: bool) -> None:
        self._endpoint = endpoint
        self._taken = set(_RESERVED)
        self._models = Models(self._taken)
        self._models.names |= {"Any", "Final", "Unpack"}
        self._contracts: list[str] = []
        self._calls: list[str] = []
        self._services: list[tuple[str, str, str]] = []
        self._client, self._handle = (
            ("SyncClient", "SyncOperationHandle") if blocking else ("Client", "OperationHandle")
        )
        self._async, self._await = ("", "") if blocking else ("async ", "await ")
        self._main = self._claim(class_name(endpoint))

    def _claim(self, wanted: str) -> str:
        found, number = wanted, 2
        while found in self._taken:
            found, number = f"{wanted}{number}", number + 1
        self._taken.add(found)
        return found

    def add(self, service: dict[str, Any]) -> None:
        """One service."""
        name = class_name(service["name"])
        contract, calls = self._claim(f"{name}Service"), self._claim(f"{name}Calls")
        attribute = variable_name(service["name"])
        while any(attribute == one for one, _, _ in self._services):
            attribute += "_"
        self._services.append((attribute, calls, service["name"]))
        fields: list[str] = []
        methods: list[str] = []
        used: set[str] = set()
        for operation in service.get("operations") or ():
            method = variable_name(operation["name"])
            while method in used or f"start_{method}" in used:
                method += "_"
            used |= {method, f"start_{method}"}
            title = class_name(operation["name"])
            given, got = (
                self._models.of(schema, f"{title}{side}")
                for side, schema in (("Input", operation.get("input")), ("Output", operation.get("output")))
            )
            fields.append(f"    {method}: Operation[{given}, {got}] = Operation(name={literal(operation['name'])})")
            methods += self._method(method, contract, operation, given, got)
        self._contracts.append(
            "\n".join(
                [
                    f"@service(name={literal(service['name'])})",
                    f"class {contract}:",
                    *_about(service, "    "),
                    *(fields or ["    pass"]),
                ]
            )
        )
        head = [
            f"class {calls}:",
            *doc(f"Operations of the service {service['name']}.", "    "),
            "",
            f"    def __init__(self, client: {self._client}, endpoint: str) -> None:",
            "        self._client = client",
            "        self._endpoint = endpoint",
        ]
        self._calls.append("\n".join([*head, *methods]))

    def _method(self, method: str, contract: str, operation: dict[str, Any], given: str, got: str) -> list[str]:
        value = "value: " + given + (" = None" if given in ("Any", "None") else "")
        what = f"self._endpoint, {contract}, {contract}.{method}, value"
        about = str(operation.get("description") or f"Call {operation['name']} and wait for its result.")
        return [
            "",
            f"    {self._async}def {method}(",
            f"        self, {value}, /, *, timeout_s: float | None = None, **options: Unpack[StartOptions]",
            f"    ) -> {got}:",
            *doc(about, "        "),
            f"        return {self._await}self._client.call({what}, timeout_s=timeout_s, **options)",
            "",
            f"    {self._async}def start_{method}(",
            f"        self, {value}, /, *, wait_s: float = 0, **options: Unpack[StartOptions]",
            f"    ) -> {self._handle}[{got}]:",
            '        """Start it; it is durable when this returns."""',
            f"        return {self._await}self._client.start({what}, wait_s=wait_s, **options)",
        ]

    def text(self, version: str) -> str:
        """The whole module."""
        names = self._models.names
        imports = ["from __future__ import annotations", ""]
        for module, known in _IMPORTS.items():
            listed = sorted(names & set(known))
            imports += [f"from {module} import {', '.join(listed)}"] if listed else []
        pydantic = sorted(
            {"BaseModel", "ConfigDict", "SerializerFunctionWrapHandler", "model_serializer"} | (names & {"Field"})
        )
        imports += ["", "from nexusrpc import Operation, service"]
        imports += [f"from pydantic import {', '.join(pydantic)}"]
        imports += ["from typing_extensions import TypeAliasType"] if "TypeAliasType" in names else []
        imports += [""] + (["from mesh.blob import Blob"] if "Blob" in names else [])
        imports += [f"from mesh.client import {self._client}, {self._handle}, StartOptions"]
        of = f", registration {version}" if version else ""
        said = f'"""Calls of the endpoint {self._endpoint}{of}. Written by `mesh contract generate`; do not edit."""'
        main = [
            f"class {self._main}:",
            f'    """The endpoint {self._endpoint}, through a client."""',
            "",
            f"    def __init__(self, client: {self._client}, endpoint: str = ENDPOINT) -> None:",
            *(f"        self.{attribute} = {calls}(client, endpoint)" for attribute, calls, _ in self._services),
            *([] if self._services else ["        pass"]),
        ]
        parts = [
            "\n".join([said, "", *imports, "", f"ENDPOINT: Final = {literal(self._endpoint)}", *self._models.aliases]),
            *([_MODEL.rstrip(), *self._models.classes]),
            *self._contracts,
            *self._calls,
            "\n".join(main),
        ]
        return "\n\n\n".join(parts) + "\n"


def _about(one: dict[str, Any], indent: str) -> list[str]:
    return [*doc(str(one["description"]), indent), ""] if one.get("description") else []
