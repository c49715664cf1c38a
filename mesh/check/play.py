"""Playing a trial: its steps, one after the other, against a target; the first breach ends it.

What steps saw is kept under the names they save it by, and put into the texts of later ones (case.py). Every trial has
listeners of its own. Knows no case and no kind of target: a Stage says where the target's operations are.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Final, Protocol, cast

from mesh.check.case import (
    NOTHING,
    Ask,
    Begin,
    Call,
    Each,
    Finish,
    Got,
    Hand,
    Release,
    Reset,
    Step,
    Trial,
    Until,
)
from mesh.check.expect import breaches
from mesh.check.listener import Listener
from mesh.check.wire import Answer, Message, Request, WireFault, ask
from mesh.clock import monotonic_s, sleep
from mesh.ids import short_id

POLL_S: Final = 0.02
_name = re.compile(r"\{([a-z_][a-z_0-9]*)(?:\.([^{}]*))?\}")


class Breach(Exception):
    """The target is not as it should be."""

    def __init__(self, seen: str) -> None:
        super().__init__(seen)
        self.seen = seen


class NotApplicable(Exception):
    """The target cannot be asked this; the text says why."""


class Stage(Protocol):
    """A target as a trial sees it."""

    url: str
    headers: tuple[tuple[str, str], ...]

    def operation(self, step: Ask, names: Mapping[str, Any]) -> tuple[str, Ask]:
        """The path of the operation that a step means, and the step as this target takes it. Raises NotApplicable."""
        ...

    async def call(self, step: Call, gateway: str) -> list[str]:
        """Let a client library do the call to the gateway at that URL; its breaches."""
        ...

    async def hand(self, action: str) -> None:
        """Do to the target what only who runs it can. Raises NotApplicable."""
        ...


class Play:
    """One trial under way."""

    def __init__(self, stage: Stage, handler: Listener, receiver: Listener, names: Mapping[str, Any]) -> None:
        self._stage = stage
        self._listeners = {"handler": handler, "receiver": receiver}
        self.names: dict[str, Any] = {
            "key": short_id("key"),
            "tag": short_id("tag"),
            "handler": handler.url,
            "receiver": receiver.url,
            **names,
        }
        for listener in self._listeners.values():
            listener.fill = self.fill
        self._running: dict[str, asyncio.Task[None]] = {}
        self._doing: dict[type[Any], Callable[[Any], Awaitable[None]]] = {
            Ask: self._ask,
            Got: self._got,
            Until: self._until,
            Release: self._release,
            Reset: self._do_reset,
            Each: self._each,
            Begin: self._begin,
            Finish: self._finish,
            Hand: self._hand,
            Call: self._call,
        }

    async def trial(self, trial: Trial) -> None:
        """Raises Breach, NotApplicable."""
        self._reset(Reset(trial.handler, trial.cancels, trial.receiver))
        try:
            await self.steps(trial.steps)
        finally:
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def steps(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            await self._step(step)

    async def _step(self, step: Step) -> None:
        await self._doing[type(step)](step)

    # -- texts

    def fill(self, value: Any) -> Any:
        """`value` with every name in it replaced by what it stands for."""
        if isinstance(value, str):
            whole = _name.fullmatch(value)
            if whole is not None:
                return self._look_up(whole)
            return _name.sub(lambda match: str(self._look_up(match)), value)
        if isinstance(value, dict):
            return {name: self.fill(one) for name, one in cast("dict[str, Any]", value).items()}
        if isinstance(value, (list, tuple)):
            filled = [self.fill(one) for one in cast("list[Any]", value)]
            return filled if isinstance(value, list) else tuple(filled)
        if is_dataclass(value) and not isinstance(value, type):
            changed = {one.name: self.fill(getattr(value, one.name)) for one in fields(value)}
            return replace(value, **changed)
        return value

    def _look_up(self, match: re.Match[str]) -> Any:
        name, part = match[1], match[2]
        if name not in self.names:
            return match[0]
        known = self.names[name]
        if part is None:
            return known
        if isinstance(known, Message):
            return _of_message(known, part)
        return known[int(part)]

    # -- steps

    async def _ask(self, step: Ask) -> None:
        answers = await asyncio.gather(*[self._sent(step) for _ in range(int(self.fill(step.times)))])
        for answer in answers:
            self._judge(step, answer)

    async def _sent(self, step: Ask) -> Answer:
        step = self.fill(step)
        path, step = self._stage.operation(step, self.names)
        url = step.url or self._stage.url + step.path.replace("{op}", path)
        host, _, rest = url.partition("://")[2].partition("/")
        target = f"/{rest}" + (f"?{step.query}" if step.query else "")
        headers = list(step.headers)
        if not step.bare:
            headers = [*self._stage.headers, *headers]
        body = step.body.encode() if isinstance(step.body, str) else step.body
        if step.json is not NOTHING:
            body = json.dumps(step.json, ensure_ascii=False).encode()
        if step.type:
            headers.append(("content-type", step.type))
        base = f"{url.partition('://')[0]}://{host}"
        try:
            return await ask(base, step.method, target, headers, body, chunked=step.framing == "chunked")
        except WireFault as fault:
            raise Breach(f"{step.method} {target}: {fault}") from None

    def _judge(self, step: Ask, answer: Answer) -> None:
        if step.expect is not None:
            found = breaches(self.fill(step.expect), answer)
            if found:
                raise Breach(f"{'; '.join(found)}{self._variant()}. The answer was {answer}")
        if step.save:
            self.names[step.save] = answer

    def _variant(self) -> str:
        return f" (with {self.names['each']!r})" if "each" in self.names else ""

    async def _got(self, step: Got) -> None:
        listener = self._listeners[step.who]
        whose = "the handler" if step.who == "handler" else "the callback receiver"
        if step.count is not None:
            await listener.until(step.kind, step.count, step.within_ms / 1000 if step.count else 0)
            if len(listener.got(step.kind)) == step.count:
                await sleep(step.quiet_ms / 1000)
            got = listener.got(step.kind)
            if len(got) != step.count:
                raise Breach(f"{whose} got {len(got)} {step.kind} requests, not {step.count}{self._variant()}")
            return
        request = await listener.until(step.kind, abs(step.nth), step.within_ms / 1000)
        if step.nth < 0 and request is not None:
            request = listener.got(step.kind)[step.nth]
        if request is None:
            times = f" number {step.nth}" if step.nth > 1 else ""
            raise Breach(f"{whose} got no {step.kind} request{times} within {step.within_ms} ms{self._variant()}")
        found = breaches(self.fill(step.expect), request) if step.expect is not None else []
        if step.gap_ms is not None:
            before = listener.got(step.kind)[(step.gap_from or step.nth - 1) - 1]
            gap_ms, (low_ms, high_ms) = (request.at_s - before.at_s) * 1000, step.gap_ms
            if not low_ms <= gap_ms <= high_ms:
                found.append(f"it came {gap_ms:.0f} ms after the earlier one, not {low_ms} to {high_ms} ms")
        if found:
            raise Breach(f"{whose}: {'; '.join(found)}{self._variant()}. It got {request}")
        if step.save:
            self.names[step.save] = request

    async def _until(self, step: Until) -> None:
        end_s = monotonic_s() + step.within_ms / 1000
        await sleep(step.after_ms / 1000)
        while True:
            answer = await self._sent(step.ask)
            try:
                self._judge(step.ask, answer)
            except Breach as breach:
                if monotonic_s() > end_s:
                    raise Breach(f"after {step.within_ms} ms still: {breach.seen}") from None
            else:
                return
            await sleep(POLL_S)

    async def _release(self, step: Release) -> None:
        for listener in self._listeners.values():
            listener.hold(step.hold).set()

    async def _do_reset(self, step: Reset) -> None:
        self._reset(step)

    def _reset(self, step: Reset) -> None:
        handler, receiver = self._listeners["handler"], self._listeners["receiver"]
        handler.forget()
        receiver.forget()
        handler.script("start", step.handler)
        handler.script("cancel", step.cancels)
        receiver.script("start", step.receiver)

    async def _each(self, step: Each) -> None:
        before = self.names.get("each")
        for value in step.values:
            self.names["each"] = self.fill(value)
            self.names["key"] = short_id("key")
            await self.steps(step.steps)
        if before is None:
            del self.names["each"]
        else:
            self.names["each"] = before

    async def _begin(self, step: Begin) -> None:
        self._running[step.name] = asyncio.ensure_future(self._step(step.step))

    async def _finish(self, step: Finish) -> None:
        await self._running.pop(step.name)

    async def _hand(self, step: Hand) -> None:
        await self._stage.hand(step.action)

    async def _call(self, step: Call) -> None:
        found = await self._stage.call(self.fill(step), self._listeners["handler"].url)
        if found:
            raise Breach("; ".join(found) + self._variant())


def _of_message(message: Message, part: str) -> Any:
    """`token` is a field of its JSON, `a.b` one in a field, `#name` a header, `@callback` the callback URL."""
    if part.startswith("#"):
        value = message.get(part[1:])
    elif part == "@callback" and isinstance(message, Request):
        value = message.query.get("callback")
    else:
        try:
            value = message.json
            for step in part.split("."):
                value = cast("Any", value[int(step)] if isinstance(value, list) else value[step])
        except (ValueError, LookupError, TypeError):
            value = None
    if value is None:
        raise Breach(f"there is no {part} in {message}")
    return value
