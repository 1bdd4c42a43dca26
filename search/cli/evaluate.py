"""``paretomerge evaluate``."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated

import typer

from search.cli.options import JsonOption, SetOption


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, or a zoo:// or hub:// reference.")],
    config: Annotated[str, typer.Option("--config", metavar="CONFIG", help="Whose evaluators to use.")],
    split: Annotated[str, typer.Option("--split", help="search, selection or holdout.")] = "search",
    set: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Score a model with the evaluators of a config."""
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from evaluators.contract import SPLITS
    from merging.hub_models import downloading
    from search.config import load_config
    from search.errors import SearchError
    from search.evaluate import counted, evaluate_model
    from search.report.console import print_json

    if split not in SPLITS:
        raise SearchError(f"--split {split}: expected one of {', '.join(SPLITS)}")
    loaded = load_config(Path(config), set or [])
    with downloading(partial(print, file=sys.stderr, flush=True)):
        path = loaded.resolve(model)
    evaluation, intervals = evaluate_model(loaded, path, split)
    if json:
        counts = {name: len(scores) for name, scores in evaluation.scores.items()}
        print_json(
            {
                "model": model, "split": split, "values": evaluation.values, "standard_errors": evaluation.errors,
                "intervals": {name: [each.low, each.high] for name, each in intervals.items()}, "items": counts,
                "seconds": evaluation.seconds,
            }
        )  # fmt: skip
        return
    table = Table(title=Text(f"{model} on the {split} split"), title_justify="left")
    table.add_column("metric", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("items", justify="right")
    for name, value in evaluation.values.items():
        evaluator, _, metric = name.partition(".")
        interval = f"{intervals[name].low:.3g} to {intervals[name].high:.3g}"
        table.add_row(name, f"{value:.4g}", interval, str(counted(evaluation.scores[evaluator], metric)))
    Console().print(table)
