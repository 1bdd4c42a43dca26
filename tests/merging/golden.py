"""The golden merges of mergekit 0.1.5, and ours of the same configs through the command."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import reference
import torch
from torch import Tensor
from typer.testing import CliRunner

from merging.checkpoint import Checkpoint
from merging.configs import read_config
from merging.recipe import Recipe
from merging.restack import for_recipe
from merging.sources import Sources
from search.cli import app

GOLDEN = Path(__file__).parent.parent / "golden" / "mergekit"

# Case -> whether mergekit drew random masks. A case whose files are missing fails.
CASES: dict[str, bool] = {
    case: entry["stochastic"] for case, entry in json.loads((GOLDEN / "manifest.json").read_text()).items()
}


class Golden(NamedTuple):
    """One case.

    Attributes:
        ours, theirs: tensor name -> merged tensor, from the folder that each wrote.
        folder: ours.
        recipe: what we read from the config.
        sources: its models, restacked where it stacks layers.
    """

    ours: dict[str, Tensor]
    theirs: dict[str, Tensor]
    folder: Path
    recipe: Recipe
    sources: Sources

    def inputs(self, name: str) -> tuple[np.ndarray, list[np.ndarray]]:
        """(base, sources) of one tensor in float64, rounded first as the recipe says."""
        dtype = getattr(torch, self.recipe.source_dtype or "float64")

        def read(alias: str) -> np.ndarray:
            found: np.ndarray = self.sources.tensor(alias, name).to(dtype).double().numpy()
            return found

        aliases = [alias for alias, _ in self.recipe.for_tensor(name, self.sources.layout.group(name)).sources]
        layers = self.recipe.layers
        depth = self.sources.layout.group(name).depth
        has_base = layers is None or depth is None or self.recipe.base in layers[depth]
        return read(self.recipe.base if has_base else aliases[0]), [read(alias) for alias in aliases]

    def exact(self, name: str) -> reference.Merged:
        """One tensor by the float64 reference."""
        assignment = self.recipe.for_tensor(name, self.sources.layout.group(name))
        base, sources = self.inputs(name)
        return reference.compute(
            assignment.method,
            base,
            sources,
            [dict(values) for _, values in assignment.sources],
            dict(assignment.parameters),
            name=name,
            contents=[self.recipe.sources[alias].content for alias, _ in assignment.sources],
        )


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder."""
    checkpoint = Checkpoint.open(folder)
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


@cache
def inputs() -> tuple[dict[str, Tensor], ...]:
    """The base and the three fine-tunes."""
    return tuple(tensors(GOLDEN / "inputs" / name) for name in ("base", "ft1", "ft2", "ft3"))


def invoke(*arguments: object) -> Any:
    """``paretomerge`` with these arguments."""
    return CliRunner().invoke(app, [str(each) for each in arguments])


def merged(case: str, folder: Path) -> Golden:
    """Run ``paretomerge merge`` on a golden config."""
    out = folder / "out"
    result = invoke("merge", GOLDEN / case / "config.yml", out)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    recipe, sources = read_config(GOLDEN / case / "config.yml")
    golden = Golden(tensors(out), tensors(GOLDEN / case / "out"), out, recipe, for_recipe(sources, recipe))
    assert golden.ours.keys() == golden.theirs.keys()
    for name, theirs in golden.theirs.items():
        assert golden.ours[name].dtype == theirs.dtype and golden.ours[name].shape == theirs.shape, name
    return golden


def spacing(value: Tensor) -> Tensor:
    """Distance between neighbouring bfloat16 numbers at a value, float64."""
    return 2.0 ** torch.floor(torch.log2(value.double().abs().clamp(min=1e-30))) * 2.0**-7
