"""A vector from the Hugging Face Hub: ``hf://OWNER/NAME`` or ``hf://OWNER/NAME@REVISION``, by huggingface_hub."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from merging.bounded import LARGEST_JSON, printable
from merging.recipe import MergingError
from merging.vectors.manifest import CARD, Manifest
from merging.vectors.places import MANIFEST
from merging.vectors.source import check_companions

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SCHEME: Final = "hf://"
_FORM = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w./-]{1,200}))?", re.ASCII
)
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
    match = _FORM.fullmatch(text.removeprefix(SCHEME)) if is_hub(text) else None
    if match is None or ".." in text:
        raise MergingError(
            f"expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION, such as hf://my-name/legal-v2, found "
            f"{printable(text)!r}"
        )
    return HubReference(match["id"], match["revision"])


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
    with _explained(text):
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


@contextmanager
def _explained(text: str) -> Iterator[None]:
    """Whatever goes wrong on the way to the Hub as one paragraph, without tokens or signed addresses."""
    try:
        yield
    except MergingError:
        raise
    except Exception as error:
        why = _reason(error)
        if why is None:
            raise
        raise MergingError(f"{text}: {why}") from None


def _reason(error: Exception) -> str | None:
    """What went wrong; None for a defect, or what is of this machine."""
    from huggingface_hub.errors import HfHubHTTPError

    each: BaseException | None = error
    while each is not None:
        if isinstance(each, HfHubHTTPError):
            return _of_status(getattr(getattr(each, "response", None), "status_code", None))
        names: set[str] = {kind.__name__ for kind in type(each).__mro__}
        if isinstance(each, ConnectionError | TimeoutError) or "TransportError" in names:
            return f"the Hub could not be reached, or the connection broke off ({type(each).__name__})"
        each = each.__cause__ or each.__context__
    return None


def _of_status(status: Any) -> str:
    said = {
        401: "there is no such repository or revision, or it is private and the token may not read it (401); log in "
        "with `hf auth login`",
        403: "the token may not read it (403); is access to it granted on its page?",
        404: "the Hub finds no such repository or revision (404); is its name right?",
        429: "the Hub asks to wait (429: too many requests); try again later",
    }
    return said.get(status, f"the Hub answered with an error ({status})")
