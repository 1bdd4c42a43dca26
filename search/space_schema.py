"""The keys of a config's ``space:``: what may vary. :mod:`search.space` gives them their meaning."""

from __future__ import annotations

import math
import unicodedata
from typing import Annotated, Any, Final, Literal

from pydantic import (
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
    field_validator,
    model_serializer,
)

from search.data_flow_schema import DataFlowConfig
from search.schema_base import Strict

Kind = Literal["attention", "mlp", "norm", "embedding", "head", "other"]

Scalar = StrictBool | StrictInt | StrictFloat | StrictStr

PLAIN_GRANULARITIES = ("model", "layer", "tensor", "lines")
KNOTS_OR_BLOCKS = ("knots", "blocks")


AUTO: Final = "auto"

_MOST_BLOCKS = 1024
MOST_KNOTS = 128
MOST_OF_VARIABLE = 1000.0
"""A variable's largest size: coefficients have 12 digits, from which it is read back in steps of 1e-8."""


class Knots(Strict):
    """Coefficients at k depths, linear in between."""

    knots: int = Field(ge=1, le=MOST_KNOTS, description="at how many depths")


def _count(value: Any, most: float, words: str) -> Any:
    """A number of blocks, or auto; in our words, since a union would complain once for each."""
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0
    if value != AUTO and not (whole and 1 <= value <= most):
        raise ValueError(f"expected a whole number {words}, or auto, found {value!r}")
    return value


def _blocks(value: Any) -> Any:
    return _count(value, _MOST_BLOCKS, f"from 1 to {_MOST_BLOCKS}")


def _method_blocks(value: Any) -> Any:
    return _count(value, math.inf, "of 1 or more")  # more than there are depths always meant one for each


class Blocks(Strict):
    """Coefficients constant over n runs of depths."""

    blocks: Annotated[int, Field(ge=1, le=_MOST_BLOCKS)] | Literal["auto"] = Field(
        description="how many runs of depths; auto: as many as the task vectors' statistics support, where these change"
    )

    _checked = field_validator("blocks", mode="before")(_blocks)


class MethodConfig(Strict):
    """A merge method with some of its parameters set or searched; the others keep the method's defaults."""

    name: str = Field(min_length=1, description="a method of `paretomerge ls methods`, or path/to/file.py:ClassName")
    parameters: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict,
        description="a value fixes a parameter; [low, high] makes a number a gene, [a, b, …] a word or a yes/no",
    )

    @field_validator("parameters", mode="before")
    @classmethod
    def _scalars_or_lists(cls, parameters: Any) -> Any:
        if not isinstance(parameters, dict):
            raise ValueError(f"expected parameters by name, found {parameters!r}")
        for name, value in parameters.items():
            scalars = value if isinstance(value, list) and value else [value]
            if not all(isinstance(each, bool | int | float | str) for each in scalars):
                raise ValueError(f"expected a value for {name}, or a list of values, found {value!r}")
        return parameters


def _kind_of_method(value: Any) -> str:
    return "str" if isinstance(value, str) else "MethodConfig"


_Method = Annotated[str, Tag("str")] | Annotated[MethodConfig, Tag("MethodConfig")]


def _check_pair(name: Any, bounds: Any) -> None:
    """Bounds of a variable, in our words."""
    try:
        low, high = map(float, bounds)  # YAML reads 1e-3 as a text
        ordered = not isinstance(bounds, str) and -MOST_OF_VARIABLE <= low < high <= MOST_OF_VARIABLE
    except (TypeError, ValueError):
        ordered = False
    if not ordered:
        raise ValueError(
            f"expected [low, high] with low < high for {name}, from -{MOST_OF_VARIABLE:g} to {MOST_OF_VARIABLE:g}, "
            f"found {bounds!r}"
        )


