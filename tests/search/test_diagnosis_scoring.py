"""What data say, against what the evaluators and the model itself say of the same weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checking import made, project
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluators import open_engine
from evaluators.contract import SPLITS, EvaluatorError
from evaluators.perplexity import Perplexity, PerplexityOptions
from merging import Materializer, load_model
from merging.diagnose.curves import LambdaCurve
from merging.opening import open_models
from merging.sources import Sources
from search.config import load_config
from search.diagnosis.probing import Curves, count_points, draw
from search.diagnosis.scoring import ConfigScorer, TextScorer, score_of
from search.errors import SearchError
from search.evaluate import evaluate_model

TEXTS = ["w0 w1 w2 w3 w4", "w5 w6 w7", "w8 w9 w0 w1 w2 w3 w4 w5"]


class Live:
    """A live model over the base and both experts."""

    def __init__(self) -> None:
        folder = made()
        sources = Sources.opened(open_models(folder / "base", {"one": folder / "one", "two": folder / "two"}))
        model = load_model(folder / "base")
        self.materializer = Materializer(sources, model)
        self.engine = open_engine(model, folder / "base", tensors=self.materializer.tensors)


@pytest.fixture(scope="module")
def live() -> Live:
    torch.manual_seed(0)
    return Live()


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return written(tmp_path / "texts.jsonl", [{"text": each} for each in TEXTS])


def written(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return path


def test_documents_are_read_as_the_perplexity_evaluator_reads_them(live: Live, texts: Path) -> None:
    scorer = TextScorer({None: texts}, live.engine)
    others = {split: written(texts.with_name(f"{split}.jsonl"), [{"text": split}]) for split in SPLITS[1:]}
    evaluator = Perplexity(PerplexityOptions(data={"search": texts, **others}))
    evaluator.prepare(live.engine)
    scores = evaluator.score(live.engine, evaluator.items("search").ids)
    bits = evaluator.aggregate(scores)["bits_per_byte"]
    found = scorer.ask(scorer.skills)
    assert scorer.skills == ("texts",)
    assert found["texts"] == pytest.approx(2.0**-bits)
    assert scorer.loss(found) == pytest.approx(bits)


def test_of_a_prompt_and_its_answer_the_answer_is_scored(live: Live, tmp_path: Path) -> None:
    file = written(tmp_path / "pairs.jsonl", [{"prompt": "w1 w2", "answer": ["w3 w4", "never"]}])
    scorer = TextScorer({"one": file}, live.engine)
    tokenizer, model = AutoTokenizer.from_pretrained(made() / "base"), live.materializer.model
    ids = tokenizer("w1 w2 w3 w4", return_tensors="pt").input_ids
    with torch.no_grad():
        logs = model(input_ids=ids).logits.double().log_softmax(-1)
    total = sum(float(logs[0, place - 1, ids[0, place]]) for place in (2, 3))
    assert scorer.ask(["one"])["one"] == pytest.approx(math.exp(total / len("w3 w4")), rel=1e-5)


def test_skills_speak_for_their_experts(live: Live, texts: Path) -> None:
    scorer = TextScorer({"one": texts, None: texts}, live.engine)
    assert scorer.of(["one"]) == ("one",)
    assert scorer.of(["two"]) == ("one", "texts")
    assert scorer.of(["one", "two"]) == ("one",)
    # Everybody's file may be called as an expert: neither replaces the other.
    scorer = TextScorer({"texts": texts, None: texts}, live.engine)
    assert scorer.skills == ("texts", "texts.jsonl") and scorer.of(["two"]) == scorer.skills


def test_a_sample_is_fixed_whatever_the_order(live: Live, tmp_path: Path) -> None:
    records = [{"text": f"w{k} w{k + 1} w{k + 2}"} for k in range(30)]
    first = TextScorer({None: written(tmp_path / "a.jsonl", records)}, live.engine, items=5)
    again = TextScorer({None: written(tmp_path / "b.jsonl", records[::-1])}, live.engine, items=5)
    whole = TextScorer({None: tmp_path / "a.jsonl"}, live.engine)
    assert first.ask(["a"])["a"] == again.ask(["b"])["b"] != whole.ask(["a"])["a"]
    assert "a 5" in first.says and "a 30" in whole.says


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([{"question": "w1"}], "prompt and answer, or text, found question"),
        ([{"text": " "}], "is empty"),
        ([{"prompt": "w1 " * 70, "answer": "w2"}], "too many for the model"),
        ([{"text": "w1"}, {"prompt": "w1", "answer": "w2"}], '"text" is missing'),
        ([], "empty"),
    ],
)
def test_texts_that_cannot_be_read_are_named(
    live: Live, tmp_path: Path, records: list[dict[str, Any]], said: str
) -> None:
    file = written(tmp_path / "texts.jsonl", records)
    with pytest.raises(EvaluatorError, match=said):
        TextScorer({None: file}, live.engine)


def test_a_configs_objectives_are_those_of_its_evaluators(live: Live, tmp_path: Path) -> None:
    objectives = [{"metric": "first.accuracy", "expert": "one"}, {"metric": "second.accuracy", "bounds": [0.0, 0.5]}]
    loaded = load_config(project(tmp_path, lambda config: config.update(objectives=objectives)))
    scorer = ConfigScorer(loaded, live.engine)
    assert scorer.skills == ("first.accuracy", "second.accuracy")
    assert scorer.of(["one"]) == ("first.accuracy",)
    assert scorer.of(["two"]) == scorer.skills
    expected = evaluate_model(loaded, made() / "base", "search").evaluation.values
    found = scorer.ask(scorer.skills)
    assert found["first.accuracy"] == expected["first.accuracy"]
    assert found["second.accuracy"] == min(1.0, 2 * expected["second.accuracy"])
    assert scorer.loss(found) == pytest.approx(1.0 - score_of(found))
    assert set(scorer.ask(["first.accuracy"])) == {"first.accuracy"}


# -- curves ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_curve_begins_and_ends_where_the_models_are(live: Live, texts: Path) -> None:
    scorer = TextScorer({None: texts}, live.engine)
    told: list[tuple[int, int]] = []
    *_, found = draw(
        live.materializer, scorer, ("lambda", "barrier", "redundancy", "activations"), points=3, seeds=1,
        told=lambda curve, done, total, what: told.append((done, total)),
    )  # fmt: skip
    wanted = ("lambda", "barrier", "redundancy", "activations")
    total = count_points(wanted, 2, points=3, seeds=1)
    assert told == [(number, total) for number in range(1, total + 1)]
    alone = {name: perplexity(made() / name, texts) for name in ("base", "one", "two")}
    curve, skills = found.lambdas[0], found.skills[0]
    assert curve.lambdas[0] == 0.0 and curve.scores[0] == pytest.approx(2.0 ** -alone["base"], rel=1e-5)
    assert skills["texts"] == curve.scores
    ends = {(each.first, each.second): (each.losses[0], each.losses[-1]) for each in found.barriers}
    assert set(ends) == {("base", "one"), ("base", "two"), ("one", "two")}
    for (first, second), losses in ends.items():
        assert losses == pytest.approx((alone[first], alone[second]), rel=1e-5)
    one = found.redundancies[0]
    assert (one.alias, one.own) == ("one", pytest.approx(2.0 ** -alone["one"], rel=1e-5))
    assert found.activations is not None and found.activations.finite
    assert found.own == {"one": ("texts",), "two": ("texts",)}
    json.dumps(found.as_data(), allow_nan=False)
    # the live model is the base again
    assert scorer.ask(["texts"])["texts"] == pytest.approx(2.0 ** -alone["base"], rel=1e-5)


def perplexity(folder: Path, texts: Path) -> float:
    """Bits per byte by the plain forward pass of a model that is loaded for it."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    bits = size = 0.0
    for line in texts.read_text().splitlines():
        text = json.loads(line)["text"]
        ids = torch.cat([torch.tensor([[1]]), tokenizer(text, return_tensors="pt").input_ids], 1)  # <eos> begins
        with torch.no_grad():
            logs = model(input_ids=ids).logits.double().log_softmax(-1)
        bits -= sum(float(logs[0, place - 1, ids[0, place]]) for place in range(1, ids.shape[1])) / math.log(2.0)
        size += len(text.encode())
    return bits / size


