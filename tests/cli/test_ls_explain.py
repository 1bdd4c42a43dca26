"""``ls`` and ``explain``: every method is there, what they print is true, and both stay usable by machines."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml
from rich.cells import cell_len

import search.naming as naming
from merging.methods import canonical, get, names, registry
from merging.recipe import Assignment
from search.cli import run_command
from search.method_facts import method_facts, needs_text, range_text
from search.presets import PRESETS

PLUG_IN = '''
"""A method of somebody else."""

from merging.methods import Method, Needs, Parameter


class Mine(Method):
    """Does as it likes.

    At ``length``,
    over two lines.
    """

    name = "mine"
    scope = "model"
    needs = Needs(base=True, minimum=3, calibration=True)
    formula = "θ = [whatever] /it/ wants"
    paper = "none"
    parameters = (
        Parameter("must", float, "has no default", low=2.0, high=4.0, per_source=True),
        Parameter("steps", int, "has none either", low=1),
    )

    def apply(self, context, values, out):
        out.copy_(context.base)


class Fussy(Mine):
    """Takes what nobody can guess."""

    def reduce(self, assignment):
        from merging.recipe import MergingError

        raise MergingError("only 2.718 will do")
'''


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal on which no cell is wrapped."""
    monkeypatch.setenv("COLUMNS", "400")


