"""What the commands of ``paretomerge vector`` do: names found, vectors read and written, in the words of the shell."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merging.bounded import printable
from merging.new_folder import beside, settle, why
from merging.opening import is_adapter, is_vector, open_model
from merging.recipe import MergingError, SourceRef
from merging.vectors import archive, hub, references
from merging.vectors.cards import error_words, size_words
from merging.vectors.extract import About, Coding, OnTensor, write_vector
from merging.vectors.manifest import LICENCE, Manifest
from merging.vectors.places import found_at
from merging.vectors.store import Store, copy_vector, verify
from search.errors import SearchError

if TYPE_CHECKING:
    from merging.checkpoint import Checkpoint
    from merging.lora.collect import Rest
    from search.export import Exported
    from search.vector_scores import VectorScores


def find_model(text: str) -> Path:
    """The folder of a model, an adapter or a vector: of the zoo, of the default store, or a path.

    Raises:
        SearchError, ZooError, MergingError: there is none.
    """
    from search.references import resolve

    if (named := resolve(text)) is not None:
        return named
    path = Path(text).expanduser()
    if (found := found_at(path)) != "a folder":
        raise SearchError(
            f"expected a model folder, a zoo:// or a vector:// reference, found {found} at {printable(text)}"
        )
    return path


def find_vector(text: str, store: Store) -> Path:
    """The folder of a vector: of a store by its name, or a path.

    Raises:
        MergingError: there is none.
    """
    if references.is_reference(text):
        return store.folder(references.name_of(text))
    path = Path(text).expanduser()
    looks_like_path = "/" in text or text in (".", "..") or text.startswith("~")
    if looks_like_path or (found_at(path) == "a folder" and text not in store.names() and is_vector(path)):
        Manifest.read(path)
        return path
    return store.folder(text)


def extracted(
    store: Store,
    name: str,
    base: Checkpoint,
    expert: Checkpoint,
    named: Mapping[str, str],
    coding: Coding,
    licence: str | None,
    *,
    replace: bool = False,
) -> Manifest:
    """A fine-tune of a base as a vector of a store.

    Args:
        store: to add it to.
        name: in the store.
        base, expert: the models.
        named: ``base`` and ``expert`` -> how the user named them.
        coding: how to store it.
        licence: of the vector; the expert's, where its card states one, if None.
        replace: the vector of that name.

    Raises:
        MergingError: see :func:`merging.vectors.extract.write_vector`; the store is as it was.
    """
    stated = {key: licence_of(each.path) for key, each in (("base", base), ("expert", expert))}
    public = {key: public_name(named[key], each.path) for key, each in (("base", base), ("expert", expert))}
    about = About(
        name=name,
        base=public["base"],
        expert=public["expert"],
        license=(licence or stated["expert"]),
        base_license=stated["base"],
        expert_license=stated["expert"],
        tool=f"paretomerge {metadata.version('paretomerge')}",
        command=f"paretomerge vector extract {public['base']} {public['expert']} --name {name} {coding.words}",
    )
    with progress(f"extracting {name}") as on_tensor:
        store.add(name, lambda folder: write_vector(folder, base, expert, about, coding, on_tensor), replace=replace)
    return store.manifest(name)


def added(
    store: Store, source: str, name: str | None, base: str | None, licence: str | None, *, replace: bool
) -> tuple[str, Manifest]:
    """A folder of a vector, or of an adapter, added to a store; (its name there, what it is).

    Raises:
        MergingError, SearchError: it is neither, or damaged.
    """
    folder = find_model(source)
    if is_vector(folder):
        if base is not None or licence is not None:
            raise SearchError(f"{source} is a vector already, with base and licence; leave --base and --licence out")
        return _copied(store, folder, name, replace=replace)
    if not is_adapter(folder):
        raise SearchError(
            f"expected a task vector (vector.json) or a PEFT adapter (adapter_config.json) at {source}, found neither; "
            "of a whole model a vector is made by `paretomerge vector extract BASE EXPERT --name NAME`"
        )
    if base is None:
        raise SearchError(f"{source} is an adapter: say by --base which model it was trained for")
    chosen = name or re.sub(r"[^A-Za-z0-9._-]", "-", folder.absolute().name).strip("-._")
    origin = open_model(find_model(base))
    tuned = open_model(folder, origin)
    named = {"base": base, "expert": source}
    return chosen, extracted(store, chosen, origin, tuned, named, Coding(), licence, replace=replace)


def imported(store: Store, source: str, name: str | None, *, replace: bool) -> tuple[str, Manifest]:
    """A vector from a folder, an archive or the Hub, added to a store; (its name there, what it is).

    Raises:
        MergingError: it is damaged or hostile; the store is as it was.
    """
    archive.check_kind(source)
    if not hub.is_hub(source) and not archive.is_archive(source):
        folder = find_model(source)
        return _copied(store, folder, name, replace=replace)
    if name is not None and not replace:
        store.check_free(name)
    # what the vector calls itself is known only when it is here
    with beside(store.path / "import", store.alone) as waiting:
        if hub.is_hub(source):
            manifest, _ = hub.download(source, waiting)
        else:
            manifest = archive.read_archive(Path(source).expanduser(), waiting)
        chosen = name or manifest.name
        store.take(chosen, waiting, replace=replace)
    return chosen, store.manifest(chosen)


def _copied(store: Store, folder: Path, name: str | None, *, replace: bool) -> tuple[str, Manifest]:
    chosen = name or Manifest.read(folder).name
    store.add(chosen, lambda place: copy_vector(folder, place), replace=replace)
    return chosen, store.manifest(chosen)


def exported(folder: Path, destination: str, *, private: bool = False) -> dict[str, Any]:
    """A vector written elsewhere; what was done, for JSON, and as ``said``.

    Raises:
        MergingError, SearchError: it is damaged, or the place is taken or cannot be written; nothing is left there.
    """
    manifest = Manifest.read(folder)
    facts: dict[str, Any] = {"vector": folder.name, "id": manifest.id}
    if hub.is_hub(destination):
        return facts | _pushed(folder, manifest, destination, private)
    if private:
        raise SearchError("--private is for hf://OWNER/NAME; leave it out")
    archive.check_kind(destination)
    target = Path(destination).expanduser()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise SearchError(f"expected {target} to be new, found something there; name another place")
    with beside(target) as partial:
        if archive.is_archive(target):
            packed = partial / target.name
            archive.write_archive(folder, folder.name, packed)
            settle(partial)
            packed.replace(target)
        else:
            copy_vector(folder, partial)
            settle(partial)
            partial.replace(target)
    return facts | {"destination": str(target), "said": f"exported {folder.name} to {target}"}


def exported_lora(
    folder: Path, destination: str, rank: str, base: str | None, rest: Rest | None = None
) -> dict[str, Any]:
    """A vector as a PEFT adapter.

    Raises:
        SearchError, MergingError: no base was given, or another one, or the adapter cannot be written.
    """
    from merging.lora.card import About as OfAdapter
    from merging.lora.write import export_adapter

    if base is None:
        raise SearchError("--lora needs the vector's base: add --base BASE")
    origin = open_model(find_model(base))
    manifest, out = Manifest.read(folder), Path(destination).expanduser()
    about = OfAdapter(
        folder.name, str(origin.path), manifest.base.name, manifest.license or "", (manifest.expert.name,)
    )
    with progress(f"exporting {folder.name}") as on_tensor:
        done = export_adapter(
            origin, open_model(folder, origin), out, rank, rest=rest or "save", about=about, on_tensor=on_tensor
        )
    said = (
        f"exported {folder.name} as an adapter of rank {done['rank']} to {out}: {size_words(done['size'])}, relative "
        f"error {error_words(done['error'])}"
    )
    return {"vector": folder.name, "destination": str(out), "adapter": done, "notes": done["notes"], "said": said}


def _pushed(folder: Path, manifest: Manifest, destination: str, private: bool) -> dict[str, Any]:
    from search.push import Push

    repository, revision = hub.parse(destination)
    verify(folder)
    try:
        done = Push(repository, private=private, revision=revision).send(folder, f"task vector {manifest.name}")
    except SearchError as error:  # which speaks of its own option
        raise SearchError(str(error).replace(f"--push {repository}", destination).replace("--push", "hf://")) from error
    return {"destination": destination, "said": f"exported {folder.name} to {done.url}", **done.as_data()}


def verified(store: Store, names: Sequence[str], base: Checkpoint | None) -> list[dict[str, Any]]:
    """What verification found of each vector: name, id, ``damaged`` (None, or why), notes."""
    found: list[dict[str, Any]] = []
    for name in names:
        folder = find_vector(name, store)
        try:
            manifest, notes = verify(folder, base)
        except (MergingError, OSError) as error:
            told = str(error) if isinstance(error, MergingError) else why(error, folder)
            found.append({"name": name, "id": None, "damaged": told, "notes": []})
        else:
            found.append({"name": name, "id": manifest.id, "damaged": None, "notes": notes})
    return found


def equipped(
    store: Store,
    base: str,
    names: Sequence[str],
    out: Path,
    scale: Sequence[str],
    *,
    force: bool = False,
    made_from: str | None = None,
    tokenizer: str | None = None,
) -> tuple[Exported, list[str]]:
    """A base with vectors, written as a model folder; and what the user should know.

    Raises:
        MergingError, SearchError: see :func:`merging.vectors.equip.equip`; nothing is left at ``out``.
    """
    from merging.sources import BASE
    from merging.vectors.equip import ORIGIN, aliases_of, equip
    from search.export import ExportOptions, Work, write_export
    from search.vector_options import parse_scales

    aliases = aliases_of(list(names))
    folders = {alias: _vector_or_adapter(name, store) for alias, name in aliases.items()}
    _check_once(folders, aliases)
    scales = parse_scales(scale, aliases)
    work = equip(
        find_model(base),
        folders,
        scales=scales,
        force=force,
        made_from=None if made_from is None else find_model(made_from),
        tokenizer=tokenizer if tokenizer in (None, "base", "union") else find_model(tokenizer),
    )
    named = {BASE: base, **{alias: _named(folder, store) for alias, folder in folders.items()}}
    if made_from is not None:
        named[ORIGIN] = made_from
    recipe = work.recipe.with_sources(
        {alias: SourceRef(named[alias], ref.content) for alias, ref in work.recipe.sources.items()}
    )
    options = ExportOptions(work.tokenizer_from)
    done = write_export(
        Work(recipe, work.sources, None, named, work.folders, keep_paths=True, title=out.name), out, options
    )
    notes = list(work.notes)
    if force and any(getattr(each, "forced", False) for each in work.sources.checkpoints.values()):
        notes.append("recipe.yaml names a vector over another base than its own, which `paretomerge merge` refuses")
    return done, notes + list(done.warnings)


def scored(folder: Path, config: Path, split: str, base: str | None, expert: str | None) -> VectorScores:
    """A vector's scores with a config's evaluators.

    Raises:
        SearchError, MergingError, EvaluatorError: see :func:`search.vector_scores.score_vector`.
    """
    from evaluators.contract import SPLITS
    from search.config import load_config
    from search.vector_scores import score_vector

    if split not in SPLITS:
        raise SearchError(f"--split {split}: expected one of {', '.join(SPLITS)}")
    return score_vector(
        load_config(config),
        folder,
        split,
        base=None if base is None else find_model(base),
        expert=None if expert is None else find_model(expert),
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )


def licence_of(folder: Path) -> str | None:
    """As a model's own card states it; None where it states none, or what the Hub does not know."""
    from search.card.parents import Parent, read_metadata

    found = Parent("", "", "", metadata=read_metadata(folder)).license
    return found if found and LICENCE.fullmatch(found) else None


