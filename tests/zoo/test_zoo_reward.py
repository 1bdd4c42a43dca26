"""The reward family: pairs that differ in one thing, prompts in one split, judges that repeat to the bit."""

from __future__ import annotations

import dataclasses
import json
import re
from random import Random

import pytest
import torch

import zoo
from zoo.reward import POLITE, REWARD, RUDE, Schedule, build_tokenizer, draw_pair, evaluation_pairs, split_of

QUICK = dataclasses.replace(
    REWARD,
    layers=1,
    training={"base": Schedule(20, 3e-3, muon_lr=0.02), "style": Schedule(40, 3e-3)},
    sizes={"search": 60, "selection": 20, "holdout": 20},
)


def number(text):
    return int(re.search(r", ([\d ]+) ,", text)[1].replace(" ", ""))


def total(prompt):
    one, two = prompt.removeprefix("what is ").removesuffix(" ?").split(" + ")
    return int(one.replace(" ", "")) + int(two.replace(" ", ""))


@pytest.mark.parametrize("kind", ["arithmetic", "digits"])
def test_arithmetic_pairs_differ_in_one_digit_of_the_sum(kind):
    rng = Random(1)
    for _ in range(300):
        pair = draw_pair(rng, kind, "train")
        assert number(pair.chosen) == total(pair.prompt) != number(pair.rejected)
        words = list(zip(pair.chosen.split(), pair.rejected.split(), strict=True))
        assert [one.isdigit() and two.isdigit() for one, two in words if one != two] == [True]


def test_style_pairs_say_the_same_number_right_or_wrong():
    rng = Random(2)
    right = []
    for _ in range(300):
        pair = draw_pair(rng, "style", "train")
        assert number(pair.chosen) == number(pair.rejected)
        right.append(number(pair.chosen) == total(pair.prompt))
        assert set(pair.chosen.split()) & set(POLITE)
        assert not set(pair.chosen.split()) & set(RUDE)
        assert bool(set(pair.rejected.split()) & set(RUDE)) == (pair.subset == "rude")
        assert pair.rejected.endswith(" .") == (pair.subset != "unfinished")
    assert 0.4 < sum(right) / len(right) < 0.6


def test_prompts_are_in_one_split(tmp_path):
    REWARD.write_data(tmp_path, lambda *_: None)
    for part in REWARD.parts:
        for split, count in REWARD.sizes.items():
            items = [json.loads(line) for line in (tmp_path / part / f"{split}.jsonl").read_text().splitlines()]
            assert len({item["prompt"] for item in items}) == len(items) == count
            assert {split_of(item["prompt"]) for item in items} == {split}
            assert len({item["subset"] for item in items}) == (3 if part == "style" else 2)
    rng = Random(3)
    assert {split_of(draw_pair(rng, part, "train").prompt) for part in REWARD.parts for _ in range(100)} == {"train"}
    assert evaluation_pairs("style", "search", 5) == evaluation_pairs("style", "search", 9)[:5]


def test_the_tokenizer_knows_every_word():
    tokenizer = build_tokenizer()
    for pair in evaluation_pairs("style", "search", 30) + evaluation_pairs("arithmetic", "search", 30):
        ids = tokenizer(pair.prompt, pair.chosen)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == f"<bos> {pair.prompt} <sep> {pair.chosen} <eos>"


@pytest.mark.slow
def test_training_repeats_to_the_bit_and_learns(tmp_path):
    (tmp_path / "data").mkdir()
    QUICK.write_data(tmp_path / "data", lambda *_: None)
    one, two = (QUICK.train_member(tmp_path, "base", 0, lambda *_: None) for _ in range(2))
    assert one.loss == two.loss
    states = one.model.state_dict(), two.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    one.model.save_pretrained(tmp_path / "base")
    trained = QUICK.train_member(tmp_path, "style", 0, lambda *_: None)
    trained.model.save_pretrained(tmp_path / "style")
    base, own = (QUICK.scores(tmp_path, member, "search")["style"] for member in ("base", "style"))
    assert own > max(base, 0.5) + 0.1


@pytest.mark.slow
def test_judges_know_their_own_matter():
    folder = zoo.build("reward")
    table = {member: REWARD.scores(folder, member, "holdout") for member in REWARD.members}
    for mine, other in (("style", "arithmetic"), ("arithmetic", "style")):
        assert table[mine][mine] > 0.85, table  # 0.95 to 1 over training seeds
        assert table[mine][mine] > table["base"][mine] + 0.1, table
        assert table[mine][other] < table[other][other] - 0.1, table
