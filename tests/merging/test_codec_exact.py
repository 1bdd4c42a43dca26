"""The exact codec gives back every bit, of every dtype; its forms; factors that stay factors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from codec_pairs import bits, composed, gaussian
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from merging.composed import Factored, Factors
from merging.files import TensorInfo
from merging.recipe import MergingError
from merging.vectors.codec import CODECS, Encoded, decode, encode, encode_factors, fits
from merging.vectors.exact import FORMS
from merging.vectors.tensors import PIECE

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
WHOLE = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.bool]


def quick(examples: int) -> settings:
    return settings(
        deadline=None,
        max_examples=examples,
        derandomize=True,
        database=None,
        suppress_health_check=[*HealthCheck],
    )


def real(data: st.DataObject, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Any bits that are no NaN and not infinite: zeros of both signs, subnormals, the largest."""
    size = dtype.itemsize
    held = data.draw(arrays.arrays(f"<u{size}", shape))
    tensor = torch.from_numpy(held.reshape(-1).view(np.uint8)).view(dtype).reshape(shape)
    return torch.where(torch.isfinite(tensor.double()), tensor.double(), 0.0).to(dtype)


@quick(40)
@given(st.data(), st.sampled_from(FLOATS), st.sampled_from(FLOATS), st.sampled_from([*FORMS, "smallest"]))
def test_exact_gives_back_any_bits(data: st.DataObject, dtype: torch.dtype, base: torch.dtype, form: str) -> None:
    """Of any base, also of another dtype; nothing is close to anything here."""
    shape = data.draw(st.sampled_from([(), (3,), (2, 5), (2, 3, 2)]))
    one, two = real(data, base, shape), real(data, dtype, shape)
    try:
        found = encode("a", one, two, "exact", form=form)
    except MergingError as error:
        assert form == "sum" and "does not give the fine-tune's bits" in str(error)
        return
    assert bits(composed(found, one, two)) == bits(two) and found.error == 0.0


@quick(30)
@given(st.data(), st.sampled_from(FLOATS[:4]), st.integers(0, 3))
def test_sums_are_used_only_where_they_round_trip(data: st.DataObject, dtype: torch.dtype, shift: int) -> None:
    """A fine-tune near its base, with −0.0 and subnormals among its weights."""
    base = real(data, dtype, (4, 6))
    expert = (base.double() * (1 + 0.01 * shift)).to(dtype)
    expert[0, :3] = torch.tensor([-0.0, 0.0, torch.finfo(torch.bfloat16).tiny / 2]).to(dtype)
    expert = torch.where(torch.isfinite(expert.double()), expert, base)
    found = encode("a", base, expert, "exact")
    assert bits(composed(found, base, expert)) == bits(expert)


@pytest.mark.parametrize("dtype", WHOLE)
@pytest.mark.parametrize("form", ["steps", "changed", "xor", "whole"])
def test_exact_holds_whole_numbers(dtype: torch.dtype, form: str) -> None:
    draw = torch.Generator().manual_seed(1)
    base, expert = (torch.randint(0, 256, (9, 8 * dtype.itemsize), generator=draw).to(torch.uint8) for _ in range(2))
    if dtype == torch.bool:
        base, expert = base % 2, expert % 2
    one, two = base.view(dtype), expert.view(dtype)
    assert bits(composed(encode("ids", one, two, "exact", form=form), one, two)) == bits(two)
    other = torch.randn(one.shape)  # what is no number of its kind is no base
    assert bits(composed(encode("ids", other, two, "exact", form=form), other, two)) == bits(two)


def test_complex_numbers_come_back() -> None:
    base, expert = torch.randn(5, 3, dtype=torch.complex64), torch.randn(5, 3, dtype=torch.complex64)
    assert bits(composed(encode("freqs", base, expert, "exact"), base, expert)) == bits(expert)


def test_more_than_a_piece() -> None:
    base, delta = (each.bfloat16() for each in gaussian((PIECE + 37,)))
    expert = base + delta
    assert bits(composed(encode("a", base, expert, "exact"), base, expert)) == bits(expert)


