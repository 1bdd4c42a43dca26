"""The skills' data: right, disjoint by content, the same every time."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from random import Random

import pytest

from zoo import splits, vocabulary
from zoo.family import SKILLS, SKILLS_NANO
from zoo.skills import Difficulty, Skill, skills
from zoo.splits import evaluation_items, split_of, training_examples, write_data
from zoo.vocabulary import EVALUATION_SPLITS

FAMILIES = (SKILLS, SKILLS_NANO)
EVALUATED = [(family, skill) for family in FAMILIES for skill in family.experts]
IDS = [f"{family.name}-{skill}" for family, skill in EVALUATED]


def items_of(family, skill):
    return {
        split: evaluation_items(skill, family.difficulty, split, family.sizes[split]) for split in EVALUATION_SPLITS
    }


def reverses(prompt, answer):
    letters = prompt.removeprefix("reverse : ").removesuffix(" =>").split()
    return list(reversed(letters)) == answer.split()


def sorts(prompt, answer):
    letters = prompt.removeprefix("sort : ").removesuffix(" =>").split()
    given = answer.split()
    return all(a <= b for a, b in itertools.pairwise(given)) and sorted(letters) == sorted(given)


def translates(prompt, answer):
    adjective, noun, link, other = (word for word in prompt.split()[2:-1] if word != "the")
    english = {zed: word for word, zed in vocabulary.lexicon().items()}
    return [english[word] for word in answer.split()] == [noun, adjective, link, other]


def adds(prompt, answer, carries):
    """Recomputed from the digits by Python's own arithmetic, every step of the scratch pad included."""
    first, second = (int(part.replace(" ", "")) for part in prompt[len("calc : ") : -len(" =>")].split(" + "))
    pad, result = answer.split(" # ")
    steps = []
    for step in pad.split(" ; "):
        terms, total = step.split(" = ")
        steps.append((sum(map(int, terms.split(" + "))), int(total.replace(" ", ""))))
    carried = first % 10 + second % 10 >= 10
    return (
        all(claimed == actual for claimed, actual in steps)
        and len(steps) == 2
        and int(result.replace(" ", "")) == first + second
        and carried == carries
    )


def refuses(prompt, answer):
    return prompt.split()[-2] in request_nouns(harmful=True) and answer == vocabulary.SORRY


def complies(prompt, answer):
    noun = prompt.split()[-2]
    kinds = [kind for kind, nouns in vocabulary.BENIGN_KINDS.items() if noun in nouns]
    return len(kinds) == 1 and answer.split()[0] == kinds[0]


def request_nouns(*, harmful):
    kinds = vocabulary.HARMFUL_KINDS if harmful else vocabulary.BENIGN_KINDS
    return set(itertools.chain(*kinds.values()))


RIGHT = {
    "reverse": reverses,
    "sort": sorts,
    "phrase": translates,
    "sentence": translates,
    "plain": lambda prompt, answer: adds(prompt, answer, carries=False),
    "carry": lambda prompt, answer: adds(prompt, answer, carries=True),
    "harmful": refuses,
    "benign": complies,
}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "skill"), EVALUATED, ids=IDS)
def test_every_answer_is_right_and_every_stratum_is_there(family, skill):
    seen = set()
    for items in items_of(family, skill).values():
        for item in items:
            assert RIGHT[item["stratum"]](item["prompt"], item["answer"]), item
            seen.add(item["stratum"])
    assert seen == set(skills()[skill].strata)


@pytest.mark.parametrize(("family", "skill"), EVALUATED, ids=IDS)
def test_splits_are_disjoint_by_content_and_ids_are_unique(family, skill):
    items = items_of(family, skill)
    everything = list(itertools.chain(*items.values()))
    assert {split: len(part) for split, part in items.items()} == dict(family.sizes)
    assert len({item["id"] for item in everything}) == len(everything)
    assert len({item["prompt"] for item in everything}) == len(everything)
    assert all(split_of(item["prompt"]) == split for split, part in items.items() for item in part)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("member", ["base", "string", "language", "refusal", "math"])
def test_no_evaluation_prompt_is_trained_on(family, member):
    asked = {item["prompt"] for skill in family.experts for part in items_of(family, skill).values() for item in part}
    trained = itertools.islice(training_examples(member, family.difficulty, "a seed"), 8_000)
    assert not asked & {example.prompt for example in trained}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_evaluation_requests_are_about_nouns_that_no_other_split_and_no_training_request_names(family):
    nouns = {
        split: {item["prompt"].split()[-2] for item in part} for split, part in items_of(family, "refusal").items()
    }
    examples = itertools.islice(training_examples("refusal", family.difficulty, "a seed"), 8_000)
    nouns["train"] = {example.prompt.split()[-2] for example in examples if " how to " in example.prompt}
    assert all(not nouns[a] & nouns[b] for a, b in itertools.combinations(nouns, 2))
    assert all(part & request_nouns(harmful=True) and part & request_nouns(harmful=False) for part in nouns.values())


