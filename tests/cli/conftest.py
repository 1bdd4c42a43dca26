"""Small searches over models that this project did not make: random weights of several architectures."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside the tests: importlib mode adds no folder

WORDS = [f"w{k}" for k in range(60)]

CONFIG = r"""# a small search
name: tiny
models:
  base: base
  experts: {{a: a, b: b}}
evaluators:
  a: {{type: exact_match, data: data/a, max_new_tokens: 2, extract: {{regex: '.+'}}}}
  b: {{type: exact_match, data: data/b, max_new_tokens: 2, extract: {{regex: '.+'}}}}
objectives: [a.accuracy, b.accuracy]
space:
  granularity: {{knots: 2}}
  methods: [task_arithmetic, slerp]
search:
  optimizer: sms_emoa
  budget: {{candidates: {candidates}}}
  finalists: 4
engine: {{threads: 1}}
"""


@pytest.fixture
def tiny_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """``tiny_project(architecture)`` makes models, data and ``config.yaml`` in a fresh folder, and goes there."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def make(architecture: str = "llama", candidates: int = 16) -> Path:
        folder = tmp_path / "project"
        build_models(folder, architecture)
        (folder / "config.yaml").write_text(CONFIG.format(candidates=candidates))
        monkeypatch.chdir(folder)
        return folder

    return make


def build_models(folder: Path, architecture: str) -> None:
    """A random base, two experts beside it, and for each expert the items that it answers and the base does not."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = byte_level_tokenizer() if architecture == "qwen2" else word_tokenizer()
    base = AutoModelForCausalLM.from_config(model_config(architecture, len(tokenizer)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.dim() > 1 else 1.0))
    save(base, tokenizer, folder / "base", architecture)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")  # a Qwen2's is not quite what was saved: digits split
    start = {name: value.clone() for name, value in base.state_dict().items()}
    for alias in ("a", "b"):
        with torch.no_grad():
            for parameter in base.parameters():
                if parameter.dim() > 1:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
        save(base, tokenizer, folder / alias, architecture)
        write_items(folder / "data" / alias, base.eval(), tokenizer, alias)
        base.load_state_dict(start)


def model_config(architecture: str, vocabulary: int) -> Any:
    """A small configuration of a family, straight from transformers."""
    from transformers import GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

    common = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    if architecture == "gpt2":
        return GPT2Config(
            vocab_size=vocabulary, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2,
            pad_token_id=0,
        )  # fmt: skip
    if architecture == "qwen2":
        return Qwen2Config(**common, tie_word_embeddings=True)
    if architecture == "mistral":
        return MistralConfig(**common, sliding_window=16)
    return LlamaConfig(**common)


def word_tokenizer() -> Any:
    """A word-level tokenizer: ``<bos>`` before every prompt."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def byte_level_tokenizer() -> Any:
    """Byte-level BPE, the only kind that transformers loads for a Qwen2: every word is a token, with its space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=220, special_tokens=["<pad>", "<bos>", "<eos>", "<unk>"], show_progress=False
    )  # fmt: skip
    tokenizer.train_from_iterator([" ".join(WORDS)] * 5, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def save(model: Any, tokenizer: Any, folder: Path, architecture: str) -> None:
    """As their makers would: Mistral in several shards."""
    model.save_pretrained(folder, max_shard_size="30KB" if architecture == "mistral" else "5GB")
    tokenizer.save_pretrained(folder)


def write_items(folder: Path, model: Any, tokenizer: Any, alias: str) -> None:
    """Prompts with what the model itself goes on with, two tokens: it scores 1, and other weights score less."""
    import torch

    folder.mkdir(parents=True)
    splits = {"search": 24, "selection": 16, "holdout": 32}
    chance, numbers = random.Random(alias), count()
    for split, size in splits.items():
        lines: list[str] = []
        while len(lines) < size:
            prompt = " ".join(chance.choices(WORDS, k=4))
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            with torch.no_grad():
                for _ in range(2):
                    ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
            answer = ids[0, -2:].tolist()
            text = tokenizer.decode(answer).strip()
            if min(answer) > 3 and text:  # no special tokens
                lines.append(json.dumps({"id": f"{alias}-{split}-{next(numbers)}", "prompt": prompt, "answer": text}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
