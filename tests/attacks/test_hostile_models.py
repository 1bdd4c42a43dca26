"""Model folders that lie, point elsewhere, are bombs, or bring code."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attacking import Attack, Payload, Trap, cases
from small_models import small_project

MERGE = ("merge", "merge.yaml", "out")
CHECK = ("check", "search.yaml")


def edited(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    data = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def header(file: Path, change: Callable[[dict[str, Any]], Any], data: bytes | None = None) -> None:
    """Rewrite a safetensors file with a changed header."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    found = json.loads(content[8 : 8 + length])
    changed = change(found)
    text = changed if isinstance(changed, bytes) else json.dumps(found if changed is None else changed).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + (content[8 + length :] if data is None else data))


def first(found: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = next(value for name, value in found.items() if name != "__metadata__")
    return entry


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


WEIGHTS: dict[str, Callable[[Path], object]] = {
    "a header of 2^63 bytes": lambda file: file.write_bytes(struct.pack("<Q", 2**63) + file.read_bytes()[8:]),
    "a header of 2^64-1 bytes": lambda file: file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:]),
    "a sparse file": lambda file: (file.write_bytes(struct.pack("<Q", 90_000_000)), os.truncate(file, 2**40)),
    "an empty file": lambda file: file.write_bytes(b""),
    "a nested header": lambda file: header(file, lambda _: nested(100_000)),
    "a header of one long name": lambda file: header(file, lambda _: b'{"' + b"x" * 20_000_000 + b'": 1}'),
    "a name twice": lambda file: header(file, lambda _: b'{"' + b"\\u001b[2J" * 10_000 + b'": {}, "a": {}, "a": {}}'),
    "a negative shape": lambda file: header(file, lambda found: first(found).update(shape=[-1, -8])),
    "a shape that overflows": lambda file: header(file, lambda found: first(found).update(shape=[2**63, 2, 2**63])),
    "a shape of nothing by much": lambda file: header(
        file, lambda found: first(found).update(shape=[0, 2**62, 2**62], data_offsets=[0, 0])
    ),
    "a thousand dimensions": lambda file: header(file, lambda found: first(found).update(shape=[1] * 1000)),
    "offsets backwards": lambda file: header(file, lambda found: first(found).update(data_offsets=[64, 0])),
    "offsets that overlap": lambda file: header(
        file, lambda found: found | {"zz": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}
    ),
    "offsets beyond the end": lambda file: header(
        file, lambda found: found | {"zz": {"dtype": "U8", "shape": [4], "data_offsets": [2**40, 2**40 + 4]}}
    ),
    "a hole": lambda file: header(file, lambda found: None, data=file.read_bytes()[-10_000_000:] + b"\0" * 1000),
    "floats for sizes": lambda file: header(file, lambda found: first(found).update(shape=[1e400, 2])),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "a device": lambda file: (file.unlink(), file.symlink_to("/dev/zero")),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("kind", cases(WEIGHTS, 1))
def test_weights_that_lie(attack: Attack, kind: str) -> None:
    small_project()
    WEIGHTS[kind](Path("a/model.safetensors"))
    message = attack(*MERGE).refusal
    assert len(message) < 1500
    assert not Path("out").exists()


def names_of(folder: Path) -> list[str]:
    content = (folder / "model.safetensors").read_bytes()
    return [each for each in json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]) if each[0] != "_"]


