"""Calibration data that hold an item of a holdout: found whatever their case and white space, and nothing else is."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from calibration_samples import write_splits
from evaluator_samples import lines
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval_fixtures import (  # noqa: F401
    lm_eval_build,
    lm_eval_cache,
    lm_eval_folder,
    lm_eval_own_tasks,
)
from PIL import Image
from speech_samples import write_data

import evaluators
from evaluators.calibration import InputsOptions, draw_rows, item_contents, overlap
from evaluators.calibration.leaks import folded
from evaluators.contract import Evaluator, EvaluatorError
from evaluators.items import Table

SUBJECTS = ("the lighthouse keeper", "a travelling grocer", "my younger sister", "the bus driver", "an old sailor")
OBJECTS = ("seventeen baskets of pears", "four barrels of oil", "a crate with lemons", "eleven sacks of grain")


def question(index: int) -> str:
    subject, thing = SUBJECTS[index % 5], OBJECTS[index // 5 % 4]
    return f"If {subject} buys {thing} on day {index} and sells half of them, how many are left?"


@pytest.fixture
def quiz(tmp_path: Path) -> Evaluator:
    """Items 0 … 19 for the search, 100 … 105 for the selection, 200 … 219 for the holdout."""
    row = lambda i: {"prompt": question(i), "answer": f"{i * 3} pieces"}  # noqa: E731
    items = {"search": range(20), "selection": range(100, 106), "holdout": range(200, 220)}
    return evaluators.build(
        "exact_match", {"data": write_splits(tmp_path / "quiz", {k: list(map(row, v)) for k, v in items.items()})}
    )


def refused(folder: Path, evaluator: Evaluator, records: list[dict[str, Any]], **options: Any) -> bool:
    """Whether these rows are refused, with row and item named."""
    file = folder / "calibration.jsonl"
    file.write_text(lines(records), encoding="utf-8")
    drawn = draw_rows(InputsOptions(data=file, **(options or {"text": "{text}"})), len(records))
    try:
        assert overlap(drawn, evaluator, "quiz")
    except EvaluatorError as error:
        assert "calibration.jsonl:" in str(error)
        assert "of the holdout of quiz" in str(error)
        return True
    return False


def test_its_own_search_split_is_none(tmp_path: Path, quiz: Evaluator) -> None:
    records = [{"text": question(index)} for index in [*range(20), *range(300, 340)]]
    assert not refused(tmp_path, quiz, records)


@pytest.mark.parametrize(
    "written",
    [
        "{}",
        "Solve this carefully. {} Think step by step.",
        "<s>{}</s>",
    ],
)
def test_a_text_inside_another(tmp_path: Path, quiz: Evaluator, written: str) -> None:
    records = [{"text": written.format(question(300))}, {"text": written.format(question(207))}]
    assert refused(tmp_path, quiz, records)


def test_punctuation_at_its_ends_does_not_count(tmp_path: Path, quiz: Evaluator) -> None:
    assert refused(tmp_path, quiz, [{"text": question(207).rstrip("?") + ", please"}])


def test_the_message_names_row_and_item(tmp_path: Path, quiz: Evaluator) -> None:
    file = tmp_path / "c.jsonl"
    file.write_text(lines([{"text": question(1)}, {"text": f"Q: {question(219)}"}]), encoding="utf-8")
    drawn = draw_rows(InputsOptions(data=file), 2)
    with pytest.raises(
        EvaluatorError, match=r"c\.jsonl:2: .* of the item .*holdout\.jsonl:20\) of the holdout of maths"
    ):
        overlap(drawn, quiz, "maths")


@settings(max_examples=30, deadline=None)
@given(index=st.integers(0, 99), chance=st.randoms(use_true_random=False))
def test_case_width_and_white_space_do_not_count(index: int, chance: random.Random) -> None:
    text = question(index)
    spaces = (" ", "  ", "\n", "\t", "\u00a0", "\u3000")
    changed = "".join(
        chance.choice(spaces) if c == " " else chance.choice((c.upper(), c.lower())) if c.isalpha() else c for c in text
    )
    wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in changed)
    assert folded(changed) == folded(wide) == folded(text)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.from_regex(r"[a-zA-Z0-9]{1,4}", fullmatch=True), min_size=1, max_size=6), st.data())
def test_words_and_numbers_stay_apart(words: list[str], data: st.DataObject) -> None:
    """ "1 23" is not "12 3": folding is the identity on words but for their case."""
    spaces = [data.draw(st.sampled_from([" ", "\n ", "\t\t"])) for _ in words]
    text = "".join(word + space for word, space in zip(words, spaces, strict=True))
    assert folded(text) == " ".join(word.casefold() for word in words)
    assert folded(folded(text)) == folded(text)


def test_a_number_that_goes_on_is_another(tmp_path: Path) -> None:
    row = lambda i: {"prompt": f"What is the sum of all the numbers between one and {i}", "answer": str(i)}  # noqa: E731
    items = {"search": [row(1000)], "selection": [row(2000)], "holdout": [row(12), row(400)]}
    evaluator = evaluators.build("exact_match", {"data": write_splits(tmp_path / "sums", items)})
    for end, expected in (("123", False), ("412", False), ("12", True), ("12?", True), ("12 and 14", True)):
        text = f"What is the sum of all the numbers between one and {end}"
        assert refused(tmp_path, evaluator, [{"text": text}]) is expected, end


def test_scripts_without_spaces(tmp_path: Path) -> None:
    row = lambda i: {"prompt": f"東京の図書館には本が{i}冊あります。半分を貸し出すと何冊残りますか。", "answer": str(i)}  # noqa: E731
    items = {"search": [row(10)], "selection": [row(20)], "holdout": [row(30), row(40)]}
    evaluator = evaluators.build("exact_match", {"data": write_splits(tmp_path / "ja", items)})
    assert refused(tmp_path, evaluator, [{"text": f"問題です{row(30)['prompt']}よく考えて"}])
    assert not refused(tmp_path, evaluator, [{"text": f"問題です{row(50)['prompt']}よく考えて"}])


@pytest.mark.parametrize("common", ["hello", "How are you doing today?", "Tell me a joke", "yes", "What is this?"])
def test_short_and_common_prompts_say_nothing(tmp_path: Path, common: str) -> None:
    row = lambda text, i: {"prompt": text, "answer": f"answer number {i}"}  # noqa: E731
    items = {"search": [row("a", 1)], "selection": [row("b", 2)], "holdout": [row(common, 3), row("d", 4)]}
    evaluator = evaluators.build("exact_match", {"data": write_splits(tmp_path / "chat", items)})
    assert not refused(tmp_path, evaluator, [{"text": common}, {"text": f"{common} I said {common}"}])


@pytest.mark.parametrize("template", ["{prompt}", "{prompt} {answer}", "{prompt}\n{answer}."])
def test_a_copy_of_short_items_is_no_chance(tmp_path: Path, template: str) -> None:
    """One short prompt may be there by chance, three are a copy."""
    row = lambda i: {"prompt": f"add up {i} and 3", "answer": f"{i + 3}"}  # noqa: E731
    items = {"search": [row(1)], "selection": [row(2)], "holdout": [row(i) for i in range(10, 30)]}
    evaluator = evaluators.build("exact_match", {"data": write_splits(tmp_path / "sums", items)})
    copied = [{"text": template.format(**row(i))} for i in (11, 12, 13)]
    assert refused(tmp_path, evaluator, copied)
    assert not refused(tmp_path, evaluator, copied[:2])


def test_what_many_items_share_says_nothing(tmp_path: Path) -> None:
    """A system prompt, of the holdout alone even (splits may be different tasks), an instruction, worked examples."""
    system = "You are a careful assistant who answers in one short sentence and never makes anything up."

    def row(index: int, told: str) -> dict[str, Any]:
        prompt = [{"role": "system", "content": told}, {"role": "user", "content": question(index)}]
        return {"prompt": prompt, "chosen": f"{index} is right", "rejected": f"{index} is wrong"}

    items = {
        "search": [row(i, "Be brief.") for i in range(6)],
        "selection": [row(i, "Be brief.") for i in range(100, 104)],
        "holdout": [row(i, system) for i in range(200, 206)],
    }
    evaluator = evaluators.build("reward_pairs", {"data": write_splits(tmp_path / "pairs", items)})
    talks = [
        {"talk": [{"role": "system", "content": system}, {"role": "user", "content": question(i)}]} for i in (300, 301)
    ]
    assert not refused(tmp_path, evaluator, talks, chat="talk")
    talks[1]["talk"][1]["content"] = question(203)
    assert refused(tmp_path, evaluator, talks, chat="talk")


def test_what_the_search_sees_anyway_says_nothing(tmp_path: Path) -> None:
    """A passage on which one question is in the search split and another in the holdout; the latter is still known."""
    row = lambda i, passage: {"passage": passage, "question": question(i), "answer": "7"}  # noqa: E731
    passage = "The harbour was built in 1871, and for forty years no ship larger than a trawler was let in."
    items = {
        "search": [row(1, passage), row(2, "A passage of the search.")],
        "selection": [row(3, "Another one, of the selection.")],
        "holdout": [row(4, passage), row(5, "The last passage, which is the holdout's alone: it rained all summer.")],
    }
    prompt = {"template": "{passage} {question}"}
    evaluator = evaluators.build("exact_match", {"data": write_splits(tmp_path / "read", items), "prompt": prompt})
    assert not refused(tmp_path, evaluator, [{"text": f"{passage} {question(300)}"}])
    assert refused(tmp_path, evaluator, [{"text": f"{passage} {question(4)}"}])
    assert refused(tmp_path, evaluator, [{"text": f"{items['holdout'][1]['passage']} {question(300)}"}])


def test_worked_examples_are_no_items(tmp_path: Path, quiz: Evaluator) -> None:
    """A calibration text with the evaluator's own worked examples before it, as its prompts have them."""
    shots = "\n\n".join(f"{question(i)} {i * 3} pieces" for i in range(60, 65))
    assert not refused(tmp_path, quiz, [{"text": f"{shots}\n\n{question(i)}"} for i in range(300, 320)])


