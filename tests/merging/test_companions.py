"""Whose tokenizer and settings a merged model has, and what is found when a folder is read back."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from merging.checkpoint import SINGLE, Checkpoint
from merging.companions import choose_companions
from merging.export import export
from merging.materialize import Sources
from merging.recipe import Assignment, MergingError, Recipe
from merging.verification import verify_export

Build = Callable[..., Recipe]
HALF = Assignment.of("linear", {"a": {"coefficient": 1.0}, "b": {"coefficient": 1.0}})
TOKENS = {f"t{number}": number for number in range(53)}


@pytest.fixture
def folders(families: Callable[..., Any], tmp_path: Path) -> dict[str, Path]:
    """Three models with one vocabulary, of a test's own."""
    family = families("llama")
    found = {alias: tmp_path / alias for alias in ("base", "a", "b")}
    for alias, folder in found.items():
        shutil.copytree(getattr(family, alias), folder)
        say(folder, "tokenizer.json", model={"type": "WordLevel", "vocab": TOKENS}, added_tokens=[])
        say(folder, "tokenizer_config.json", eos_token="t2", bos_token={"content": "t1", "lstrip": False})
        say(folder, "generation_config.json", eos_token_id=2, transformers_version=alias)
    return found


def say(folder: Path, name: str, **changes: Any) -> None:
    file = folder / name
    data = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(data | changes))


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def load(folders: dict[str, Path]) -> Sources:
    return Sources.load(folders["base"], {alias: folders[alias] for alias in ("a", "b")})


def test_where_all_agree_it_is_the_bases(folders: dict[str, Path]) -> None:
    found = choose_companions(load(folders))
    assert (found.alias, found.notes, found.special_differ) == ("base", (), False)
    assert found.said == "the base's; all models agree"


def test_a_plain_base_takes_the_experts_common_chat_template(
    folders: dict[str, Path], uniform: Build, tmp_path: Path
) -> None:
    for alias in ("a", "b"):
        (folders[alias] / "chat_template.jinja").write_text("{{ messages }}")
        say(folders[alias], "tokenizer_config.json", eos_token="t7")
        say(folders[alias], "generation_config.json", eos_token_id=[2, 7], temperature=0.6)
        say(folders[alias], "config.json", eos_token_id=7)
    sources = load(folders)
    found = choose_companions(sources)
    assert found.alias == "a" and found.special_differ
    assert "chat templates differ: base: none; a, b: one of its own." in found.notes
    assert 'eos_token differs: base: "t2"; a, b: "t7".' in found.notes
    assert "tokens that end an answer differ: base: [2]; a, b: [2, 7]." in found.notes
    assert found.notes[-1].endswith(
        "those of a, since the base has no chat template and the experts that have one agree on it."
    )
    out = export(uniform(sources, HALF), sources, tmp_path / "out", companions=found)
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
    written = read(out, "generation_config.json")
    assert written["eos_token_id"] == [2, 7] and written["temperature"] == 0.6
    assert read(out, "tokenizer_config.json")["eos_token"] == "t7" and read(out, "config.json")["eos_token_id"] == 7
    plain = export(uniform(sources, HALF), sources, tmp_path / "plain", companions=choose_companions(sources, "base"))
    assert not (plain / "chat_template.jinja").exists() and read(plain, "config.json")["eos_token_id"] == 2
    assert Checkpoint.open(plain).content == Checkpoint.open(out).content


def test_where_the_experts_differ_it_is_the_bases_and_said(folders: dict[str, Path]) -> None:
    say(folders["a"], "tokenizer_config.json", chat_template="one")
    say(folders["b"], "tokenizer_config.json", chat_template=[{"name": "default", "template": "two"}])
    sources = load(folders)
    found = choose_companions(sources)
    assert found.alias == "base" and "the experts' chat templates or special tokens differ" in found.why
    assert found.notes[0] == "chat templates differ: base: none; a: template 1; b: template 2."
    asked = choose_companions(sources, "b")
    assert asked.alias == "b" and asked.why == "as asked for" and not asked.special_differ
    say(folders["base"], "tokenizer_config.json", chat_template="own")
    assert choose_companions(load(folders)).why == "which is the rule"


