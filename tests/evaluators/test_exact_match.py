from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluator_samples import lines, reversal, word_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from text_models import Scripted
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from evaluators.conformance import EvaluatorConformance, broken_weights, other_weights
from evaluators.contract import EvaluatorError, Generation
from evaluators.engines.hf import HFEngine
from evaluators.exact_match import ExactMatch, ExactMatchOptions
from evaluators.items import Item, balanced_order


def ready(engine: HFEngine, data: Path, **options: object) -> ExactMatch:
    evaluator = ExactMatch(ExactMatchOptions(data=data, **options))
    evaluator.prepare(engine)
    return evaluator


def scores_of(evaluator: ExactMatch, engine: HFEngine) -> dict[str, float]:
    ids = evaluator.items("search").ids
    return dict(zip(ids, evaluator.score(engine, ids).values["accuracy"].tolist(), strict=True))


class TestExactMatch(EvaluatorConformance):
    mode = "auto"

    @pytest.fixture(autouse=True)
    def place(self, data: Path, learned: torch.nn.Module, tmp_path: Path) -> None:
        self.data, self.live, self.other = data, learned, tmp_path

    def evaluator(self) -> ExactMatch:
        return ExactMatch(ExactMatchOptions(data=self.data, mode=self.mode))

    def changed_evaluator(self) -> ExactMatch:
        for file in self.data.iterdir():
            content = file.read_text(encoding="utf-8")
            if file.name == "holdout.jsonl":
                content = content.replace('"answer": "', '"answer": "w35 ', 1)
            (self.other / file.name).write_text(content, encoding="utf-8")
        return ExactMatch(ExactMatchOptions(data=self.other, mode=self.mode))

    def engine(self) -> HFEngine:
        return HFEngine(self.live, word_tokenizer(), batch_tokens=100)


class TestExactMatchByGeneration(TestExactMatch):
    mode = "generate"


def test_planted_answers_are_found(engine: HFEngine, data: Path) -> None:
    """The model has learnt the even items by heart: those are right, and the aggregate is their share."""
    evaluator = ready(engine, data)
    order = {item["prompt"]: index for index, item in enumerate(reversal(48))}
    ids = evaluator.items("search").ids
    scores = evaluator.score(engine, ids)
    known = [order[evaluator._items[name].value.record["prompt"]] % 2 == 0 for name in ids]
    assert scores.values["accuracy"][known].tolist() == [1.0] * 24
    others = scores.values["accuracy"][np.logical_not(known)]
    assert others.mean() < 0.5
    assert evaluator.aggregate(scores) == {"accuracy": pytest.approx((24 + others.sum()) / 48)}


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_teacher_forcing_gives_the_verdicts_of_generation(engine: HFEngine, data: Path, seed: int | None) -> None:
    forced, generated = ready(engine, data), ready(engine, data, mode="generate")
    assert all(prepared.request is not None for prepared in forced._prepared.values())
    assert all(prepared.request is None for prepared in generated._prepared.values())
    if seed is None:
        assert scores_of(forced, engine) == scores_of(generated, engine)
        return
    # Candidates between the trained model and noise: some verdicts change, and both ways see the same ones.
    noise = torch.Generator().manual_seed(seed)
    before = {name: value.clone() for name, value in engine.model.state_dict().items()}
    try:
        with torch.no_grad():
            for parameter in engine.model.parameters():
                scale = 0.6 * parameter.std() if parameter.ndim > 1 else 0.0
                parameter.add_(scale * torch.randn(parameter.shape, generator=noise))
        found = scores_of(forced, engine)
        assert found == scores_of(generated, engine)
        assert 0 < sum(found.values()) < 24
    finally:
        engine.model.load_state_dict(before)


def test_special_tokens_inside_an_answer_make_it_wrong_both_ways(engine: HFEngine, data: Path) -> None:
    evaluator = ready(engine, data, mode="generate")
    name = evaluator.items("search").ids[0]
    prepared = evaluator._prepared[name]
    answer = engine.encode(evaluator._items[name].value.answers[0], special=False)
    assert evaluator._judge(engine, prepared, Generation(answer, "end"))[:3] == (True, True, True)
    for special in (0, 1, 2):
        for tokens in ([*answer, special], [special, *answer]):
            assert evaluator._judge(engine, prepared, Generation(tokens, "end"))[:3] == (False, True, True)