def public_name(reference: str, folder: Path) -> str:
    """What strangers may know a model by: its id on the Hub, its reference to the zoo, or its folder's name."""
    from search.card.parents import hub_id_of
    from search.references import is_reference

    if is_reference(reference):
        return reference
    return hub_id_of(folder)[0] or folder.absolute().name


@contextmanager
def progress(what: str) -> Iterator[OnTensor]:
    """A bar on a terminal, a few plain lines elsewhere where it takes long; on standard error in both cases."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} of {task.total}"),
                   TimeRemainingColumn())  # fmt: skip
        with Progress(*columns, console=console, transient=True) as bars:
            task = bars.add_task(what, total=None)
            yield lambda done, total, name: bars.update(task, completed=done, total=total)
        return
    fifths = [0]

    def plain(done: int, total: int, name: str) -> None:
        if total >= 200 and 5 * done // total > fifths[0]:
            fifths[0] = 5 * done // total
            print(f"{what}: {done} of {total} tensors", file=sys.stderr, flush=True)

    yield plain


def _check_once(folders: Mapping[str, Path], aliases: Mapping[str, str]) -> None:
    """Refuse one vector under two names: it would count twice."""
    seen: dict[Path, str] = {}
    for alias, folder in folders.items():
        first = seen.setdefault(folder.resolve(), alias)
        if first != alias:
            one, other = printable(aliases[first]), printable(aliases[alias])
            raise MergingError(
                f"{one!r} and {other!r} are the same vector; name it once, with --scale {one}=2 if meant"
            )


def _vector_or_adapter(name: str, store: Store) -> Path:
    path = Path(name).expanduser()
    if "/" in name and "://" not in name and is_adapter(path):
        return path
    return find_vector(name, store)


def _named(folder: Path, store: Store) -> str:
    """How a recipe finds a vector again: by its name in the default store, else by its folder."""
    default = Store().path
    here = folder.parent == store.path == default and is_vector(folder)
    return f"{references.SCHEME}{folder.name}" if here else str(folder)
