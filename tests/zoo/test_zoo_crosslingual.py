"""The family where one task needs two experts: its data are right, and nobody learns the task by itself."""

from __future__ import annotations

import itertools
import json

import pytest

import zoo
from zoo import vocabulary
from zoo.crosslingual import COMMON, CROSSLINGUAL, PARTS, RARE
from zoo.scores import accuracy, member_scores, read_items
from zoo.splits import REPLAY, split_of
from zoo.tokenizer import build_tokenizer
from zoo.training import POSITIONS, encode

ENGLISH = {zed: word for word, zed in vocabulary.lexicon().items()}
MEMBERS = CROSSLINGUAL.members
SPLITS = tuple(CROSSLINGUAL.sizes)


def examples(member, count=4_000, stream="a stream"):
    return list(itertools.islice(CROSSLINGUAL.examples(member, stream), count))


def asked(prompt):
    """Whether it is to be answered in zed, the operation, and the list."""
    head, _, rest = prompt.removesuffix(" =>").partition(" : ")
    return head.startswith("zed "), head.removeprefix("zed "), rest.split()


def is_right(prompt, answer):
    zed, operation, words = asked(prompt)
    worked, marker, said = answer.partition(" # ")
    assert bool(marker) == zed
    if zed:
        assert [ENGLISH[word] for word in said.split()] == worked.split()
    result = worked.split()
    match operation:
        case "reverse":
            return result[::-1] == words
        case "sort":
            return all(a < b for a, b in itertools.pairwise(result)) and set(result) == set(words)
        case "copy":
            return result == words
        case place:
            return result == words[int(place) - 1 : int(place)]


@pytest.fixture(scope="module")
def items():
    return {part: {split: CROSSLINGUAL.items(part, split) for split in SPLITS} for part in PARTS}


def test_answers_are_right_and_strata_come_by_turns(items):
    for part, splits in items.items():
        for rows in splits.values():
            assert all(is_right(row["prompt"], row["answer"]) for row in rows)
            assert [row["stratum"] for row in rows] == [PARTS[part][n % 2] for n in range(len(rows))]
            assert all(row["prompt"].startswith("zed ") == (part != "string") for row in rows)
            assert {tuple(word in ENGLISH.values() for word in asked(row["prompt"])[2]) for row in rows} == {
                (True,) * length for length in CROSSLINGUAL.difficulty.lengths
            }


def test_splits_are_disjoint_and_as_large_as_promised(items):
    rows = [(split, row) for splits in items.values() for split, found in splits.items() for row in found]
    assert len({row["prompt"] for _, row in rows}) == len({row["id"] for _, row in rows}) == len(rows)
    assert all(split_of(row["prompt"]) == split for split, row in rows)
    assert {split: len(found) for split, found in items["crosslingual"].items()} == dict(CROSSLINGUAL.sizes)


def test_data_are_written_as_they_are_drawn(items, tmp_path):
    CROSSLINGUAL.write_data(tmp_path, lambda *_: None)
    for part, splits in items.items():
        for split, rows in splits.items():
            written = (tmp_path / part / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
            assert list(map(json.loads, written)) == rows


@pytest.mark.parametrize("member", MEMBERS)
def test_no_evaluation_prompt_is_trained_on_and_what_is_learned_is_right(items, member):
    held = {row["prompt"] for splits in items.values() for rows in splits.values() for row in rows}
    seen = examples(member)
    assert not held & {example.prompt for example in seen}
    assert all(is_right(e.prompt, e.answer) for e in seen if e.stratum in {*PARTS["string"], *PARTS["language"]})
    assert seen == examples(member) != examples(member, stream="another")


@pytest.mark.parametrize("member", MEMBERS)
def test_texts_survive_the_tokenizer_and_fit_the_model(member):
    tokenizer = build_tokenizer()
    for example in examples(member, 500):
        prompt, answer = encode(example)
        assert tokenizer(example.prompt)["input_ids"] == prompt
        assert tokenizer.unk_token_id not in (*prompt, *answer)
        assert len(prompt) + len(answer) < POSITIONS


def test_no_expert_learns_the_crosslingual_task_but_by_replay():
    for member, own in (("language", PARTS["language"]), ("string_a", PARTS["string"]), ("string_b", PARTS["string"])):
        seen = examples(member)
        task = [e for e in seen if e.prompt.startswith("zed ") and e.stratum in PARTS["crosslingual"]]
        # 10 of the mixture's 63 shares, of the fifth that is replayed.
        assert len(task) / len(seen) == pytest.approx(REPLAY * 10 / 63, abs=0.01)
        assert sum(e.stratum in own for e in seen) / len(seen) > 0.8
    letters = sum(len(word) == 1 for e in examples("string_b") for word in asked(e.prompt)[2])
    assert letters > 0.3 * sum(len(asked(e.prompt)[2]) for e in examples("string_b"))


def test_the_base_knows_the_zed_of_common_words_only():
    common = set(vocabulary.NOUNS[:COMMON])
    lists = [asked(e.prompt)[2] for e in examples("base", 8_000) if e.prompt.startswith("zed ")]
    with_others = sum(not set(words) <= common for words in lists) / len(lists)
    assert 0 < with_others <= 1.5 * RARE
    assert {word for words in lists for word in words} == set(vocabulary.NOUNS[: CROSSLINGUAL.difficulty.nouns])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sum_of_task_vectors_does_what_no_source_can():
    from transformers import LlamaForCausalLM

    folder = zoo.build("crosslingual")
    table = {member: member_scores(CROSSLINGUAL, folder, member) for member in MEMBERS}
    assert table["language"]["language"] > 0.85 and table["base"]["language"] < 0.75, table
    assert min(table["string_a"]["string"], table["string_b"]["string"]) > 0.8 > table["base"]["string"], table
    base, language, string = (
        LlamaForCausalLM.from_pretrained(folder / each, local_files_only=True)
        for each in ("base", "language", "string_a")
    )
    weights = base.state_dict()
    merged = {
        name: weights[name] + 0.6 * (value - weights[name]) + 0.6 * (string.state_dict()[name] - weights[name])
        for name, value in language.state_dict().items()
    }
    base.load_state_dict(merged)
    rows = read_items(folder / "data" / "crosslingual" / "holdout.jsonl")
    best = max(each["crosslingual"] for each in table.values())
    assert accuracy(base, rows, CROSSLINGUAL.marker("crosslingual")) > best, table
