"""The test kit tells the mistakes of a test: children that nobody gives, inputs that no mesh takes, errors."""

from __future__ import annotations

import asyncio
import traceback
from typing import Any

import pytest
from nexusrpc import HandlerError, HandlerErrorType
from pydantic import BaseModel

import mesh
from mesh import testing
from mesh.errors import ConfigError


class Job(BaseModel):
    name: str
    parts: list[int]


@mesh.durable
async def look(ctx: mesh.Context) -> dict[str, str]:
    gathered = await ctx.gather({name: ctx.call(name, "S", "ask") for name in ("wiki", "mail")}, quorum=1)
    return {name: source.state for name, source in gathered.items()}


@mesh.durable
async def take(ctx: mesh.Context, job: Job) -> list[int]:
    job.parts.append(0)  # its own: the next attempt reads the input anew
    await ctx.sleep(60)
    return job.parts


def test_a_source_that_the_test_does_not_give_is_told() -> None:
    told = r"calls 'mail/S/ask', which the test does not give: .*\(given and not called: 'mial/S/ask'\)"
    with pytest.raises(ConfigError, match=told):
        testing.run(look, children={"wiki/S/ask": "here", "mial/S/ask": "here"})


def test_a_call_that_the_test_does_not_give_is_told_whatever_the_handler_makes_of_it() -> None:
    @mesh.durable
    async def handler(ctx: mesh.Context) -> str:
        try:
            return await ctx.call("nobody", "S", "o")
        except mesh.CallRefused:
            return "alone"

    with pytest.raises(ConfigError, match="'nobody/S/o', which the test does not give"):
        testing.run(handler)


def test_what_nothing_called_is_told() -> None:
    run = testing.run(look, children={"wiki/S/ask": "here", "mail/S/ask": "here", "old/S/ask": "here"})
    assert (run.state, run.uncalled) == ("succeeded", ["old/S/ask"])


@pytest.mark.parametrize("value", [7, {"name": "a"}, None])
def test_an_input_that_is_not_of_the_type_is_refused_as_the_mesh_does(value: Any) -> None:
    with pytest.raises(HandlerError, match="the input cannot be read: ") as caught:
        testing.run(take, value)
    assert caught.value.type is HandlerErrorType.BAD_REQUEST


def test_an_input_is_what_comes_over_the_wire() -> None:
    run = testing.run(take, {"name": "a", "parts": [1]})
    assert (run.result, run.attempts) == ([1, 0], 2)


def test_an_error_of_the_code_is_raised_alone() -> None:
    @mesh.durable
    async def handler(ctx: mesh.Context) -> None:
        raise ZeroDivisionError

    def shown() -> str:
        try:
            testing.run(handler)
        except ZeroDivisionError as error:
            return "".join(traceback.format_exception(error))
        return ""

    async def within_a_loop() -> str:
        return shown()

    for text in (shown(), asyncio.run(within_a_loop())):
        assert "ZeroDivisionError" in text
        assert "no running event loop" not in text


def test_a_mismatch_is_raised_as_what_it_is() -> None:
    @mesh.durable
    async def handler(ctx: mesh.Context) -> None:
        await ctx.step("fetch", str.upper, f"attempt {ctx.attempt}")
        await ctx.sleep(60)

    with pytest.raises(mesh.JournalMismatch, match="the code now asks for") as caught:
        testing.run(handler)
    assert caught.value.key == "fetch#1"