def test_nan_weights_fail_every_item(engine: HFEngine, data: Path) -> None:
    for mode in ("auto", "generate"):
        evaluator = ready(engine, data, mode=mode)
        ids = evaluator.items("selection").ids
        with broken_weights(engine):
            scores = evaluator.score(engine, ids)
        assert set(scores.statuses) == {"failed"}
        assert evaluator.aggregate(scores) == {"accuracy": 0.0}
        with other_weights(engine, seed=4):
            assert set(evaluator.score(engine, ids).statuses) == {"ok"}


def subword_tokenizer() -> PreTrainedTokenizerFast:
    """Characters and a few merges: most texts have several spellings."""
    letters = ["<pad>", "<bos>", "<eos>", *"ĠwW0123456789#.ab", "Ġw", "Ġw1"]
    model = models.BPE({letter: index for index, letter in enumerate(letters)}, [("Ġ", "w"), ("Ġw", "1")])
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token=None
    )


def one_item(folder: Path, answer: object, prompt: str = "w1") -> Path:
    for index, split in enumerate(("selection", "holdout")):
        (folder / f"{split}.jsonl").write_text(lines([{"prompt": f"w{index + 2}", "answer": "1"}]), encoding="utf-8")
    (folder / "search.jsonl").write_text(lines([{"prompt": prompt, "answer": answer}]), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("said", "answer", "options", "verdict"),
    [
        ("12", "12", {}, (1.0, "ok")),
        (" 12  ", "12", {}, (1.0, "ok")),
        ("1  2", "1 2", {}, (1.0, "ok")),
        ("1  2", "1 2", {"normalize": ["strip"]}, (0.0, "ok")),
        ("W1", "w1", {}, (0.0, "ok")),
        ("W1", "w1", {"normalize": ["strip", "lower"]}, (1.0, "ok")),
        ("w1.", "w1", {"normalize": ["strip", "punctuation"]}, (1.0, "ok")),
        ("12", "13", {}, (0.0, "ok")),
        ("13", ["12", "13"], {}, (1.0, "ok")),
        ("14", ["12", "13"], {}, (0.0, "ok")),
        ("3 # 4 # 5", "5", {"extract": {"after": "#"}}, (1.0, "ok")),
        ("3 4 5", "5", {"extract": {"after": "#"}}, (0.0, "failed")),
        ("3 4 5", "9 9 # 5", {"extract": "last_number"}, (1.0, "ok")),
        ("w w", "5", {"extract": "last_number"}, (0.0, "failed")),
        ("a7 b8 a9", "9", {"extract": {"regex": r"a(\d)"}}, (1.0, "ok")),
        ("a7 b8 a9", "a9", {"extract": {"regex": r"a\d"}}, (1.0, "ok")),
        ("7", "7", {"extract": {"regex": r"a(\d)"}}, (0.0, "failed")),
        ("12 # 4", "12", {"stop": ["#"]}, (1.0, "ok")),
        ("# 12", "12", {"stop": ["#"]}, (0.0, "ok")),
    ],
)
def test_verdicts_on_texts(tmp_path: Path, said: str, answer: object, options: dict, verdict: tuple) -> None:
    engine = Scripted({"w1": said}, tokenizer=subword_tokenizer())
    evaluator = ready(engine, one_item(tmp_path, answer), **options)
    scores = evaluator.score(engine, evaluator.items("search").ids)
    assert (scores.values["accuracy"][0], scores.statuses[0]) == verdict
    assert engine.asked[0]["stop"] == tuple(options.get("stop", ()))


