"""The commands of ``paretomerge``: a name, a panel and a line each, and the module that is imported when one is called.

``--help`` and completion list all commands without importing any of them: rich's, pydantic's and torch's import times
are paid by the command that needs them. A test pins each line to the docstring of its command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from rich.panel import Panel


class Declared(NamedTuple):
    """What is known of a command before its module is imported.

    Attributes:
        name: of the command; its module is ``search.cli.NAME``.
        panel: under which heading ``--help`` lists it.
        line: how its docstring begins.
    """

    name: str
    panel: str
    line: str


COMMANDS = (
    Declared("init", "Start", "Write a config for your models and data, from a preset."),
    Declared("check", "Start", "Check a config, its models, its data and this machine"),
    Declared("plan", "Start", "What a search will take: time, memory and disk"),
    Declared("diagnose", "Start", "Can these models merge at all? A verdict in words"),
    Declared("power", "Start", "What difference the config's items can resolve"),
    Declared("run", "Run", "Search. The same command resumes"),
    Declared("watch", "Run", "Watch a search from another shell"),
    Declared("status", "Run", "Where a run stands: its front, the chosen candidate"),
    Declared("dashboard", "Run", "Show a run in optuna-dashboard, on this machine alone."),
    Declared("report", "Look", "Write the run's report: one HTML file that works offline."),
    Declared("choose", "Look", "Choose a merge for another mix of skills, with no new search"),
    Declared("export", "Ship", "Write a candidate as a Hugging Face model folder"),
    Declared("merge", "Single merges", "Merge models as a config or a recipe says"),
    Declared("evaluate", "Single merges", "Score a model with the evaluators of a config."),
    Declared("convert", "Single merges", "Write pickled weights (.bin) as safetensors"),
    Declared("vector", "Task vectors", "Task vectors: extract, keep, verify, exchange, equip."),
    Declared("ls", "Find out", "List methods, evaluators, optimizers, presets or runs."),
    Declared("explain", "Find out", "Explain a method, an evaluator, a key of a config, a word."),
    Declared("schema", "Find out", "Print the JSON schema of a search's config, for editors."),
    Declared("doctor", "Machine", "Look over this machine, or verify all that a run has stored."),
    Declared("zoo", "Machine", "Small model families that are really trained here"),
)


class Commands(TyperGroup):
    """A group that knows its commands by name, and imports one when it is called or asked for its own help."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for each in COMMANDS:
            self.commands[each.name] = TyperCommand(each.name, help=each.line, rich_help_panel=each.panel)
        self._loaded: dict[str, Any] = {}
        self._only_names = False

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command itself, its module imported; None if there is none of that name."""
        if cmd_name not in self.commands or self._only_names:
            return self.commands.get(cmd_name)
        if cmd_name not in self._loaded:
            self._loaded[cmd_name] = load(cmd_name)
        return self._loaded[cmd_name]

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Commands that begin so, from what is declared, and the program's own options."""
        self._only_names = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self._only_names = False

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help of the program. Typer's own would import every command, and rich's Markdown for one line each."""
        from rich.console import Console
        from rich.text import Text

        console = Console(highlight=False)
        console.print()
        console.print(Text.assemble(" ", ("Usage: ", "yellow"), self.get_usage(ctx).removeprefix("Usage: ")))
        console.print(Text(f"\n {self.help}\n"))
        panels: dict[str, list[tuple[str, str]]] = {}
        for each in COMMANDS:
            panels.setdefault(each.panel, []).append((each.name, each.line.rstrip(".") + "."))
        records = [parameter.get_help_record(ctx) for parameter in self.get_params(ctx)]
        panels["Options"] = [each for each in records if each is not None]
        width = max(len(each.name) for each in COMMANDS)
        for title, rows in panels.items():
            console.print(_panel(title, rows, width if title != "Options" else None))
        console.print(Text(f" {ctx.info_name} COMMAND --help says more of one.\n", "dim"))


def load(name: str) -> Any:
    """Import a command's module and make the command.

    Raises:
        ImportError: the module cannot be imported; a defect, or a broken installation.
    """
    from importlib import import_module

    module = import_module(f"search.cli.{name}")
    if isinstance(getattr(module, "app", None), typer.Typer):  # commands of its own
        command = _flowing(typer.main.get_command(module.app))
        command.name = name
        return command
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    alone.command(name)(getattr(module, name))
    return _flowing(typer.main.get_command(alone))


def _flowing(command: Any) -> Any:
    """A command whose help is wrapped to the terminal: typer keeps the line ends of a docstring's later paragraphs."""
    from inspect import cleandoc

    paragraphs = cleandoc(command.help or "").split("\n\n")
    command.help = "\n\n".join(" ".join(each.split()) for each in paragraphs)
    for each in getattr(command, "commands", {}).values():
        _flowing(each)
    return command


def _panel(title: str, rows: list[tuple[str, str]], width: int | None) -> Panel:
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(style="bold cyan", no_wrap=True, width=width)
    table.add_column(ratio=1)
    for name, line in rows:
        table.add_row(Text(name), Text(line))
    return Panel(table, title=title, title_align="left", border_style="dim")
