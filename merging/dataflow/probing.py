"""Which modules of a live model write to the residual stream: found by running it, no list of architectures.

A module is a writer where its output reaches the output of its block as a summand: multiplied by α, what it adds is
multiplied by α. Going backwards through the block and silencing each writer that is found leaves ``down_proj`` before
``up_proj``, and ``o_proj`` before ``v_proj``, whose outputs enter linearly as well, but only through it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from merging.recipe import MergingError

TOKENS = 12
"""Of the random text that a model is tried on: few, since a block of a large model is large."""

CLOSE = 1e-3
"""Relative: far above float32's rounding and the epsilons of norms, far below what a wrong fold makes."""

_MOST_PARAMETERS = 6  # of one module, among which those are looked for that scale its output


@dataclass(frozen=True)
class BlockWriters:
    """What writes to the residual stream in one block.

    Attributes:
        modules: their names, relative to the block.
        parameters: names of the parameters, relative to the block, that are multiplied so that their outputs are.
        stuck: modules whose output is a summand, but which no choice of their parameters scales.
    """

    modules: frozenset[str]
    parameters: frozenset[str]
    stuck: tuple[str, ...]


class Probe:
    """A live model, run on random tokens with some outputs replaced.

    Attributes:
        blocks: names of its blocks, in order.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[str], vocabulary: int):
        """
        Args:
            model: on the CPU, in evaluation mode, float32. Its weights are overwritten with random ones.
            blocks: names of the modules that are its blocks, in order.
            vocabulary: number of tokens to draw from.
        """
        self._model = model
        self.blocks = tuple(blocks)
        self._modules = dict(model.named_modules())
        generator = torch.Generator().manual_seed(0)
        _randomise(model, self.blocks, generator)
        self._tokens = torch.randint(vocabulary, (1, TOKENS), generator=generator)

    @torch.no_grad()
    def run(
        self,
        factors: Mapping[str, float] | None = None,
        scales: Sequence[float] | None = None,
        until: int | None = None,
    ) -> Outputs:
        """One pass.

        Args:
            factors: module -> what its output is multiplied by.
            scales: [blocks] what the hidden state is multiplied by before each.
            until: the last block that is run; what follows it is not.

        Raises:
            MergingError: the model does not run on tokens alone.
        """
        found = Outputs()
        with self._hooked(found, factors or {}, scales, until):
            try:
                result = self._model(input_ids=self._tokens, use_cache=False)
            except _Enough:
                return found
            except Exception as error:  # model classes raise what they like
                raise MergingError(
                    f"a {type(self._model).__name__} of this config does not run on tokens alone "
                    f"({type(error).__name__}: {error})"
                ) from error
        found.result = getattr(result, "logits", result[0])
        return found

    def writers(self, block: int) -> BlockWriters:
        """The writers of a block.

        Raises:
            MergingError: the model does not run.
        """
        home = self.blocks[block]
        plain = self.run(until=block)
        candidates = [name for name in reversed(plain.order) if _is_in(name, home) and self._own(name)]
        silent: dict[str, float] = {}
        modules: set[str] = set()
        parameters: set[str] = set()
        stuck: list[str] = []
        once = plain.blocks[block]
        for name in dict.fromkeys(candidates):
            none = self.run({**silent, name: 0.0}, until=block).blocks[block]
            if not self._adds(name, silent, none, once, block):
                continue
            chosen = self._scaling(name, plain.modules[name], block)
            if chosen is None:
                stuck.append(name.removeprefix(f"{home}."))
                continue
            silent[name], once = 0.0, none
            for like in self._alike(name, home):
                modules.add(like.removeprefix(f"{home}."))
                parameters |= {f"{like}.{leaf}".removeprefix(f"{home}.") for leaf in chosen}
        return BlockWriters(frozenset(modules), frozenset(parameters), tuple(stuck))

    @contextmanager
    def multiplied(self, factors: Mapping[str, float]) -> Iterator[None]:
        """Within the context, these parameters are multiplied; by powers of 2, which is undone exactly."""
        for name, factor in factors.items():
            self._model.get_parameter(name).data.mul_(factor)
        try:
            yield
        finally:
            for name, factor in factors.items():
                self._model.get_parameter(name).data.div_(factor)

    def _adds(self, name: str, silent: Mapping[str, float], none: Tensor, once: Tensor, block: int) -> bool:
        """Whether what a module puts out is a summand of the block's output, with the writers found so far silent.

        Args:
            name: of the module.
            silent: the writers found so far.
            none, once: the block's output without the module's, and with it.
            block: number of the block.
        """
        added = once - none
        size = float(added.abs().max())
        if size <= CLOSE * float(once.abs().max()):
            return False
        for factor in (-1.0, 2.0):
            found = self.run({**silent, name: factor}, until=block).blocks[block]
            if float((found - none - factor * added).abs().max()) > CLOSE * size:
                return False
        return True

    def _scaling(self, name: str, output: Tensor, block: int) -> tuple[str, ...] | None:
        """The largest set of a module's own parameters that halves its output when it is halved."""
        own = self._own(name)
        if len(own) > _MOST_PARAMETERS:
            return None
        for count in range(len(own), 0, -1):
            for chosen in itertools.combinations(own, count):
                with self.multiplied({f"{name}.{leaf}": 0.5 for leaf in chosen}):
                    if close(self.run(until=block).modules[name], 0.5 * output):
                        return chosen
        return None

    def _own(self, name: str) -> tuple[str, ...]:
        return tuple(leaf for leaf, _ in self._modules[name].named_parameters(recurse=False))

    def _alike(self, name: str, home: str) -> list[str]:
        """The module, and those of its block whose names differ in numbers alone: experts to which no token went."""
        return [
            each
            for each, module in self._modules.items()
            if _is_in(each, home)
            and _without_numbers(each.removeprefix(home)) == _without_numbers(name.removeprefix(home))
            and self._own(each) == self._own(name)
            and type(module) is type(self._modules[name])
        ]

    @contextmanager
    def _hooked(
        self, found: Outputs, factors: Mapping[str, float], scales: Sequence[float] | None, until: int | None
    ) -> Iterator[None]:
        handles = [
            module.register_forward_hook(_multiplied(name, found, factors.get(name)))
            for name, module in self._modules.items()
            if any(_is_in(name, block) for block in self.blocks)
        ]
        for number, name in enumerate(self.blocks):
            block = self._modules[name]
            handles.append(block.register_forward_hook(_noted(found, until == number)))
            if scales is not None and scales[number] != 1:
                handles.append(block.register_forward_pre_hook(scaled_input(scales[number]), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _Enough(Exception):
    """What was asked for has been run."""


@dataclass
class Outputs:
    """What a pass of a model put out.

    Attributes:
        result: logits, or hidden states where the model has no head.
        blocks: [blocks] the hidden state behind each.
        modules: name -> its output, for modules inside of blocks that put out one tensor.
        order: their names as they ended.
    """

    result: Tensor = field(default_factory=lambda: torch.empty(0))
    blocks: list[Tensor] = field(default_factory=list)
    modules: dict[str, Tensor] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether two outputs agree to :data:`CLOSE` of the larger one's largest element."""
    return deviation(found, expected) <= CLOSE


def deviation(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest element expected."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def scaled_input(scale: float) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    """A forward pre-hook (with kwargs) of a block that multiplies its hidden state: a hop's scale, as published."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (args[0] * scale, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] * scale}

    return hook


def _multiplied(name: str, found: Outputs, factor: float | None) -> Callable[..., Tensor | None]:
    def hook(module: nn.Module, args: Any, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor):
            return None
        found.modules[name] = output.clone()  # some blocks add to it in place
        found.order.append(name)
        return None if factor is None else output * factor

    return hook


def _noted(found: Outputs, last: bool) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        found.blocks.append(output if isinstance(output, Tensor) else output[0])
        if last:
            raise _Enough

    return hook


def _without_numbers(name: str) -> list[str]:
    return ["*" if word.isdecimal() else word for word in name.split(".")]


def _is_in(name: str, home: str) -> bool:
    return name.startswith(f"{home}.")


def _randomise(model: nn.Module, blocks: Sequence[str], generator: torch.Generator) -> None:
    """Weights of everyday sizes: no bias is 0, no norm's weight 1, and the hidden state is of size 1."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.uniform_(0.5, 1.5, generator=generator)
                continue
            inside = any(_is_in(name, block) for block in blocks)
            bound = math.sqrt(3.0 / parameter.shape[-1] if inside else 3.0)  # of this variance, and fast to draw
            parameter.uniform_(-bound, bound, generator=generator)
