"""``init``: every preset gives a config that ``check`` accepts; what it guesses is said; nobody's file is lost."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from string import Template
from typing import Any

import jsonschema
import pytest
import yaml

from search.cli import run_command
from search.config import load_config
from search.config_schema import committed
from search.data_guess import guess
from search.model_kind import model_kind
from search.new_config import METRICS, parse_budget, parse_evaluator, parse_expert
from search.presets import PRESETS, template

NANO, SPEECH, DIGITS, REWARD = "zoo://skills-nano", "zoo://speech-nano", "zoo://digits", "zoo://reward"


def flags(family: str, experts: dict[str, str], evaluators: dict[str, str]) -> list[str]:
    """Command line options: experts by member, evaluators by data set."""
    found = ["--base", f"{family}/base"]
    for name, member in experts.items():
        found += ["--expert", f"{name}={family}/{member}"]
    for name, data in evaluators.items():
        found += ["--evaluator", f"{name}={family}/data/{data}"]
    return [*found, "--device", "cpu"]


SKILLS = flags(NANO, {"string": "string", "language": "language"}, {"string": "string", "language": "language"})
WITH = {
    "two_experts": ("skills-nano", SKILLS),
    "alpha_beta": ("skills-nano", SKILLS),
    "many_layers": ("skills-nano", SKILLS),
    "virtual": ("skills-nano", SKILLS),
    "data_flow": ("skills-nano", SKILLS),
    "safety": (
        "skills-nano",
        flags(NANO, {"string": "string", "safety": "refusal"}, {"string": "string", "safety": "refusal"}),
    ),
    "speech": (
        "speech-nano",
        flags(
            SPEECH,
            {"specific_syn": "specific_syn", "general_real": "general_real"},
            {"specific_real": "specific_real", "general_real": "general_real"},
        ),
    ),
    "images": (
        "digits",
        flags(DIGITS, {"rotated": "rotated", "inverted": "inverted"}, {"rotated": "rotated", "inverted": "inverted"}),
    ),
    "reward": (
        "reward",
        flags(REWARD, {"style": "style", "arithmetic": "arithmetic"}, {"style": "style", "arithmetic": "arithmetic"}),
    ),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, without a terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    return tmp_path


def model(folder: Path, architecture: str = "LlamaForCausalLM", **config: Any) -> str:
    """A folder that looks like a model: its config is all that ``init`` reads."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture], "num_hidden_layers": 2, **config}))
    return str(folder)


def rows(path: Path, *records: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(each)}\n" for each in records))
    return str(path)


@pytest.fixture
def small(here: Path) -> list[str]:
    """Flags for two models and two data files, all made up."""
    model(here / "base"), model(here / "math"), model(here / "chat")
    rows(here / "data/math.jsonl", {"question": "2 + 2?", "answer": "4"}, {"question": "3 + 3?", "answer": "6"})
    rows(here / "data/chat.jsonl", {"prompt": "hello", "answer": "hello you"}, {"prompt": "bye", "answer": "bye you"})
    return [
        "--base", "base", "--expert", "math=math", "--expert", "chat=chat", "--evaluator", "math=data/math.jsonl",
        "--evaluator", "chat=data/chat.jsonl",
    ]  # fmt: skip


# -- presets ----------------------------------------------------------------------------------------------------------


def test_what_a_preset_leaves_open_is_what_init_fills_in() -> None:
    known = {
        "name", "file", "base", "experts", "names", "evaluators", "objectives", "budget", "methods", "device", "safety",
    }  # fmt: skip
    for name in PRESETS:
        found = set(Template(template(name)).get_identifiers())
        assert found <= known, name
        assert {"name", "base", "experts", "evaluators", "objectives", "budget", "device"} <= found, name
    assert set(PRESETS) == {each.stem for each in (Path(committed()).parent / "presets").glob("*.yaml")}


