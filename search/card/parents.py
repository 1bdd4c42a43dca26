"""The models that a merge was made of: what they are called, where the Hub has them, and what their own cards say."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from merging import bounded, plain_yaml
from merging.recipe import Recipe, SourceRef
from search.errors import SearchError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"^[0-9a-f]{7,40}$")
_LARGEST_CARD = 2_000_000
_FRONT_MATTER = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|\Z)", re.DOTALL)
_VIRTUAL = "virtual/"


@dataclass(frozen=True)
class Parent:
    """One of the models.

    Attributes:
        alias: what the recipe calls it.
        name: what a stranger may be told: its id on the Hub, a ``zoo://`` or
            ``vector://`` reference, or the name of its folder.
        content: hash of its tensors, ``sha256:…``.
        hub_id: on the Hugging Face Hub, None where it is not known to be there.
        revision: commit on the Hub, where it is known.
        made_by: the merge that made it, for virtual experts.
        metadata: front matter of its own model card; empty where there is none.
        form: what it is kept as where it is no model of its own: ``a PEFT adapter``, ``a task vector``; "" elsewhere.
    """

    alias: str
    name: str
    content: str
    hub_id: str | None = None
    revision: str | None = None
    made_by: Recipe | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    form: str = ""

    @property
    def license(self) -> str | None:
        """As its card states it; the config is asked where the card says nothing."""
        found = self.metadata.get("license")
        if isinstance(found, list) and len(found) == 1:
            found = found[0]
        return found.strip().lower() if isinstance(found, str) and found.strip() else None

    def listed(self, key: str) -> list[str]:
        """A list of words of its card, such as datasets or languages."""
        found = self.metadata.get(key)
        values = found if isinstance(found, list) else [found]
        return [each for each in values if isinstance(each, str) and re.fullmatch(r"[\w./-]{1,120}", each)]


def parents_of(
    recipe: Recipe,
    references: Mapping[str, str],
    folders: Mapping[str, Path],
    hub_ids: Mapping[str, str] | None = None,
) -> list[Parent]:
    """The parents of a merge: the base, then whoever takes part, also by way of a virtual expert.

    Args:
        recipe: the merge.
        references: alias -> how the user named the model.
        folders: alias -> where it lies; virtual experts are not needed.
        hub_ids: alias -> ``owner/name``, where the user said so.

    Raises:
        SearchError: an id for a model that is not there, or one that is none.
    """
    given = dict(hub_ids or {})
    real = {alias: ref for alias, ref in recipe.sources.items() if ref.made_by is None}
    for alias, named in given.items():
        if alias not in real:
            raise SearchError(f"--parent {alias}={named}: there is no model {alias!r}; there are {', '.join(real)}")
        if not is_hub_id(named):
            raise SearchError(f"--parent {alias}={named}: expected an id on the Hugging Face Hub, OWNER/NAME")
    taking = _taking_part(recipe)
    order = [recipe.base, *(alias for alias in recipe.sources if alias != recipe.base and alias in taking)]
    names = _names({alias: references.get(alias, recipe.sources[alias].path) for alias in real}, folders, given)
    found: list[Parent] = []
    for alias in order:
        ref = recipe.sources[alias]
        if ref.made_by is not None:
            found.append(Parent(alias, _VIRTUAL + alias, ref.content, made_by=ref.made_by))
            continue
        id, revision = hub_id_of(folders[alias])
        if alias in given:
            id, revision = given[alias], revision if given[alias] == id else None
        name = names[alias]
        metadata, form = read_metadata(folders[alias]), form_of(folders[alias])
        found.append(Parent(alias, name, ref.content, id, revision, None, metadata, form))
    return found


def shareable(
    recipe: Recipe, references: Mapping[str, str], folders: Mapping[str, Path], hub_ids: Mapping[str, str] | None = None
) -> Recipe:
    """The recipe with its models, and its tokenizer, named as a stranger may read it: never by a folder of this machine
    (:attr:`Parent.name`). Names stay different where the models are.

    Args:
        recipe, references, folders, hub_ids: as in :func:`parents_of`.
    """
    real = {alias: ref for alias, ref in recipe.sources.items() if ref.made_by is None}
    asked = {alias: references.get(alias, ref.path) for alias, ref in real.items()}
    names = _names(asked, folders, dict(hub_ids or {}))
    by_content = {ref.content: names[alias] for alias, ref in real.items()}
    refs = {alias: _renamed(alias, ref, names, by_content) for alias, ref in recipe.sources.items()}
    tokenizer = recipe.tokenizer_path
    return replace(
        recipe, sources=refs, tokenizer_path=None if tokenizer is None else _by_folder(tokenizer, names, folders)
    )


def _by_folder(path: str, names: Mapping[str, str], folders: Mapping[str, Path]) -> str:
    """What to call a tokenizer's folder: the model that it belongs to, or else the folder's own name."""
    place = Path(path).absolute()
    return next((names[alias] for alias, each in folders.items() if each.absolute() == place), place.name)


def is_hub_id(text: str) -> bool:
    """Whether this is ``owner/name`` as the Hub has them."""
    return bool(_HUB_ID.fullmatch(text)) and ".." not in text and "--" not in text and not text.endswith((".git", "."))


def hub_id_of(folder: Path) -> tuple[str | None, str | None]:
    """(id, commit) of a model that lies in the Hub's own cache; (None, None) elsewhere.

    The cache keeps ``models--OWNER--NAME/snapshots/COMMIT``.
    """
    parts = folder.absolute().parts
    for at, part in enumerate(parts[:-2]):
        if part.startswith("models--") and parts[at + 1] == "snapshots":
            id = part.removeprefix("models--").replace("--", "/", 1)
            commit = parts[at + 2]
            if is_hub_id(id):
                return id, commit if _REVISION.match(commit) else None
    return None, None


def form_of(folder: Path) -> str:
    """What an expert is kept as where it is no model of its own, for people; "" for a model."""
    from merging.opening import is_adapter, is_vector

    if not is_vector(folder):
        return "a PEFT adapter" if is_adapter(folder) else ""
    from merging.vectors.manifest import Manifest

    error = Manifest.read(folder).error
    return f"a task vector, off by {error:.2g} of its length" if error else "a task vector, exact"


def read_metadata(folder: Path) -> dict[str, Any]:
    """Front matter of a model's own card; where the card says nothing of a licence, what a vector's manifest or a
    model's ``config.json`` says. Empty where there is none of them, or what is there cannot be read."""
    try:
        text = bounded.read_text(folder / "README.md", _LARGEST_CARD, regular=True)
        match = _FRONT_MATTER.match(text)
        data = plain_yaml.load(match[1]) if match else None
    except (OSError, UnicodeDecodeError, plain_yaml.PlainYamlError):
        data = None
    found: dict[str, Any] = {str(key): value for key, value in data.items()} if isinstance(data, dict) else {}
    if "license" not in found:
        for name in ("vector.json", "config.json"):
            with contextlib.suppress(OSError, ValueError):
                data = bounded.read_json(folder / name)
                if isinstance(data, dict) and isinstance(data.get("license"), str):
                    return found | {"license": data["license"]}
    return found


