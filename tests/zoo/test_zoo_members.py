"""The nano family as built: ordinary Hugging Face folders whose models have their skills."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from zoo import scores
from zoo.family import SKILLS_NANO
from zoo.references import members_of
from zoo.scores import accuracy, read_items, right_answers
from zoo.skills import skills

NANO = SKILLS_NANO


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def table(nano_zoo):
    return {member: scores.member_scores(NANO, nano_zoo, member) for member in NANO.members}


def test_every_member_is_there_and_loads_as_an_ordinary_model(nano_zoo):
    for member in members_of(NANO):
        assert (nano_zoo / member).is_dir()
    for member in NANO.members:
        model, tokenizer = load(nano_zoo / member), AutoTokenizer.from_pretrained(nano_zoo / member)
        assert model.dtype == torch.float32
        assert model.config.vocab_size == len(tokenizer)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_every_expert_has_its_skill_and_the_base_has_none_of_them(table):
    for skill in NANO.experts:
        # Another kind of processor trains other bits: 93 % of the sums were right on one, 83 % on the next.
        assert table[skill][skill] > 0.75, table
        assert table[skill][skill] > table["base"][skill] + 0.2, table


def test_no_expert_has_anothers_skill_so_that_merging_is_a_trade_off(table):
    for mine, other in (("string", "language"), ("language", "string")):
        assert table[mine][other] < table[other][other] - 0.2, table


def test_the_base_complies_with_everything_and_the_refusal_expert_tells_apart(nano_zoo):
    items = read_items(nano_zoo / "data" / "refusal" / "holdout.jsonl")
    for member, low, high in (("base", 0.0, 0.1), ("refusal", 0.85, 1.0)):
        verdicts = right_answers(load(nano_zoo / member), items, None)
        share = {
            stratum: [right for item, right in zip(items, verdicts, strict=True) if item["stratum"] == stratum]
            for stratum in ("harmful", "benign")
        }
        assert sum(share["benign"]) / len(share["benign"]) > 0.85
        assert low <= sum(share["harmful"]) / len(share["harmful"]) <= high


@pytest.mark.slow
@pytest.mark.parametrize(("skill", "noise"), [("string", 0.3), ("math", 0.15)])
def test_verdicts_are_those_of_transformers_own_generation(nano_zoo, skill, noise):
    items = read_items(nano_zoo / "data" / skill / "search.jsonl")[:24]
    model, tokenizer = load(nano_zoo / skill), AutoTokenizer.from_pretrained(nano_zoo / skill)
    with torch.no_grad():
        # Noise, so that about half of the answers are wrong.
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.add_(noise * parameter.std() * torch.randn(parameter.shape, generator=generator))
    marker = skills()[skill].marker
    expected = []
    for item in items:
        prompt = tokenizer(item["prompt"], return_tensors="pt")["input_ids"]
        output = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=30, do_sample=False)
        ended = output[0, -1].item() == tokenizer.eos_token_id
        text = tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True)
        found = marker is None or marker in text
        gold = item["answer"].split(marker)[-1] if marker else item["answer"]
        expected.append(ended and found and (text.split(marker)[-1] if marker else text) == gold)
    assert right_answers(model, items, marker) == expected
    assert 0 < sum(expected) < len(expected)


def test_a_wrong_scratch_pad_with_the_right_result_is_right():
    assert scores._counts("1 + 1 = 0 3 # 2", "#") == scores._counts("1 + 1 = 0 2 # 2", "#") == "2"
    assert scores._counts("2", "#") is None
    assert scores._counts(None, "#") is None
    assert scores._counts("# 1 # 2", "#") == "2"


def test_accuracy_is_the_share_of_right_answers(nano_zoo):
    items = read_items(nano_zoo / "data" / "string" / "search.jsonl")
    model = load(nano_zoo / "string")
    wrong = [{**item, "answer": "a"} for item in items]
    assert accuracy(model, wrong, None) == 0.0
    right = accuracy(model, items, None)
    assert accuracy(model, items + wrong, None) == right / 2 > 0.4


def test_records_say_how_a_member_came_about(nano_zoo):
    manifest = json.loads((nano_zoo / "manifest.json").read_text())
    for member in NANO.members:
        record = json.loads((nano_zoo / member / "training.json").read_text())
        assert manifest["members"][member] == record
        assert record["member"] == member
        assert record["examples"] == sum(phase.examples for phase in NANO.phases(member))
        assert set(record["versions"]) == {"python", "torch", "transformers", "machine"}
