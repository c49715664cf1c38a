"""How an endpoint wants to be called: timeouts, retry, limits, breaker, checks. Defaults and bounds, nothing that acts.

Every field may be left out of a registration, and what is left out follows the default of
the gateway that reads it. Knows no store and no HTTP.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

HOUR_MS: Final = 3_600_000
TIMEOUT_MS_MAX: Final = 60 * 24 * HOUR_MS
"""60 days, the longest that any Nexus caller waits."""
REQUEST_TIMEOUT_MS_MAX: Final = HOUR_MS
START_LEASE_GRACE_MS: Final = 5_000
"""A start's lease outlives its request by this, so that the reply is booked before anybody takes the attempt over."""
BREAKER_OPEN_MS_MAX: Final = 60_000
CHECK_MS_MIN: Final = 500
CHECK_TIMEOUT_MS_MAX: Final = 60_000
"""Who is checked takes a place of the gateway for so long at most."""
CANARIES_MAX: Final = 16
WAITING_MAX: Final = 10_000_000
WEIGHT_MAX: Final = 1_000
LIMITED_MAX: Final = 256
"""Namespaces with limits of their own at one endpoint."""
_EXPONENT_MAX: Final = 64

_namespace: Final = re.compile(r"\*|[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?").fullmatch


def _limited(name: str) -> str:
    if not _namespace(name):
        raise ValueError("limits are by namespace (1 to 63 lower case letters, digits, '-' or '_'), or `*`")
    return name


LimitedName = Annotated[str, AfterValidator(_limited)]


