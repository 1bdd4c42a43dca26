"""``doctor`` of a machine: what it says is so, a broken thing is named with what to do, and no secret is shown."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from search import machine, machine_storage
from search.cli import run_command
from search.machine import MAIN, Finding, declared, look, pinned_versions

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def small_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the machine's own caches, which take seconds to measure."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setenv("PARETOMERGE_CACHE", str(tmp_path / "cache"))


def named(findings: list[Finding] | tuple[Finding, ...], name: str) -> Finding:
    (found,) = (each for each in findings if each.name == name)
    return found


def test_this_machine_is_not_broken_and_every_section_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["good"] is True
    rows = facts["findings"]
    sections = list(dict.fromkeys(each["section"] for each in rows))
    assert sections == ["versions", "names", "devices", "disk", "hub", "extras", "terminal"]
    versions = {each["name"]: each["value"] for each in rows if each["section"] == "versions"}
    assert platform.python_version() in versions["python"]
    for name in MAIN:
        assert metadata.version(name) in versions[name]


def test_it_fits_eighty_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_command(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and "nothing is broken" in lines[-1]


def test_the_tested_versions_are_those_of_the_constraints() -> None:
    """If not: constraints.txt was renewed, and search/tested_versions.json was not."""
    pins = dict(
        match.groups()  # type: ignore[misc]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if (match := re.match(r"([\w.-]+)==([\w.]+)", line))
    )
    by_name = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    assert pinned_versions() == {name: by_name[name.lower().replace("_", "-")] for name in MAIN}


def test_a_package_that_is_missing_or_too_old_is_broken_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"torch": "2.5.1+cu121", "numpy": pinned_versions()["numpy"]}
    monkeypatch.setattr(machine, "_version", lambda name: known.get(name))
    found = list(machine.versions())
    torch, numpy, rich = named(found, "torch"), named(found, "numpy"), named(found, "rich")
    assert torch.state == "broken" and "2.5.1+cu121, expected >=2.6" in torch.value and "pip install" in torch.do
    assert numpy.state == "ok" and "as tested" in numpy.value
    assert rich.state == "broken" and rich.value == "not installed"
    assert declared()["torch"] == ">=2.6"


def test_another_version_than_the_tested_one_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_version", lambda name: "99.1")
    found = named(list(machine.versions()), "torch")
    assert found.state == "note" and "99.1; tested with" in found.value


def test_a_name_that_another_package_owns_too_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, files in (("websearch", {"RECORD": "search/__init__.py,sha256=x,1\nsearch/more.py,,\n"}),
                        ("quiet", {"top_level.txt": "searching\nzoology\n"}),
                        ("older", {"top_level.txt": "merging\n"})):  # fmt: skip
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        for file, text in {**files, "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"}.items():
            (info / file).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    found = list(machine.names())
    assert named(found, "search").state == "broken" and "websearch" in named(found, "search").do
    assert named(found, "merging").state == "broken" and "of older" in named(found, "merging").value
    assert named(found, "zoo").state == "ok"
    monkeypatch.setattr(machine, "_gpus", lambda: iter(()))
    assert run_command(["doctor"]) == 2
    text = capsys.readouterr().out
    assert "x search" in text and "broken: search, merging" in text and "pip uninstall websearch" in text


def test_a_folder_that_shadows_a_name_is_seen(tmp_path: Path) -> None:
    """In a process of its own: the name is looked up as Python would."""
    (tmp_path / "evaluators").mkdir()
    (tmp_path / "evaluators/__init__.py").touch()
    code = "from search import machine\nprint([each[:4] for each in machine.names() if each.name == 'evaluators'])"
    # first on the path: Python takes it for ours
    first = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    shadowed = "broken" in first.stdout
    # in the current folder of a program that is installed: it is only in the way
    second = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "'note'" in second.stdout and "same name" in second.stdout
    assert shadowed or "'ok'" in first.stdout  # -c puts the current folder first


def test_the_value_of_a_token_is_never_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "hf_thisIsNobodysBusiness"
    monkeypatch.setenv("HF_TOKEN", secret)
    monkeypatch.setenv("HF_ENDPOINT", f"https://user:{secret}@example.org")
    for extra in ([], ["--json"]):
        assert run_command(["doctor", *extra]) == 0
        captured = capsys.readouterr()
        assert secret not in captured.out + captured.err and "HF_TOKEN" in captured.out
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", "/nowhere/token")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "none" in named(list(machine.hub()), "token").value


def test_offline_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert named(list(machine.hub()), "state").facts == {"offline": True}
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "0")
    assert named(list(machine.hub()), "state").facts == {"offline": False}


def test_caches_are_measured_and_say_what_they_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    for name, count in (("zoo/skills/a", 700), ("virtual/b", 1500), ("odd/c", 10)):
        (cache / name).parent.mkdir(parents=True)
        (cache / name).write_bytes(b"x" * count)
    (cache / "virtual/link").symlink_to(cache / "zoo")
    found = list(machine_storage.disk())
    assert named(found, "cache/zoo").facts["bytes"] == 700 and "zoo build" in named(found, "cache/zoo").value
    assert named(found, "cache/virtual").facts["bytes"] == 1500  # not what the link leads to
    assert "not known" in named(found, "cache/odd").value
    assert str(cache) in named(found, "cache").value


def test_a_large_cache_is_not_walked_for_ever(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / str(number)).write_bytes(b"xy")
    assert machine_storage.folder_size(tmp_path) == (10, True)
    size, whole = machine_storage.folder_size(tmp_path, most=3)
    assert (size, whole) == (6, False)


def test_little_room_is_a_note_and_a_cache_that_cannot_be_written_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_storage.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 5})())
    assert named(list(machine_storage.disk()), "here").state == "note"
    monkeypatch.setattr(machine_storage.os, "access", lambda path, mode: False)
    broken = named(list(machine_storage.disk()), "cache writable")
    assert broken.state == "broken" and "PARETOMERGE_CACHE" in broken.do


def test_extras_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.util, "find_spec", lambda name: None)
    found = list(machine.extras())
    for extra in machine.EXTRAS:
        assert named(found, extra).facts == {"installed": False}
        assert f"paretomerge[{extra}]" in named(found, extra).do and named(found, extra).state == "ok"


def test_extras_are_those_that_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(machine.EXTRAS) <= set(project["optional-dependencies"])
    needed = {re.split(r"[<>=;\[ ]", each, maxsplit=1)[0].lower() for each in project["dependencies"]}
    assert {each.lower() for each in MAIN} <= needed


def test_progress_is_told_section_by_section() -> None:
    told: list[str] = []
    look(told.append)
    assert told[0] == "versions" and len(told) == 7


def test_salvage_without_a_run_is_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["doctor", "--salvage"]) == 2
    assert "doctor RUN --salvage" in capsys.readouterr().err
