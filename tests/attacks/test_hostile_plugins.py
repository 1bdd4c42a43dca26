"""Code that configs name is said to be run before it is; code that tasks and templates smuggle in is not run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attacking import Attack, Trap, cases
from small_models import MERGE, SEARCH, small_project

EVALUATOR = """
from evaluators.exact_match import ExactMatch as Mine
"""

OPTIMIZER = """
from search.optimizers.random import Random as Mine
"""

METHOD = """
from merging.methods.linear import Linear as Mine
"""

FUNCTION = """
def score(item, answer):
    return 1.0
"""

SAYS = "import sys; print('NOW IT RUNS', file=sys.stderr)\n"

PLUG_INS = {
    "an evaluator": (
        EVALUATOR, SEARCH.replace("type: exact_match", "type: 'mine.py:Mine'"), ("check", "own.yaml"),
    ),
    "a function": (
        FUNCTION,
        SEARCH.replace("type: exact_match", "type: python, path: 'mine.py:score'").replace("accuracy", "score"),
        ("check", "own.yaml"),
    ),
    "an optimizer": (
        OPTIMIZER, SEARCH.replace("optimizer: random", "optimizer: 'mine.py:Mine'"), ("check", "own.yaml"),
    ),
    "a method of a space": (METHOD, SEARCH + "space: {methods: ['mine.py:Mine']}\n", ("check", "own.yaml")),
    "a method of a merge": (METHOD, MERGE.replace("task_arithmetic", "'mine.py:Mine'"), ("merge", "own.yaml", "out")),
}  # fmt: skip


@pytest.mark.parametrize("kind", cases(PLUG_INS, 1))
def test_plug_ins_are_named_before_they_run(attack: Attack, kind: str) -> None:
    small_project()
    code, config, command = PLUG_INS[kind]
    Path("mine.py").write_text(SAYS + code)
    Path("own.yaml").write_text(config)
    said = attack(*command).err
    assert f"the code of a plug-in is run: {Path('mine.py').absolute()}" in said
    assert said.index("plug-in is run") < said.index("NOW IT RUNS")


@pytest.mark.slow
@pytest.mark.parametrize("kind", cases(PLUG_INS, 1))
def test_plug_ins_that_exit_do_not_end_the_program_as_if_it_were_done(attack: Attack, kind: str) -> None:
    small_project()
    _, config, command = PLUG_INS[kind]
    Path("mine.py").write_text("import sys\nsys.exit(0)\n")
    Path("own.yaml").write_text(config)
    assert "SystemExit" in attack(*command).refusal


TASK = """task: mine
custom_dataset: null
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["w1"], max_gen_toks: 2}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""

REACHES = "{{{{ cycler.__init__.__globals__.os.system('touch {mark}') }}}}"
OUTSIDE = {
    "a module of the machine": "process_docs: !function os.system\n",
    "a built-in": "process_docs: !function builtins.exec\n",
    "a file elsewhere": "process_docs: !function /{outside}/evil.score\n",
    "a task elsewhere": "include: {outside}/evil.yaml\n",
    "an alias of itself": "process_docs: &a [*a]\n",
    "aliases without an end": "a0: &a0 [x, x]\n"
    + "".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12)),
    "a template that reaches for objects": """doc_to_text: "{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}"\n""",
    "a template that opens files": f'doc_to_text: "{REACHES}"\n',
    "a target that opens files": f'doc_to_target: "{REACHES}"\n',
}  # fmt: skip


def lm_eval_search() -> None:
    Path("own.yaml").write_text(
        SEARCH.replace("type: exact_match", "type: lm_eval, tasks: mine, include_path: tasks")
        .replace(", max_new_tokens: 2", "")
        .replace("one.accuracy", "one.exact_match")
    )
    Path("tasks").mkdir()


@pytest.mark.parametrize("kind", cases(OUTSIDE, 0))
def test_tasks_of_lm_eval_run_no_code_but_their_folders(attack: Attack, trap: Trap, kind: str) -> None:
    small_project()
    lm_eval_search()
    outside = trap.mark.parent
    (outside / "evil.py").write_text(f"{trap.code}\n\ndef score(docs):\n    return docs\n")
    (outside / "evil.yaml").write_text("task: mine\nprocess_docs: !function evil.score\n")
    line = OUTSIDE[kind].format(
        outside=str(outside).lstrip("/") if "function" in OUTSIDE[kind] else outside, mark=trap.mark
    )
    kept = [each for each in TASK.splitlines() if each.partition(":")[0] != line.partition(":")[0]]
    Path("tasks/mine.yaml").write_text("\n".join(kept) + "\n" + line)
    outcome = attack("check", "own.yaml")
    trap.assert_untouched()
    assert "tasks/mine.yaml" in outcome.refusal or '"mine"' in outcome.refusal or "unsafe" in outcome.refusal


@pytest.mark.slow
def test_functions_beside_a_task_are_named_before_they_run(attack: Attack) -> None:
    small_project()
    lm_eval_search()
    Path("tasks/code.py").write_text(SAYS + "\n\ndef docs(given):\n    return given\n")
    Path("tasks/mine.yaml").write_text(TASK + "process_docs: !function code.docs\n")
    outcome = attack("check", "own.yaml")
    assert outcome.code == 0, outcome.err
    assert outcome.err.index(f"plug-in is run: {Path('tasks/code.py').absolute()}") < outcome.err.index("NOW IT RUNS")


@pytest.mark.slow
@pytest.mark.parametrize("value", ["{prompt.__class__}", "{0}", "{prompt!r}", "{prompt:>99999999999}", "{{}}"])
def test_templates_of_prompts_are_names_in_braces(attack: Attack, value: str) -> None:
    small_project()
    override = f"evaluators.one.prompt={json.dumps({'template': value})}"
    assert "template" in attack("check", "search.yaml", "--set", override).refusal


ITEMS = {
    "a prompt of control characters": {"prompt": "\x1b]0;owned\x07\x1b[2J\u202e", "answer": ""},
    "an answer that is a list": {"prompt": "w1", "answer": {"a": "\x1b[2J"}},
    "a field of a kilometre": {"prompt": "w1", "x" * 100_000: "w2"},
}


@pytest.mark.parametrize("kind", cases(ITEMS, 1))
def test_items_that_are_none_are_quoted_harmlessly(attack: Attack, kind: str) -> None:
    small_project()
    with Path("items.jsonl").open("a") as file:
        file.write(json.dumps(ITEMS[kind]) + "\n")
    assert "items.jsonl:37" in attack("check", "search.yaml").refusal