def test_default_room_for_an_answer(tmp_path: Path, engine: HFEngine, data: Path) -> None:
    scripted = Scripted({"w1": "1"}, tokenizer=subword_tokenizer())
    for options, expected in (({}, 2 * 7 + 16), ({"extract": "last_number"}, 2 * 7 + 256), ({"max_new_tokens": 9}, 9)):
        evaluator = ready(scripted, one_item(tmp_path, "1 2 3 w"), **options)
        assert len(scripted.encode("1 2 3 w", special=False)) == 7
        evaluator.score(scripted, evaluator.items("search").ids)
        assert scripted.asked[-1]["max_new_tokens"] == expected
    assert ready(engine, data, mode="generate")._max_new_tokens == 5 + 1


def test_forced_by_the_user_where_it_is_stricter(tmp_path: Path) -> None:
    engine = Scripted({"w1": "12"}, tokenizer=subword_tokenizer())
    evaluator = ready(engine, one_item(tmp_path, "12"), mode="teacher_forced")
    with pytest.raises(AssertionError, match="several spellings"):
        evaluator.score(engine, evaluator.items("search").ids)


@pytest.mark.parametrize(
    "options",
    [{"extract": {"after": "w"}}, {"stop": ["#"]}, {"normalize": ["lower"]}, {"normalize": ["strip", "punctuation"]}],
)
def test_auto_generates_where_teacher_forcing_is_no_proof(engine: HFEngine, data: Path, options: dict) -> None:
    evaluator = ready(engine, data, **options)
    assert all(prepared.request is None for prepared in evaluator._prepared.values())


def test_auto_generates_for_several_answers_and_forces_for_one(engine: HFEngine, tmp_path: Path) -> None:
    items = [{"prompt": "w1", "answer": ["w2", "w3"]}, {"prompt": "w2", "answer": ["w3"]}]
    evaluator = ready(engine, write(tmp_path, search=lines(items)))
    forced = {item.value.record["prompt"]: evaluator._prepared[name].request for name, item in evaluator._items.items()}
    assert forced["w1"] is None
    assert forced["w2"] == ([2, 6], [7, 3])
    assert evaluator.score(engine, evaluator.items("search").ids).ids == evaluator.items("search").ids


def write(folder: Path, **splits: str | bytes) -> Path:
    for index, split in enumerate(("search", "selection", "holdout")):
        content = splits.get(split, lines([{"prompt": f"w{index + 20}", "answer": "w1"}]))
        (folder / f"{split}.jsonl").write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


