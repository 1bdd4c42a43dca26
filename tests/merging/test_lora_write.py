"""Adapters that are written: peft loads them, and they keep what they say."""

from __future__ import annotations

import errno
import json
import math
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from adapter_folders import LAYER, ROOT, factors, write_adapter_folder, write_base
from adapter_models import MODELS, save_base
from peft import PeftModel

from merging.checkpoint import Checkpoint
from merging.export import export
from merging.lora.card import About
from merging.lora.compress import Rank
from merging.lora.differences import OfMerge, OfModel, linear_weights
from merging.lora.source import open_adapter
from merging.lora.write import Written, export_adapter, write_adapter
from merging.methods.registry import canonical
from merging.recipe import Assignment, MergingError, Recipe
from merging.sources import Sources

Q0 = f"{LAYER.format(0)}.weight"

# What an adapter cannot hold: parameters of no module of their own, those beside stacks, an embedding that three share.
LEFT = {
    "vit": {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"},
    "t5": {"shared.weight"},
    "llava": {"model.vision_tower.embeddings.class_embedding"},
    "hrm": {"model.z_L_init"},
    "gpt-oss": {
        *(
            f"model.layers.{layer}.mlp.experts.{own}_bias"
            for layer in range(2)
            for own in ("gate_up_proj", "down_proj")
        ),
        *(f"model.layers.{layer}.self_attn.sinks" for layer in range(2)),
    },
}


def fine_tune(name: str, base: Path, folder: Path, rank: int, rest: float = 0.0) -> Path:
    """A model whose matrices are a product of this rank away from the base's, and the rest a random bit."""
    kind, _ = MODELS[name]
    model = kind.from_pretrained(base)
    torch.manual_seed(11)
    with torch.no_grad():
        for own, parameter in model.named_parameters():
            if parameter.ndim >= 2 and parameter.shape[0] > 1:
                flat = parameter.shape[0], parameter[0].numel()
                if "experts" in own and parameter.ndim == 3:
                    e, o, i = parameter.shape
                    parameter.add_(0.1 * torch.randn(e, o, rank) @ torch.randn(e, rank, i))
                else:
                    parameter.add_(
                        (0.1 * torch.randn(flat[0], rank) @ torch.randn(rank, flat[1])).reshape(parameter.shape)
                    )
            else:
                parameter.add_(rest * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def merged_by_peft(name: str, base: Path, adapter: Path, folder: Path) -> Checkpoint:
    kind, _ = MODELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=FutureWarning)  # of transformers, about what peft asks it
        model = PeftModel.from_pretrained(kind.from_pretrained(base), adapter)
    model.merge_and_unload().save_pretrained(folder)
    return Checkpoint.open(folder)


def write(base: Path, expert: Path, out: Path, rank: Rank, **options: object) -> Written:
    origin = Checkpoint.open(base)
    return write_adapter(OfModel(origin, Checkpoint.open(expert)), out, rank, **options)  # type: ignore[arg-type]


FAST = {"gpt2", "mixtral"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in MODELS]
)
def test_peft_loads_what_is_written(name: str, tmp_path: Path) -> None:
    """A difference of rank 2, norms and biases: kept to rounding, by our reader and by peft, without a warning."""
    base = save_base(name, tmp_path / "base")
    expert = fine_tune(name, base, tmp_path / "expert", 2, rest=0.05)
    written = write(base, expert, tmp_path / "adapter", Rank(most=2), rest="all")
    wanted, ours = Checkpoint.open(expert), open_adapter(tmp_path / "adapter", Checkpoint.open(base))
    peft = merged_by_peft(name, base, tmp_path / "adapter", tmp_path / "merged")
    left = LEFT.get(name, set())
    assert set(written.counted("left out")) == left
    assert (written.error > 1e-3) == bool(left) and (left or written.error < 1e-6)
    for tensor in wanted.tensors:
        assert torch.allclose(ours.read(tensor), peft.read(tensor), atol=1e-6), tensor
        if tensor.split(".")[-2:] not in [each.split(".")[-2:] for each in left]:
            assert torch.allclose(ours.read(tensor), wanted.read(tensor), atol=2e-6), tensor
    assert written.rank == 2