def test_the_form_is_the_smallest() -> None:
    """Each where it should win: against the sizes of all others."""
    base, delta = gaussian((64, 256))
    fewer = (base * 4096).round() / 4096  # 12 bits after the point: differences of the same grid are short numbers
    pairs = {
        "steps": (base.bfloat16(), (base + delta).bfloat16()),
        "changed": (base, torch.where(base > 2.5, delta, base)),
        "xor": (base, -base),
        "sum": (fewer, fewer + (torch.arange(base.numel()).reshape(base.shape) % 3) / 4096),
        "whole": (base, torch.ones_like(base)),
    }
    for form, (one, two) in pairs.items():
        found = encode("a", one, two, "exact")
        assert found.parameters == {"form": form}
        sizes = {}
        for each in FORMS:
            try:
                sizes[each] = encode("a", one, two, "exact", form=each).bytes
            except MergingError:
                assert each == "sum"
        assert found.bytes == sizes[form] == min(sizes.values())


def test_exact_is_smaller_than_the_fine_tune() -> None:
    """A change of 1 % of the weights' size, in bfloat16: half of the bits are the base's."""
    base, delta = (each.bfloat16() for each in gaussian((256, 256)))
    expert = base + delta
    assert encode("a", base, expert, "exact").bytes < 0.55 * expert.numel() * 2
    few = torch.where(torch.rand(256, 256) < 0.01, expert, base)
    changed = int((few != base).sum())
    assert encode("a", base, few, "exact").bytes < 3.1 * changed + 100  # two bytes each, and where


