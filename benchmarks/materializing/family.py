"""A family of models for the materialising benchmark: a random Llama in bfloat16, and fine-tunes with made-up deltas.

Weights are N(0, 0.02), norms 1. Deltas are normal numbers of a log-normal scale (kurtosis 8: heavier tails than a
Laplace distribution's), with a standard deviation of 1 % of the weights': the relative size that fine-tunes have.
Rounded to bfloat16, as fine-tunes are stored, many |τ| are 0 or equal to others, which is what makes exact thresholds
hard. Every element follows from the seed, the model's name and the tensor's.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

WEIGHTS = "model.safetensors"

_CHUNK = 1 << 20
_STD = 0.02
_SPREAD = 0.5  # standard deviation of the logarithm of a delta's scale
_RELATIVE = 1e-2  # ‖τ‖ / ‖θ0‖
_FORMAT = 2  # of the family: another number is another folder


@dataclass(frozen=True)
class Shape:
    """A Llama with tied embeddings."""

    hidden: int
    intermediate: int
    layers: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(math.prod(each) for each in self.tensors().values())

    @property
    def title(self) -> str:
        """``341M``."""
        return f"{self.parameters / 1e6:.{0 if self.parameters > 10**7 else 1}f}M"

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name on disk -> shape."""
        wide, inner = self.hidden, self.intermediate
        block = {
            **{f"self_attn.{each}_proj.weight": (wide, wide) for each in "qkvo"},
            **{f"mlp.{each}_proj.weight": (inner, wide) for each in ("gate", "up")},
            "mlp.down_proj.weight": (wide, inner),
            "input_layernorm.weight": (wide,),
            "post_attention_layernorm.weight": (wide,),
        }
        layers = {f"model.layers.{i}.{name}": shape for i in range(self.layers) for name, shape in block.items()}
        return {"model.embed_tokens.weight": (self.vocabulary, wide), **layers, "model.norm.weight": (wide,)}

    def config(self) -> dict[str, object]:
        """``config.json``."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // 64,
            "num_key_value_heads": self.hidden // 64,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }


SHAPES = {
    "full": Shape(hidden=1024, intermediate=2816, layers=24, vocabulary=32000),  # 341 M
    "small": Shape(hidden=512, intermediate=1408, layers=8, vocabulary=8192),  # 30 M
    "tiny": Shape(hidden=128, intermediate=352, layers=3, vocabulary=1024),  # 0.7 M, for tests
}


@dataclass(frozen=True)
class Family:
    """Model folders.

    Attributes:
        shape: of every model.
        base: folder of the base.
        experts: folders of the fine-tunes.
    """

    shape: Shape
    base: Path
    experts: tuple[Path, ...]

    def of(self, count: int) -> Family:
        """The same base with its first experts."""
        return Family(self.shape, self.base, self.experts[:count])

    @property
    def paths(self) -> dict[str, Path]:
        """Alias -> expert."""
        return {expert.name: expert for expert in self.experts}

    @property
    def bytes(self) -> int:
        """Of one model's weights."""
        return 2 * self.shape.parameters


def build(shape: Shape, count: int, workdir: Path, seed: int = 0) -> Family:
    """The family of a seed: what is not yet in the working folder is made, in up to a minute a model.

    Args:
        shape: of every model.
        count: experts.
        workdir: holds a folder for each shape and seed.
        seed: of all weights.
    """
    home = workdir / f"llama-{shape.title}-seed{seed}-{_FORMAT}"
    home.mkdir(parents=True, exist_ok=True)
    names = ["base", *(f"expert{number}" for number in range(count))]
    missing = [name for name in names if not (home / name).is_dir()]
    needed, free = 2 * shape.parameters * len(missing), shutil.disk_usage(home).free
    if needed > free:
        raise SystemExit(f"{home} needs {needed / 1e9:.1f} GB more, {free / 1e9:.1f} GB are free; choose --workdir")
    for name in missing:
        print(f"making {home / name} …", flush=True)
        _write(home / name, shape, name, seed)
    return Family(shape, home / "base", tuple(home / name for name in names[1:]))


def _write(folder: Path, shape: Shape, name: str, seed: int) -> None:
    """Beside its place and then renamed, so that a folder that is there is whole."""
    partial = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folder.parent))
    try:
        tensors = {}
        for tensor, size in shape.tensors().items():
            if name == "base":
                tensors[tensor] = _base(tensor, size, seed)
            else:
                tensors[tensor] = _tuned(_stored(folder.parent / "base", tensor), name, tensor, seed)
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        (partial / "config.json").write_text(json.dumps(shape.config(), indent=2), encoding="utf-8")
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _base(name: str, size: tuple[int, ...], seed: int) -> Tensor:
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    generator, out = _generator(seed, "base", name), torch.empty(math.prod(size), dtype=torch.bfloat16)
    for piece in out.split(_CHUNK):
        piece.copy_(torch.randn(len(piece), generator=generator).mul_(_STD))
    return out.view(size)


def _tuned(base: Tensor, model: str, name: str, seed: int) -> Tensor:
    generator, out = _generator(seed, model, name), torch.empty_like(base)
    scale = _RELATIVE * _STD / math.exp(_SPREAD**2)  # E[exp(2·spread·z)] = exp(2·spread²)
    for piece, origin in zip(out.view(-1).split(_CHUNK), base.view(-1).split(_CHUNK), strict=True):
        scales = torch.randn(len(piece), generator=generator).mul_(_SPREAD).exp_().mul_(scale)
        piece.copy_(torch.randn(len(piece), generator=generator).mul_(scales).add_(origin))
    return out


def _stored(folder: Path, name: str) -> Tensor:
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def _generator(seed: int, model: str, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}\n{model}\n{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
