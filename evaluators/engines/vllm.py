"""vLLM as the engine: candidates' weights go into an engine that keeps running.

The merge is written into a live Hugging Face model as ever; from there its tensors go, under their names on disk,
through vLLM's own ``reload_weights`` (so vLLM maps them onto its fused layouts), and the prefix cache is dropped. vLLM
runs in this process: tensors are handed over by reference, nothing is serialised.

Two traps are closed here (seen with vLLM 0.32 on a CPU). Its paged attention reads whole blocks of the key-value cache
and multiplies what lies behind the end of a sequence by zero; a NaN that a broken candidate left there makes every
later answer NaN, in the same call and for all candidates to come. So after non-finite logits the cache is zeroed, and
what was not finite is asked again. And an output head that is tied to the input embeddings keeps a packed copy of the
old ones unless it is handed over by its own name. Since there may be more such copies elsewhere, the first candidates
are compared with a plain forward pass of the live model.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evaluators.contract import EvaluatorError, Generation, LogLikelihood, Request, Sampling
from evaluators.engines.causal import CausalModule
from evaluators.engines.forward import settings_hash
from evaluators.engines.sampling import check_sampling
from evaluators.engines.tokenizer import chat_template_hash, tokenizer_hash

# Raised whenever this package's own way to a score changes what the score is.
_VERSION = 1

# How many sets of weights are compared with the live model, and how far a token's log-probability may then be off.
_CHECKED = 3
_TOLERANCE = {"float32": 0.01}
_TOLERANCE_ELSEWHERE = 0.3

# Read by vLLM when it is imported or started. Not overwritten where the user has set them.
_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: tensors by reference
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # threads are the config's
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # one position more, for the token that a scoring request must generate
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class VLLMEngine(CausalModule):
    """Asks a candidate through vLLM.

    Args:
        model: the live Hugging Face model that candidates are written into.
        tokenizer: its tokenizer.
        folder: of the base: vLLM reads the architecture there.
        tensors: the live tensors under their names on disk; None: those of the model's own state, for architectures
            whose live layout is the one on disk.
        options: further arguments of ``vllm.LLM``.

    Raises:
        EvaluatorError: vLLM is not installed, or cannot run this model.
    """

    reads_last_token = True
    interruptible = False
    """Its scheduler and caches, of which nothing is known here, may have been left half-way."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        folder: Path,
        *,
        tensors: Mapping[str, Tensor] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, tokenizer, folder=folder)
        self._tensors = tensors
        self._llm, version = _start(folder, self._dtype, self._max_length, options or {})
        self._taken_over = 0
        self._stale = True  # vLLM holds what lies in the folder, the live model perhaps something else
        self._fingerprint = "/".join(
            [
                f"vllm-{version}",
                self._dtype,
                str(self._llm.llm_engine.vllm_config.device_config.device_type),
                f"options={_options_hash(options or {})}",
                f"settings={settings_hash(folder)}",
                f"tokenizer={tokenizer_hash(tokenizer)}{chat_template_hash(tokenizer)}",
                f"ends={','.join(map(str, self._ends))}",
                f"v{_VERSION}",
            ]
        )

    def weights_changed(self) -> None:
        """The live model holds other weights: vLLM takes them over before it is asked the next time."""
        self._stale = True

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        sampling: Sampling | None = None,
    ) -> list[Generation]:
        """See :class:`evaluators.contract.Engine`. Drawn answers are vLLM's for these seeds, not the hf engine's.

        Raises:
            EvaluatorError: a prompt without tokens, longer than the model, or with ids that it has no embedding for; or
                ``max_new_tokens`` below one.
        """
        from vllm import SamplingParams

        if max_new_tokens < 1:
            raise EvaluatorError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        if "" in stop:
            raise EvaluatorError("a stop string is empty, and every text holds it; leave it out")
        if sampling is not None:
            check_sampling(sampling, len(prompts))
        for index, prompt in enumerate(prompts):
            self._check(index, prompt, ())
        budgets = [self._budget(prompt, max_new_tokens) for prompt in prompts]
        settings = [
            SamplingParams(
                max_tokens=budget,
                logprobs=0,
                stop=list(stop),
                stop_token_ids=list(self._ends),
                ignore_eos=not self._ends,
                detokenize=bool(stop),
                **_drawn(sampling, index),
            )
            for index, budget in enumerate(budgets)
            if budget
        ]
        answers = iter(self._ask([list(p) for p, budget in zip(prompts, budgets, strict=True) if budget], settings))
        return [self._generation(next(answers)) if budget else Generation([], "length") for budget in budgets]

    def loglikelihood(self, requests: Sequence[Request]) -> list[LogLikelihood]:
        """See :class:`evaluators.contract.Engine`.

        Raises:
            EvaluatorError: a context without tokens, or a request that is longer than the model or has ids that it
                has no embedding for.
        """
        for index, request in enumerate(requests):
            self._check(index, request.context, request.continuation)
        places = [index for index, request in enumerate(requests) if request.continuation]
        asked = [[*requests[index].context, *requests[index].continuation] for index in places]
        results = [LogLikelihood(0.0, True)] * len(requests)
        for index, output in zip(places, self._ask(asked, [_scoring()] * len(asked)), strict=True):
            results[index] = _log_likelihood(output, len(requests[index].context))
        return results

    def _ask(self, prompts: Sequence[list[int]], settings: Sequence[Any]) -> list[Any]:
        """vLLM's outputs, in order. What is not finite is asked again on a clean cache, until that changes nothing."""
        self._take_over_weights()
        outputs = self._outputs(prompts, settings)
        bad = [index for index, output in enumerate(outputs) if not _is_finite(output)]
        while bad:
            self._llm.collective_rpc(_zero_key_value_cache)
            self._llm.reset_prefix_cache()
            again = self._outputs([prompts[index] for index in bad], [settings[index] for index in bad])
            for index, output in zip(bad, again, strict=True):
                outputs[index] = output
            before, bad = bad, [index for index in bad if not _is_finite(outputs[index])]
            if len(bad) == len(before):
                self._llm.collective_rpc(_zero_key_value_cache)
                self._llm.reset_prefix_cache()
                break
        return outputs

    def _outputs(self, prompts: Sequence[list[int]], settings: Sequence[Any]) -> list[Any]:
        if not prompts:
            return []
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        return list(self._llm.generate(asked, list(settings), use_tqdm=False))

    def _take_over_weights(self) -> None:
        if not self._stale:
            return
        tensors = dict(self._model.state_dict() if self._tensors is None else self._tensors)
        tensors |= self._tied_head(tensors)
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(tensors.items())})
        self._llm.reset_prefix_cache()
        self._stale = False
        self._taken_over += 1
        if self._taken_over <= _CHECKED:
            self._check_taken_over()

    def _tied_head(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The output head under its own name, where it is tied to what the tensors already hold."""
        head = getattr(self._model, "get_output_embeddings", lambda: None)()
        weight = getattr(head, "weight", None)
        if not isinstance(weight, Tensor):
            return {}
        names = [name for name, module in self._model.named_modules() if module is head]
        return {f"{name}.weight": weight.detach() for name in names if f"{name}.weight" not in tensors}

    def _check_taken_over(self) -> None:
        """Compare vLLM with a plain forward pass of the live model on a few tokens."""
        length = 8 if self._max_length is None else min(8, self._max_length)
        tokens = [(index * 7919 + 1) % self._vocabulary for index in range(length)]
        with self.forward() as model:
            logits = model(input_ids=torch.tensor([tokens], device=self._device)).logits[0, :-1].float()
        expected = torch.log_softmax(logits, dim=-1).gather(-1, torch.tensor(tokens[1:], device=logits.device)[:, None])
        found = self._ask([tokens], [_scoring()])[0].prompt_logprobs
        scores = torch.tensor([found[place][tokens[place]].logprob for place in range(1, length)])
        difference = float((scores - expected[:, 0].cpu()).abs().max())
        if bool(torch.isfinite(expected).all()) and not difference <= _TOLERANCE.get(self._dtype, _TOLERANCE_ELSEWHERE):
            raise EvaluatorError(
                f"vLLM did not take over the weights of {type(self._model).__name__}: log-probabilities are off by "
                f"{difference:.3g} from the live model's. Use engine.kind: hf for this architecture, and report it"
            )

    def _generation(self, output: Any) -> Generation:
        answer = output.outputs[0]
        tokens = list(answer.token_ids)
        for place, scores in enumerate(answer.logprobs):
            if not math.isfinite(scores[tokens[place]].logprob):
                return Generation(tokens[:place], "non_finite")
        if answer.finish_reason == "length":
            return Generation(tokens, "length")
        if isinstance(answer.stop_reason, str):
            return Generation(tokens, "stop")
        return Generation(tokens[:-1], "end")


def _start(folder: Path, dtype: str, max_length: int | None, options: Mapping[str, Any]) -> tuple[Any, str]:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
    except ImportError as error:
        raise EvaluatorError(
            f"engine.kind is vllm, and vLLM cannot be imported ({error}); install it beside "
            "paretomerge (docs/engines.md says how), or use engine.kind: hf"
        ) from error
    given = {
        "dtype": dtype,
        "generation_config": "vllm",  # not the model's own sampling settings
        "disable_log_stats": True,
        "trust_remote_code": False,
        **({} if max_length is None else {"max_model_len": max_length + 1}),
        # without a GPU the share is one of main memory, most of which is not ours
        **({} if torch.cuda.is_available() else {"enforce_eager": True, "gpu_memory_utilization": 0.4}),
        **options,
    }
    try:
        llm = vllm.LLM(model=str(folder), **given)
        once = vllm.SamplingParams(temperature=0.0, max_tokens=2, detokenize=False)
        llm.generate([{"prompt_token_ids": [0, 0]}], once, use_tqdm=False)  # some sizes are refused only when run
    except Exception as error:  # whatever its many parts raise
        lines = str(error).strip().splitlines()
        raise EvaluatorError(
            f"vLLM cannot run the model of {folder} ({type(error).__name__}: {lines[0] if lines else 'no message'}); "
            "use engine.kind: hf, or pass what it needs in engine.vllm"
        ) from error
    return llm, str(vllm.__version__)


def _options_hash(options: Mapping[str, Any]) -> str:
    """Of the user's arguments: any of them (quantization, dtype, batch sizes) may change a score."""
    return hashlib.sha256(json.dumps(dict(options), sort_keys=True, default=str).encode()).hexdigest()[:16]


def _scoring() -> Any:
    """How vLLM is asked for the log-probabilities of a prompt's tokens: one token more must be generated."""
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)


def _drawn(sampling: Sampling | None, index: int) -> dict[str, Any]:
    if sampling is None:
        return {"temperature": 0.0}
    return {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seeds[index]}


def _log_likelihood(output: Any, start: int) -> LogLikelihood:
    tokens = output.prompt_token_ids
    scores = [output.prompt_logprobs[place][tokens[place]] for place in range(start, len(tokens))]
    total = math.fsum(score.logprob for score in scores)
    finite = math.isfinite(total)
    return LogLikelihood(total if finite else math.nan, finite and all(score.rank == 1 for score in scores))


def _is_finite(output: Any) -> bool:
    """Whether all log-probabilities that were asked for are finite."""
    of_prompt = [scores for scores in output.prompt_logprobs or () if scores is not None]
    of_answer = list(output.outputs[0].logprobs or ())
    return all(math.isfinite(score.logprob) for scores in of_prompt + of_answer for score in scores.values())


def _zero_key_value_cache(worker: Any) -> None:
    for cache in worker.model_runner.kv_caches:
        cache.zero_()