def test_what_was_drawn_before_a_stop_is_kept(live: Live, texts: Path) -> None:
    scorer = TextScorer({None: texts}, live.engine)

    def told(curve: str, done: int, total: int, what: str) -> None:
        if curve.startswith("barrier one"):
            raise KeyboardInterrupt

    found = last(draw(live.materializer, scorer, ("lambda", "barrier"), points=3, told=told))
    assert found is not None
    assert len(found.lambdas) == 1 and len(found.barriers) == 2


def test_what_is_not_finite_is_null() -> None:
    curve = LambdaCurve(("one",), (0.0, 1.0), (0.5, math.nan))
    data = Curves(lambdas=(curve,), skills=({"texts": (0.5, math.nan)},)).as_data()["lambda"][0]
    assert data["score"] == data["skills"]["texts"] == [0.5, None]


def last(curves: Iterator[Curves]) -> Curves | None:
    found = None
    try:
        for each in curves:
            found = each
    except KeyboardInterrupt:
        return found
    raise AssertionError("nobody stopped it")


def test_models_that_write_no_text_are_asked_by_evaluators(live: Live, texts: Path) -> None:
    class Mute:
        writes_text = False
        model = live.materializer.model

    with pytest.raises(SearchError, match="--config"):
        TextScorer({None: texts}, Mute())  # type: ignore[arg-type]
