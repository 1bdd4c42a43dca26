"""Task vectors on a terminal and as plain data. What a manifest says is a stranger's text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merging.recipe import MergingError
from merging.vectors.cards import error_words, size_words
from merging.vectors.manifest import Manifest, StoredTensor
from merging.vectors.store import Store
from search.report.terminal import cell, visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from search.vector_scores import VectorScores


def read_all(store: Store) -> tuple[dict[str, Manifest], dict[str, str]]:
    """(name -> manifest; name -> why it cannot be read), of all vectors of a store."""
    found: dict[str, Manifest] = {}
    broken: dict[str, str] = {}
    for name in store.names():
        try:
            found[name] = store.manifest(name)
        except MergingError as error:
            broken[name] = str(error)
    return found, broken


def facts(name: str, manifest: Manifest) -> dict[str, Any]:
    """What a list says of a vector, for JSON."""
    return {
        "name": name,
        "id": manifest.id,
        "base": manifest.base.as_data(),
        "expert": manifest.expert.as_data(),
        "content": manifest.content,
        "license": manifest.license,
        "bytes": manifest.bytes,
        "full_bytes": manifest.expert.bytes,
        "share": share(manifest),
        "relative_error": manifest.error,
        "exact": manifest.is_exact,
        "distance": manifest.distance,
        "scores": [each.as_data() for each in manifest.scores],
        "provenance": dict(manifest.provenance),
    }


def details(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """All of a vector but its hashes of parts, for JSON."""
    tensors = {
        name: {"codec": each.codec, "bytes": each.bytes, "full_bytes": each.full_bytes, "relative_error": each.error,
               "norm": each.norm, "module": each.module, "shape": list(each.shape), "dtype": each.dtype,
               "parameters": dict(each.parameters)}
        for name, each in sorted(manifest.tensors.items())
    }  # fmt: skip
    return facts(folder.name, manifest) | {
        "folder": str(folder),
        "by_codec": {name: _sums(each) for name, each in _grouped(manifest, "codec").items()},
        "by_module": {name: _sums(each) for name, each in _grouped(manifest, "module").items()},
        "tensors": tensors,
    }


def share(manifest: Manifest) -> float:
    """Stored bytes over those of the full model."""
    return manifest.bytes / manifest.expert.bytes if manifest.expert.bytes else 0.0


def summary(manifest: Manifest) -> str:
    """Size and error in a line."""
    error = "exact" if manifest.is_exact else f"relative error {error_words(manifest.error)}"
    size = (
        f"{size_words(manifest.bytes)}, {share(manifest):.1%} of the full model's {size_words(manifest.expert.bytes)}"
    )
    return f"{size}; {error}"


def print_list(store: Store, manifests: Mapping[str, Manifest], broken: Mapping[str, str]) -> None:
    """The vectors of a store as a table."""
    console = _console()
    if not manifests and not broken:
        _say(console, f"no vectors in {store.path}; `paretomerge vector extract BASE EXPERT --name NAME` makes one")
        return
    table = _table("vector", "base", "size", "of full", "error", "licence")
    for name, each in manifests.items():
        table.add_row(
            cell(name), cell(each.base.name), size_words(each.bytes), f"{share(each):.1%}", error_words(each.error),
            cell(each.license or "not stated"),
        )  # fmt: skip
    if manifests:
        console.print(table)
    for name, each in manifests.items():
        if any(score.of == "vector" for score in each.scores):
            _say(console, f"{name} scores {_scores(each)}")
    for name, reason in broken.items():
        _say(console, f"{name}: unreadable. {reason}")
    _say(console, f"store: {store.path}")


def print_details(folder: Path, manifest: Manifest, *, scores: bool = True) -> None:
    """One vector; with the scores that are kept with it, where they are wanted."""
    console = _console()
    _say(console, f"{folder.name}: {summary(manifest)}")
    base, expert = manifest.base, manifest.expert
    rows = {
        "base": f"{base.name}, {base.content[:19]}…",
        "fine-tune": f"{expert.name}, {expert.content[:19]}…",
        "architecture": f"{base.architecture or base.model_type}, {expert.dtype}",
        "distance": f"‖τ‖/‖θ0‖ = {manifest.distance:.3g}",
        "licence": f"{manifest.license or 'not stated'} (base: {base.license or 'not stated'})",
        "made": f"{manifest.provenance.get('created', '')} by {manifest.provenance.get('tool', '')}",
        "command": str(manifest.provenance.get("command", "")),
        "id": manifest.id,
        "folder": str(folder),
    }
    for label, text in rows.items():
        _say(console, f"{label + ':':14}{text}")
    for title, key in (("codec", "codec"), ("module", "module")):
        table = _table(title, "tensors", "size", "of full", "error")
        for name, tensors in _grouped(manifest, key).items():
            sums = _sums(tensors)
            part = sums["bytes"] / sums["full_bytes"] if sums["full_bytes"] else 0.0
            table.add_row(
                cell(name), str(sums["tensors"]), size_words(sums["bytes"]), f"{part:.1%}",
                error_words(sums["relative_error"]),
            )  # fmt: skip
        console.print(table)
    if manifest.scores and scores:
        table = _table("kept scores", "of", "value", "95 % interval", "items", "split")
        for each in manifest.scores:
            interval = f"{each.low:.3g} to {each.high:.3g}"
            table.add_row(cell(each.metric), each.of, f"{each.value:.4g}", interval, str(each.items), cell(each.split))
        console.print(table)


def print_scores(found: VectorScores) -> None:
    """Base, base with vector and fine-tune side by side, and what was lost."""
    console = _console()
    table = _table(f"{found.split} split", "base", "with vector", "fine-tune", "lost, 95 % interval")
    by_metric: dict[str, dict[str, str]] = {}
    for each in found.scores:
        by_metric.setdefault(each.metric, {})[each.of] = f"{each.value:.4g}"
    for metric, values in by_metric.items():
        lost = "nothing: exact" if values.get("expert") else "not known: --expert"
        if metric in found.losses:
            loss = found.losses[metric]
            sign = -1.0 if found.directions[metric] == "maximize" else 1.0
            low, high = sorted((sign * loss.low, sign * loss.high))
            lost = f"{sign * loss.difference + 0.0:.3g} ({low + 0.0:.3g} to {high + 0.0:.3g})"  # never -0
        table.add_row(
            cell(metric), values.get("base", ""), values.get("vector", ""), values.get("expert", ""), cell(lost)
        )
    console.print(table)


def print_verified(store: Store, found: Iterable[Mapping[str, Any]]) -> None:
    """What verification found, a line each."""
    console = _console()
    any_there = False
    for each in found:
        any_there = True
        _say(console, f"{each['name']}: {'damaged. ' + each['damaged'] if each['damaged'] else 'as its manifest says'}")
        for note in each["notes"]:
            _say(console, f"  note: {note}")
    if not any_there:
        _say(console, f"no vectors in {store.path}")


def _grouped(manifest: Manifest, key: str) -> dict[str, list[StoredTensor]]:
    """Codec or kind of module -> tensors, the most bytes first."""
    found: dict[str, list[StoredTensor]] = {}
    for each in manifest.tensors.values():
        found.setdefault(getattr(each, key), []).append(each)
    return dict(sorted(found.items(), key=lambda item: -sum(each.bytes for each in item[1])))


def _sums(tensors: Iterable[StoredTensor]) -> dict[str, Any]:
    listed = list(tensors)
    squares = sum(each.norm**2 for each in listed)
    lost = sum((each.error * each.norm) ** 2 for each in listed)
    return {
        "tensors": len(listed),
        "bytes": sum(each.bytes for each in listed),
        "full_bytes": sum(each.full_bytes for each in listed),
        "relative_error": (lost / squares) ** 0.5 if squares else 0.0,
    }


def _scores(manifest: Manifest) -> str:
    """Of base with vector, the newest first; a few."""
    own = [each for each in manifest.scores if each.of == "vector"]
    return ", ".join(f"{each.metric} {each.value:.3g}" for each in own[:3]) + (" …" if len(own) > 3 else "")


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _say(console: Console, text: str) -> None:
    console.print(visible(text), markup=False, highlight=False, soft_wrap=True)


def _table(first: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(cell(first), overflow="fold")
    for each in columns:
        right = each in ("size", "of full", "error", "tensors", "value", "items", "base", "with vector", "fine-tune")
        table.add_column(cell(each), justify="right" if right and each != "base" else "left", overflow="fold")
    return table