class Part(BaseModel):
    """Base of everything a registration holds: no unknown fields, no conversions, no changes afterwards."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Retry(Part):
    """Back-off between attempts: `initial_ms * factor ** (n - 1)`, at most `max_ms`, moved by +-`jitter` of itself."""

    initial_ms: int = Field(default=1_000, ge=1, le=HOUR_MS, description="wait after the first failed attempt")
    factor: float = Field(default=2.0, ge=1.0, le=10.0, description="growth per further failure")
    max_ms: int = Field(default=60_000, ge=1, le=24 * HOUR_MS, description="longest wait")
    jitter: float = Field(default=0.2, ge=0.0, le=1.0, description="random share added or taken, 0.2 is +-20 %")
    max_attempts: int = Field(default=20, ge=1, le=1_000, description="attempts of one run, the first included")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.max_ms < self.initial_ms:
            raise ValueError("retry.max_ms is less than retry.initial_ms; raise max_ms or lower initial_ms")
        return self

    def as_text(self) -> str:
        """For the store, which counts by it where an agent reports the failure (mesh/store/lua/retry.lua)."""
        return f"{self.initial_ms} {self.factor} {self.max_ms} {self.jitter}"

    def delay_ms(self, attempt: int) -> float:
        """The wait after failed attempt number `attempt` (1, 2, ...), before jitter."""
        return min(self.initial_ms * self.factor ** min(attempt - 1, _EXPONENT_MAX), self.max_ms)


class BreakerPolicy(Part):
    """When the endpoint gets a rest; the rest doubles with every failed probe, up to 60 s (or `open_ms`, if more)."""

    failures: int = Field(
        default=5, ge=0, le=1_000, description="requests in a row that did not get through and open it; 0 turns it off"
    )
    open_ms: int = Field(default=5_000, ge=100, le=600_000, description="first rest before one probe is sent")

    @property
    def open_ms_max(self) -> int:
        return max(self.open_ms, BREAKER_OPEN_MS_MAX)


class Probe(Part):
    """How instances with an address are looked after beside their heartbeats; what answers work needs no probe.

    `http`: GET of `path` behind the instance's URL; whatever it answers but 5xx is a sign of life. `tcp`: it takes a
    connection. `failures` in a row make an instance suspect, as many successes make it healthy again.
    """

    kind: Literal["http", "tcp"] = Field(default="http", description="GET of `path`, or a connection is enough")
    path: str = Field(default="/healthz", max_length=512, pattern=r"^/[!-~]*$", description="of the GET")
    every_ms: int = Field(default=10_000, ge=0, le=HOUR_MS, description="one probe each time, by one gateway; 0: none")
    timeout_ms: int = Field(default=2_000, ge=50, le=CHECK_TIMEOUT_MS_MAX, description="longest wait for the answer")
    failures: int = Field(default=2, ge=1, le=100, description="in a row, to be suspect; successes to be healthy again")

    @model_validator(mode="after")
    def _paced(self) -> Self:
        if 0 < self.every_ms < CHECK_MS_MIN:
            raise ValueError(f"probe.every_ms is 0 or at least {CHECK_MS_MIN}")
        return self


class Canary(Part):
    """An operation that is called now and then at every instance, and must succeed for it to be healthy."""

    service: str = Field(min_length=1, max_length=1_000)
    operation: str = Field(min_length=1, max_length=1_000)
    input: JsonValue = None
    every_ms: int = Field(default=60_000, ge=CHECK_MS_MIN, le=24 * HOUR_MS, description="at each instance")
    timeout_ms: int = Field(
        default=10_000, ge=100, le=CHECK_TIMEOUT_MS_MAX, description="from its start to its end, a minute at most"
    )
    failures: int = Field(default=2, ge=1, le=100, description="in a row, to be suspect; successes to be healthy again")


class Flapping(Part):
    """When an instance that comes and goes is suspect: `arrivals` within `within_ms`, until it stayed for that long."""

    arrivals: int = Field(default=4, ge=0, le=8, description="new, back or as a new process; below 2 it is off")
    within_ms: int = Field(default=60_000, ge=1_000, le=HOUR_MS)


class NamespaceLimits(Part):
    """What one calling namespace may use of an endpoint; what is left out follows `*`, and then does not exist."""

    rate_per_s: float | None = Field(
        default=None, ge=0.001, le=100_000.0, description="most dispatches of the namespace per second"
    )
    max_concurrency: int | None = Field(
        default=None, ge=1, le=100_000, description="most operations of the namespace that run at once"
    )
    weight: int | None = Field(
        default=None, ge=1, le=WEIGHT_MAX, description="share of the endpoint while others wait too (1)"
    )
    max_waiting: int | None = Field(
        default=None, ge=1, le=WAITING_MAX, description="most operations of the namespace that wait in line; then 429"
    )
    max_delayed: int | None = Field(
        default=None, ge=1, le=WAITING_MAX, description="most operations of the namespace accepted for later; then 429"
    )


class Policy(Part):
    """Policy of one endpoint. Timeouts left out, and limits left out, do not exist."""

    request_timeout_ms: int = Field(
        default=30_000, ge=100, le=REQUEST_TIMEOUT_MS_MAX, description="how long one request to the agent may take"
    )
    schedule_to_close_ms: int | None = Field(
        default=None, ge=1, le=TIMEOUT_MS_MAX, description="from acceptance to the end of the operation"
    )
    schedule_to_start_ms: int | None = Field(
        default=None, ge=1, le=TIMEOUT_MS_MAX, description="from acceptance to the agent's 201 or its result"
    )
    start_to_close_ms: int | None = Field(
        default=None, ge=1, le=TIMEOUT_MS_MAX, description="from the agent's 201 to the end of the operation"
    )
    heartbeat_ms: int | None = Field(
        default=None, ge=500, le=HOUR_MS, description="longest silence of an agent between its 201 and its completion"
    )
    retry: Retry = Retry()
    max_concurrency: int | None = Field(
        default=None, ge=1, le=100_000, description="most operations that run at once, over all gateways"
    )
    rate_per_s: float | None = Field(
        default=None, ge=0.001, le=100_000.0, description="most dispatches per second, over all gateways"
    )
    breaker: BreakerPolicy = BreakerPolicy()
    probe: Probe = Probe()
    canaries: list[Canary] = Field(default=[], max_length=CANARIES_MAX, description="at most one per service")
    flapping: Flapping = Flapping()

    max_waiting: int | None = Field(
        default=None, ge=1, le=WAITING_MAX, description="most operations of each namespace that wait in line; then 429"
    )
    max_delayed: int | None = Field(
        default=None, ge=1, le=WAITING_MAX,
        description="most operations of each namespace accepted for later, until their time comes; then 429",
    )  # fmt: skip
    limits: dict[LimitedName, NamespaceLimits] = Field(
        default={}, max_length=LIMITED_MAX, description="by calling namespace, `*` for those not named"
    )

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        services = [one.service for one in self.canaries]
        if len(set(services)) < len(services):
            raise ValueError("policy.canaries has two of one service; keep one")
        return self

    def share(self, namespace: str) -> NamespaceLimits:
        """What holds for a namespace, or for `*`."""
        share = NamespaceLimits(max_waiting=self.max_waiting, max_delayed=self.max_delayed, weight=1)
        for name in ("*", namespace):
            if name in self.limits:
                share = share.model_copy(update=self.limits[name].model_dump(exclude_none=True))
        return share

    def seen_by(self, namespace: str | None) -> dict[str, Any]:
        """The whole policy, but of limits only what concerns `namespace`; None: the owner's."""
        fields = self.model_dump()
        if namespace is not None:
            fields["limits"] = {name: one for name, one in fields["limits"].items() if name in ("*", namespace)}
        return fields

    def shares(self) -> list[str]:
        """For the store (lua/line.lua): name, `rate concurrency weight waiting delayed`, and so on; 0 none."""
        if not self.limits and self.max_waiting is None and self.max_delayed is None:
            return []
        texts: list[str] = []
        for name in ("*", *(name for name in self.limits if name != "*")):
            one = self.share(name)
            most = f"{one.max_waiting or 0} {one.max_delayed or 0}"
            texts += [name, f"{one.rate_per_s or 0} {one.max_concurrency or 0} {one.weight} {most}"]
        return texts

    @property
    def start_lease_ms(self) -> int:
        """How long one start may be out before somebody else may send it."""
        return self.request_timeout_ms + START_LEASE_GRACE_MS
