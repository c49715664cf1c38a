"""Runs the demo: sets the stage, plays the acts, prints timeline and verdict, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Final

from rich.markup import escape

import mesh
from gateway.demo.acts import Demo
from gateway.demo.fleet import Fleet
from gateway.demo.stage import Stage, Trouble
from gateway.demo.story import Story
from gateway.demo.timeline import draw
from gateway.demo.verdict import Claim
from mesh.clock import now_ms, to_rfc3339

OPENING: Final = (
    "[bold]Mesh demo[/]: two teams, four agents, real work. Two agents and the gateway are killed while it runs.",
    "[dim]Team quality runs checks (lints, runs doctests). Team research runs retrieval (searches Python's[/]",
    "[dim]documentation), reviewer, which calls both, and coder, which mends a package in durable steps.[/]",
    "",
)


def run(*, data: Path | None, tree: str, as_json: bool) -> bool:
    """Play the demo; whether every claim held. Prints the story, or with `as_json` one JSON object at the end.

    `data`: keep everything in a new directory below it.
    """
    story = Story(quiet=as_json)
    if data is None:
        directory = Path(tempfile.mkdtemp(prefix="mesh-demo-"))
    else:
        directory = data.expanduser().resolve() / to_rfc3339(story.begun_ms)[:19].replace(":", "-")
    try:
        return asyncio.run(_play(directory, story, tree, as_json=as_json, kept=None if data is None else directory))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        if data is None:
            shutil.rmtree(directory, ignore_errors=True)


async def _play(directory: Path, story: Story, tree: str, *, as_json: bool, kept: Path | None) -> bool:
    _end_on_sigterm()
    logs = directory / "logs"
    logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    for line in OPENING:
        story.say(line)
    claims: list[Claim] = []
    with Fleet(logs) as fleet:
        demo = Demo(Stage(directory, story, fleet), story, tree)
        try:
            claims = await demo.play()
        except (Trouble, mesh.MeshError) as trouble:
            story.step("trouble", str(trouble))
            for process in fleet.processes:
                story.say(f"[dim]{process.name}:[/]\n{process.tail()}")
    ended_ms = now_ms()
    held = bool(claims) and all(claim.held for claim in claims)
    if as_json:
        _print_json(story, demo, claims, held=held, ended_ms=ended_ms)
    else:
        _print_verdict(story, demo, claims, held=held, ended_ms=ended_ms, kept=kept)
    return held


def _end_on_sigterm() -> None:
    """SIGTERM and a closed terminal end the demo like Ctrl-C: everything is cleaned up."""
    task = asyncio.current_task()
    if task is not None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)


def _print_verdict(
    story: Story, demo: Demo, claims: list[Claim], *, held: bool, ended_ms: int, kept: Path | None
) -> None:
    if claims:
        story.say()
        for line in draw(demo.rows(), story.begun_ms, ended_ms, columns=story.console.width, unicode=story.unicode):
            story.say(line)
        story.say()
        for claim in claims:
            mark = "[green]held[/]" if claim.held else "[bold red]BROKEN[/]"
            story.hang(mark, f"{claim.text} [dim]({claim.evidence})[/]", 8)
    story.say()
    seconds = (ended_ms - story.begun_ms) / 1000
    story.say(f"[bold {'green' if held else 'red'}]{'All held' if held else 'NOT all held'}[/], {seconds:.1f} s.")
    if kept is not None:
        story.say(f"Everything is kept: `mesh dev --data {escape(str(kept / 'data'))}` opens it again.")


def _print_json(story: Story, demo: Demo, claims: list[Claim], *, held: bool, ended_ms: int) -> None:
    print(
        json.dumps(
            {
                "ok": held,
                "seconds": (ended_ms - story.begun_ms) / 1000,
                "claims": [claim._asdict() for claim in claims],
                "story": [step._asdict() for step in story.steps],
                "operations": demo.histories,
            }
        )
    )
