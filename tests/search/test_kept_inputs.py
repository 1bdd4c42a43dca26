"""Calibration inputs in the cache: what is read is what was kept, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from merging.calibration import Samples
from merging.recipe import MergingError
from search.kept_inputs import load_samples, save_samples


def samples() -> Samples:
    generator = torch.Generator().manual_seed(3)
    texts = [{"input_ids": torch.randint(0, 9, (1, length), generator=generator)} for length in (3, 5, 3, 1)]
    sounds = [
        {
            "input_features": torch.randn(1, 4, 6, generator=generator).to(dtype),
            "decoder_input_ids": torch.tensor([[1, 2]]),
        }
        for dtype in (torch.float32, torch.bfloat16)
    ]
    return Samples.of([*texts, *sounds, texts[0]])


def test_what_is_read_is_what_was_kept_duplicates_and_dtypes_too(tmp_path: Path) -> None:
    given = samples()
    assert load_samples(tmp_path) is None
    save_samples(tmp_path, given)
    found = load_samples(tmp_path)
    assert found is not None and found.hash == given.hash and len(found) == len(given) == 7
    for one, other in zip(found, given, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)
    assert [each.name for each in tmp_path.iterdir()] == ["inputs.safetensors"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "another file"])
def test_what_was_damaged_is_not_read(damage: str, tmp_path: Path) -> None:
    save_samples(tmp_path, samples())
    file = tmp_path / "inputs.safetensors"
    content = file.read_bytes()
    changed = bytearray(content)
    changed[-3] ^= 1
    file.write_bytes({"cut": content[:-9], "flipped": bytes(changed), "empty": b"", "another file": b"x" * 99}[damage])
    assert load_samples(tmp_path) is None


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(MergingError, match=r"could not be kept in .*PARETOMERGE_CACHE"):
        save_samples(tmp_path / "nowhere", samples())