def test_the_holdouts_file_itself(tmp_path: Path) -> None:
    """However short its texts are, and however the file is named; a copy of it where answers are read as well."""
    row = lambda i: {"prompt": f"sort : c {i} a =>", "answer": f"a {i} c"}  # noqa: E731
    items = {"search": [row(1)], "selection": [row(2)], "holdout": [row(3), row(4)]}
    folder = write_splits(tmp_path / "data", items)
    evaluator = evaluators.build("exact_match", {"data": folder})
    there = folder / ".." / "data" / "holdout.jsonl"
    with pytest.raises(EvaluatorError, match="this row is the item"):
        overlap(draw_rows(InputsOptions(data=there, text="{prompt}"), 1), evaluator)
    shutil.copy(there, tmp_path / "copy.jsonl")
    both = InputsOptions(data=tmp_path / "copy.jsonl", text="{prompt} {answer}")
    with pytest.raises(EvaluatorError, match="the same texts as the item"):
        overlap(draw_rows(both, 1), evaluator)
    assert overlap(draw_rows(InputsOptions(data=folder, text="{prompt} {answer}"), 1), evaluator)


def test_one_table_that_is_cut(tmp_path: Path) -> None:
    """Some of its rows are the holdout's; those that the search sees are fine."""
    file = tmp_path / "all.jsonl"
    file.write_text(lines([{"text": f"w{i} w1"} for i in range(60)]), encoding="utf-8")
    evaluator = evaluators.build("perplexity", {"data": Table(file=file)})
    with pytest.raises(EvaluatorError, match=r"all\.jsonl:\d+: this row is the item"):
        overlap(draw_rows(InputsOptions(data=file), 60), evaluator)
    assert overlap(item_contents(evaluator, "search"), evaluator)