class SpaceConfig(Strict):
    """What may vary."""

    coefficient: tuple[float, float] = Field((0.0, 1.5), description="bounds of every coefficient, may be negative")
    granularity: Literal["model", "layer", "tensor", "lines"] | Knots | Blocks = Field(
        default=Knots(knots=4),
        description="model: one coefficient per expert; lines: α + β·depth, two numbers per expert (LiNeS)",
    )
    kinds: list[list[Kind]] | None = Field(
        None, description="module kinds that share their coefficients; by default every kind has its own"
    )
    shared: bool = Field(False, description="one set of coefficients for all experts")
    experts: list[str] | None = Field(
        None, min_length=1, description="which of the experts, derived and virtual ones are merged; all if left out"
    )
    expression: str | None = Field(
        None,
        description="such as legal + a*(real - synthetic): the experts' coefficients are those of an expression, and "
        "its variables are searched in their place",
    )
    variables: dict[str, tuple[float, float]] = Field(
        default_factory=dict, description="name -> [low, high] of every variable of the expression"
    )
    methods: list[Annotated[_Method, Discriminator(_kind_of_method)]] = Field(
        default=["task_arithmetic"], min_length=1, description="several: the choice is a gene per method block"
    )
    method_blocks: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        1, description="runs of depths that choose their method and densities together; auto: as for blocks"
    )
    method_kinds: bool = Field(
        False,
        description="every kind set of `kinds` chooses its method, densities and searched parameters for itself, in "
        "every run of depths",
    )
    density: tuple[float, float] = Field(
        (0.1, 1.0), description="bounds of the kept fraction, for methods that have one; in steps of 1/64"
    )
    shared_density: bool = Field(False, description="one density for all experts")
    normalize: bool = Field(
        False,
        description="divide task arithmetic and its like by the sum of the coefficients; hides optima that amplify",
    )
    data_flow: DataFlowConfig | None = Field(
        None, description="paths through the models' layers in place of merged weights; stands alone"
    )

    @field_validator("granularity", mode="before")
    @classmethod
    def _one_of_six(cls, value: Any) -> Any:
        known = isinstance(value, Knots | Blocks) or value in PLAIN_GRANULARITIES
        if not known and not (isinstance(value, dict) and len(value) == 1 and set(value) <= set(KNOTS_OR_BLOCKS)):
            plain = ", ".join(PLAIN_GRANULARITIES)
            raise ValueError(f"expected {plain}, {{knots: k}}, {{blocks: n}} or {{blocks: auto}}, found {value!r}")
        if isinstance(value, dict) and "blocks" in value:
            _blocks(value["blocks"])
        if isinstance(value, dict) and "knots" in value:
            knots = value["knots"]
            whole = isinstance(knots, int | float) and not isinstance(knots, bool) and knots % 1 == 0
            if not (whole and 1 <= knots <= MOST_KNOTS):
                raise ValueError(f"expected a whole number of knots from 1 to {MOST_KNOTS}, found {knots!r}")
        return value

    _counted = field_validator("method_blocks", mode="before")(_method_blocks)

    @field_validator("variables", mode="before")
    @classmethod
    def _pairs(cls, variables: Any) -> Any:
        if not isinstance(variables, dict):
            return variables
        for name, bounds in variables.items():
            _check_pair(name, bounds)
        # as the parser of expressions reads names: the micro sign is a letter µ
        return {unicodedata.normalize("NFKC", str(name)): bounds for name, bounds in variables.items()}

    @field_validator("coefficient")
    @classmethod
    def _ordered(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if not (bounds[0] < bounds[1] and math.isfinite(bounds[1] - bounds[0])):
            raise ValueError(f"expected [low, high] with low < high, found [{bounds[0]}, {bounds[1]}]")
        return bounds

    @field_validator("density")
    @classmethod
    def _fractions(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if not 0.0 <= bounds[0] < bounds[1] <= 1.0:
            raise ValueError(f"expected [low, high] with 0 <= low < high <= 1, found [{bounds[0]}, {bounds[1]}]")
        return bounds

    @field_validator("methods", mode="before")
    @classmethod
    def _names_or_mappings(cls, methods: Any) -> Any:
        if not isinstance(methods, list):
            raise ValueError(f"expected a list of methods, such as [task_arithmetic, ties], found {methods!r}")
        for each in methods:
            if not isinstance(each, str | dict | MethodConfig):
                raise ValueError(f"expected the name of a method, or {{name: …, parameters: …}}, found {each!r}")
        return methods

    @model_serializer(mode="wrap")
    def _said_only_where_it_means_something(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        flow = data.pop("data_flow", None)
        if flow is not None:
            return {"data_flow": flow}
        silent = ["experts"] if self.experts is None else []
        silent += [] if self.method_kinds else ["method_kinds"]
        silent += ["expression", "variables"] if self.expression is None else ["coefficient", "shared", "experts"]
        return {key: value for key, value in data.items() if key not in silent}

    @field_validator("methods")
    @classmethod
    def _once(cls, methods: list[str | MethodConfig]) -> list[str | MethodConfig]:
        names = [each if isinstance(each, str) else each.name for each in methods]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the method {name} is named twice")
        return methods
