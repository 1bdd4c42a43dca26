"""A check finds everything at once, and says where: the file, the models, the data."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from checking import CONFIG, check, edited, found, project, write_items

from search.checks.shown import facts, paragraphs, table
from search.cli import run_command
from search.config import load_config
from search.errors import SearchError


def test_a_good_config_has_nothing_to_say_but_what_will_run(tmp_path: Path) -> None:
    checked = check(project(tmp_path), live=True)
    assert [each.placed.message for each in checked.findings] == []
    summary = facts(checked)["summary"]
    assert summary["models"]["base"]["parameters"] == sum(
        {"embed": 42 * 16, "head": 42 * 16, "blocks": 2 * (4 * 16 * 16 + 3 * 16 * 24 + 2 * 16), "norm": 16}.values()
    )
    assert summary["evaluators"]["first"]["items"] == {"search": 48, "selection": 48, "holdout": 48}
    assert [each["name"] for each in summary["stages"]] == ["baselines", "per-expert", "full"]
    assert sum(each["candidates"] for each in summary["stages"]) == 100
    assert summary["rungs"] == [80, 96]


@pytest.mark.parametrize("width", [80, pytest.param(200, marks=pytest.mark.slow)])
def test_the_summary_fits_the_terminal(tmp_path: Path, width: int) -> None:
    from io import StringIO

    from rich.console import Console

    checked = check(project(tmp_path))
    out = StringIO()
    Console(file=out, width=width).print(table(checked))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert any(line.startswith("evaluator first") for line in lines)
    assert "…" not in out.getvalue()


BROKEN = """\
name: demo
models:
  base: base
  experts:
    one: nowhere/one
    two: wide
    three: empty
evaluators:
  first: {type: exact_match, data: data/frst}
  second: {type: exactmatch, data: data/second}
  third: {type: exact_match, data: data/second, modus: x}
  fourth: {type: exact_match, data: data/second}
objectives: [fourth.acuracy, fourth.accuracy]
constraints:
  fourth.accuracy: {at_least: 1.5}
space: {granularty: model, methods: [tsk_arithmetic]}
search:
  optimizer: smsemoa
  budget: {candidates: -3}