@pytest.mark.slow
@pytest.mark.parametrize("outside", ["../secret/model.safetensors", "{absolute}", "..\\x", "a/../../x", "x\0y"])
def test_an_index_that_points_elsewhere(attack: Attack, outside: str) -> None:
    small_project()
    Path("secret").mkdir()
    shutil.move("a/model.safetensors", "secret/model.safetensors")
    shard = outside.format(absolute=Path("secret/model.safetensors").absolute())
    weight_map = dict.fromkeys(names_of(Path("secret")), shard)
    Path("a/model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert "may not point outside" in attack(*MERGE).refusal


JSON: dict[str, tuple[str, bytes | str]] = {
    "config, nested": ("config.json", b'{"a": ' + nested(200_000) + b"}"),
    "config, a list": ("config.json", b"[]"),
    "config, no JSON": ("config.json", b"\xff\xfe\x00"),
    "config, a long number": ("config.json", b'{"a": ' + b"9" * 100_000 + b"}"),
    "index, nested": ("model.safetensors.index.json", nested(200_000)),
    "index, weight_map of lists": ("model.safetensors.index.json", b'{"weight_map": {"a": ["b"]}}'),
    "generation config, nested": ("generation_config.json", nested(200_000)),
    "generation config, a list": ("generation_config.json", b"[1]"),
}


@pytest.mark.parametrize("kind", cases(JSON, 1))
@pytest.mark.parametrize("size", ["as it is", "endless"])
def test_json_that_is_none(attack: Attack, kind: str, size: str) -> None:
    small_project()
    name, content = JSON[kind]
    file = Path("base") / name
    if name.endswith("index.json"):
        Path("base/model.safetensors").unlink()
    file.unlink(missing_ok=True)
    if size == "endless":
        file.touch()
        os.truncate(file, 2**40)  # of no size on disk
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = attack(*MERGE).refusal
    assert name in message
    assert not Path("out").exists() and not list(Path().glob(".out*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(attack: Attack, name: str) -> None:
    small_project()
    (Path("base") / name).unlink()
    os.mkfifo(Path("base") / name)
    if name == "config.json":
        assert "no regular file" in attack(*MERGE).refusal
    else:  # what is no file is not there
        assert attack(*MERGE).code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9), ("num_attention_heads", 10**9), ("hidden_size", 10**12),
        ("max_position_embeddings", 10**15), ("head_dim", 10**12), ("vocab_size", 10**12), ("num_hidden_layers", -1),
        ("num_key_value_heads", 0), ("rope_parameters", {"rope_type": "linear", "factor": "x"}), ("layer_types", [[]]),
        ("model_type", "../../etc"), ("model_type", {"a": 1}), ("architectures", [[]]), ("architectures", "Trainer"),
        ("hidden_act", "__import__('os').abort()"), ("torch_dtype", "float33"), ("dtype", {"a": []}),
        ("quantization_config", {"quant_method": "awq"}), ("tie_word_embeddings", "no"),
    ],
)  # fmt: skip
def test_configs_that_describe_no_model(attack: Attack, key: str, value: Any) -> None:
    """Refused, or without an effect: never a hang, a full memory or a traceback."""
    small_project()
    for folder in ("base", "a", "b"):
        edited(Path(folder) / "config.json", **{key: value})
    outcome = attack(*CHECK)
    assert outcome.code == 0 or outcome.refusal