def test_a_written_config_reads_and_names_what_was_given(
    here: Path, nano_zoo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["init", *SKILLS, "--budget", "60,8h", "--out", "mine.yaml"]) == 0
    text = (here / "mine.yaml").read_text()
    assert text.startswith(f"# yaml-language-server: $schema={committed()}\n")
    assert "${" not in text
    config = load_config(Path("mine.yaml")).config
    assert config.name == "mine" and config.models.base == f"{NANO}/base"
    assert dict(config.models.experts) == {"string": f"{NANO}/string", "language": f"{NANO}/language"}
    assert [each.metric for each in config.objectives] == ["string.accuracy", "language.accuracy"]
    assert (config.search.budget.candidates, config.search.budget.hours) == (60, 8.0)
    assert config.engine.device == "cpu"
    out = capsys.readouterr().out
    assert "string: exact_match" in out and "paretomerge check mine.yaml" in out


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH)
def test_every_preset_gives_a_config_that_check_accepts(name: str, here: Path) -> None:
    import zoo

    family, given = WITH[name]
    zoo.build(family)
    assert run_command(["init", name, *given]) == 0
    assert run_command(["check", "my_search.yaml"]) == 0
    schema = json.loads(committed().read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(yaml.safe_load(Path("my_search.yaml").read_text()))


@pytest.mark.slow
def test_the_lm_eval_preset_takes_tasks_and_names_a_metric_that_they_have(
    here: Path, nano_zoo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"id": str(n), "prompt": f"say {n}", "answer": str(n)}) for n in range(60)]
    (here / "all.jsonl").write_text("\n".join(lines))
    (here / "tasks").mkdir()
    (here / "tasks/mine.yaml").write_text(
        f"task: mine_say\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {here / 'all.jsonl'}}}}}\n"
        "test_split: test\noutput_type: generate_until\ndoc_to_text: '{{prompt}}'\ndoc_to_target: '{{answer}}'\n"
        "generation_kwargs: {until: ['\\n'], max_gen_toks: 4}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    models = flags(NANO, {"string": "string", "language": "language"}, {})
    assert run_command(["init", "lm_eval", *models, "--evaluator", "say=mine_say", "--tasks", "tasks"]) == 0
    config = load_config(Path("my_search.yaml")).config
    assert config.evaluators["say"] == {"type": "lm_eval", "tasks": "mine_say", "include_path": "tasks"}
    assert [each.metric for each in config.objectives] == ["say.exact_match"]
    assert run_command(["check", "my_search.yaml"]) == 0
    assert run_command(["init", "lm_eval", *models, "--evaluator", "say=no_such_task", "--out", "other.yaml"]) == 2
    assert "no_such_task" in capsys.readouterr().err and not (here / "other.yaml").exists()


def test_every_evaluator_has_an_objective_of_its_own_metrics() -> None:
    from search.naming import glossary

    for name, metric in METRICS.items():
        assert metric in glossary()["evaluators"][name]["metrics"]


# -- what is guessed ---------------------------------------------------------------------------------------------------

GUESSES: dict[str, tuple[dict[str, Any], Any, str, dict[str, Any]]] = {
    "plain": ({"prompt": "a", "answer": "b c"}, "text", "exact_match", {}),
    "numbers": (
        {"question": "2+2", "answer": "4"}, "text", "exact_match",
        {"prompt_field": "question", "extract": "last_number"},
    ),
    "worked out": (
        {"question": "2+2", "answer": "two and two\n#### 4"}, "text", "exact_match",
        {"prompt_field": "question", "extract": "last_number"},
    ),
    "letters": (
        {"instruction": "which?", "output": "B"}, "text", "exact_match",
        {"prompt_field": "instruction", "answer_field": "output", "extract": "choice"},
    ),
    "a list of choices": ({"question": "which?", "choices": ["a", "b"], "answer": 1}, "text", "choice", {}),
    "a column a choice": (
        {"Question": "which?", "A": "x", "B": "y", "answer": "A"}, "text", "choice",
        {"choices_field": ["A", "B"], "prompt": {"template": "Question: {Question}\nAnswer:"}},
    ),
    "documents": ({"text": "once upon a time"}, "text", "perplexity", {}),
    "speech": ({"path": "a.wav", "sentence": "hi"}, "speech", "wer", {"audio": "path", "text": "sentence"}),
    "images": ({"img": "a.png", "label": 3}, "images", "classification", {"image_field": "img"}),
    "pairs of answers": ({"prompt": "p", "chosen": "c", "rejected": "r"}, "reward", "reward_pairs", {}),
    "texts with labels": (
        {"sentence": "good", "label": 1}, "classifier", "classification", {"text_field": "sentence"},
    ),
    "entailment": (
        {"premise": "a", "hypothesis": "b", "label": 0}, "classifier", "classification",
        {"text_field": "premise", "pair_field": "hypothesis"},
    ),
    "likeness": ({"sentence1": "a", "sentence2": "b", "score": 3.0}, "embedding", "similarity", {}),
}  # fmt: skip


@pytest.mark.parametrize(("record", "kind", "type", "options"), GUESSES.values(), ids=GUESSES)
def test_the_evaluator_is_found_from_the_fields(
    record: dict[str, Any], kind: Any, type: str, options: dict[str, Any]
) -> None:
    found = guess([record, record], kind)
    assert found is not None and (found.type, found.options) == (type, options)
    assert type in found.why and next(iter(record)) in found.why


def test_a_guess_is_an_evaluator_that_reads_these_records(tmp_path: Path) -> None:
    """Whatever is guessed for a text, the evaluator itself takes the file."""
    from evaluators.registry import build

    for number, (record, kind, _, _) in enumerate(GUESSES.values()):
        if kind != "text":
            continue
        records = [{**record, "id": f"{number}-{place}", next(iter(record)): f"{place} {record[next(iter(record))]}"}
                   for place in range(30)]  # fmt: skip
        path = rows(tmp_path / f"{number}.jsonl", *records)
        found = guess(records, kind)
        assert found is not None
        built = build(found.type, {"data": {"file": path}, **found.options})
        assert sum(len(built.items(split)) for split in ("search", "selection", "holdout")) == 30


def test_prompts_that_say_harmful_or_benign_are_a_refusal_set_only_if_both_are_there() -> None:
    both = [{"prompt": "a", "answer": "x", "kind": "harmful"}, {"prompt": "b", "answer": "y", "kind": "benign"}]
    assert guess(both, "text").type == "refusal"  # type: ignore[union-attr]
    assert guess(both[:1], "text").type == "exact_match"  # type: ignore[union-attr]


def test_records_of_nothing_that_is_known_are_not_guessed() -> None:
    assert guess([{"x": 1, "y": 2}], "text") is None
    assert guess([{"prompt": "a", "answer": "b"}], "speech") is None
    assert guess([{"x": 1}], "text", "exact_match") is None


@pytest.mark.parametrize(
    ("architecture", "config", "kind"),
    [
        ("Qwen2ForCausalLM", {}, "text"),
        ("WhisperForConditionalGeneration", {"encoder_layers": 4}, "speech"),
        ("Wav2Vec2ForCTC", {}, "speech"),
        ("ViTForImageClassification", {}, "images"),
        ("LlamaForSequenceClassification", {"id2label": {"0": "x"}}, "reward"),
        ("BertForSequenceClassification", {"id2label": {"0": "x", "1": "y"}}, "classifier"),
        ("BertModel", {}, "embedding"),
        ("T5ForConditionalGeneration", {"num_layers": 6}, "text"),
    ],
)
def test_the_kind_of_a_model_is_read_from_its_config(
    architecture: str, config: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    found = model_kind(Path(model(tmp_path / "m", architecture, **config)))
    assert found.kind == kind and architecture in found.words and found.layers is not None


def test_fields_that_were_found_stand_in_the_config(here: Path, small: list[str]) -> None:
    assert run_command(["init", *small]) == 0
    section = load_config(Path("my_search.yaml")).config.evaluators["math"]
    assert section == {
        "type": "exact_match", "data": {"file": "data/math.jsonl"}, "prompt_field": "question",
        "extract": "last_number",
    }  # fmt: skip


def test_a_config_in_another_folder_finds_the_same_files(here: Path, small: list[str]) -> None:
    (here / "configs").mkdir()
    assert run_command(["init", *small, "--out", "configs/mine.yaml"]) == 0
    loaded = load_config(Path("configs/mine.yaml"))
    assert loaded.resolve(loaded.config.models.base).resolve() == (here / "base").resolve()
    assert loaded.config.models.base == "../base"


def test_names_that_yaml_would_read_as_something_else_stay_what_they_are(here: Path, small: list[str]) -> None:
    model(here / "0x10 # no: 'comment'"), model(here / "null")
    odd = [*small, "--expert", "odd=0x10 # no: 'comment'", "--expert", "on=null"]
    assert run_command(["init", *odd, "--out", "1e3.yaml"]) == 0
    config = load_config(Path("1e3.yaml")).config
    assert config.name == "1e3"
    assert config.models.experts["odd"] == "0x10 # no: 'comment'" and config.models.experts["on"] == "null"


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_without_a_terminal_the_missing_flags_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["init", "--expert", "a=b"]) == 2
    error = capsys.readouterr().err
    assert "--base PATH" in error and "--evaluator NAME=DATA" in error and "--expert NAME=PATH," not in error
    assert list(here.iterdir()) == []


def test_a_file_that_is_there_is_kept_unless_forced(
    here: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "my_search.yaml").write_text("mine\n")
    assert run_command(["init", *small]) == 2
    assert "--force" in capsys.readouterr().err
    assert (here / "my_search.yaml").read_text() == "mine\n"
    assert run_command(["init", *small, "--force"]) == 0
    assert "models:" in (here / "my_search.yaml").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--base", "nowhere"], "nowhere: expected a folder"),
        (["--base", "data"], "no config.json"),
        (["--expert", "base=math"], "name of the base model"),
        (["--expert", "two words=math"], "NAME=PATH"),
        (["--evaluator", "third=data/none.jsonl"], "data/none.jsonl"),
        (["--evaluator", "more=exactmatch:data/math.jsonl"], "Did you mean 'exact_match'?"),
        (["--evaluator", "chat=data/chat.jsonl"], "two evaluators"),
        (["--evaluator", "nothing"], "NAME=DATA"),
        (["--evaluator", "odd=odd.jsonl"], "fields x, y"),
        (["--budget", "many"], "400,8h"),
        (["--budget", "0"], "more than 0"),
        (["--out", "nowhere/x.yaml"], "no folder"),
        (["speech"], "two_experts"),
        (["safety"], "safety=refusal:DATA"),
        (["two_expert"], "Did you mean 'two_experts'?"),
    ],
    ids=str,
)
def test_a_mistake_is_a_message_and_writes_nothing(
    change: list[str], message: str, here: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows(here / "odd.jsonl", {"x": 1, "y": 2})
    before = sorted(each.name for each in here.iterdir())
    if change[0] == "--base":
        small = small[2:]
    assert run_command(["init", *small, *change]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err
    assert sorted(each.name for each in here.iterdir()) == before


def test_arguments_are_taken_apart() -> None:
    assert parse_evaluator("a=data/x")[:] == ("a", "", "data/x")
    assert parse_evaluator("a=wer:data/x")[:] == ("a", "wer", "data/x")
    assert parse_evaluator("a=zoo://digits/data")[:] == ("a", "", "zoo://digits/data")
    assert parse_evaluator("a=lm_eval:one,two")[:] == ("a", "lm_eval", "one,two")
    assert parse_expert("models/My Math!") == ("My-Math", "models/My Math!")
    assert [parse_budget(each) for each in ("400", "8h", "400,1.5h")] == [(400, None), (None, 8.0), (400, 1.5)]


def test_a_data_set_of_the_hub_is_named_and_not_asked_for(here: Path, small: list[str]) -> None:
    hub = ["--evaluator", "more=choice:hf://datasets/allenai/ai2_arc"]
    assert run_command(["init", *small, *hub]) == 0
    section = load_config(Path("my_search.yaml")).config.evaluators["more"]
    assert section == {"type": "choice", "data": {"dataset": "allenai/ai2_arc"}}


def test_hours_alone_leave_the_end_to_the_clock(here: Path, small: list[str]) -> None:
    assert run_command(["init", *small, "--budget", "2h"]) == 0
    budget = load_config(Path("my_search.yaml")).config.search.budget
    assert budget.hours == 2.0 and budget.candidates >= 10_000


def test_facts_for_machines(here: Path, small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["init", *small, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["config"] == "my_search.yaml" and facts["base"]["kind"] == "text"
    assert facts["objectives"] == ["math.accuracy", "chat.accuracy"] and len(facts["found"]) >= 3


# -- a terminal ------------------------------------------------------------------------------------------------------


def talk(folder: Path, answers: list[tuple[str, str]]) -> tuple[int, str]:
    """Answer each question of ``init`` on a pseudo-terminal once it is asked."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "80"}
    process = subprocess.Popen(
        [sys.executable, "-c", "from search.cli import main; main()", "init"],
        stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=environment,
    )  # fmt: skip
    os.close(slave)
    said = ""
    waiting = list(answers)
    end = time.monotonic() + 120
    try:
        while time.monotonic() < end:
            ready, _, _ = select.select([master], [], [], 0.2)
            if ready:
                try:
                    said += os.read(master, 4096).decode()
                except OSError:
                    break
            if waiting and re.search(waiting[0][0], said.rsplit("\n", 1)[-1]):
                os.write(master, f"{waiting.pop(0)[1]}\n".encode())
                said += "\n"  # what was asked is answered
        return process.wait(timeout=60), said
    finally:
        process.kill()
        os.close(master)


@pytest.mark.slow
def test_on_a_terminal_it_asks_for_everything(here: Path, small: Callable[..., Any]) -> None:
    code, said = talk(
        here,
        [
            (r"preset .*: $", "alphabeta"), (r"preset .*: $", "alpha_beta"), (r"base model .*: $", "nowhere"),
            (r"base model .*: $", "base"), (r"expert 1: $", "math=math"),
            (r"expert 2: $", "chat"), (r"expert 3: $", ""), (r"data for math: $", "data/math.jsonl"),
            (r"data for chat: $", "data/chat.jsonl"), (r"budget .*: $", "30"), (r"config .*: $", "asked.yaml"),
        ],
    )  # fmt: skip
    assert code == 0, said
    config = load_config(here / "asked.yaml").config
    assert config.search.budget.candidates == 30 and config.space.granularity == "model"
    assert list(config.models.experts) == ["math", "chat"] and list(config.evaluators) == ["math", "chat"]
    assert "two_experts" in said and "next: paretomerge check asked.yaml" in said


def test_a_mistyped_preset_is_said_before_what_is_missing_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(["init", "safty"]) == 2
    assert "there is no preset 'safty'" in capsys.readouterr().err and list(tmp_path.iterdir()) == []
