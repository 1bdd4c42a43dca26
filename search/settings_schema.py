"""The keys of a config's ``search:``: optimizer, seed, budget, on how many items, and how it ends."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from search.schema_base import Strict, without


class PlateauConfig(Strict):
    """The search ends when it does not get better any more."""

    candidates: int = Field(200, ge=1, description="over so many candidates of the last stage")
    gain: float = Field(0.001, ge=0.0, lt=1.0, description="the hypervolume grew by less than this share of what it is")


class Budget(Strict):
    """When the search ends: at whichever comes first. May grow between two starts; a finished run then goes on."""

    candidates: int = Field(ge=1, description="candidates in all, baselines among them")
    items: int | None = Field(
        None, ge=1, description="scored items in all, those reserved for the finalists among them; no limit if left out"
    )
    hours: float | None = Field(
        None,
        gt=0.0,
        allow_inf_nan=False,
        description="hours of searching, over all starts, without the finals; no limit if left out",
    )
    gpu_hours: float | None = Field(
        None,
        gt=0.0,
        allow_inf_nan=False,
        description="GPU-hours of materialising and evaluating in the search; no limit if left out",
    )
    plateau: PlateauConfig | None = Field(
        None, description="end when the hypervolume has stopped growing; never if left out"
    )

    @model_serializer(mode="wrap")
    def _said_only_where_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        for key in ("hours", "gpu_hours", "plateau"):
            without(data, key, None)
        return data


class FidelityConfig(Strict):
    """On how many items candidates are scored: on growing numbers of them, and stopped early, or on a minibatch.
    Baselines are scored on all."""

    rungs: tuple[int, ...] = Field(
        (40, 120, 360), description="items of each evaluator after which is decided whether a candidate goes on"
    )
    rule: Literal["race", "halving"] = Field(
        "race",
        description="race: stop what one better candidate provably dominates; halving: stop all but the best share",
    )
    alpha: float = Field(0.05, gt=0.0, lt=0.5, description="race: chance of stopping a candidate that is not worse")
    keep: float = Field(1 / 3, gt=0.0, lt=1.0, description="halving: the share that goes on from each rung")
    minibatch: int | None = Field(
        None,
        ge=1,
        description="in place of rungs: every candidate is scored on so many items of each evaluator, a stratified "
        "draw, and on no others",
    )
    redraw: Annotated[int, Field(ge=1)] | Literal["never"] = Field(
        "never",
        description="minibatch: after so many candidates other items are drawn (a generation, as EvoLLM does); never: "
        "one subset for the whole run",
    )

    @field_validator("rungs")
    @classmethod
    def _ascending(cls, rungs: tuple[int, ...]) -> tuple[int, ...]:
        if any(size < 1 for size in rungs) or any(one >= two for one, two in pairwise(rungs)):
            raise ValueError(f"expected ascending numbers of items >= 1, found {list(rungs)}")
        return rungs

    @model_validator(mode="before")
    @classmethod
    def _rungs_or_a_minibatch(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if given.get("minibatch") is None:
            if given.get("redraw", "never") != "never":
                raise ValueError("redraw: this is how often a minibatch is drawn; give minibatch: 200, say, or drop it")
            return given
        beside = [key for key in ("rungs", "rule", "alpha", "keep") if given.get(key) not in (None, ())]
        if beside:
            raise ValueError(
                f"{', '.join(beside)}: these stop candidates between rungs, and with a minibatch every candidate is "
                "scored on all of it; give rungs or a minibatch"
            )
        return {**given, "rungs": ()}

    @field_validator("redraw", mode="before")
    @classmethod
    def _so_often(cls, value: Any) -> Any:
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not whole and value != "never":
            raise ValueError(f"expected a number of candidates >= 1, or never, found {value!r}")
        return value

    @model_serializer(mode="wrap")
    def _of_one_kind(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        if self.minibatch is not None:
            return {"minibatch": self.minibatch, "redraw": self.redraw}
        return {key: value for key, value in data.items() if key not in ("minibatch", "redraw")}


class OptimizerConfig(BaseModel):
    """Which optimizer, and its own options beside its name."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The options that the optimizer itself validates."""
        return dict(self.model_extra or {})


class SearchSettings(Strict):
    """How the space is searched."""

    optimizer: OptimizerConfig = OptimizerConfig(name="auto")
    seed: int = Field(0, ge=0, description="of all that is drawn by chance")
    budget: Budget
    per_expert_share: float = Field(
        0.25, ge=0.0, le=1.0, description="share of the budget for the first stage, one coefficient per expert"
    )
    fidelity: FidelityConfig = Field(
        FidelityConfig(), description="off: every candidate is scored on every item at once"
    )
    finalists: int | None = Field(
        None,
        ge=1,
        description="at most so many are scored on the selection split; what the reserve pays for if left out",
    )
    reserve: float = Field(0.2, gt=0.0, lt=1.0, description="share of all scored items, kept for the finalists")
    control: bool = Field(False, description="a random search with the same budget, as one more baseline")
    holdout: bool = Field(
        True,
        description="score the chosen candidate and the baselines on the holdout at the end; false leaves it closed",
    )

    @field_validator("optimizer", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("fidelity", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return {"rungs": ()} if value in ("off", False) else value  # YAML reads a bare `off` as false

    @model_serializer(mode="wrap")
    def _closed_only_where_said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without(handler(self), "holdout", True)
