"""The default engine: a live Hugging Face causal language model in this process, any family."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evaluators.contract import EvaluatorError, Generation, LogLikelihood, Request
from evaluators.engines.batching import batches
from evaluators.engines.decoding import GreedyDecoder
from evaluators.engines.logits import ScoredLogits
from evaluators.engines.tokenizer import end_tokens, has_one_spelling, tokenizer_hash

# Raised whenever this package's own way to a score changes what the score is.
_VERSION = 1

# Measured on a 0.5 M parameter Llama: activations that stay in a CPU's cache beat larger batches by up to 30 %.
_BATCH_TOKENS = {"cpu": 1024}
_BATCH_TOKENS_ELSEWHERE = 16384

# A decoding step reads one token a row and costs mostly its calls: measured, larger batches pay.
_GENERATION = 4

# Logits that may exist at once; at four bytes each half a gigabyte.
_LOGITS = 2**27


class HFEngine:
    """Asks a live model. Holds nothing that depends on its weights, which may change in place between calls.

    Args:
        model: any Hugging Face causal language model, already on its device and in its dtype. It is put into
            evaluation mode for the length of each call and left as it was.
        tokenizer: its tokenizer. A missing padding token is no problem, and nothing is added.
        batch_tokens: at most so many tokens a forward pass, padding included; None chooses by device.
        device: where inputs go; None for the device of the input embeddings.

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
    ) -> None:
        config = getattr(model, "config", None)
        if config is None or getattr(config, "is_encoder_decoder", False):
            raise EvaluatorError(
                "the hf engine asks causal language models (AutoModelForCausalLM), and "
                f"{type(model).__name__} is none; load the decoder-only model of this family"
            )
        if batch_tokens is not None and batch_tokens < 1:
            raise EvaluatorError(f"batch_tokens must be at least 1, got {batch_tokens}")
        self._model = model
        self._tokenizer = tokenizer
        first = next(model.parameters())
        self._device = torch.device(device) if device is not None else _input_device(model, first.device)
        self._dtype = str(first.dtype).removeprefix("torch.")
        self._batch_tokens = batch_tokens or _BATCH_TOKENS.get(self._device.type, _BATCH_TOKENS_ELSEWHERE)
        # Any id will do, since nothing looks at it; some padding tokens are beyond the embeddings.
        filler = 0
        text_config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
        self._vocabulary = _embedded_ids(model) or int(getattr(text_config, "vocab_size", len(tokenizer)))
        limit = getattr(text_config, "max_position_embeddings", None)
        self._max_length = int(limit) if isinstance(limit, int) and limit > 0 else None
        self._ends = end_tokens(model, tokenizer)
        self._one_spelling = len(self._ends) <= 1 and has_one_spelling(tokenizer)
        self._logits = ScoredLogits(model, self._device, filler)
        self._decoder = GreedyDecoder(model, self._logits, self._device, filler, frozenset(self._ends))
        attention = getattr(config, "_attn_implementation", None) or "default"
        self._fingerprint = "/".join(
            [
                "hf",
                self._dtype,
                self._device.type,
                str(attention),
                f"tokens={self._batch_tokens}",
                f"tokenizer={tokenizer_hash(tokenizer)}",
                f"ends={','.join(map(str, self._ends))}",
                f"v{_VERSION}",
            ]
        )

    @property
    def fingerprint(self) -> str:
        """``hf/<dtype>/<device type>/<attention>/tokens=<batch>/tokenizer=<hash>/ends=<ids>/v<version>``."""
        return self._fingerprint

    @property
    def model(self) -> nn.Module:
        """The live module."""
        return self._model

    @property
    def end_of_text(self) -> int | None:
        """The tokenizer's end-of-text id, else the first that the model's generation settings name, else None."""
        return self._ends[0] if self._ends else None

    @property
    def unknown(self) -> int | None:
        """The tokenizer's unknown id, unless it does double duty as the end of a text (GPT-2)."""
        unknown = self._tokenizer.unk_token_id
        return None if unknown is None or unknown in self._ends else int(unknown)

    @property
    def max_length(self) -> int | None:
        """The configuration's ``max_position_embeddings``, None where it has none."""
        return self._max_length

    @property
    def one_spelling(self) -> bool:
        """True where it is proved: a word-level vocabulary split at white space, and one end-of-text id."""
        return self._one_spelling

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids of ``text``, with the tokenizer's special tokens before it when asked for.

        An end-of-text token that the tokenizer appends is left out: a prompt that has ended has no answer.
        """
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special)
        if special and ids and ids[-1] in self._ends:
            bare: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
            if bare != ids[len(ids) - len(bare) :]:
                ids = ids[:-1]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out, spaces as the tokenizer has them."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, stop: Sequence[str] = ()
    ) -> list[Generation]:
        """See :class:`evaluators.contract.Engine`. A batch has ``batch_tokens`` × 4, prompts and new tokens.

        Raises:
            EvaluatorError: a prompt without tokens, longer than the model, or with ids that it has no embedding for; or
                ``max_new_tokens`` below one.
        """
        if max_new_tokens < 1:
            raise EvaluatorError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        for index, prompt in enumerate(prompts):
            self._check(index, prompt, ())
        limit = self._max_length
        budgets = [max_new_tokens if limit is None else min(max_new_tokens, limit - len(p)) for p in prompts]
        stopped = self._stopper(stop) if stop else None
        results: dict[int, Generation] = {}
        with self._asking():
            lengths = [len(prompt) + max_new_tokens for prompt in prompts]
            for batch in batches(lengths, tokens=_GENERATION * self._batch_tokens):
                generations = self._decoder(
                    [prompts[index] for index in batch], [budgets[index] for index in batch], stopped
                )
                results.update(zip(batch, generations, strict=True))
        return [results[index] for index in range(len(prompts))]

    def loglikelihood(self, requests: Sequence[Request]) -> list[LogLikelihood]:
        """See :class:`evaluators.contract.Engine`. Log-softmax in float32 or wider, sums in float64.

        A log-likelihood that is not finite is nan, and an empty continuation has 0.0.

        Raises:
            EvaluatorError: a context without tokens, or a request that is longer than the model or has ids that it
                has no embedding for.
        """
        contexts = [len(request.context) for request in requests]
        scored = [len(request.continuation) for request in requests]
        for index, request in enumerate(requests):
            self._check(index, request.context, request.continuation)
        results = [LogLikelihood(0.0, True)] * len(requests)
        asked = [index for index, count in enumerate(scored) if count]
        groups = batches(
            [contexts[index] + scored[index] - 1 for index in asked],
            tokens=self._batch_tokens,
            scored=[scored[index] for index in asked],
            scored_limit=max(1, _LOGITS // self._vocabulary),
        )
        with self._asking():
            for group in groups:
                batch = [asked[place] for place in group]
                for index, result in zip(batch, self._score([requests[index] for index in batch]), strict=True):
                    results[index] = result
        return results

    def weights_changed(self) -> None:
        """Nothing here depends on the weights."""

    def _check(self, index: int, context: Sequence[int], continuation: Sequence[int]) -> None:
        if not context:
            raise EvaluatorError(
                f"request {index} has a prompt without tokens, and a model needs at least one to predict the next; "
                "use a prompt that is not empty, or a tokenizer that begins every text with a special token"
            )
        length = len(context) + len(continuation)
        if self._max_length is not None and length > self._max_length:
            raise EvaluatorError(
                f"request {index} has {length} tokens, and the model has positions for {self._max_length}; shorten it"
            )
        largest = max(max(context), max(continuation, default=0))
        if largest >= self._vocabulary:
            raise EvaluatorError(
                f"request {index} has the token id {largest}, and the model has embeddings for {self._vocabulary} ids; "
                "use the tokenizer that belongs to this model"
            )

    def _score(self, requests: Sequence[Request]) -> Iterator[LogLikelihood]:
        # The last token is predicted, never read.
        sequences = [[*request.context, *request.continuation[:-1]] for request in requests]
        rows: list[int] = []
        columns: list[int] = []
        targets: list[int] = []
        starts: list[int] = []
        for row, (context, continuation) in enumerate(requests):
            starts.append(len(rows))
            rows += [row] * len(continuation)
            columns += range(len(context) - 1, len(context) - 1 + len(continuation))
            targets += continuation
        logits = self._logits(sequences, rows, columns)
        chosen, hits = _target_scores(logits, torch.tensor(targets, device=logits.device))
        totals = np.add.reduceat(chosen, starts)
        greedy = np.logical_and.reduceat(hits, starts)
        for total, is_greedy in zip(totals.tolist(), greedy.tolist(), strict=True):
            finite = bool(np.isfinite(total))
            yield LogLikelihood(total if finite else float("nan"), is_greedy and finite)

    def _stopper(self, stop: Sequence[str]) -> Callable[[list[int]], bool]:
        def stopped(tokens: list[int]) -> bool:
            text = self.decode(tokens)
            return any(string in text for string in stop)

        return stopped

    @contextmanager
    def _asking(self) -> Iterator[None]:
        was_training = self._model.training
        if was_training:
            self._model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            if was_training:
                self._model.train()


def _target_scores(logits: Tensor, targets: Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Logits [n, vocabulary] -> log-probability of each target, float64 [n]; whether it is the arg max, bool [n]."""
    logps: list[Tensor] = []
    hits: list[Tensor] = []
    rows = max(1, _LOGITS // 16 // logits.shape[1])
    for part, wanted in zip(torch.split(logits, rows), torch.split(targets, rows), strict=True):
        wide = part if part.dtype == torch.float64 else part.float()
        logps.append(torch.log_softmax(wide, dim=-1).gather(-1, wanted[:, None])[:, 0].double())
        hits.append(part.argmax(dim=-1) == wanted)
    return torch.cat(logps).cpu().numpy(), torch.cat(hits).cpu().numpy()


def _input_embedding(model: nn.Module) -> Tensor | None:
    find: Any = getattr(model, "get_input_embeddings", lambda: None)
    weight = getattr(find(), "weight", None)
    return weight if isinstance(weight, Tensor) else None


def _input_device(model: nn.Module, default: torch.device) -> torch.device:
    weight = _input_embedding(model)
    return default if weight is None else weight.device


def _embedded_ids(model: nn.Module) -> int | None:
    weight = _input_embedding(model)
    return None if weight is None else len(weight)
