"""The examples of the guide are what they say: configs that validate, code that keeps the contract."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluator_samples import WORDS, lines
from text_models import bigram_engine

import evaluators
from evaluators.conformance import EvaluatorConformance
from evaluators.contract import SPLITS
from evaluators.engines.hf import HFEngine
from evaluators.items import DataOptions
from evaluators.prompts import PromptOptions
from evaluators.registry import object_in_file

GUIDE = Path(__file__).parents[2] / "docs" / "evaluators.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def examples() -> dict[str, dict[str, Any]]:
    """name -> options, of every evaluator in a YAML block."""
    found: dict[str, dict[str, Any]] = {}
    for block in blocks("yaml"):
        if block.startswith("data:"):
            continue
        parsed = yaml.safe_load(block)
        named = parsed.get("evaluators", parsed).items()
        found |= {name: options for name, options in named if isinstance(options, dict) and "type" in options}
    return found


@pytest.mark.parametrize("name", sorted(examples()))
def test_configs_validate(name: str) -> None:
    options = examples()[name]
    kind = options.pop("type")
    evaluators.options_model(kind)(**options)


def test_every_evaluator_of_this_page_has_an_example_and_its_metrics() -> None:
    shown = {options["type"] for options in examples().values()}
    text = GUIDE.read_text(encoding="utf-8")
    here = {"exact_match", "choice", "perplexity", "drift", "length", "throughput", "python"}
    assert here <= shown
    assert here <= set(evaluators.names())
    for name in evaluators.names():
        assert f"`{name}`" in text


def test_data_and_prompts_validate() -> None:
    block = next(block for block in blocks("yaml") if block.startswith("data:"))
    for line in block.splitlines():
        DataOptions.model_validate(yaml.safe_load(line))
    block = next(block for block in blocks("yaml") if block.startswith("prompt:"))
    PromptOptions(**yaml.safe_load(block)["prompt"])


def test_the_function_does_what_it_is_declared_to(tmp_path: Path) -> None:
    source = next(block for block in blocks("python") if block.startswith("def score"))
    (tmp_path / "my_eval.py").write_text(source, encoding="utf-8")
    score = object_in_file(tmp_path / "my_eval.py", "score")
    assert score({"name": "Ann"}, "Dear Ann ,") == {"score": True, "metrics": {"words": 3}}
    assert score({"name": "Ann"}, "") == {"score": False, "metrics": {"words": 0}}


class TestOneOfYourOwn(EvaluatorConformance):
    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        source = next(block for block in blocks("python") if "class Grammar" in block)
        (tmp_path / "grammar.py").write_text(source, encoding="utf-8")
        self.folder = tmp_path

    def build(self, changed: str = "") -> Any:
        for place, split in enumerate(SPLITS):
            pairs = [
                {"good": f"{WORDS[index]} {WORDS[place]}", "bad": f"{WORDS[place]} {WORDS[index]} {changed}".strip()}
                for index in range(5, 20)
            ]
            (self.folder / f"{split}.jsonl").write_text(lines(pairs), encoding="utf-8")
        kind = f"{self.folder / 'grammar.py'}:Grammar"
        return evaluators.build(kind, {"data": self.folder})

    def evaluator(self) -> Any:
        return self.build()

    def changed_evaluator(self) -> Any:
        return self.build("w30")

    def engine(self) -> HFEngine:
        return bigram_engine(2)
