"""``paretomerge zoo``: what it prints, and that a user's mistake is a ZooError."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from typer.testing import CliRunner

import zoo
from search.cli import zoo as command
from zoo import ZooEvent, cache


def invoke(*arguments):
    return CliRunner().invoke(command.app, list(arguments))


def test_build_prints_the_folder_and_nothing_else_on_standard_output(nano_zoo):
    result = invoke("build", "skills-nano")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{nano_zoo}\n"


def test_path_prints_a_members_folder(nano_zoo):
    result = invoke("path", "zoo://skills-nano/data/string")
    assert result.stdout == f"{nano_zoo / 'data' / 'string'}\n"


def test_list_names_families_members_and_what_is_built(nano_zoo, monkeypatch, tmp_path):
    text = invoke("list").stdout
    nano = text[text.index("skills-nano:") :]
    assert "members: base, string, language, refusal, math, data, data/string" in nano
    assert "built seeds: 0" in nano
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path))
    assert "none; build one with: paretomerge zoo build skills-nano" in invoke("list").stdout


@pytest.mark.slow
def test_scores_prints_a_markdown_table(nano_zoo):
    lines = invoke("scores", "skills-nano", "--split", "search").stdout.splitlines()
    assert lines[0] == "Per cent of items answered right; search split, seed 0."
    assert lines[2] == "| skills-nano | string | language | refusal | math |"
    rows = {line.split("|")[1].strip(): [float(cell) for cell in line.split("|")[2:-1]] for line in lines[4:]}
    assert list(rows) == ["base", "string", "language", "refusal", "math"]
    assert all(0 <= value <= 100 for row in rows.values() for value in row)
    assert rows["language"][1] > 85 > rows["base"][1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "zebras"), "no model family"),
        (("path", "zoo://skills-nano/../x"), "not a reference"),
        (("scores", "zebras"), "no model family"),
        (("scores", "skills-nano", "--seed", "4711"), "zoo build skills-nano --seed 4711"),
        (("scores", "skills-nano", "--split", "train"), "search, selection, holdout; found 'train'"),
    ],
)
def test_a_users_mistake_is_a_zoo_error(arguments, message):
    result = invoke(*arguments)
    assert isinstance(result.exception, zoo.ZooError)
    assert message in str(result.exception)


EVENTS = [
    ZooEvent("waiting"),
    ZooEvent("reused", "data"),
    *(ZooEvent("training", "base", step, 500, 1.25, step / 10) for step in range(25, 501, 25)),
    ZooEvent("finished", "base", seconds=50.0),
]


def test_without_a_terminal_there_are_a_few_plain_lines(capsys):
    listener = command.plain_lines()
    for event in EVENTS:
        listener(event)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "another build of this family is running; waiting for it"
    assert lines[1] == "data: there already"
    assert lines[2] == "base: step 100 of 500, loss 1.250, 10 s"
    assert lines[-1] == "base: done in 50 s"
    assert len(lines) == 8


def test_a_part_without_a_loss_shows_none(capsys):
    command.plain_lines()(ZooEvent("training", "data", 20, 100, seconds=3.0))
    assert capsys.readouterr().err == "data: step 20 of 100, 3 s\n"


def test_on_a_terminal_there_are_bars():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with command.bars(console) as listener:
        for event in EVENTS:
            listener(event)
    text = console.file.getvalue()
    assert "waiting for it" in text
    assert "there already" in text
    assert "done in 50 s" in text
