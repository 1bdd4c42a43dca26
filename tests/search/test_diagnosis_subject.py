"""Which models the arguments of ``diagnose`` name, and what is said where they name none."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.diagnosis.probing import CURVES, parse_curves
from search.diagnosis.scoring import parse_data
from search.diagnosis.subject import Subject, folder_of, subject_of
from search.errors import SearchError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("base", "one", "two", "runs/a/final", "runs/b/final", "x=y", "deep/base"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def aliases(*given: str) -> dict[str, str]:
    found: Subject = subject_of(given)
    assert list(found.references) == ["base", *found.experts]
    return {alias: str(path) for alias, path in found.experts.items()}


def test_experts_are_called_after_their_folders() -> None:
    assert aliases("base", "one", "two/") == {"one": "one", "two": "two"}
    assert aliases("base", "legal=one", "two") == {"legal": "one", "two": "two"}


def test_folders_of_one_name_get_the_name_of_what_is_around_them() -> None:
    assert list(aliases("base", "runs/a/final", "runs/b/final")) == ["a-final", "b-final"]
    assert list(aliases("base", "runs/a/final", "runs/b/final", "one")) == ["a-final", "b-final", "one"]
    assert list(aliases("base", "one", "one")) != ["one", "one"]
    assert len(aliases("base", "one", "one", "one")) == 3


def test_nobody_is_called_base_but_the_base() -> None:
    assert list(aliases("base", "deep/base")) == ["deep-base"]
    with pytest.raises(SearchError, match="base"):
        subject_of(["base", "base=one"])
    with pytest.raises(SearchError, match="the first model is the base"):
        subject_of(["start=base", "one"])
    assert aliases("base=base", "one") == {"one": "one"}


def test_a_folder_may_have_the_sign_in_its_name() -> None:
    assert aliases("base", "x=y") == {"x-y": "x=y"}


def test_a_name_is_given_once() -> None:
    with pytest.raises(SearchError, match="name of its own"):
        subject_of(["base", "a=one", "a=two"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "found nothing"),
        (["base"], "found base alone"),
        (["base", "nowhere"], "expected a folder with a model at nowhere"),
        (["base", "on"], "Did you mean"),
        (["base", "somebody/model"], "hf download somebody/model"),
        (["base", "a="], "NAME=FOLDER"),
    ],
)
def test_what_is_not_there_is_said(given: list[str], said: str) -> None:
    with pytest.raises(SearchError, match=said.replace("?", r"\?")):
        subject_of(given)


def test_a_file_is_no_model(here: Path) -> None:
    (here / "file").write_text("")
    (here / "search.yaml").write_text("")
    with pytest.raises(SearchError, match="that is a file"):
        folder_of("file")
    with pytest.raises(SearchError, match="a config is given alone"):
        subject_of(["base", "search.yaml"])


def test_values_of_a_config_need_a_config() -> None:
    with pytest.raises(SearchError, match="--set"):
        subject_of(["base", "one"], ["engine.threads=1"])


def test_data_belong_to_everybody_or_to_an_expert(here: Path) -> None:
    (here / "texts.jsonl").write_text("{}")
    assert parse_data(["texts.jsonl"], ["one"]) == {None: Path("texts.jsonl")}
    assert parse_data(["one=texts.jsonl"], ["one"]) == {"one": Path("texts.jsonl")}
    with pytest.raises(SearchError, match=r"no expert 'oen'.*[Dd]id you mean"):
        parse_data(["oen=texts.jsonl"], ["one", "two"])
    with pytest.raises(SearchError, match="has a file already"):
        parse_data(["one=texts.jsonl", "one=texts.jsonl"], ["one"])
    with pytest.raises(SearchError, match="found nothing"):
        parse_data(["one=nowhere.jsonl"], ["one"])
    with pytest.raises(SearchError, match="found a folder"):
        parse_data(["one=base"], ["one"])


def test_curves_are_named() -> None:
    assert parse_curves("all") == CURVES
    assert parse_curves("redundancy, lambda") == ("lambda", "redundancy")
    for wrong in ("", "lamda", "all,lambda"):
        with pytest.raises(SearchError, match="--curves"):
            parse_curves(wrong)
