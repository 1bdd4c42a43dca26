"""Calls of a live module by those who run it themselves, as inputs of the module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from evaluators.calibration.arguments import cached, encodes_and_decodes, named, rows
from evaluators.calibration.inputs import Input, Inputs
from evaluators.calibration.writing import Writing, write


class _Pending(NamedTuple):
    """A call of a model with encoder and decoder whose decoder's input is not known: what the encoder was given, and
    at most how many tokens the model may write."""

    given: Input
    tokens: int


class Calls:
    """Watches a module and puts what it is called with into a collection.

    Of a call the tensors among the arguments of the outermost model are recorded, by name: rows apart, padding cut off
    by ``attention_mask``. Labels never are, nor caches, nor steps that go on from a cache. What an evaluator tells a
    decoder could be the reference: in its place the model's own greedy answer is recorded, of at most as many tokens
    as the longest of the call. Of ``generate`` the inputs are recorded, and what the model wrote. Calls of a part (the
    model without its head, the encoder alone) are taken for calls of the whole.

    Args:
        inputs: the collection.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._watched: nn.Module | None = None
        self._depth = 0
        self._unseen = 0
        self._writing: Writing | None = None
        self._pending: list[_Pending] = []

    @contextmanager
    def of(self, module: nn.Module | None) -> Iterator[None]:
        """Watch a module for the length of a ``with`` block; inside another such block that one goes on."""
        if module is None or self._watched is not None:
            yield
            return
        self._watched, self._depth = module, 0
        hooks = []
        for part in _models(module):
            hooks.append(part.register_forward_pre_hook(self._enter, with_kwargs=True))
            hooks.append(part.register_forward_hook(self._leave, always_call=True))
        try:
            with self._generating(module):
                yield
        finally:
            for hook in hooks:
                hook.remove()
            self._watched = None

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """What the module is called with inside is somebody else's to record."""
        self._unseen += 1
        try:
            yield
        finally:
            self._unseen -= 1

    @property
    def waits(self) -> bool:
        """Whether there is anything for :meth:`finish` to do."""
        return bool(self._pending)

    def finish(self, module: nn.Module, device: torch.device) -> None:
        """Let the model write what its decoder reads, where that is not known.

        Args:
            module: the one that was watched, in evaluation mode.
            device: where its inputs go.
        """
        pending, self._pending = self._pending, []
        for given, tokens in pending:
            self._inputs.add(write(module, given, tokens, device))

    def _enter(self, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._depth += 1
        module = self._watched
        if self._depth > 1 or self._unseen or module is None:
            return
        given = named(part, args, kwargs)
        if self._writing is not None:
            if part is module:
                self._writing.see(given)
        elif cached(given) == 0:
            self._keep(module, given, whole=part is module)

    def _keep(self, module: nn.Module, given: dict[str, Any], *, whole: bool) -> None:
        told = [given.get(name) for name in ("decoder_input_ids", "decoder_inputs_embeds", "labels")]
        widths = [each.shape[1] for each in told if isinstance(each, Tensor) and each.ndim > 1]
        for row in rows(module, given):
            if encodes_and_decodes(module) and (widths or not whole):
                self._pending.append(_Pending(row, max(widths, default=0)))
            else:
                self._inputs.add(row)

    def _leave(self, part: nn.Module, args: Any, output: Any) -> None:
        self._depth -= 1

    @contextmanager
    def _generating(self, module: Any) -> Iterator[None]:
        """``generate`` of this one object replaced by one that is recorded."""
        generate = getattr(module, "generate", None)
        if not callable(generate):
            yield
            return
        own = "generate" in vars(module)
        module.generate = self._recorded(module, generate)
        try:
            yield
        finally:
            if own:
                module.generate = generate
            else:
                del module.generate

    def _recorded(self, module: nn.Module, generate: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            if self._unseen or self._writing is not None:
                return generate(*args, **kwargs)
            self._writing = Writing(module, args, kwargs)
            try:
                output = generate(*args, **kwargs)
                for one in self._writing.inputs(output):
                    self._inputs.add(one)
            finally:
                self._writing = None
            return output

        return recorded


def _models(module: nn.Module) -> list[nn.Module]:
    """A module, and the models inside it that may be called by themselves."""
    from transformers import PreTrainedModel

    return [part for part in module.modules() if part is module or isinstance(part, PreTrainedModel)]
