"""Methods of other people: an installed package with one of each kind, and single files."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from merging.calibration import Calibration, Gram
from merging.calibration.given import GivenCalibration, gram_of
from merging.conformance import SHAPES, MethodConformance
from merging.kernel import Resolver, merge_tensor
from merging.materialize import Materializer, load_model
from merging.methods import canonical, canonical_recipe, get, names, registry
from merging.methods.registry import SOURCE, source_hash
from merging.recipe import Assignment, MergingError, Recipe
from merging.sources import Sources
from merging.statistics import gram

PACKAGE = Path(__file__).resolve().parents[1] / "plugin_package"
FINGERPRINT = "sha256:of-the-data"


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The package as pip installs it, on the path of this process; nothing is asked of the network."""
    folder = tmp_path_factory.mktemp("plug-ins")
    source, target = folder / "source", folder / "site"
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("__pycache__"))  # setuptools writes beside it
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--no-compile"]
    command = [sys.executable, "-m", "pip", "install", "-q", *offline, "--target", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=200)
    sys.path.insert(0, str(target))
    importlib.invalidate_caches()
    registry.forget()
    yield target
    sys.path.remove(str(target))
    sys.modules.pop("merge_plugins", None)
    registry.forget()


def over(method: str, count: int, **shared: float | str) -> Assignment:
    return Assignment.of(method, {alias: {} for alias in "abc"[:count]}, **shared)


def activations(alias: str) -> dict[str, Gram]:
    """Inputs of the weight called ``matrix``."""
    generator = torch.Generator().manual_seed(ord(alias))
    return {"matrix": gram_of(torch.randn(30, SHAPES["matrix"][1], generator=generator), "inputs")}


class TestMedian(MethodConformance):
    method = "median"
    assignment = over("median", 3)


class TestFlatSpectrum(MethodConformance):
    method = "flat_spectrum"
    assignment = over("flat_spectrum", 3, scale=0.8)


class TestBalanced(MethodConformance):
    method = "balanced"
    assignment = over("balanced", 3, scale=0.8)


class TestRegression(MethodConformance):
    method = "regression"
    assignment = over("regression", 3, calibration=FINGERPRINT)
    calibration = GivenCalibration({alias: activations(alias) for alias in "abc"}, fingerprint=FINGERPRINT)


def test_installed_methods_are_found_beside_the_built_in_ones() -> None:
    assert {"median", "flat_spectrum", "balanced", "regression", "ties", "linear"} <= set(names())
    assert all(get(name).name == name for name in names())


def test_the_source_of_a_plug_in_is_part_of_the_recipe(installed: Path) -> None:
    spelled = canonical(over("median", 2))
    assert dict(spelled.parameters)[SOURCE] == source_hash("median") is not None
    assert source_hash("linear") is None
    stranger = Assignment.of("median", {"a": {}}, **{SOURCE: "sha256:" + 64 * "0"})
    with pytest.raises(MergingError, match=r"another version of the merge method median.*sha256:0000"):
        canonical(stranger)


