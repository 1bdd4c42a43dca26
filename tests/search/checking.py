"""Models and configs that are small enough to be checked for every test, and each of them wrong in one way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import yaml

from search.checks.course import Checked, check_config

WORDS = [f"w{number}" for number in range(40)]

ITEMS = 48
"""Of each split: as few as are not warned of."""

CONFIG = """\
name: demo
models:
  base: base
  experts:
    one: one
    two: two
evaluators:
  first: {type: exact_match, data: data/first, max_new_tokens: 2}
  second: {type: exact_match, data: data/second, max_new_tokens: 2}
objectives: [first.accuracy, second.accuracy]
space:
  granularity: {knots: 2}
search:
  optimizer: sms_emoa
  budget: {candidates: 100}
engine: {threads: 1}
"""


@cache
def made() -> Path:
    """A folder with a base, two fine-tunes that are near it, their items and a config. Copy it before a change."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = Path(mkdtemp(prefix="paretomerge-checks-"))
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<eos>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for name in ("base", "one", "two"):
        model.load_state_dict(start)
        if name != "base":
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(torch.randn_like(weight) * weight.std() if weight.dim() > 1 else 0.0, alpha=0.05)
        model.save_pretrained(folder / name)
        fast.save_pretrained(folder / name)
        (folder / name / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    for number, skill in enumerate(("first", "second")):
        for place, split in enumerate(("search", "selection", "holdout")):
            write_items(folder / "data" / skill / f"{split}.jsonl", 10 * number + place)
    (folder / "config.yaml").write_text(CONFIG)
    return folder


def write_items(file: Path, start: int, count: int = ITEMS) -> None:
    """``count`` different prompts of three words; another start, other prompts."""
    file.parent.mkdir(parents=True, exist_ok=True)
    texts = [f"{WORDS[start]} {WORDS[k % 40]} {WORDS[k // 40]}" for k in range(count)]
    file.write_text("".join(json.dumps({"prompt": text, "answer": text.split()[1]}) + "\n" for text in texts))


def project(folder: Path, change: Callable[[dict[str, Any]], object] = lambda config: None) -> Path:
    """A copy of all of it, the config changed; returns the config's path."""
    shutil.copytree(made(), folder, dirs_exist_ok=True)
    config = yaml.safe_load(CONFIG)
    change(config)
    if config != yaml.safe_load(CONFIG):
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder / "config.yaml"


def reweigh(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a model's weights, a dict of tensors."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def edited(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    data = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def check(path: Path, *overrides: str, live: bool | None = False) -> Checked:
    """As ``paretomerge check --runs runs`` beside the config does."""
    return check_config(path, overrides, runs=path.parent / "runs", live=live)


def found(checked: Checked, level: str) -> dict[str, str]:
    """path of keys -> message, of one level; several at one place are joined."""
    told: dict[str, str] = {}
    for each in checked.findings:
        if each.level == level:
            place = each.placed
            told[place.path] = told.get(place.path, "") + place.message.removeprefix(f"{place.path}: ") + "\n"
    return told
