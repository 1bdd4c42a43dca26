"""The keys of a run's config, as pydantic models: types, ranges, defaults. :mod:`search.config` reads the file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from search.schema_base import Strict, without
from search.settings_schema import Budget as Budget
from search.settings_schema import FidelityConfig as FidelityConfig
from search.settings_schema import OptimizerConfig as OptimizerConfig
from search.settings_schema import PlateauConfig as PlateauConfig
from search.settings_schema import SearchSettings as SearchSettings
from search.space_schema import Scalar
from search.space_schema import SpaceConfig as SpaceConfig

_LONGEST_TIMEOUT = 1e9
"""Seconds: 30 years. Timers of operating systems end somewhere beyond."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]


class VirtualConfig(Strict):
    """A merge that is made once, when the run is set up, and is then one more expert to the search."""

    method: str = Field(min_length=1, description="a method of `paretomerge ls methods`, or path/to/file.py:ClassName")
    parameters: dict[str, Scalar] = Field(default_factory=dict, description="those not named keep their defaults")
    of: list[Name] | None = Field(None, description="which experts it merges; all of them if left out")
    coefficients: float | dict[Name, float] | None = Field(
        None,
        description="one for all, or one for each (0 for those not named), where the method has any; its own default, "
        "or 1, if left out",
    )

    @field_validator("of")
    @classmethod
    def _somebody(cls, of: list[str] | None) -> list[str] | None:
        if of is not None and not of:
            raise ValueError("expected one or more experts, found none; leave `of` out to merge all of them")
        return of


