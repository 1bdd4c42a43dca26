"""``paretomerge diagnose``: can these models merge at all?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from search.cli.completing import complete_configs
from search.cli.options import JsonOption, SetOption


def diagnose(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="BASE EXPERT… | CONFIG | RUN",
            help="The base and its fine-tunes, each a model folder, an adapter's, or a zoo://, vector:// or hub:// "
            "reference; NAME=FOLDER gives an expert a name. Or the YAML file of a search, or a run.",
            autocompletion=complete_configs,
            show_default=False,
        ),
    ],
    density: Annotated[
        float,
        typer.Option("--density", metavar="SHARE", help="Of the elements: between the largest, conflicts are counted."),
    ] = 0.2,
    rank: Annotated[int, typer.Option("--rank", metavar="K", min=1, help="Leading directions that are compared.")] = 16,
    spectra: Annotated[
        Literal["all", "sampled", "off"],
        typer.Option("--spectra", help="Which matrices' singular values are looked at: most of the time goes there."),
    ] = "all",
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write a page with heat maps: layers × modules.")
    ] = None,
    map: Annotated[
        Literal["sign_conflict", "cosine", "overlap", "norm_ratio", "effective_rank"] | None,
        typer.Option("--map", help="What the map on the terminal shows.", show_default=False),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="[NAME=]FILE",
            help="Texts to predict, as JSON Lines: text, or prompt and answer. For all experts, or one; repeatable.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="CONFIG", help="Score with this search's evaluators on its search split, instead."
        ),
    ] = None,
    curves: Annotated[
        str | None,
        typer.Option(
            "--curves",
            metavar="NAMES",
            help="With data: lambda, barrier, redundancy, activations; with commas between them, or all. The first "
            "three where data are given.",
        ),
    ] = None,
    items: Annotated[
        int, typer.Option("--items", metavar="N", min=1, help="Of every data file or evaluator, at most.")
    ] = 64,
    device: Annotated[
        str | None, typer.Option("--device", help="Where models are scored: cpu, cuda; the config's, or cpu.")
    ] = None,
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", help="Whose vocabulary, where the models' differ: base, union, or a folder.")
    ] = "base",
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Also read pickled weights (.bin), by torch's weights-only loader.")
    ] = False,
    set: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Can these models merge at all? A verdict in words, with its reasons.

    Looks at the weights alone, each read once, a tensor of every model at a time: how long the task vectors are,
    whether they point in the same directions, pull at the same weights, and where. With data, it also scores merges.
    """
    from search.diagnosis.command import Asked, run

    asked = Asked(
        models=tuple(models),
        overrides=tuple(set or ()),
        density=density,
        rank=rank,
        spectra=spectra,
        data=tuple(data or ()),
        config=config,
        curves=curves,
        items=items,
        device=device,
        tokenizer=tokenizer,
        allow_pickle=allow_pickle,
        html=html,
        map=map,
        json=json,
    )
    raise typer.Exit(run(asked))
