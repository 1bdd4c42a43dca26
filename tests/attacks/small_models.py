"""A base and two fine-tunes of it, small enough to be made for every attack, and configs that use them."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

WORDS = [f"w{number}" for number in range(40)]

MERGE = """base: base
experts: {a: a, b: b}
method: task_arithmetic
coefficients: {a: 0.5, b: 0.5}
"""

SEARCH = """name: attacked
models: {base: base, experts: {a: a, b: b}}
evaluators:
  one: {type: exact_match, data: {file: items.jsonl}, max_new_tokens: 2}
objectives: [one.accuracy]
search: {optimizer: random, budget: {candidates: 5}}
engine: {threads: 1}
"""


@cache
def _made() -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()

    folder = Path(mkdtemp(prefix="paretomerge-attacks-"))
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<eos>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    for name in ("base", "a", "b"):
        model.save_pretrained(folder / name)
        fast.save_pretrained(folder / name)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.01)
    records = [{"prompt": f"{one} {two}", "answer": one} for one in WORDS[:6] for two in WORDS[6:12]]
    (folder / "items.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "merge.yaml").write_text(MERGE)
    (folder / "search.yaml").write_text(SEARCH)
    return folder


def small_project() -> Path:
    """Copy models, items and configs into the working directory; returns it."""
    here = Path.cwd()
    shutil.copytree(_made(), here, dirs_exist_ok=True)
    return here
