"""What a diagnosis says, as frozen records and as plain JSON.

In JSON, ``paretomerge-diagnosis/1``, what belongs to an expert is a list in the order of ``aliases``, and what belongs
to a pair of experts a list in the order of ``itertools.combinations(aliases, 2)``, so that any alias may be used. A
number that is not defined (the cosine of a task vector that is zero) is ``null`` there, and absent from the dicts here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import combinations
from typing import Any, Literal, get_args

from merging.bounded import printable
from merging.recipe import Group, MergingError

FORMAT = "paretomerge-diagnosis/1"

# Two experts, in the order of the aliases.
Pair = tuple[str, str]

# Which matrices are decomposed: all, a few of those that are alike but for their number, or none.
Spectra = Literal["all", "sampled", "off"]

_PER_EXPERT = ("norm", "norm_ratio", "changed", "effective_rank", "stable_rank", "energy_rank", "alignment")
_PER_PAIR = (
    "cosine", "pearson", "z", "euclidean", "overlap", "overlap_chance", "overlap_lift", "subspace_left",
    "subspace_left_chance", "subspace_right", "subspace_right_chance",
)  # fmt: skip
_CONFLICTS = ("sign_conflict", "sign_conflict_weighted")
_COUNTS = ("elements", "matrix_elements")


@dataclass(frozen=True)
class Settings:
    """How a diagnosis is made.

    Attributes:
        density: ρ in (0, 1]: of every tensor, the fraction of largest |τ| between which sign conflicts and overlaps are
            counted. At least one element; exact zeros are never among them.
        rank_k: how many leading singular directions of each task vector are compared.
        seed: which of equal |τ| are kept, and where estimates begin.
        spectra: ``all`` matrices are decomposed; ``sampled``: :data:`merging.diagnose.spectra.SAMPLED` of those whose
            names differ only in their numbers, spread evenly; ``off``: none.
        exact_rank: matrices of which the smaller side has up to so many rows are decomposed exactly; of larger ones the
            leading directions are found by subspace iteration, the rest is estimated.

    Raises:
        MergingError: a value is out of range.
    """

    density: float = 0.2
    rank_k: int = 16
    seed: int = 0
    spectra: Spectra = "all"
    exact_rank: int = 2048

    def __post_init__(self) -> None:
        if not _number(self.density) or not 0.0 < self.density <= 1.0:
            raise MergingError(f"expected a density in (0, 1], found {_shown(self.density)}; 0.2 is usual")
        if self.spectra not in get_args(Spectra):
            raise MergingError(f"expected spectra: all, sampled or off, found {_shown(self.spectra)}")
        for name, least in (("rank_k", 1), ("seed", 0), ("exact_rank", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise MergingError(f"expected {name} to be a whole number from {least} on, found {_shown(value)}")


@dataclass(frozen=True)
class Measures:
    """Of one scope: a tensor, a group, a kind, a depth, or the whole model (METHODS §3, items 1-8).

    Above a tensor, what comes from sums (norms, cosines, conflicts, overlaps) is computed from the summed inner
    products and counts, never as a mean of the tensors' values; what comes from the singular values of single matrices
    is their mean, weighted by elements. An undefined value is absent.

    Attributes:
        elements: how many there are, of one model.
        base_norm: ‖θ0‖.
        norm: alias -> ‖τ‖.
        norm_ratio: alias -> ‖τ‖/‖θ0‖; absent where the base is all zeros.
        changed: alias -> share of the elements whose τ is not exactly 0, in [0, 1].
        cosine: pair -> ⟨τ_i, τ_j⟩ / (‖τ_i‖·‖τ_j‖), in [−1, 1].
        pearson: pair -> correlation of the elements of the two task vectors, in [−1, 1] (model kinship, 2410.12613).
        z: pair -> cosine · √elements: how many standard deviations from what independent directions give.
        euclidean: pair -> ‖τ_i − τ_j‖.
        sign_conflict: pair -> share, of the positions that both keep at the density, at which their signs differ, in
            [0, 1]; independent signs give 1/2. "all" -> of the positions that two experts or more keep, the share at
            which not all signs agree.
        sign_conflict_weighted: at the same positions, mean of 1 − |Σ τ̂| / Σ |τ̂|: how much of the movement is cancelled.
        overlap: pair -> Jaccard index |S_i ∩ S_j| / |S_i ∪ S_j| of the positions that are kept, in [0, 1].
        overlap_chance: pair -> the same of expected counts if the positions were independent: ρ/(2−ρ) where both keep
            the fraction ρ.
        overlap_lift: pair -> overlap / overlap_chance.
        effective_rank: alias -> exp of the entropy of the normalised singular values (Roy and Vetterli 2007).
        stable_rank: alias -> ‖Δ‖_F² / ‖Δ‖_2².
        energy_rank: alias -> how many singular directions hold 90 % of ‖Δ‖_F².
        subspace_left: pair -> ‖U_iᵀU_j‖_F² / k of the leading k left singular vectors, in [0, 1].
        subspace_left_chance: pair -> what independent subspaces of those dimensions give on average.
        subspace_right, subspace_right_chance: pair -> the same of the right singular vectors.
        alignment: alias -> ‖P·Δ_t‖_F / ‖Δ_t‖_F, in [0, 1], with P the projection onto the leading left singular vectors
            of Σ Δ_t that hold 95 % of its energy (subspace alignment ratio, 2502.04959).
        interference: ‖(UᵀU − I)·S·(VᵀV − I)‖_1 of all tasks' leading directions side by side (singular task
            interference, 2412.00081), summed over the matrices; None without matrices.
        interference_ratio: the same over the sum of those singular values: 0 where no task touches another's
            directions, (T − 1)² where T tasks are equal. No share: many small overlaps come to more than that.
        matrix_elements: how many elements lie in the matrices that were decomposed.
    """

    elements: int
    base_norm: float
    norm: dict[str, float]
    norm_ratio: dict[str, float] = field(default_factory=dict)
    changed: dict[str, float] = field(default_factory=dict)
    cosine: dict[Pair, float] = field(default_factory=dict)
    pearson: dict[Pair, float] = field(default_factory=dict)
    z: dict[Pair, float] = field(default_factory=dict)
    euclidean: dict[Pair, float] = field(default_factory=dict)
    sign_conflict: dict[Pair | Literal["all"], float] = field(default_factory=dict)
    sign_conflict_weighted: dict[Pair | Literal["all"], float] = field(default_factory=dict)
    overlap: dict[Pair, float] = field(default_factory=dict)
    overlap_chance: dict[Pair, float] = field(default_factory=dict)
    overlap_lift: dict[Pair, float] = field(default_factory=dict)
    effective_rank: dict[str, float] = field(default_factory=dict)
    stable_rank: dict[str, float] = field(default_factory=dict)
    energy_rank: dict[str, float] = field(default_factory=dict)
    subspace_left: dict[Pair, float] = field(default_factory=dict)
    subspace_left_chance: dict[Pair, float] = field(default_factory=dict)
    subspace_right: dict[Pair, float] = field(default_factory=dict)
    subspace_right_chance: dict[Pair, float] = field(default_factory=dict)
    alignment: dict[str, float] = field(default_factory=dict)
    interference: float | None = None
    interference_ratio: float | None = None
    matrix_elements: int = 0

    @property
    def orthogonality(self) -> float | None:
        """Mean of |cosine| over the pairs: 0 for orthogonal task vectors; None where no pair has one."""
        return _mean(abs(each) for each in self.cosine.values())

    @property
    def kinship(self) -> float | None:
        """Mean Pearson correlation over the pairs: how alike the experts are; None where no pair has one."""
        return _mean(self.pearson.values())

    @property
    def imbalance(self) -> float | None:
        """Largest ‖τ‖ over the smallest; None where one is zero, or with fewer than two experts."""
        norms = self.norm.values()
        return max(norms) / min(norms) if len(norms) > 1 and min(norms) > 0.0 else None

    def as_data(self, aliases: Sequence[str]) -> dict[str, Any]:
        """Plain JSON, with lists as the module says.

        Args:
            aliases: of the diagnosis, in order.
        """
        pairs = list(combinations(aliases, 2))
        data: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name in _PER_EXPERT:
                value = [value.get(alias) for alias in aliases]
            elif each.name in _PER_PAIR:
                value = [value.get(pair) for pair in pairs]
            elif each.name in _CONFLICTS:
                value = {"all": value.get("all"), "pairs": [value.get(pair) for pair in pairs]}
            data[each.name] = value
        return data

    @staticmethod
    def from_data(data: Any, aliases: Sequence[str], where: str = "measures") -> Measures:
        """The inverse of :meth:`as_data`.

        Args:
            data: plain data, perhaps a stranger's.
            aliases: of the diagnosis, in order.
            where: what the data is, for messages.

        Raises:
            MergingError: it is no such data.
        """
        pairs = list(combinations(aliases, 2))
        found = _object(data, where)
        values: dict[str, Any] = {}
        for each in fields(Measures):
            there, name = found.get(each.name), f"{each.name} of {where}"
            if each.name in _COUNTS:
                values[each.name] = _count(there, name)
            elif each.name in _PER_EXPERT:
                values[each.name] = _keyed(there, aliases, name)
            elif each.name in _PER_PAIR:
                values[each.name] = _keyed(there, pairs, name)
            elif each.name in _CONFLICTS:
                both = _object(there, name)
                every: dict[Any, float] = _keyed(both.get("pairs"), pairs, name)
                every |= _keyed([both.get("all")], ["all"], name)
                values[each.name] = every
            else:
                values[each.name] = _float(there, name)
        if values["base_norm"] is None or len(values["norm"]) < len(aliases):
            raise MergingError(f"expected the norms of the base and of every expert in {where}, found some missing")
        return Measures(**values)


@dataclass(frozen=True)
class Diagnosis:
    """What the weights of a base and its fine-tunes say before any merge.

    Attributes:
        aliases: of the experts, in order.
        references: alias, the base's first -> folder, as it was given.
        contents: alias -> hash of the content (:attr:`merging.recipe.SourceRef.content`); empty where not asked for.
        settings: how it was made.
        whole: of the whole model.
        kinds: module kind -> its measures over all depths; of a model with several stacks of blocks, ``stack/kind``.
        depths: (stack, depth) -> measures of a block; what lies outside the blocks is in none.
        groups: group -> its measures.
        tensors: canonical name -> its measures; may have been left out.
        places: canonical name -> its group, of every tensor that is merged.
        notes: what a reader should know, one sentence each.
        seconds: that it took.
    """

    aliases: tuple[str, ...]
    references: dict[str, str]
    contents: dict[str, str]
    settings: Settings
    whole: Measures
    kinds: dict[str, Measures]
    depths: dict[tuple[str, int], Measures]
    groups: dict[Group, Measures]
    tensors: dict[str, Measures]
    places: dict[str, Group]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """All pairs of experts, in order."""
        return tuple(combinations(self.aliases, 2))

    @property
    def stacks(self) -> tuple[str, ...]:
        """Names of the stacks of blocks: ("",) where there is one, () where there is none."""
        return tuple(sorted({stack for stack, _ in self.depths}))

    def as_data(self, *, tensors: bool = True) -> dict[str, Any]:
        """Plain JSON.

        Args:
            tensors: with the measures of single tensors, of which a mixture of experts may have a hundred thousand.
        """
        aliases = self.aliases
        return {
            "format": FORMAT,
            "aliases": list(aliases),
            "references": dict(self.references),
            "contents": dict(self.contents),
            "settings": asdict(self.settings),
            "seconds": self.seconds,
            "notes": list(self.notes),
            "whole": self.whole.as_data(aliases),
            "kinds": {kind: each.as_data(aliases) for kind, each in self.kinds.items()},
            "depths": [
                {"stack": stack, "depth": depth, "measures": each.as_data(aliases)}
                for (stack, depth), each in self.depths.items()
            ],
            "groups": {str(group): each.as_data(aliases) for group, each in self.groups.items()},
            "tensors": {name: each.as_data(aliases) for name, each in self.tensors.items()} if tensors else {},
            "places": {name: str(group) for name, group in self.places.items()} if tensors else {},
        }

    @staticmethod
    def from_data(data: Any) -> Diagnosis:
        """The inverse of :meth:`as_data`.

        Args:
            data: plain data, perhaps a stranger's.

        Raises:
            MergingError: it is no diagnosis, or one of another format.
        """
        found = _object(data, "a diagnosis")
        if found.get("format") != FORMAT:
            raise MergingError(
                f"expected a diagnosis of the format {FORMAT}, found {_shown(found.get('format'))}; make it again with "
                "this version"
            )
        aliases = tuple(_texts(found.get("aliases"), "aliases of the diagnosis"))
        if len(set(aliases)) < len(aliases):
            raise MergingError("expected different aliases in the diagnosis, found one twice")

        def within(key: str) -> Mapping[str, Any]:
            return _object(found.get(key), f"{key} of the diagnosis")

        def read(key: str) -> dict[str, Measures]:
            return {
                name: Measures.from_data(each, aliases, f"{key} {printable(name)}")
                for name, each in within(key).items()
            }

        return Diagnosis(
            aliases=aliases,
            references=_text_map(within("references"), "references"),
            contents=_text_map(within("contents"), "contents"),
            settings=_settings(within("settings")),
            whole=Measures.from_data(found.get("whole"), aliases, "the whole model"),
            kinds=read("kinds"),
            depths=dict(_depth(each, aliases) for each in _list(found.get("depths"), "depths of the diagnosis")),
            groups={Group.parse(name): each for name, each in read("groups").items()},
            tensors=read("tensors"),
            places={name: Group.parse(text) for name, text in _text_map(within("places"), "places").items()},
            notes=tuple(_texts(found.get("notes"), "notes of the diagnosis")),
            seconds=_float(found.get("seconds"), "seconds of the diagnosis") or 0.0,
        )


def _settings(data: Mapping[str, Any]) -> Settings:
    known = {each.name for each in fields(Settings)}
    unknown = sorted(data.keys() - known)
    if unknown:
        raise MergingError(
            f"expected the settings of a diagnosis ({', '.join(sorted(known))}), found {_shown(unknown[0])}"
        )
    return Settings(**data)


def _depth(data: Any, aliases: Sequence[str]) -> tuple[tuple[str, int], Measures]:
    found = _object(data, "a depth of the diagnosis")
    stack, depth = found.get("stack"), _count(found.get("depth"), "a depth of the diagnosis")
    if not isinstance(stack, str):
        raise MergingError(f"expected a text as the stack of a depth of the diagnosis, found {_shown(stack)}")
    return (stack, depth), Measures.from_data(found.get("measures"), aliases, f"depth {depth}")


def _mean(values: Iterable[float]) -> float | None:
    held = list(values)
    return math.fsum(held) / len(held) if held else None


def _object(data: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise MergingError(f"expected {what} to be a JSON object, found {_shown(data)}")
    return data


def _list(data: Any, what: str) -> list[Any]:
    if not isinstance(data, list):
        raise MergingError(f"expected {what} to be a list, found {_shown(data)}")
    return data


def _texts(data: Any, what: str) -> list[str]:
    found = _list(data, what)
    if not all(isinstance(each, str) for each in found):
        raise MergingError(f"expected {what} to be a list of texts, found something else among them")
    return found


def _text_map(data: Mapping[str, Any], what: str) -> dict[str, str]:
    if not all(isinstance(each, str) for each in data.values()):
        raise MergingError(f"expected {what} of the diagnosis to be texts, found something else among them")
    return dict(data)


def _keyed(data: Any, keys: Sequence[Any], what: str) -> dict[Any, float]:
    """The numbers of a list under these keys; those that are not defined are left out."""
    values = _list(data, what)
    if len(values) != len(keys):
        raise MergingError(f"expected {len(keys)} numbers in {what}, found {len(values)}")
    numbers = [_float(value, what) for value in values]
    return {key: number for key, number in zip(keys, numbers, strict=True) if number is not None}


def _float(data: Any, what: str) -> float | None:
    if data is None:
        return None
    if not _number(data):
        raise MergingError(f"expected finite numbers or null in {what}, found {_shown(data)}")
    return float(data)


def _count(data: Any, what: str) -> int:
    if type(data) is not int or data < 0:
        raise MergingError(f"expected {what} to be a whole number from 0 on, found {_shown(data)}")
    return data


def _number(data: Any) -> bool:
    """Whether it is a number that a float can hold."""
    return type(data) in (int, float) and abs(data) < 1e300


def _shown(data: Any) -> str:
    return printable(repr(data))
