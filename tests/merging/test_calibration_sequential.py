"""Gram matrices behind merged layers (RegMean++), against a construction of their own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from calibration_models import canonical_of, hooked, inputs_of, materializer, save_family
from torch import Tensor

from merging.calibration import CollectedCalibration, Samples, by_content
from merging.calibration.contract import Gram
from merging.materialize import Materializer
from merging.recipe import Assignment, MergingError, Recipe
from merging.sources import Sources

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        save_family(name, folder)
        return folder

    return cache(make)


def sources_in(folder: Path) -> Sources:
    return Sources.load(folder / "base", {"a": folder / "a", "b": folder / "b"})


class Collected:
    """A calibration of a and b, on samples of their own, with the assignment that it is for."""

    def __init__(self, sources: Sources, name: str, cache: Path, count: int = 3):
        self.sources = sources
        self.samples = {alias: inputs_of(name, count, seed) for seed, alias in enumerate("ab")}
        contents = {sources.refs[alias].content: Samples.of(each) for alias, each in self.samples.items()}
        self.calibration = CollectedCalibration(contents, cache)
        self.assignment = Assignment.of("regmean_plus", {"a": {}, "b": {}}, calibration=self.calibration.fingerprint)
        self.made = materializer(sources)

    def collect(self) -> None:
        self.calibration.collect(self.made, [self.assignment])

    def grams(self, alias: str) -> Mapping[str, Gram]:
        merged = by_content(self.assignment, {each: ref.content for each, ref in self.sources.refs.items()})
        content = self.sources.refs[alias].content
        found = {name: self.calibration.sequential_gram(content, name, merged) for name in self.sources.tensors}
        return {name: gram for name, gram in found.items() if gram is not None}

    def recipe(self, assignment: Assignment) -> Recipe:
        groups = dict.fromkeys(self.sources.layout.groups, assignment)
        return Recipe("base", self.sources.refs, groups, dtype="float64")


@pytest.mark.parametrize("name", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_with_sources_equal_to_the_base_they_are_the_plain_ones(
    folders: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    for alias in ("base", "a", "b"):
        shutil.copytree(folders(name) / "base", tmp_path / alias)
    sources = sources_in(tmp_path)
    content = sources.refs["a"].content
    assert content == sources.refs["b"].content == sources.refs["base"].content
    calibration = CollectedCalibration({content: Samples.of(inputs_of(name))}, tmp_path / "cache")
    made = materializer(sources)
    fingerprint = calibration.fingerprint
    plus = Assignment.of("regmean_plus", {"a": {}, "b": {}}, calibration=fingerprint)
    plain = Assignment.of("regmean", {"a": {}, "b": {}}, calibration=fingerprint)
    calibration.collect(made, [plus, plain])
    merged = by_content(plus, {alias: ref.content for alias, ref in sources.refs.items()})
    linear = 0
    for each in sources.tensors:
        one, other = calibration.gram(content, each), calibration.sequential_gram(content, each, merged)
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            linear += 1
            assert (one.rows, one.axis) == (other.rows, other.axis)
            torch.testing.assert_close(one.matrix, other.matrix, rtol=1e-10, atol=1e-12)
    assert linear == 14 if name == "llama" else 8


def stages_of(sources: Sources, order: list[str]) -> list[list[str]]:
    """Names of the tensors of each stage, as listed: blocks by (stack, depth), others by name."""
    stages = []
    for stage in order:
        stack, _, depth = stage.rpartition("/")
        if depth.isdecimal():
            groups = [each for each in sources.layout.groups if (each.stack, each.depth) == (stack, int(depth))]
            stages.append([name for group in groups for name in sources.layout.of_group(group)])
        else:
            stages.append([name for name in sources.tensors if name.startswith(stage)])
    return stages


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("llama", ["model.embed_tokens", "/0", "/1"]),
        pytest.param(
            "whisper",
            [
                *(f"model.encoder.{each}" for each in ("conv1", "conv2", "embed_positions")),
                *("encoder/0", "encoder/1"),
                *(
                    f"model.{each}"
                    for each in ("encoder.layer_norm", "decoder.embed_tokens", "decoder.embed_positions")
                ),
                *("decoder/0", "decoder/1"),
            ],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_inputs_come_from_merged_layers(
    folders: Callable[[str], Path], tmp_path: Path, name: str, order: list[str]
) -> None:
    """Written by hand: weights of the finished merge below, the source's in the block and above, plain hooks."""
    sources = sources_in(folders(name))
    collected = Collected(sources, name, tmp_path)
    collected.collect()
    collected.made.apply(collected.recipe(collected.assignment))
    merged = {each: tensor.clone() for each, tensor in collected.made.tensors.items()}
    hand = materializer(sources)
    compared = 0
    for alias in "ab":
        hand.apply(collected.recipe(Assignment.of("linear", {alias: {"coefficient": 1.0}})))
        found = collected.grams(alias)
        for names in stages_of(sources, order):
            expected = below(hand, collected.samples[alias])
            for each in names:
                if each in found:
                    compared += 1
                    total, rows = expected[each]
                    assert found[each].rows == (rows,)
                    torch.testing.assert_close(found[each].matrix * rows, total, rtol=1e-9, atol=1e-9)
            for each in names:
                hand.tensors[each].copy_(merged[each])
        assert compared, "something was compared"
    assert compared == len(collected.grams("a")) + len(collected.grams("b"))
    plain = CollectedCalibration({sources.refs["a"].content: Samples.of(collected.samples["a"])}, tmp_path)
    plain.collect(hand := materializer(sources), [Assignment.of("regmean", {"a": {}}, calibration=plain.fingerprint)])
    last = max(name for name in collected.grams("a") if ".layers.1." in name)
    one, other = plain.gram(sources.refs["a"].content, last), collected.grams("a")[last]
    assert one is not None and not torch.allclose(one.matrix, other.matrix, rtol=1e-4), "merging below changes inputs"
    assert hand.digest() == materializer(sources).digest()