def test_images_by_their_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for index in range(8):
        Image.new("RGB", (4, 4), (index, 0, 0)).save(folder / f"{index}.png")
    row = lambda i: {"picture": f"{i}.png", "label": i % 2}  # noqa: E731
    items = {"search": [row(0), row(1)], "selection": [row(2)], "holdout": [row(3), row(4)]}
    evaluator = evaluators.build("classification", {"data": write_splits(folder, items), "image_field": "picture"})
    for index in (5, 4):
        shutil.copy(folder / f"{index}.png", tmp_path / f"other-{index}.png")
        assert refused(tmp_path, evaluator, [{"file": f"other-{index}.png"}], image="file") is (index == 4)


def test_recordings_by_their_bytes(tmp_path: Path) -> None:
    """Not by what is said in them: a text that occurs in both is no leak of a recording."""
    data = write_data(tmp_path / "data", 6)
    said = "ada bel cid dodo ell fan gag hobby " * 3
    holdout = [json.loads(line) for line in (data / "holdout.jsonl").read_text(encoding="utf-8").splitlines()]
    write_splits(data, {"holdout": [{**row, "text": f"{said}{place}"} for place, row in enumerate(holdout)]})
    evaluator = evaluators.build("wer", {"data": data})
    assert not refused(tmp_path, evaluator, [{"text": f"{said}1"}])
    for split, expected in (("search", False), ("holdout", True)):
        shutil.copy(data / f"{split}-001.wav", tmp_path / "renamed.wav")
        assert refused(tmp_path, evaluator, [{"sound": "renamed.wav"}], audio="sound") is expected


