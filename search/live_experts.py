"""Experts, one after the other, in a live model of their own: for what has to be seen of them before a merge."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from merging.recipe import Assignment, MergingError, Recipe

if TYPE_CHECKING:
    from evaluators.contract import Engine
    from merging import Materializer, Sources


class LiveExperts:
    """A live model over some sources. It is loaded when something has to be run, and not before."""

    def __init__(
        self, sources: Sources, dtype: str | None = None, device: str = "cpu", batch_tokens: int | None = None
    ) -> None:
        """Args:
        sources: base and experts.
        dtype: of the live model; the base's if None.
        device, batch_tokens: as a run's ``engine`` says.
        """
        self._sources = sources
        self._dtype = dtype
        self._device = device
        self._batch_tokens = batch_tokens
        self._open: tuple[Materializer, Engine] | None = None

    @property
    def materializer(self) -> Materializer:
        """Writes into the live model."""
        return self._opened()[0]

    def engine(self, alias: str) -> Engine:
        """Asks the live model, which holds this expert's weights now, bit for bit.

        Raises:
            MergingError: the model cannot be loaded, or does not take the expert.
        """
        materializer, engine = self._opened()
        only = Assignment.of("passthrough", {alias: {}})
        groups = dict.fromkeys(self._sources.layout.groups, only)
        tokenizer = self._sources.tokenizer
        materializer.apply(
            Recipe(self._sources.base, self._sources.refs, groups, dtype=self._dtype, tokenizer=tokenizer)
        )
        engine.weights_changed()
        return engine

    def close(self) -> None:
        """Let the model go."""
        if self._open is not None:
            self._open = None
            gc.collect()

    def _opened(self) -> tuple[Materializer, Engine]:
        if self._open is None:
            from evaluators import open_engine
            from merging import Materializer, load_model

            _check_vocabulary(self._sources)
            base = self._sources.path
            model = load_model(base, dtype=self._dtype, device=self._device)
            materializer = Materializer(self._sources, model)
            engine = open_engine(
                model,
                base,
                kind="hf",
                batch_tokens=self._batch_tokens,
                device=self._device,
                tensors=materializer.tensors,
            )
            self._open = materializer, engine
        return self._open


def _check_vocabulary(sources: Sources) -> None:
    """Inputs are the base's tokens: the rows of another vocabulary would be read by the wrong numbers.

    Raises:
        MergingError: the merged model has other tokens than the base, or in another order.
    """
    if sources.tokenizer not in (None, "base"):
        raise MergingError(
            "inputs are read in the base's tokens, and the merged model is to have others; merge by a method that "
            "looks at inputs with the base's vocabulary (tokenizer: base), or choose a method that looks at none"
        )
