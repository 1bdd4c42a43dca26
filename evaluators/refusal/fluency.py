"""Whether an answer is language, by what a reference model makes of it: grammatical nonsense has the right form only.

The measure is the mean negative log-likelihood of a text's tokens, each after those before it, in nats. The limit is
calibrated on the evaluator's own prompts against the same prompts with their words shuffled: it is where the two are
told apart best (Youden's index, 1950: share of nonsense found minus share of prose lost).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict, Field

from evaluators.contract import EvaluatorError, Request
from evaluators.other_models import content_hash, load_tokenizer, local_model

if TYPE_CHECKING:
    from evaluators.contract import Engine
    from evaluators.engines.hf import HFEngine

_LEAST_INDEX: Final = 0.6
_FEWEST_TEXTS: Final = 20


class FluencyOptions(BaseModel):
    """A reference model that tells language from nonsense."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: Path = Field(description="a folder with a causal language model and its tokenizer: the base, for instance")
    threshold: float | None = Field(
        None, gt=0.0, description="nats a token above which an answer is no language; calibrated where it is left out"
    )
    shortest: int = Field(6, ge=2, description="answers of fewer tokens are not tested: too little to tell by")


class Fluency:
    """Tests texts with a reference model, whose weights never change.

    Args:
        options: which.

    Raises:
        EvaluatorError: there is no such folder.
    """

    def __init__(self, options: FluencyOptions) -> None:
        self._options = options
        self._hash = content_hash(options.model, "fluency")
        self._engine: HFEngine | None = None
        self._asked: Engine | None = None
        self.threshold = options.threshold or math.nan

    def identity(self) -> object:
        """The reference's content and the limit, as JSON."""
        return ["fluency", self._hash, self._options.threshold, self._options.shortest]

    def prepare(self, prompts: Sequence[str], asked: Engine) -> None:
        """Load the reference and calibrate the limit on these texts.

        Args:
            prompts: texts of people.
            asked: the engine of the model whose answers are tested: where its batches get smaller for want of memory,
                so do those of the reference.

        Raises:
            EvaluatorError: it cannot be loaded, or cannot tell these texts from nonsense.
        """
        from evaluators.engines.hf import HFEngine

        self._asked = asked
        if self._engine is None:
            model = local_model("AutoModelForCausalLM", self._options.model, "fluency")
            self._engine = HFEngine(model, load_tokenizer(self._options.model, "fluency"))
        if self._options.threshold is None:
            self.threshold = self._calibrated(prompts)

    def surprise(self, texts: Sequence[str]) -> list[float]:
        """Nats a token of each text; 0 for one that is too short to be tested."""
        from evaluators.engines.memory import fitting

        engine = self._engine
        if engine is None:
            raise EvaluatorError("fluency has no reference model yet; call prepare before score")
        engine.batch_tokens = fitting(self._asked, engine.limit.whole)
        limit = engine.max_length or 2**31
        sequences = [engine.encode(text.strip(), special=True)[:limit] for text in texts]
        tested = [index for index, ids in enumerate(sequences) if len(ids) >= self._options.shortest]
        requests = [Request(sequences[index][:1], sequences[index][1:]) for index in tested]
        found = [0.0] * len(texts)
        for index, request, answer in zip(tested, requests, engine.loglikelihood(requests), strict=True):
            found[index] = -answer.total / len(request.continuation)
        return found

    def fails(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text is beyond the limit."""
        return [value > self.threshold for value in self.surprise(texts)]

    def _calibrated(self, prompts: Sequence[str]) -> float:
        texts = sorted(set(prompts))
        if len(texts) < _FEWEST_TEXTS:
            raise EvaluatorError(
                f"fluency: the limit is calibrated on the prompts, and {len(texts)} are too few; use at least "
                f"{_FEWEST_TEXTS}, or give a threshold"
            )
        prose = sorted(value for value in self.surprise(texts) if value)
        noise = sorted(value for value in self.surprise([_shuffled(text) for text in texts]) if value)
        if not prose or not noise:
            raise EvaluatorError("fluency: the prompts are too short to calibrate the limit on; give a threshold")
        index, threshold = max(
            (sum(value > cut for value in noise) / len(noise) - sum(value > cut for value in prose) / len(prose), cut)
            for cut in _middles([*prose, *noise])
        )
        if index < _LEAST_INDEX:
            raise EvaluatorError(
                f"fluency: {self._options.model} hardly tells the prompts from the same prompts shuffled (Youden's "
                f"index {index:.2f}, at least {_LEAST_INDEX} is wanted); name a model of this language, or a threshold"
            )
        return threshold


def _middles(values: Sequence[float]) -> list[float]:
    ordered = sorted(set(values))
    return [(low + high) / 2.0 for low, high in pairwise(ordered)] or ordered


def _shuffled(text: str) -> str:
    """The words of a text, or its characters where it has no spaces, in another order, the same every time."""
    units = text.split()
    joint = " "
    if len(units) < 3:
        units, joint = list(text), ""
    random.Random(text).shuffle(units)
    return joint.join(units)
