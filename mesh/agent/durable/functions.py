"""What a step needs to know about a function: where it runs, what it gives, whether it wants the key. Read once each.

Pure but for the threads it sends plain functions to.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any, Final, NamedTuple, get_type_hints

from mesh.agent.codec import Codec
from mesh.errors import ConfigError

REMEMBERED_MAX: Final = 4096


class Shape(NamedTuple):
    """`is_async`: runs on the loop; else in a thread. `codec` of its result. `wants_key`: has a parameter `key`."""

    is_async: bool
    codec: Codec
    wants_key: bool


_shapes: dict[Any, Shape] = {}
_any: Final = Codec(Any)


def shape_of(function: Callable[..., Any], out: Any = None) -> Shape:
    """`out`: the result's type, where the annotations do not say it. Raises ConfigError."""
    inner = function
    while isinstance(inner, partial):
        inner = inner.func
    if not callable(inner):
        message = f"a step takes a function and its arguments, not {type(inner).__name__}"
        raise ConfigError(message)
    code = getattr(inner, "__code__", None)
    annotations: dict[str, Any] = getattr(inner, "__annotations__", {}) or {}
    # Functions defined anew in every call share their code; what they promise may differ.
    mark = (code or inner, annotations.get("return"), out)
    try:
        known = _shapes.get(mark)
    except TypeError:
        return _look(inner, out)
    if known is None:
        known = _look(inner, out)
        if len(_shapes) >= REMEMBERED_MAX:
            del _shapes[next(iter(_shapes))]
        _shapes[mark] = known
    return known


def codec_for(out: Any) -> Codec:
    """The codec of a type as `out=` names it; None and Any: plain JSON values."""
    return _any if out is None or out is Any else Codec(out)


def _look(function: Callable[..., Any], out: Any) -> Shape:
    call = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004 - the method, to look at
    if out is None:
        try:
            out = get_type_hints(call).get("return", Any)
        except (NameError, TypeError, AttributeError):
            out = Any  # names that only a type checker sees
    try:
        codec = _any if out is type(None) else codec_for(out)
    except ConfigError:
        codec = _any
    try:
        parameter = inspect.signature(call).parameters.get("key")
    except (TypeError, ValueError):
        parameter = None
    wants_key = parameter is not None and parameter.kind is not parameter.POSITIONAL_ONLY
    return Shape(inspect.iscoroutinefunction(call), codec, wants_key)


async def in_thread(executor: Executor | None, call: Callable[[], Any]) -> Any:
    """`call()` in a thread, in this context; what it gives is awaited here when it is awaitable.

    When this is cancelled meanwhile, the thread goes on, and a coroutine that it gives is closed instead.
    """
    given: list[Any] = []
    left = False

    def work() -> Any:
        value = call()
        given.append(value)
        if left:
            _drop(given)
        return value

    context = contextvars.copy_context()
    try:
        value = await asyncio.get_running_loop().run_in_executor(executor, partial(context.run, work))
    except BaseException:
        # The thread may end before or after this, its result may be on its way: both sides look, one of them finds it.
        left = True
        _drop(given)
        raise
    given.clear()
    return await value if inspect.isawaitable(value) else value


def _drop(given: list[Any]) -> None:
    """Close a coroutine that nobody will await; one that was begun, or another awaitable, belongs to somebody else."""
    try:
        value = given.pop()
    except IndexError:
        return  # the other side has it
    if inspect.iscoroutine(value) and inspect.getcoroutinestate(value) == inspect.CORO_CREATED:
        value.close()