def _taking_part(recipe: Recipe) -> set[str]:
    """Aliases that the recipe really merges, and those that its virtual experts are made of."""
    taking = {alias for each in (*recipe.groups.values(), *recipe.tensors.values()) for alias, _ in each.sources}
    for block in recipe.layers or ():
        taking |= set(block)
    by_content = {ref.content: alias for alias, ref in recipe.sources.items() if ref.made_by is None}
    for alias in list(taking):
        made_by = recipe.sources[alias].made_by if alias in recipe.sources else None
        if made_by is not None:
            contents = {made_by.sources[own].content for own in _taking_part(made_by) if own in made_by.sources}
            taking |= {by_content[each] for each in contents if each in by_content}
    return taking


def _names(references: Mapping[str, str], folders: Mapping[str, Path], given: Mapping[str, str]) -> dict[str, str]:
    """What strangers are told; a folder's name that two models have is told apart by the alias."""
    from search.references import is_reference

    names = {}
    for alias, reference in references.items():
        known = given.get(alias) or (hub_id_of(folders[alias])[0] if alias in folders else None)
        if known is not None:
            names[alias] = known
        elif is_reference(reference):
            names[alias] = reference
        else:
            own = Path(reference).expanduser().name
            if own in ("", ".", ".."):
                own = folders[alias].absolute().name if alias in folders else alias
            names[alias] = own or alias
    twice = {name for name in names.values() if list(names.values()).count(name) > 1}
    return {alias: f"{alias}-{name}" if name in twice and "/" not in name else name for alias, name in names.items()}


def _renamed(alias: str, ref: SourceRef, names: Mapping[str, str], by_content: Mapping[str, str]) -> SourceRef:
    if ref.made_by is None:
        return SourceRef(names[alias], ref.content)
    inner = ref.made_by.sources
    parts = {
        own: _renamed(own, each, {own: by_content.get(each.content, Path(each.path).name)}, by_content)
        for own, each in inner.items()
    }
    return SourceRef(_VIRTUAL + alias, ref.content, ref.made_by.with_sources(parts))


def licences(parents: Iterable[Parent]) -> dict[str, list[str]]:
    """licence, "" where none is stated -> aliases; virtual experts are not asked: their parents are."""
    found: dict[str, list[str]] = {}
    for each in parents:
        if each.made_by is None:
            found.setdefault(each.license or "", []).append(each.alias)
    return found
