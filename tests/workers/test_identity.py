"""What a worker must share with the driver, and the driver that has no model to compare with."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import search
from evaluators.engines.opening import open_engine
from merging import load_model
from merging.skeleton import load_skeleton
from search.config import load_config
from search.setup import set_up
from search.workers.identity import PACKAGES, CodeIdentity, Identity

ROOT = Path(search.__file__).parents[1]


def test_an_identity_is_its_own_and_survives_the_way() -> None:
    here = CodeIdentity.here()
    there = pickle.loads(pickle.dumps(here))
    assert not here.differences(there) and here == there
    assert set(here.packages) == set(PACKAGES) and here.versions["torch"]


def test_another_installation_is_told_by_its_code(tmp_path: Path) -> None:
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "*.json", "*.jsonl")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    script = (
        "import pickle, sys; from search.workers.identity import CodeIdentity; "
        "sys.stdout.buffer.write(pickle.dumps((CodeIdentity.here(), 'torch' in sys.modules)))"
    )

    def identity() -> tuple[CodeIdentity, bool]:
        said = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, check=True, env=environment)
        return pickle.loads(said.stdout)

    environment = {"PYTHONPATH": str(tmp_path)}
    same, heavy = identity()
    assert not heavy, "a worker says what it runs before it loads anything"
    assert same.places["search"] == str(tmp_path / "search")
    kernel = tmp_path / "merging/kernel.py"
    kernel.write_text(kernel.read_text() + "\n# a change\n")
    other, _ = identity()
    (difference,) = same.differences(other)
    assert "'merging' is other code" in difference


def test_the_driver_knows_its_workers_engine_without_a_model(nano_zoo: Path) -> None:
    loaded = load_config(ROOT / "configs/nano.yaml")
    live, blank = set_up(loaded, 1), set_up(loaded, 1, live=False)
    assert not Identity.of(loaded, blank).differences(Identity.of(loaded, live))
    assert blank.engine_fingerprint == live.engine.fingerprint
    assert blank.refs == live.refs
    with pytest.raises(RuntimeError, match="no live model in this process"):
        _ = blank.engine
    scores = live.evaluators["string"].score(live.engine, live.evaluators["string"].items("search").ids)
    assert blank.evaluators["string"].aggregate(scores) == live.evaluators["string"].aggregate(scores)


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float32"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "whisper", "vit"])
def test_a_skeleton_asks_as_the_model_does(tmp_path: Path, architecture: str, dtype: str | None) -> None:
    """For classes that write texts and for others; stored with and without a word on their dtype."""
    base = tmp_path / "base"
    save_tiny(base, architecture)
    for said in (True, False):
        if not said:
            forget_dtype(base)
        real, blank = load_model(base, dtype), load_skeleton(base, dtype)
        assert type(real) is type(blank)
        assert all(each.device.type == "meta" for each in blank.parameters())
        assert {name: (each.shape, each.dtype) for name, each in real.named_parameters()} == {
            name: (each.shape, each.dtype) for name, each in blank.named_parameters()
        }
        one, other = (open_engine(each, base, device="cpu") for each in (real, blank))
        assert one.fingerprint == other.fingerprint and one.max_length == other.max_length
        assert one.end_of_text == other.end_of_text


def save_tiny(folder: Path, architecture: str) -> None:
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    made = {
        "llama": lambda: (transformers.LlamaForCausalLM, transformers.LlamaConfig(vocab_size=8, **small)),
        "gpt2": lambda: (
            transformers.GPT2LMHeadModel,
            transformers.GPT2Config(vocab_size=8, n_embd=16, n_layer=1, n_head=2),
        ),
        "bert": lambda: (
            transformers.BertForSequenceClassification,
            transformers.BertConfig(vocab_size=8, **small, num_labels=3),
        ),
        "vit": lambda: (
            transformers.ViTForImageClassification,
            transformers.ViTConfig(**small, image_size=8, patch_size=4, num_labels=2),
        ),
        "whisper": lambda: (
            transformers.WhisperForConditionalGeneration,
            transformers.WhisperConfig(
                vocab_size=8, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=8,
                max_source_positions=10, max_target_positions=10, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
            ),
        ),
    }  # fmt: skip
    kind, config = made[architecture]()
    model = kind(config).to(torch.bfloat16)
    if model.can_generate():
        model.generation_config.eos_token_id = [2, 3]  # what only the generation settings say
    model.save_pretrained(folder)
    words = {word: index for index, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", "a", "b", "c", "d"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)


def forget_dtype(folder: Path) -> None:
    """As older checkpoints are: config.json does not say in what the weights are stored."""
    import json

    config = json.loads((folder / "config.json").read_text())
    found = [config.pop(key, None) for key in ("dtype", "torch_dtype")]
    assert any(found), "otherwise this tests nothing"
    (folder / "config.json").write_text(json.dumps(config))


def test_differences_name_what_differs() -> None:
    code = CodeIdentity({"search": "1"}, {"torch": "2", "numpy": "1"}, {"search": "/here/search"})
    one = Identity(code, {"base": "x", "a": "y"}, {"e": "f"}, "hf", "c")
    assert one.differences(one) == []
    other = replace(
        one,
        code=CodeIdentity({"search": "2"}, {"torch": "2"}, {"search": "/there/search"}),
        sources={"base": "x"},
        calibration="d",
    )
    said = one.differences(other)
    assert len(said) == 4
    assert "it has /there/search, the driver /here/search" in said[0]
    assert said[1] == "its numpy is missing, the driver's 1"
    assert "model 'a'" in said[2] and "calibration" in said[3]
