"""The language gate of EvoLLM's published protocol: a fastText model's probability, above one half."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import pytest
from fasttext_models import probability, write_model

from evaluators.contract import EvaluatorError
from evaluators.exact_match import ExactMatch, ExactMatchOptions
from evaluators.fasttext_language import FasttextGate, FasttextOptions


@pytest.fixture
def model(tmp_path: Path) -> Path:
    pytest.importorskip("fasttext")
    return write_model(tmp_path / "tiny.ftz")


def gate(model: Path, **options: Any) -> FasttextGate:
    return FasttextGate(FasttextOptions.model_validate({"code": "ja", "fasttext": model, **options}))


@pytest.mark.parametrize(("text", "kana", "latin"), [
    ("こたえは", 4, 0), ("answer", 0, 6), ("こたえ ab", 3, 2), ("こたえ\nabc", 3, 3), ("ここ a\n\nb c", 2, 3),
])  # fmt: skip
def test_the_library_itself_says_what_the_model_was_made_to_say(model: Path, text: str, kana: int, latin: int) -> None:
    # A line end is taken out and puts nothing in its place, as the published evaluator does: "こたえabc" is one word.
    found = gate(model).probability(text)
    assert found == pytest.approx(probability(kana, latin), abs=1e-6)


def test_the_bound_is_exclusive_and_can_be_moved(model: Path) -> None:
    half = "こa"
    found = gate(model).probability(half)
    assert found == pytest.approx(0.5, abs=2e-5)
    assert not gate(model, above=found)(half)
    assert gate(model, above=found - 1e-6)(half)
    assert gate(model)("ここa") and not gate(model)("こab")
    assert not gate(model, above=0.999)("ここa")


def test_other_codes_see_the_other_side(model: Path) -> None:
    assert gate(model, code="en")("the answer") and not gate(model, code="en")("こたえ")


def test_what_a_verdict_depends_on(model: Path, tmp_path: Path) -> None:
    moved = write_model(tmp_path / "same_content.ftz")
    assert gate(model).identity == gate(moved).identity
    assert gate(model).identity != gate(model, above=0.6).identity
    other = write_model(tmp_path / "other.ftz", labels=("ja", "fr"))
    assert gate(model).identity != gate(other).identity


def test_a_code_that_the_model_lacks(model: Path) -> None:
    with pytest.raises(EvaluatorError, match=r"has no label __label__sw; it tells en, ja$"):
        gate(model, code="sw")


def test_files_that_are_not_there_or_no_models(tmp_path: Path) -> None:
    pytest.importorskip("fasttext")
    with pytest.raises(EvaluatorError, match=r"lid\.176\.ftz \(0\.9 MB, CC BY-SA 3\.0\) from https://dl\.fbaipublic"):
        gate(tmp_path / "missing.ftz")
    (tmp_path / "text.ftz").write_text("no model, but a page that says why there is none")
    with pytest.raises(EvaluatorError, match=r"text\.ftz is no fastText model.*does not begin as one"):
        gate(tmp_path / "text.ftz")
    whole = write_model(tmp_path / "whole.ftz").read_bytes()
    for length in (0, 6, 70, 110, 200, len(whole) - 1):  # of these the library crashes, or reads zeros
        (tmp_path / "cut.ftz").write_bytes(whole[:length])
        with pytest.raises(EvaluatorError, match=r"cut\.ftz is no fastText model"):
            gate(tmp_path / "cut.ftz")
    vectors = whole[:36] + (1).to_bytes(4, "little") + whole[40:]  # what it was trained for: words, not labels
    (tmp_path / "vectors.bin").write_bytes(vectors)
    with pytest.raises(EvaluatorError, match=r"vectors\.bin is no fastText model.*supervised"):
        gate(tmp_path / "vectors.bin")
    (tmp_path / "long.ftz").write_bytes(whole + b"x")
    with pytest.raises(
        EvaluatorError, match=rf"it has {len(whole) + 1} bytes where its own sizes ask for {len(whole)}"
    ):
        gate(tmp_path / "long.ftz")


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("fasttext"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    for name in [each for each in sys.modules if each.split(".")[0] == "fasttext"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fasttext", None)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EvaluatorError, match=r'pip install "paretomerge\[fasttext\]"'):
        gate(tmp_path / "any.ftz")


def test_options_of_an_evaluator_name_code_and_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fasttext"):
        ExactMatchOptions.model_validate({"data": "x", "language": {"code": "ja"}})
    with pytest.raises(ValueError, match="less than 1"):
        ExactMatchOptions.model_validate({"data": "x", "language": {"code": "ja", "fasttext": "a.ftz", "above": 1.0}})
    assert ExactMatch.version == 1  # scores of before keep their names
