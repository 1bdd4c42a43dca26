"""An exported folder to the Hugging Face Hub, by huggingface_hub. The token comes from the environment or the login of
``hf auth login``, and is shown nowhere."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from search.card.parents import is_hub_id
from search.errors import SearchError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_STALE = ["*.safetensors", "*.safetensors.index.json", "recipe.yaml", "mergekit.yaml", "front.png"]
"""What an earlier export may have left in the repository, and would be taken for a part of this one."""


@dataclass(frozen=True)
class Pushed:
    """What is on the Hub now.

    Attributes:
        url: of the repository.
        commit: that added the folder.
        revision: branch.
        files: how many were compared with the local ones afterwards.
    """

    url: str
    commit: str
    revision: str
    files: int

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {"url": self.url, "commit": self.commit, "revision": self.revision, "verified_files": self.files}


class Push:
    """Where a folder is to be pushed. Says at once what can be known to be wrong without asking the Hub.

    Args:
        repository: ``owner/name``.
        private: of a repository that is made for it; one that is there must be private already.
        revision: branch, made if it is not there; ``main`` if None.

    Raises:
        SearchError: no such id, offline, or no token.
    """

    def __init__(self, repository: str, *, private: bool = False, revision: str | None = None) -> None:
        from huggingface_hub import HfApi, constants, get_token

        if not is_hub_id(repository):
            raise SearchError(f"--push {repository}: expected OWNER/NAME, such as my-name/my-merge")
        if constants.HF_HUB_OFFLINE:
            raise SearchError(
                "--push: this process is told to stay offline (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set), and the "
                "Hub cannot be reached so; unset it, or leave --push out and upload the folder yourself later"
            )
        if get_token() is None:
            raise SearchError(
                "--push: expected a token that may write, found none; run `hf auth login`, or put it into HF_TOKEN. It "
                "is never printed"
            )
        self.repository, self.private, self.revision = repository, private, revision or "main"
        self._api: HfApi = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="paretomerge")

    def send(self, folder: Path, message: str) -> Pushed:
        """Upload a folder in one commit, and compare what the Hub then has with it.

        Nothing of it is to be seen in the repository before the commit, so an upload that breaks off leaves what was
        there.

        Args:
            folder: the model.
            message: of the commit.

        Raises:
            SearchError: it did not work; the local folder is as it was.
        """
        with self._explained(folder), _quiet_progress():
            url = str(self._api.create_repo(self.repository, private=self.private or None, exist_ok=True))
            self._check_private(folder)
            if self.revision != "main":
                self._api.create_branch(self.repository, branch=self.revision, exist_ok=True)
            files = _files(folder)
            commit = self._api.create_commit(
                self.repository, self._operations(files), commit_message=message, revision=self.revision
            )
            return Pushed(url, str(commit.oid), self.revision, self._compare(folder, files, str(commit.oid)))

    def _operations(self, files: Mapping[str, Path]) -> list[Any]:
        """All files of the folder, in one commit: `upload_folder` may take several, and a repository would hold half a
        model between them. What an earlier export left is removed in the same commit."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        there = self._api.list_repo_files(self.repository, revision=self.revision)
        stale = [name for name in there if name not in files and any(fnmatch(name, each) for each in _STALE)]
        return [
            *(CommitOperationDelete(name) for name in stale),
            *(CommitOperationAdd(name, file) for name, file in files.items()),
        ]

    def _check_private(self, folder: Path) -> None:
        if self.private and self._api.repo_info(self.repository).private is False:
            raise SearchError(
                f"--push {self.repository} --private: that repository is there already, and is public. Nothing was "
                f"uploaded; make it private on the Hub, choose another name, or leave --private out. {_stays(folder)}"
            )

    def _compare(self, folder: Path, files: Mapping[str, Path], commit: str) -> int:
        """Sizes of all files, and the SHA-256 of those that the Hub keeps one of."""
        from merging.verification import sha256_of

        there = {each.path: each for each in self._api.get_paths_info(self.repository, list(files), revision=commit)}
        wrong = []
        for name, file in files.items():
            found = there.get(name)
            lfs = getattr(found, "lfs", None)
            same = found is not None and found.size == file.stat().st_size
            if not same or (lfs is not None and lfs.sha256 != sha256_of(file)):
                wrong.append(name)
        if wrong:
            raise SearchError(
                f"--push {self.repository}: the commit {commit[:12]} was made, but {len(wrong)} files are not there as "
                f"they are here, first {wrong[0]}; look at the repository, and push again. {_stays(folder)}"
            )
        return len(files)

    @contextmanager
    def _explained(self, folder: Path) -> Iterator[None]:
        """Whatever goes wrong on the way to the Hub as one paragraph, without tokens or signed addresses."""
        try:
            yield
        except SearchError:
            raise
        except Exception as error:
            raise SearchError(self._said(*self._reason(error), folder)) from None

    def _reason(self, error: Exception) -> tuple[str, str]:
        """(what went wrong, what somebody said of it): of whatever is at the bottom of an error.

        Raises:
            Exception: a defect, and no failure of the upload.
        """
        from huggingface_hub.errors import HfHubHTTPError

        for each in _causes(error):
            if isinstance(each, HfHubHTTPError):
                status = getattr(each.response, "status_code", None)
                said = _without_addresses(getattr(each, "server_message", None) or "")
                return _of_status(status, self.repository), said
            if _is_of_connection(each):
                place = urlsplit(self._api.endpoint).netloc
                return f"{place} could not be reached, or the connection broke off ({type(each).__name__})", ""
        if not isinstance(error, OSError | ValueError | RuntimeError):
            raise error
        return f"the upload failed ({type(error).__name__})", _without_addresses(str(error))

    def _said(self, why: str, said: str, folder: Path) -> str:
        from huggingface_hub import get_token

        words = f" ({said})" if said else ""
        token = get_token()
        text = f"--push {self.repository}: {why}{words}. {_stays(folder)}"
        return text.replace(token, "…") if token else text


def _files(folder: Path) -> dict[str, Path]:
    """Path in the repository -> file; what version control and huggingface_hub keep beside is left out."""
    found = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return {name: file for name, file in found.items() if not name.startswith((".git/", ".cache/"))}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _is_of_connection(error: BaseException) -> bool:
    """Whether it is about the network: huggingface_hub has changed its HTTP library before, and does not say which."""
    names = {each.__name__ for each in type(error).__mro__}
    return isinstance(error, ConnectionError | TimeoutError) or "TransportError" in names


def _stays(folder: Path) -> str:
    return f"The export stays in {folder}; the same command pushes it again without merging anew."


def _of_status(status: int | None, repository: str) -> str:
    owner = repository.partition("/")[0]
    return {
        401: "the Hub does not accept the token (401); log in again with `hf auth login`, or correct HF_TOKEN",
        403: f"the token may not write to {owner} (403); expected one with write access to it",
        404: f"the Hub finds no such repository, branch or owner (404); is {owner} yours, and may the token write?",
        409: "somebody else is changing the repository, or it is in conflict with what is there (409); try again",
        412: "the repository was changed meanwhile (412); try again",
        413: "the Hub finds the upload too large (413)",
        429: "the Hub asks to wait (429: too many requests); try again later",
    }.get(status or 0, f"the Hub answered with an error ({status})")


def _without_addresses(words: str) -> str:
    """What somebody else says, on one line and not for long; nothing where it names an address, which may be signed."""
    line = " ".join(words.split())
    return "" if "://" in line else line[:300]


@contextmanager
def _quiet_progress() -> Iterator[None]:
    """Progress bars are for people who watch: without a terminal there are none."""
    import sys

    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
