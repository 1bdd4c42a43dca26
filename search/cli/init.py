"""``paretomerge init``: a first config, out of a preset and a few answers."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from search.cli.completing import complete_presets
from search.cli.options import JsonOption

if TYPE_CHECKING:
    from collections.abc import Callable

    from search.new_config import Asked, Draft, Wishes

T = TypeVar("T")


def init(
    preset: Annotated[
        str | None,
        typer.Argument(
            metavar="[PRESET]",
            help="What to start from: `paretomerge ls presets`.",
            autocompletion=complete_presets,
            show_default=False,
        ),
    ] = None,
    base: Annotated[str | None, typer.Option("--base", metavar="PATH", help="The base model: a folder.")] = None,
    expert: Annotated[
        list[str] | None, typer.Option("--expert", metavar="NAME=PATH", help="A fine-tune of it; repeatable.")
    ] = None,
    evaluator: Annotated[
        list[str] | None,
        typer.Option(
            "--evaluator",
            metavar="NAME=[TYPE:]DATA",
            help="What scores a skill: a file or folder of records; the type is found from them. Repeatable. With the "
            "name of an expert it is that expert's skill.",
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="N|8h|N,8h", help="Candidates, hours, or both.")
    ] = None,
    device: Annotated[
        str, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1; cuda where there is a GPU.")
    ] = "",
    tasks: Annotated[
        str, typer.Option("--tasks", metavar="DIR", help="Of lm_eval: a folder with tasks of your own.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The config to write; my_search.yaml if left out.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")] = False,
    json: JsonOption = False,
) -> None:
    """Write a config for your models and data, from a preset.

    On a terminal it asks for what no option says. Data are looked at: which evaluator fits, and what its fields are
    called, is guessed, and printed for you to check. `paretomerge check` then accepts the config, or says what is wrong
    with models and data.
    """
    from search.new_config import Wishes, draft, parse_budget, parse_evaluator, parse_expert

    asking = sys.stdin.isatty() and sys.stdout.isatty() and not json
    experts = dict(parse_expert(each) for each in expert or [])
    evaluators = [parse_evaluator(each) for each in evaluator or []]
    candidates, hours = parse_budget(budget) if budget is not None else (None, None)
    wishes = Wishes(
        preset or "", base or "", experts, evaluators, out or Path("my_search.yaml"), candidates, hours, device, tasks
    )
    _check_free(wishes.out, force)
    if asking:
        _ask(wishes, budget is None, out is None)
        _check_free(wishes.out, force)
    else:
        _check_said(wishes)
    made = draft(wishes)
    _write(wishes.out, made)
    if json:
        from search.report.console import print_json

        print_json({"config": str(wishes.out), **made.facts, "found": made.found})
        return
    _print(wishes.out, made)


def _check_free(out: Path, force: bool) -> None:
    from search.errors import SearchError

    if out.exists() and not force:
        raise SearchError(
            f"{out} is there already, and is kept; name another file with --out, or replace it with --force"
        )


def _check_said(wishes: Wishes) -> None:
    """Without a terminal nobody can be asked."""
    from search.errors import SearchError
    from search.presets import template

    wishes.preset = wishes.preset or "two_experts"
    template(wishes.preset)  # a mistyped one is said before what is missing for it
    missing = [
        flag
        for flag, value in (
            ("--base PATH", wishes.base),
            ("--expert NAME=PATH", wishes.experts),
            ("--evaluator NAME=DATA", wishes.evaluators),
        )
        if not value
    ]
    if missing:
        raise SearchError(
            f"expected {', '.join(missing)}, found nothing, and there is no terminal to ask on. For example: "
            f"paretomerge init {wishes.preset} --base models/base --expert math=models/math --expert chat=models/chat "
            "--evaluator math=data/math --evaluator chat=data/chat"
        )


def _ask(wishes: Wishes, budget: bool, out: bool) -> None:
    """Fill in, in place, what was not said. What cannot be used is asked for again."""
    from search.model_kind import model_kind
    from search.new_config import folder_of, parse_budget, parse_expert
    from search.presets import PRESETS, template

    if not wishes.preset:
        for each in PRESETS.values():
            _tell(f"  {each.name:12} {each.summary}", hanging=15)
        wishes.preset = _answer("preset", lambda text: template(text) and text, "two_experts")
    if not wishes.base:
        wishes.base = _answer("base model (a folder)", lambda text: model_kind(folder_of(text)) and text)
    if not wishes.experts:
        _tell("experts: NAME=PATH each; an empty line ends")

        def expert(text: str) -> tuple[str, str] | None:
            if not text.strip():
                return None
            name, path = parse_expert(text.strip())
            model_kind(folder_of(path))
            return name, path

        while (found := _answer(f"expert {len(wishes.experts) + 1}", expert, "")) is not None:
            wishes.experts[found[0]] = found[1]
    if not wishes.evaluators:
        wishes.evaluators = _ask_evaluators(wishes)
    if budget:
        default = str(PRESETS[wishes.preset].candidates) if wishes.preset in PRESETS else "400"
        wishes.candidates, wishes.hours = _answer("budget (400, 8h, 400,8h)", parse_budget, default)
    if out:
        wishes.out = Path(_answer("config", str, str(wishes.out)))


def _ask_evaluators(wishes: Wishes) -> list[Asked]:
    from search.data_guess import first_records
    from search.new_config import OF_THE_HUB, parse_evaluator

    def data(name: str, text: str) -> Asked | None:
        if not text.strip():
            return None
        asked = parse_evaluator(f"{name}={text.strip()}")
        if not (asked.type == "lm_eval" or wishes.preset == "lm_eval" or asked.data.startswith(OF_THE_HUB)):
            first_records(asked.data, Path())
        return asked

    _tell("data of each skill: a file or folder of records, or TYPE:DATA; an empty line for none")
    names = [*wishes.experts, *(["safety"] if wishes.preset == "safety" and "safety" not in wishes.experts else [])]
    answers = [_answer(f"data for {name}", partial(data, name), "") for name in names]
    return [each for each in answers if each is not None]


def _answer(question: str, read: Callable[[str], T], default: str | None = None) -> T:
    """What somebody types, as ``read`` makes it; asked again where it raises one of our errors."""
    from search.errors import user_errors
    from search.report.terminal import visible

    def tried(text: str) -> T:
        try:
            return read(text)
        except user_errors() as error:
            start = "Error: "  # of the line that it is printed on
            raise typer.BadParameter(_fitted(start + visible(str(error))).removeprefix(start)) from error

    found: T = typer.prompt(question, default=default, show_default=bool(default), value_proc=tried)
    return found


def _tell(text: str, hanging: int = 2) -> None:
    typer.echo(_fitted(text, hanging))


def _fitted(text: str, hanging: int = 0) -> str:
    """Broken between words, so that no line is wider than the terminal."""
    import shutil
    import textwrap

    width = max(20, shutil.get_terminal_size().columns - 1)
    return textwrap.fill(text, width, subsequent_indent=" " * hanging, break_long_words=False, break_on_hyphens=False)


def _write(out: Path, made: Draft) -> None:
    """Write the config, once it reads as one."""
    from search.config import load_config
    from search.config_schema import committed
    from search.errors import SearchError
    from search.writing import write_whole

    def reads_as_one(beside: Path) -> None:
        try:
            load_config(beside)
        except SearchError as error:
            raise SearchError(str(error).replace(str(beside), str(out))) from error

    write_whole(out, f"# yaml-language-server: $schema={committed()}\n{made.text}", "the config", check=reads_as_one)


def _print(out: Path, made: Draft) -> None:
    from search.report.terminal import visible

    for line in made.found:
        print(visible(f"  {line}"))
    print(f"config: {out}")
    print(f"next: paretomerge check {out}")
