"""A vector from the Hugging Face Hub: ``hf://OWNER/NAME`` or ``hf://OWNER/NAME@REVISION``, by huggingface_hub."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from merging.bounded import LARGEST_JSON
from merging.hub_errors import explained
from merging.hub_names import repository_of
from merging.recipe import MergingError
from merging.vectors.manifest import CARD, Manifest
from merging.vectors.places import MANIFEST
from merging.vectors.source import check_companions

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SCHEME: Final = "hf://"
_DOWNLOADS = ".download"


class HubReference(NamedTuple):
    """A repository, and the revision that is meant; None for its newest."""

    repository: str
    revision: str | None


def is_hub(text: object) -> bool:
    """Whether a text is meant as a repository on the Hub, well-formed or not."""
    return isinstance(text, str) and text.startswith(SCHEME)


def parse(text: str) -> HubReference:
    """Repository and revision.

    Raises:
        MergingError: malformed.
    """
    return HubReference(*repository_of(text, SCHEME, "my-name/legal-v2"))


def download(text: str, folder: Path) -> tuple[Manifest, str]:
    """Fetch a vector into an empty folder. Its manifest comes first; of the rest, only the files that it names, each
    compared in size before it is fetched, and by its hash afterwards. All come from one commit.

    Args:
        text: ``hf://OWNER/NAME[@REVISION]``.
        folder: existing and empty; half a vector may stay there where this fails.

    Returns:
        The manifest, and the commit.

    Raises:
        MergingError: there is no such vector, it is damaged, or the Hub cannot be reached.
        OSError: the folder cannot be written.
    """
    from huggingface_hub import HfApi, constants

    repository, revision = parse(text)
    if constants.HF_HUB_OFFLINE:
        raise MergingError(
            f"{text}: this process is told to stay offline (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set); unset it"
        )
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="paretomerge")
    with explained(text):
        commit = str(api.model_info(repository, revision=revision).sha)
        sizes = _sizes(api, repository, commit, [MANIFEST, CARD])
        if MANIFEST not in sizes:
            raise MergingError(f"expected a task vector in {text}, found no {MANIFEST} there")
        if sizes[MANIFEST] > LARGEST_JSON:
            raise MergingError(f"{text}: {MANIFEST} has {sizes[MANIFEST]} bytes, more than a manifest may have")
        _fetch(api, repository, commit, MANIFEST, folder)
        manifest = Manifest.read(folder, text)
        sizes |= _sizes(api, repository, commit, list(manifest.files))
        for name, facts in manifest.files.items():
            if sizes.get(name) != facts.bytes:
                raise MergingError(
                    f"expected {name} of {facts.bytes} bytes in {text}, found {sizes.get(name, 'none')}; the vector is "
                    "damaged there: tell its maker"
                )
        wanted = [*manifest.files, *([CARD] if CARD in sizes else [])]
        for name in wanted:
            _fetch(api, repository, commit, name, folder)
    shutil.rmtree(folder / _DOWNLOADS, ignore_errors=True)
    check_companions(folder, manifest, shards=True, shown=text)
    return manifest, commit


def _sizes(api: HfApi, repository: str, commit: str, names: list[str]) -> dict[str, int]:
    """Name -> bytes, of those that are there."""
    found = {}
    for start in range(0, len(names), 500):
        for each in api.get_paths_info(repository, names[start : start + 500], revision=commit):
            size = getattr(each, "size", None)
            if size is not None:
                found[each.path] = int(size)
    return found


def _fetch(api: HfApi, repository: str, commit: str, name: str, folder: Path) -> None:
    got = api.hf_hub_download(repository, name, revision=commit, local_dir=folder / _DOWNLOADS)
    Path(got).replace(folder / name)
