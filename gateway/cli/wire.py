"""How commands talk to a gateway: one request, one answer, faults and refusals as the project's errors.

Owns the HTTP client of the command line. Knows paths of no command. httpx is loaded when the first request leaves.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from gateway.cli.exits import Problem
from mesh.client.errors import GatewayUnreachable, refusal
from mesh.errors import ConfigError, ReplyInvalid
from mesh.gateways import GATEWAY, gateways_of, visible

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

    from mesh.blob import Blob

CONNECT_TIMEOUT_S: Final = 5.0
REPLY_TIMEOUT_S: Final = 15.0
PAGES_MAX: Final = 10
"""A gateway looks at 2000 operations for a page."""
AWAY: Final = (502, 503, 504)
"""Answers of a gateway that another one may stand in for; none of them changed anything that a repeat would double."""
SILENCE_MAX_S: Final = 45.0
"""An event stream pings every 15 s."""


class Reply(NamedTuple):
    """An answer below 400, or 424. Header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Raises ReplyInvalid."""
        try:
            return json.loads(self.body)
        except ValueError:
            message = "the answer is not JSON: is this the URL of a Mesh gateway?"
            raise ReplyInvalid(message) from None


class Unreached(GatewayUnreachable):
    """No answer. `sent`: the request may have arrived."""

    def __init__(self, detail: str, *, sent: bool) -> None:
        super().__init__(detail)
        self.sent = sent


class Gateway:
    """The mesh at `url`, asked with the key of a namespace.

    Of several gateways (commas between them) the next one is asked when one cannot be reached or is not ready; when an
    answer broke off, only from the next request on: whoever asked knows what may be repeated.
    """

    def __init__(self, url: str, key: str) -> None:
        try:
            self._urls = gateways_of(url)
        except ConfigError as error:
            raise Problem(error.detail, f"Give one such as {GATEWAY} in --url or MESH_URL.") from None
        self._at = 0
        if key and not visible(key):
            raise Problem("the API key has other than visible ASCII characters", "Check MESH_KEY or --api-key.")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._http: httpx.Client | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._http is not None:
            self._http.close()

    @property
    def url(self) -> str:
        """The gateway that is asked at present."""
        return self._urls[self._at % len(self._urls)]

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: bytes | Blob | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = REPLY_TIMEOUT_S,
        also: tuple[int, ...] = (424,),
    ) -> Reply:
        """One request. Statuses from 400 up raise their error of mesh/errors.py unless in `also`.

        `path` is percent-encoded, `query` is not; entries that are None are left out. Raises Unreached.
        """
        import httpx  # noqa: PLC0415 - a tenth of a second that `mesh --help` does not have

        sent = {**self._headers, **(headers or {})}
        if isinstance(body, bytes):
            sent.setdefault("content-type", "application/json")
        query = {name: value for name, value in (query or {}).items() if value is not None and value != ""}
        for others in reversed(range(len(self._urls))):
            try:
                reply = self._client().request(
                    method,
                    self.url + path,
                    params=query or None,
                    content=body if isinstance(body, bytes | None) else iter(body),
                    headers=sent,
                    timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
                )
            except (httpx.TransportError, httpx.InvalidURL) as fault:
                self._pass_on(self._unreached(fault), others)
            else:
                if reply.status_code not in AWAY or reply.status_code in also:
                    return _checked(reply, also)
                self._at += 1
                if not others:
                    return _checked(reply, also)
        raise AssertionError  # the last of them returns or raises

    def download(self, path: str, target: Path) -> int:
        """What is at `path`, to a file that is replaced once all of it is there; its bytes. Raises as `ask`."""
        draft, size = target.with_name(f".{target.name}.part"), 0
        try:
            with self.stream(path, {}) as pieces, draft.open("wb") as file:
                for piece in pieces:
                    size += file.write(piece)
            draft.replace(target)
        except OSError as fault:
            raise Problem(f"{target} cannot be written: {fault.strerror}", "Name another --output-file.") from None
        finally:
            draft.unlink(missing_ok=True)
        return size

    def get(self, path: str, **query: Any) -> Any:
        """The JSON at `path`."""
        return self.ask("GET", path, query=query).json()

    def page(self, path: str, query: Mapping[str, Any], limit: int) -> dict[str, Any]:
        """`{items, next_cursor}` of a list with filters, whose pages may be short or empty before its end.

        Looks on until there are `limit` items, for PAGES_MAX pages.
        """
        found: list[Any] = []
        cursor = query.get("cursor")
        for _ in range(PAGES_MAX):
            page = self.ask("GET", path, query={**query, "limit": limit - len(found), "cursor": cursor}).json()
            found += page["items"]
            cursor = page["next_cursor"]
            if cursor is None or len(found) >= limit:
                break
        return {"items": found, "next_cursor": cursor}

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str]) -> Generator[Iterator[bytes]]:
        """The chunks of a long answer. Raises as `ask`."""
        import httpx  # noqa: PLC0415 - as above

        timeout = httpx.Timeout(SILENCE_MAX_S, connect=CONNECT_TIMEOUT_S)
        sent = {**self._headers, **headers}
        for others in reversed(range(len(self._urls))):
            try:
                with self._client().stream("GET", self.url + path, headers=sent, timeout=timeout) as reply:
                    if reply.status_code != 200:  # noqa: PLR2004
                        self._at += reply.status_code in AWAY
                        raise refusal(reply.status_code, reply.read(), 0)
                    yield reply.iter_bytes()
                    return
            except httpx.TransportError as fault:
                self._pass_on(self._unreached(fault), others)

    def _pass_on(self, trouble: Unreached, others: int) -> None:
        """Go on to the next gateway; raises `trouble` when none of the `others` may be asked in its place."""
        self._at += 1
        if trouble.sent or not others:
            raise trouble from None

    def _client(self) -> httpx.Client:
        if self._http is None:
            import httpx  # noqa: PLC0415 - as above

            # The environment's proxies are for the outer world, not for a gateway that MESH_URL names.
            self._http = httpx.Client(trust_env=False)
        return self._http

    def _unreached(self, fault: Exception) -> Unreached:
        import httpx  # noqa: PLC0415 - as above

        if isinstance(fault, httpx.ConnectError | httpx.ConnectTimeout | httpx.InvalidURL | httpx.UnsupportedProtocol):
            hint = "Start one with `mesh dev`, or name another with --url or MESH_URL"
            return Unreached(f"no gateway answers at {self.url} ({_why(fault)}). {hint}", sent=False)
        return Unreached(f"the gateway at {self.url} did not answer to the end ({_why(fault)})", sent=True)


def _checked(reply: httpx.Response, also: tuple[int, ...]) -> Reply:
    if reply.status_code >= 400 and reply.status_code not in also:  # noqa: PLR2004
        after = reply.headers.get("retry-after", "")
        raise refusal(reply.status_code, reply.content, int(after) if after.isdigit() else 0)
    return Reply(reply.status_code, reply.headers, reply.content)


def _why(fault: Exception) -> str:
    text = str(fault).strip()
    if "refused" in text.lower():
        return "connection refused"
    return text or {"ReadTimeout": "time over", "ConnectTimeout": "time over"}.get(
        type(fault).__name__, type(fault).__name__
    )
