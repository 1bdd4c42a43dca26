"""Model cards: what they say is what the run has, and nothing of this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from merging.companions import Companions
from merging.recipe import Assignment, Group, Recipe, SourceRef
from merging.verification import Verified
from search.card import CardFacts, write_card
from search.card.loading import loading_of
from search.card.parents import hub_id_of, is_hub_id, parents_of, read_metadata, shareable
from search.errors import SearchError
from search.report.hop_texts import PATH_HEADER, path_rows
from search.results import Results
from search.space import path_of

SyntheticRun = Callable[..., Results]


@pytest.fixture(scope="module")
def finished(synthetic_run: SyntheticRun, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return synthetic_run(tmp_path_factory.mktemp("runs") / "demo", candidates=24)


def model_folder(folder: Path, card: Mapping[str, Any] | None = None, config: Mapping[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or {}))
    if card is not None:
        (folder / "README.md").write_text(f"---\n{yaml.safe_dump(dict(card))}---\n\n# A model\n")
    return folder


def card_of(
    results: Results, id: int, folder: Path, parents: Mapping[str, Path], **changes: Any
) -> tuple[ModelCard, str]:
    """(front matter, text) of the card of a candidate whose parents lie in these folders."""
    recipe = results.recipe(id)
    ids = changes.pop("hub_ids", None)
    references = {alias: str(path) for alias, path in parents.items()}
    facts: dict[str, Any] = {
        "title": "demo",
        "folder": folder,
        "recipe": shareable(recipe, references, parents, ids),
        "parents": tuple(parents_of(recipe, references, parents, ids)),
        "companions": Companions("base", "base", "which is the rule"),
        "verified": Verified("sha256:" + "c" * 64, {"model.safetensors": "d" * 64}, 29),
        "results": results,
        "candidate": id,
        "rule": "the run's choice",
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    write_card(CardFacts(**(facts | changes)))
    text = (folder / "README.md").read_text()
    return ModelCard(text), text


@pytest.fixture
def parents(tmp_path: Path) -> dict[str, Path]:
    return {
        alias: model_folder(tmp_path / "home" / "alice" / f"my-{alias}") for alias in ("base", "string", "language")
    }


def test_scores_in_the_card_are_those_of_the_run(finished: Results, parents: dict[str, Path], tmp_path: Path) -> None:
    id = finished.knee()
    card, text = card_of(finished, id, tmp_path / "out", parents)
    index = card.data.eval_results
    assert {each.dataset_name: each.metric_value for each in index} == {
        name.partition(".")[0]: round(value, 6) for name, value in finished.values(id, "holdout").items()
    }
    for each in index:
        limits = finished.interval(id, "holdout", f"{each.dataset_name}.accuracy")
        assert each.metric_args["interval_95"] == {"low": round(limits.low, 6), "high": round(limits.high, 6)}
        assert each.metric_args["items"] == 240 and each.dataset_split == "holdout"
    for split in ("selection", "holdout"):
        row = next(line for line in _part(text, split.capitalize()).splitlines() if line.startswith("| **this merge**"))
        for name, value in finished.values(id, split).items():
            limits = finished.interval(id, split, name)
            assert rf"{value:.3f} \[{limits.low:.3f}, {limits.high:.3f}\]" in row
    for baseline in finished.baselines:
        assert baseline.label.split("(")[0].strip().replace("_", r"\_") in text
    assert "was opened once, for " in text
    claims = finished.claims
    assert claims is not None and claims.best is not None
    verdict = "beats it by" if claims.best.beaten else "does not beat it"
    assert verdict in text or claims.is_baseline


def test_what_was_not_opened_is_not_told(finished: Results, parents: dict[str, Path], tmp_path: Path) -> None:
    closed = next(id for id in finished.finalists if id not in finished.scores["holdout"])
    card, text = card_of(finished, closed, tmp_path / "out", parents)
    assert card.data.eval_results is None and "### Holdout" not in text and "### Selection" in text
    assert "how good it is on items that no choice was made on is not known" in text
    assert f"The run's own choice was candidate {finished.chosen}" in text and "beats it by" not in text
    neither = next(id for id in finished.scores["search"] if id not in finished.scores["selection"])
    _, text = card_of(finished, neither, tmp_path / "third", parents)
    assert "### Search: items that the search was led by, and that flatter what it found" in text
    assert "### Selection" not in text


def test_nothing_of_this_machine_is_told(finished: Results, parents: dict[str, Path], tmp_path: Path) -> None:
    _, text = card_of(finished, finished.knee(), tmp_path / "out", parents)
    assert str(tmp_path) not in text and "alice" not in text and str(finished.folder) not in text
    assert "my-string" in text  # a folder's own name is a name


def test_base_models_are_those_of_the_hub(finished: Results, parents: dict[str, Path], tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "models--meta--Base-7B" / "snapshots" / ("a1" * 20)
    parents["base"] = model_folder(cache)
    ids = {"string": "me/String-7B"}
    card, text = card_of(finished, finished.knee(), tmp_path / "out", parents, hub_ids=ids)
    assert card.data.base_model == ["meta/Base-7B", "me/String-7B"]
    assert card.data["base_model_relation"] == "merge" and card.data.library_name == "transformers"
    assert card.data.tags == ["merge", "paretomerge", *_methods(finished)]
    assert card.data.pipeline_tag == "text-generation"
    assert "`a1a1a1a1a1a1`" in text  # the commit
    with pytest.raises(SearchError, match="there is no model 'x'; there are base, "):
        parents_of(finished.recipe(0), {}, parents, {"x": "a/b"})
    with pytest.raises(SearchError, match="expected an id on the Hugging Face Hub"):
        parents_of(finished.recipe(0), {}, parents, {"base": "../b"})


@pytest.mark.parametrize(
    ("stated", "licence", "says"),
    [
        (("mit", "mit", "mit"), "mit", "All parents state the licence mit"),
        (("mit", "MIT", ["mit"]), "mit", "All parents state the licence mit"),
        (("mit", "llama3", "mit"), None, "since the parents' differ (base, language: mit; string: llama3)"),
        (("mit", None, "mit"), None, "since the parents' differ (base, language: mit; string: not stated)"),
        ((None, None, None), None, "since no parent states one"),
        ((["mit", "gpl"], "mit", "mit"), None, "since the parents' differ"),
        (("m[x](y) <b>", "m[x](y) <b>", "m[x](y) <b>"), None, r"All parents state the licence m\[x\](y) &lt;b&gt;"),
    ],
)
def test_a_licence_is_never_guessed(
    stated: tuple[Any, ...], licence: str | None, says: str, finished: Results, tmp_path: Path
) -> None:
    folders = {
        alias: model_folder(tmp_path / alias, {} if each is None else {"license": each})
        for alias, each in zip(("base", "string", "language"), stated, strict=True)
    }
    card, text = card_of(finished, _all_three(finished), tmp_path / "out", folders)
    assert card.data.license == licence and says in text


def test_what_the_parents_cards_say_goes_on(finished: Results, tmp_path: Path) -> None:
    own = [
        {"language": "en", "datasets": ["org/a"], "license": "other", "license_name": "x", "license_link": "LICENSE"},
        {"language": ["en", "de"], "datasets": ["org/b", "org/a"], "license": "other", "license_name": "x"},
        {"language": [{"a": 1}, "no\nword"], "datasets": "org/c", "license": "other", "license_name": "x"},
    ]
    aliases = ("base", "string", "language")
    folders = {alias: model_folder(tmp_path / alias, card) for alias, card in zip(aliases, own, strict=True)}
    card, _ = card_of(finished, _all_three(finished), tmp_path / "out", folders)
    assert card.data.language == ["en", "de"] and card.data.datasets == ["org/a", "org/b", "org/c"]
    assert card.data.license == "other" and card.data.license_name == "x"
    assert card.data.license_link is None  # a file of a parent's repository is none of this one


def test_parents_cards_that_are_no_cards(tmp_path: Path) -> None:
    for number, text in enumerate(
        ("", "# no front matter", "---\n[1, 2]\n---\n", "---\na: [\n---\n", "---\n!!python/x y\n---")
    ):
        folder = model_folder(tmp_path / str(number), config={"license": "apache-2.0"})
        (folder / "README.md").write_text(text)
        assert read_metadata(folder) == {"license": "apache-2.0"}, text
    (tmp_path / "0" / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert read_metadata(tmp_path / "0") == {"license": "apache-2.0"}
    (tmp_path / "1" / "README.md").write_bytes(b"\xef\xbb\xbf---\r\nlicense: mit\r\n---\r\ntext")
    assert read_metadata(tmp_path / "1") == {"license": "mit"}


def test_ids_of_the_hub() -> None:
    good = ("a/b", "meta-llama/Llama-3.1-8B", "A1/b_c.d")
    bad = ("a", "a/b/c", "/a/b", "a/../b", "a/.b", "~/b", "a/b.git", "a b/c", "a/b\n", "zoo://a/b", "a--b/c")
    assert all(map(is_hub_id, good)) and not any(map(is_hub_id, bad))
    assert hub_id_of(Path("/c/models--gpt2/snapshots/abc")) == (None, None)  # without an owner
    assert hub_id_of(Path("/c/models--o--n/snapshots/" + "ab" * 20)) == ("o/n", "ab" * 20)
    assert hub_id_of(Path("/c/models--o--n/refs/main")) == (None, None)


def test_models_are_told_apart_whatever_their_folders_are_called(tmp_path: Path) -> None:
    folders = {alias: tmp_path / alias / "final" for alias in ("base", "a", "b")}
    sources = {alias: SourceRef(str(path), f"sha256:{alias}") for alias, path in folders.items()}
    inner = Recipe("base", dict(sources), {Group("mlp", 0): Assignment.of("linear", {"a": {"coefficient": 1.0}})})
    sources["v"] = SourceRef(str(tmp_path / "cache" / "v"), "sha256:v", made_by=inner)
    groups = {Group("mlp", 0): Assignment.of("task_arithmetic", {"v": {"coefficient": 1.0}})}
    recipe = Recipe("base", sources, groups, tokenizer="path:sha256:t", tokenizer_path=str(folders["a"]))
    shared = shareable(recipe, {}, folders)
    assert {alias: ref.path for alias, ref in shared.sources.items()} == {
        "base": "base-final", "a": "a-final", "b": "b-final", "v": "virtual/v",
    }  # fmt: skip
    assert shared.tokenizer_path == "a-final" and shared.hash == recipe.hash
    assert str(tmp_path) not in shared.to_yaml() and Recipe.from_yaml(shared.to_yaml()).hash == recipe.hash
    for each in folders.values():
        model_folder(each)
    found = parents_of(recipe, {}, folders)
    assert [each.alias for each in found] == ["base", "a", "v"]  # b takes no part, a does through v


def test_a_run_without_an_end_claims_nothing(
    synthetic_run: SyntheticRun, parents: dict[str, Path], tmp_path: Path
) -> None:
    results = synthetic_run(tmp_path / "runs" / "half", candidates=24, finished=False)
    card, text = card_of(results, results.knee(), tmp_path / "out", parents)
    assert card.data.eval_results is None and "nothing is claimed" in text and "has not been opened" in text


def test_a_strangers_words_stay_words(finished: Results, parents: dict[str, Path], tmp_path: Path) -> None:
    evil = "x](http://evil) <script>alert(1)</script> | **b** \x1b[31m\n# y"
    parents["string"].rename(tmp_path / "<img src=x>")
    parents["string"] = tmp_path / "<img src=x>"
    card, text = card_of(finished, _all_three(finished), tmp_path / "out", parents, title=evil, rule=evil)
    body = re.sub(r"```.*?```", "", text.split("\n---\n", 1)[1], flags=re.DOTALL)
    assert "<script" not in body and "<img" not in body and "http://evil" not in body and "\x1b" not in text
    assert body.count("\n# ") == 1 and card.data.eval_results is not None


def _methods(results: Results) -> list[str]:
    return sorted({each.method for each in results.recipe(results.knee()).groups.values()})


def _all_three(results: Results) -> int:
    """A candidate on the holdout that both experts take part in."""
    return next(
        id for id in results.scores["holdout"]
        if {alias for each in results.recipe(id).groups.values() for alias, _ in each.sources} >= {"string", "language"}
    )  # fmt: skip


def _part(text: str, title: str) -> str:
    return text.split(f"### {title}")[1].split("\n#")[0]


def test_a_path_is_laid_out_block_by_block(
    synthetic_run: SyntheticRun, parents: dict[str, Path], tmp_path: Path
) -> None:
    run = synthetic_run(tmp_path / "run", candidates=16, space={"data_flow": {"repetitions": 2, "depth": 9}})
    id = next(each.id for each in run.candidates if "language" in {hop.alias for hop in path_of(run.recipe(each.id))}
              and run.recipe(each.id).scales)  # fmt: skip
    path = path_of(run.recipe(id))
    text = card_of(run, id, tmp_path / "out", parents)[1]
    assert f"A model of {len(path)} blocks that are layers of my-string and my-language, one after the other" in text
    assert "each with a scale that is folded into its weights" in text and "string's" in text
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    at = rows.index(list(PATH_HEADER))
    assert rows[at + 2 : at + 2 + len(path_rows(path))] == path_rows(path)
    assert "coefficient, mean" not in text
    plain = card_of(run, 2, tmp_path / "plain", parents)[1]  # an expert alone
    assert "A model of 6 blocks that are layers of my-language, one after the other: a path" in plain


@pytest.mark.parametrize(
    ("config", "files", "model", "inputs", "task"),
    [
        (("llama", ["LlamaForCausalLM"]), ["tokenizer.json"], "AutoModelForCausalLM", "AutoTokenizer",
         "text-generation"),
        (("llama", None), [], "AutoModelForCausalLM", "", "text-generation"),
        (("llama", ["LlamaForSequenceClassification"]), ["tokenizer.json"], "AutoModelForSequenceClassification",
         "AutoTokenizer", "text-classification"),
        (("whisper", ["WhisperForConditionalGeneration"]), ["tokenizer.json", "preprocessor_config.json"],
         "AutoModelForSpeechSeq2Seq", "AutoProcessor", "automatic-speech-recognition"),
        (("wav2vec2", ["Wav2Vec2ForCTC"]), ["vocab.json", "preprocessor_config.json"], "AutoModelForCTC",
         "AutoProcessor", "automatic-speech-recognition"),
        (("vit", ["ViTForImageClassification"]), ["preprocessor_config.json"], "AutoModelForImageClassification",
         "AutoImageProcessor", "image-classification"),
        (("clip", ["CLIPModel"]), ["tokenizer.json", "preprocessor_config.json"],
         "AutoModelForZeroShotImageClassification", "AutoProcessor", "zero-shot-image-classification"),
        (("t5", ["T5ForConditionalGeneration"]), ["spiece.model"], "AutoModelForSeq2SeqLM", "AutoTokenizer", ""),
        (("bert", ["BertModel"]), [], "AutoModel", "", ""),
        (("of nobody", ["Evil()"]), [], "AutoModel", "", ""),
        ((None, "no list"), [], "AutoModel", "", ""),
    ],
)  # fmt: skip
def test_a_model_is_loaded_by_its_own_class(
    config: tuple[Any, Any], files: list[str], model: str, inputs: str, task: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": config[0], "architectures": config[1]}))
    for name in files:
        (tmp_path / name).write_text('{"image_processor_type": "x"}')
    found = loading_of(tmp_path)
    assert (found.model, found.inputs, found.task) == (model, inputs, task)
    names: dict[str, Any] = {}
    exec(found.lines("x").split("\n\n")[0], names)  # the classes are there to be imported
    assert model in names
