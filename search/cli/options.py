"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.cli.completing import complete_configs, complete_runs

ConfigArgument = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="The YAML file of a search.", autocompletion=complete_configs)
]
RunArgument = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A run directory, such as runs/quickstart.", autocompletion=complete_runs),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a value of the config; may be repeated."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")]
MixOption = Annotated[
    str | None,
    typer.Option("--mix", metavar="NAME=WEIGHT,…", help="How much each skill counts, such as math=0.7,safety=0.3."),
]
AtLeastOption = Annotated[
    list[str] | None,
    typer.Option("--at-least", metavar="NAME=VALUE", help="A bound that the score must be shown to keep; repeatable."),
]
MaximizeOption = Annotated[str | None, typer.Option("--maximize", metavar="NAME", help="The one skill to push.")]
ConfidenceOption = Annotated[
    float,
    typer.Option("--confidence", metavar="P", help="Of --at-least: one-sided; 0.5 takes the score as it stands."),
]
