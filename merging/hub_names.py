"""What a repository on the Hugging Face Hub is called where a config or a command names one."""

from __future__ import annotations

import re

from merging.bounded import printable
from merging.recipe import MergingError

_FORM = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w./-]{1,200}))?", re.ASCII
)


def repository_of(text: object, scheme: str, example: str) -> tuple[str, str | None]:
    """(OWNER/NAME, the revision or None) of ``SCHEME://OWNER/NAME[@REVISION]``.

    Args:
        text: as it was named.
        scheme: with its slashes.
        example: OWNER/NAME, to say what is expected.

    Raises:
        MergingError: malformed, or a name that the Hub gives to no repository.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    given = isinstance(text, str) and text.startswith(scheme)
    match = _FORM.fullmatch(str(text).removeprefix(scheme)) if given else None
    found = f"found {printable(str(text))!r}"
    if match is None or ".." in str(text):
        raise MergingError(
            f"expected {scheme}OWNER/NAME or {scheme}OWNER/NAME@REVISION, such as {scheme}{example}, {found}"
        )
    try:
        validate_repo_id(match["id"])  # or whoever asks the Hub's library would be told so by a ValueError of its own
    except HFValidationError as error:
        raise MergingError(
            f"expected {scheme}OWNER/NAME with names as the Hub gives them, such as {scheme}{example}, {found}: {error}"
        ) from error
    return match["id"], match["revision"]