@pytest.fixture
def plug_in(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(PLUG_IN, encoding="utf-8")
    return f"{tmp_path / 'mine.py'}"


def output(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert run_command(list(command)) == 0
    captured = capsys.readouterr()
    said = [line for line in captured.err.splitlines() if not line.startswith("note: the code of a plug-in is run: ")]
    assert said == []
    return captured.out


def test_every_method_has_a_row_with_its_formula(wide: None, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {line.split()[0]: line for line in output(capsys, "ls", "methods").splitlines() if line.strip()}
    assert set(names()) <= rows.keys()
    for name in names():
        assert get(name).formula in rows[name] and get(name).scope in rows[name]
    assert "exactly 2 sources" in rows["slerp"] and "base with on=task_vectors" in rows["slerp"]
    assert "exactly 1 source " in rows["nearswap"] and "base" in rows["nearswap"]
    assert "nothing but sources" in rows["linear"]
    assert "base, at least 2 sources" in rows["model_stock"]


def test_the_list_is_the_same_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(output(capsys, "ls", "methods", "--json"))
    assert [row["name"] for row in rows] == list(names())
    assert rows == json.loads(json.dumps([method_facts(name) for name in names()]))


def test_a_broken_package_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch, wide: None, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = EntryPoint("broken", "no.such.package:Method", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "_plug_ins", lambda: {"broken": broken})
    rows = json.loads(output(capsys, "ls", "methods", "--json"))
    assert len(rows) == len(registry.BUILT_IN) + 1
    (row,) = (row for row in rows if "error" in row)
    assert row["name"] == "broken" and "no.such.package" in row["error"]
    assert "failed to load" in output(capsys, "ls", "methods")


def test_evaluators_and_optimizers_are_listed_with_their_options(
    wide: None, capsys: pytest.CaptureFixture[str]
) -> None:
    text = output(capsys, "ls", "evaluators")
    assert "exact_match" in text and "data (required)" in text
    text = output(capsys, "ls", "optimizers")
    assert "sms_emoa" in text and "crossover=0.8" in text
    rows = {row["name"]: row["options"] for row in json.loads(output(capsys, "ls", "optimizers", "--json"))}
    assert rows["random"] == []
    restarts = next(each for each in rows["cma"] if each["name"] == "restarts")
    assert restarts["required"] is False and restarts["default"] is True and "population" in restarts["says"]
    listed = json.loads(output(capsys, "ls", "evaluators", "--json"))
    (data,) = (each for each in listed[0]["options"] if each["required"])
    assert data["name"] == "data"


def test_lists_are_complete(capsys: pytest.CaptureFixture[str]) -> None:
    """What the committed schema and the glossary know is what the registries have."""
    from evaluators import registry as evaluators
    from search.optimizers import registry as optimizers

    assert set(naming.built_in("methods")) == set(registry.BUILT_IN)
    assert set(naming.built_in("evaluators")) == set(evaluators.BUILT_IN) == set(naming.glossary()["evaluators"])
    assert set(naming.built_in("optimizers")) == set(optimizers.BUILT_IN)
    for kind, known in (("evaluators", evaluators.names()), ("optimizers", optimizers.optimizers())):
        assert [row["name"] for row in json.loads(output(capsys, "ls", kind, "--json"))] == list(known)
    assert [row["name"] for row in json.loads(output(capsys, "ls", "presets", "--json"))] == list(PRESETS)


def test_presets_metrics_and_words_are_listed(wide: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert PRESETS["safety"].summary in output(capsys, "ls", "presets")
    assert "bits_per_byte" in output(capsys, "ls", "metrics") and "retention" in output(capsys, "ls", "words")


@pytest.mark.parametrize("name", sorted(registry.BUILT_IN))
def test_an_explanation_says_everything_that_is_declared(
    name: str, wide: None, capsys: pytest.CaptureFixture[str]
) -> None:
    text, method = output(capsys, "explain", name), get(name)
    assert method.formula in text and method.paper in text
    for parameter in method.parameters:
        (line,) = (line for line in text.splitlines() if line.split()[:1] == [parameter.name])
        assert parameter.doc in line
        assert ("each source" in line) == parameter.per_source
        assert ("required" in line) == (parameter.default is None)
        assert all(choice in line for choice in parameter.choices)
    assert "delta_scale" in text
    assert ("conventions" in text) == any(parameter.name == "convention" for parameter in method.parameters)


@pytest.mark.parametrize("name", sorted(registry.BUILT_IN))
def test_the_example_is_a_piece_of_a_recipe_and_canonical(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal of any width."""
    text = output(capsys, "explain", name)
    (group,) = yaml.safe_load(text[text.index("groups:\n") :])["groups"]
    assert group.pop("in") == ["attention.0", "mlp.0"]
    assignment = Assignment.of(group["method"], group["sources"], **group.get("parameters", {}))
    assert canonical(assignment) == assignment and assignment.method == name
    low, high = get(name).needs.minimum, get(name).needs.maximum
    assert low <= len(assignment.sources) <= (high or 99)


def test_explanations_for_machines_hold_plain_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(output(capsys, "explain", "ties", "--json"))
    by_name = {each["name"]: each for each in facts["parameters"]}
    assert facts["needs"] == {"base": True, "base_with": [], "sources": [0, None], "calibration": False}
    assert facts["conventions"] == ["paper", "mergekit"] and "arXiv 2306.01708" in facts["paper"]
    assert by_name["density"]["default"] == 0.2 and by_name["density"]["per_source"]
    assert (by_name["density"]["low"], by_name["density"]["high"]) == (0.0, 1.0)
    assert by_name["scale"]["low"] is None and by_name["coefficient"]["default"] is None
    assert facts["example"]["method"] == "ties"


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"type": "float", "low": None, "high": None, "choices": []}, "any number"),
        ({"type": "int", "low": 0, "high": None, "choices": []}, "0 and more"),
        ({"type": "float", "low": None, "high": 0.5, "choices": []}, "at most 0.5"),
        ({"type": "int", "low": 0, "high": 9007199254740991, "choices": []}, "0 … 9007199254740991"),
        ({"type": "bool", "low": None, "high": None, "choices": []}, "yes or no"),
        ({"type": "str", "low": None, "high": None, "choices": ["a", "b"]}, "a or b"),
    ],
)
def test_ranges_read_as_a_person_would_say_them(facts: dict[str, object], text: str) -> None:
    assert range_text(facts) == text


def test_a_method_in_a_file_is_explained(plug_in: str, wide: None, capsys: pytest.CaptureFixture[str]) -> None:
    facts = method_facts(f"{plug_in}:Mine")
    assert facts["doc"] == ["Does as it likes.", "At length, over two lines."]
    assert needs_text(facts["needs"]) == "base, at least 3 sources, calibration"
    sources = facts["example"]["sources"]
    assert len(sources) == 3 and all(2.0 <= values["must"] <= 4.0 for values in sources.values())
    assert facts["example"]["parameters"]["steps"] == 2
    # Square brackets and slashes are no markup.
    assert "θ = [whatever] /it/ wants" in output(capsys, "explain", f"{plug_in}:Mine")


def test_a_method_whose_example_cannot_be_guessed_is_explained_without(
    plug_in: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert json.loads(output(capsys, "explain", f"{plug_in}:Fussy", "--json"))["example"] is None
    assert "In a recipe" not in output(capsys, "explain", f"{plug_in}:Fussy")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["explain", "tise"], "did you mean 'ties'"),
        (["explain", "--json", "consensus"], "did you mean 'consensus_ta'"),
        (["explain", "qqqq"], "task_arithmetic"),
        (["ls", "method"], "methods"),
        (["ls"], "KIND"),
        (["ls", "methods", "runs"], "only `ls runs` takes a folder"),
        (["ls", "runs", "no/such/folder"], "found nothing there"),
        (["explain", "search.fidelty"], "did you mean 'search.fidelity'"),
        (["explain", "retenion"], "did you mean 'retention'"),
    ],
    ids=str,
)
def test_what_there_is_not_is_a_message_and_exit_code_2(
    command: list[str], message: str, wide: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(command) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message.lower() in captured.err.lower() and "Traceback" not in captured.err


@pytest.mark.parametrize("arguments", [["ls", "--help"], ["explain", "--help"], ["ls", "optimizers"]], ids=str)
def test_help_and_the_optimizers_need_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom search.cli import run_command\n"
        f"code = run_command({arguments!r})\n"
        "sys.exit(code or ('torch' in sys.modules) * 7)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- evaluators, keys, words --------------------------------------------------------------------------------------


def record_file(folder: Path, record: dict[str, object], count: int = 30) -> Path:
    """Records like the example, each different, and what they point to."""
    lines = []
    for number in range(count):
        each = {"id": str(number), **record}
        text = next((name for name, value in record.items() if isinstance(value, str) and name != "audio"), None)
        if text is not None:
            each[text] = f"{record[text]} {number}"
        if "score" in each:
            each["score"] = number % 5
        if "kind" in each:
            each["kind"] = ("harmful", "benign")[number % 2]
        lines.append(json.dumps(each))
    path = folder / "mine.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


TEXTUAL = ("exact_match", "choice", "perplexity", "length", "throughput", "python", "classification", "reward_pairs",
           "similarity", "refusal")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTUAL)
def test_the_example_of_an_evaluator_reads_its_example_record_and_reports_these_metrics(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an explanation prints them: the record as a line of the data, the section as the options."""
    from evaluators.registry import build

    text = output(capsys, "explain", name)
    record = json.loads(text.splitlines()[text.splitlines().index("A line of its data file:") + 1])
    section = yaml.safe_load(text.splitlines()[-1])["mine"]
    (tmp_path / "my_eval.py").write_text("def score(item, answer):\n    return item['answer'] == answer\n")
    section["data"] = {"file": str(record_file(tmp_path, record))}
    if "path" in section:
        section["path"] = str(tmp_path / section["path"])
    kind = section.pop("type")
    assert kind == name
    built = build(kind, section)
    declared = {each["name"]: each for each in naming.evaluator_facts(name)["metrics"] if each["with"] is None}
    assert {each.name for each in built.metrics} == set(declared)
    for metric in built.metrics:
        told = declared[metric.name]
        assert told["direction"] == metric.direction and told["unit"] == metric.unit
        if told["low"] is not None:
            assert told["low"] == metric.low and (told["high"] or float("inf")) == metric.high
    # a language model is a file that nobody ships
    monkeypatch.setattr("evaluators.fasttext_language.FasttextGate.__init__", lambda gate, _: setattr(gate, "told", ""))
    monkeypatch.setattr("evaluators.fasttext_language.FasttextGate.identity", "any")
    for each in naming.evaluator_facts(name)["metrics"]:
        if each["with"] is not None:
            more = build(kind, {**section, **yaml.safe_load(each["with"])})
            assert each["name"] in {metric.name for metric in more.metrics}


@pytest.mark.parametrize("name", naming.built_in("evaluators"))
def test_the_example_of_an_evaluator_is_a_section_that_a_config_may_have(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from search.config import load_config

    facts = json.loads(output(capsys, "explain", name, "--json"))
    config = {
        "name": "x",
        "models": {"base": "b", "experts": {"a": "a"}},
        "evaluators": {"mine": yaml.safe_load(facts["example"])},
        "objectives": [f"mine.{next(iter(facts['metrics']), {'name': 'acc'})['name']}"],
        "search": {"budget": {"candidates": 4}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert load_config(tmp_path / "config.yaml").config.evaluators["mine"]["type"] == name
    for option in facts["options"]:
        assert option["says"] or option["type"] == "keys", option
    assert facts["summary"]


@pytest.mark.parametrize("name", naming.built_in("optimizers"))
def test_an_optimizer_is_explained_with_every_option(name: str, wide: None, capsys: pytest.CaptureFixture[str]) -> None:
    from search.optimizers.registry import options_model

    text = output(capsys, "explain", name)
    for option in options_model(name).model_fields:
        (line,) = (line for line in text.splitlines() if line.split()[:1] == [option])
        assert len(line.split()) > 4, line
    assert f"optimizer: {name}" in text


def test_a_key_is_explained_with_range_default_and_what_is_below(
    wide: None, capsys: pytest.CaptureFixture[str]
) -> None:
    text = output(capsys, "explain", "search.fidelity")
    assert "race or halving" in text and "[40, 120, 360]" in text and "number > 0, < 0.5" in text
    assert "required" in output(capsys, "explain", "search.budget.candidates")
    assert "a key of a config" in output(capsys, "explain", "models.experts.whatever")
    assert "last_number" in output(capsys, "explain", "evaluators.math.extract")
    assert "search.budget.hours" in output(capsys, "explain", "hours")


def test_every_key_can_be_explained_and_says_something() -> None:
    assert len(naming.key_paths()) > 50
    for path in naming.key_paths():
        facts = naming.key_facts(path)
        assert facts is not None and facts["type"] not in ("", "anything"), path
        assert facts["summary"], path


def test_a_key_that_is_in_no_config_is_none() -> None:
    assert naming.key_facts("search.nothing") is None
    assert naming.key_facts("name.more") is None


@pytest.mark.parametrize(
    ("asked", "word"),
    [("Front", "front"), ("task_vector", "task vector"), ("items", "item"), ("data_flow", "data flow")],
)
def test_a_word_is_found_however_it_is_written(asked: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "explain", asked)
    assert f"{word}  a word" in text


def test_words_point_to_words_keys_and_nothing_else() -> None:
    keys = set(naming.key_paths())
    for word, facts in naming.words().items():
        for other in facts["see"]:
            assert other in naming.words() or other in keys, (word, other)


def test_a_name_of_several_things_is_explained_as_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(output(capsys, "explain", "virtual", "--json"))
    assert facts["kind"] == "preset"
    text = output(capsys, "explain", "accuracy")
    assert "exact_match" in text and "reward_pairs" in text
    search_and_key = json.loads(output(capsys, "explain", "budget", "--json"))
    assert search_and_key["kind"] == "word"


def test_a_preset_is_shown_as_it_will_be_filled_in(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "explain", "safety")
    assert "refusal_rate: {at_least: 0.9, confidence: 0.9}" in text and "paretomerge init safety" in text


@pytest.mark.parametrize("name", ["exact_match", "gp", "safety", "accuracy", "search", "front", "ties"])
def test_explanations_fit_eighty_columns_but_for_what_is_copied(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = output(capsys, "explain", name)
    assert not re.search(r"\w…", text)  # no cell is cut
    for line in text.splitlines():
        assert cell_len(line) <= 80 or line.lstrip().startswith(("#", "{", "mine:", "${")) or ": " in line, line
