"""The language of the cases: what is sent, how the other side answers, what must be seen. Data, nothing else.

A Case says what is demanded and why; a Trial says how to find out against one kind of target, as steps. Texts in steps
may name what earlier steps saw: of what was saved as `first`, `{first.token}` is a field of its JSON, `{first.#name}` a
header, `{first.@callback}` the callback URL that a request brought. `{each}` is the value of the Each around, `{key}`
and `{tag}` are fresh, `{handler}`, `{receiver}` URLs of ours, `{endpoint}` and `{endpoint_id}` what was registered for
the trial. Braces that name nothing stay as they are. Knows no sockets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

Target: TypeAlias = Literal["gateway", "agent", "client"]
TARGETS: Final[tuple[Target, ...]] = ("gateway", "agent", "client")
Pairs: TypeAlias = "tuple[tuple[str, str], ...]"


class _Nothing:
    """No body at all, where None would be JSON null."""

    def __repr__(self) -> str:
        return "NOTHING"


NOTHING: Final = _Nothing()
CLOSE: Final = ("connection", "close")
"""A header that a listener's reply may have: the connection ends with it."""
JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"


# -- what must be seen


@dataclass(frozen=True, slots=True)
class Match:
    """A text that matches the whole of a regular expression."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Between:
    """A duration such as `1500ms` within these bounds, in milliseconds, or what names them."""

    low_ms: float | str
    high_ms: float | str


@dataclass(frozen=True, slots=True)
class Links:
    """Header values that hold exactly these links, as (url, type), in order; `among` others when set."""

    links: Pairs
    among: bool = False


@dataclass(frozen=True, slots=True)
class Has:
    """A list with such an entry in it."""

    entry: Any


class _Absent:
    def __repr__(self) -> str:
        return "absent"


class _Present:
    def __repr__(self) -> str:
        return "present"


ABSENT: Final = _Absent()
PRESENT: Final = _Present()
Wanted: TypeAlias = Any
"""A plain value, or one of the matchers above."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """Of an answer, or of a request that arrived. What is not named may be anything.

    status    one, or several that will do; `4` stands for all 4xx
    type      Content-Type, exactly
    headers   by name in lower case
    body      bytes, exactly
    json      the body as JSON: of an object the named fields, of anything else all of it
    failure   a HandlerError of this type, whose default (or the given flag) the retry header agrees with
    retryable with `failure`: what the retry header says; None for the default of the type
    outcome   an OperationError of this state, in body and header
    secret    a text that the body must not have
    path, target   of a request: without and with its query, percent-encoded as it came
    within_ms, after_ms   how long the answer may take, must take
    """

    status: int | tuple[int, ...] = ()
    type: Wanted = PRESENT
    headers: Mapping[str, Wanted] = field(default_factory=dict[str, Wanted])
    body: bytes | None = None
    json: Wanted = NOTHING
    failure: str = ""
    retryable: bool | None = None
    outcome: str = ""
    secret: str = ""
    path: Wanted = NOTHING
    target: Wanted = NOTHING
    within_ms: int = 0
    after_ms: int = 0


# -- what is done


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request to the target, on a connection of its own; `times` of them at once.

    role      of an agent: the operation of the contract that is meant ("" for `service` and `operation` as given)
    path      `{op}` is the operation's own path; a path without it is below the target's URL
    url       instead of all that: any URL
    framing   `chunked` sends the body in chunks of two bytes
    bare      leaves out the target's own headers (keys)
    """

    method: str = "POST"
    role: str = ""
    service: str = "svc"
    operation: str = "op"
    path: str = "{op}"
    url: str = ""
    query: str = ""
    headers: Pairs = ()
    json: Any = NOTHING
    body: bytes | str = b""
    type: str = ""
    framing: Literal["length", "chunked"] = "length"
    expect: Expect | None = None
    save: str = ""
    times: int | str = 1
    bare: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Got:
    """What a listener of ours got: the `nth` request of that kind (-1: the last), waited for.

    count     instead: exactly so many came, looked at after `quiet_ms`
    gap_ms    it came so long after number `gap_from`, the one before: (low, high)
    save      of the request: its JSON, its headers as `#`, its callback URL as `@callback`
    """

    who: Literal["handler", "receiver"] = "handler"
    kind: Literal["start", "cancel"] = "start"
    nth: int = 1
    expect: Expect | None = None
    count: int | None = None
    quiet_ms: int = 0
    gap_ms: tuple[int, int] | None = None
    gap_from: int = 0
    within_ms: int = 10_000
    save: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Until:
    """Ask again and again until the answer is as expected, for the first time `after_ms`."""

    ask: Ask
    within_ms: int = 10_000
    after_ms: int = 0


