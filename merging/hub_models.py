"""A model on the Hugging Face Hub, wherever a model may be named: ``hub://OWNER/NAME`` or ``…@REVISION``.

What lies in the Hub's own cache on this machine is used as it is, and the Hub is not asked. What is not there is
downloaded only where a command allows that (:func:`downloading`): of the repository, the safetensors that its index
names, the config, the tokenizer and the card, and nothing else. Pickled weights are never fetched.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from merging.bounded import read_json
from merging.checkpoint import INDEX, SINGLE
from merging.hub_errors import UnreachableError, explained
from merging.hub_names import repository_of
from merging.recipe import MergingError
from merging.tokens import TOKENIZER_FILES

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SCHEME: Final = "hub://"

_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_SMALL = ("config.json", "generation_config.json", "README.md", _ADAPTER[0], INDEX, *TOKENIZER_FILES)
_PICKLES = ("*.bin", "*.pt", "*.pth")

Say = Callable[[str], None]
_allowed: list[Say] = []
"""Whom to tell of downloads, while they are allowed."""


class HubModel(NamedTuple):
    """A repository, and the revision that is meant; None for the newest of its main branch."""

    repository: str
    revision: str | None

    @property
    def command(self) -> str:
        """What fetches all of it by hand."""
        revision = "" if self.revision is None else f" --revision {self.revision}"
        return f"hf download {self.repository}{revision}"

    @property
    def unpickled(self) -> str:
        """What fetches it by hand, but for pickled weights."""
        return f'{self.command} --exclude "*.bin"'


class NotHereError(MergingError):
    """The model is on the Hub, or may be, and not on this machine."""


@dataclass(frozen=True)
class Wanted:
    """What a model needs of its repository.

    Attributes:
        commit: that all files are of.
        small: config, tokenizer, card -> bytes.
        weights: safetensors -> bytes.
    """

    commit: str
    small: Mapping[str, int]
    weights: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """All of it."""
        return sum(self.small.values()) + sum(self.weights.values())

    @property
    def words(self) -> str:
        """For people: ``14 files, 14.5 GB``."""
        return f"{len(self.small) + len(self.weights)} files, {_size(self.bytes)}"


def is_reference(text: object) -> bool:
    """Whether a text is meant as a model on the Hub, well-formed or not."""
    return isinstance(text, str) and text.startswith(SCHEME)


def parse(text: str) -> HubModel:
    """Repository and revision.

    Raises:
        MergingError: malformed.
    """
    return HubModel(*repository_of(text, SCHEME, "upaya07/Arithmo2-Mistral-7B"))


@contextmanager
def downloading(say: Say) -> Iterator[None]:
    """Within the context, :func:`resolve` fetches what is not there, and tells about it."""
    _allowed.append(say)
    try:
        yield
    finally:
        _allowed.pop()


def resolve(text: str) -> Path:
    """The folder of a model: in the Hub's cache on this machine, or fetched to there where that is allowed.

    Raises:
        NotHereError: it is not here, and must not or cannot be fetched; says how to.
        MergingError: malformed, or no repository with weights that can be used.
    """
    model = parse(text)
    found = cached(model)
    if found is not None:
        return found
    if not _allowed:
        raise NotHereError(
            f"{text} is not on this machine; `paretomerge run` downloads it, and so does: {model.unpickled}"
        )
    wanted = ask(text)
    say = _allowed[-1]
    say(f"downloading {text}: {wanted.words}")
    folder = _fetch(text, model, wanted)
    if cached(model) is None:
        raise MergingError(
            f"{text}: the download ended, and files are missing in {folder}; try again: {model.unpickled}"
        )
    return folder


def cached(model: HubModel) -> Path | None:
    """The folder of a model whose weights are all in the Hub's cache on this machine; the Hub is not asked."""
    from huggingface_hub import constants, try_to_load_from_cache

    for name in ("config.json", _ADAPTER[0]):
        # the folder is not asked for as a snapshot: that counts every file of the repository, pickles too
        found = try_to_load_from_cache(
            model.repository, name, cache_dir=constants.HF_HUB_CACHE, revision=model.revision
        )
        if isinstance(found, str) and _is_whole(Path(found).parent):
            return Path(found).parent
    return None


