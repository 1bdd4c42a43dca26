"""The documentation and the command line agree: no page names what is not there, no command is without a page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from docs_pages import ROOT, Page, pages

PAGES = [page for page in pages() if page.path.name not in ("lab.md",)]  # the lab log tells of its time

# Options of other programs, in prose.
OTHERS = {"--apply_chat_template", "--system_instruction", "--fewshot_as_multiturn"}


@cache
def program() -> Any:
    """The command line as click has it."""
    import typer

    from search.cli import app

    return typer.main.get_command(app)


def described(command: Any) -> Any:
    """A command with its context, from which groups tell their own."""
    import click

    return command, click.Context(command)


def resolve(words: list[str]) -> tuple[Any, list[str], list[str]]:
    """The command that words name, its path, and the words that are left."""
    command, path = program(), []
    while words and hasattr(command, "get_command"):
        _, context = described(command)
        if words[0].startswith("-"):
            break
        inner = command.get_command(context, words[0])
        if inner is None:
            return None, [*path, words[0]], words[1:]
        command, path, words = inner, [*path, words[0]], words[1:]
    return command, path, words


@cache
def options_of(*path: str) -> frozenset[str]:
    command, _, _ = resolve(list(path))
    names = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return frozenset(names | {"--help"})


def every_command(prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    command, _, _ = resolve(list(prefix))
    if not hasattr(command, "list_commands"):
        yield prefix
        return
    _, context = described(command)
    for name in command.list_commands(context):
        yield from every_command((*prefix, name))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_that_a_page_names_exist(page: Page):
    wrong = []
    for words, line in page.commands():
        if not words or not re.fullmatch(r"[a-z-]+", words[0].rstrip("`.,")):
            continue  # `paretomerge …` in prose
        command, path, rest = resolve(words)
        if command is None:
            wrong.append(f"{page.name}:{line}: there is no `paretomerge {' '.join(path)}`")
            continue
        for word in rest:
            option = word.partition("=")[0]
            if re.fullmatch(r"-{1,2}[a-zA-Z][\w-]*", option) and option not in options_of(*path):
                wrong.append(f"{page.name}:{line}: `paretomerge {' '.join(path)}` has no option {option}")
    assert not wrong, "\n".join(wrong)


def test_options_that_stand_alone_are_somebodys():
    """``--like-this`` in prose: an option of a command, or of a script of this repository."""
    ours = set().union(*(options_of(*path) for path in every_command())) | options_of() | OTHERS
    scripts = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("benchmarks", "experiments", ".ci")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".sh", "") and path.is_file()
    )
    wrong = []
    for page in PAGES:
        for code, line in page.inline:
            option = code.split()[0].partition("=")[0].rstrip(",")
            if re.fullmatch(r"--[a-z][\w-]*", option) and option not in ours and f'"{option}"' not in scripts:
                wrong.append(f"{page.name}:{line}: {option}")
    assert not wrong, "\n".join(wrong)


def test_every_command_has_its_place_in_the_guide():
    shown = {
        tuple(path)
        for page in pages("README.md", "docs/**/*.md")
        for words, _ in page.commands()
        for command, path, _ in [resolve(words)]
        if command is not None
    }
    assert not [" ".join(path) for path in every_command() if path not in shown]


def test_the_page_of_commands_lists_all_of_them():
    text = Page(ROOT / "docs" / "commands.md").text
    assert not [path for path in every_command() if f"`{' '.join(path)}`" not in text]
    # and none that is not there
    for name in re.findall(r"^\| `([a-z -]+)` \|", text, re.M):
        command, path, rest = resolve(name.split())
        assert command is not None, path
        assert not rest


def test_exit_codes_are_the_programs():
    """0, 2, 3, 130 and no others are promised."""
    text = Page(ROOT / "docs" / "commands.md").text
    assert set(re.findall(r"^\| (\d+) \|", text, re.M)) == {"0", "2", "3", "130"}
