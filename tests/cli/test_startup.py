"""Start-up: the help of the program imports no command, and says of each what its docstring says."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from search.cli import app, run_command
from search.cli.commands import COMMANDS

HEAVY = frozenset(
    (
        "torch", "transformers", "optuna", "numpy", "scipy", "pydantic", "yaml", "plotly", "matplotlib",
        "huggingface_hub", "datasets", "tokenizers", "safetensors", "sqlite3", "psutil", "plotext",
    )
)  # fmt: skip
PROGRAM = "import sys; from search.cli import main; sys.argv[0] = 'paretomerge'; main()"
LIST = (
    "import json, sys\nfrom search.cli import run_command\ncode = run_command({arguments!r})\n"
    "print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)"
)


def modules_after(*arguments: str, **environment: str) -> set[str]:
    code = LIST.format(arguments=list(arguments))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    exit_code, modules = json.loads(done.stderr.splitlines()[-1])
    assert exit_code == 0
    return set(modules)


@pytest.fixture(scope="module")
def after_help() -> set[str]:
    return modules_after("--help")


def test_help_imports_nothing_heavy_and_no_command(after_help: set[str]) -> None:
    assert {name.partition(".")[0] for name in after_help} & HEAVY == set()
    commands = {f"search.cli.{each.name}" for each in COMMANDS}
    assert after_help & commands == set()
    # what makes rich slow to import, and help needs none of
    assert after_help & {"rich.markdown", "rich.traceback", "rich.syntax", "typer.rich_utils"} == set()


def test_the_module_list_can_fail() -> None:
    """The same look at a command that does import, so that an empty list above means something."""
    found = modules_after("schema")
    assert "search.cli.schema" in found


def test_a_commands_help_imports_that_command_alone() -> None:
    found = modules_after("run", "--help")
    assert "search.cli.run" in found and "search.cli.plan" not in found
    assert {name.partition(".")[0] for name in found} & {"torch", "transformers", "optuna"} == set()


@pytest.mark.parametrize("declared", COMMANDS, ids=lambda each: each.name)
def test_each_line_of_the_help_is_how_the_commands_docstring_begins(declared) -> None:
    module = import_module(f"search.cli.{declared.name}")
    if isinstance(getattr(module, "app", None), typer.Typer):
        text = str(module.app.info.help)
    else:
        text = inspect.getdoc(getattr(module, declared.name)) or ""
    assert " ".join(text.split()).startswith(declared.line.rstrip("."))


def test_every_module_of_a_command_is_declared() -> None:
    """A new file with a function of its own name that nobody can call is a mistake."""
    import search.cli

    (folder,) = search.cli.__path__
    names = {each.stem for each in Path(folder).glob("*.py")}
    known = {each.name for each in COMMANDS}
    for name in names - known - {"__init__"}:
        module = import_module(f"search.cli.{name}")
        assert not callable(getattr(module, name, None)), f"{name} is no command of `paretomerge --help`"
    assert known <= names


SAYS_NO_FACTS = {
    "run": "--display json prints its events",
    "schema": "is JSON itself",
    "report": "writes a page",
    "dashboard": "serves pages",
}


def options_of(command: Any) -> Iterator[tuple[str, set[str]]]:
    """Every command below a group -> its options."""
    for name in getattr(command, "commands", {}):
        loaded = command.get_command(None, name)
        if hasattr(loaded, "commands"):
            yield from ((f"{name} {inner}", options) for inner, options in options_of(loaded))
        else:
            yield name, {option for parameter in loaded.params for option in parameter.opts}


def test_every_command_that_prints_facts_prints_them_for_machines_too() -> None:
    without = {name for name, options in options_of(typer.main.get_command(app)) if "--json" not in options}
    assert without <= set(SAYS_NO_FACTS)


def test_help_fits_eighty_columns_and_lists_every_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_command(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for each in COMMANDS:
        (line,) = (line for line in lines if line.split()[1:2] == [each.name])
        assert each.line.rstrip(".") in line  # no line of the help is wrapped
    for panel in dict.fromkeys(each.panel for each in COMMANDS):
        assert any(f"─ {panel} ─" in line for line in lines)


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]], ids=" ".join)
def test_help_in_every_way_of_asking(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(arguments) == (0 if arguments else 2)
    captured = capsys.readouterr()
    assert "Usage: paretomerge" in captured.out + captured.err


def test_a_commands_help_is_wrapped_to_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line ends of a docstring are not those of the terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    assert run_command(["export", "--help"]) == 0
    said = capsys.readouterr().out
    lines = [line.strip() for line in said.partition("Arguments")[0].splitlines() if line.strip()]
    assert " equivalent, README.md (the model card) and front.png." in said and max(map(len, lines)) <= 80
    assert typer.main.get_command(app).get_command(None, "init").help.count("\n\n") == 1


def test_help_works_on_a_terminal_that_knows_ascii_only() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C", "TERM": "dumb"}
    done = subprocess.run([sys.executable, "-c", PROGRAM, "--help"], capture_output=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"dashboard" in done.stdout and max(done.stdout) < 128


def test_a_mistyped_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["exprot"]) == 2
    assert "export" in capsys.readouterr().err


def test_the_loaded_command_is_the_modules_own() -> None:
    group = typer.main.get_command(app)
    command = group.get_command(None, "schema")
    assert command.name == "schema" and {"out", "plug_ins"} <= {each.name for each in command.params}
    assert group.get_command(None, "nothing") is None
    zoo = group.get_command(None, "zoo")
    assert set(zoo.commands) == {"build", "list", "path", "scores"}