def ask(text: str) -> Wanted:
    """What the Hub has of a model, and how large it is; nothing but a small index is fetched.

    Raises:
        NotHereError: the Hub cannot be asked.
        MergingError: no such repository, or no weights in it that can be used.
    """
    from huggingface_hub import constants

    model = parse(text)
    if constants.HF_HUB_OFFLINE:
        raise NotHereError(
            f"{text} is not on this machine, and this process is told to stay offline (HF_HUB_OFFLINE is set); unset "
            f"it, or fetch the model where the network is: {model.unpickled}"
        )
    with _reaching(text, model):
        info = _api().model_info(model.repository, revision=model.revision, files_metadata=True)
        sizes = {each.rfilename: int(each.size or 0) for each in info.siblings or [] if "/" not in each.rfilename}
        commit = str(info.sha)
        weights = _weights(text, model, commit, sizes)
    small = {name: size for name, size in sizes.items() if any(fnmatch(name, each) for each in _SMALL)}
    small = {name: size for name, size in small.items() if not name.endswith(".py") and name not in weights}
    if not {"config.json", _ADAPTER[0]} & small.keys():
        raise MergingError(f"expected a model in {text}, found no config.json there")
    return Wanted(commit, small, weights)


def _weights(text: str, model: HubModel, commit: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """Files of weights, as a model folder needs them."""
    if SINGLE in sizes:
        return {SINGLE: sizes[SINGLE]}
    if INDEX in sizes:
        index = read_json(Path(_api().hf_hub_download(model.repository, INDEX, revision=commit)))
        shards = index.get("weight_map") if isinstance(index, dict) else None
        names = sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else []
        missing = [name for name in names if name not in sizes]
        if missing or not names or not all(name.endswith(".safetensors") for name in names):
            raise MergingError(f"{text}: its {INDEX} names no safetensors that are there; tell its maker")
        return {name: sizes[name] for name in names}
    if all(name in sizes for name in _ADAPTER):
        return {_ADAPTER[1]: sizes[_ADAPTER[1]]}
    pickled = {name: size for name, size in sizes.items() if any(fnmatch(name, each) for each in _PICKLES)}
    if pickled:
        own = model.repository.partition("/")[2]
        raise MergingError(
            f"{text} has its weights only as pickles ({', '.join(sorted(pickled)[:3])}; "
            f"{_size(sum(pickled.values()))}), which are never fetched for you: a pickle can run code. If you trust "
            f"it: {model.command} --local-dir {own}; paretomerge convert {own} {own}-safetensors --allow-pickle; and "
            "name that folder instead"
        )
    raise MergingError(f"expected safetensors in {text}, found no file of weights there")


def _fetch(text: str, model: HubModel, wanted: Wanted) -> Path:
    """Small files first: where weights are all there, the others are too, however a download ended."""
    folder = ""
    for names in (wanted.small, wanted.weights):
        with _reaching(text, model):
            folder = _api().snapshot_download(
                model.repository, revision=model.revision, allow_patterns=[escape(name) for name in names]
            )
    return Path(folder)


def _is_whole(folder: Path) -> bool:
    """Whether all weights of a model or adapter are in a folder, beside its config."""
    if all((folder / name).is_file() for name in _ADAPTER):
        return True
    if not (folder / "config.json").is_file():
        return False
    if (folder / SINGLE).is_file():
        return True
    try:
        index = read_json(folder / INDEX)
    except (OSError, ValueError):
        return False
    shards = index.get("weight_map") if isinstance(index, dict) else None
    return isinstance(shards, dict) and all((folder / str(name)).is_file() for name in set(shards.values()))


@contextmanager
def _reaching(text: str, model: HubModel) -> Iterator[None]:
    """What goes wrong on the way, and the way out."""
    try:
        with explained(text, _short(model.revision)):
            yield
    except UnreachableError as error:
        raise NotHereError(
            f"{error}. The model is not on this machine, or not whole: fetch it where the network is "
            f"({model.unpickled}), and set HF_HOME to where it lies"
        ) from None


def _short(revision: str | None) -> str:
    """What to say where a revision looks like a commit that was cut short."""
    if revision is not None and re.fullmatch(r"[0-9a-f]{7,39}", revision):
        return f" (the revision {revision} looks like a part of a commit's name; the Hub wants all 40 digits)"
    return ""


def _api() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="paretomerge")


def _size(count: int) -> str:
    value = float(count)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"
