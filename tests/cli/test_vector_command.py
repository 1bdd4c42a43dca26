"""``paretomerge vector`` as people type it: a store filled, shown, exchanged, put to use; mistakes in one paragraph."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from merging.checkpoint import Checkpoint
from search.cli import run_command


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders base, a and b of a small Llama, and ``config.yaml`` with an evaluator for each expert."""
    spec = importlib.util.spec_from_file_location("tiny_models", Path(__file__).with_name("conftest.py"))
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)  # the builder of the fixture tiny_project, once for all tests here
    spec.loader.exec_module(made)
    folder = tmp_path_factory.mktemp("models")
    made.build_models(folder, "llama")
    (folder / "config.yaml").write_text(made.CONFIG.format(candidates=8))
    (folder / "a" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder


@pytest.fixture
def project(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory is the models'; the default store is a new one."""
    monkeypatch.chdir(models)
    monkeypatch.setenv("PARETOMERGE_VECTORS", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must succeed; its output."""

    def run(*words: str) -> str:
        status = run_command(["vector", *words])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        return captured.out

    return run


@pytest.fixture
def facts(say: Callable[..., str]) -> Callable[..., Any]:
    return lambda *words: json.loads(say(*words, "--json"))


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must be refused; its paragraph."""

    def run(*words: str) -> str:
        assert run_command(["vector", *words]) == 2
        text = capsys.readouterr().err
        assert text.startswith("error: ") and text.count("\n") == 1, text
        return text

    return run


def everything(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


Say = Callable[..., str]
Facts = Callable[..., Any]


def test_a_vector_from_its_making_to_its_use(project: Path, say: Say, facts: Facts) -> None:
    assert "no vectors in" in say("list")
    assert "; exact" in say("extract", "base", "a", "--name", "a-exact")
    assert "relative error" in say("extract", "base", "b", "--name", "b-small", "--budget", "0.05", "--licence", "mit")
    listed = say("list")
    assert max(map(len, listed.splitlines()[:-1])) <= 80
    assert [line.split()[0] for line in listed.splitlines() if line.startswith(" ") and "%" in line] == [
        "a-exact",
        "b-small",
    ]
    assert "apache-2.0" in listed and "mit" in listed  # the first as the card of the fine-tune states it
    shown = facts("show", "b-small")
    assert 0 < shown["relative_error"] <= 0.05 and 0 < shown["share"] < 0.5
    assert sum(each["bytes"] for each in shown["by_codec"].values()) == shown["bytes"]
    assert sum(each["full_bytes"] for each in shown["by_module"].values()) == shown["full_bytes"]
    assert shown["provenance"]["command"] == "paretomerge vector extract base b --name b-small --budget 0.05"
    assert [each["damaged"] for each in facts("verify", "--base", "base")] == [None, None]
    done = facts("equip", "base", "a-exact", "--out", str(project / "out"))
    assert done["content"] == Checkpoint.open("a").content == shown_content("a-exact", facts)
    assert "vector://a-exact" in (project / "out" / "recipe.yaml").read_text()
    assert "base_model_relation: merge" in (project / "out" / "README.md").read_text()
    say(
        "equip",
        "base",
        "a-exact",
        "vector://b-small",
        "--scale",
        "0.5",
        "--scale",
        "b-small=0.25",
        "--out",
        str(project / "two"),
    )
    assert "coefficient: 0.25" in (project / "two" / "recipe.yaml").read_text()
    say("remove", "a-exact", "b-small")
    assert facts("list")["vectors"] == []


def shown_content(name: str, facts: Callable[..., Any]) -> str:
    return str(facts("show", name)["content"])


@pytest.mark.slow
def test_exchange_by_folder_and_archive(project: Path, say: Say, facts: Facts) -> None:
    say("extract", "base", "a", "--name", "v", "--codec", "svd", "--option", "rank=2")
    own = everything(project / "store" / "v")
    for destination in ("folder", "v.zip", "v.tar"):
        say("export", "v", str(project / destination))
        made = facts(
            "import", str(project / destination), "--name", "w", "--store", str(project / "other"), "--replace"
        )
        assert made["name"] == "w" and everything(project / "other" / "w") == own
    say("add", str(project / "folder"), "--name", "again")
    assert [each["name"] for each in facts("list")["vectors"]] == ["again", "v"]
    assert "conv" not in say("show", str(project / "folder"))


@pytest.mark.slow
def test_scores_tell_what_was_lost_and_are_kept(
    project: Path, say: Callable[..., str], facts: Callable[..., Any]
) -> None:
    say("extract", "base", "a", "--name", "whole")
    say("extract", "base", "a", "--name", "onebit", "--codec", "onebit")
    found = facts("show", "whole", "--evaluate", "config.yaml")["evaluated"]
    values = {(each["of"], each["metric"]): each["value"] for each in found["scores"]}
    assert values["vector", "a.accuracy"] == values["expert", "a.accuracy"] == 1.0  # as its data were made
    assert found["losses"] == {}
    found = facts("show", "onebit", "--evaluate", "config.yaml", "--split", "selection", "--keep")["evaluated"]
    values = {(each["of"], each["metric"]): each["value"] for each in found["scores"]}
    assert values["expert", "a.accuracy"] == 1.0  # found among the config's experts, by content
    loss = found["losses"]["a.accuracy"]
    assert loss["difference"] == pytest.approx(values["vector", "a.accuracy"] - 1.0) and loss["items"] == 16
    kept = facts("show", "onebit")["scores"]
    assert {(each["of"], each["metric"]): each["value"] for each in kept} == values
    assert "onebit scores a.accuracy" in say("list") and facts("verify", "onebit")[0]["damaged"] is None


def test_mistakes_are_one_paragraph_and_change_nothing(
    project: Path, say: Callable[..., str], refusal: Callable[..., str]
) -> None:
    say("extract", "base", "a", "--name", "v", "--codec", "bf16")
    before, out = everything(project / "store"), str(project / "out")
    assert "found v in the store" in refusal("extract", "base", "a", "--name", "v")
    assert "expected the name of a vector" in refusal("extract", "base", "a", "--name", "../v")
    assert "found nothing at nowhere" in refusal("extract", "base", "nowhere", "--name", "w")
    assert "found two" in refusal("extract", "base", "a", "--name", "w", "--exact", "--budget", "0.1")
    assert "give one of them" in refusal("extract", "base", "a", "--name", "w", "--codec", "svd", "--budget", "0.1")
    assert "from 0 (exact) to below 1" in refusal("extract", "base", "a", "--name", "w", "--budget", "2")
    assert "expected one of the codecs" in refusal("extract", "base", "a", "--name", "w", "--codec", "jpeg")
    assert "KEY=VALUE" in refusal("extract", "base", "a", "--name", "w", "--codec", "svd", "--option", "rank")
    assert "has no option" in refusal("extract", "base", "a", "--name", "w", "--codec", "svd", "--option", "q=1")
    assert "as the Hub names them" in refusal("extract", "base", "a", "--name", "w", "--licence", "my own!")
    assert "found a task vector" in refusal("extract", "vector://v", "a", "--name", "w")
    assert "there is no vector 'w'" in refusal("show", "w")
    assert "for --evaluate" in refusal("show", "v", "--keep")
    assert "expected one of search" in refusal("show", "v", "--evaluate", "config.yaml", "--split", "test")
    assert "there is no vector 'w'" in refusal("remove", "v", "w")
    assert "The bases are apart by" in refusal("equip", "b", "v", "--out", out)
    assert "add --force" in refusal("equip", "b", "v", "--out", out, "--made-from", "base")
    assert "expected a number" in refusal("equip", "base", "v", "--out", out, "--scale", "much")
    assert "are the same vector" in refusal("equip", "base", "v", "vector://v", "--out", out)
    assert "expected one of v" in refusal("equip", "base", "v", "--out", out, "--scale", "w=1")
    assert "expected a PEFT adapter" in (text := refusal("add", "a")) or "PEFT adapter" in text
    assert "expected" in refusal("import", "a") and "expected" in refusal("import", str(project / "no.zip"))
    assert "expected hf://OWNER/NAME" in refusal("import", "hf://../x")
    assert "in .zip or .tar" in refusal("import", "v.tar.gz") and "or .tar" in refusal("export", "v", f"{out}.tgz")
    assert "found a file at config.yaml" in refusal("import", "config.yaml")
    assert "of a model by `paretomerge vector extract`" in refusal("import", "a")
    assert "found nothing at" in refusal("extract", "x" * 5000, "a", "--name", "w")
    assert "found nothing" in refusal("show", "./" + "x" * 5000)
    assert "needs the vector's base" in refusal("export", "v", out, "--lora", "4")
    (project / "taken").mkdir()
    (project / "taken" / "file").write_text("mine")
    assert "to be new" in refusal("export", "v", str(project / "taken"))
    assert everything(project / "store") == before and not Path(out).exists()
    say("remove", "v", "v")
    assert not (project / "store" / "v").exists()


@pytest.mark.slow
def test_force_warns_of_the_distance(project: Path, say: Say, capsys: pytest.CaptureFixture[str]) -> None:
    say("extract", "base", "a", "--name", "v", "--codec", "bf16")
    assert run_command(["vector", "equip", "b", "v", "--force", "--out", str(project / "out")]) == 0
    told = capsys.readouterr().err
    assert "warning: " in told and "‖θ0−θ0′‖/‖θ0‖ = " in told and "score the result" in told


@pytest.mark.slow
def test_damage_is_told_and_the_exit_code_says_so(
    project: Path, say: Say, capsys: pytest.CaptureFixture[str], refusal: Callable[..., str]
) -> None:
    say("extract", "base", "a", "--name", "good", "--codec", "onebit")
    shutil.copytree(project / "store" / "good", project / "store" / "bad")
    shard = next((project / "store" / "bad").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    assert run_command(["vector", "verify"]) == 2
    out = capsys.readouterr().out
    assert "good: as its manifest says" in out and "bad: damaged. " in out
    assert "get it again" in refusal("equip", "base", "bad", "--out", str(project / "out"))
    (project / "store" / "bad" / "vector.json").write_text("{}")
    listed = say("list")
    assert "bad: unreadable." in listed and " good " in listed


def test_a_strangers_text_does_nothing_on_the_terminal(project: Path, say: Callable[..., str]) -> None:
    from merging.vectors.extract import About, write_vector
    from merging.vectors.store import Store

    models = (Checkpoint.open("base"), Checkpoint.open("a"))
    about = About("v", base="[red]\x1b[2Jbase[/red]", expert="<script>", tool="\x1b]0;x\x07")
    Store().add("v", lambda folder: write_vector(folder, *models, about))
    for text in (say("list"), say("show", "v")):
        assert "\x1b" not in text and "[red]" in text
    card = (project / "store" / "v" / "README.md").read_text()
    assert "\x1b" not in card and "`<script>`" in card
