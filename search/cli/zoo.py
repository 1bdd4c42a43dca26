"""``paretomerge zoo``: small model families that are really trained."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from search.cli.completing import complete_families
from search.cli.options import JsonOption

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from zoo.builder import Listener, ZooEvent

app = typer.Typer(
    help="Small model families that are really trained here, to try things on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

FamilyArgument = Annotated[
    str,
    typer.Argument(
        metavar="FAMILY", help="A family, as `paretomerge zoo list` names it.", autocompletion=complete_families
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of initial weights and training data.")]


@app.command()
def build(family: FamilyArgument, seed: SeedOption = 0, json: JsonOption = False) -> None:
    """Train what is missing of a family: a base and its experts. Killed or stopped, the same command goes on."""
    import zoo

    with progress_display() as listener:
        folder = zoo.build(family, seed, progress=listener)
    if json:
        _print_json({"family": family, "seed": seed, "folder": str(folder)})
    else:
        print(folder)


@app.command(name="list")
def list_families(json: JsonOption = False) -> None:
    """The families, what they have, and which are built."""
    from zoo import families
    from zoo.builder import missing
    from zoo.cache import seed_folder
    from zoo.references import members_of

    rows: list[tuple[str, str, list[str], list[str]]] = []
    for name, spec in families().items():
        folders = sorted(seed_folder(spec, 0).parent.glob("seed-*"))
        seeds = [folder.name.removeprefix("seed-") for folder in folders if not missing(folder, spec)]
        rows.append((name, spec.summary, [*members_of(spec)], seeds))
    if json:
        _print_json([dict(zip(("family", "summary", "members", "seeds"), each, strict=True)) for each in rows])
        return
    for name, summary, members, seeds in rows:
        print(f"{name}: {summary}")
        print(f"  members: {', '.join(members)}")
        print(f"  built seeds: {', '.join(seeds) or f'none; build one with: paretomerge zoo build {name}'}")


@app.command()
def path(
    reference: Annotated[str, typer.Argument(metavar="REF", help="Such as zoo://skills/base or zoo://skills@1/data.")],
    json: JsonOption = False,
) -> None:
    """The folder that a zoo:// reference names."""
    from zoo import resolve

    folder = resolve(reference)
    if json:
        _print_json({"reference": reference, "folder": str(folder)})
    else:
        print(folder)


@app.command()
def scores(
    family: FamilyArgument,
    seed: SeedOption = 0,
    split: Annotated[str, typer.Option("--split", help="search, selection or holdout.")] = "holdout",
    json: JsonOption = False,
) -> None:
    """What every member of a built family can do on a split, in per cent, as a Markdown table."""
    from zoo import resolve
    from zoo.contract import ZooError
    from zoo.references import parse
    from zoo.vocabulary import EVALUATION_SPLITS

    if split not in EVALUATION_SPLITS:
        raise ZooError(f"The splits are {', '.join(EVALUATION_SPLITS)}; found {split!r}.")
    spec = parse(f"zoo://{family}/base").family
    folder = resolve(f"zoo://{spec.name}@{seed}/base").parent
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # Whisper remarks on how it calls itself
    # Models this small gain nothing from a second thread, and lose much on a busy machine.
    torch.set_num_threads(1)
    if json:
        found = {member: {**spec.scores(folder, member, split)} for member in spec.members}
        facts = {"family": spec.name, "seed": seed, "split": split, "measure": spec.measure, "scores": found}
        _print_json(facts)
        return
    print(f"Per cent of {spec.measure}; {split} split, seed {seed}.\n")
    for member in spec.members:
        row = spec.scores(folder, member, split)
        if member == spec.members[0]:
            print(f"| {spec.name} | {' | '.join(row)} |")
            print(f"|---|{'---|' * len(row)}")
        print(f"| {member} | {' | '.join(f'{100 * value:.1f}' for value in row.values())} |")


def _print_json(facts: object) -> None:
    from search.report.console import print_json

    print_json(facts)


@contextmanager
def progress_display() -> Iterator[Listener]:
    """Progress bars on a terminal, a few plain lines elsewhere; on standard error in both cases."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with bars(console) as listener:
            yield listener
    else:
        yield plain_lines()


@contextmanager
def bars(console: Console) -> Iterator[Listener]:
    """One progress bar a member."""
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(),
        TextColumn("{task.fields[note]:22}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console) as progress:

        def show(event: ZooEvent) -> None:
            if event.kind == "waiting":
                progress.console.print(_WAITING)
                return
            if event.member not in tasks:
                tasks[event.member] = progress.add_task(event.member, total=event.steps or 1, note="")
            task = tasks[event.member]
            if event.kind == "training":
                progress.update(task, completed=event.step, note=_loss(event))
            else:
                note = "there already" if event.kind == "reused" else f"done in {event.seconds:.0f} s"
                progress.update(task, completed=event.steps or progress.tasks[task].total, note=note)

        yield show


def plain_lines() -> Listener:
    """A line for every fifth of a member's training, and when it is done."""
    reported: dict[str, int] = {}

    def show(event: ZooEvent) -> None:
        if event.kind == "waiting":
            typer.echo(_WAITING, err=True)
        elif event.kind == "reused":
            typer.echo(f"{event.member}: there already", err=True)
        elif event.kind == "finished":
            typer.echo(f"{event.member}: done in {event.seconds:.0f} s", err=True)
        elif (fifth := 5 * event.step // event.steps) > reported.get(event.member, 0):
            reported[event.member] = fifth
            progress = [f"step {event.step} of {event.steps}", _loss(event), f"{event.seconds:.0f} s"]
            typer.echo(f"{event.member}: {', '.join(filter(None, progress))}", err=True)

    return show


def _loss(event: ZooEvent) -> str:
    return "" if math.isnan(event.loss) else f"loss {event.loss:.3f}"


_WAITING = "another build of this family is running; waiting for it"
