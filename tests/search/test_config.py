"""Wrong configs are told with file, line, column and what to do; right ones mean what they say."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from search.config import load_config, resolved_yaml
from search.errors import SearchError
from search.positions import ConfigError
from search.schema import Config
from search.setup import build_evaluator

GOOD = """\
name: demo
models:
  base: base
  experts:
    string: experts/string
    language: experts/language
evaluators:
  string: {type: exact_match, data: data/string}
  language: {type: exact_match, data: data/language}
objectives: [string.accuracy, language.accuracy]
space:
  granularity: {knots: 3}
search:
  optimizer: {name: sms_emoa}
  budget: {candidates: 50}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def message(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(SearchError) as caught:
        load_config(write(folder, text), overrides)
    return str(caught.value)


def test_a_good_config_has_its_defaults_written_out(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD)).config
    assert config.search.seed == 0
    assert config.space.methods == ["task_arithmetic"]
    assert [each.metric for each in config.objectives] == ["string.accuracy", "language.accuracy"]
    text = resolved_yaml(config)
    assert "per_expert_share" in text
    import yaml

    assert Config.model_validate(yaml.safe_load(text)) == config


WRONG = {
    "a misspelt key": (
        ("granularity:", "granularty:"),
        "config.yaml:12:3: space.granularty: unknown key. Did you mean 'granularity'?",
    ),
    "a missing section": (
        ("search:\n  optimizer: {name: sms_emoa}\n  budget: {candidates: 50}\n", ""),
        "search: is required",
    ),
    "a missing budget": (("  budget: {candidates: 50}\n", ""), "config.yaml:13:1: search.budget: is required"),
    "a metric twice": (
        ("[string.accuracy, language.accuracy]", "[string.accuracy, string.accuracy]"),
        "config.yaml:10:1: objectives: a metric is named twice",
    ),
    "a wrong type": (("candidates: 50", "candidates: many"), "config.yaml:15:24: search.budget.candidates: "),
    "a number out of range": (("candidates: 50", "candidates: 0"), "greater than or equal to 1"),
    "an unknown optimizer": (
        ("{name: sms_emoa}", "smsemoa"),
        "found 'smsemoa'. Did you mean 'sms_emoa'?",
    ),
    "an unknown option of an optimizer": (
        ("{name: sms_emoa}", "{name: sms_emoa, popsize: 3}"),
        "config.yaml:14:31: search.optimizer.popsize: unknown key",
    ),
    "an unknown evaluator": (
        ("string: {type: exact_match", "string: {type: exactmatch"),
        'config.yaml:8:18: evaluators.string.type: no evaluator is called "exactmatch"; did you mean "exact_match"?',
    ),
    "an unknown option of an evaluator": (
        ("data: data/string}", "data: data/string, modus: auto}"),
        "evaluators.string.modus: unknown key. Did you mean 'mode'?",
    ),
    "an objective of no evaluator": (
        ("[string.accuracy,", "[strings.accuracy,"),
        "config.yaml:10:14: objectives.0: there is no evaluator 'strings'; there are: string, language. Did you mean "
        "'string'?",
    ),
    "an objective without a metric": (("[string.accuracy,", "[string,"), "expected evaluator.metric"),
    "bounds the wrong way round": (
        ("  granularity", "  coefficient: [1.5, 0.0]\n  granularity"),
        "config.yaml:12:3: space.coefficient: expected [low, high] with low < high",
    ),
    "a wrong granularity": (
        ("{knots: 3}", "{knot: 3}"),
        "config.yaml:12:3: space.granularity: expected model, layer, tensor, lines, {knots: k}, {blocks: n} or "
        "{blocks: auto}, found {'knot': 3}",
    ),
    "an unknown module kind": (
        ("  granularity", "  kinds: [[attention], [mpl]]\n  granularity"),
        "config.yaml:12:25: space.kinds.1.0: expected 'attention', 'mlp', 'norm', 'embedding', 'head' or 'other', "
        "found 'mpl'. Did you mean 'mlp'?",
    ),
    "a key twice": (("search:\n", "name: again\nsearch:\n"), "config.yaml:13:1: key 'name' stands here and in line 1"),
    "workers that are a number": (
        ("space:", "workers: 3\nspace:"),
        "config.yaml:11:10: workers: expected keys with values (kind, count, schedule, ",
    ),
    "a misspelt key of workers": (
        ("space:", "workers: {kind: ray, cuont: 3}\nspace:"),
        "config.yaml:11:22: workers.cuont: unknown key. Did you mean 'count'? Known keys: kind, count, ",
    ),
    "a time that is none": (
        ("space:", "workers: {timeout: soon}\nspace:"),
        "config.yaml:11:20: workers.timeout: expected seconds > 0, auto or null, found 'soon'",
    ),
    "a time that no timer takes": (
        ("space:", "workers: {timeout: 1.0e+300}\nspace:"),
        "config.yaml:11:20: workers.timeout: expected seconds > 0, auto or null, found 1e+300",
    ),
    "hours without end": (("candidates: 50", "candidates: 50, hours: .inf"), "search.budget.hours: expected a finite"),
    "a plateau that is a number": (
        ("candidates: 50", "candidates: 50, plateau: 3"),
        "search.budget.plateau: expected keys with values (candidates, gain), found 3",
    ),
    "an unknown tracker": (
        ("space:", "trackers: {mlflow: {}}\nspace:"),
        "config.yaml:11:12: trackers.mlflow: expected 'tensorboard' or 'wandb', found 'mlflow'",
    ),
    "an unknown option of a tracker": (
        ("space:", "trackers:\n  tensorboard: {flush_secs: 3}\nspace:"),
        "config.yaml:12:17: trackers.tensorboard.flush_secs: unknown key. Did you mean 'flush_seconds'?",
    ),
    "a wrong option of a tracker": (
        ("space:", "trackers:\n  wandb: {mode: nope}\nspace:"),
        "config.yaml:12:17: trackers.wandb.mode: expected 'offline' or 'online', found 'nope'",
    ),
    "not YAML": (("[string.accuracy, language.accuracy]", "[string.accuracy"), "config.yaml:11:6: not valid YAML"),
    "a tag that asks for an object": (
        ("name: demo", "name: !!python/name:os.system"),
        "config.yaml:1:7: not valid YAML",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_configs_say_where_and_what(case: str, tmp_path: Path) -> None:
    (old, new), expected = WRONG[case]
    assert old in GOOD
    text = message(tmp_path, GOOD.replace(old, new, 1))
    assert expected in text
    assert "Traceback" not in text


def test_a_written_key_overrides_one_that_is_merged(tmp_path: Path) -> None:
    text = GOOD.replace("string: {type", "string: &one {type").replace(
        "{type: exact_match, data: data/language}", "{<<: *one, data: data/language}"
    )
    assert load_config(write(tmp_path, text)).config.evaluators["language"] == {
        "type": "exact_match",
        "data": "data/language",
    }
    line = "language: {<<: *one, data: data/language"
    assert "key 'data' stands here" in message(tmp_path, text.replace(line, line + ", data: x"))
    assert "config.yaml:9:30: evaluators.language.data:" in message(tmp_path, text.replace(line, line[:-13] + "3"))


def test_the_caret_points_at_the_column(tmp_path: Path) -> None:
    lines = message(tmp_path, GOOD.replace("candidates: 50", "candidates: many")).splitlines()
    assert lines[1] == "      budget: {candidates: many}"
    assert lines[2].index("^") == lines[1].index("many")


def test_all_errors_come_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("granularity", "granularty").replace("candidates: 50", "candidates: -1")
    text = text.replace("{name: sms_emoa}", "nsga").replace("type: exact_match, data: data/string", "type: exact")
    found = message(tmp_path, text)
    assert len([line for line in found.splitlines() if "config.yaml:" in line]) == 4


def test_slerp_needs_two_experts(tmp_path: Path) -> None:
    text = GOOD.replace("    language:", "    third: x\n    language:", 1)
    text = text.replace("  granularity", "  methods: [task_arithmetic, slerp]\n  granularity")
    assert "space.methods.1: slerp merges exactly two experts, found 3" in message(tmp_path, text)


def test_overrides_replace_values_and_name_themselves_in_errors(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    config = load_config(path, ["search.budget.candidates=7", "space.methods=[linear, slerp]"]).config
    assert (config.search.budget.candidates, config.space.methods) == (7, ["linear", "slerp"])
    assert "(with --set search.budget.candidates=x)" in message(tmp_path, GOOD, "search.budget.candidates=x")
    assert "expected key.path=value" in message(tmp_path, GOOD, "nonsense")
    assert "is a value in the config" in message(tmp_path, GOOD, "name.x=1")
    assert "'9' is not an index of that list" in message(tmp_path, GOOD, "objectives.9.metric=a.b")
    assert "'x' is not an index of that list" in message(tmp_path, GOOD, "objectives.x.metric=a.b")


def test_paths_are_found_beside_the_config_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "model").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "other").mkdir()
    monkeypatch.chdir(elsewhere)
    loaded = load_config(write(tmp_path / "beside", GOOD))
    assert loaded.resolve("model") == tmp_path / "beside" / "model"
    assert loaded.resolve("other") == Path("other")
    assert loaded.resolve(str(tmp_path)) == tmp_path


def test_files_that_are_no_configs(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match=r"expected a config file, found nothing there"):
        load_config(tmp_path / "none.yaml")
    write(tmp_path, GOOD)
    with pytest.raises(SearchError, match=r"Did you mean 'config\.yaml'"):
        load_config(tmp_path / "confg.yaml")
    with pytest.raises(SearchError, match="found a folder"):
        load_config(tmp_path)
    assert "expected keys such as" in message(tmp_path, "- a\n- b\n")
    (tmp_path / "config.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(SearchError, match="expected UTF-8"):
        load_config(tmp_path / "config.yaml")
    assert "is required" in message(tmp_path, "")


def test_of_a_long_line_the_part_around_the_caret_is_shown(tmp_path: Path) -> None:
    experts = ", ".join(f"expert{number}: models/number{number}" for number in range(12))
    text = GOOD.replace("    string: experts/string\n    language: experts/language\n", "")
    text = text.replace("  experts:\n", f"  experts: {{string: a, language: b, {experts}, last: [3]}}\n")
    first, line, caret = message(tmp_path, text).splitlines()
    column = int(first.split(":")[2])
    assert column > 300 and len(line) < 100
    assert line.strip().startswith("…") and line[caret.index("^") :].startswith("last: [3]")
    assert text.splitlines()[3][column - 1 :].startswith("last: [3]")


def test_an_error_of_a_config_crosses_processes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, GOOD.replace("candidates: 50", "candidates: 0")), ["search.seed=3"])
    sent = pickle.loads(pickle.dumps(caught.value))
    assert (str(sent), sent.placed, sent.file) == (str(caught.value), caught.value.placed, caught.value.file)
    assert str(sent).endswith("(with --set search.seed=3)")


def test_a_mistake_without_a_place_gets_one(tmp_path: Path) -> None:
    loaded = load_config(write(tmp_path, GOOD))
    with pytest.raises(ConfigError, match=r"config\.yaml:14:3: search\.optimizer: too slow"):  # noqa: SIM117
        with loaded.placing("search", "optimizer"):
            raise SearchError("too slow")
    with pytest.raises(ConfigError, match=r"config\.yaml:1:7: name: not nice"):  # noqa: SIM117
        with loaded.placing("search", "optimizer"):
            raise loaded.error(("name",), "not nice")


def test_an_option_of_an_evaluator_that_an_error_speaks_of(tmp_path: Path) -> None:
    loaded = load_config(write(tmp_path, GOOD))
    with pytest.raises(ConfigError, match=r"config\.yaml:8:37: evaluators\.string\.data: data: expected a folder"):
        build_evaluator(loaded, "string")