def test_the_error_is_that_of_the_model_that_is_read_back(tmp_path: Path) -> None:
    """Over all tensors, with what is left out; and as the files say."""
    base = save_base("llama-tied", tmp_path / "base")
    expert = fine_tune("llama-tied", base, tmp_path / "expert", 6, rest=0.05)
    origin, wanted = Checkpoint.open(base), Checkpoint.open(expert)
    for rest in ("save", "all", "leave"):
        out = tmp_path / rest
        written = write(base, expert, out, Rank(most=3), rest=rest)
        found = open_adapter(out, origin)
        lost = sum(float((wanted.read(name) - found.read(name)).double().square().sum()) for name in wanted.tensors)
        whole = sum(float((wanted.read(name) - origin.read(name)).double().square().sum()) for name in wanted.tensors)
        assert written.error == pytest.approx(math.sqrt(lost / whole), rel=1e-4)
        size = (out / "adapter_model.safetensors").stat().st_size
        assert 0 < size - written.size < 8000
        kept = {"save": {"model.embed_tokens.weight"}, "all": set()}
        assert set(written.counted("left out")) == kept.get(rest, set(written.counted("left out")))
        assert (rest == "leave") == ("model.norm.weight" in written.counted("left out"))
    assert not any(each.name.startswith(".") for each in tmp_path.iterdir())


@pytest.mark.slow
def test_an_error_gives_each_matrix_its_own_rank(tmp_path: Path) -> None:
    base = save_base("gpt2", tmp_path / "base")
    expert = fine_tune("gpt2", base, tmp_path / "expert", 5)
    written = write(base, expert, tmp_path / "adapter", Rank(error=0.5), rest="leave")
    products = [written.tensors[name] for name in written.counted("product")]
    assert all(each.error <= 0.5 + 1e-6 for each in products)
    assert len({each.rank for each in products}) > 1
    peft = merged_by_peft("gpt2", base, tmp_path / "adapter", tmp_path / "merged")
    ours = open_adapter(tmp_path / "adapter", Checkpoint.open(base))
    assert all(torch.allclose(ours.read(name), peft.read(name), atol=1e-6) for name in peft.tensors)


