"""Tiny models of several architectures, made once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside the tests: importlib mode adds no folder

import torch
import transformers
from families import Family, save
from transformers import GPT2Config, LlamaConfig, MistralConfig, Qwen2Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from merging.materialize import Sources
from merging.recipe import Assignment, Group, Recipe

torch.set_num_threads(1)

SIZE = {
    "vocab_size": 53,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

CONFIGS = {
    "llama": LlamaConfig(**SIZE, tie_word_embeddings=False),
    "llama-tied": LlamaConfig(**SIZE, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZE, tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=53, n_embd=24, n_layer=3, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2),
    "mistral-sharded": MistralConfig(**SIZE, tie_word_embeddings=False),
}


def make_family(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Family:
    """A random model, and two that went a small way from it."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).to(dtype)
    shard = "30KB" if "sharded" in name else "50GB"
    family = Family(*(folder / each for each in ("base", "a", "b")))
    start = {key: value.clone() for key, value in model.state_dict().items()}
    save(model, family.base, shard)
    for path in (family.a, family.b):
        model.load_state_dict(start)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        save(model, path, shard)
    return family


@pytest.fixture(scope="module")
def quiet() -> Iterator[None]:
    """Without transformers' progress bars."""
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Family]:
    made: dict[tuple[str, torch.dtype], Family] = {}

    def family(name: str, dtype: torch.dtype = torch.float32) -> Family:
        if (name, dtype) not in made:
            made[name, dtype] = make_family(name, tmp_path_factory.mktemp(name), dtype)
        return made[name, dtype]

    return family


@pytest.fixture(scope="session")
def llama(families: Callable[..., Family]) -> Sources:
    """The untied Llama's sources; read-only."""
    return families("llama").load()


@pytest.fixture(scope="session")
def uniform() -> Callable[..., Recipe]:
    """Builds a recipe with one assignment everywhere, and exceptions by group."""

    def build(
        sources: Sources,
        assignment: Assignment,
        exceptions: dict[Group, Assignment] | None = None,
        dtype: str | None = None,
    ) -> Recipe:
        groups = dict.fromkeys(sources.layout.groups, assignment) | (exceptions or {})
        return Recipe("base", sources.refs, groups, dtype=dtype)

    return build
