"""Documents as requests: what stands before a text, and the windows in which a model reads it."""

from __future__ import annotations

from collections.abc import Sequence

from evaluators.contract import Engine, EvaluatorError, Request

__all__ = ["first_token", "windows"]


def windows(tokens: Sequence[int], first: int, limit: int) -> list[Request]:
    """A document as requests that score every token once, none of more than ``limit`` tokens.

    Args:
        tokens: the document, not empty.
        first: what stands before its first token.
        limit: at least 2.
    """
    document = [first, *tokens]
    requests = []
    scored = 1
    while scored < len(document):
        end = min(scored + limit - 1, len(document))
        start = max(end - limit, 0)
        requests.append(Request(document[start:scored], document[scored:end]))
        scored = end
    return requests


def first_token(engine: Engine) -> int:
    """What stands before a text: what the tokenizer puts there, or else the token that ends texts.

    Raises:
        EvaluatorError: the tokenizer has neither.
    """
    before = engine.encode("", special=True)
    if before:
        return before[0]
    if engine.end_of_text is None:
        raise EvaluatorError(
            "the tokenizer has neither a beginning-of-text nor an end-of-text token, so that the first token of a "
            "document has nothing to be predicted from; set one of them in its tokenizer_config.json"
        )
    return engine.end_of_text
