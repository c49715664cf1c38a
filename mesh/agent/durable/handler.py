"""`@mesh.durable`: functions and service methods that take a context become operations with a journal.

Makes an OperationHandler of them that nexusrpc and Routes know how to host, and decides what an end of the code means
for the operation. How a task arrives and where its answer goes is the host's: it says so through `hosted`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar, cast, get_type_hints, overload

from nexusrpc import HandlerError, HandlerErrorType, OperationError, OperationErrorState
from nexusrpc.handler import (
    CancelOperationContext,
    OperationHandler,
    StartOperationContext,
    StartOperationResultSync,
    operation_handler,
)

from mesh.agent.durable.attempt import Attempt
from mesh.agent.durable.context import Context
from mesh.agent.durable.errors import CallRefused, CancelRequested, JournalMismatch, QuorumMissed, StepFailed
from mesh.agent.durable.functions import in_thread
from mesh.agent.durable.link import MARK, hosted
from mesh.agent.durable.sync import SyncContext
from mesh.client.errors import OperationUnsuccessful
from mesh.errors import ConfigError, TooLarge

logger: Final = logging.getLogger("mesh.agent")

F = TypeVar("F", bound=Callable[..., Any])

_NEXUS_FACTORY: Final = "__nexus_operation_factory__"
"""Where nexusrpc looks for the factory that a decorated method stands for (its own `sync_operation` puts it there)."""
_FIRST: Final = "{}: a durable handler's first parameter is ctx: mesh.{}, not {}"
_FAILURES: Final = (StepFailed, CallRefused, QuorumMissed, OperationUnsuccessful, TooLarge)
"""Ends that another attempt would come to again: they are recorded, or a bound of the operation itself."""


class Durable(NamedTuple):
    """A decorated function: what it takes and gives. `bound`: it is a method, its instance comes first."""

    function: Callable[..., Any]
    name: str
    bound: bool
    takes_input: bool
    input_type: Any
    output_type: Any

    async def run(self, attempt: Attempt, owner: tuple[Any, ...], value: Any) -> Any:
        """One attempt, to its end. Raises OperationError, HandlerError, what the code raises; Suspended, LeaseLost.

        JournalMismatch and ConfigError end the operation: as a HandlerError that is not to be repeated.
        """
        try:
            return await attempt.run(lambda: self._code(attempt, owner, value))
        except _FAILURES as error:
            raise OperationError(error.detail, state=OperationErrorState.FAILED) from error
        except (JournalMismatch, ConfigError) as error:
            # The same code would come to it again. Mended code is started anew, by whoever reads this.
            logger.error("%s/%s of %s: %s", attempt.task.operation_id, attempt.task.run, self.name, error.detail)  # noqa: TRY400 - says it all
            raise HandlerError(error.detail, type=HandlerErrorType.INTERNAL, retryable_override=False) from error

    async def _code(self, attempt: Attempt, owner: tuple[Any, ...], value: Any) -> Any:
        context = Context(attempt)
        rest = (value,) if self.takes_input else ()
        try:
            if inspect.iscoroutinefunction(self.function):
                result = await self.function(*owner, context, *rest)
                context.owed.check()
                return result
            attempt.resting.begin()
            try:
                plain = SyncContext(context)
                return await in_thread(attempt.tools.handlers, lambda: self.function(*owner, plain, *rest))
            finally:
                attempt.resting.end()
        except BaseException as why:
            context.owed.close()
            if not _is_cancel(why):
                raise
        await context.undo()
        message = "canceled by the caller"
        raise OperationError(message, state=OperationErrorState.CANCELED)


class DurableHandler(OperationHandler[Any, Any]):
    """A durable function as nexusrpc hosts it. `owner`: the service's instance for a method, else empty."""

    def __init__(self, durable: Durable, owner: tuple[Any, ...] = ()) -> None:
        self.durable = durable
        self._owner = owner
        self.input_type = durable.input_type
        self.output_type = durable.output_type

    async def start(self, ctx: StartOperationContext, input: Any) -> StartOperationResultSync[Any]:  # noqa: A002
        given = hosted.get()
        if given is None:
            message = "this operation is durable and needs a mesh to keep its journal: call it through a gateway"
            raise HandlerError(message, type=HandlerErrorType.BAD_REQUEST)
        attempt = Attempt(given.task, given.link, given.tools)
        given.attached(attempt)
        return StartOperationResultSync(await self.durable.run(attempt, self._owner, input))

    async def cancel(self, ctx: CancelOperationContext, token: str) -> None:
        message = "a durable operation is canceled through the mesh"
        raise NotImplementedError(message)