def test_a_weighted_sum_of_adapters_is_one_adapter_and_never_dense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.6·BA + 0.9·B'A' has rank 4: written exactly at rank 4, best at rank 3, without a dense difference."""
    base = write_base(tmp_path / "base")
    folders = {}
    for number, alias in enumerate(("one", "two")):
        tensors = {}
        for layer in range(2):
            a, b = factors(10 * number + layer)
            stem = ROOT + LAYER.format(layer)
            tensors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
        folders[alias] = write_adapter_folder(tmp_path / alias, tensors)
    sources = Sources.load(base, folders)
    assignment = Assignment.of("task_arithmetic", {"one": {"coefficient": 0.6}, "two": {"coefficient": 0.9}})
    recipe = Recipe("base", sources.refs, dict.fromkeys(sources.layout.groups, assignment))
    merged = Checkpoint.open(export(recipe, sources, tmp_path / "model"))
    difference = OfMerge(recipe, sources)
    dense = {name: difference.dense(name) for name in difference.names}
    monkeypatch.setattr(difference, "dense", lambda name: pytest.fail(f"{name} was made dense"))
    exact = write_adapter(difference, tmp_path / "four", Rank(most=4))
    assert exact.error < 1e-6 and exact.rank == 4
    found = open_adapter(tmp_path / "four", sources.checkpoints["base"])
    assert all(torch.allclose(found.read(name), merged.read(name), atol=1e-5) for name in merged.tensors)
    less = write_adapter(difference, tmp_path / "three", Rank(most=3))
    best = [torch.linalg.svdvals(each.double()).square() for each in dense.values() if each.any()]
    assert less.error == pytest.approx(math.sqrt(sum(float(s[3:].sum()) for s in best) / sum(map(torch.sum, best))))


def test_the_weights_of_linear_merges() -> None:
    def weights(method: str, coefficients: dict[str, float], **shared: float | bool) -> dict[str, float] | None:
        sources = {alias: {"coefficient": each} for alias, each in coefficients.items()}
        return linear_weights(canonical(Assignment.of(method, sources, **shared)))

    assert weights("task_arithmetic", {"a": 0.5, "b": 2.0}, scale=0.5) == {"a": 0.25, "b": 1.0}
    assert weights("task_arithmetic", {"a": 1.0, "b": 3.0}, normalize=True, delta_scale=2.0) == {"a": 0.5, "b": 1.5}
    assert weights("linear", {"a": 1.0, "b": 3.0}) == {"a": 0.25, "b": 0.75}
    assert weights("linear", {"a": 1.0, "b": 3.0}, normalize=False) is None  # it scales the base too
    assert linear_weights(canonical(Assignment.of("model_stock", {"a": {}, "b": {}}))) is None


def test_the_card_says_what_is_lost_and_no_path(tmp_path: Path) -> None:
    base = save_base("llama-tied", tmp_path / "base")
    expert = fine_tune("llama-tied", base, tmp_path / "expert", 6, rest=0.05)
    about = About(
        "a <b>bold</b> title", str(base), made_of=("math", "co`de"), by="by ties", licence="mit", recipe="a: 1"
    )
    written = write_adapter(
        OfModel(Checkpoint.open(base), Checkpoint.open(expert)), tmp_path / "out", Rank(most=1), about=about
    )
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert front == {"library_name": "peft", "license": "mit", "tags": ["lora", "paretomerge"]}
    assert f"{written.error:.2%}" in text and "left out" in text and "score the adapter" in text
    assert str(tmp_path) not in text and "<b>" not in text
    card = About("t", "owner/name").hub_id
    assert card == "owner/name" and About("t", "models/../name").hub_id is None
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(base)


def test_what_cannot_be_an_adapter_is_refused(tmp_path: Path) -> None:
    base = save_base("llama", tmp_path / "base")
    with pytest.raises(MergingError, match="found no difference"):
        write(base, base, tmp_path / "same", Rank(most=2))
    other = save_base("gpt2", tmp_path / "other")
    with pytest.raises(MergingError, match="one architecture"):
        write(base, other, tmp_path / "other-out", Rank(most=2))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(MergingError, match="new or empty folder"):
        write(base, base, tmp_path / "full", Rank(most=2))
    assert not (tmp_path / "same").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_base("llama", tmp_path / "base")
    expert = fine_tune("llama", base, tmp_path / "expert", 2)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("merging.lora.write.save_file", full)
    with pytest.raises(MergingError, match="disk became full"):
        write(base, expert, tmp_path / "out" / "adapter", Rank(most=2))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_vector_or_an_adapter_can_be_exported_at_another_rank(tmp_path: Path) -> None:
    """As `paretomerge vector export --lora` does; the facts are plain data."""
    base = Checkpoint.open(write_base(tmp_path / "base"))
    adapter = open_adapter(write_adapter_folder(tmp_path / "adapter"), base)
    facts = export_adapter(base, adapter, tmp_path / "out", "1")
    assert json.loads(json.dumps(facts)) == facts
    s = torch.linalg.svdvals((adapter.read(Q0) - base.read(Q0)).double())
    assert facts["error"] == pytest.approx(float(s[1] / s[:2].norm()), rel=1e-5)
    again = export_adapter(base, adapter, tmp_path / "again", "auto:0.001")
    assert again["rank"] == 2 and again["error"] < 1e-6
