"""RegMean and RegMean++: every linear layer as the regression of what the experts' layers give on their own inputs.

What is no linear weight is the mean of the experts by their coefficients. A merge of fixed coefficients is computed
once; what is remembered for searching over coefficients is said at :class:`RegMean`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from merging import least_squares
from merging.calibration.contract import Calibration, Gram
from merging.least_squares import Moments, Pair, Singular
from merging.linear_algebra import one_thread
from merging.methods.arcs import by_shares
from merging.methods.arithmetic import base_plus, sum_of_weights
from merging.methods.contract import DELTA_SCALE, Elements, Elementwise, Inputs, Needs, Parameter, Values
from merging.methods.products import growth
from merging.pool import Pool
from merging.recipe import Assignment, MergingError

# Inputs of at most this many dimensions are diagonalised for two sources of different shares. It takes six to ten times
# as long as one solve, so a search earns it back within some fifteen candidates; one merge of wide layers never does.
DIAGONALISED = 4096

# Factors that layers with the same inputs share, the query, key and value for example, are met close together.
_FACTORS = 2

_LOCK = threading.Lock()  # of those: tensors may be prepared side by side


# Source of a pool -> its inputs of one tensor.
Reader = Callable[[int], Gram | None]


class Product(NamedTuple):
    """A merged tensor.

    Attributes:
        weights: flat, float32, where the sources are.
        growth: largest |element|, as a multiple of the sources'; infinite where those are zero.
    """

    weights: Tensor
    growth: float


def merged(inputs: Inputs) -> Tensor:
    """W, the only field, in the dtype of the numbers."""
    return inputs.fields[0].to(inputs.numbers.dtype)


def from_base(inputs: Inputs) -> Tensor:
    """θ0 + scale·(W − θ0), in the dtype of the numbers; W is the only field."""
    base = inputs.base.to(inputs.numbers.dtype)
    return (inputs.fields[0].to(base.dtype) - base) * inputs.numbers[0] + base


class RegMean(Elementwise):
    """W = (Σ c_t·W_t·G̃_t)·(Σ c_t·G̃_t)⁻¹ for linear weights: least squares on the experts' outputs on their own inputs.

    G̃_t = α·G_t + (1 − α)·diag(G_t) + ρ·I, where G_t = Σ x·xᵀ / rows are the second moments of the layer's inputs in
    expert t (Jin et al. 2023, eq. 2 and the reduction of non-diagonal items), and ρ = ridge · the mean over the experts
    of tr(G_t)/d. What is no linear weight is Σ c_t·θ_t / Σ c_t. ``scale`` is a factor on what the merge adds to the
    base: θ0 + scale·(W − θ0).

    Edge cases: only the ratio of the coefficients acts; sources of coefficient 0 are left out. In a direction that no
    input ever took, the ridge leaves the mean; a layer without any inputs, such as an expert of a mixture that no token
    reached, is the mean. α = 0 is a weighted mean of every column. Where the ridge is 0 and the inputs do not span all
    directions, the merge is refused; where it is 1e-12 and less, rounding may do the same. Convolutions count as
    [out, in·…], stacks of matrices one by one.

    As genes: a candidate's coefficients cost one float32 product with a [in, in] matrix per tensor for two sources,
    whose inputs were diagonalised together beforehand (up to 4096 of them), and otherwise a Cholesky factor for every
    input and two triangular solves in float64 for every tensor. For that, one more float32 copy of the weights and one
    float32 [in, in] per input are kept for two sources, and 8 bytes per weight and source beyond the first for more;
    with fixed coefficients, one float32 copy. α and ridge as genes make all of it anew for every candidate.
    """

    name: ClassVar[str] = "regmean"
    needs: ClassVar[Needs] = Needs(calibration=True, statistics=frozenset({"gram"}))
    formula: ClassVar[str] = "W = (Σ c_t·W_t·G̃_t)·(Σ c_t·G̃_t)⁻¹, G̃_t = α·G_t + (1−α)·diag(G_t) + ρ·I"
    paper: ClassVar[str] = "Jin et al. 2023, arXiv 2212.09849"
    symmetric: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("coefficient", float, "weight c_t of this source's inputs", default=1.0, low=0.0, per_source=True),
        Parameter("alpha", float, "factor α on the correlations of inputs", default=0.9, low=0.0, high=1.0),
        Parameter("ridge", float, "added to the moments, relative to their mean", default=1e-6, low=0.0),
        Parameter("scale", float, "factor on what the merge adds to the base", default=1.0),
    )

    def reads_base(self, values: Values) -> bool:
        """Where what it adds to the base is scaled."""
        return values.shared["scale"] != 1.0

    def reduce(self, assignment: Assignment) -> Assignment:
        """Coefficients that sum to 1; what is zero is left out."""
        return by_shares(assignment)

    def prepare(self, pool: Pool, name: str, values: Values) -> Elements:
        """See the class.

        Raises:
            MergingError: no calibration, inputs that do not fit the tensor, or that do not decide it.
        """
        shares, scale = values.column("coefficient"), float(values.shared["scale"])
        product = self._product(pool, name, values) if len(shares) > 1 and scale != 0.0 else None
        if product is None:
            return sum_of_weights(shares) if scale == 1.0 else base_plus([share * scale for share in shares])
        if scale == 1.0:
            return Elements(merged, base=False, fields=(product.weights,), gain=product.growth)
        gain = 1.0 + abs(scale) * (product.growth + 1.0)
        return Elements(from_base, numbers=(scale,), fields=(product.weights,), gain=gain)

    def _data(self, pool: Pool, calibration: Calibration, values: Values) -> Hashable:
        """On what the inputs depend besides the experts."""
        return data_of(calibration)

    def _reader(self, pool: Pool, calibration: Calibration, name: str, values: Values) -> Reader:
        """Source -> its inputs of a tensor."""
        return lambda number: calibration.gram(pool.content(number), name)

    def _product(self, pool: Pool, name: str, values: Values) -> Product | None:
        """None for what is no linear weight of any source."""
        calibration = calibration_of(pool, self.name)
        data, read = self._data(pool, calibration, values), self._reader(pool, calibration, name, values)
        key = (self.name, name)
        layer: Layer | None = _latest(pool, (*key, "layer"), data, lambda: Layer.of(pool, name, read))
        if layer is None:
            return None
        solver = _Solver(pool, self.name, name, layer, read, values, data)
        product: Product = _latest(pool, (*key, "product"), (solver.shares, solver.fixed), solver.product)
        return product


class RegMeanPlus(RegMean):
    """RegMean++: :class:`RegMean` on the inputs that each expert's data make in a model whose lower layers are merged.

    The inputs of a layer in expert t are those that its data have after the layers below were merged, with these very
    parameters, ``scale`` among them: the merge is made from the lowest layer to the highest (Nguyen et al. 2025). So
    its parameters can not be searched: every candidate would run the data through the model once more.

    Everything else is as in RegMean.
    """

    name: ClassVar[str] = "regmean_plus"
    needs: ClassVar[Needs] = Needs(calibration=True, statistics=frozenset({"sequential_gram"}))
    formula: ClassVar[str] = "W as regmean, G_t of the inputs from the merged layers below"
    paper: ClassVar[str] = "Nguyen et al. 2025, arXiv 2508.03121"
    fixed: ClassVar[frozenset[str]] = frozenset({*(each.name for each in RegMean.parameters), DELTA_SCALE.name})

    def _data(self, pool: Pool, calibration: Calibration, values: Values) -> Hashable:
        return data_of(calibration), self._assignment(pool, values)

    def _reader(self, pool: Pool, calibration: Calibration, name: str, values: Values) -> Reader:
        assignment = self._assignment(pool, values)
        return lambda number: calibration.sequential_gram(pool.content(number), name, assignment)

    def _assignment(self, pool: Pool, values: Values) -> Assignment:
        """The whole of it, by content."""
        # Here: the registry, which imports this module when it is asked for the method, is needed to spell it.
        from merging.calibration.contents import by_content

        spelled = Assignment.of(self.name, dict(zip(pool.aliases, values.sources, strict=True)), **values.shared)
        return by_content(spelled, {alias: pool.content(number) for number, alias in enumerate(pool.aliases)})


def calibration_of(pool: Pool, method: str) -> Calibration:
    """The pool's calibration.

    Raises:
        MergingError: it has none.
    """
    if pool.calibration is None:
        raise MergingError(f"{method} needs calibration data, found none")
    return pool.calibration


def data_of(calibration: Calibration) -> Hashable:
    """What statistics are remembered by: two calibrations with the same data may hold those of other live dtypes."""
    return calibration  # itself, by identity: as long as it is remembered nothing else is taken for it


class Layer(NamedTuple):
    """What is remembered of the inputs of a linear weight: the matrices themselves are read where they are needed.

    Attributes:
        axis: see :attr:`merging.calibration.contract.Gram.axis`.
        stack: of how many matrices the tensor is a stack; None for one that is none.
        inputs: [sources] their names; None for a source without.
        means: [sources, matrices] mean square of an input.
    """

    axis: int
    stack: int | None
    inputs: tuple[str | None, ...]
    means: tuple[tuple[float, ...], ...]

    @staticmethod
    def of(pool: Pool, name: str, read: Reader) -> Layer | None:
        """None for what is no linear weight of any source.

        Raises:
            MergingError: inputs that do not fit the tensor, or are not finite.
        """
        grams = map(read, range(len(pool.aliases)))
        layer: Layer | None = None
        inputs: list[str | None] = []
        means: list[tuple[float, ...]] = []
        for number, gram in enumerate(grams):
            if gram is None:
                inputs.append(None)
                means.append(())
                continue
            like = Layer(gram.axis, gram.matrix.shape[0] if gram.matrix.ndim == 3 else None, (), ())
            like._check(pool.source(name, number), name, gram)
            if layer is not None and layer != like:
                raise MergingError(
                    f"the calibration's inputs of {name} differ from source to source; collect them anew"
                )
            layer = like
            inputs.append(gram.inputs)
            with one_thread():
                mean = gram.matrix.diagonal(dim1=-2, dim2=-1).double().mean(-1)
            means.append(tuple(mean.reshape(-1).tolist()))
            if not all(map(math.isfinite, means[-1])):
                raise MergingError(f"the calibration's inputs of {name} are not finite; collect them anew")
        if layer is None:
            return None
        nothing = (0.0,) * (layer.stack or 1)
        return layer._replace(inputs=tuple(inputs), means=tuple(each or nothing for each in means))

    def matrices(self, tensor: Tensor) -> Tensor:
        """[matrices, out, in] of a stored tensor: a view where it is contiguous."""
        rows = tensor.shape[0 if self.stack is None else 1]
        found = tensor.reshape(self.stack or 1, rows, -1)
        return found.mT if self.axis == 0 else found

    def _check(self, tensor: Tensor, name: str, gram: Gram) -> None:
        shape = tensor.shape if self.stack is None else tensor.shape[1:]
        fits = len(shape) > 1 and self.stack in (None, tensor.shape[0])
        if not fits or tuple(gram.matrix.shape[-2:]) != (self.matrices(tensor).shape[-1],) * 2:
            raise MergingError(
                f"the calibration has inputs {list(gram.matrix.shape)} along axis {self.axis} for {name}, which is a "
                f"tensor of shape {list(tensor.shape)}: they are of another model"
            )


class _Solver:
    """One tensor: the matrices that it holds, one after the other."""

    def __init__(
        self, pool: Pool, method: str, name: str, layer: Layer, read: Reader, values: Values, data: Hashable
    ) -> None:
        self.shares = values.column("coefficient")
        self._alpha = float(values.shared["alpha"])
        self._ridge = float(values.shared["ridge"])
        self.fixed = (self._alpha, self._ridge, data)
        self._pool = pool
        self._method = method
        self._name = name
        self._layer = layer
        self._read = read
        self._stacks: dict[int, Gram | None] = {}

    def product(self) -> Product:
        """The merged tensor."""
        with torch.no_grad(), one_thread():
            layer, name, pool = self._layer, self._name, self._pool
            sources = [layer.matrices(each) for each in pool.sources(name)]
            out = torch.empty_like(pool.source(name, 0), dtype=torch.float32, memory_format=torch.contiguous_format)
            for index, target in enumerate(layer.matrices(out)):
                target.copy_(self._matrix([each[index] for each in sources], index))
            return Product(out.reshape(-1), growth(out, pool.sources(name)))

    def _gram(self, number: int) -> Gram | None:
        if self._layer.stack is None:
            return self._read(number)
        if number not in self._stacks:  # read whole, and asked for once for every matrix
            self._stacks[number] = self._read(number)
        return self._stacks[number]

    def _moments(self, index: int) -> Moments:
        def read(number: int) -> Tensor | None:
            gram = self._gram(number)
            return None if gram is None else gram.matrix if self._layer.stack is None else gram.matrix[index]

        means = [each[index] for each in self._layer.means]
        return Moments(read, self._alpha, self._ridge, sum(means) / len(means))

    def _matrix(self, maps: list[Tensor], index: int) -> Tensor:
        moments = self._moments(index)
        if moments.empty:
            return least_squares.mean(maps, self.shares)
        if self._alpha == 0.0:
            return least_squares.by_columns(maps, moments, self.shares)
        try:
            return self._pair(maps, moments, index) if self._paired(maps) else self._direct(maps, moments, index)
        except Singular as error:
            raise MergingError(
                f"the calibration inputs of {self._name} do not span its {maps[0].shape[1]} dimensions, and a ridge of "
                f"{self._ridge:g} does not decide what {self._method} does in the others; raise the ridge (1e-6 is the "
                "default), lower alpha, or calibrate with more inputs"
            ) from error

    def _paired(self, maps: list[Tensor]) -> bool:
        # By what the recipe says, not by what is to come: whoever exports the winner gets its bits.
        return len(maps) == 2 and self.shares[0] != self.shares[1] and maps[0].shape[1] <= DIAGONALISED

    def _pair(self, maps: list[Tensor], moments: Moments, index: int) -> Tensor:
        """Two sources, whose coefficients may be genes."""

        def basis() -> tuple[Pair, Tensor]:
            pair: Pair = self._of_inputs("pair", index, self.fixed, lambda: Pair.of(moments, maps[0]))
            return pair.slim(), pair.coordinates(maps)  # tensors with the same inputs hold one ``inverse``

        pair, coordinates = _latest(self._pool, (self._method, self._name, "pair", index), self.fixed, basis)
        found: Tensor = pair.solved(maps, coordinates, self.shares)
        return found

    def _direct(self, maps: list[Tensor], moments: Moments, index: int) -> Tensor:
        def moved() -> list[Tensor]:
            return least_squares.moved(maps, moments)

        if self._pool.searching and len(set(self.shares)) > 1:
            found = _latest(self._pool, (self._method, self._name, "moved", index), self.fixed, moved)
        else:
            found = moved()
        key = (self.shares, *self.fixed)
        factor = self._of_inputs("factor", index, key, lambda: least_squares.factor(moments, self.shares, maps[0]))
        return least_squares.solved(maps[0], found, self.shares, factor)

    def _of_inputs(self, what: str, index: int, key: Hashable, compute: Callable[[], Any]) -> Any:
        """What tensors with the same inputs share; the last few are remembered."""
        memory: dict[Hashable, Any] = self._pool.once((self._method, what), dict)
        full = (key, self._layer.inputs, index)
        with _LOCK:
            found = memory.pop(full, None)
            while len(memory) >= _FACTORS:
                memory.pop(next(iter(memory)))
        if found is None:
            found = compute()
        with _LOCK:
            memory[full] = found
        return found


def _latest(pool: Pool, slot: tuple[Hashable, ...], key: Hashable, compute: Callable[[], Any]) -> Any:
    """What was computed last in a slot, if it was for this key; computed otherwise, and the old one let go."""
    held: dict[Hashable, Any] = pool.once(slot, dict)
    if key not in held:
        held.clear()
        held[key] = compute()
    return held[key]
