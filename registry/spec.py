"""What a team registers: the bodies of PUT endpoint and PUT instance, their caps, and what is said when they are wrong.

Shapes only; what they mean for routing is catalog.py and instances.py. Whether a URL may be called is the gateway's
egress policy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Literal, Self, TypeVar
from urllib.parse import urlsplit

import msgspec
from pydantic import AfterValidator, BaseModel, Field, JsonValue, ValidationError, model_validator

from mesh.errors import Malformed, Unprocessable
from mesh.wire import check_operation, check_service
from registry.contracts import BREACHES_MAX, pointer
from registry.policy import Part, Policy

SPEC_BYTES_MAX: Final = 1024 * 1024
SPEC_NS_MAX: Final = 100_000_000
"""What reading a registration may cost, by reading_ns: more than 1 MiB of schemas does."""
INSTANCE_BYTES_MAX: Final = 8 * 1024
DESCRIPTION_CHARS_MAX: Final = 4_096
SERVICES_MAX: Final = 100
OPERATIONS_MAX: Final = 1_000
"""Operations of one endpoint, over all its services."""
ALLOW_MAX: Final = 256
LABELS_MAX: Final = 32
LABEL_NAME_MAX: Final = 63
LABEL_VALUE_MAX: Final = 256
URL_CHARS_MAX: Final = 2_048
VERSION_CHARS_MAX: Final = 128
WEIGHT_MAX: Final = 1_000
TTL_MS_MIN: Final = 500
TTL_MS_MAX: Final = 300_000
TTL_MS: Final = 5_000
TARGET: Final = "target"
"""The instance that stands for `target.url`; nobody can register it."""

_namespace: Final = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?").fullmatch
_instance: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:-]{0,126}[A-Za-z0-9])?").fullmatch
_label: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9])?").fullmatch

_KEY: Final = "[key]"
"""What pydantic puts behind the name of a dict's entry when the name itself is wrong; no part of a JSON Pointer."""

_Spec = TypeVar("_Spec", bound=BaseModel)


def check_namespace(name: str) -> str:
    """`name` itself. Raises Malformed: 1 to 63 of `a-z0-9_-`, letter or digit first and last."""
    if not _namespace(name):
        raise Malformed(
            "a namespace name has 1 to 63 lower case letters, digits, '-' or '_', a letter or digit at both ends",
            code="name_invalid",
        )
    return name


def check_instance(name: str) -> str:
    """`name` itself. Raises Malformed: 1 to 128 of `A-Za-z0-9._:-`, letter or digit at both ends, not `target`."""
    if not _instance(name):
        raise Malformed(
            "an instance id has 1 to 128 letters, digits, '.', '_', ':' or '-', a letter or digit at both ends",
            code="name_invalid",
        )
    if name == TARGET:
        raise Malformed("the instance id 'target' stands for the endpoint's own target.url", code="name_invalid")
    return name


def check_version(version: str) -> str:
    """`version` itself. Raises Malformed: 1 to 128 characters, none of them a control character."""
    if not 0 < len(version) <= VERSION_CHARS_MAX or not version.isprintable():
        detail = f"a version has 1 to {VERSION_CHARS_MAX} printable characters"
        raise Malformed(detail, code="version_invalid")
    return version


def _as_value(check: Callable[[str], str]) -> Callable[[str], str]:
    def checked(name: str) -> str:
        try:
            return check(name)
        except Malformed as error:
            raise ValueError(error.detail) from None

    return checked


