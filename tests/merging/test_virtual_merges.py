"""Virtual experts in the cache: made once, whole or not at all, checked when found, made again from a recipe."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merging import virtual
from merging.checkpoint import SINGLE, Checkpoint
from merging.code import code_hash
from merging.configs import read_config
from merging.export import export
from merging.materialize import Materializer, MergeFailed, Sources, load_model
from merging.mergekit_export import to_mergekit
from merging.recipe import Assignment, MergingError, Recipe, SourceRef

Build = Callable[..., Recipe]

BOTH: dict[str, dict[str, float]] = {"a": {"coefficient": 1.0}, "b": {"coefficient": 1.0}}
SUM = Assignment.of("task_arithmetic", BOTH, normalize=False, scale=1.0)


@pytest.fixture
def recipe(llama: Sources, uniform: Build) -> Recipe:
    return replace(uniform(llama, SUM), dtype=virtual.DTYPE)


def winner(sources: Sources, made: virtual.Made, made_by: Recipe, path: str = "virtual/sum") -> Recipe:
    """A recipe over base, a and the virtual expert."""
    refs = {alias: sources.refs[alias] for alias in ("base", "a")}
    assignment = Assignment.of("task_arithmetic", {"a": {"coefficient": 0.3}, "sum": {"coefficient": 0.5}})
    groups = dict.fromkeys(sources.layout.groups, assignment)
    return Recipe("base", {**refs, "sum": SourceRef(path, made.content, made_by)}, groups)


def files(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


def test_it_is_what_an_export_is_and_is_made_once(llama: Sources, recipe: Recipe, tmp_path: Path) -> None:
    assert virtual.find(recipe, tmp_path) is None
    made = virtual.make(recipe, llama, cache=tmp_path)
    plain = export(recipe, llama, tmp_path / "plain")
    assert made.seconds is not None and made.content == Checkpoint.open(plain).content
    assert {info.dtype for info in Checkpoint.open(made.folder).tensors.values()} == {torch.float32}
    before = files(tmp_path / "virtual")
    again = virtual.make(recipe, llama, cache=tmp_path)
    assert again == made._replace(seconds=None)
    assert files(tmp_path / "virtual") == before


def test_joined_sources_are_those_of_loading_them_together(llama: Sources, recipe: Recipe, tmp_path: Path) -> None:
    made = virtual.make(recipe, llama, cache=tmp_path)
    joined = llama.joined({"sum": made.folder})
    paths = {alias: each.path for alias, each in llama.checkpoints.items() if alias != "base"}
    together = Sources.load(llama.path, {**paths, "sum": made.folder})
    assert joined.refs == together.refs and joined.tensors == together.tensors
    assert joined.distance == pytest.approx(together.distance, rel=1e-12)
    assert joined.notes == together.notes
    assert "sum" not in llama.refs


def test_another_recipe_or_other_code_is_another_folder(
    llama: Sources, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = virtual.folder_of(recipe)
    assert virtual.folder_of(replace(recipe, dtype="bfloat16")) != folder
    monkeypatch.setattr(virtual, "code_hash", lambda folder: "other")
    assert virtual.folder_of(recipe) != folder


def test_the_dtype_of_the_live_model_tells_calibrated_ones_apart(
    llama: Sources, recipe: Recipe, uniform: Build
) -> None:
    """Its statistics are other ones, under the same fingerprint of the data."""
    calibrated = uniform(llama, Assignment.of("regmean", BOTH, calibration="sha256:data"))
    assert virtual.folder_of(calibrated, live_dtype="bfloat16") != virtual.folder_of(calibrated, live_dtype="float32")
    assert virtual.folder_of(recipe, live_dtype="bfloat16") == virtual.folder_of(recipe, live_dtype="float32")


def test_any_change_of_code_is_seen(tmp_path: Path) -> None:
    hashes = set()
    for name, text in (("a.py", "x = 1"), ("a.py", "x = 2"), ("inner/b.py", ""), ("c.txt", "no code")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        code_hash.cache_clear()
        hashes.add(code_hash(tmp_path))
    assert len(hashes) == 3


@pytest.mark.parametrize("damage", ["truncated", "another weight", "no facts", "half a folder"])
def test_what_was_damaged_is_made_anew(llama: Sources, recipe: Recipe, tmp_path: Path, damage: str) -> None:
    made = virtual.make(recipe, llama, cache=tmp_path)
    weights = made.folder / SINGLE
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif damage == "another weight":
        tensors = load_file(weights)
        name = next(iter(tensors))
        tensors[name].view(-1)[0] += 1.0
        save_file(tensors, weights, metadata={"format": "pt"})
    elif damage == "no facts":
        (made.folder / "made.json").unlink()
    else:
        weights.unlink()
    assert virtual.find(recipe, tmp_path) is None
    again = virtual.make(recipe, llama, cache=tmp_path)
    assert again.seconds is not None and again.content == made.content
    assert virtual.find(recipe, tmp_path) == again._replace(seconds=None)


def test_what_a_killed_process_left_is_cleared_and_never_found(llama: Sources, recipe: Recipe, tmp_path: Path) -> None:
    place = virtual.folder_of(recipe, tmp_path)
    for name in (".partial-123", "..partial-123.partial-abc"):
        (place / name).mkdir(parents=True)
        (place / name / SINGLE).write_bytes(b"half")
    assert virtual.find(recipe, tmp_path) is None
    virtual.make(recipe, llama, cache=tmp_path)
    assert {each.name for each in place.iterdir()} == {".lock", "model"}


@pytest.mark.slow
def test_killed_while_it_writes_nothing_half_is_found(families: Callable[..., Any], tmp_path: Path) -> None:
    family = families("llama")
    code = f"""
        import os, signal
        from dataclasses import replace
        from pathlib import Path
        from merging import export as exporting, virtual
        from merging.recipe import Assignment, Recipe
        from merging.sources import Sources
        sources = Sources.load({str(family.base)!r}, {{"a": {str(family.a)!r}, "b": {str(family.b)!r}}})
        both = {{"a": {{"coefficient": 1.0}}, "b": {{"coefficient": 1.0}}}}
        sum = Assignment.of("task_arithmetic", both, normalize=False, scale=1.0)
        groups = dict.fromkeys(sources.layout.groups, sum)
        recipe = Recipe("base", sources.refs, groups, dtype="float32")
        print(recipe.hash, flush=True)
        write = exporting._write_companions
        def die(*arguments):
            write(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        exporting._write_companions = die
        virtual.make(recipe, sources, cache=Path({str(tmp_path)!r}))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    sources = family.load()
    recipe = Recipe("base", sources.refs, dict.fromkeys(sources.layout.groups, SUM), dtype=virtual.DTYPE)
    assert recipe.hash == done.stdout.strip()
    place = virtual.folder_of(recipe, tmp_path)
    assert any("partial" in each.name for each in place.iterdir()) and virtual.find(recipe, tmp_path) is None
    virtual.make(recipe, sources, cache=tmp_path)  # the dead holder's lock is nobody's
    assert {each.name for each in place.iterdir()} == {".lock", "model"}


def test_who_comes_second_waits_and_makes_nothing(llama: Sources, recipe: Recipe, tmp_path: Path) -> None:
    """While a process waits for the lock, its holder finishes: what it made is taken."""
    import fcntl

    place = virtual.folder_of(recipe, tmp_path)
    place.mkdir(parents=True)
    held = (place / ".lock").open("a")
    fcntl.flock(held, fcntl.LOCK_EX)
    waited = []

    def finish() -> None:
        waited.append(True)
        virtual._make(recipe, llama, None, place)
        held.close()

    made = virtual.make(recipe, llama, cache=tmp_path, on_wait=finish)
    assert waited == [True] and made.seconds is None


def test_a_full_disk_is_one_paragraph_and_leaves_nothing(
    llama: Sources, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(virtual, "write_text", full)
    with pytest.raises(MergingError, match=r"the disk is full.*PARETOMERGE_CACHE") as caught:
        virtual.make(recipe, llama, cache=tmp_path)
    assert "\n" not in str(caught.value)
    assert {each.name for each in virtual.folder_of(recipe, tmp_path).iterdir()} == {".lock"}


def test_a_cache_that_cannot_be_written_says_so(llama: Sources, recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "virtual").write_text("a file where a folder should be")
    with pytest.raises(MergingError, match="in the cache could not be written"):
        virtual.make(recipe, llama, cache=tmp_path)


def test_weights_that_are_not_finite_are_refused(llama: Sources, uniform: Build, tmp_path: Path) -> None:
    endless = Assignment.of("task_arithmetic", {"a": {"coefficient": 1e38}}, normalize=False, scale=1e38)
    recipe = replace(uniform(llama, endless), dtype=virtual.DTYPE)
    with pytest.raises(MergeFailed):
        virtual.make(recipe, llama, cache=tmp_path)
    assert {each.name for each in virtual.folder_of(recipe, tmp_path).iterdir()} == {".lock"}


# --- recipes that say what a source is made by ---


def test_a_recipe_reads_back_what_its_sources_are_made_by(llama: Sources, recipe: Recipe, tmp_path: Path) -> None:
    whole = winner(llama, virtual.make(recipe, llama, cache=tmp_path), recipe)
    again = Recipe.from_yaml(whole.to_yaml())
    made_by = again.sources["sum"].made_by
    assert again == whole and made_by == recipe and made_by is not None and made_by.hash == recipe.hash
    assert again.sources["a"].made_by is None


def test_what_a_source_is_made_by_is_no_part_of_the_hash(llama: Sources, recipe: Recipe, tmp_path: Path) -> None:
    whole = winner(llama, virtual.make(recipe, llama, cache=tmp_path), recipe)
    plain = {alias: replace(ref, made_by=None) for alias, ref in whole.sources.items()}
    assert whole.with_sources(plain).hash == whole.hash
    assert whole.with_sources(plain) == whole


def test_recipes_without_any_are_written_as_ever(llama: Sources, uniform: Build) -> None:
    assert "made_by" not in uniform(llama, SUM).to_yaml()


def test_a_recipe_that_is_made_by_itself_is_refused() -> None:
    text = (
        "&whole\nformat: paretomerge-recipe/1\nbase: base\nsources:\n  base: {path: x, content: y, made_by: *whole}\n"
    )
    with pytest.raises(MergingError, match="an alias stands inside of what it stands for"):
        Recipe.from_yaml(text + "dtype: null\ngroups: []\n")


def test_it_is_made_again_where_its_folder_is_gone(
    llama: Sources, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETOMERGE_CACHE", str(tmp_path / "cache"))
    made = virtual.make(recipe, llama, cache=tmp_path / "other")
    whole = winner(llama, made, recipe)
    direct = export(whole, llama.joined({"sum": made.folder}), tmp_path / "direct")
    assert not (direct / "mergekit.yaml").exists()
    again, sources = read_config(direct / "recipe.yaml")
    assert again.hash == whole.hash and sources.checkpoints["sum"].path.is_relative_to(tmp_path / "cache")
    rebuilt = export(again, sources, tmp_path / "rebuilt")
    assert (rebuilt / SINGLE).read_bytes() == (direct / SINGLE).read_bytes()


def test_its_parents_need_not_be_sources_of_the_recipe(
    llama: Sources, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETOMERGE_CACHE", str(tmp_path / "cache"))
    whole = winner(llama, virtual.make(recipe, llama, cache=tmp_path / "other"), recipe)
    assert "b" in recipe.sources and "b" not in whole.sources
    (tmp_path / "recipe.yaml").write_text(whole.to_yaml())
    assert read_config(tmp_path / "recipe.yaml")[0].hash == whole.hash


def test_one_that_comes_out_otherwise_is_refused_with_a_reason(
    llama: Sources, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETOMERGE_CACHE", str(tmp_path / "cache"))
    made = virtual.make(recipe, llama, cache=tmp_path / "other")
    whole = winner(llama, made._replace(content="sha256:" + "0" * 64), recipe)
    (tmp_path / "recipe.yaml").write_text(whole.to_yaml())
    with pytest.raises(MergingError, match=r"'sum' is a virtual expert that was sha256:0+….*made again"):
        read_config(tmp_path / "recipe.yaml")


def test_mergekit_is_told_of_no_folder_that_nobody_has(llama: Sources, recipe: Recipe, tmp_path: Path) -> None:
    made = virtual.make(recipe, llama, cache=tmp_path)
    with pytest.raises(MergingError, match="'sum' is a virtual expert"):
        to_mergekit(winner(llama, made, recipe), llama.joined({"sum": made.folder}))


def test_of_bfloat16_models_it_keeps_float32_and_takes_part_as_any_expert(
    families: Callable[..., Any], uniform: Build, tmp_path: Path
) -> None:
    family = families("llama", torch.bfloat16)
    sources = family.load()
    recipe = replace(uniform(sources, SUM), dtype=virtual.DTYPE)
    made = virtual.make(recipe, sources, cache=tmp_path)
    exact = {
        name: sum(sources.tensor(alias, name).double() for alias in "ab") - sources.tensor("base", name).double()
        for name in sources.tensors
    }
    joined = sources.joined({"sum": made.folder})
    assert all(torch.equal(joined.tensor("sum", name), value.float()) for name, value in exact.items())
    alone = Assignment.of("task_arithmetic", {"sum": {"coefficient": 1.0}})
    materializer = Materializer(joined, load_model(family.base))
    materializer.apply(Recipe("base", joined.refs, dict.fromkeys(joined.layout.groups, alone)))
    for name, live in materializer.tensors.items():
        assert live.dtype == torch.bfloat16 and torch.equal(live, exact[name].float().to(torch.bfloat16)), name
