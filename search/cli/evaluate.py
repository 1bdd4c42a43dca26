"""``paretomerge evaluate``."""

from __future__ import annotations

from typing import Annotated

import typer

from search.cli.options import JsonOption, SetOption


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, or a zoo:// reference.")],
    config: Annotated[str, typer.Option("--config", metavar="CONFIG", help="Whose evaluators to use.")],
    split: Annotated[str, typer.Option("--split", help="search, selection or holdout.")] = "search",
    set: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Score a model with the evaluators of a config."""
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from evaluators.contract import SPLITS
    from search.config import load_config
    from search.errors import SearchError
    from search.evaluate import evaluate_model
    from search.report.console import print_json

    if split not in SPLITS:
        raise SearchError(f"--split {split}: expected one of {', '.join(SPLITS)}")
    loaded = load_config(Path(config), set or [])
    evaluation = evaluate_model(loaded, loaded.resolve(model), split)
    if json:
        items = {name: len(scores) for name, scores in evaluation.scores.items()}
        print_json(
            {
                "model": model, "split": split, "values": evaluation.values, "standard_errors": evaluation.errors,
                "items": items, "seconds": evaluation.seconds,
            }
        )  # fmt: skip
        return
    table = Table(title=f"{model} on the {split} split (± half of the 95 % interval)", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("items", justify="right")
    for name, value in evaluation.values.items():
        scores = evaluation.scores[name.partition(".")[0]]
        table.add_row(name, f"{value:.4g} ± {1.96 * evaluation.errors[name]:.2g}", str(len(scores)))
    Console().print(table)