GOOD = '{"prompt": "w1", "answer": "w2"}\n'


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"search": ""}, r"search\.jsonl: the split search is empty"),
        ({"holdout": "\n \n"}, r"holdout\.jsonl: the split holdout is empty"),
        ({"search": GOOD + "{nope}\n"}, r"search\.jsonl:2: not JSON \(Expecting property name.*column 2\)"),
        ({"search": "[1]\n"}, r"search\.jsonl:1: expected a JSON object, found a list"),
        ({"search": "9" * 5000}, r"search\.jsonl:1: not JSON"),
        ({"search": "[" * 100_000}, r"search\.jsonl:1: not JSON"),
        ({"search": "\n\n" + '{"prompt": "w1"}'}, r'search\.jsonl:3: the field "answer" is missing; this line has pr'),
        ({"search": '{"prompt": 3, "answer": "w"}'}, r'search\.jsonl:1: the field "prompt" must be a text, found a nu'),
        ({"search": '{"prompt": ["w1"], "answer": "w"}'}, r'"prompt" must be a text, found a list'),
        ({"search": '{"prompt": "w1", "answer": null}'}, r'"answer" must be a text or a list of texts, found null'),
        ({"search": '{"prompt": "w1", "answer": ["w1", 2]}'}, r'"answer" must be a text or a list of texts, found a'),
        ({"search": '{"prompt": "w1", "answer": []}'}, r'"answer" is an empty list'),
        ({"search": '{"prompt": "w1", "answer": " "}'}, r'"answer" is empty'),
        ({"search": '{"prompt": "w1", "answer": "w", "id": 7.5}'}, r'"id" must be a text or a whole number, found a'),
        ({"search": '{"prompt": "w1", "answer": "\\ud800"}'}, r'"answer" has half a surrogate pair at character 1'),
        ({"search": GOOD.encode() + b'{"prompt": "\xff"}'}, r"search\.jsonl:2: not UTF-8 \(byte 13 of the line\)"),
        ({"search": GOOD + GOOD}, r"search\.jsonl:2: the same item as .*search\.jsonl:1 .*equal in all that counts"),
        ({"search": GOOD, "holdout": GOOD}, r"holdout\.jsonl:1: the same item as .*search\.jsonl:1 .*leak"),
        (
            {split: f'{{"prompt": "{split}", "answer": "w2", "id": "a"}}' for split in ("search", "selection")},
            r'selection\.jsonl:1: the id "a" is taken by .*search\.jsonl:1',
        ),
    ],
)
def test_bad_data_is_named_by_file_and_line(tmp_path: Path, splits: dict, message: str) -> None:
    with pytest.raises(EvaluatorError, match=message) as error:
        ExactMatch(ExactMatchOptions(data=write(tmp_path, **splits)))
    assert "\n" not in str(error.value)


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(EvaluatorError, match=r"expected a folder with search\.jsonl.*nowhere.*no such folder"):
        ExactMatch(ExactMatchOptions(data=tmp_path / "nowhere"))
    (write(tmp_path) / "selection.jsonl").unlink()
    with pytest.raises(
        EvaluatorError, match=r"the file of the split selection is missing: expected .*selection\.jsonl"
    ):
        ExactMatch(ExactMatchOptions(data=tmp_path))
    with pytest.raises(EvaluatorError, match="the split selection has no file"):
        ExactMatch(ExactMatchOptions(data={"search": tmp_path / "search.jsonl"}))


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        ({"prompt": "w1", "answer": "w2 zebra"}, {}, r'search\.jsonl:1: the answer "w2 zebra" holds what'),
        ({"prompt": "w1", "answer": " ".join(["w2"] * 63)}, {}, r"jsonl:1: .* are 66 tokens, .* positions for 64"),
        ({"prompt": " ".join(["w2"] * 70), "answer": "w2"}, {}, r"search\.jsonl:1: .* are 73 tokens"),
        ({"prompt": "w1", "answer": "w2 w3"}, {"max_new_tokens": 2}, r"search\.jsonl:1: .* raise it to 3 at least"),
        ({"prompt": "w1", "answer": ["w2", "w3"]}, {"mode": "teacher_forced"}, r"jsonl:1: several accepted answers"),
        ({"prompt": "w1", "answer": "w"}, {"extract": "last_number"}, r'search\.jsonl:1: .* "w" holds no number'),
        ({"prompt": "w1", "answer": "?"}, {"normalize": ["punctuation"]}, r'search\.jsonl:1: nothing is left .* "\?"'),
    ],
)
def test_bad_answers_are_found_before_the_search(
    learned: torch.nn.Module, tmp_path: Path, line: dict, options: dict, message: str
) -> None:
    engine = HFEngine(learned, word_tokenizer([*(f"w{index}" for index in range(34)), "w", "?"]))
    with pytest.raises(EvaluatorError, match=message):
        ready(engine, write(tmp_path, search=lines([line])), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "teacher_forced", "extract": "last_number"}, "teacher_forced compares the whole answer"),
        ({"mode": "teacher_forced", "stop": ["#"]}, "teacher_forced compares the whole answer"),
        ({"mode": "greedy"}, "'auto', 'teacher_forced' or 'generate'"),
        ({"stop": [""]}, "a stop string must not be empty"),
        ({"limit": {"search": 0}}, "the limit of search must be at least 1, got 0"),
        ({"limit": {"test": 5}}, "'search', 'selection' or 'holdout'"),
        ({"extract": {"regex": "(a"}}, "not a regular expression"),
        ({"normalize": ["upper"]}, "'strip', 'lower', 'squeeze', 'punctuation'"),
        ({"mode": "teacher_forced", "language": "ja"}, "teacher_forced writes no text"),
        ({"mode": "teacher_forced", "sampling": {}}, "teacher_forced writes no text"),
        ({"sampling": {"temperature": 0}}, "greater than 0"),
        ({"prompt_field": "q", "prompt": {"template": "{x}"}}, "drop prompt_field"),
        ({"extract": {"choice": "abc"}}, "A-Z"),
        ({"prompt": {"template": "{prompt} {answer}"}}, "would tell the answer"),
        ({"prompt_field": "answer"}, "two different fields"),
        ({"max_new_token": 3}, "Extra inputs are not permitted"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ExactMatchOptions(data=Path("d"), **options)


def test_scoring_needs_this_engine_and_known_ids(engine: HFEngine, data: Path, learned: torch.nn.Module) -> None:
    evaluator = ready(engine, data)
    other = HFEngine(learned, word_tokenizer([f"v{index}" for index in range(36)]))
    with pytest.raises(EvaluatorError, match=r"call prepare\(engine\) before score"):
        evaluator.score(other, [])
    with pytest.raises(EvaluatorError, match='no item "x"'):
        evaluator.score(engine, ["x"])
    with pytest.raises(EvaluatorError, match=r"call prepare\(engine\)"):
        ExactMatch(ExactMatchOptions(data=data)).score(engine, [])


def test_fields_files_and_byte_order_marks(engine: HFEngine, data: Path, tmp_path: Path) -> None:
    """Other names, other files, other paths, other line ends: the same items, and the same score."""
    files = {}
    for split in ("search", "selection", "holdout"):
        records = [json.loads(line) for line in (data / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        renamed = [{"q": r["prompt"], "a": [r["answer"]], "stratum": r["stratum"]} for r in reversed(records)]
        files[split] = tmp_path / f"other-{split}"
        files[split].write_bytes(b"\xef\xbb\xbf" + lines(renamed).replace("\n", "\r\n\r\n").encode())
    one = ready(engine, data)
    other = ExactMatch(ExactMatchOptions(data=files, prompt_field="q", answer_field="a"))
    other.prepare(engine)
    assert other.items("search") == one.items("search")
    assert other.fingerprint == one.fingerprint
    assert scores_of(one, engine) == scores_of(other, engine)


def test_fingerprint_depends_on_what_a_verdict_depends_on(data: Path) -> None:
    def fingerprint(**options: object) -> str:
        return ExactMatch(ExactMatchOptions(data=data, **options)).fingerprint

    seen = [
        fingerprint(),
        fingerprint(mode="generate"),
        fingerprint(stop=["w1"]),
        fingerprint(max_new_tokens=50),
        fingerprint(normalize=["strip", "lower"]),
        fingerprint(extract={"after": "w"}),
        fingerprint(limit={"search": 10}),
    ]
    assert len(set(seen)) == len(seen)


def test_limits_are_nested_and_stratified(data: Path) -> None:
    subsets = {
        count: ExactMatch(ExactMatchOptions(data=data, limit={"search": count})).items("search")
        for count in (5, 10, 20, 40, 1000)
    }
    assert [len(items) for items in subsets.values()] == [5, 10, 20, 40, 48]
    counts = list(subsets)
    for smaller, larger in itertools.pairwise(counts):
        assert set(subsets[smaller].ids) < set(subsets[larger].ids)
    assert len(set(subsets[5].strata)) == 5
    in_file = [json.loads(line)["prompt"] for line in (data / "search.jsonl").read_text(encoding="utf-8").splitlines()]
    few = ExactMatch(ExactMatchOptions(data=data, limit={"search": 10}))
    kept = [few._items[name].value.record["prompt"] for name in few.items("search").ids]
    assert set(kept) != set(in_file[:10])


@pytest.mark.slow
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_every_prefix_has_the_strata_in_proportion(sizes: list[int], seed: int) -> None:
    items = [
        Item(f"{stratum}-{index}", {}, str(stratum), f"{seed}-{stratum}-{index}", "")
        for stratum, size in enumerate(sizes)
        for index in range(size)
    ]
    order = balanced_order(items)
    assert sorted(item.id for item in order) == sorted(item.id for item in items)
    assert balanced_order(reversed(items)) == order
    for length in range(1, len(order) + 1):
        for stratum, size in enumerate(sizes):
            found = sum(item.stratum == str(stratum) for item in order[:length])
            assert abs(found - length * size / len(order)) <= 1 + len(sizes) / 2