def below(made: Materializer, samples: list[dict[str, Tensor]]) -> dict[str, tuple[Tensor, int]]:
    return {
        canonical: seen
        for parameter, seen in hooked(made.model, samples).items()
        for canonical in canonical_of(made, made.model.get_parameter(parameter))
    }


def test_they_are_cached_and_do_not_depend_on_names_or_order(folders: Callable[[str], Path], tmp_path: Path) -> None:
    first = Collected(sources_in(folders("llama")), "llama", tmp_path)
    first.collect()
    expected = first.grams("a")
    folder = folders("llama")
    renamed = Sources.load(folder / "base", {"y": folder / "b", "x": folder / "a"})
    calls: list[object] = []
    made = materializer(renamed)
    made.model.register_forward_pre_hook(lambda module, args: calls.append(module))
    contents = {renamed.refs[new].content: Samples.of(first.samples[old]) for old, new in (("a", "x"), ("b", "y"))}
    again = CollectedCalibration(contents, tmp_path)
    assert again.fingerprint == first.calibration.fingerprint
    swapped = Assignment.of("regmean_plus", {"y": {}, "x": {}}, calibration=again.fingerprint)
    again.collect(made, [swapped])
    merged = by_content(swapped, {alias: ref.content for alias, ref in renamed.refs.items()})
    content = renamed.refs["x"].content
    assert merged == by_content(first.assignment, {alias: ref.content for alias, ref in first.sources.refs.items()})
    assert not calls
    for name, gram in expected.items():
        found = again.sequential_gram(content, name, merged)
        assert found is not None
        torch.testing.assert_close(found.matrix, gram.matrix, rtol=1e-10, atol=1e-12)
    late = CollectedCalibration.from_cache(again.fingerprint, tmp_path)
    late_gram = late.sequential_gram(content, next(iter(expected)), merged)
    assert late_gram is not None


def test_what_was_not_collected_is_said(folders: Callable[[str], Path], tmp_path: Path) -> None:
    collected = Collected(sources_in(folders("llama")), "llama", tmp_path)
    with pytest.raises(MergingError, match=r"sequential Gram matrices of the model .* were not collected"):
        collected.grams("a")
    plan = collected.calibration.plan(collected.made, [collected.assignment])
    assert plan.passes == 2 * len(plan.depths) == 4, "two sources through two blocks"
    assert plan.bytes_in_memory == max(plan.depths.values())


def test_a_failure_half_way_leaves_nothing(folders: Callable[[str], Path], tmp_path: Path) -> None:
    collected = Collected(sources_in(folders("llama")), "llama", tmp_path)
    handle = collected.made.model.get_submodule("model.layers.1.mlp.up_proj").register_forward_hook(
        lambda module, args, output: output * float("nan")
    )
    with pytest.raises(MergingError, match="NaN or infinite"):
        collected.collect()
    assert [each.name for each in (tmp_path / "calibration").iterdir()] == ["fingerprints"]
    with pytest.raises(MergingError, match="were not collected"):
        collected.grams("a")
    handle.remove()
    collected.collect()
    assert collected.grams("b")
