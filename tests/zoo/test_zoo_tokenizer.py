"""One word, one token: every generated text survives the tokenizer."""

from __future__ import annotations

import itertools

import pytest
from transformers import AutoTokenizer

from zoo import vocabulary
from zoo.family import SKILLS, SKILLS_NANO
from zoo.skills import Example
from zoo.splits import evaluation_items, training_examples
from zoo.tokenizer import build_tokenizer
from zoo.training import POSITIONS, encode
from zoo.vocabulary import EVALUATION_SPLITS


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def generated_texts(family):
    for skill in family.experts:
        for split in EVALUATION_SPLITS:
            for item in evaluation_items(skill, family.difficulty, split, family.sizes[split]):
                yield Example(item["prompt"], item["answer"], item["stratum"])
    for member in family.members:
        yield from itertools.islice(training_examples(member, family.difficulty, "a seed"), 2_000)


@pytest.mark.slow
@pytest.mark.parametrize("family", [SKILLS, SKILLS_NANO], ids=lambda family: family.name)
def test_every_generated_text_round_trips_without_unknown_tokens(tokenizer, family):
    examples = list(generated_texts(family))
    prompts = tokenizer([example.prompt for example in examples])["input_ids"]
    answers = tokenizer([example.answer for example in examples], add_special_tokens=False)["input_ids"]
    for example, prompt, answer in zip(examples, prompts, answers, strict=True):
        assert tokenizer.unk_token_id not in (*prompt, *answer), example
        assert (prompt, [*answer, tokenizer.eos_token_id]) == encode(example)
        assert prompt[0] == tokenizer.bos_token_id
        assert len(prompt) + len(answer) < POSITIONS
    assert tokenizer.batch_decode(prompts, skip_special_tokens=True) == [example.prompt for example in examples]
    assert tokenizer.batch_decode(answers) == [example.answer for example in examples]


def test_special_tokens_have_the_ids_that_the_models_are_configured_with(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (
        *(0, 1, 2),
        3,
    )
    assert len(tokenizer) == len(vocabulary.tokens()) == len(set(vocabulary.tokens()))


def test_a_word_outside_the_vocabulary_is_unknown(tokenizer):
    assert tokenizer("reverse : zebra =>")["input_ids"].count(tokenizer.unk_token_id) == 1
