"""What goes wrong on the way to the Hugging Face Hub, as one paragraph, without tokens or signed addresses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from merging.recipe import MergingError


class UnreachableError(MergingError):
    """The Hub could not be asked: no network, or a connection that broke off."""


@contextmanager
def explained(text: str, hint: str = "") -> Iterator[None]:
    """Whatever goes wrong on the way to the Hub becomes a :class:`MergingError`; defects stay what they are.

    Args:
        text: what was asked for, as the user named it.
        hint: what to add.

    Raises:
        UnreachableError: the Hub could not be asked.
        MergingError: it has answered with an error.
    """
    try:
        yield
    except MergingError:
        raise
    except Exception as error:
        found = _reason(error)
        if found is None:
            raise
        kind, why = found
        raise kind(f"{text}: {why}{hint}") from None


def _reason(error: Exception) -> tuple[type[MergingError], str] | None:
    """What went wrong; None for a defect, or what is of this machine."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    each: BaseException | None = error
    while each is not None:
        if isinstance(each, HfHubHTTPError):
            return MergingError, _of_status(getattr(getattr(each, "response", None), "status_code", None))
        names: set[str] = {kind.__name__ for kind in type(each).__mro__}
        if isinstance(each, ConnectionError | TimeoutError) or "TransportError" in names:
            if isinstance(each, OfflineModeIsEnabled):
                return UnreachableError, "the Hub cannot be reached from here"
            said = f"the Hub could not be reached, or the connection broke off ({type(each).__name__})"
            return UnreachableError, said
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