def test_a_model_with_other_token_numbers_gives_no_tokenizer(folders: dict[str, Path]) -> None:
    swapped = TOKENS | {"t5": 6, "t6": 5}
    for alias in ("a", "b"):
        (folders[alias] / "chat_template.jinja").write_text("x")
        say(folders[alias], "tokenizer.json", model={"type": "WordLevel", "vocab": swapped})
    sources = load(folders)
    found = choose_companions(sources)
    assert found.alias == "base" and "the tokens of a are numbered otherwise" in found.why
    with pytest.raises(MergingError, match=r"--tokenizer-from a: its tokens have other numbers"):
        choose_companions(sources, "a")
    with pytest.raises(MergingError, match=r"one of the models base, a, b, found 'c'"):
        choose_companions(sources, "c")


def test_no_file_says_where_a_model_lay(folders: dict[str, Path], uniform: Build, tmp_path: Path) -> None:
    place = str(tmp_path / "secret")
    say(folders["base"], "config.json", _name_or_path=place, text_config={"_name_or_path": place, "kept": 1})
    say(folders["base"], "tokenizer_config.json", name_or_path=place, tokenizer_file=f"{place}/t.json", eos_token="/")
    (folders["base"] / "special_tokens_map.json").write_text('{"eos_token":   "/"}')
    sources = load(folders)
    out = export(uniform(sources, HALF), sources, tmp_path / "out")
    assert not any("secret" in file.read_text() for file in out.glob("*.json"))
    assert read(out, "config.json")["text_config"] == {"kept": 1}
    assert read(out, "tokenizer_config.json")["eos_token"] == "/"
    assert (out / "special_tokens_map.json").read_text() == '{"eos_token":   "/"}'  # as it was


def test_half_a_letter_is_handed_on(folders: dict[str, Path], uniform: Build, tmp_path: Path) -> None:
    say(folders["base"], "generation_config.json", stop="\ud800", _name_or_path="/x")
    sources = load(folders)
    out = export(uniform(sources, HALF), sources, tmp_path / "out")
    assert read(out, "generation_config.json")["stop"] == "\ud800"


def test_settings_that_cannot_be_read_say_nothing(folders: dict[str, Path]) -> None:
    (folders["a"] / "tokenizer_config.json").write_text("{")
    (folders["b"] / "special_tokens_map.json").write_text("[]")
    assert choose_companions(load(folders)).alias == "base"


def test_what_was_written_is_read_back(llama: Sources, uniform: Build, tmp_path: Path) -> None:
    recipe = uniform(llama, HALF)
    out = export(recipe, llama, tmp_path / "out", max_shard_size=10_000)
    found = verify_export(out, recipe, llama)
    assert found.content == Checkpoint.open(out).content and found.tensors == len(Checkpoint.open(out).tensors)
    assert found.files == {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in out.glob("*.safetensors")}
    assert len(found.files) > 5


def test_one_flipped_bit_is_found(llama: Sources, uniform: Build, tmp_path: Path) -> None:
    recipe = uniform(llama, HALF)
    out = export(recipe, llama, tmp_path / "out")
    content = bytearray((out / SINGLE).read_bytes())
    content[-1] ^= 0x80  # the sign of the last weight
    (out / SINGLE).write_bytes(content)
    with pytest.raises(MergingError, match=r"is not what its recipe describes: the weights of .* have other bits"):
        verify_export(out, recipe, llama)
    other = uniform(llama, HALF, dtype="bfloat16")
    with pytest.raises(MergingError, match=r"tensors are missing or of another kind"):
        verify_export(out, other, llama)


def test_a_folder_that_is_refused_at_the_end_is_not_there(llama: Sources, uniform: Build, tmp_path: Path) -> None:
    seen = []

    def refuse(folder: Path) -> None:
        seen.append(sorted(file.name for file in folder.iterdir()))
        raise OSError(28, "No space left on device")

    with pytest.raises(MergingError, match="the disk became full while"):
        export(uniform(llama, HALF), llama, tmp_path / "out", finish=refuse)
    assert SINGLE in seen[0] and "recipe.yaml" in seen[0] and list(tmp_path.iterdir()) == []
