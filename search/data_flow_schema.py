"""The keys of a config's ``space.data_flow:``: paths through the layers of models. :mod:`search.space.paths` gives them
their meaning."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from search.schema_base import Strict

MOST_REPETITIONS = 64
MOST_HOPS = 4096
LARGEST_SCALE = 100.0

_OFF = ("off", False)  # YAML reads a bare `off` as false


class DataFlowConfig(Strict):
    """Paths through the layers of models, each layer with a scale: the data-flow space of EvoLLM (arXiv 2403.13187).

    The slots of a path are all layers of all models, repetition by repetition; a path is the slots that are included.
    """

    models: list[str] | None = Field(
        None,
        min_length=1,
        description="whose layers: experts of any sort, or base; the first is model A, which also gives what lies "
        "outside the layers. All experts if left out",
    )
    repetitions: int = Field(
        3, ge=1, le=MOST_REPETITIONS, description="passes over all layers; each may occur so often in a path"
    )
    arrangement: Literal["models", "layers"] = Field(
        "models", description="of a pass: models: all layers of A, then all of B; layers: A0 B0 A1 B1 …"
    )
    shift: int = Field(
        0, ge=0, le=MOST_HOPS, description="a gene for every slot moves it by so many places at most; 0: fixed order"
    )
    scales: tuple[float, float] | Literal["off"] = Field(
        (0.4, 1.5),
        description="bounds of what a layer's input is multiplied by, 1 between them; off: every scale is 1",
    )
    scale_per: Literal["hop", "pair"] = Field(
        "hop", description="hop: a scale for every slot; pair: one for every (layer before, layer), the paper's W"
    )
    ends: Literal["fixed", "free"] = Field(
        "fixed", description="fixed: every path begins with the first layer of A and ends with its last"
    )
    depth: int | None = Field(
        None, ge=1, le=MOST_HOPS, description="layers of a path, at most; twice those of A if left out"
    )
    indicators: Literal["auto", "threshold", "choice"] = Field(
        "auto",
        description="whether a slot is included. threshold: a real gene, yes above 0.5; choice: a category; auto: "
        "threshold for the optimizer cma, choice for others",
    )

    @field_validator("scales", mode="before")
    @classmethod
    def _around_one(cls, value: Any) -> Any:
        if value in _OFF:
            return "off"
        try:
            low, high = map(float, value)  # YAML reads 1e-3 as a text
            around = not isinstance(value, str) and 0.0 < low < 1.0 < high <= LARGEST_SCALE
        except (TypeError, ValueError):
            around = False
        if not around:
            raise ValueError(
                f"expected [low, high] with 0 < low < 1 < high <= {LARGEST_SCALE:g}, or off, found {value!r}"
            )
        return value

    @field_validator("models")
    @classmethod
    def _once(cls, models: list[str] | None) -> list[str] | None:
        for name in models or ():
            if (models or []).count(name) > 1:
                raise ValueError(f"the model {name} is named twice; repetitions: n gives its layers n times")
        return models

    @model_serializer(mode="wrap")
    def _said_only_where_it_means_something(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        silent = [key for key in ("models", "depth") if data[key] is None]
        silent += ["scale_per"] if self.scales == "off" else []
        return {key: value for key, value in data.items() if key not in silent}
