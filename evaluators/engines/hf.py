"""The default engine: a live Hugging Face causal language model in this process, any family."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evaluators.contract import EvaluatorError, Generation, LogLikelihood, Request, Sampling
from evaluators.engines.batching import batches
from evaluators.engines.cache import Beginning
from evaluators.engines.causal import CausalModule
from evaluators.engines.decoding import Decoder
from evaluators.engines.forward import Batching, default_batch_tokens, settings_hash
from evaluators.engines.logits import ScoredLogits
from evaluators.engines.memory import BatchLimit
from evaluators.engines.prefix import Cluster, clusters
from evaluators.engines.sampling import check_sampling
from evaluators.engines.scoring import Scorer
from evaluators.engines.stopping import StopStrings
from evaluators.engines.tokenizer import chat_template_hash, tokenizer_hash

# Raised whenever this package's own way to a score changes what the score is.
_VERSION = 2

# A decoding step reads one token a row and costs mostly its calls: measured on the same model, 120 answers in one batch
# take three quarters of the time that two batches take. What limits it is the memory of keys and values.
_GENERATION = 8

# Bytes of keys and values that rows with a common beginning may hold together, that beginning included.
_HELD = 2**31


class HFEngine(Batching, CausalModule):
    """Asks a live model. Holds nothing that depends on its weights, which may change in place between calls.

    Args:
        model: any Hugging Face causal language model, already on its device and in its dtype. It is put into
            evaluation mode for the length of each call and left as it was.
        tokenizer: its tokenizer. A missing padding token is no problem, and nothing is added.
        batch_tokens: at most so many tokens a forward pass, padding included; None chooses by device. Where memory does
            not suffice for them, they become fewer (see :mod:`evaluators.engines.memory`).
        device: where inputs go; None for the device of the input embeddings.
        folder: where the model came from, for evaluators that need its processor.

    Raises:
        EvaluatorError: not a causal language model, or a batch size below one.

    On a CPU in float32, how requests are batched, ordered and padded changes a log-likelihood by rounding alone (about
    1e-6 relative); in lower precision, or on a GPU, near ties can fall either way between two batchings.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        batch_tokens: int | None = None,
        device: torch.device | str | None = None,
        folder: Path | None = None,
    ) -> None:
        config = getattr(model, "config", None)
        if config is None or getattr(config, "is_encoder_decoder", False):
            raise EvaluatorError(
                "the hf engine asks causal language models (AutoModelForCausalLM), and "
                f"{type(model).__name__} is none; load the decoder-only model of this family"
            )
        super().__init__(model, tokenizer, device=device, folder=folder)
        self.limit = BatchLimit(default_batch_tokens(self._device) if batch_tokens is None else batch_tokens)
        self._logits = ScoredLogits(model, self._device)
        self._scorer = Scorer(
            model,
            self._logits,
            self._device,
            limit=self.limit,
            vocabulary=self._vocabulary,
            check=self._check,
        )
        self._decoder = Decoder(model, self._logits, self._device, frozenset(self._ends))
        self._pieces: dict[int, str] = {}  # what single tokens decode to
        self._fingerprint = "/".join(
            [
                "hf",
                self._dtype,
                self._device.type,
                self._attention,
                f"tokens={self.limit.tokens}",
                f"settings={settings_hash(folder)}",
                f"tokenizer={tokenizer_hash(tokenizer)}{chat_template_hash(tokenizer)}",
                f"ends={','.join(map(str, self._ends))}",
                f"v{_VERSION}",
            ]
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        sampling: Sampling | None = None,
    ) -> list[Generation]:
        """See :class:`evaluators.contract.Engine`. A batch has ``batch_tokens`` × 8, prompts and new tokens.

        Raises:
            EvaluatorError: a prompt without tokens, longer than the model, or with ids that it has no embedding for;
                ``max_new_tokens`` below one; an empty stop string; sampling that nothing can be drawn with.
        """
        if max_new_tokens < 1:
            raise EvaluatorError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        if "" in stop:
            raise EvaluatorError("a stop string is empty, and every text holds it; leave it out")
        if sampling is not None:
            check_sampling(sampling, len(prompts))
        for index, prompt in enumerate(prompts):
            self._check(index, prompt, ())
        stopped = StopStrings(stop, self.decode, self._pieces) if stop else None
        results: dict[int, Generation] = {}
        with self.forward():
            for batch, beginning in self._generation_batches(prompts, max_new_tokens):
                self.limit.passing(len(batch), self._taken(prompts, batch, beginning, max_new_tokens))
                generations = self._decoder(
                    [prompts[index] for index in batch],
                    [self._budget(prompts[index], max_new_tokens) for index in batch],
                    stopped,
                    None if sampling is None else sampling._replace(seeds=[sampling.seeds[index] for index in batch]),
                    beginning,
                )
                results.update(zip(batch, generations, strict=True))
        return [results[index] for index in range(len(prompts))]

    def _generation_batches(
        self, prompts: Sequence[Sequence[int]], new: int
    ) -> Iterator[tuple[list[int], Beginning | None]]:
        """Indices of the prompts of each batch, and the beginning that they read from keys and values made once."""
        longest = max((len(prompt) for prompt in prompts), default=0) + new
        apart = self._decoder.reads_apart(longest)
        for part in clusters(prompts) if apart else [Cluster(0, list(range(len(prompts))))]:
            beginning = self._decoder.begin(prompts[part.members[0]][: part.shared]) if part.shared else None
            rows = None
            if beginning is not None:
                rows = max(1, self.limit.part(_HELD) // (beginning.bytes_per_token * longest))
            lengths = [len(prompts[index]) - part.shared + new for index in part.members]
            for batch in batches(lengths, tokens=_GENERATION * self.limit.tokens, rows=rows):
                yield [part.members[place] for place in batch], beginning

    def _taken(
        self, prompts: Sequence[Sequence[int]], batch: Sequence[int], beginning: Beginning | None, new: int
    ) -> float:
        """Which share of a batch's first limit, in tokens or in bytes of keys and values, a batch takes."""
        longest = max(len(prompts[index]) for index in batch) + new
        own = longest - (0 if beginning is None else beginning.length)
        tokens = len(batch) * own / (_GENERATION * self.limit.whole)
        held = 0.0 if beginning is None else len(batch) * longest * beginning.bytes_per_token / _HELD
        return max(tokens, held)

    def release(self) -> None:
        """Give back all memory that is not needed to go on, inputs that were kept ready among it."""
        self._scorer.forget()
        super().release()

    def recover(self) -> None:
        """See :meth:`evaluators.engines.forward.HFModule.recover`."""
        super().recover()
        self._scorer.forget()

    def loglikelihood(self, requests: Sequence[Request]) -> list[LogLikelihood]:
        """See :class:`evaluators.contract.Engine`. Log-softmax in float32 or wider, sums in float64.

        What requests have in common is read once (see :mod:`evaluators.engines.scoring`).

        A log-likelihood that is not finite is nan, and an empty continuation has 0.0.

        Raises:
            EvaluatorError: a context without tokens, or a request that is longer than the model or has ids that it
                has no embedding for. The last token needs no position.
        """
        with self.forward():
            return self._scorer(requests)
