"""What methods see of calibration data: statistics of each source on a few inputs of its own.

A method that declares ``needs.calibration`` names the data in its recipes by their fingerprint, and asks
``pool.calibration`` for what was collected beforehand; nothing is run while a candidate is made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from merging.recipe import Assignment

if TYPE_CHECKING:
    from torch import Tensor

# What is collected: input Gram matrices of every linear weight; the same with inputs from the merged layers below; the
# diagonal of the Fisher information.
Statistic = Literal["gram", "sequential_gram", "fisher"]


class Gram(NamedTuple):
    """What went into a linear weight: the second moments of its inputs.

    Attributes:
        matrix: [in, in] float64, symmetric: Σ x·xᵀ / rows, where the experts of a mixture count their rows together;
            [stack, in, in] for a tensor that holds several weights along its first axis (such experts).
        rows: how many inputs there were; [stack] of them for a stack.
        inputs: which inputs: tensors with the same name here share the matrix (query, key, value).
        axis: the axis of the stored weight that the inputs run along, stack apart: 1 for [out, in], 0 for the [in, out]
            of GPT-2; convolutions [out, in, …] count as [out, in·…].
    """

    matrix: Tensor
    rows: tuple[int, ...]
    inputs: str
    axis: int


class Calibration(ABC):
    """Statistics on the inputs of each source; sources are named by the hash of their content."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """``sha256:…`` of all inputs: recipes name it, since the result depends on it."""

    @abstractmethod
    def gram(self, content: str, name: str) -> Gram | None:
        """The inputs of one weight in one source, on this source's own data; None for what is no linear weight.

        Args:
            content: of the source (:meth:`merging.pool.Pool.content`).
            name: canonical tensor name.

        Raises:
            MergingError: it was not collected.
        """

    @abstractmethod
    def sequential_gram(self, content: str, name: str, assignment: Assignment) -> Gram | None:
        """As :meth:`gram`, with inputs from layers below that are already merged as ``assignment`` says (RegMean++).

        Args:
            content, name: as there.
            assignment: canonical, of the whole model, its aliases replaced by contents: see
                :func:`merging.calibration.by_content`.
        """

    @abstractmethod
    def fisher(self, content: str, name: str) -> Tensor:
        """The diagonal of the Fisher information of a tensor, float32, of its stored shape, ≥ 0, a mean over samples.

        Raises:
            MergingError: it was not collected.
        """

    @abstractmethod
    def fisher_norm(self, content: str) -> float:
        """‖F‖₂ of a source's Fisher information over all its tensors."""

    @abstractmethod
    def batches(self, content: str) -> Iterable[Mapping[str, Tensor]]:
        """The inputs of one source themselves: keyword arguments of the model's forward, in a fixed order."""
