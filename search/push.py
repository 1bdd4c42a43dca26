"""An exported folder to the Hugging Face Hub, by huggingface_hub. The token comes from the environment or the login of
``hf auth login``, and is shown nowhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
            commit = self._api.upload_folder(
                repo_id=self.repository,
                folder_path=folder,
                revision=self.revision,
                commit_message=message,
                delete_patterns=_STALE,
            )
            return Pushed(url, str(commit.oid), self.revision, self._compare(folder, str(commit.oid)))

    def _check_private(self, folder: Path) -> None:
        if self.private and self._api.repo_info(self.repository).private is False:
            raise SearchError(
                f"--push {self.repository} --private: that repository is there already, and is public. Nothing was "
                f"uploaded; make it private on the Hub, choose another name, or leave --private out. {_stays(folder)}"
            )

    def _compare(self, folder: Path, commit: str) -> int:
        """Sizes of all files, and the SHA-256 of those that the Hub keeps one of."""
        from merging.verification import sha256_of

        files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
        files = {name: file for name, file in files.items() if not name.startswith((".git", ".cache/"))}
        there = {each.path: each for each in self._api.get_paths_info(self.repository, list(files), revision=commit)}
        wrong = []
        for name, file in files.items():
            found = there.get(name)
            lfs = getattr(found, "lfs", None)
            same = found is not None and found.size == file.stat().st_size  # type: ignore[union-attr]
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
        import httpx
        from huggingface_hub.errors import HfHubHTTPError

        try:
            yield
        except SearchError:
            raise
        except HfHubHTTPError as error:
            status = getattr(error.response, "status_code", None)
            raise SearchError(self._said(_reason(status, self.repository), _server_says(error), folder)) from None
        except (httpx.TransportError, ConnectionError, TimeoutError) as error:
            place = urlsplit(self._api.endpoint).netloc
            why = f"{place} could not be reached, or the connection broke off ({type(error).__name__})"
            raise SearchError(self._said(why, "", folder)) from None
        except (OSError, ValueError, RuntimeError) as error:
            # storage back-ends raise their own; what they say may name signed addresses
            raise SearchError(self._said(f"the upload failed ({type(error).__name__})", "", folder)) from None

    def _said(self, why: str, server: str, folder: Path) -> str:
        from huggingface_hub import get_token

        words = f" The server says: {server}" if server else ""
        token = get_token()
        text = f"--push {self.repository}: {why}.{words} {_stays(folder)}"
        return text.replace(token, "…") if token else text


def _stays(folder: Path) -> str:
    return f"The export stays in {folder}; the same command pushes it again without merging anew."


def _reason(status: int | None, repository: str) -> str:
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


def _server_says(error: Any) -> str:
    """The server's own words, on one line; never an address."""
    said = " ".join(str(getattr(error, "server_message", None) or "").split())
    return "" if "://" in said else said[:300]


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
