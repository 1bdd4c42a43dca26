"""Codecs that lose something lose what theory says, and the error that they state is that of what comes back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from codec_pairs import bits, composed, error_of, gaussian
from comparison import backend
from torch import Tensor

from merging.files import TensorInfo
from merging.masks import keys_of, last_kept, seed32
from merging.vectors.codec import decode, encode
from merging.vectors.tensors import PIECE

LOSSY = {
    "bf16": {},
    "uniform": {"error": 0.05},
    "topk": {"density": 0.3},
    "seeded": {"density": 0.4},
    "svd": {"rank": 3},
    "onebit": {},
}


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_stated_error_is_that_of_what_comes_back(codec: str, dtype: torch.dtype) -> None:
    base, delta = (each.to(dtype) for each in gaussian((40, 24)))
    expert = base + delta
    found = encode("a", base, expert, codec, **LOSSY[codec])
    again = composed(found, base, expert)
    assert again.dtype == dtype and again.shape == expert.shape
    assert found.error == pytest.approx(error_of(again, base, expert), rel=1e-12)
    assert (found.error > 0 or codec == "bf16") and bits(again) == bits(composed(found, base, expert))
    assert found.bytes == sum(each.numel() * each.element_size() for each in found.tensors.values())


@pytest.mark.parametrize("codec", ["bf16", "uniform", "topk", "seeded", "onebit"])
def test_more_than_a_piece_is_as_its_pieces(codec: str) -> None:
    """Elements on both sides of the border of two frames come back alike."""
    rows = PIECE // 500 + 3  # the border goes through a row
    base, delta = (each.bfloat16() for each in gaussian((rows, 500)))
    expert = base + delta
    options = {"uniform": {"step": 0.002}, "topk": {"density": 0.25}}.get(codec, {})
    again = composed(encode("a", base, expert, codec, **options), base, expert)
    tail = slice(rows - 6, rows)  # three rows before that one, and two behind it
    off = error_of(again[tail], base[tail], expert[tail])
    assert off == pytest.approx(error_of(again[:6], base[:6], expert[:6]), rel=0.15)
    changed = (again != base).reshape(-1)
    if codec == "topk":
        assert int(changed.sum()) == pytest.approx(0.25 * base.numel(), abs=base.numel() * 1e-3)
    if codec == "seeded":
        kept = keys_of(np.arange(PIECE, base.numel()), seed32(0, "", "a", "drop")) <= last_kept(0.1)
        assert not bool((changed[PIECE:] & ~torch.from_numpy(kept)).any())


def test_ties_and_rows_that_go_through_two_pieces() -> None:
    rows = PIECE // 500 + 3
    base, signs = torch.zeros(rows, 500), torch.where(gaussian((rows, 500))[1] >= 0, 1.0, -1.0)
    kept = composed(encode("a", base, signs, "topk", density=0.5), base, signs)
    assert int((kept != 0).sum()) == round(0.5 * base.numel())
    delta = signs * (1 + torch.arange(rows))[:, None] * 2.0**-8
    found = encode("a", base, delta, "onebit")
    assert found.error == 0.0 and torch.equal(found.tensors["sizes"], delta[:, 0].abs())


def test_bf16_rounds_every_value_to_eight_bits() -> None:
    base, delta = gaussian((50, 70))
    expert = base + delta
    found = encode("a", base, expert, "bf16")
    wanted = base + (expert - base).bfloat16().float()
    assert bits(composed(found, base, expert)) == bits(wanted)
    # A value m·2^e is off by up to 2^(e − 8); of m spread evenly in the logarithm, the mean of m² is 3/(2 ln 2).
    assert found.error == pytest.approx(2**-7 / math.sqrt(12 * 3 / (2 * math.log(2))), rel=0.1)
    assert found.bytes < 2 * base.numel() * 0.8


@pytest.mark.parametrize("step", [1e-4, 3e-3])
def test_uniform_is_off_by_a_step_over_root_twelve(step: float) -> None:
    base, delta = gaussian((300, 200))
    expert = base + delta
    found = encode("a", base, expert, "uniform", step=step)
    assert found.error == pytest.approx(step / math.sqrt(12) / 0.01, rel=0.01)
    assert float((composed(found, base, expert) - expert).abs().max()) <= step / 2 + 1e-6
    # Huffman codes of the levels: within a few per cent of their entropy
    levels = torch.unique((delta.double() / np.float32(step)).round(), return_counts=True)[1] / delta.numel()
    entropy = float(-(levels * levels.log2()).sum()) / 8 * delta.numel()
    assert entropy * 0.99 < found.bytes < entropy * 1.25 + 2000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("error", [0.005, 0.02, 0.2])
def test_uniform_meets_the_error_asked_for(dtype: torch.dtype, error: float) -> None:
    base, delta = (each.to(dtype) for each in gaussian((300, 200)))
    found = encode("a", base, base + delta, "uniform", error=error)
    assert 0.9 * error < found.error <= error * 1.001


def test_topk_keeps_the_largest() -> None:
    base, delta = gaussian((60, 90))
    base = (base * 256).round() / 256  # so that base + τ is exact, and the closed form too
    expert = base + (delta * 2**20).round() / 2**20
    change = (expert - base).double()
    for density in (0.0, 0.07, 0.5, 1.0):
        found = encode("a", base, expert, "topk", density=density, values="float32")
        kept = round(density * change.numel())
        squares = change.reshape(-1).square().sort().values
        wanted = math.sqrt(float(squares[: change.numel() - kept].sum() / squares.sum()))
        assert found.error == pytest.approx(wanted, abs=1e-12)
        again = composed(found, base, expert)
        assert int((again != base).sum()) == kept and torch.equal(again[again != base], expert[again != base])


def test_topk_breaks_ties_to_keep_exactly_as_many() -> None:
    base = torch.zeros(40, 50)
    expert = torch.where(torch.arange(2000).reshape(40, 50) % 2 == 0, 1.0, -1.0)
    found = encode("a", base, expert, "topk", density=0.3)
    again = composed(found, base, expert)
    assert int((again != 0).sum()) == 600 and found.error == pytest.approx(math.sqrt(0.7), abs=1e-12)
    assert 0.2 < float((again[:20] != 0).float().mean()) < 0.4  # spread over the tensor, not its first rows


@pytest.mark.parametrize("error", [0.0, 0.01, 0.2, 0.9, 1.0])
def test_topk_keeps_the_fewest_for_an_error(error: float) -> None:
    base, delta = torch.zeros(50, 80), gaussian((50, 80))[1]
    found = encode("a", base, delta, "topk", error=error, values="float32")
    kept = int((composed(found, base, delta) != 0).sum())
    squares = delta.double().reshape(-1).square().sort().values
    left = torch.cat([torch.zeros(1, dtype=torch.float64), squares.cumsum(0)]) <= error**2 * squares.sum()
    fewest = delta.numel() - (int(left.nonzero().max()))
    assert found.error <= error + 1e-15 and abs(kept - fewest) <= (1 if error in (0.0, 1.0) else 0)


def test_gaps_take_few_bits() -> None:
    """A choice of one in ten has 0.469 bits of entropy an element."""
    base, delta = torch.zeros(500, 1000), gaussian((500, 1000))[1]
    found = encode("a", base, delta, "topk", density=0.1)
    bits_each = found.tensors["gaps"].numel() * 8 / delta.numel()
    assert 0.469 * 0.99 < bits_each < 0.469 * 1.1
    assert found.tensors["kept"].numel() <= 2 * 0.1 * delta.numel() + 200


@pytest.mark.parametrize("density", [0.1, 0.25, 0.9])
def test_seeded_has_the_error_of_dare(density: float) -> None:
    """√(p/(1 − p)) where what is kept is rescaled, √p where it is not; storage 1 − p."""
    base, delta = torch.zeros(300, 400), gaussian((300, 400))[1]
    drop = 1.0 - density
    rescaled = encode("a", base, delta, "seeded", density=density, values="float32")
    plain = encode("a", base, delta, "seeded", density=density, rescale=False, values="float32")
    assert rescaled.error == pytest.approx(math.sqrt(drop / density), rel=0.02)
    assert plain.error == pytest.approx(math.sqrt(drop), rel=0.02)
    assert 0.8 < rescaled.bytes / (4 * density * delta.numel()) < 1.01
    narrow = encode("a", base, delta, "seeded", density=density)
    assert narrow.bytes < 2.05 * density * delta.numel()
    mean = sum(
        composed(encode("a", base, delta, "seeded", density=density, seed=seed), base, delta) for seed in range(5)
    )
    assert error_of(mean / 5, base, delta) == pytest.approx(math.sqrt(drop / density / 5), rel=0.1)  # unbiased


@pytest.mark.parametrize("density", [0.3, 0.9])
def test_seeded_is_what_a_merge_by_dare_makes(density: float) -> None:
    """Of this fine-tune alone, with the recipe's seed: the same elements, at the same size."""
    base, delta = gaussian((30, 40))
    expert, name, content = base + delta, "model.layers.0.mlp.up_proj.weight", "sha256:abc"
    own, shared = {"coefficient": 1.0, "density": density}, {"rescale": True, "normalize": False, "seed": 7}
    merged = backend("dare_linear", base, [expert], [own], shared, name=name, contents=[content])
    options = {"density": density, "seed": 7, "content": content, "values": "float32"}
    found = composed(encode(name, base, expert, "seeded", **options), base, expert)
    torch.testing.assert_close(found, merged, rtol=0, atol=1e-6)
    assert 0.8 * density < float((found != base).float().mean()) < 1.1 * density
    other = composed(encode(name, base, expert, "seeded", **{**options, "seed": 8}), base, expert)
    assert bool(((other != base) != (found != base)).any())


