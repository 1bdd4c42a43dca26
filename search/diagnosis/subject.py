"""Which models a diagnosis is of: a base and experts named on a command line, or those of a search's config."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from merging.sources import BASE
from search.errors import SearchError
from search.positions import did_you_mean

if TYPE_CHECKING:
    from merging.sources import Sources
    from search.config import LoadedConfig

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_NO_LETTER = re.compile(r"[^A-Za-z0-9_.-]+")
_CONFIG = (".yaml", ".yml")


@dataclass(frozen=True)
class Subject:
    """The models of a diagnosis.

    Attributes:
        base: folder.
        experts: alias -> folder: of a model, an adapter, or a stored task vector.
        references: alias -> how it was named, the base's among them.
        loaded: the config that named them; None where the command line did.
        left_out: what the config names and a diagnosis does not look at, one sentence each.
    """

    base: Path
    experts: dict[str, Path]
    references: dict[str, str]
    loaded: LoadedConfig | None = None
    left_out: tuple[str, ...] = ()

    def load(self, *, tokenizer: str = BASE, allow_pickle: bool = False) -> Sources:
        """Open the models, and check that they fit each other. Their weights are not read yet.

        Args:
            tokenizer, allow_pickle: as in :meth:`merging.sources.Sources.load`.

        Raises:
            MergingError: they are no models, or do not fit each other.
        """
        from merging.opening import open_models
        from merging.sources import Sources

        whose = tokenizer if tokenizer in (BASE, "union") else Path(tokenizer).expanduser()
        return Sources.opened(open_models(self.base, self.experts, allow_pickle=allow_pickle), whose)


def subject_of(given: Sequence[str], overrides: Sequence[str] = ()) -> Subject:
    """What the arguments of the command name.

    Args:
        given: a config alone, or a run's directory; or the base, then every expert, as ``FOLDER`` or ``NAME=FOLDER``.
        overrides: ``key.path=value`` for a config.

    Raises:
        SearchError: nothing is there, or too little is named.
    """
    if len(given) == 1 and given[0].lower().endswith(_CONFIG) and not Path(given[0]).is_dir():
        return _of_config(Path(given[0]), overrides)
    from search.store import DATABASE

    if len(given) == 1 and not overrides and (Path(given[0]) / DATABASE).is_file():
        from search.results import Results

        return _of_loaded(Results.load(Path(given[0])).loaded)
    if overrides:
        raise SearchError(
            "--set: it changes values of a config, and the models were named here; leave it out, or give the config "
            "alone: paretomerge diagnose CONFIG"
        )
    if len(given) < 2:
        found = f"found {given[0]} alone" if given else "found nothing"
        raise SearchError(
            f"expected a base and one or more experts, the YAML config of a search, or a run; {found}. Such as: "
            "paretomerge diagnose BASE EXPERT EXPERT"
        )
    named = [_named(each) for each in given]
    if named[0][0] not in (None, BASE):
        raise SearchError(
            f"{given[0]}: the first model is the base, and its name is {BASE!r}; leave {named[0][0]}= out, or name the "
            "base before it"
        )
    folders = [folder_of(text) for _, text in named]
    aliases = _aliases([alias for alias, _ in named[1:]], [text for _, text in named[1:]])
    references = {BASE: named[0][1]} | dict(zip(aliases, (text for _, text in named[1:]), strict=True))
    return Subject(folders[0], dict(zip(aliases, folders[1:], strict=True)), references)


def folder_of(reference: str) -> Path:
    """The folder that a reference names: ``zoo://…``, ``vector://…``, ``hub://…``, or a path.

    Raises:
        SearchError, ZooError, MergingError: there is none.
    """
    from search.references import resolve

    path = resolve(reference) or Path(reference).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        hint = (
            "; a config is given alone: paretomerge diagnose CONFIG"
            if path.suffix.lower() in _CONFIG
            else "; that is a file: give the folder that holds it"
        )
    elif _HUB_NAME.fullmatch(reference):
        hint = f". If that is a name on the Hugging Face Hub: hf download {reference} --local-dir {reference}"
    else:
        near = [each.name for each in path.parent.iterdir() if each.is_dir()] if path.parent.is_dir() else []
        hint = "." + did_you_mean(path.name, sorted(near))
    raise SearchError(f"expected a folder with a model at {reference}, found none{hint.removesuffix('.')}")


def _of_config(path: Path, overrides: Sequence[str]) -> Subject:
    from search.config import load_config

    return _of_loaded(load_config(path, overrides))


def _of_loaded(loaded: LoadedConfig) -> Subject:
    from search.setup import model_paths

    base, experts = model_paths(loaded)
    models = loaded.config.models
    left_out = []
    made = [*models.virtual, *getattr(models, "derived", {})]
    if made:
        left_out.append(
            f"Made of the others, and not looked at: {', '.join(made)}. The config's {len(experts)} own experts are."
        )
    return Subject(base, experts, {BASE: models.base, **models.experts}, loaded, tuple(left_out))


def _named(text: str) -> tuple[str | None, str]:
    """(alias, reference) of ``NAME=FOLDER``; a folder whose own name has the sign is taken as it is."""
    alias, sign, reference = text.partition("=")
    if not sign or not _ALIAS.fullmatch(alias) or Path(text).exists():
        return None, text
    if not reference:
        raise SearchError(f"{text}: expected NAME=FOLDER, found no folder after the sign")
    return alias, reference


def _aliases(given: Sequence[str | None], references: Sequence[str]) -> list[str]:
    """A name for every expert: the one given, or its folder's; with the folder around it where two would be equal."""
    taken = [each for each in given if each is not None]
    twice = {each for each in taken if taken.count(each) > 1}
    if twice or BASE in taken:
        name = BASE if BASE in taken else min(twice)
        why = "that is the base's name" if name == BASE else "each expert needs a name of its own"
        raise SearchError(f"{name}=: {why}; choose another")
    parts = [_parts(each) for each in references]
    found: list[str] = []
    for place, alias in enumerate(given):
        if alias is not None:
            found.append(alias)
            continue
        short = parts[place][-1]
        equal = [each for index, each in enumerate(parts) if given[index] is None and each[-1] == short]
        name = "-".join(parts[place][-2:]) if len(equal) > 1 or short == BASE else short
        number, unique = 2, name
        while unique in found or unique in taken or unique == BASE:
            unique, number = f"{name}-{number}", number + 1
        found.append(unique)
    return found


def _parts(reference: str) -> list[str]:
    """Words of a reference that an alias can be made of, the last one the most telling."""
    text = reference.partition("://")[2] if "://" in reference else str(Path(reference).expanduser().absolute())
    words = [_NO_LETTER.sub("-", each).strip("-.")[:64].strip("-.") for each in text.split("/")]
    return [each for each in words if each] or ["expert"]
