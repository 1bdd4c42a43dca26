"""Configs, merge configs and recipes that are bombs, lie, or ask for code."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from attacking import Attack, Trap, cases
from small_models import MERGE, SEARCH, small_project

from merging import plain_yaml
from search.cli import run_command

LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12)
)
MERGED_LAUGHS = "a0: &a0 {x: 1}\n" + "".join(
    f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 10)}]}}\n" for level in range(1, 12)
)
BOMBS = {
    "billion laughs": (LAUGHS, "write out what is meant"),
    "billion laughs by merge keys": (MERGED_LAUGHS, "write out what is meant"),
    "an alias of itself": ("experts: &a [*a]\n", "inside of what it stands for"),
    "brackets": ("[" * 300_000, "nested too deeply"),
    "braces": ("{a: " * 100_000, "nested too deeply"),
    "dashes": ("- " * 100_000, "nested too deeply"),
    "a whole number": (f"seed: {'9' * 100_000}\n", "found one of 100000 characters"),
    "a whole number in hexadecimal": (f"seed: 0x{'f' * 399}\n"[:400], "64 bits"),
    "a whole number in sixties": (f"seed: {'59:' * 100}59\n", "64 bits"),
    "a date": ("when: 2001-13-45\n", "month must be in 1..12"),
    "a key twice": ("base: base\nbase: a\n", "base"),
    "two documents": ("a: 1\n---\nb: 2\n", "another document"),
    "bytes that are no text": ("a: \x07\n", "special characters are not allowed"),
    "an object": ("a: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
    "a module": ("a: !!python/module:antigravity\n", "could not determine a constructor"),
    "a name": ("a: !!python/name:os.system\n", "could not determine a constructor"),
    "a tag of a kilometre": (f"a: !{'b' * 500_000} c\n", "could not determine a constructor"),
}
COMMANDS = (("merge", "bad.yaml", "out"), ("check", "bad.yaml"), ("run", "bad.yaml"))


@pytest.mark.parametrize("bomb", cases(BOMBS, 1))
def test_bombs_are_refused_wherever_yaml_is_read(attack: Attack, bomb: str) -> None:
    text, reason = BOMBS[bomb]
    Path("bad.yaml").write_text(text)
    for command in COMMANDS:
        message = attack(*command).refusal
        assert "bad.yaml" in message and reason in message
        assert len(message) < 2500
    assert sorted(each.name for each in Path().iterdir()) == ["bad.yaml"]


@pytest.mark.parametrize(
    "text", ["base: &a base\nexperts: {one: *a, two: *a}\n", "a: &a {x: [1, 2.5, .inf]}\nb: {<<: *a}\n"]
)
def test_aliases_as_people_use_them_are_read(text: str) -> None:
    assert plain_yaml.load(text) == yaml.safe_load(text)


def test_as_many_repeated_values_as_are_allowed() -> None:
    row = f"[{', '.join('x' * 999)}]"
    fits = f"a: &a {row}\nb: [{', '.join(['*a'] * 1000)}]\n"
    assert len(plain_yaml.load(fits)["b"]) == 1000
    with pytest.raises(plain_yaml.PlainYamlError, match="aliases stand for 1e\\+06 values"):
        plain_yaml.load(fits + "c: [*a, *a]\n")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_files_without_an_end_are_not_read_to_it(attack: Attack, command: tuple[str, ...]) -> None:
    Path("bad.yaml").symlink_to("/dev/zero")
    assert "more than the" in attack(*command).refusal


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("models={{a: &a [*a]}}".replace("{{", "{").replace("}}", "}"), "inside of what it stands for"),
        (f"search.seed={'9' * 5000}", "found one of 5000 characters"),
        ("models=!!python/object/apply:os.system [true]", "could not determine a constructor"),
        (f"{'a.' * 5000}b=1", "unknown key"),
        ("search.budget.candidates=1e99", "candidates"),
    ],
)
def test_overrides_are_read_as_carefully(attack: Attack, override: str, reason: str) -> None:
    small_project()
    assert reason in attack("check", "search.yaml", "--set", override).refusal


MOST = 10**18
NUMBERS = [
    "search.budget.candidates", "search.seed", "search.finalists", "search.initial", "space.method_blocks",
    "space.granularity.knots", "space.granularity.blocks", "evaluators.one.limit", "evaluators.one.max_new_tokens",
    "engine.threads", "engine.batch_tokens", "search.fidelity.initial", "evaluators.one.prompt.few_shot.count",
]  # fmt: skip


@pytest.mark.parametrize("key", cases(NUMBERS, 1))
@pytest.mark.parametrize("value", [MOST, -1])
def test_numbers_that_nobody_means_cost_nothing(attack: Attack, key: str, value: int) -> None:
    """Refused, or as harmless as any large number; never a hang, a full memory or a traceback."""
    small_project()
    outcome = attack("check", "search.yaml", "--set", f"{key}={value}")
    assert outcome.code in (0, 2), outcome.err
    if outcome.code == 2:
        assert outcome.refusal


RECIPE_BOMBS = {
    "layers": ("layers: [{base: [0, 1000000000000]}]", "blocks"),
    "layers, many slices": ("layers: [" + "{base: [0, 100000]}, " * 1000 + "]", "blocks"),
    "depth": ("groups: [{in: [attention." + "9" * 5000 + "], method: linear, sources: {}}]", "recipe"),
    "huge coefficient": (
        "groups: [{in: [norm], method: linear, sources: {base: {coefficient: 1.0e+400}}}]", "recipe"
    ),
    "no number": ("groups: [{in: [norm], method: linear, sources: {base: {coefficient: .nan}}}]", "recipe"),
    "a list for a coefficient": ("groups: [{in: [norm], method: linear, sources: {base: {coefficient: [1]}}}]", ""),
    "numbers for names": ("sources: {1: {path: base, content: x}}", "recipe"),
    "made by itself": ("sources: {base: &b {path: x, content: y, made_by: {sources: {base: *b}}}}", "inside of what"),
    "format of a kilometre": ("dtype: " + "x" * 100_000, ""),
}  # fmt: skip


@pytest.mark.parametrize("bomb", cases(RECIPE_BOMBS, 1))
def test_recipes_that_are_bombs(attack: Attack, bomb: str) -> None:
    small_project()
    line, reason = RECIPE_BOMBS[bomb]
    recipe = {
        "format": "paretomerge-recipe/1", "base": "base",
        "sources": {"base": {"path": "base", "content": "sha256:" + "0" * 64}}, "dtype": None, "groups": [],
    }  # fmt: skip
    recipe.pop(line.partition(":")[0], None)
    Path("bad.yaml").write_text(yaml.safe_dump(recipe) + line + "\n")
    assert reason in attack("merge", "bad.yaml", "out").refusal
    assert not Path("out").exists()


MERGE_BOMBS = {
    "blocks": ("groups: {mlp." + "9" * 5000 + ": {method: linear}}\n", ""),
    "coefficient": ("expo: 1.0e+308\n", ""),
    "expression": ("vectors: '" + "(" * 3000 + "a" + ")" * 3000 + "'\n", "expression"),
    "power": ("vectors: 'a*9**9**9**9'\n", "expected models, numbers"),
    "call": ('vectors: \'__import__("os").system("true")*a\'\n', "expected models, numbers"),
    "attribute": ("vectors: 'a.__class__'\n", "expected models, numbers"),
}


@pytest.mark.parametrize("bomb", cases(MERGE_BOMBS, 1))
def test_merge_configs_that_are_bombs(attack: Attack, bomb: str) -> None:
    small_project()
    line, reason = MERGE_BOMBS[bomb]
    text = MERGE.replace("coefficients: {a: 0.5, b: 0.5}\n", "") if line.startswith("vectors") else MERGE
    Path("bad.yaml").write_text(text + line)
    assert reason in attack("merge", "bad.yaml", "out").refusal
    assert not Path("out").exists()


@pytest.mark.slow
def test_slices_of_mergekit_that_are_bombs(attack: Attack) -> None:
    small_project()
    Path("bad.yaml").write_text(
        "merge_method: passthrough\nslices:\n  - sources: [{model: base, layer_range: [0, 1000000000000]}]\n"
    )
    assert "but has 2" in attack("merge", "bad.yaml", "out").refusal


def test_control_characters_of_a_config_do_not_reach_the_terminal(attack: Attack) -> None:
    """What is wrong is quoted in the message: spelled out, since YAML can escape what it may not contain."""
    small_project()
    Path("bad.yaml").write_text(SEARCH.replace("name: attacked", r'name: "\e]0;owned\a\e[2J\u202E"'))
    message = attack("check", "bad.yaml").refusal
    assert "\\x1b" in message and "name" in message


@pytest.mark.slow
def test_nothing_was_run(trap: Trap, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for tag in ("apply", "new"):
        Path("bad.yaml").write_text(f"a: !!python/object/{tag}:builtins.exec [{trap.code!r}]\n")
        for command in COMMANDS:
            assert run_command(list(command)) == 2
    trap.assert_untouched()