@pytest.fixture(scope="module")
def data(llama: Sources) -> Calibration:
    """Inputs of every linear layer of the first block, of each expert in a half of the dimensions of its own."""
    grams: dict[str, dict[str, Gram]] = {}
    for alias in ("a", "b"):
        generator = torch.Generator().manual_seed(ord(alias))
        own = grams[llama.refs[alias].content] = {}
        for name, info in llama.tensors.items():
            if ".layers.0." in name and len(info.shape) == 2:
                width = info.shape[1]
                inputs = torch.randn(6 * width, width, generator=generator)
                inputs[:, slice(width // 2, None) if alias == "a" else slice(None, width // 2)] = 0.0
                own[name] = gram_of(inputs, name)
    return GivenCalibration(grams, fingerprint=FINGERPRINT)


def recipe_of(sources: Sources, assignment: Assignment) -> Recipe:
    return canonical_recipe(Recipe("base", sources.refs, dict.fromkeys(sources.layout.groups, assignment)))


def merged(sources: Sources, recipe: Recipe, name: str, calibration: Calibration | None = None) -> Tensor:
    task = Resolver(sources, recipe, calibration).task(recipe.for_tensor(name, sources.layout.group(name)))
    out = torch.full(sources.tensors[name].shape, torch.nan, dtype=sources.tensors[name].dtype)
    merge_tensor(name, task, out)
    return out


def experts(sources: Sources, name: str) -> tuple[Tensor, Tensor, Tensor]:
    base, a, b = (sources.tensor(alias, name).double() for alias in ("base", "a", "b"))
    return base, a, b


@pytest.mark.parametrize("method", ["median", "flat_spectrum", "balanced", "regression"])
def test_each_is_materialised_in_a_live_model(llama: Sources, data: Calibration, method: str) -> None:
    """Live weights are those of the same recipe computed alone, and a method beside it leaves them alone."""
    shared = {"calibration": FINGERPRINT} if method == "regression" else {}
    recipe = recipe_of(llama, over(method, 2, **shared))
    engine = Materializer(llama, load_model(llama.path), calibration=data)
    applied = engine.apply(recipe)
    assert len(applied.changed_tensors) == len(llama.tensors)
    digest = engine.digest()
    for name in llama.tensors:
        assert torch.equal(engine._live[name], merged(llama, recipe, name, data)), name
    engine.apply(recipe_of(llama, Assignment.of("linear", {"a": {"coefficient": 1.0}})))
    assert engine.digest() != digest
    engine.apply(recipe)
    assert engine.digest() == digest


def test_the_elementwise_one(llama: Sources) -> None:
    recipe = recipe_of(llama, over("median", 2))
    for name in list(llama.tensors)[:5]:
        _, a, b = experts(llama, name)
        assert torch.equal(merged(llama, recipe, name), ((a + b) / 2).float())


def test_the_one_on_matrices_flattens_the_spectrum(llama: Sources) -> None:
    name = next(each for each in llama.tensors if each.endswith("q_proj.weight"))
    base, a, b = experts(llama, name)
    wanted = torch.linalg.svdvals(a - base + b - base).mean()
    found = torch.linalg.svdvals(merged(llama, recipe_of(llama, over("flat_spectrum", 2)), name).double() - base)
    torch.testing.assert_close(found, wanted.expand_as(found), rtol=1e-5, atol=0)


def test_the_one_on_the_whole_model_weights_by_whole_norms(llama: Sources) -> None:
    norms = {
        alias: sum(
            (llama.tensor(alias, name).double() - llama.tensor("base", name).double()).square().sum()
            for name in llama.tensors
        ).sqrt()
        for alias in ("a", "b")
    }
    share = norms["b"] / (norms["a"] + norms["b"])  # of a
    recipe = recipe_of(llama, over("balanced", 2))
    for name in llama.tensors:
        base, a, b = experts(llama, name)
        torch.testing.assert_close(
            merged(llama, recipe, name), (base + share * (a - base) + (1 - share) * (b - base)).float()
        )


def test_the_one_with_data_keeps_every_task_on_its_own_inputs(llama: Sources, data: Calibration) -> None:
    """Inputs in disjoint subspaces: each expert's layer is kept on its own half, exactly."""
    assignment = over("regression", 2, calibration=FINGERPRINT, off_diagonal=1.0)
    recipe = recipe_of(llama, assignment)
    for name, info in llama.tensors.items():
        _, a, b = experts(llama, name)
        result = merged(llama, recipe, name, data)
        if ".layers.0." not in name or len(info.shape) != 2:
            torch.testing.assert_close(result, ((a + b) / 2).float())
            continue
        half = info.shape[1] // 2
        torch.testing.assert_close(result, torch.cat([a[:, :half], b[:, half:]], dim=1).float(), rtol=1e-5, atol=1e-7)


def test_the_data_must_be_those_of_the_recipe(llama: Sources, data: Calibration) -> None:
    recipe = recipe_of(llama, over("regression", 2, calibration="sha256:of-others"))
    name = next(iter(llama.tensors))
    with pytest.raises(MergingError, match="needs the calibration data 'sha256:of-others' of its recipe; none was"):
        merged(llama, recipe, name)
    with pytest.raises(MergingError, match="found data 'sha256:of-the-data'"):
        merged(llama, recipe, name, data)
    with pytest.raises(MergingError, match="needs a calibration"):
        canonical(over("regression", 2))


# Single files.

FILE = '''
from merging.methods import Method, Parameter


class Shrink(Method):
    """θ = factor·θ_1: a name of its own would collide with another file's."""

    name = "mine"
    formula = "θ = factor·θ_1"
    paper = "nobody's"
    parameters = (Parameter("factor", float, "of the weights", default={default}),)

    def statistics(self, pool, name):
        return {default}

    def apply(self, context, values, out):
        assert context.statistics == {default}
        out.copy_(context.sources[0].to(out.dtype) * float(values.shared["factor"]))


class Fussy(Shrink):
    def __init__(self):
        raise OSError("no licence")


shrink = Shrink()
'''


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Callable[[float], str]]:
    def write(default: float) -> str:
        path = tmp_path / "mine.py"
        path.write_text(FILE.format(default=default), encoding="utf-8")
        registry.forget()
        return f"{path}:Shrink"

    yield write
    registry.forget()


def test_a_file_is_a_method(file: Callable[[float], str], llama: Sources) -> None:
    name = file(0.5)
    assert get(name).name == name and name not in names()

    class Conformance(MethodConformance):
        method = name
        assignment = Assignment.of(name, {"a": {}}, factor=0.5)

    tests = Conformance()
    tests.test_canonical_is_idempotent_and_keeps_the_result()
    tests.test_canonical_leaves_nothing_to_defaults()
    tests.test_the_result_does_not_depend_on_the_chunks(torch.bfloat16)
    tests.test_delta_scale_moves_the_result_along_its_difference_to_the_base()
    tests.test_it_is_documented()
    recipe = recipe_of(llama, Assignment.of(name, {"a": {}}))
    tensor = next(iter(llama.tensors))
    assert torch.equal(merged(llama, recipe, tensor), llama.tensor("a", tensor) * 0.5)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_a_changed_file_is_another_recipe(file: Callable[[float], str], llama: Sources) -> None:
    name = file(0.5)
    before = recipe_of(llama, Assignment.of(name, {"a": {}}, factor=0.7))
    assert file(0.25) == name
    after = recipe_of(llama, Assignment.of(name, {"a": {}}, factor=0.7))
    assert before.hash != after.hash
    with pytest.raises(MergingError, match="remove source from the recipe"):
        canonical_recipe(before)
    with pytest.raises(MergingError, match="another version"):
        merged(llama, before, next(iter(llama.tensors)))
    file(0.5)
    assert canonical_recipe(before) == before


def test_two_files_with_one_name_inside_share_no_statistics(
    file: Callable[[float], str], tmp_path: Path, llama: Sources
) -> None:
    first = file(0.5)
    other = tmp_path / "other.py"
    other.write_text(FILE.format(default=0.25), encoding="utf-8")
    tensor = next(iter(llama.tensors))
    for name, factor in ((first, 0.5), (f"{other}:Shrink", 0.25)):
        result = merged(llama, recipe_of(llama, Assignment.of(name, {"a": {}})), tensor)
        assert torch.equal(result, llama.tensor("a", tensor) * factor)


def test_what_is_wrong_with_a_file_is_said(file: Callable[[float], str], tmp_path: Path) -> None:
    path = file(0.5).rpartition(":")[0]
    broken, odd = tmp_path / "broken.py", tmp_path / "odd.py"
    broken.write_text("import nothing_of_that_name\n", encoding="utf-8")
    odd.write_text(FILE.format(default=1).replace('"factor"', '"source"') + "\nnumber = 3\n", encoding="utf-8")
    for name, message in {
        f"{tmp_path / 'missing.py'}:Shrink": "expected a Python file with the merge method Shrink at",
        f"{path}:Shrnk": "defines no Shrnk; did you mean 'Shrink'",
        f"{path}:Fussy": r"failed to load \(OSError\): no licence",
        f"{broken}:Shrink": r"failed to load \(ModuleNotFoundError\)",
        f"{odd}:number": "expected a merging.methods.Method .* found int",
        f"{odd}:Shrink": "declares a parameter 'source'",
    }.items():
        with pytest.raises(MergingError, match=message):
            get(name)
    assert get(f"{path}:shrink").name.endswith(":shrink")  # an instance will do


def test_gram_matrices_are_public(llama: Sources) -> None:
    """What plug-ins build on: inner products of weights and of task vectors."""
    pool, name = llama.pool(("a", "b")), next(iter(llama.tensors))
    base, a, b = (each.reshape(-1) for each in experts(llama, name))
    assert gram(pool, name, "weights")[0, 1] == pytest.approx(float(a @ b), rel=1e-12)
    assert gram(pool, name, "task_vectors")[1, 0] == pytest.approx(float((a - base) @ (b - base)), rel=1e-10)
