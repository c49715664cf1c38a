"""Which handler a path means: the table of a set of services, and what the registry is told about them.

Reads nexusrpc's definitions once, at construction; afterwards a call costs one dict look-up by its raw path. Plain
functions become the operations of one service named after the endpoint. Knows no HTTP beyond the path.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias, cast

from nexusrpc.handler import (
    CancelOperationContext,
    Handler,
    MiddlewareSafeOperationHandler,
    OperationHandler,
    OperationHandlerMiddleware,
    StartOperationContext,
    StartOperationResultAsync,
    StartOperationResultSync,
)

from mesh.agent.codec import Codec
from mesh.agent.durable.link import MARK
from mesh.errors import ConfigError, NotFound
from mesh.wire import check_operation, check_service, split_path

PATHS_REMEMBERED_MAX: Final = 4096
DESCRIPTION_CHARS_MAX: Final = 500

Started: TypeAlias = StartOperationResultSync[Any] | StartOperationResultAsync
Start: TypeAlias = Callable[[StartOperationContext, Any], Awaitable[Started]]
Cancel: TypeAlias = Callable[[CancelOperationContext, str], Awaitable[None]]


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """One operation: its wire names, how to start and cancel it, its types. `id` is unique in its table."""

    id: str
    service: str
    operation: str
    start: Start
    cancel: Cancel
    input: Codec
    output: Codec
    description: str
    durable: bool


class Routes:
    """All operations of an agent, found by raw path below `prefix` (no trailing slash)."""

    def __init__(
        self,
        endpoint: str,
        services: Iterable[Any],
        executor: Executor,
        prefix: str = "",
        middleware: Sequence[OperationHandlerMiddleware] = (),
    ) -> None:
        """`services`: instances of nexusrpc service handler classes, and functions. Raises ConfigError."""
        self.prefix = prefix.encode()
        self._table: dict[str, dict[str, Route]] = {}
        self._found: dict[bytes, tuple[Route, bool]] = {}
        self._executor = executor
        self._middleware = middleware
        given: Any = services
        if callable(given) or not isinstance(given, Iterable):
            shown = getattr(given, "__name__", type(given).__name__)
            message = f"its services are a list, also of one: [{shown}], not {shown}"
            raise ConfigError(message)
        for service in services:
            if inspect.isfunction(service) or inspect.ismethod(service):
                self._add_function(endpoint, service)
            else:
                self._add_service(service)
        if not self._table:
            message = "its list of services is empty: give functions, or instances of nexusrpc service handlers"
            raise ConfigError(message)

    def find(self, raw_path: bytes) -> tuple[Route, bool]:
        """The operation that a path means, and whether it is the path of its cancel.

        Raises Malformed (bad escapes) and NotFound (unknown service or operation, other shapes of path).
        """
        found = self._found.get(raw_path)
        if found is None:
            found = self._resolve(raw_path)
            # Other spellings of one path come from strangers only; the cap keeps them from filling the memory.
            if len(self._found) < PATHS_REMEMBERED_MAX:
                self._found[raw_path] = found
        return found

    def describe(self) -> list[dict[str, Any]]:
        """`services` of the registry, JSON Schemas included; by name, the same in every process.

        nexusrpc's own order hangs on the hash seed, and a restart must not look like a new version of the endpoint.
        """
        return [
            {"name": service, "operations": [_description(operations[name]) for name in sorted(operations)]}
            for service, operations in sorted(self._table.items())
        ]

    def _resolve(self, raw_path: bytes) -> tuple[Route, bool]:
        segments = split_path(raw_path, self.prefix)
        cancel = len(segments) == 3 and segments[2] == "cancel"  # noqa: PLR2004
        if len(segments) != 2 and not cancel:  # noqa: PLR2004
            message = "the path is not /{service}/{operation} or /{service}/{operation}/cancel"
            raise NotFound(message)
        return self.named(segments[0], segments[1]), cancel

    @property
    def durable(self) -> bool:
        """Whether there are handlers with a journal."""
        return any(route.durable for operations in self._table.values() for route in operations.values())

    def named(self, service: str, operation: str) -> Route:
        """Raises NotFound (unknown service or operation)."""
        operations = self._table.get(service)
        if operations is None:
            message = f"no service {service!r} here"
            raise NotFound(message)
        route = operations.get(operation)
        if route is None:
            message = f"service {service!r} has no operation {operation!r}"
            raise NotFound(message)
        return route

    def _add_service(self, service: Any) -> None:
        try:
            # nexusrpc reads and checks the class; calls then go past its Handler, which would read every input twice.
            (found,) = Handler([service], executor=self._executor).service_handlers.values()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(str(error)) from error
        operations = self._service(found.service.name)
        for name, handler in found.operation_handlers.items():
            definition = found.service.operation_definitions[name]
            method = getattr(service, definition.method_name, None)
            types = (definition.input_type, definition.output_type)
            self._add(operations, found.service.name, name, handler, types, inspect.getdoc(method))

    def _add_function(self, endpoint: str, function: Callable[..., Any]) -> None:
        marked = getattr(function, MARK, None)
        if marked is None and function.__name__ == "<lambda>":
            message = f"agent {endpoint}: a lambda has no name that its operation could have: define it with def"
            raise ConfigError(message)
        if marked is None:
            handler = (AsyncFunction if inspect.iscoroutinefunction(function) else Function)(function)
        else:
            from mesh.agent.durable.handler import DurableHandler  # noqa: PLC0415 - who marked it has loaded it

            handler = DurableHandler(marked, (function.__self__,) if inspect.ismethod(function) else ())
        operations = self._table.get(endpoint)
        if operations is None:
            operations = self._service(endpoint)
        types = (handler.input_type, handler.output_type)
        name = function.__name__ if marked is None else marked.name
        self._add(operations, endpoint, name, handler, types, inspect.getdoc(function))

    def _service(self, name: str) -> dict[str, Route]:
        if name in self._table:
            message = f"service {name!r} is there twice"
            raise ConfigError(message)
        operations = self._table[check_service(name)] = {}
        return operations

    def _add(
        self,
        operations: dict[str, Route],
        service: str,
        name: str,
        handler: OperationHandler[Any, Any],
        types: tuple[Any, Any],
        doc: str | None,
    ) -> None:
        if name in operations:
            message = f"service {service!r} has operation {name!r} twice"
            raise ConfigError(message)
        calls = _Calls(handler, self._executor)
        if self._middleware:
            calls = _Wrapped(calls, self._middleware)
        start = calls.start if self._middleware or not calls.start_is_async else cast("Start", handler.start)
        description = (doc or "").partition("\n\n")[0].replace("\n", " ")[:DESCRIPTION_CHARS_MAX]
        operations[check_operation(name)] = Route(
            f"{len(self._table)}.{len(operations)}",
            service,
            name,
            start,
            calls.cancel,
            Codec(types[0]),
            Codec(types[1]),
            description,
            hasattr(handler, "durable"),
        )


class Function(OperationHandler[Any, Any]):
    """A plain function as an operation: `fn()`, `fn(input)` or `fn(ctx, input)`, typed by its annotations."""

    def __init__(self, function: Callable[..., Any]) -> None:
        name = function.__name__
        try:
            signature = inspect.signature(function, eval_str=True)
        except NameError as error:
            message = f"the annotations of {name} cannot be read: {error}"
            raise ConfigError(message) from error
        inputs = list(signature.parameters.values())
        self._wants_context = bool(inputs) and inputs[0].annotation is StartOperationContext
        if self._wants_context:
            del inputs[0]
        if len(inputs) > 1 or any(
            each.kind not in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) for each in inputs
        ):
            message = f"{name} takes more than one input; an operation has one: put the fields into a model"
            raise ConfigError(message)
        self._function = function
        self._wants_input = bool(inputs)
        self.input_type: Any = _annotated(inputs[0].annotation) if inputs else type(None)
        self.output_type: Any = _annotated(signature.return_annotation)

    def start(
        self,
        ctx: StartOperationContext,
        input: Any,  # noqa: A002
    ) -> StartOperationResultSync[Any] | Awaitable[StartOperationResultSync[Any]]:
        return StartOperationResultSync(self.apply(ctx, input))

    async def cancel(self, ctx: CancelOperationContext, token: str) -> None:
        message = "an operation that answers by its return value has no token of its own"
        raise NotImplementedError(message)

    def apply(self, ctx: StartOperationContext, value: Any) -> Any:
        """Call the function with what it takes."""
        if self._wants_context:
            return self._function(ctx, value) if self._wants_input else self._function(ctx)
        return self._function(value) if self._wants_input else self._function()


class AsyncFunction(Function):
    async def start(self, ctx: StartOperationContext, input: Any) -> StartOperationResultSync[Any]:  # noqa: A002
        return StartOperationResultSync(await self.apply(ctx, input))


class _Calls(MiddlewareSafeOperationHandler):
    """`start` and `cancel` that can be awaited, whatever the handler's are; `def` ones run in the executor."""

    def __init__(self, handler: OperationHandler[Any, Any], executor: Executor) -> None:
        self._handler = handler
        self._executor = executor
        self.start_is_async = inspect.iscoroutinefunction(handler.start)
        self._cancel_is_async = inspect.iscoroutinefunction(handler.cancel)

    async def start(self, ctx: StartOperationContext, input: Any) -> Started:  # noqa: A002
        if self.start_is_async:
            return await cast("Start", self._handler.start)(ctx, input)
        return await self._in_thread(self._handler.start, ctx, input)

    async def cancel(self, ctx: CancelOperationContext, token: str) -> None:
        if self._cancel_is_async:
            await cast("Cancel", self._handler.cancel)(ctx, token)
        else:
            await self._in_thread(self._handler.cancel, ctx, token)

    async def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        work = partial(contextvars.copy_context().run, call, *arguments)
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


class _Wrapped(_Calls):
    """The same behind nexusrpc middleware, the first one outermost."""

    def __init__(self, inner: _Calls, middleware: Sequence[OperationHandlerMiddleware]) -> None:
        self._inner = inner
        self._middleware = middleware
        self.start_is_async = True

    async def start(self, ctx: StartOperationContext, input: Any) -> Started:  # noqa: A002
        return await self._chain(ctx).start(ctx, input)

    async def cancel(self, ctx: CancelOperationContext, token: str) -> None:
        await self._chain(ctx).cancel(ctx, token)

    def _chain(self, ctx: StartOperationContext | CancelOperationContext) -> MiddlewareSafeOperationHandler:
        handler: MiddlewareSafeOperationHandler = self._inner
        for middleware in reversed(self._middleware):
            handler = middleware.intercept(ctx, handler)
        return handler


def _annotated(annotation: Any) -> Any:
    if annotation is inspect.Parameter.empty:
        return Any
    return type(None) if annotation is None else annotation


def _description(route: Route) -> dict[str, Any]:
    schemas = {"input": route.input.schema(output=False), "output": route.output.schema(output=True)}
    known = {field: schema for field, schema in schemas.items() if schema is not None}
    return {"name": route.operation, "description": route.description, **known}
