"""Samples: padding, order, duplicates, batches, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merging.calibration import Samples
from merging.recipe import MergingError


def ids(*tokens: int) -> dict[str, Tensor]:
    return {"input_ids": torch.tensor([tokens])}


SENTENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(SENTENCES, st.randoms(), st.integers(1, 5))
def test_order_is_nothing_and_every_sample_is_in_one_batch(
    sentences: list[tuple[int, ...]], random: object, size: int
) -> None:
    shuffled = list(sentences)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = (Samples.of([ids(*each) for each in group]) for group in (sentences, shuffled))
    assert one.hash == other.hash and len(one) == len(sentences)
    batches = [each["input_ids"] for each in one.batches(size)]
    assert all(torch.equal(a, b["input_ids"]) for a, b in zip(batches, other.batches(size), strict=True))
    assert sorted(tuple(row) for batch in batches for row in batch.tolist()) == sorted(sentences)
    assert all(len(batch) <= size for batch in batches)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(SENTENCES, SENTENCES)
def test_the_hash_is_that_of_the_contents_with_duplicates(
    one: list[tuple[int, ...]], other: list[tuple[int, ...]]
) -> None:
    first, second = (Samples.of([ids(*each) for each in group]) for group in (one, other))
    assert (first.hash == second.hash) == (sorted(one) == sorted(other))


def test_the_hash_knows_names_dtypes_and_shapes() -> None:
    tokens = torch.tensor([[1, 2, 3, 4]])
    variants = [{"input_ids": tokens}, {"labels": tokens}, {"input_ids": tokens.int()}, {"input_ids": tokens[None]}]
    assert len({Samples.of([each]).hash for each in variants}) == 4


@pytest.mark.parametrize("mask", [(1, 1, 1, 0, 0), (0, 0, 1, 1, 1), (0, 1, 1, 1, 0)])
def test_padding_is_cut_from_everything_along_it(mask: Sequence[int]) -> None:
    tokens = [token for token, kept in zip((7, 8, 9, 7, 8), mask, strict=True) if kept]
    padded = {
        "input_ids": torch.tensor([[7, 8, 9, 7, 8]]),
        "attention_mask": torch.tensor([mask]),
        "token_type_ids": torch.tensor([[1, 2, 3, 4, 5]]),
        "inputs_embeds": torch.arange(10.0).view(1, 5, 2),
        "decoder_input_ids": torch.tensor([[4, 4, 4, 4, 4]]),
        "pixel_values": torch.zeros(1, 3, 5, 5),
    }
    (sample,) = Samples.of([padded])
    assert sample["input_ids"].tolist() == [tokens]
    start = mask.index(1)
    assert sample["token_type_ids"].tolist() == [[1 + start, 2 + start, 3 + start]]
    assert torch.equal(sample["inputs_embeds"], padded["inputs_embeds"][:, start : start + 3])
    assert torch.equal(sample["decoder_input_ids"], padded["decoder_input_ids"])
    assert torch.equal(sample["pixel_values"], padded["pixel_values"])
    assert "attention_mask" not in sample


def test_a_decoder_has_a_mask_of_its_own_and_one_with_holes_stays() -> None:
    (sample,) = Samples.of(
        [
            {
                "input_ids": torch.tensor([[1, 2, 3]]),
                "attention_mask": torch.tensor([[1, 0, 1]]),
                "decoder_input_ids": torch.tensor([[1, 2, 3]]),
                "decoder_attention_mask": torch.tensor([[1, 1, 0]]),
            }
        ]
    )
    assert sample["input_ids"].tolist() == [[1, 2, 3]] and sample["attention_mask"].tolist() == [[1, 0, 1]]
    assert sample["decoder_input_ids"].tolist() == [[1, 2]] and "decoder_attention_mask" not in sample


def test_a_mask_of_frames_is_left_to_the_model() -> None:
    """Whisper wants all of its frames."""
    given = {"input_features": torch.ones(1, 8, 32), "attention_mask": (torch.arange(32) < 20).long()[None]}
    (sample,) = Samples.of([given])
    assert sample["input_features"].shape == (1, 8, 32) and torch.equal(
        sample["attention_mask"], given["attention_mask"]
    )


def test_what_has_no_batch_dimension_is_never_put_in_a_batch() -> None:
    """Qwen-VL's patches of all images of an input."""
    given = [{**ids(1, number), "pixel_values": torch.zeros(6, 4)} for number in range(3)]
    batches = list(Samples.of(given).batches(8))
    assert [each["input_ids"].shape for each in batches] == [(1, 2)] * 3
    assert [each["pixel_values"].shape for each in batches] == [(6, 4)] * 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "expected calibration samples, found none"),
        ([{}], "expected calibration sample 0 to be keyword arguments"),
        ([ids(1), {"input_ids": [1]}], "expected tensors in calibration sample 1, found input_ids of type list"),
        ([{"input_ids": torch.zeros(1, 0)}], r"sample 0 is empty: input_ids has shape \[1, 0\]"),
        ([{"pixel_values": torch.full((1, 2), math.nan)}], "found NaN or infinity in pixel_values"),
        ([{"input_ids": torch.zeros(8, 2)}], r"with batch dimension 1, found input_ids \[8, 2\]"),
        ([{**ids(1), "attention_mask": torch.zeros(1, 1)}], "sample 0 is all padding by its attention_mask"),
    ],
)
def test_what_is_refused(given: list[dict[str, Tensor]], message: str) -> None:
    with pytest.raises(MergingError, match=message):
        Samples.of(given)
