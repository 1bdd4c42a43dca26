"""The keys of a run's config, as pydantic models: types, ranges, defaults. :mod:`search.config` reads the file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]
Kind = Literal["attention", "mlp", "norm", "embedding", "head", "other"]
MergeMethod = Literal["task_arithmetic", "linear", "slerp"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Models(_Strict):
    """The base and its fine-tunes: folders in Hugging Face format, or ``zoo://`` references."""

    base: str
    experts: dict[Name, str] = Field(min_length=1)
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="dtype of the live model and of what is exported; the base's own if left out"
    )

    @field_validator("experts")
    @classmethod
    def _not_base(cls, experts: dict[str, str]) -> dict[str, str]:
        if "base" in experts:
            raise ValueError("an expert cannot be called 'base': that is the name of the base model")
        return experts


class Objective(_Strict):
    """A metric to push in its own direction, as ``evaluator.metric``."""

    metric: str
    expert: str | None = Field(
        None, description="the expert that has this skill: retention is measured against it; by default, the one "
        "that has the evaluator's name"
    )  # fmt: skip
    bounds: tuple[float, float] | None = Field(
        None, description="the range that counts, where the metric has none of its own"
    )


class Knots(_Strict):
    """Coefficients at k depths, linear in between."""

    knots: int = Field(ge=1, le=128)


class Blocks(_Strict):
    """Coefficients constant over n runs of depths."""

    blocks: int = Field(ge=1, le=1024)


class SpaceConfig(_Strict):
    """What may vary."""

    coefficient: tuple[float, float] = Field((0.0, 1.5), description="bounds of every coefficient, may be negative")
    granularity: Literal["model", "layer"] | Knots | Blocks = Field(default=Knots(knots=4))
    kinds: list[list[Kind]] | None = Field(
        None, description="module kinds that share their coefficients; by default every kind has its own"
    )
    methods: list[MergeMethod] = Field(
        default=["task_arithmetic"], min_length=1, description="several: the choice is a gene per method block"
    )
    method_blocks: int = Field(1, ge=1, description="runs of depths that choose their method together")
    normalize: bool = Field(False, description="divide by the sum of the coefficients; hides optima that amplify")

    @field_validator("granularity", mode="before")
    @classmethod
    def _one_of_four(cls, value: Any) -> Any:
        known = isinstance(value, Knots | Blocks) or value in ("model", "layer")
        if not known and not (isinstance(value, dict) and len(value) == 1 and set(value) <= {"knots", "blocks"}):
            raise ValueError(f"expected model, layer, {{knots: k}} or {{blocks: n}}, found {value!r}")
        return value

    @field_validator("coefficient")
    @classmethod
    def _ordered(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if not bounds[0] < bounds[1]:
            raise ValueError(f"expected [low, high] with low < high, found [{bounds[0]}, {bounds[1]}]")
        return bounds

    @field_validator("methods")
    @classmethod
    def _once(cls, methods: list[str]) -> list[str]:
        if len(set(methods)) != len(methods):
            raise ValueError("a method is named twice")
        return methods


class Budget(_Strict):
    """When the search ends. May grow between two starts; nothing else may change."""

    candidates: int = Field(ge=1, description="candidates in all, baselines among them")


class OptimizerConfig(BaseModel):
    """Which optimizer, and its own options beside its name."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The options that the optimizer itself validates."""
        return dict(self.model_extra or {})


class SearchSettings(_Strict):
    """How the space is searched."""

    optimizer: OptimizerConfig = OptimizerConfig(name="sms_emoa")
    seed: int = Field(0, ge=0)
    budget: Budget
    per_expert_share: float = Field(
        0.25, ge=0.0, le=1.0, description="share of the budget for the first stage, one coefficient per expert"
    )
    finalists: int = Field(16, ge=1, description="at most so many of the front are scored on the selection split")

    @field_validator("optimizer", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class EngineConfig(_Strict):
    """How the live model is asked."""

    kind: Literal["hf"] = "hf"
    device: str = Field("cpu", description="cpu, cuda, cuda:1, …")
    threads: int | None = Field(
        None, ge=1, description="CPU threads; what torch chooses on the first start if left out"
    )
    batch_tokens: int | None = Field(
        None, ge=64, description="padded tokens in a batch, at most; what is fast on the device if left out"
    )


class Config(_Strict):
    """A whole run."""

    name: Name
    models: Models
    evaluators: dict[Name, dict[str, Any]] = Field(min_length=1)
    objectives: list[Objective] = Field(min_length=1)
    space: SpaceConfig = SpaceConfig()
    search: SearchSettings
    engine: EngineConfig = EngineConfig()

    @field_validator("objectives", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, list):
            return [{"metric": each} if isinstance(each, str) else each for each in value]
        return value

    @model_validator(mode="after")
    def _objectives_once(self) -> Config:
        metrics = [each.metric for each in self.objectives]
        if len(set(metrics)) != len(metrics):
            raise ValueError("objectives: a metric is named twice")
        return self