def spectrum(values: Tensor, shape: tuple[int, int], seed: int = 0) -> Tensor:
    """A matrix with given singular values."""
    draw = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(side, len(values), generator=draw, dtype=torch.float64))[0] for side in shape)
    return ((u * values) @ v.mT).float()


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (40, 6, 5)])
def test_svd_leaves_the_small_singular_values(shape: tuple[int, ...]) -> None:
    values = 0.5 ** torch.arange(30.0, dtype=torch.float64)
    rows, columns = shape[0], math.prod(shape[1:])
    delta = spectrum(values, (rows, columns)).reshape(shape)
    base = torch.zeros(shape)
    for rank in (1, 4, 9):
        found = encode("a", base, delta, "svd", rank=rank)
        wanted = float(values[rank:].norm() / values.norm())
        assert found.error == pytest.approx(wanted, rel=1e-3)
        assert found.bytes == 4 * rank * (rows + columns)
        fewest = encode("a", base, delta, "svd", error=wanted * 1.01)
        assert fewest.tensors["left"].shape == (rows, rank) and fewest.error <= wanted * 1.01
        narrow = encode("a", base, delta, "svd", rank=rank, values="bfloat16")
        assert narrow.bytes * 2 == found.bytes and wanted < narrow.error < wanted + 0.006
    tenth = encode("a", base, delta, "svd")
    assert tenth.bytes <= 0.1 * 4 * delta.numel() or tenth.tensors["right"].shape[0] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_svd_is_known_as_factors_where_it_composes_to_them(dtype: torch.dtype) -> None:
    """What is rounded to 16 bits afterwards is no product any more, and must not be taken for one."""
    base, delta = (each.to(dtype) for each in gaussian((20, 30)))
    expert = base + delta
    found = encode("a", base, expert, "svd", rank=4)
    change = decode(TensorInfo(dtype, (20, 30), ""), found.codec, found.parameters, found.tensors)
    if dtype == torch.bfloat16:
        assert change.factors is None
        return
    assert change.factors is not None and change.factors.rank == 4
    torch.testing.assert_close(change.factors.dense(), change.compose(base) - base, rtol=0, atol=1e-6)