@dataclass(frozen=True, slots=True)
class Release:
    """Let the replies go that are held under this name."""

    hold: str


@dataclass(frozen=True, slots=True)
class Reset:
    """Forget what our listeners got, and give them new replies."""

    handler: tuple[Reply, ...] = ()
    cancels: tuple[Reply, ...] = ()
    receiver: tuple[Reply, ...] = ()


@dataclass(frozen=True, slots=True)
class Each:
    """The steps once for each value, as `{each}` (its parts as `{each.0}`, ...)."""

    values: tuple[Any, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Begin:
    """A step that goes on while the next ones are done; `Finish` waits for it."""

    name: str
    step: Ask | Call


@dataclass(frozen=True, slots=True)
class Finish:
    name: str


@dataclass(frozen=True, slots=True)
class Hand:
    """Something that only who runs the target can do: `kill`, `start`, `restart_store`."""

    action: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call by a client library, to the listener that plays its gateway.

    verb      call, start, cancel, get, result
    args      of the verb, as the library takes them; options by name
    returns   the value, or fields of it
    raises    name of the exception, and fields of it
    """

    verb: str
    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    returns: Wanted = NOTHING
    raises: str = ""
    fields: Mapping[str, Wanted] = field(default_factory=dict[str, Wanted])
    within_ms: int = 0


Step: TypeAlias = "Ask | Got | Until | Release | Reset | Each | Begin | Finish | Hand | Call"


# -- how our side answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a listener answers.

    echo      body and type are the request's
    hold      not before `Release` of that name
    framing   `close` has no length and ends with the connection, `cut` ends before the length is reached,
              `reset` answers nothing and breaks the connection
    """

    status: int = 200
    json: Any = NOTHING
    body: bytes = b""
    type: str = ""
    headers: Pairs = ()
    echo: bool = False
    hold: str = ""
    after_ms: int = 0
    framing: Literal["length", "chunked", "close", "cut", "reset"] = "length"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How one kind of target is asked.

    handler    replies of the handler behind a gateway, one after the other, the last one also to all that follow; for a
               client: of its gateway
    cancels    the same for cancels; receiver: for callbacks
    policy, services   of the endpoint that is registered for this trial; prefix: path of the handler below its host
    needs      what must be there for it: `kill`, `store` (Hand), `prefix` (a URL with a path), `limit` (of work)
    """

    steps: tuple[Step, ...]
    handler: tuple[Reply, ...] = (Reply(echo=True),)
    cancels: tuple[Reply, ...] = (Reply(status=202),)
    receiver: tuple[Reply, ...] = (Reply(),)
    policy: Mapping[str, Any] = field(default_factory=dict[str, Any])
    services: tuple[Mapping[str, Any], ...] = ()
    prefix: str = ""
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One demand. `skips` says of a kind of target without a trial why the case says nothing about it.

    rule      of specs/protocol.md, for the gateway; `rules` where another kind has another one
    expected  what must be seen, one sentence
    reason    why anybody wants that
    advice    what to change where it is not so
    """

    number: int
    name: str
    group: str
    rule: str
    expected: str
    reason: str
    advice: str
    gateway: Trial | None = None
    agent: Trial | None = None
    client: Trial | None = None
    rules: Mapping[Target, str] = field(default_factory=dict[Target, str])
    skips: Mapping[Target, str] = field(default_factory=dict[Target, str])

    def trial(self, target: Target) -> Trial | None:
        """The trial for that kind of target."""
        return {"gateway": self.gateway, "agent": self.agent, "client": self.client}[target]

    def rule_for(self, target: Target) -> str:
        """The rule that a target of that kind breaks."""
        return self.rules.get(target, self.rule)
