"""Gram matrices: those of plain forward hooks, on any architecture, whatever the batches, passes and order."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from calibration_models import ALL, bring, canonical_of, hooked, hooked_experts, inputs_of, materializer, one_expert
from torch import Tensor

from merging.calibration import CollectedCalibration, Samples
from merging.calibration.contract import Gram
from merging.materialize import Materializer
from merging.recipe import Assignment, MergingError
from merging.sources import Sources

FAST = ("llama", "gpt2", "nomic-bert", "whisper")

# What models multiply with outside of linear layers and convolutions: no hook sees its inputs.
BARE = re.compile(r"\.experts\.|vision_tower\.head\.attention\.|mm_input_projection_weight|mixer\.dt_proj")


pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Sources]:
    """Sources by name; read-only."""
    return cache(lambda name: one_expert(name, tmp_path_factory.mktemp(name)))


def alone(alias: str) -> Assignment:
    return Assignment.of("linear", {alias: {"coefficient": 1.0}})


def regmean(calibration: CollectedCalibration, *aliases: str) -> Assignment:
    return Assignment.of("regmean", {alias: {} for alias in aliases}, calibration=calibration.fingerprint)


def calibrated(
    sources: Sources, samples: list[dict[str, Tensor]], cache: Path, memory: int | None = None
) -> tuple[CollectedCalibration, Materializer]:
    """Of source a alone, in float64."""
    calibration = CollectedCalibration({sources.refs["a"].content: Samples.of(samples)}, cache)
    made = materializer(sources)
    calibration.collect(made, [regmean(calibration, "a")], memory=memory)
    return calibration, made


def grams(calibration: CollectedCalibration, sources: Sources) -> dict[str, Gram]:
    found = {name: calibration.gram(sources.refs["a"].content, name) for name in sources.tensors}
    return {name: gram for name, gram in found.items() if gram is not None}


def together(found: dict[str, Gram], name: str) -> int:
    """The rows of a weight, or of its like in all experts of a mixture."""
    before, experts, after = name.partition(".experts.")
    leaf = after.partition(".")[2]
    return sum(
        sum(found[each].rows)
        for each in found
        if each == name or (experts and leaf and each.startswith(before + experts) and each.endswith(f".{leaf}"))
    )


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in ALL])
def test_they_are_those_of_forward_hooks(load: Callable[[str], Sources], tmp_path: Path, name: str) -> None:
    sources, samples = load(name), inputs_of(name)
    calibration, made = calibrated(sources, samples, tmp_path)
    assert made.digest() == materializer(sources).digest(), "the live model is left at the base"
    bring(made, alone("a"))
    expected = {
        canonical: seen
        for parameter, seen in hooked(made.model, samples).items()
        for canonical in canonical_of(made, made.model.get_parameter(parameter))
    }
    found = grams(calibration, sources)
    vocabulary = {each for each in sources.tensors if sources.tensors[each].shape[:1] == (53,)}
    bare = {each for each in sources.tensors if BARE.search(each)}
    assert found.keys() - bare == expected.keys() - vocabulary - bare
    assert found.keys() - bare, "there is something to compare"
    for each in found.keys() - bare:
        gram, (total, rows), shape = found[each], expected[each], torch.Size(sources.tensors[each].shape)
        assert gram.rows == (rows,) and gram.matrix.dtype == torch.float64
        assert torch.equal(gram.matrix, gram.matrix.t())
        assert len(gram.matrix) == (shape[1:].numel() if gram.axis else shape[0])
        exact = 1e-5 if each.endswith("mlp.gate.weight") else 1e-9  # a router that works in float32, always
        torch.testing.assert_close(gram.matrix * together(found, each), total, rtol=exact, atol=exact)


@pytest.mark.parametrize("tokens", [1, 20])
def test_experts_of_a_mixture_and_those_that_no_token_reaches(
    load: Callable[[str], Sources], tmp_path: Path, tokens: int
) -> None:
    sources = load("mixtral")
    samples = [{"input_ids": torch.arange(3, 3 + tokens)[None]}]
    calibration, made = calibrated(sources, samples, tmp_path)
    bring(made, alone("a"))
    found, expected = grams(calibration, sources), hooked_experts(made.model, samples)
    assert {each for each in found if ".experts." in each} == expected.keys()
    for name, (total, rows) in expected.items():
        assert found[name].rows == (rows,)
        torch.testing.assert_close(found[name].matrix * 2 * tokens, total, rtol=1e-9, atol=1e-12)
    unreached = [name for name, (_, rows) in expected.items() if rows == 0]
    assert len(unreached) == (6 if tokens == 1 else 0), "two of three experts a token, in two layers"
    assert all(not found[name].matrix.any() for name in unreached)
    w1, w2, w3 = (
        found[f"model.layers.0.block_sparse_moe.experts.{'012'[tokens % 2]}.{w}.weight"] for w in ("w1", "w2", "w3")
    )
    assert w1.inputs != w2.inputs and (w1.inputs == w3.inputs or w1.rows == (0,))


def test_weights_with_the_same_inputs_share_a_matrix(load: Callable[[str], Sources], tmp_path: Path) -> None:
    found = grams(calibrated(load("llama"), inputs_of("llama"), tmp_path)[0], load("llama"))
    together: dict[str, set[str]] = {}
    for name, gram in found.items():
        together.setdefault(gram.inputs, set()).add(name.removeprefix("model.layers."))
    assert sorted(map(sorted, together.values())) == sorted(
        sorted(f"{layer}.{leaf}_proj.weight" for leaf in leaves)
        for layer in range(2)
        for leaves in (
            ("self_attn.q", "self_attn.k", "self_attn.v"),
            ("self_attn.o",),
            ("mlp.gate", "mlp.up"),
            ("mlp.down",),
        )
    )


def test_order_does_not_matter_and_duplicates_count(load: Callable[[str], Sources], tmp_path: Path) -> None:
    sources, samples = load("gpt2"), inputs_of("gpt2", 5)
    one, made = calibrated(sources, samples, tmp_path / "one")
    other, _ = calibrated(sources, samples[::-1], tmp_path / "other")
    assert one.fingerprint == other.fingerprint
    twice, _ = calibrated(sources, samples + samples[2:3], tmp_path / "twice")
    assert twice.fingerprint != one.fingerprint
    bring(made, alone("a"))
    expected = hooked(made.model, samples + samples[2:3])
    for name, gram in grams(one, sources).items():
        same, more = grams(other, sources)[name], grams(twice, sources)[name]
        assert torch.equal(gram.matrix, same.matrix)
        total, rows = expected[name]
        assert more.rows == (rows,)
        torch.testing.assert_close(more.matrix * rows, total, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["llama", pytest.param("whisper", marks=pytest.mark.slow)])
def test_several_passes_give_the_bits_of_one(load: Callable[[str], Sources], tmp_path: Path, name: str) -> None:
    sources, samples = load(name), inputs_of(name, 4)
    one, made = calibrated(sources, samples, tmp_path / "one")
    many = CollectedCalibration({sources.refs["a"].content: Samples.of(samples)}, tmp_path / "many")
    plans = [many.plan(made, [regmean(many, "a")], memory=each) for each in (1 << 40, 1)]
    assert plans[0].passes == 1 and plans[0].bytes_in_memory == sum(plans[0].depths.values())
    assert plans[1].passes == len(plans[1].depths) > 1
    assert plans[1].bytes_in_memory == max(plans[1].depths.values()) < plans[0].bytes_in_memory
    calls = counted(made)
    many.collect(made, [regmean(many, "a")], memory=1)
    assert len(calls) >= plans[1].passes
    found, expected = grams(many, sources), grams(one, sources)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[each].matrix, expected[each].matrix) for each in expected)
    assert {each: gram.inputs for each, gram in found.items()} == {each: gram.inputs for each, gram in expected.items()}


def counted(made: Materializer) -> list[object]:
    """Grows with every forward pass of the live model."""
    calls: list[object] = []
    made.model.register_forward_pre_hook(lambda module, args: calls.append(module))
    return calls


def test_what_is_in_the_cache_runs_nothing_and_what_is_damaged_is_made_anew(
    load: Callable[[str], Sources], tmp_path: Path
) -> None:
    sources, samples = load("llama"), inputs_of("llama")
    first, made = calibrated(sources, samples, tmp_path)
    expected = {name: gram.matrix.clone() for name, gram in grams(first, sources).items()}  # not mapped from the files
    calls = counted(made)
    again = CollectedCalibration({sources.refs["a"].content: Samples.of(samples)}, tmp_path)
    again.collect(made, [regmean(again, "a")])
    assert not calls
    (entry,) = (each for each in (tmp_path / "calibration").iterdir() if len(each.name) == 64)
    files = sorted(entry.iterdir())
    assert len(files) == 3, "an index and two blocks"
    wholes = [file.read_bytes() for file in files]
    for file, whole in zip(files, wholes, strict=True):
        flipped = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
        for damaged in (flipped, b"") if file == files[1] else (whole[:-1],):
            file.write_bytes(damaged)
            calls.clear()
            fresh = CollectedCalibration({sources.refs["a"].content: Samples.of(samples)}, tmp_path)
            if file.suffix == ".safetensors":
                late = CollectedCalibration.from_cache(fresh.fingerprint, tmp_path)
                with pytest.raises(MergingError, match=f"{file.name} are damaged"):
                    grams(late, sources)
            fresh.collect(made, [regmean(fresh, "a")])
            assert calls and file.read_bytes() == whole
            assert all(torch.equal(each.matrix, expected[name]) for name, each in grams(fresh, sources).items())
    assert sorted(entry.iterdir()) == files
    assert {each.name for each in entry.parent.iterdir()} == {entry.name, "fingerprints"}, "nothing is left over"


def test_from_the_cache_without_the_data(load: Callable[[str], Sources], tmp_path: Path) -> None:
    sources = load("llama")
    first, _ = calibrated(sources, inputs_of("llama"), tmp_path)
    content = sources.refs["a"].content
    late = CollectedCalibration.from_cache(first.fingerprint, tmp_path, "float64")
    assert late.fingerprint == first.fingerprint
    expected = grams(first, sources)
    assert all(torch.equal(gram.matrix, expected[name].matrix) for name, gram in grams(late, sources).items())
    with pytest.raises(MergingError, match=r"is in the cache, the data themselves are not"):
        late.batches(content)
    with pytest.raises(MergingError, match=r"Fisher information of the model .* not collected"):
        late.fisher_norm(content)
    with pytest.raises(MergingError, match=r"not in the cache .* in bfloat16; it has float64"):
        CollectedCalibration.from_cache(first.fingerprint, tmp_path, "bfloat16")
    with pytest.raises(MergingError, match="not in the cache"):
        CollectedCalibration.from_cache("sha256:other", tmp_path)


def test_other_inputs_another_dtype_or_another_source_are_collected_apart(
    load: Callable[[str], Sources], tmp_path: Path
) -> None:
    sources, samples = load("llama"), inputs_of("llama")
    calibrated(sources, samples, tmp_path)
    wide = materializer(sources)
    narrow = materializer(sources, torch.float32)
    for made, alias, given, expected in (
        (wide, "a", samples, False),
        (wide, "a", samples[:2], True),
        (wide, "base", samples, True),
        (narrow, "a", samples, True),
        (narrow, "a", samples, False),
    ):
        calls = counted(made)
        calibration = CollectedCalibration({sources.refs[alias].content: Samples.of(given)}, tmp_path)
        calibration.collect(made, [regmean(calibration, alias)])
        assert bool(calls) == expected


def test_activations_that_overflow_are_named(load: Callable[[str], Sources], tmp_path: Path) -> None:
    sources = load("llama")
    made = materializer(sources, torch.float16)
    calibration = CollectedCalibration({sources.refs["a"].content: Samples.of(inputs_of("llama"))}, tmp_path)

    def overflow(module: object, args: object, output: Tensor) -> Tensor:
        return output * 1e6

    made.model.get_submodule("model.layers.1.mlp.up_proj").register_forward_hook(overflow)
    with pytest.raises(MergingError, match=r"inputs of model\.layers\.1\.mlp\.down_proj\.weight in a are NaN or inf"):
        calibration.collect(made, [regmean(calibration, "a")])
    assert [each.name for each in (tmp_path / "calibration").iterdir()] == ["fingerprints"], "nothing half done stays"
    assert made.digest() == materializer(sources, torch.float16).digest()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"pixel_values": torch.zeros(1, 3, 8, 8)},
            r"refused the calibration inputs of a \(pixel_values \[1, 3, 8, 8\]\)",
        ),
        ({"input_ids": torch.tensor([[1, 500]])}, "refused the calibration inputs of a"),
    ],
)
def test_inputs_that_the_model_does_not_take(
    load: Callable[[str], Sources], tmp_path: Path, wrong: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(MergingError, match=message):
        calibrated(load("llama"), [wrong], tmp_path)


def test_every_model_needs_inputs_and_few_are_remarked_on(load: Callable[[str], Sources], tmp_path: Path) -> None:
    sources = load("llama")
    made = materializer(sources)
    calibration = CollectedCalibration({sources.refs["a"].content: Samples.of(inputs_of("llama"))}, tmp_path)
    with pytest.raises(MergingError, match="'base' has none"):
        calibration.collect(made, [regmean(calibration, "a", "base")])
    with pytest.raises(MergingError, match="is over the calibration data 'sha256:other'"):
        calibration.collect(made, [Assignment.of("regmean", {"a": {}}, calibration="sha256:other")])
    lines: list[str] = []
    calibration.collect(made, [regmean(calibration, "a")], notify=lines.append)
    assert lines[0] == "Gram matrices of a on 3 inputs"
    assert "14 of 14 linear weights saw fewer inputs than they have columns" in lines[1]
    assert "the ridge (1e-06) decides" in lines[1]
    plenty = CollectedCalibration({sources.refs["a"].content: Samples.of(inputs_of("llama", 30))}, tmp_path)
    lines.clear()
    plenty.collect(made, [regmean(plenty, "a")], notify=lines.append)
    assert lines == ["Gram matrices of a on 30 inputs"]


def test_what_other_code_made_is_collected_anew_and_still_found_by_its_fingerprint(
    load: Callable[[str], Sources], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, samples = load("llama"), inputs_of("llama")
    first, made = calibrated(sources, samples, tmp_path)
    calls = counted(made)
    monkeypatch.setattr("merging.calibration.live.code_hash", lambda folder: "other")
    again = CollectedCalibration({sources.refs["a"].content: Samples.of(samples)}, tmp_path)
    late = CollectedCalibration.from_cache(first.fingerprint, tmp_path)
    assert grams(late, sources).keys() == grams(first, sources).keys() and not calls
    again.collect(made, [regmean(again, "a")])
    assert calls
