"""Which of a config's experts a vector was made from, whatever else stands among them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from safetensors.torch import save_file

from merging.opening import open_model
from merging.vectors.extract import About, Coding, write_vector
from search.vector_scores import fine_tune_of


def write_model(folder: Path, seed: int, **config: int) -> Path:
    folder.mkdir()
    weights = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
    save_file({"layers.0.mlp.weight": weights}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "planted"} | config))
    return folder


def test_the_fine_tune_is_found_among_vectors_and_other_models(tmp_path: Path) -> None:
    base = open_model(write_model(tmp_path / "base", 0))
    expert, other = write_model(tmp_path / "expert", 1, window=8), write_model(tmp_path / "other", 2)
    vector = tmp_path / "vector"
    vector.mkdir()
    manifest = write_vector(vector, base, open_model(expert), About("v"), Coding("onebit"))
    assert "config.json" in manifest.files  # and yet it is no model's folder

    def found(*experts: Path) -> Path | None:
        models = SimpleNamespace(experts={each.name: each.name for each in experts})
        loaded = SimpleNamespace(config=SimpleNamespace(models=models), resolve=tmp_path.joinpath)
        return fine_tune_of(manifest, cast(Any, loaded), base)

    assert found(vector, other, expert) == expert
    assert found(vector, other) is None