@overload
def durable(function: F, /) -> F: ...
@overload
def durable(*, name: str | None = None) -> Callable[[F], F]: ...
def durable(function: Callable[..., Any] | None = None, /, *, name: str | None = None) -> Any:
    """Make a function, or a method of a nexusrpc service handler, a durable operation.

        @mesh.durable
        async def review(ctx: mesh.Context, job: Job) -> Report: ...

    `ctx` is a mesh.Context, for a plain `def` a mesh.SyncContext. An attempt that is interrupted, by a crash, a lost
    lease or a wait, is followed by another one, which runs the function again from its beginning with everything
    recorded so far. `name`: of the operation; default the function's. Raises ConfigError.
    """
    if function is None:
        return partial(_marked, name=name)
    return _marked(function, name=name)


def _marked(function: F, *, name: str | None) -> F:
    """Mark `function`; it stays callable as it is, for tests."""
    read = _read(function, name or function.__name__)
    setattr(function, MARK, read)
    if read.bound:

        def factory(self: Any) -> OperationHandler[Any, Any]:
            return DurableHandler(read, (self,))

        factory.__name__ = function.__name__
        factory.__doc__ = function.__doc__
        factory.__annotations__ = {"return": OperationHandler[read.input_type, read.output_type]}  # pyright: ignore[reportInvalidTypeForm]
        setattr(function, _NEXUS_FACTORY, operation_handler(name=read.name)(factory))
    return function


def durable_of(function: Any) -> Durable | None:
    """What `durable` has read of a function; None for others."""
    return getattr(function, MARK, None)


def _read(function: Callable[..., Any], name: str) -> Durable:
    parameters = list(inspect.signature(function).parameters.values())
    try:
        hints = get_type_hints(function)
    except NameError as error:
        message = f"the annotations of {name} cannot be read: {error}"
        raise ConfigError(message) from error
    wanted = Context if inspect.iscoroutinefunction(function) else SyncContext
    at = next((i for i, each in enumerate(parameters) if hints.get(each.name) in (Context, SyncContext)), -1)
    if at < 0:
        at = 1 if parameters and parameters[0].name == "self" else 0
        given = parameters[at : at + 1]
        # Without an annotation the name must say it: an input that were handed a context would be found out too late.
        unclear = [p for p in given if p.name in hints or p.name.strip("_") not in ("", "c", "ctx", "context")]
        if not given or unclear or given[0].kind not in (given[0].POSITIONAL_ONLY, given[0].POSITIONAL_OR_KEYWORD):
            raise ConfigError(_FIRST.format(name, wanted.__name__, unclear[0] if unclear else "there is none"))
    elif at == 1 and parameters[0].name in hints:
        raise ConfigError(_FIRST.format(name, wanted.__name__, parameters[0]))
    elif hints[parameters[at].name] is not wanted:
        message = f"{name} takes a mesh.{wanted.__name__}, as {'an async' if wanted is Context else 'a plain'} function"
        raise ConfigError(message)
    inputs = parameters[at + 1 :]
    if at >= len(parameters) or at > 1 or len(inputs) > 1:
        message = f"{name}: a durable operation takes a context and at most one input: put the fields into a model"
        raise ConfigError(message)
    input_type = hints.get(inputs[0].name, Any) if inputs else type(None)
    return Durable(function, name, at == 1, bool(inputs), input_type, hints.get("return", Any))


def _is_cancel(why: BaseException) -> bool:
    """A cancel request that went through, alone or from several tasks of a group."""
    if isinstance(why, BaseExceptionGroup):
        return all(map(_is_cancel, cast("BaseExceptionGroup[BaseException]", why).exceptions))
    return isinstance(why, CancelRequested)


__all__ = ["Durable", "DurableHandler", "durable", "durable_of"]
