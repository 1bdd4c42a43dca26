"""mergekit's merge methods and ours: names, parameters and mergekit's defaults, read in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from merging.methods.contract import suggest
from merging.recipe import MergingError, Value

# Read by mergekit for some methods, with no effect on the result; configs carry it along from one method to the next.
NO_EFFECT = ("int8_mask",)


@dataclass(frozen=True)
class Term:
    """One parameter of mergekit.

    Attributes:
        ours: its name in a recipe.
        default: what mergekit takes where a config says nothing; None: a config must say it.
    """

    ours: str
    default: Value | None = None

    @property
    def type(self) -> type[Value]:
        """Type of its values; numbers that must be given are floats."""
        return float if self.default is None else type(self.default)


@dataclass(frozen=True)
class MergekitMethod:
    """How a method of mergekit reads.

    Attributes:
        per_source: mergekit's name -> term, one value per model.
        shared: mergekit's name -> term, one value per tensor.
        base: what the base_model is: "model" one among the models; "origin" where task vectors begin, required and not
            among the sources; "optional" the same where it is given, else weights are merged; "arc" the first end of
            a slerp.
        convention: the recipe says ``convention: mergekit``, because ours has the paper's as well.
    """

    per_source: Mapping[str, Term]
    shared: Mapping[str, Term]
    base: Literal["model", "origin", "optional", "arc"] = "origin"
    convention: bool = False

    def check_parameter(self, key: str, method: str, where: str, *, per_source: bool) -> None:
        """Refuse a parameter that the method does not read there.

        Raises:
            MergingError: with the nearest name, or where it belongs.
        """
        known = (*self.per_source, *(() if per_source else self.shared))
        if key in known or key in NO_EFFECT:
            return
        shared = "; it is shared: write it in the top level's parameters" if key in self.shared else ""
        raise MergingError(f"{where}: {method} has no parameter {key!r} here{shared or suggest(key, known)}")


_WEIGHT = {"weight": Term("coefficient")}
_TRIM = _WEIGHT | {"density": Term("density", 1.0)}


def _vectors(normalize: bool, rescale: bool | None = None) -> dict[str, Term]:
    shared: dict[str, Term] = {"lambda": Term("scale", 1.0), "normalize": Term("normalize", normalize)}
    return shared if rescale is None else shared | {"rescale": Term("rescale", rescale)}


_DELLA = _TRIM | {"epsilon": Term("epsilon", 0.15)}
_TAILS = _TRIM | {"gamma": Term("gamma", 0.01)}
_EPSILON = {"epsilon": Term("epsilon", 1e-5)}

METHODS: Mapping[str, MergekitMethod] = {
    "linear": MergekitMethod(_WEIGHT, {"normalize": Term("normalize", True)}, base="model"),
    "slerp": MergekitMethod({}, {"t": Term("t")}, base="arc"),
    "nuslerp": MergekitMethod(
        _WEIGHT,
        {"nuslerp_flatten": Term("flatten", True), "nuslerp_row_wise": Term("row_wise", False)},
        base="optional",
    ),
    "multislerp": MergekitMethod(
        _WEIGHT, {"normalize_weights": Term("normalize", True), "eps": Term("eps", 1e-8)}, base="optional"
    ),
    "karcher": MergekitMethod({}, {"max_iter": Term("max_iter", 10), "tol": Term("tol", 1e-5)}, base="model"),
    "task_arithmetic": MergekitMethod(_WEIGHT, _vectors(normalize=False)),
    "ties": MergekitMethod(_TRIM, _vectors(normalize=True, rescale=False), convention=True),
    "dare_linear": MergekitMethod(_TRIM, _vectors(normalize=False, rescale=True), convention=True),
    "dare_ties": MergekitMethod(_TRIM, _vectors(normalize=False, rescale=True), convention=True),
    "della": MergekitMethod(_DELLA, _vectors(normalize=True, rescale=True), convention=True),
    "della_linear": MergekitMethod(_DELLA, _vectors(normalize=False, rescale=True), convention=True),
    "breadcrumbs": MergekitMethod(_TAILS, _vectors(normalize=False, rescale=False), convention=True),
    "breadcrumbs_ties": MergekitMethod(_TAILS, _vectors(normalize=False, rescale=False), convention=True),
    "sce": MergekitMethod({}, {"select_topk": Term("density", 1.0)}, convention=True),
    "model_stock": MergekitMethod({}, {"filter_wise": Term("row_wise", False)}, convention=True),
    "arcee_fusion": MergekitMethod({}, {}),
    "nearswap": MergekitMethod({}, {"t": Term("t")}),
    "ram": MergekitMethod({}, _EPSILON),
    "ramplus_tl": MergekitMethod({}, _EPSILON | {"r": Term("r", 0.1), "alpha": Term("alpha", 0.2)}),
    "passthrough": MergekitMethod({"scale": Term("scale", 1.0)}, {}, base="model"),
}
