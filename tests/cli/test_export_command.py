"""``export``, ``merge`` and ``report --picture`` on real models, as people meet them."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from search.cli import run_command
from search.results import Results

sys.path.insert(0, str(Path(__file__).parents[1] / "search"))
from fake_hub import TOKEN, FakeHub

Project = Callable[..., Path]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")]


@pytest.fixture(scope="module")
def kept() -> list[Path]:
    return []


@pytest.fixture
def run(tiny_project: Project, tmp_path: Path, kept: list[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished ``runs/tiny``, searched for once; experts with cards and chat templates of their own."""
    if not kept:
        folder = tiny_project(candidates=14)
        for alias in ("a", "b"):
            (folder / alias / "README.md").write_text(
                f"---\nlicense: mit\nlanguage: en\ndatasets: [org/{alias}]\n---\n"
            )
            (folder / alias / "chat_template.jinja").write_text("{{ messages[0].content }}")
        (folder / "base" / "README.md").write_text("---\nlicense: mit\n---\n")
        assert run_command(["run", "config.yaml", "--display", "none"]) == 0
        kept.append(folder)
    mine = tmp_path / "mine"
    mine.mkdir()
    shutil.copytree(kept[0] / "runs", mine / "runs")
    monkeypatch.chdir(mine)
    return mine / "runs/tiny"


