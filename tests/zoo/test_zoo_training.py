"""Training: the same bits twice, the optimizer's mathematics, and a loss that looks at answers only."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from zoo import training
from zoo.family import SKILLS, SKILLS_NANO, Shape
from zoo.muon import Muon, orthogonalize
from zoo.skills import Example
from zoo.tokenizer import build_tokenizer
from zoo.training import new_model, train

NANO = SKILLS_NANO


def trained(seed, member="base", steps=20):
    model = new_model(NANO.shape, str(seed))
    loss = train(model, NANO, member, seed, steps=steps)
    return model, loss


def same_bits(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.slow
def test_training_is_the_same_to_the_bit_whatever_the_global_state():
    torch.manual_seed(1)
    first, first_loss = trained(seed=0)
    torch.manual_seed(2)
    torch.rand(7)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    again, again_loss = trained(seed=0)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert same_bits(first, again)
    assert first_loss == again_loss
    assert not torch.are_deterministic_algorithms_enabled()


def test_training_leaves_torchs_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    trained(seed=0, steps=1)
    assert torch.equal(torch.rand(1), expected)


def test_another_seed_or_another_member_gives_other_weights():
    first, _ = trained(seed=0, steps=2)
    assert not same_bits(first, trained(seed=1, steps=2)[0])
    assert not same_bits(first, trained(seed=0, member="math", steps=2)[0])
    assert not same_bits(new_model(NANO.shape, "0"), new_model(NANO.shape, "1"))


@pytest.mark.slow
def test_training_lowers_the_loss_far_below_chance():
    chance = math.log(len(build_tokenizer()))
    losses = []
    model = new_model(NANO.shape, "0")
    train(model, NANO, "string", 0, steps=80, progress=lambda step, steps, loss: losses.append((step, steps, loss)))
    assert [step for step, _, _ in losses] == [25, 50, 75, 80]
    assert losses[-1][2] < 0.6 * chance
    assert not model.training


def test_only_answers_and_their_ends_are_targets():
    examples = [Example("reverse : a b =>", "b a", "reverse"), Example("sort : c =>", "c", "sort")]
    batch = training._collate([training.encode(example) for example in examples])
    tokenizer = build_tokenizer()
    for row, example in enumerate(examples):
        targets = [id for id in batch.targets[row].tolist() if id != -100]
        assert tokenizer.convert_ids_to_tokens(targets) == [*example.answer.split(), "<eos>"]
        first = batch.targets[row].tolist().index(targets[0])
        assert tokenizer.convert_ids_to_tokens(batch.ids[row, first].item()) == "=>"


def test_padding_changes_nothing_that_counts():
    model = new_model(NANO.shape, "0").eval()
    short = training.encode(Example("sort : c =>", "c", "sort"))
    long = training.encode(Example("reverse : a b d =>", "d b a", "reverse"))
    alone, together = training._collate([short]), training._collate([short, long])
    with torch.no_grad():
        width = alone.ids.shape[1]
        expected = model(alone.ids).logits[0]
        torch.testing.assert_close(model(together.ids).logits[0, :width], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 16, 40), (2, 40, 16)])
def test_orthogonalization_brings_singular_values_near_one_and_keeps_directions(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(matrices)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.3
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    alignment = torch.einsum("nir,nij,nrj->nr", left, result, right)
    torch.testing.assert_close(
        alignment,
        torch.linalg.svdvals(result).sort(-1)[0].mean(-1, keepdim=True).expand_as(alignment),
        rtol=0.6,
        atol=0.5,
    )
    assert alignment.min() > 0.3


def test_muon_takes_the_documented_first_step():
    matrix = torch.nn.Parameter(torch.ones(4, 2))
    gradient = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    matrix.grad = gradient.clone()
    Muon([matrix], lr=0.1, momentum=0.9, weight_decay=0.5).step()
    # First step: running = 0.1 g, the look-ahead 0.9 (0.1 g) + 0.1 g is a multiple of g, which orthogonalising ignores.
    expected = 1 - 0.1 * 0.5 - 0.1 * math.sqrt(2) * orthogonalize(gradient[None])[0]
    torch.testing.assert_close(matrix.data, expected)


def test_muon_treats_each_matrix_as_if_it_were_alone():
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(6, 4, generator=generator) for _ in range(3)]
    gradients = [[torch.randn(6, 4, generator=generator) for _ in range(3)] for _ in range(4)]
    together = [torch.nn.Parameter(start.clone()) for start in starts]
    optimizer = Muon(together, lr=0.05)
    for step in gradients:
        for parameter, gradient in zip(together, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    for index, start in enumerate(starts):
        alone = torch.nn.Parameter(start.clone())
        single = Muon([alone], lr=0.05)
        for step in gradients:
            alone.grad = step[index].clone()
            single.step()
        torch.testing.assert_close(together[index].data, alone.data)


def test_families_have_the_sizes_that_they_promise():
    counts = {
        family.name: sum(p.numel() for p in new_model(family.shape, "0").parameters())
        for family in (SKILLS, SKILLS_NANO)
    }
    assert 0.45e6 < counts["skills"] < 0.5e6
    assert counts["skills-nano"] < 0.16e6
    model = new_model(dataclasses.replace(Shape(32, 1, 2, 32)), "0")
    assert model.lm_head.weight is model.model.embed_tokens.weight