@pytest.mark.parametrize("codec", [name for name in CODECS if name != "factored"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_did_not_change_costs_nothing(codec: str, dtype: torch.dtype) -> None:
    """Also where the base is wider than the fine-tune."""
    base = gaussian((6, 8))[0].to(dtype)
    for one, two in ((base, base.clone()), (base.double(), base)):
        found = encode("a", one, two, codec)
        assert found == Encoded("equal", {}, {}, 0.0) and found.bytes == 0
        again = composed(found, one, two)
        assert bits(again) == bits(two) and again.data_ptr() != one.data_ptr()


def test_only_the_sign_of_a_zero_changed() -> None:
    """No number changed, some bits did: exact keeps them, and no other codec claims to."""
    base, expert = torch.zeros(4, 4), torch.zeros(4, 4)
    expert[1, 2] = -0.0
    exact = encode("a", base, expert, "exact")
    assert bits(composed(exact, base, expert)) == bits(expert) and exact.error == 0.0
    for codec in ("bf16", "topk", "onebit", "svd", "uniform"):
        assert 0.0 < encode("a", base, expert, codec).error < 1e-300


@pytest.mark.parametrize("codec", ["exact", "bf16", "uniform", "topk", "seeded", "svd", "onebit"])
def test_a_fine_tune_with_other_rows(codec: str) -> None:
    """Tokens of its own, or fewer: what the base lacks counts as zero, and all of it is in the vector."""
    base, delta = gaussian((20, 12))
    for rows in (23, 17):
        start = torch.zeros(rows, 12)
        start[: min(20, rows)] = base[: min(20, rows)]
        expert = start + torch.cat([delta, delta])[:rows]
        found = encode("embed.weight", base, expert, codec)
        again, straight = (
            composed(found, base, expert),
            composed(encode("embed.weight", start, expert, codec), start, expert),
        )
        assert again.shape == expert.shape and bits(again) == bits(straight)
    unlike = torch.randn(3, 5, 4)
    assert composed(encode("a", base, unlike, codec), base, unlike).shape == unlike.shape


def test_composing_gives_memory_of_its_own_and_leaves_the_base() -> None:
    base, delta = gaussian((8, 16))
    expert, before = base + delta, base.clone()
    for codec in ("exact", "bf16", "uniform", "topk", "seeded", "svd", "onebit"):
        found = composed(encode("a", base, expert, codec), base, expert)
        assert found.is_contiguous() and found.device.type == "cpu"
        found.zero_()
        assert torch.equal(base, before)
    turned = (base + delta).mT
    assert bits(composed(encode("a", base.mT, turned, "exact"), base.mT, turned)) == bits(turned)


def test_weights_that_are_not_finite_are_refused() -> None:
    base, delta = gaussian((4, 4))
    for dtype in FLOATS[:4]:
        one, two = base.to(dtype), (base + delta).to(dtype)
        two[2, 2] = torch.nan
        for codec in ("exact", "bf16"):
            with pytest.raises(MergingError, match=r"elements 0 to 15 of tensor a\.b of the fine-tune"):
                encode("a.b", one, two, codec)
        with pytest.raises(MergingError, match="of the base"):
            encode("a.b", two, one, "exact")


def test_changes_beyond_float32_are_for_exact_alone() -> None:
    base = torch.tensor([[3e38, -3e38], [1.0, 2.0]])
    expert = -base
    assert bits(composed(encode("a", base, expert, "exact"), base, expert)) == bits(expert)
    for codec in ("bf16", "topk", "onebit"):
        with pytest.raises(MergingError, match=r"cannot hold a: .* use the codec exact"):
            encode("a", base, expert, codec)


def test_factors_stay_factors_to_the_bit() -> None:
    """In the narrowest dtype that holds them; composing gives what the adapter gives."""
    base, _ = gaussian((12, 3, 5))
    draw = torch.Generator().manual_seed(3)
    plain = Factors.of(torch.randn(12, 4, generator=draw), torch.randn(4, 15, generator=draw))
    for factors, size in (
        (plain, 4),
        (Factors.of(plain.left.bfloat16(), 2 * plain.right.bfloat16()), 2),
        (Factors.of(plain.left.half(), plain.right.half() / 4), 2),
    ):
        found = encode_factors(factors)
        assert found.codec == "factored" and found.error == 0.0 and found.bytes == size * 4 * (12 + 15)
        change = decode(TensorInfo(torch.float32, (12, 3, 5), ""), "factored", found.parameters, found.tensors)
        assert bits(change.compose(base)) == bits(Factored(factors, torch.float32).compose(base))
        assert change.factors is not None and torch.equal(change.factors.dense(), factors.dense())
    rounded = encode_factors(plain, "bfloat16")
    product = rounded.tensors["left"].double() @ rounded.tensors["right"].double()
    wanted = plain.left.double() @ plain.right.double()
    assert rounded.error == pytest.approx(float((product - wanted).norm() / wanted.norm()), rel=1e-9)
    with pytest.raises(MergingError, match="expected the values of factors"):
        encode_factors(plain, "int4")
    with pytest.raises(MergingError, match="NaN or infinity"):
        encode_factors(Factors.of(plain.left * torch.inf, plain.right))


def test_what_a_codec_can_hold_is_known_before() -> None:
    base, delta = gaussian((4, 6))
    assert fits("svd", (4, 6), torch.bfloat16) and fits("svd", (2, 8, 8), torch.float32)
    for codec, one, two in (
        ("svd", base[0], base[0] + delta[0]),
        ("svd", base[:1], base[:1] + delta[:1]),
        ("bf16", base.int(), (100 * base).int()),
    ):
        assert not fits(codec, tuple(one.shape), one.dtype) and fits("exact", tuple(one.shape), one.dtype)
        with pytest.raises(MergingError, match=f"for the codec {codec}, found a"):
            encode("a", one, two, codec)
    for codec, options, told in (
        ("zip", {}, "expected one of the codecs equal, exact"),
        ("factored", {}, "use one of exact"),
        ("onebit", {"density": 0.1}, "the codec onebit has no option 'density'; it has none"),
        ("topk", {"rank": 3}, "no option 'rank'; it has density, error, values"),
        ("topk", {"density": "0.1"}, "expected a number for the option density of the codec topk, found '0.1'"),
        ("seeded", {"rescale": "no"}, "expected true or false for the option rescale"),
        ("seeded", {"seed": True}, "expected a whole number for the option seed"),
        ("svd", {"rank": 2.5}, "expected a whole number for the option rank"),
        ("exact", {"form": "zip"}, "expected the form of an exact tensor to be one of"),
        ("topk", {"density": 1.5}, r"expected a density in \[0, 1\], found 1.5"),
        ("topk", {"density": 0.5, "error": 0.5}, "found both"),
        ("seeded", {"density": 0.0}, r"expected a density in \(0, 1\]"),
        ("seeded", {"values": "int8"}, "expected values of a vector in bfloat16 or float32"),
        ("svd", {"rank": 0}, "a rank of at least 1"),
        ("svd", {"rank": 2, "error": 0.1}, "found both"),
        ("svd", {"values": "int8"}, "expected values of a vector in float32 or bfloat16"),
        ("uniform", {"error": 0.0}, "a relative error above 0"),
        ("uniform", {"step": -1.0}, "a step above 0"),
        ("uniform", {"step": 0.1, "error": 0.1}, "found both"),
    ):
        with pytest.raises(MergingError, match=told):
            encode("a", base, base + delta, codec, **options)
