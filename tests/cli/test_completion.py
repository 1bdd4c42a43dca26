"""Shell completion, through the protocol that the installed scripts speak."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import search.store
from search.cli import run_command
from search.cli.commands import COMMANDS
from search.cli.completing import DATABASE, KINDS, complete_configs, complete_names, complete_presets, complete_runs
from search.presets import PRESETS

VARIABLE = "_PARETOMERGE_COMPLETE"


@pytest.fixture
def completed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """``completed("status runs/n")``: what bash is given for the last word."""

    def ask(line: str) -> list[str]:
        words = f"paretomerge {line}"
        monkeypatch.setenv(VARIABLE, "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
        assert run_command([]) == 0
        return capsys.readouterr().out.split()

    return ask


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs and configs to complete."""
    for name in ("runs/night", "runs/noon", "elsewhere/nine"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / DATABASE).touch()
    (tmp_path / "runs/no-run").mkdir()
    (tmp_path / "nano.yaml").touch()
    (tmp_path / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_database_is_the_stores() -> None:
    assert DATABASE == search.store.DATABASE


def test_commands_are_completed_from_their_declarations(completed) -> None:
    assert completed("") == [each.name for each in COMMANDS]
    assert completed("st") == ["status"]
    assert completed("--ver") == ["--version"]


def test_options_of_a_command_are_completed(completed) -> None:
    assert "--workers" in completed("run --w")


def test_names_are_completed(completed) -> None:
    assert completed("init ") == list(PRESETS)
    assert completed("ls ") == sorted(KINDS)
    assert completed("explain dare_t") == ["dare_ties"]
    assert "search.fidelity" in completed("explain search.fi")


def test_run_directories_are_completed_and_nothing_else(completed, folder: Path) -> None:
    assert completed("status runs/n") == ["runs/night", "runs/noon"]
    assert completed("status ") == ["runs/night", "runs/noon"]
    assert completed("report elsewhere/") == ["elsewhere/nine"]
    assert completed("doctor else") == ["elsewhere/"]  # a folder on the way
    assert completed("status nowhere/x") == []


def test_configs_are_completed(completed, folder: Path) -> None:
    assert completed("check n") == ["nano.yaml"]
    assert complete_configs("no") == []
    assert complete_configs("r") == ["runs/"]


def test_presets_come_with_their_summaries() -> None:
    assert complete_presets("sa") == [("safety", PRESETS["safety"].summary)]
    assert complete_names("bits") == ["bits_per_byte"]
    assert complete_runs("/no/such/folder/") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_names_the_program(shell: str) -> None:
    code = "import sys; from search.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, VARIABLE: f"source_{shell}"},
    )  # fmt: skip
    assert done.returncode == 0 and VARIABLE in done.stdout and "paretomerge" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_itself_completes_with_the_script(folder: Path) -> None:
    program = folder / "bin/paretomerge"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom search.cli import main\nmain()\n")
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    script = subprocess.run(
        [str(program)],
        env={**os.environ, "PATH": path, VARIABLE: "source_bash"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    ask = (
        f"{script}\nCOMP_WORDS=(paretomerge status runs/n); COMP_CWORD=2; COMP_LINE='paretomerge status runs/n'; "
        'f=$(complete -p paretomerge | sed "s/.*-F \\([^ ]*\\).*/\\1/"); $f paretomerge; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", ask],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    )
    assert done.stdout.split() == ["runs/night", "runs/noon"], done.stderr
