"""``paretomerge merge``: one merge, from a config or a recipe to a model folder."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search.cli.export import (
    LoraOption,
    LoraRestOption,
    ParentOption,
    TokenizerOption,
    check_lora,
    parse_parents,
    tell_lora,
    write_lora_folder,
)
from search.cli.options import JsonOption

if TYPE_CHECKING:
    from merging.recipe import Recipe
    from search.export import Exported

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
    tokenizer_from: TokenizerOption = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="For a recipe by a calibrated method: YAML with the data it was made with, as a merge config's "
            "`calibration`; without it, what the cache still has is used."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="ALIAS=FOLDER", help="Where a recipe's model lies here; repeatable."),
    ] = None,
    lora: LoraOption = None,
    lora_rest: LoraRestOption = None,
    parent: ParentOption = None,
    shareable: Annotated[
        bool,
        typer.Option(
            "--shareable",
            help="Name models by their id on the Hub or their folder's name in recipe.yaml and mergekit.yaml, not by "
            "their paths here; the model card never has paths.",
        ),
    ] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Also read pickled weights (.bin), by torch's weights-only loader.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Merge models as a config or a recipe says, and write the result as a Hugging Face model folder.

    With --lora, as a PEFT adapter instead: the difference to the base, as products of a rank, with what that loses.
    """
    size = parse_size(max_shard_size)
    check_lora(lora, lora_rest)
    from merging.configs import read_config
    from merging.hub_models import downloading
    from merging.restack import for_recipe
    from search.errors import SearchError
    from search.export import ExportOptions, Work, write_export
    from search.merge_inputs import MergeInputs, wants_file
    from search.report.terminal import visible

    inputs = MergeInputs(config, partial(typer.echo, err=True), calibration)
    finder = _Finder(config, model or [])
    with downloading(partial(typer.echo, err=True)):
        recipe, sources = read_config(
            config,
            resolve=finder,
            tokenizer=tokenizer,
            allow_pickle=allow_pickle,
            calibrate=inputs.calibrate,
            read_inputs=inputs.read,
        )
    for note in sources.notes:
        typer.echo(visible(f"note: {note}"), err=True)
    if calibration is not None and not wants_file(recipe, config):
        raise SearchError(
            f"--calibration {calibration}: it is for recipes that were made with calibration data, and {config} is "
            "none (a merge config names its data itself); leave it out"
        )
    collected = inputs.calibrate(recipe, sources, recipe.dtype)
    bound = sources.bind(recipe)
    folders = {alias: sources.checkpoints[bound[alias]].path for alias in recipe.sources if alias in bound}
    work = Work(
        recipe, sources, collected, finder.references(folders), folders,
        max_shard_size=size, keep_paths=not shareable, title=out.name,
    )  # fmt: skip
    options = ExportOptions(tokenizer_from, parse_parents(parent))
    if lora is not None:
        tell_lora(work, write_lora_folder(work, out, lora, options, lora_rest), json)
        return
    _tell(recipe, write_export(work, out, options), len(for_recipe(sources, recipe).tensors), json)


def _tell(recipe: Recipe, done: Exported, tensors: int, json: bool) -> None:
    from search.report.console import print_json
    from search.report.terminal import visible

    if json:
        print_json(done.as_data())
        return
    for warning in done.warnings:
        typer.echo(visible(f"note: {warning}"), err=True)
    methods = sorted({each.method for each in (*recipe.groups.values(), *recipe.tensors.values())})
    typer.echo(
        visible(f"merged {tensors} tensors of {len(recipe.sources)} models by {', '.join(methods)}: {done.folder}")
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


class _Finder:
    """Finds models that are named in another way than by their folder: given on the command line, of the zoo, or in the
    Hub's own cache on this machine. Nothing is downloaded but what ``hub://`` names.

    Args:
        config: the merge; ``--model`` is for recipes.
        given: ALIAS=FOLDER.
    """

    def __init__(self, config: Path, given: list[str]) -> None:
        self._given = _given(config, given) if given else {}
        self._found: dict[Path, str] = {}

    def __call__(self, reference: str) -> Path | None:
        from search.references import resolve

        if (found := self._given.get(reference)) is not None:
            return found  # the folder's own name is what strangers are told
        found = resolve(reference) or _cached(reference)
        if found is not None:
            self._found[found] = reference
        return found

    def references(self, folders: dict[str, Path]) -> dict[str, str]:
        """alias -> how its model was named."""
        return {alias: self._found.get(folder, str(folder)) for alias, folder in folders.items()}


def _given(config: Path, given: list[str]) -> dict[str, Path]:
    """What the recipe calls a model -> its folder here."""
    from merging.configs import is_recipe, load_yaml, read_text
    from merging.recipe import Recipe
    from search.errors import SearchError

    text = read_text(config)
    if not is_recipe(load_yaml(text, config)):
        raise SearchError(f"--model: it is for recipes, and {config} is a merge config; change the paths in it instead")
    recipe = Recipe.from_yaml(text)
    found = {}
    for each in given:
        alias, sign, folder = each.partition("=")
        if not sign or not folder or alias not in recipe.sources:
            raise SearchError(
                f"--model {each}: expected ALIAS=FOLDER with an alias of the recipe ({', '.join(recipe.sources)})"
            )
        if not Path(folder).is_dir():
            raise SearchError(f"--model {each}: expected a model folder, found none at {folder}")
        found[recipe.sources[alias].path] = Path(folder)
    return found


def _cached(reference: str) -> Path | None:
    """The folder of a Hub id in the Hub's cache on this machine; None where it is not there."""
    from search.card.parents import is_hub_id

    if not is_hub_id(reference) or Path(reference).exists():
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(reference, "config.json")
    return Path(found).parent if isinstance(found, str) else None