def test_other_kinds_of_items(tmp_path: Path) -> None:
    """Choices, documents, records of functions: whatever their evaluators keep of them."""
    (tmp_path / "own.py").write_text("def score(item, answer):\n    return True\n", encoding="utf-8")
    numbers = {"search": range(4), "selection": range(100, 103), "holdout": range(200, 204)}
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "choice": (lambda i: {"question": question(i), "choices": ["one of them", "none"], "answer": 0}, {}),
        "perplexity": (lambda i: {"text": question(i)}, {}),
        "python": (lambda i: {"prompt": question(i)}, {"path": f"{tmp_path / 'own.py'}:score"}),
        "similarity": (lambda i: {"sentence1": question(i), "sentence2": "a text", "score": i}, {}),
        "refusal": (lambda i: {"prompt": question(i), "kind": "harmful" if i % 2 else "benign"}, {}),
        "classification": (lambda i: {"text": question(i), "label": i % 2}, {}),
    }
    for kind, (row, options) in kinds.items():
        data = write_splits(tmp_path / kind, {split: list(map(row, own)) for split, own in numbers.items()})
        evaluator = evaluators.build(kind, {"data": data, **options})
        assert refused(tmp_path, evaluator, [{"text": question(202)}]), kind
        assert not refused(tmp_path, evaluator, [{"text": question(2)}, {"text": question(302)}]), kind


def test_documents_of_lm_eval(tmp_path: Path, build: Any) -> None:
    """The adapter keeps the numbers of documents; what they say is read from the task."""
    evaluator = build("reversal_generate")
    contents = item_contents(evaluator, "holdout")
    assert contents and all(each.texts for each in contents)
    longest = max((text for each in contents for text in each.texts), key=len)
    assert len(folded(longest).encode()) >= 40
    assert refused(tmp_path, evaluator, [{"text": f"w9 . {longest} . w9"}])
    own = item_contents(evaluator, "search", evaluator.items("search").ids[:5])
    assert len(own) == 5
    assert overlap(own, evaluator)


def test_an_evaluator_that_nobody_can_look_into(tmp_path: Path) -> None:
    assert not overlap([], object())  # type: ignore[arg-type]


@pytest.mark.slow
def test_no_false_alarm_between_real_splits(nano_zoo: Path) -> None:
    """The zoo's tasks: search splits of every task against holdouts of every task, which share a small vocabulary."""
    built = {
        name: evaluators.build("exact_match", {"data": nano_zoo / "data" / name})
        for name in ("math", "string", "language")
    }
    for name, evaluator in built.items():
        for other in built.values():
            rows = item_contents(other, "search")
            assert rows
            assert overlap(rows, evaluator, name)
            with pytest.raises(EvaluatorError):
                overlap([*rows, item_contents(evaluator, "holdout")[0]], evaluator)