class Models(Strict):
    """The base and its fine-tunes: folders in Hugging Face format, or ``zoo://`` and ``hub://`` references. An expert
    may also be an adapter as PEFT saves it, or a vector of the store."""

    base: str = Field(
        description="the model that the experts are fine-tunes of: a folder, zoo://… or hub://OWNER/NAME@REVISION"
    )
    experts: dict[Name, str] = Field(
        min_length=1,
        description="name -> what the base was fine-tuned to: a model of the same architecture, a PEFT adapter, or a "
        "task vector; a folder, zoo://…, vector://NAME or hub://OWNER/NAME@REVISION",
    )
    derived: dict[Name, str] = Field(
        default_factory=dict,
        description="further experts as expressions in task vectors: legal + 0.8*(real - synthetic), base - toxic",
    )
    virtual: dict[Name, VirtualConfig] = Field(
        default_factory=dict, description="merges of the experts that the search takes for experts too"
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="dtype of the live model and of what is exported; the base's own if left out"
    )

    @field_validator("experts")
    @classmethod
    def _not_base(cls, experts: dict[str, str]) -> dict[str, str]:
        if "base" in experts:
            raise ValueError("an expert cannot be called 'base': that is the name of the base model")
        return experts

    @model_serializer(mode="wrap")
    def _said_only_where_there_are_any(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without(without(handler(self), "virtual", {}), "derived", {})


class CalibrationConfig(Strict):
    """A few unlabelled inputs for every expert, which calibrated methods look at its layers' inputs on."""

    items: int = Field(256, ge=1, description="inputs for each expert, at most; what there are if there are fewer")
    seed: int = Field(0, ge=0, description="which of them, where there are more")
    inputs: dict[Name, dict[str, Any]] = Field(
        default_factory=dict,
        description="expert -> {evaluator: name}, or {data: …} with text, chat, image or audio; by default the "
        "evaluator that has the expert's name, or whose objective names it",
    )


class Objective(Strict):
    """A metric to push in its own direction, as ``evaluator.metric``."""

    metric: str = Field(description="evaluator.metric, such as math.accuracy")
    expert: str | None = Field(
        None, description="the expert that has this skill: retention is measured against it; by default, the one "
        "that has the evaluator's name"
    )  # fmt: skip
    bounds: tuple[float, float] | None = Field(
        None, description="the range that counts, where the metric has none of its own"
    )


class ConstraintConfig(Strict):
    """A bound that a candidate must keep, judged by the confidence bound of its score."""

    at_least: float | None = Field(None, description="the score must be shown to be so high; in the metric's unit")
    at_most: float | None = Field(None, description="the score must be shown to be so low; in the metric's unit")
    confidence: float = Field(
        0.9, ge=0.5, lt=1.0, description="one-sided: 0.9 wants the 90 % bound of the score inside; 0.5 the score itself"
    )

    @model_validator(mode="after")
    def _one_side(self) -> ConstraintConfig:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("expected one of at_least and at_most")
        return self


class EngineConfig(Strict):
    """How the live model is asked."""

    kind: Literal["hf", "vllm"] = Field(
        "hf", description="hf: the live model is asked itself; vllm: vLLM takes its weights over (an extra to install)"
    )
    device: str = Field("cpu", description="cpu, cuda, cuda:1, …")
    threads: int | None = Field(
        None, ge=1, le=4096, description="CPU threads; what torch chooses on the first start if left out"
    )
    batch_tokens: int | None = Field(
        None, ge=64, description="padded tokens in a batch, at most; what is fast on the device if left out"
    )
    vllm: dict[str, Any] = Field(default_factory=dict, description="further arguments of vllm.LLM, where kind is vllm")

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> EngineConfig:
        if self.kind == "hf" and self.vllm:
            raise ValueError("vllm: these are arguments of vLLM, and kind is hf; drop them, or set kind: vllm")
        if self.kind == "vllm" and self.batch_tokens is not None:
            raise ValueError("batch_tokens: vLLM makes its own batches; use vllm: {max_num_batched_tokens: …}")
        return self


class WorkersConfig(Strict):
    """Who scores the candidates. May change between two starts, but for the schedule."""

    kind: Literal["inline", "ray"] = Field(
        "inline", description="inline: this process; ray: actors of Ray, here or on a cluster"
    )
    count: int | None = Field(
        None, ge=1, description="workers; with ray, as many as the cluster has GPUs for (1 on CPUs) if left out"
    )
    schedule: Literal["strict", "steady"] | None = Field(
        None,
        description="strict: the same seed gives the same run, whatever arrives when; steady: nobody ever waits. "
        "strict inline and steady with ray if left out",
    )
    address: str | None = Field(
        None, description="of a Ray cluster, host:port or auto; Ray is started on this machine if left out"
    )
    gpus: float | None = Field(
        None,
        ge=0.0,
        description="GPUs of each worker: a fraction shares one, several spread a large model; 1 where engine.device "
        "is cuda and 0 elsewhere if left out",
    )
    threads: int | None = Field(
        None, ge=1, le=4096, description="CPU threads of each worker; the cores divided by the workers if left out"
    )
    timeout: float | Literal["auto"] | None = Field(
        "auto",
        description="seconds after which the evaluation of a candidate, or of its next rung, has failed; auto: 20 "
        "times the longest one so far, and 10 minutes at least; null: never",
    )
    attempts: int = Field(
        5, ge=1, description="a candidate whose evaluation ended its process so many times has failed"
    )

    @field_validator("timeout", mode="before")
    @classmethod
    def _some_time(cls, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value not in (None, "auto") and not (number and 0.0 < value < _LONGEST_TIMEOUT):
            raise ValueError(f"expected seconds > 0, auto or null, found {value!r}")
        return value

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> WorkersConfig:
        if self.kind == "inline":
            for name in ("address", "gpus"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name}: this is a setting of kind: ray, and kind is inline; drop it, or set kind"
                    )
            if self.count not in (None, 1):
                raise ValueError("count: one process is one worker; set kind: ray for more of them")
        return self


def _short_forms(value: Any) -> Any:
    """Objectives: a metric's name stands for an objective."""
    if isinstance(value, list):
        return [{"metric": each} if isinstance(each, str) else each for each in value]
    return value


class FirstConfig(Strict):
    """A search of its own before this one, over the same models, evaluators, engine and workers."""

    name: Name = Field(description="what it chooses is an expert of this name in the search that follows")
    space: SpaceConfig = SpaceConfig()
    search: SearchSettings
    objectives: list[Objective] | None = Field(
        None, min_length=1, description="metrics to push, as evaluator.metric; those of the whole run if left out"
    )

    _short = field_validator("objectives", mode="before")(_short_forms)

    @field_validator("objectives")
    @classmethod
    def _once(cls, objectives: list[Objective] | None) -> list[Objective] | None:
        metrics = [each.metric for each in objectives or ()]
        if len(set(metrics)) != len(metrics):
            raise ValueError("a metric is named twice")
        return objectives


TrackerName = Literal["tensorboard", "wandb"]


class Config(Strict):
    """A whole run."""

    name: Name = Field(description="of the run: its directory is runs/NAME")
    models: Models
    calibration: CalibrationConfig | None = Field(
        None, description="inputs of the experts, for methods that look at more than weights"
    )
    evaluators: dict[Name, dict[str, Any]] = Field(
        min_length=1, description="name -> {type: …} with the options of that type; `paretomerge explain TYPE`"
    )
    objectives: list[Objective] = Field(
        min_length=1, description="metrics to push, as evaluator.metric; the search finds their Pareto front"
    )
    constraints: dict[str, ConstraintConfig] = Field(
        default_factory=dict, description="by evaluator.metric, or by evaluator where it has one metric"
    )
    first: FirstConfig | None = Field(
        None, description="a search before this one, whose choice is one more expert here: a hybrid"
    )
    space: SpaceConfig = SpaceConfig()
    search: SearchSettings
    engine: EngineConfig = EngineConfig()
    workers: WorkersConfig = WorkersConfig()
    trackers: dict[TrackerName, dict[str, Any]] = Field(
        default_factory=dict, description="experiment trackers that hear of every candidate, with their own options"
    )

    _short = field_validator("objectives", mode="before")(_short_forms)

    @model_validator(mode="after")
    def _objectives_once(self) -> Config:
        metrics = [each.metric for each in self.objectives]
        if len(set(metrics)) != len(metrics):
            raise ValueError("objectives: a metric is named twice")
        return self

    @model_serializer(mode="wrap")
    def _said_only_where_it_stands(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data = without(without(handler(self), "calibration", None), "first", None)
        without(data, "workers", WorkersConfig().model_dump(mode="json"))
        return without(data, "trackers", {})
