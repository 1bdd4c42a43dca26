"""The reference itself against what mergekit 0.1.5 computed: two readings of a definition should not share an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import yaml
from safetensors.numpy import load_file

GOLDEN = Path(__file__).parent.parent / "golden" / "mergekit"
MERGEKIT = {"convention": "mergekit"}
DENSE = {"density": 1.0}
SPARSE_TIES = {**MERGEKIT, "normalize": False}

# case: our method, shared parameters beside those of the file, per-source ones.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {}),
    "linear_nonorm": ("linear", {}),
    "task_arithmetic": ("task_arithmetic", {}),
    "task_arithmetic_negate": ("task_arithmetic", {}),
    "nuslerp": ("nuslerp", {}),
    "nuslerp_base": ("nuslerp", {"on": "task_vectors"}),
    "nuslerp_noflat": ("nuslerp", {}),
    "nuslerp_noflat_rowwise": ("nuslerp", {}),
    "multislerp": ("multislerp", {}),
    "multislerp_base": ("multislerp", {"on": "task_vectors"}),
    "karcher": ("karcher", {}),
    "ties": ("ties", MERGEKIT),
    "ties_10": ("ties", MERGEKIT),
    "ties_70": ("ties", MERGEKIT),
    "ties_rescale": ("ties", MERGEKIT),
    "ties_nonorm_int8": ("ties", MERGEKIT),
    "breadcrumbs": ("breadcrumbs", MERGEKIT),
    "breadcrumbs_ties": ("breadcrumbs_ties", SPARSE_TIES),
    "sce": ("sce", MERGEKIT),
    "sce_all": ("sce", MERGEKIT),
    "model_stock": ("model_stock", MERGEKIT),
    "model_stock_fw": ("model_stock", MERGEKIT),
    "nearswap": ("nearswap", {}),
    "ram": ("ram", {}),
    "ramplus_tl": ("ramplus_tl", {}),
    "arcee_fusion": ("arcee_fusion", {}),
}
NAMES = {
    "weight": "coefficient",
    "lambda": "scale",
    "select_topk": "density",
    "filter_wise": "row_wise",
    "nuslerp_flatten": "flatten",
    "nuslerp_row_wise": "row_wise",
}


def renamed(parameters: dict[str, Any] | None) -> dict[str, Any]:
    return {NAMES.get(name, name): value for name, value in (parameters or {}).items() if name != "int8_mask"}


def read(folder: Path) -> dict[str, Any]:
    """name -> float32 array of all shards."""
    return {name: array for shard in sorted(folder.glob("*.safetensors")) for name, array in load_file(shard).items()}


@pytest.fixture(scope="module")
def models() -> dict[str, dict[str, Any]]:
    return {path.name: read(path) for path in (GOLDEN / "inputs").iterdir()}


@pytest.mark.parametrize("case", sorted(CASES))
def test_it_repeats_mergekit(case: str, models: dict[str, dict[str, Any]]) -> None:
    (path,) = (GOLDEN / case).glob("config.y*ml")
    config, (method, extra) = yaml.safe_load(path.read_text()), CASES[case]
    entries = [(Path(each["model"]).name, renamed(each.get("parameters"))) for each in config["models"]]
    if "base_model" in config and method != "linear":
        entries = [entry for entry in entries if entry[0] != "base"]
    per_source = [{**DENSE, **values} if method == "ties" else values for _, values in entries]
    shared = {**extra, **renamed(config.get("parameters"))}
    written = read(GOLDEN / case / "out")
    assert written.keys() == models["base"].keys()
    judged = doubtful = 0
    for name, wanted in written.items():
        merged = reference.compute(
            method,
            models["base"][name].astype(np.float64),
            [models[model][name].astype(np.float64) for model, _ in entries],
            per_source,
            shared,
            name=name,
        )
        off = np.abs(merged.value - wanted) > 5e-7
        assert not (off & ~merged.doubtful).any(), f"{name}: {off.sum()} of {off.size} elements differ"
        judged, doubtful = judged + off.size, doubtful + int(merged.doubtful.sum())
    # mergekit takes the importances of arcee_fusion in float32, where rounding is about as large as they are.
    assert doubtful <= (0.15 if method == "arcee_fusion" else 0.001) * judged