def test_svd_of_a_stack_is_of_each_matrix() -> None:
    """A mixture's experts, [experts, out, in]: each of rank 2, all together of none that is low."""
    parts = [spectrum(torch.tensor([2.0, 1.0]).double(), (20, 30), seed) for seed in range(4)]
    delta = torch.stack(parts)
    base = torch.zeros_like(delta)
    found = encode("experts", base, delta, "svd", error=1e-5)
    assert found.tensors["left"].shape == (4, 20, 2) and found.tensors["right"].shape == (4, 2, 30)
    assert found.error < 1e-6


def test_svd_of_a_large_matrix_finds_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """By random directions: as good as all singular values, and the same bits each time."""
    monkeypatch.setattr("merging.vectors.lowrank._WHOLE", 16)
    values = torch.cat([torch.linspace(3, 1, 5), 0.02 * torch.ones(115)]).double()
    delta = spectrum(values, (120, 140))
    base = torch.zeros_like(delta)
    found, again = (encode("a", base, delta, "svd", rank=5) for _ in range(2))
    assert found.error == pytest.approx(float(values[5:].norm() / values.norm()), rel=1e-5)
    assert all(torch.equal(found.tensors[part], again.tensors[part]) for part in ("left", "right"))


def test_one_bit_of_normal_numbers() -> None:
    """√(1 − 2/π), and as each row's closed form says; rows of different sizes cost nothing."""
    base, delta = torch.zeros(64, 4096), gaussian((64, 4096))[1]
    delta *= torch.logspace(-2, 0, 64)[:, None]
    found = encode("a", base, delta, "onebit")
    assert found.error == pytest.approx(math.sqrt(1 - 2 / math.pi), rel=0.01)
    sizes = delta.abs().double().mean(1)
    wanted = math.sqrt(1 - 4096 * float(sizes.square().sum()) / float(delta.double().square().sum()))
    assert found.error == pytest.approx(wanted, abs=1e-6)
    assert found.bytes == 64 * 4096 / 8 + 64 * 4
    again = composed(found, base, delta)
    torch.testing.assert_close(again, sizes.float()[:, None] * torch.where(delta >= 0, 1.0, -1.0))
    vector = encode("norm.weight", base[0], delta[0], "onebit")
    assert vector.tensors["sizes"].shape == (1,) and vector.bytes == 512 + 4
    same = torch.where(delta >= 0, 0.5, -0.5)
    assert encode("a", base, same, "onebit").error == 0.0  # of one size, signs are all there is