engine: {device: warp}
"""

PLACES = {
    (5, 10, "models.experts.one", "expected a folder with a model"),
    (6, 10, "models.experts.two", "found 2 that differ"),
    (7, 12, "models.experts.three", "expected config.json"),
    (9, 36, "evaluators.first.data", "no such folder"),
    (10, 18, "evaluators.second.type", 'did you mean "exact_match"?'),
    (11, 49, "evaluators.third.modus", "Did you mean 'mode'?"),
    (13, 14, "objectives.0", "Did you mean 'accuracy'?"),
    (15, 3, "constraints.fourth.accuracy", "lies in [0, 1]"),
    (16, 9, "space.granularty", "Did you mean 'granularity'?"),
    (16, 38, "space.methods.0", "did you mean 'task_arithmetic'?"),
    (18, 14, "search.optimizer", "Did you mean 'sms_emoa'?"),
    (19, 24, "search.budget.candidates", "found -3"),
    (20, 18, "engine.device", "expected cpu, cuda"),
}


def broken(folder: Path) -> Path:
    import torch
    from checking import reweigh

    path = project(folder)
    (folder / "two").rename(folder / "wide")
    reweigh(folder / "wide", lambda t: t.update({k: torch.ones(9, 9) for k in t if "k_proj" in k}))
    (folder / "empty").mkdir()
    path.write_text(BROKEN)
    return path


def test_everything_that_is_wrong_comes_at_once_with_its_place(tmp_path: Path) -> None:
    checked = check(broken(tmp_path))
    errors = [each.placed for each in checked.findings if each.level == "error"]
    assert {(each.line, each.column, each.path) for each in errors} == {place[:3] for place in PLACES}
    for line, _, path, says in PLACES:
        assert any(each.line == line and each.path == path and says in each.message for each in errors), path
    assert [each.line for each in errors] == sorted(each.line or 0 for each in errors)
    lines = BROKEN.splitlines()
    for each in errors:
        shown, caret = each.excerpt.splitlines()
        assert shown == lines[(each.line or 0) - 1] and caret.index("^") == (each.column or 0) - 1
    assert len(errors) == len(PLACES) == checked.errors


def test_text_and_json_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = broken(tmp_path)
    assert run_command(["check", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("error: ") == len(PLACES)
    for line, column, key, _ in PLACES:
        assert f"error: {path}:{line}:{column}: {key}: " in err
    assert err.rstrip().endswith(f"{path}: {len(PLACES)} errors")
    assert run_command(["check", str(path), "--json"]) == 2
    data = json.loads(capsys.readouterr().out)
    assert data["good"] is False and data["errors"] == len(PLACES) and data["summary"] is None
    errors = [each for each in data["findings"] if each["level"] == "error"]
    assert {(each["line"], each["column"], each["path"]) for each in errors} == {place[:3] for place in PLACES}
    assert {each["file"] for each in data["findings"]} == {str(path)}
    assert {tuple(each) for each in data["findings"]} == {("level", "message", "file", "line", "column", "path")}


def test_a_file_that_is_no_yaml_has_its_place_too(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("name: demo\nmodels: [\n")
    (finding,) = check(path).findings
    assert (finding.level, finding.placed.line) == ("error", 3) and "not valid YAML" in finding.placed.message
    path.write_text("name: demo\nname: again\n")
    (finding,) = check(path).findings
    assert (finding.placed.line, finding.placed.column) == (2, 1)
    (finding,) = check(tmp_path / "confg.yaml").findings
    assert (finding.placed.line, finding.placed.column) == (None, None)
    assert "Did you mean 'config.yaml'?" in finding.placed.message
    path.write_text("")
    checked = check(path)
    assert "models" in found(checked, "error") and checked.subject is None


def test_a_broken_part_of_the_file_hides_nothing_of_the_rest(tmp_path: Path) -> None:
    path = project(tmp_path, lambda config: config["models"]["experts"].update(two="nowhere"))
    text = path.read_text().replace("name: demo", "nme: demo").replace("candidates: 100", "candidates: many")
    path.write_text(text)
    errors = found(check(path), "error")
    assert set(errors) == {"nme", "name", "search.budget.candidates", "models.experts.two"}
    path.write_text(text.replace("objectives:\n- first.accuracy\n- second.accuracy\n", ""))
    assert set(found(check(path), "error")) == {*errors, "objectives"}


@pytest.mark.slow
def test_overrides_are_checked_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = project(tmp_path)
    assert found(check(path, "models.experts.one=gone"), "error").keys() == {"models.experts.one"}
    assert run_command(["check", str(path), "--set", "search.seed=-1"]) == 2
    assert "(with --set search.seed=-1)" in capsys.readouterr().err
    assert run_command(["check", str(path), "--set", "nonsense"]) == 2


@pytest.mark.slow
def test_run_says_the_same_of_the_file(tmp_path: Path) -> None:
    path = broken(tmp_path)
    with pytest.raises(SearchError) as refused:
        load_config(path)
    for each in check(path).findings:
        if each.placed.path.startswith(("space.granularty", "search.")):
            assert each.placed.message in str(refused.value)


def test_plug_ins_are_named_before_they_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = project(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import sys\nprint('it runs', file=sys.stderr)\nfrom evaluators import ExactMatch as Mine\n"
    )
    path.write_text(CONFIG.replace("first: {type: exact_match", "first: {type: 'mine.py:Mine'"))
    assert run_command(["check", str(path), "--no-live"]) == 0
    said = capsys.readouterr().err
    assert said.index("the code of a plug-in is run") < said.index("it runs")
    assert said.count("the code of a plug-in is run") == 1


def test_what_is_logged_becomes_a_note_at_its_place(tmp_path: Path) -> None:
    table = tmp_path / "table.jsonl"
    write_items(table, 5, 300)
    table.write_text(table.read_text() + table.read_text().splitlines()[0] + "\n")
    path = project(tmp_path, lambda config: config["evaluators"]["first"].update(data={"file": "table.jsonl"}))
    handlers = [list(each.filters) for each in logging.getLogger("paretomerge").handlers]
    notes = found(check(path), "note")
    assert "1 items occur more than once" in notes["evaluators.first"]
    assert [list(each.filters) for each in logging.getLogger("paretomerge").handlers] == handlers


@pytest.mark.slow
def test_a_run_that_is_there_is_mentioned(tmp_path: Path) -> None:
    path = project(tmp_path)
    (tmp_path / "runs/demo").mkdir(parents=True)
    (tmp_path / "runs/demo/run.db").touch()
    assert "will go on with it" in found(check(path), "note")["name"]


def test_nothing_is_written(tmp_path: Path) -> None:
    path = project(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    check(path, live=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_counts_close_the_text(tmp_path: Path) -> None:
    path = project(tmp_path, lambda config: config["search"].update(budget={"candidates": 3}))
    edited(tmp_path / "one/generation_config.json", eos_token_id=7)
    *_, last = paragraphs(check(path))
    assert last == f"{path}: 2 warnings"


def test_messages_break_between_words_where_a_terminal_is_narrow(tmp_path: Path) -> None:
    checked = check(broken(tmp_path))
    whole, narrow = list(paragraphs(checked)), list(paragraphs(checked, 80))
    assert len(whole) == len(narrow)
    assert whole[-1] == narrow[-1] == f"{checked.file}: 13 errors"
    for one, other in zip(whole[:-1], narrow[:-1], strict=True):
        message, *excerpt = one.split("\n")
        lines = other.split("\n")
        assert lines[len(lines) - len(excerpt) :] == excerpt
        broken_up = lines[: len(lines) - len(excerpt)]
        assert " ".join(broken_up).split() == message.split()
        assert all(len(line) <= 80 or " " not in line for line in broken_up)