CODE = {
    "modelling": ("config.json", {"auto_map": {
        "AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoModel": "evil.Model"
    }, "model_type": "evil", "architectures": ["EvilForCausalLM"]}),
    "modelling of another repository": ("config.json", {"auto_map": {
        "AutoConfig": "somebody/evil--evil.Config", "AutoModelForCausalLM": "somebody/evil--evil.Model"
    }, "model_type": "evil", "architectures": ["EvilForCausalLM"]}),
    "modelling of a known type": ("config.json", {"auto_map": {
        "AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"
    }}),
    "a tokenizer": ("tokenizer_config.json", {
        "auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}, "tokenizer_class": "EvilTokenizer"
    }),
    "a tokenizer of a known type": ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}),
    "attention from elsewhere": ("config.json", {"attn_implementation": "somebody/evil-kernel"}),
    "attention from elsewhere, as transformers saves it": ("config.json", {"_attn_implementation": "somebody/evil"}),
    "generation": ("generation_config.json", {"custom_generate": "."}),
    "weights from elsewhere": ("config.json", {"transformers_weights": "../../../outside/model.safetensors"}),
    "a chat template": ("tokenizer_config.json", {
        "chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.abort() }}"
    }),
    "a chat template that imports": ("tokenizer_config.json", {"chat_template": "{% include '/etc/passwd' %}"}),
    "a chat template without an end": ("tokenizer_config.json", {
        "chat_template": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    }),
    "a chat template of much": ("tokenizer_config.json", {"chat_template": "{{ 'x' * 999999999999 }}"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", cases(CODE, 1))
def test_code_in_a_model_folder_is_not_run(attack: Attack, trap: Trap, kind: str) -> None:
    small_project()
    name, changes = CODE[kind]
    for folder in ("base", "a", "b"):
        edited(Path(folder) / name, **changes)
        for place in ("evil.py", "custom_generate/generate.py", "modeling_evil.py", "tokenization_evil.py"):
            file = Path(folder) / place
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"{trap.code}\n\n\nclass Config:\n    pass\n")
    shutil.copy("a/model.safetensors", trap.mark.parent / "model.safetensors")
    for command in (CHECK, MERGE):
        outcome = attack(*command)
        trap.assert_untouched()
        assert outcome.code == 0 or outcome.refusal
    if Path("out").exists():
        assert not list(Path("out").rglob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [(), ("--allow-pickle",)])
@pytest.mark.parametrize("kind", ["weights", "a dictionary of tensors and one more", "training_args"])
def test_pickles_are_not_run(attack: Attack, trap: Trap, allowed: tuple[str, ...], kind: str) -> None:
    import torch

    small_project()
    payload = Payload(trap.code)
    if kind == "training_args":  # beside good weights: nobody looks at it
        torch.save(payload, "a/training_args.bin")
        assert attack(*MERGE, *allowed).code == 0
        assert not Path("out/training_args.bin").exists()
    else:
        Path("a/model.safetensors").unlink()
        torch.save(payload if kind == "weights" else {"a": torch.ones(2), "b": payload}, "a/pytorch_model.bin")
        assert "weights-only loader" in attack(*MERGE, *allowed).refusal
    trap.assert_untouched()


@pytest.mark.slow
def test_tensors_that_are_larger_than_their_pickle(attack: Attack) -> None:
    """Four bytes seen as 10¹² elements, and tensors without any bytes."""
    import torch

    small_project()
    Path("a/model.safetensors").unlink()
    for tensor in (torch.zeros(1).expand(10**6, 10**6), torch.empty(10**6, 10**6, device="meta")):
        torch.save(dict.fromkeys(names_of(Path("b")), tensor), "a/pytorch_model.bin")
        assert "plain tensors" in attack(*MERGE, "--allow-pickle").refusal


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "vocab.txt", "preprocessor_config.json"])
def test_links_out_of_a_model_are_not_handed_on(attack: Attack, trap: Trap, name: str) -> None:
    small_project()
    (Path("base") / name).unlink(missing_ok=True)
    (Path("base") / name).symlink_to(trap.secret)
    message = attack(*MERGE).refusal
    assert name in message and "nobody's business" not in message
    assert not Path("out").exists() and not list(Path().glob(".out*"))


def test_links_of_the_hubs_cache_are_followed(attack: Attack) -> None:
    small_project()
    snapshot = Path("models--x--y/snapshots/0123")
    blobs = Path("models--x--y/blobs")
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    for file in Path("base").iterdir():
        file.rename(blobs / f"hash-of-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/hash-of-{file.name}")
    Path("merge.yaml").write_text(Path("merge.yaml").read_text().replace("base: base", f"base: {snapshot}"))
    assert attack(*MERGE).code == 0
    assert not any(each.is_symlink() for each in Path("out").iterdir())
    assert Path("out/tokenizer.json").read_bytes() == (blobs / "hash-of-tokenizer.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["to a folder", "to nothing", "into a folder that is one"])
def test_exports_do_not_follow_links(attack: Attack, trap: Trap, kind: str) -> None:
    small_project()
    target = trap.mark.parent / "elsewhere"
    if kind == "to a folder":
        target.mkdir()
    Path("out").symlink_to(target)
    outcome = attack("merge", "merge.yaml", "out" if kind != "into a folder that is one" else "out/model")
    if kind == "to a folder":  # an empty one, by the user's own link
        assert outcome.code in (0, 2)
    assert outcome.code == 0 or outcome.refusal
    assert not target.exists() or not list(target.iterdir()) or outcome.code == 0
    trap.assert_untouched()


NAMES = [
    "model.layers.999999999999999.mlp.up_proj.weight",
    "\x1b[2J\u202e",
    "x" * 1_000_000,
    "../../../etc/passwd",
    "\ud800",
]


@pytest.mark.parametrize("name", cases(NAMES, 0), ids=["deep", "escapes", "long", "path", "half a pair"])
def test_names_of_tensors_mean_nothing_but_themselves(attack: Attack, name: str) -> None:
    small_project()

    def renamed(found: dict[str, Any]) -> dict[str, Any]:
        old = next(each for each in found if "layers.1.mlp.up_proj" in each)
        return {name if each == old else each: entry for each, entry in found.items()}

    for folder in ("base", "a", "b"):
        header(Path(folder) / "model.safetensors", renamed)
    outcome = attack(*MERGE)
    assert outcome.code == 0 or outcome.refusal
    assert attack(*CHECK).refusal