def check_url(url: str, at: str) -> str:
    """`url` itself, if paths can be put behind it. Raises Malformed `url_invalid` for the field `at`."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known:
        detail = "the URL is absolute and begins with http:// or https://, such as http://10.0.0.7:9000"
    elif "?" in url or "#" in url:
        detail = "the URL has no query and no fragment: the paths of operations are put behind it"
    else:
        return url
    raise Malformed(detail, code="url_invalid", errors=[{"pointer": at, "detail": detail}])


def _label_name(text: str) -> str:
    if len(text) > LABEL_NAME_MAX or not _label(text):
        raise ValueError(f"a label name has 1 to {LABEL_NAME_MAX} letters, digits, '.', '_', '-' or '/'")
    return text


def _allowed(text: str) -> str:
    return text if text == "*" else _as_value(check_namespace)(text)


Description = Annotated[str, Field(max_length=DESCRIPTION_CHARS_MAX)]
Url = Annotated[str, Field(max_length=URL_CHARS_MAX)]
ServiceName = Annotated[str, AfterValidator(_as_value(check_service))]
OperationName = Annotated[str, AfterValidator(_as_value(check_operation))]
Allowed = Annotated[str, AfterValidator(_allowed)]
LabelName = Annotated[str, AfterValidator(_label_name)]
LabelValue = Annotated[str, Field(max_length=LABEL_VALUE_MAX)]
Schema = dict[str, JsonValue] | bool
"""Whether it can be applied is looked at when an endpoint is put (registry/gate.py)."""


class Target(Part):
    """How the agent is reached. `http`: requests go to `url`, or to the instances that register themselves."""

    kind: Literal["http", "pull"] = "http"
    url: Url | None = None

    @model_validator(mode="after")
    def _url_fits_kind(self) -> Self:
        if self.kind == "pull" and self.url is not None:
            raise ValueError("an agent that pulls has no url; leave it out")
        return self


class OperationSpec(Part):
    """One operation; `input` and `output` are JSON Schemas (2020-12)."""

    name: OperationName
    description: Description = ""
    input: Schema | None = None
    output: Schema | None = None


class ServiceSpec(Part):
    """One service. Without operations it takes any operation name."""

    name: ServiceName
    description: Description = ""
    operations: list[OperationSpec] = Field(default=[], max_length=OPERATIONS_MAX)

    @model_validator(mode="after")
    def _once(self) -> Self:
        _no_repeats("operation", [one.name for one in self.operations])
        return self


class EndpointSpec(Part):
    """Body of `PUT /v1/endpoints/{name}`. Every field may be left out.

    `services` left out or empty: any service and operation may be called; listed: only those (P22).
    `allow`: namespaces that may call, `*` for all; the owner always may.
    """

    description: Description = ""
    target: Target = Target()
    services: list[ServiceSpec] | None = Field(default=None, max_length=SERVICES_MAX)
    policy: Policy = Policy()
    allow: list[Allowed] = Field(default=[], max_length=ALLOW_MAX)
    labels: dict[LabelName, LabelValue] = Field(default={}, max_length=LABELS_MAX)

    @model_validator(mode="after")
    def _within_caps(self) -> Self:
        services = self.services or []
        _no_repeats("service", [one.name for one in services])
        if sum(len(one.operations) for one in services) > OPERATIONS_MAX:
            raise ValueError(f"an endpoint has at most {OPERATIONS_MAX} operations")
        listed = {one.name: {each.name for each in one.operations} for one in services}
        for canary in self.policy.canaries:
            operations = listed.get(canary.service)
            if services and (operations is None or (operations and canary.operation not in operations)):
                raise ValueError(f"policy.canaries calls {canary.service}/{canary.operation}, which is not listed here")
        return self

    def document(self) -> bytes:
        """The stored form. What equals its default is left out, so that a record read and put back changes nothing."""
        fields = self.model_dump(exclude_defaults=True, exclude={"services"})
        if self.services:
            fields["services"] = [one.model_dump(exclude_unset=True) for one in self.services]
        return msgspec.json.encode(fields, order="sorted")


class InstanceSpec(Part):
    """Body of `PUT /v1/endpoints/{name}/instances/{instance}`: registration and heartbeat in one."""

    url: Url
    version: str = Field(default="", max_length=VERSION_CHARS_MAX, description="of the agent, as it calls it")
    weight: int = Field(
        default=1, ge=1, le=WEIGHT_MAX, description="share of the work, relative to the other instances"
    )
    ttl_ms: int = Field(
        default=TTL_MS, ge=TTL_MS_MIN, le=TTL_MS_MAX, description="it leaves the rotation when silent for this long"
    )
    fresh: bool = Field(
        default=False, description="the process has just started: nothing that went wrong before says anything of it"
    )


def _no_repeats(kind: str, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"the {kind} {name!r} is listed twice")
        seen.add(name)


def read_spec(kind: type[_Spec], value: Any) -> _Spec:
    """`value` (decoded JSON) as `kind`. Raises Unprocessable `body_invalid` with a pointer per breach."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise unprocessable(error.errors(include_url=False, include_context=False, include_input=False)) from None


def unprocessable(found: Sequence[Any], skip: int = 0) -> Unprocessable:
    """Pydantic's list of errors as one refusal; the first `skip` parts of each location are left out."""
    errors = [
        {"pointer": pointer(part for part in one["loc"][skip:] if part != _KEY), "detail": sentence(one)}
        for one in found[:BREACHES_MAX]
    ]
    first = errors[0]
    rest = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    detail = f"the body is not right at {first['pointer'] or '/'}: {first['detail']}{rest}"
    return Unprocessable(detail, code="body_invalid", errors=list(errors))


def sentence(error: Any) -> str:
    """One pydantic error in words, without the value that caused it."""
    if error["type"] == "extra_forbidden":
        return "this field is not known"
    if error["type"] == "missing":
        return "this field is required"
    text: str = error["msg"].removeprefix("Value error, ")
    return text[:1].lower() + text[1:]
