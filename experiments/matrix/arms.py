"""What is compared: merge methods with the grids that their parameters are chosen from, and searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from merging.methods.registry import get
from merging.recipe import Assignment, Value

_EACH = tuple(round(0.1 * k, 1) for k in range(1, 13))
_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
_PRODUCT_SCALES = (*_SCALES, 3.0)
_SHRINKS = (0.1, 0.5, 0.9, 1.0)


@dataclass(frozen=True)
class Arm:
    """A method for the whole model, the same for every tensor.

    Attributes:
        title: of its rows.
        method: as recipes write it.
        fixed: parameters; what is per source has this value for every source.
        steps: (parameter, grid) chosen one after another, each with those before at their best.
        mean: every coefficient is 1 / sources.
        ours: whether it is one of the matrix and calibrated methods.
    """

    title: str
    method: str
    fixed: Mapping[str, Value] = field(default_factory=dict)
    steps: tuple[tuple[str, tuple[Value, ...]], ...] = ()
    mean: bool = False
    ours: bool = False

    def assignment(self, experts: Sequence[str], chosen: Mapping[str, Value]) -> Assignment:
        """For these experts, with what was chosen so far."""
        values = {**self.fixed, **chosen}
        if self.mean:
            values["coefficient"] = 1.0 / len(experts)
        one_each = {each.name for each in get(self.method).parameters if each.per_source}
        own = {name: value for name, value in values.items() if name in one_each}
        shared = {name: value for name, value in values.items() if name not in one_each}
        return Assignment.of(self.method, dict.fromkeys(experts, own), **shared)

    @property
    def preset(self) -> Arm:
        """The same with nothing to choose: every parameter at its default."""
        return Arm(f"{self.title}, preset", self.method, self.fixed, (), self.mean, self.ours)


@dataclass(frozen=True)
class SearchArm:
    """A run of the search.

    Attributes:
        title: of its rows.
        changes: overrides of the family's config.
        virtual: methods whose products take part as virtual experts.
        ours: whether the matrix and calibrated methods take part.
    """

    title: str
    changes: tuple[str, ...] = ()
    virtual: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        return bool(self.virtual)


_SCALED = (("scale", _PRODUCT_SCALES),)

METHODS = (
    Arm("average", "task_arithmetic", mean=True),
    Arm("single λ", "task_arithmetic", {"coefficient": 1.0}, (("coefficient", _EACH),)),
    Arm("TIES", "ties", {"coefficient": 1.0, "density": 0.2}, (("scale", _SCALES),)),
    Arm("DARE-TIES", "dare_ties", {"coefficient": 1.0, "density": 0.5}),
    Arm("Fisher", "fisher", steps=_SCALED, ours=True),
    Arm("RegMean", "regmean", steps=(("alpha", _SHRINKS), *_SCALED), ours=True),
    Arm("RegMean++", "regmean_plus", steps=_SCALED, ours=True),
    Arm("TSV-M", "tsv_m", steps=_SCALED, ours=True),
    Arm("Iso-C", "iso_c", steps=_SCALED, ours=True),
    Arm("Iso-CTS", "iso_cts", steps=_SCALED, ours=True),
    Arm("WUDI", "wudi", steps=(("regularisation", (0.001, 0.03, 0.3)), *_SCALED), ours=True),
)


def searches(virtual: Sequence[str]) -> tuple[SearchArm, ...]:
    """The searches, all with the family's optimizer, budget and items.

    Args:
        virtual: methods of the virtual experts; without any, only the searches over the experts themselves.
    """
    one, said = ("space.granularity=model",), ", ".join(virtual)
    plain = (SearchArm("search, one λ each: experts", one), SearchArm("search, by layer: experts"))
    if not virtual:
        return plain
    return (
        *plain,
        SearchArm(f"search, one λ each: experts, {said}", one, tuple(virtual)),
        SearchArm(f"search, by layer: experts, {said}", (), tuple(virtual)),
    )
