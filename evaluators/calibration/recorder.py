"""An engine that writes down what its model is asked, and lets the model answer as ever."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evaluators.calibration.calls import Calls
from evaluators.calibration.inputs import Inputs
from evaluators.contract import Engine, Generation, LogLikelihood, Request, Sampling

# At most so many special tokens stand before a text.
_SPECIAL = 8


class Recorder:
    """An :class:`evaluators.contract.Engine` around another, which answers. Records only inside :meth:`recording`.

    - :meth:`generate`: the prompt and what the model itself went on with.
    - :meth:`loglikelihood`: context and continuation as one text, where several continuations of one context are
      asked for (the choices of a question, right and wrong alike), and where a text is read as it runs (after nothing
      but the token that begins texts, and in the windows that follow). A continuation that stands alone after its
      context may be the reference answer: it is not recorded, but what the model itself would write there.
    - Calls of the module: see :class:`evaluators.calibration.calls.Calls`.

    Args:
        engine: the one that answers. Other weights may be written into its model between calls.
        inputs: where what is recorded goes; None for a new collection.
    """

    def __init__(self, engine: Engine, inputs: Inputs | None = None) -> None:
        self._engine = engine
        self._inputs = Inputs() if inputs is None else inputs
        self._calls = Calls(self._inputs)
        self._on = False

    @property
    def inputs(self) -> Inputs:
        """What has been recorded."""
        return self._inputs

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record for the length of a ``with`` block."""
        with self._calls.of(self._engine.model):
            self._on = True
            try:
                yield
            finally:
                self._on = False
        if self._calls.waits:
            with self._engine.forward() as module:
                self._calls.finish(module, self._engine.device)

    @property
    def fingerprint(self) -> str:
        """The other's: its answers are handed on."""
        return self._engine.fingerprint

    @property
    def model(self) -> nn.Module | None:
        """The other's."""
        return self._engine.model

    @property
    def device(self) -> torch.device:
        """The other's."""
        return self._engine.device

    @property
    def folder(self) -> Path | None:
        """The other's."""
        return self._engine.folder

    @property
    def writes_text(self) -> bool:
        """The other's."""
        return self._engine.writes_text

    @property
    def has_chat_template(self) -> bool:
        """The other's."""
        return self._engine.has_chat_template

    @property
    def end_of_text(self) -> int | None:
        """The other's."""
        return self._engine.end_of_text

    @property
    def unknown(self) -> int | None:
        """The other's."""
        return self._engine.unknown

    @property
    def max_length(self) -> int | None:
        """The other's."""
        return self._engine.max_length

    @property
    def reads_last_token(self) -> bool:
        """The other's."""
        return self._engine.reads_last_token

    @property
    def one_spelling(self) -> bool:
        """False, whatever the other says: evaluators must let the model write its answer, since a teacher-forced check
        reads the reference."""
        return False

    @contextmanager
    def forward(self) -> Iterator[nn.Module]:
        """The other's module; what it is called with is recorded."""
        with self._engine.forward() as module:
            if not self._on:
                yield module
                return
            with self._calls.of(module):
                yield module

    def encode(self, text: str, *, special: bool) -> list[int]:
        """The other's."""
        return self._engine.encode(text, special=special)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The other's."""
        return self._engine.encode_chat(messages)

    def decode(self, ids: Sequence[int]) -> str:
        """The other's."""
        return self._engine.decode(ids)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        sampling: Sampling | None = None,
    ) -> list[Generation]:
        """The other's; prompts and answers are recorded."""
        with self._calls.unseen():
            found = self._engine.generate(prompts, max_new_tokens=max_new_tokens, stop=stop, sampling=sampling)
        for prompt, generation in zip(prompts, found, strict=True):
            self._keep([*prompt, *generation.tokens])
        return found

    def loglikelihood(self, requests: Sequence[Request]) -> list[LogLikelihood]:
        """The other's; what is asked is recorded, but for lone continuations."""
        with self._calls.unseen():
            found = self._engine.loglikelihood(requests)
        if self._on:
            self._keep_requests(requests)
        return found

    def weights_changed(self) -> None:
        """Handed on."""
        self._engine.weights_changed()

    def __getattr__(self, name: str) -> Any:
        # What an engine has beyond the contract is the other's.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._engine, name)

    def _keep_requests(self, requests: Sequence[Request]) -> None:
        choices: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
        for context, continuation in requests:
            choices.setdefault(tuple(context), set()).add(tuple(continuation))
        alone: list[Request] = []
        read: list[int] = []  # the running text so far, where the last request was part of one
        for request in requests:
            context = list(request.context)
            follows = bool(read) and read[-len(context) :] == context
            if len(choices[tuple(context)]) > 1 or follows or self._is_beginning(context):
                read = [*context, *request.continuation]
                self._keep(read)
            else:
                read = []
                alone.append(request)
        if alone:
            # One budget for all, so that not even the length of a reference is told.
            new = max(1, *(len(request.continuation) for request in alone))
            self.generate([request.context for request in alone], max_new_tokens=new)

    def _is_beginning(self, context: Sequence[int]) -> bool:
        """Whether a context says nothing: the special tokens that stand before any text."""
        return len(context) <= _SPECIAL and not self._engine.decode(context).strip()

    def _keep(self, tokens: Sequence[int]) -> None:
        if self._on:
            # Of a text that is scored to its end, the last token may have no position.
            self._inputs.add_tokens(tokens[: self._engine.max_length])
