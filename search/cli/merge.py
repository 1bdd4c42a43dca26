"""``paretomerge merge``: one merge, from a config or a recipe to a model folder."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def merge(
    config: Annotated[
        Path,
        typer.Argument(
            help="A merge in YAML: a short one, mergekit's, or an export's recipe.yaml.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The new model folder; may not hold anything yet.", show_default=False)],
    max_shard_size: Annotated[str, typer.Option(help="Largest weight file, such as 500MB or 2GB.")] = "2GB",
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Whose vocabulary, where the models' differ: base, union, or a folder with a tokenizer."),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="For a recipe by a calibrated method: YAML with the data it was made with, as a merge config's "
            "`calibration`; without it, what the cache still has is used."
        ),
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Also read pickled weights (.bin), by torch's weights-only loader.")
    ] = False,
) -> None:
    """Merge models as a config or a recipe says, and write the result as a Hugging Face model folder."""
    size = parse_size(max_shard_size)
    from merging.configs import read_config
    from merging.export import export
    from search.errors import SearchError
    from search.merge_inputs import MergeInputs, wants_file
    from search.report.terminal import visible

    inputs = MergeInputs(config, partial(typer.echo, err=True), calibration)
    recipe, sources = read_config(
        config,
        resolve=_zoo,
        tokenizer=tokenizer,
        allow_pickle=allow_pickle,
        calibrate=inputs.calibrate,
        read_inputs=inputs.read,
    )
    for note in sources.notes:
        typer.echo(visible(f"note: {note}"), err=True)
    methods = sorted({each.method for each in (*recipe.groups.values(), *recipe.tensors.values())})
    if calibration is not None and not wants_file(recipe, config):
        raise SearchError(
            f"--calibration {calibration}: it is for recipes that were made with calibration data, and {config} is "
            "none (a merge config names its data itself); leave it out"
        )
    collected = inputs.calibrate(recipe, sources, recipe.dtype)
    folder = export(recipe, sources, out, max_shard_size=size, calibration=collected)
    typer.echo(
        visible(
            f"merged {len(sources.tensors)} tensors of {len(recipe.sources)} models by {', '.join(methods)}: {folder}"
        )
    )


def parse_size(text: str) -> int:
    """Bytes of a size such as ``500MB``, ``2 GB`` or ``1000``; units are powers of 1000.

    Raises:
        MergingError: not a size.
    """
    from merging.recipe import MergingError

    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", text, re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise MergingError(f"expected a size such as 500MB or 2GB, found {text!r}")
    return size


def _zoo(reference: str) -> Path | None:
    """The folder of a ``zoo://`` model, made if it is not there yet; None for other references."""
    import zoo

    return zoo.resolve(reference) if zoo.is_reference(reference) else None
