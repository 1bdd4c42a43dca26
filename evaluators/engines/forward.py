"""Any live Hugging Face model in this process: what engines of every kind share, and the engine of all that is no
causal language model (speech, images, classifiers, encoders), whose evaluators run the module themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from evaluators.contract import EvaluatorError, Generation, LogLikelihood, Request, Sampling
from evaluators.engines.memory import BatchLimit, release_unused
from evaluators.engines.recovery import ModuleState
from evaluators.engines.tokenizer import chat_template_hash, end_tokens, tokenizer_hash

# Raised whenever this module's own way to a score changes what the score is.
_VERSION = 1

# Measured on a 0.5 M parameter Llama: activations that stay in a CPU's cache beat larger batches by up to 30 %.
_BATCH_TOKENS = {"cpu": 1024}
_BATCH_TOKENS_ELSEWHERE = 16384

# What of a model's folder shapes its inputs and outputs, beside weights and tokenizer.
_SETTINGS = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
    "normalizer.json",
    "1_Pooling/config.json",
)


class HFModule:
    """A live model, and the tokenizer that its folder may have. Holds nothing that depends on the weights.

    Args:
        model: on its device and in its dtype. It is put into evaluation mode for the length of each call and left as
            it was.
        tokenizer: its tokenizer, or None.
        folder: where the model came from, for those who need its processor; None where it came from nowhere.
        device: where inputs go; None for the device of the input embeddings, or else of the first parameter.

    Attributes:
        interruptible: whether it can go on after an exception at any instruction (a time limit's).
    """

    interruptible: ClassVar[bool] = True

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, folder: Path | None = None, device: torch.device | str | None = None
    ) -> None:
        first = next(model.parameters())
        self._model = model
        self._tokenizer = tokenizer
        self._folder = folder
        self._device = torch.device(device) if device is not None else _input_device(model, first.device)
        self._dtype = str(first.dtype).removeprefix("torch.")
        self._attention = str(getattr(getattr(model, "config", None), "_attn_implementation", None) or "default")
        self._ends = () if tokenizer is None else end_tokens(model, tokenizer)
        self._fingerprint = ""  # whoever derives from this knows what it depends on
        self._state = ModuleState(model)

    @property
    def writes_text(self) -> bool:
        """Whether the model goes on with a text."""
        return True

    @property
    def fingerprint(self) -> str:
        """Kind, dtype, device type and whatever else a score depends on, between slashes; hashes for long things."""
        return self._fingerprint

    @property
    def model(self) -> nn.Module:
        """The live module."""
        return self._model

    @property
    def device(self) -> torch.device:
        """Where its inputs go."""
        return self._device

    @property
    def folder(self) -> Path | None:
        """Where the model came from."""
        return self._folder

    @property
    def end_of_text(self) -> int | None:
        """The tokenizer's end-of-text id, else the first that the model's generation settings name, else None."""
        return self._ends[0] if self._ends else None

    @property
    def unknown(self) -> int | None:
        """The tokenizer's unknown id, unless it does double duty as the end of a text (GPT-2)."""
        unknown = self._asked_tokenizer().unk_token_id
        return None if unknown is None or unknown in self._ends else int(unknown)

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer knows how a conversation is written."""
        return bool(getattr(self._tokenizer, "chat_template", None))

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids of ``text``, with the tokenizer's special tokens before it when asked for.

        An end-of-text token that the tokenizer appends is left out: a prompt that has ended has no answer.
        """
        tokenizer = self._asked_tokenizer()
        ids: list[int] = tokenizer.encode(text, add_special_tokens=special)
        if special and ids and ids[-1] in self._ends:
            bare: list[int] = tokenizer.encode(text, add_special_tokens=False)
            if bare != ids[len(ids) - len(bare) :]:
                ids = ids[:-1]
        return ids

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation, up to where the assistant's answer begins.

        Args:
            messages: {"role": …, "content": …} each, the last one the user's.

        Raises:
            EvaluatorError: the tokenizer has no chat template, or its template refuses the conversation.
        """
        tokenizer = self._asked_tokenizer()
        if not self.has_chat_template:
            raise EvaluatorError(
                "a chat template is asked for, and the tokenizer has none; use chat: false (or auto), or the tokenizer "
                "of a model that was trained on conversations"
            )
        try:
            text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates raise what they like, for a role that they do not know, for instance
            raise EvaluatorError(f"the tokenizer's chat template refuses the prompt: {error}") from error
        return list(tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out, spaces as the tokenizer has them."""
        tokenizer = self._asked_tokenizer()
        return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    @contextmanager
    def forward(self) -> Iterator[nn.Module]:
        """The module, in evaluation mode, no gradients recorded."""
        was_training = self._model.training
        if was_training:
            self._model.eval()
        try:
            with torch.inference_mode():
                yield self._model
        finally:
            if was_training:
                self._model.train()

    def weights_changed(self) -> None:
        """Nothing here depends on the weights."""

    def recover(self) -> None:
        """Be as fresh as when it was made, after an evaluation that broke off at any place: the module's hooks, modes
        and settings are put back. Its weights are not looked at."""
        self._state.restore()

    def _asked_tokenizer(self) -> Any:
        if self._tokenizer is None:
            raise EvaluatorError(
                f"text is asked of {type(self._model).__name__}, and its folder {self._folder or ''} has no tokenizer; "
                "copy the tokenizer files of the base model into it"
            )
        return self._tokenizer


def default_batch_tokens(device: torch.device) -> int:
    """So many tokens a forward pass, where nothing else is asked for."""
    return _BATCH_TOKENS.get(device.type, _BATCH_TOKENS_ELSEWHERE)


class Batching:
    """What an engine says of its batches whose sizes are its own (see :mod:`evaluators.engines.memory`).

    Attributes:
        limit: of its forward passes, and of those of the evaluators that run its module themselves.
    """

    limit: BatchLimit

    @property
    def batch_tokens(self) -> int:
        """At most so many tokens a forward pass, padding included. May be set: what a resumed run had come down to.

        Raises:
            EvaluatorError: set to less than one.
        """
        return self.limit.tokens

    @batch_tokens.setter
    def batch_tokens(self, value: int) -> None:
        self.limit.tokens = value

    def release(self) -> None:
        """Give back all memory that is not needed to go on."""
        release_unused()


class HFForwardEngine(Batching, HFModule):
    """The engine of every model that is no causal language model: evaluators run :meth:`forward` themselves.

    Arguments as those of :class:`HFModule`, and:

    Args:
        batch_tokens: no batch is ever that large: every evaluator has a size of its own. Where memory does not suffice
            this number is halved, and all of them get smaller in proportion.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        batch_tokens: int | None = None,
        folder: Path | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(model, tokenizer, folder=folder, device=device)
        self.limit = BatchLimit(default_batch_tokens(self._device) if batch_tokens is None else batch_tokens)
        text = "none" if tokenizer is None else tokenizer_hash(tokenizer)
        self._fingerprint = "/".join(
            [
                "hf-forward",
                type(model).__name__,
                self._dtype,
                self._device.type,
                self._attention,
                f"settings={settings_hash(folder)}",
                f"tokenizer={text}{chat_template_hash(tokenizer)}",
                f"longest={getattr(tokenizer, 'model_max_length', None)}",
                f"v{_VERSION}",
            ]
        )

    @property
    def max_length(self) -> int | None:
        """The configuration's ``max_position_embeddings``, None where it has none."""
        limit = getattr(getattr(self._model, "config", None), "max_position_embeddings", None)
        return int(limit) if isinstance(limit, int) and limit > 0 else None

    @property
    def writes_text(self) -> bool:
        """It does not."""
        return False

    @property
    def reads_last_token(self) -> bool:
        """No continuation is read here."""
        return False

    @property
    def one_spelling(self) -> bool:
        """Nothing is generated here, so nothing is proved."""
        return False

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        sampling: Sampling | None = None,
    ) -> list[Generation]:
        """Not possible.

        Raises:
            EvaluatorError: always.
        """
        self._refuse("generate text")

    def loglikelihood(self, requests: Sequence[Request]) -> list[LogLikelihood]:
        """Not possible.

        Raises:
            EvaluatorError: always.
        """
        self._refuse("give log-likelihoods of text")

    def _refuse(self, what: str) -> NoReturn:
        raise EvaluatorError(
            f"an evaluator asks the model to {what}, which needs a causal language model, and "
            f"{type(self._model).__name__} is none"
        )


def settings_hash(folder: Path | None) -> str:
    """Eight bytes, in hexadecimal, of the files of a model's folder that say how its weights are run and asked: what an
    edit there changes is another engine. The same wherever the folder lies; of no folder that of an empty one."""
    digest = hashlib.sha256()
    for name in _SETTINGS:
        if folder is not None and (folder / name).is_file():
            digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    return digest.hexdigest()[:16]


def text_config(model: nn.Module) -> Any:
    """The configuration of a model's text decoder: its own, but where other parts stand beside it. None without one."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def input_embedding(model: nn.Module) -> Tensor | None:
    """The weight [ids, width] of the input embeddings, where a model has some."""
    try:
        weight = getattr(getattr(model, "get_input_embeddings", lambda: None)(), "weight", None)
    except NotImplementedError:  # models of images and sounds
        return None
    return weight if isinstance(weight, Tensor) and weight.ndim == 2 else None


def _input_device(model: nn.Module, default: torch.device) -> torch.device:
    weight = input_embedding(model)
    return default if weight is None else weight.device