def refused(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    capsys.readouterr()
    assert run_command(list(command)) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and "Traceback" not in error
    return error


def facts(capsys: pytest.CaptureFixture[str], *command: str) -> Any:
    capsys.readouterr()
    assert run_command(list(command)) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_without_a_word_it_is_the_runs_choice(run: Path, kept: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, "export", "runs/tiny", "--json", "--rescore")
    results = Results.load(run)
    folder = Path(found["folder"])
    assert found["candidate"] == results.chosen and folder == Path(f"runs/tiny/export/candidate-{results.chosen}")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert found["files"] == {"model.safetensors": digest} and found["license"] == "mit"
    assert found["tokenizer_from"] == "a" and found["pushed"] is None
    assert found["rescored"] == 2 * (24 + 16 + 32)
    card = ModelCard.load(folder / "README.md")
    recipe = results.recipe(results.knee())
    taking = sorted({alias for each in recipe.groups.values() for alias, _ in each.sources} & {"a", "b"})
    assert card.data.license == "mit" and card.data.language == ["en"]
    assert card.data.datasets == [f"org/{alias}" for alias in taking]
    assert digest in card.text and recipe.sources[taking[0]].content in card.text
    scores = results.values(results.knee(), "holdout")
    assert {each.metric_value for each in card.data.eval_results} == {round(each, 6) for each in scores.values()}
    assert (folder / "front.png").stat().st_size < 150_000 and "](front.png)" in card.text
    assert (folder / "chat_template.jinja").is_file()
    for file in folder.iterdir():
        assert str(kept[0]).encode() not in file.read_bytes(), file


def test_the_lines_in_the_card_work(run: Path, kept: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["export", "runs/tiny", "--out", "mine"]) == 0
    text = Path("mine/README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", "mine")
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["model"].config.model_type == "llama" and names["tokenizer"].chat_template
    again = text.split("```console\n")[1].split("```")[0].strip().splitlines()
    assert again == ["$ paretomerge merge recipe.yaml again --model base=PATH --model a=PATH --model b=PATH"]
    words = again[0].split()[2:]
    words[1] = "mine/recipe.yaml"
    words = [each.replace("=PATH", f"={kept[0] / each.partition('=')[0]}") for each in words]
    assert run_command(words) == 0
    assert Path("mine/model.safetensors").read_bytes() == Path("again/model.safetensors").read_bytes()
    said = refused(capsys, "merge", "mine/recipe.yaml", "other")
    assert "expected a model folder for 'base', found none" in said and "--model ALIAS=FOLDER" in said
    assert "expected ALIAS=FOLDER with an alias of the recipe" in refused(
        capsys, "merge", "mine/recipe.yaml", "other", "--model", "x=y"
    )


def test_a_merge_has_a_card_without_scores_and_without_paths(
    run: Path, kept: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"base": str(kept[0] / "base"), "experts": {each: str(kept[0] / each) for each in ("a", "b")}}
    Path("merge.yaml").write_text(yaml.safe_dump(config | {"method": "linear", "coefficients": 0.5}))
    found = facts(capsys, "merge", "merge.yaml", "plain", "--json", "--parent", "a=me/A-7B")
    text = Path("plain/README.md").read_text()
    assert found["base_models"] == ["me/A-7B"] and ModelCard(text).data.base_model == ["me/A-7B"]
    assert "it was not scored" in text and "front.png" not in text and str(kept[0]) not in text
    assert "Nothing was measured" in text and "model-index" not in text
    assert str(kept[0]) in Path("plain/recipe.yaml").read_text()  # it is read again from here
    assert run_command(["merge", "merge.yaml", "shared", "--shareable", "--tokenizer-from", "base"]) == 0
    for file in Path("shared").iterdir():
        assert str(kept[0]).encode() not in file.read_bytes(), file
    assert not Path("shared/chat_template.jinja").exists()
    assert Path("shared/model.safetensors").read_bytes() == Path("plain/model.safetensors").read_bytes()


def test_what_export_is_asked_wrongly(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, says in (
        (["--tokenizer-from", "c"], "expected --tokenizer-from to name one of the models base, a, b, found 'c'"),
        (["--parent", "a"], "--parent a: expected ALIAS=OWNER/NAME"),
        (["--parent", "c=x/y"], "there is no model 'c'"),
        (["--private"], "are for --push OWNER/NAME"),
        (["--push", "x"], "expected OWNER/NAME"),
        (["--push", "me/merge"], "told to stay offline"),
        (["--candidate", "1", "--mix", "a=1"], "found several"),
    ):
        assert says in refused(capsys, "export", "runs/tiny", "--out", "x", *words)
    assert not Path("x").exists() and "for --picture" in refused(capsys, "report", "runs/tiny", "--dark")


def test_a_picture_of_the_front(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["report", "runs/tiny", "--picture", "front.png"]) == 0
    assert capsys.readouterr().out == "picture: front.png\n"
    assert run_command(["report", "runs/tiny", "--picture", "dark.png", "--dark", "--candidate", "3"]) == 0
    assert Path("front.png").read_bytes() != Path("dark.png").read_bytes()


def test_a_push_that_breaks_off_goes_on_later(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push = ["export", "runs/tiny", "--out", "mine", "--push", "me/merge", "--private", "--parent", "a=me/A"]
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        hub.failures["PUT /lfs/"] = "drop"
        said = refused(capsys, *push)
        assert "the connection broke off" in said and "The export stays in mine" in said and TOKEN not in said
        hub.failures.clear()
        written = Path("mine/model.safetensors").stat().st_mtime_ns
        Path("mine/README.md").write_text(Path("mine/README.md").read_text() + "\nMine.\n")  # somebody adds to it
        found = facts(capsys, *push, "--json")
        assert Path("mine/model.safetensors").stat().st_mtime_ns == written  # not merged anew
        there = hub.repositories["me/merge"]
        assert there.private and there.branches["main"] == {
            file.name: file.read_bytes() for file in Path("mine").iterdir()
        }
        assert found["pushed"]["commit"] in there.commits and found["pushed"]["verified_files"] == len(
            list(Path("mine").iterdir())
        )
        content = bytearray(Path("mine/model.safetensors").read_bytes())
        content[-1] ^= 1
        Path("mine/model.safetensors").write_bytes(content)
        assert "is not what its recipe describes" in refused(capsys, *push)  # nothing damaged is pushed