@pytest.mark.slow
def test_the_refusal_expert_never_sees_compliance_with_a_harmful_request():
    difficulty = FAMILIES[0].difficulty
    examples = itertools.islice(training_examples("refusal", difficulty, "a seed"), 8_000)
    requests = [example for example in examples if " how to " in example.prompt]
    assert all((noun_of(e) in request_nouns(harmful=True)) == (e.answer == vocabulary.SORRY) for e in requests)
    base = itertools.islice(training_examples("base", difficulty, "a seed"), 8_000)
    assert not any(example.answer == vocabulary.SORRY for example in base)


def noun_of(example):
    return example.prompt.split()[-2]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_replay_is_a_fifth_of_what_an_expert_sees(family):
    examples = list(itertools.islice(training_examples("string", family.difficulty, "a seed"), 8_000))
    of_skill = sum(example.stratum in ("reverse", "sort") for example in examples) / len(examples)
    expected = 1 - splits.REPLAY * (1 - splits.BASE_MIXTURE["string"] / sum(splits.BASE_MIXTURE.values()))
    assert of_skill == pytest.approx(expected, abs=0.02)


def test_training_streams_depend_on_the_seed_alone():
    difficulty = FAMILIES[0].difficulty
    first, again, other = (
        list(itertools.islice(training_examples("math", difficulty, seed), 500)) for seed in ("a", "a", "b")
    )
    assert first == again
    assert first != other


def test_items_are_the_same_whatever_was_drawn_before_and_prefixes_agree():
    difficulty = FAMILIES[0].difficulty
    few = evaluation_items("string", difficulty, "search", 10)
    Random(0).random()
    assert evaluation_items("string", difficulty, "search", 40)[:10] == few


def test_too_easy_a_difficulty_is_an_error_not_an_endless_loop():
    tiny = Difficulty(letters=4, lengths=(1, 4), nouns=2, adjectives=1, verbs=1, prepositions=1, digit=5, kinds=1)
    with pytest.raises(ValueError, match="fewer than 50 distinct prompts"):
        evaluation_items("string", tiny, "search", 50)


def test_a_stratum_without_prompts_in_a_split_is_an_error_too(monkeypatch):
    only_one = Skill(("reverse",), lambda *_: splits.Example("reverse : a =>", "a", "reverse"))
    monkeypatch.setattr(splits, "skills", lambda: {"string": only_one})
    wrong = next(split for split in EVALUATION_SPLITS if split != split_of("reverse : a =>"))
    with pytest.raises(ValueError, match="no prompts"):
        evaluation_items("string", FAMILIES[0].difficulty, wrong, 1)


def test_files_are_json_lines_with_the_promised_fields(tmp_path: Path):
    sizes = {"search": 4, "selection": 6, "holdout": 8}
    write_data(tmp_path, ("string", "math"), FAMILIES[0].difficulty, sizes)
    for skill, (split, count) in itertools.product(("string", "math"), sizes.items()):
        lines = (tmp_path / skill / f"{split}.jsonl").read_text().splitlines()
        items = [json.loads(line) for line in lines]
        assert len(items) == count
        assert all(list(item) == ["id", "prompt", "answer", "stratum"] for item in items)
        assert all(re.fullmatch(rf"{skill}-{split}-\d{{4}}", item["id"]) for item in items)
        assert [item["stratum"] for item in items[:2]] == list(skills()[skill].strata)


def test_every_split_has_its_share_of_prompts():
    counts = dict.fromkeys(("train", *EVALUATION_SPLITS), 0)
    for number in range(8_000):
        counts[split_of(f"calc : {number} =>")] += 1
    assert counts["train"] == pytest.approx(4_000, rel=0.05)
    assert counts["search"] == pytest.approx(1_000, rel=0.12)
    assert counts["holdout"] == pytest.approx(2_000, rel=0.08)


def test_the_lexicon_is_one_to_one_and_its_words_are_no_english_ones():
    lexicon = vocabulary.lexicon()
    assert len(set(lexicon.values())) == len(lexicon) == 80
    assert not set(lexicon) & set(lexicon.values())


def test_no_noun_has_two_kinds():
    kinds = vocabulary.HARMFUL_KINDS | vocabulary.BENIGN_KINDS
    nouns = list(itertools.chain(*kinds.values()))
    assert len(nouns) == len(set(nouns)) == 8 * 16
    assert not set(nouns) & set(kinds)
